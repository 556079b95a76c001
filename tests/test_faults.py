"""What goes wrong on the network, at Duo or in its answers, and what comes of it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import duo_phone_cleanup
from tests.simulation.tenant import MISSING, SKEY, Fault, Request, Tenant
from tests.support import (
    HOUR,
    NETWORK,
    NO_ANSWER,
    NOW,
    SET_UP,
    STUCK,
    WRITES,
    OneOfEach,
    Run,
    Write,
    assert_no_secret,
    assert_no_stale_write,
    error_line,
)

GRANT = "Grant resource"
STAMP = {"method": "POST"}
DELETION = {"method": "DELETE"}

Kind = tuple[str, dict[str, Any]]  # of a fault, and how it is
Case = tuple[Kind, tuple[str, ...]]  # and what the error line has to say


# Faults that pass

REQUESTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # What picks the request out of a run, and the users named on its command line.
    "page": ({"path": "users$"}, ()),
    "second page": ({"path": "users$", "after": 1}, ()),
    "look-up": ({"path": "users$"}, ("ann", "bob", "cleo")),
    "re-read": ({"method": "GET", "path": "DP-delete"}, ()),
    "stamp": (STAMP, ()),
    "untag": ({"method": "POST", "after": 1}, ()),
    "deletion": (DELETION, ()),
}
PASSING: dict[str, Kind] = {
    "reset": ("reset_before", {}),
    "answer lost": ("reset_after", {}),
    "orderly close": ("close_before", {}),
    "cut short": ("truncate", {}),
    "connection dropped afterwards": ("close_after", {}),
    "connection closed afterwards": ("connection_close", {}),
    "408": ("status", {"status": 408}),
    "500": ("status", {"status": 500}),
    "502 with HTML": ("status", {"status": 502}),
    "503": ("status", {"status": 503}),
    "HTML": ("junk", {}),
    "empty": ("junk", {"body": b""}),
    "not UTF-8": ("junk", {"body": b'"\xff"'}),
}


@pytest.mark.parametrize("passing", PASSING)
@pytest.mark.parametrize("request_kind", REQUESTS)
def test_a_passing_fault_is_ridden_out(
    tenant: Tenant, run: Run, request_kind: str, passing: str
) -> None:
    work = OneOfEach(tenant, 300 if request_kind == "second page" else 0)
    (where, users), (kind, how) = REQUESTS[request_kind], PASSING[passing]
    fault = tenant.fail(kind, **where, **how)
    work.assert_done(run("--json", "--untag", *users))
    assert fault.hits == 1


@pytest.mark.parametrize(
    ("request_kind", "before"),
    [("page", True), ("re-read", True), ("stamp", False), ("deletion", False)],
)
def test_a_time_out_is_ridden_out(
    tenant: Tenant, run: Run, request_kind: str, before: bool
) -> None:
    work = OneOfEach(tenant)
    fault = tenant.fail("hang", **REQUESTS[request_kind][0], before=before)
    work.assert_done(run("--json", "--untag", "--timeout", "0.3"))
    assert fault.hits == 1


@pytest.mark.parametrize("request_kind", ["page", "stamp", "deletion"])
def test_a_429_is_waited_out_and_is_no_try(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    request_kind: str,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "TRIES", 1)
    work = OneOfEach(tenant)
    fault = tenant.fail("status", status=429, **REQUESTS[request_kind][0])
    work.assert_done(run("--json", "--untag"))
    assert fault.hits == 1


@pytest.mark.parametrize(("times", "status"), [(2, 0), (3, 1)])
@pytest.mark.parametrize("request_kind", REQUESTS)
def test_three_tries_in_all(
    tenant: Tenant, run: Run, request_kind: str, times: int, status: int
) -> None:
    OneOfEach(tenant, 300 if request_kind == "second page" else 0)
    where, users = REQUESTS[request_kind]
    fault = tenant.fail("status", times=times, **where)
    result = run("--json", "--untag", *users)
    assert (result.status, fault.hits) == (status, times)
    assert result.kinds.count("failed") == status
    assert_no_stale_write(tenant)


@pytest.mark.parametrize(
    "faults",
    [
        # After a write whose answer is lost, the read that finds it done fails too.
        [("reset_after", STAMP), ("truncate", {"path": "-a", "after": 2})],
        [("reset_after", DELETION), ("truncate", {"path": "-b", "after": 2})],
        # The first write is not done and the second is, neither with an answer.
        [("reset_before", STAMP), ("reset_after", STAMP)],
        [("reset_before", DELETION), ("reset_after", DELETION)],
        [("truncate", STAMP), ("truncate", DELETION)],
    ],
)
def test_faults_one_after_the_other(
    tenant: Tenant, run: Run, faults: list[Kind]
) -> None:
    """With a clock that goes on between the tries, so that each stamp differs."""
    tenant.add_phone("ann", phone_id="DP-a")
    tenant.add_phone("bob", phone_id="DP-b", name=STUCK)
    set_up = [tenant.fail(kind, **where) for kind, where in faults]
    clock = itertools.count(NOW)
    result = run("--json", now=lambda: next(clock))
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["stamped", "deleted"]
    assert NOW < int(tenant.phones["DP-a"]["name"]) < next(clock)
    assert tenant.phone("DP-b") is None
    assert [fault.hits for fault in set_up] == [1, 1]
    assert_no_stale_write(tenant)


@pytest.mark.parametrize(
    ("fields", "method", "change"),
    [
        ({"name": STUCK}, "DELETE", SET_UP),
        ({"name": STUCK}, "DELETE", {"name": "Ann's spare"}),
        ({"name": STUCK}, "DELETE", {"name": str(NOW - HOUR - 1)}),
        ({"name": STUCK, **SET_UP}, "POST", {"name": "Ann's phone"}),
        ({}, "POST", SET_UP),
        ({}, "POST", {"name": "Ann's spare"}),
    ],
)
def test_a_write_is_not_repeated_on_a_phone_that_has_changed(
    tenant: Tenant, run: Run, fields: Any, method: str, change: dict[str, Any]
) -> None:
    phone_id = tenant.add_phone("ann", **fields)
    expected = {**tenant.phones[phone_id], **change}

    def meanwhile(request: Request) -> None:
        if request.method == method:
            tenant.phones[phone_id].update(change)

    tenant.on_request(meanwhile)
    tenant.fail("reset_before", method=method)
    result = run("--json", "--untag")
    assert (result.status, result.err, result.kinds[-1]) == (0, "", "changed")
    assert tenant.phones[phone_id] == expected
    assert [r.method for r in tenant.requests].count(method) == 1


@pytest.mark.parametrize("blank", ["", None, MISSING], ids=["empty", "null", "missing"])
def test_an_untag_whose_answer_was_lost_is_found_done(
    tenant: Tenant, run: Run, blank: Any
) -> None:
    """However Duo then tells that the name is blank."""
    phone = tenant.phones[tenant.add_phone("ann", name=STUCK, **SET_UP)]

    def make_blank(request: Request) -> None:
        if request.method == "POST":
            phone["name"] = blank
            if blank is MISSING:
                del phone["name"]

    tenant.after_request(make_blank)
    tenant.fail("reset_after", method="POST")
    assert run("--json", "--untag").kinds == ["untagged"]


@pytest.mark.usefixtures("_real_pauses")
def test_all_threads_wait_out_a_429_together(tenant: Tenant, run: Run) -> None:
    """Of six pages, three are let through in any second."""
    tenant.populate(300 * 6)
    tenant.limit(3, 1, "users$")
    result = run("--json")
    assert (result.status, result.summary["users_seen"]) == (0, 1800)
    refused = [request for request in tenant.requests if request.status == 429]
    # The three that were on their way, and one that tried again too soon.
    assert len(refused) <= 3 + 1
    assert len(tenant.requests) == 6 + len(refused)


# Faults that last: the walk


@contextlib.contextmanager
def server(reply: bytes = b"", certificate: Any = None) -> Iterator[str]:
    """Serve the same reply to everybody on localhost, over TLS if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        certificate.configure_cert(context)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                talk = self.request
                if certificate:
                    talk = context.wrap_socket(talk, server_side=True)
                with talk:
                    talk.recv(65536)
                    talk.sendall(reply)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"localhost:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


@pytest.fixture
def dead_port() -> Iterator[str]:
    """An address where nobody listens, and nobody else will."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"localhost:{unused.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"localhost:{listener.getsockname()[1]}"


def answers(name: str, values: list[Any], *needed: str) -> dict[str, Case]:
    """Cases of an answer that has each of these values in this place."""
    places: dict[str, Callable[[Any], dict[str, Any]]] = {
        "envelope": lambda value: {"envelope": value},
        "response": lambda value: {"response": value},
        "metadata": lambda value: {"response": [], "metadata": value},
        "next_offset": lambda value: {"response": [], "metadata": {name: value}},
        "user": lambda value: {"response": [value]},
        "phones": lambda value: {"response": [{"username": "ann", name: value}]},
    }
    return {f"{name} {v}": (("answer", places[name](v)), needed) for v in values}


NOT_JSON = "localhost:", "is not Duo's Admin API: no JSON: check --host (DUO_HOST)"


def fail(**envelope: Any) -> Kind:
    """An answer that is sent as 200 and says that it is none."""
    return "answer", {"envelope": {"stat": "FAIL", **envelope}}


REFUSED_WALKS: dict[str, Case] = {
    # The fault, and what the line has to say: Duo's own message, and a hint.
    **{
        str(code): (("status", {"status": 401, "code": code}), needed)
        for code, needed in {
            40101: ("401 Missing request credentials", "DUO_IKEY", "DUO_SKEY"),
            40102: ("401 Invalid integration key in request credentials", "DUO_IKEY"),
            40103: ("401 Invalid signature in request credentials", "DUO_SKEY"),
            40104: ("401 Missing request timestamp", "this machine's clock"),
            40105: ("401 Bad request timestamp", "this machine's clock"),
        }.items()
    },
    "403": (("status", {"status": 403, "code": 40301}), ("Access forbidden", GRANT)),
    "404": (("status", {"status": 404}), ("404 Resource not found",)),
    "400": (
        ("status", {"status": 400, "code": 40002, "message_detail": "limit"}),
        ("400 Invalid request parameters (limit)",),
    ),
    "405": (("status", {"status": 405}), ("405 Method not allowed",)),
    "302": (("status", {"status": 302, "body": b""}), ("302 Found",)),
    "200, forbidden": (
        fail(code=40301, message="Access forbidden"),
        ("error: Duo answers", "Access forbidden: ", GRANT),
    ),
    "200, wrong key": (
        fail(code=40103, message="Invalid signature"),
        ("error: Duo answers", "Invalid signature: ", "DUO_SKEY"),
    ),
    "200, no code": (fail(message="No\nway"), ("error: Duo answers", " No way")),
    "200, no message": (fail(), ("error: Duo answers",)),
    "hostile message": (
        ("status", {"status": 400, "message": "No\nwa\x1b[31my\r" + 5000 * "!"}),
        ("400 No wa\\x1b[31my !!!!!",),
    ),
    "message that is no text": (
        ("status", {"status": 400, "message": {"a": [1]}, "code": {}}),
        ("400 {'a': [1]}",),
    ),
}
BROKEN_WALKS: dict[str, Case] = {
    # These may pass: there are three tries.
    "200, busy": (fail(code=50001, message="Busy"), ("error: Duo answers", " Busy")),
    "408": (("status", {"status": 408}), ("408 Request Timeout",)),
    "500": (("status", {"status": 500}), ("500 Internal Server Error",)),
    "502 with HTML": (("status", {"status": 502}), ("502 Bad Gateway",)),
    "503": (("status", {"status": 503}), ("503 Service Unavailable",)),
    "503 and a list": (("status", {"body": b"[]"}), ("503 Service Unavailable",)),
    "reset": (("reset_before", {}), (NO_ANSWER, NETWORK)),
    "orderly close": (("close_before", {}), (NO_ANSWER, NETWORK)),
    "cut short": (("truncate", {}), ("is not Duo's Admin API",)),
    "HTML": (("junk", {}), NOT_JSON),
    "empty": (("junk", {"body": b""}), NOT_JSON),
    "not UTF-8": (("junk", {"body": b'{"stat":"\xff"}'}), NOT_JSON),
    "deep": (("junk", {"body": b"[" * 200_000}), NOT_JSON),
    "deep and well formed": (
        ("junk", {"body": b"[" * 100_000 + b"]" * 100_000}),
        NOT_JSON,
    ),
    **answers("envelope", [None, 7, "", [], [{}], {}, {"stat": "OK"}], *NOT_JSON),
    **answers("response", [None, 7, "users", {}, {"users": []}], "not a page of users"),
    **answers("metadata", [None, 7, "x", [1]], "not a page of users"),
    **answers("user", [None, 7, "ann", []], "not a page of users"),
}
NO_RECORDS = "error: Duo gives user ann phones that are no records"
MISSHAPEN_WALKS: dict[str, Case] = {
    **answers("phones", [7, "DP", {"DP": {}}], NO_RECORDS),
    **answers("next_offset", [0, -300, "300", 300.0, [], {}], "next_offset"),
}
WALKS = {**REFUSED_WALKS, **BROKEN_WALKS, **MISSHAPEN_WALKS}


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_that_fails_writes_nothing(tenant: Tenant, run: Run, walk: str) -> None:
    work = OneOfEach(tenant)
    (kind, how), needed = WALKS[walk]
    fault = tenant.fail(kind, times=None, **how)
    result = run("--json")
    line = error_line(result, *needed)
    assert line.isprintable()
    assert "html" not in line
    assert result.kinds == ["failed"]
    assert result.summary["exit_status"] == 1
    assert fault.hits == (3 if walk in BROKEN_WALKS else 1)
    work.assert_untouched()
    assert_no_secret(run("--json", "-vvv"))


@pytest.mark.parametrize("walk", ["403", "503", "HTML", "user 7"])
def test_a_walk_that_fails_half_way_writes_nothing(
    tenant: Tenant, run: Run, walk: str
) -> None:
    work = OneOfEach(tenant, 600)
    (kind, how), needed = WALKS[walk]
    tenant.fail(kind, path="users$", after=1, times=None, **how)
    result = run("--json")
    error, _summary = result.err.splitlines()
    assert all(each in error for each in needed)
    assert (result.status, result.kinds) == (1, ["failed"])
    assert result.summary["users_seen"] >= 300
    work.assert_untouched()


def test_an_offset_that_does_not_grow(tenant: Tenant, run: Run) -> None:
    metadata = {"total_objects": 900, "next_offset": 300}
    fault = tenant.fail("answer", response=[], metadata=metadata, times=None)
    error_line(run(), "next_offset")
    assert fault.hits <= 3


@pytest.mark.parametrize(
    ("variables", "needed"),
    [
        ({"DUO_SKEY": SKEY[::-1]}, ("Invalid signature", "DUO_SKEY")),
        ({"DUO_IKEY": "DIXXXXXXXXXXXXXXXXXX"}, ("Invalid integration key", "DUO_IKEY")),
    ],
)
def test_wrong_keys(
    tenant: Tenant, run: Run, variables: Any, needed: tuple[str, ...]
) -> None:
    error_line(run(**variables), *needed)
    assert len(tenant.requests) == 1


@pytest.mark.parametrize(
    ("permissions", "tries"), [({"write"}, []), ({"read"}, ["POST"]), (set(), [])]
)
def test_missing_permissions(
    tenant: Tenant, run: Run, permissions: set[str], tries: list[str]
) -> None:
    """The permission to read is missed by the walk, the one to write by a write."""
    tenant.permissions = permissions
    OneOfEach(tenant)
    result = run("--json", "--untag")
    line = result.err.splitlines()[0]
    assert "403 Access forbidden" in line
    assert f"{GRANT} - Read" in line
    assert f"{GRANT} - Write" in line
    assert (result.status, result.kinds) == (1, ["failed"])
    assert [r.method for r in tenant.requests if r.method != "GET"] == tries


@pytest.mark.parametrize(
    ("name", "value"), [("host", ""), ("ikey", ""), ("skey", ""), ("host", "a b")]
)
def test_settings_that_are_missing_or_malformed(
    tenant: Tenant, run: Run, name: str, value: str
) -> None:
    variables: Any = {f"DUO_{name.upper()}": value}
    result = run("-vvv", **variables)
    (line,) = result.err.splitlines()
    assert f"--{name} (DUO_{name.upper()})" in line
    assert (result.status, tenant.requests) == (2, [])


# Faults that last: the network


def test_a_refused_connection(run: Run, dead_port: str) -> None:
    needed = f"no answer from {dead_port}: ", "onnection refused", NETWORK
    error_line(run(DUO_HOST=dead_port), *needed)


def test_an_unknown_host(run: Run) -> None:
    # Too long for any name server to be asked about it.
    host = ".".join(["a" * 60] * 5)
    error_line(run(DUO_HOST=host), f"no answer from {host[:20]}", NETWORK)


def test_a_silent_server(run: Run, silent_port: str) -> None:
    began = time.monotonic()
    result = run("--timeout", "0.1", DUO_HOST=silent_port)
    error_line(result, NO_ANSWER, f"timed out{NETWORK}")
    assert time.monotonic() - began < 2


def test_a_server_that_falls_silent(tenant: Tenant, run: Run) -> None:
    fault = tenant.fail("hang", times=None)
    error_line(run("--timeout", "0.1"), NO_ANSWER, f"timed out{NETWORK}")
    assert fault.hits == 3


@pytest.mark.parametrize(
    ("reply", "needed"),
    [
        (b"", (NO_ANSWER, NETWORK)),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ("SSH-2.0", "DUO_HOST")),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000, ("line", "DUO_HOST")),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", ("100", "DUO_HOST")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ("IncompleteRead", "DUO_HOST"),
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ("204 No Content",)),
    ],
    ids=["nothing", "not HTTP", "long line", "headers", "chunks", "204"],
)
def test_a_server_that_is_not_duo(
    run: Run, tmp_path: Path, reply: bytes, needed: tuple[str, ...]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with server(reply, authority.issue_cert("localhost")) as host:
        result = run(DUO_HOST=host, DUO_CA_CERTS=str(tmp_path / "ca.pem"))
    assert error_line(result, *needed).isprintable()


def test_a_server_without_tls(run: Run) -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as host:
        line = error_line(run(DUO_HOST=host), f"no answer from {host}: ", NETWORK)
    assert "_ssl.c" not in line
    assert "[SSL" not in line


@pytest.mark.parametrize(
    ("name", "trusted", "ends", "needed"),
    [
        ("localhost", False, 1, "unable to get local issuer certificate"),
        (
            *("api-12345678.duosecurity.com", True, 1),
            "Hostname mismatch, certificate is not valid for 'localhost'",
        ),
        ("localhost", True, -1, "certificate has expired"),
    ],
    ids=["of another authority", "for another host", "expired"],
)
def test_a_certificate_that_fails(
    run: Run, tmp_path: Path, name: str, trusted: bool, ends: int, needed: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    now = datetime.datetime.now(datetime.timezone.utc)
    days = [now + datetime.timedelta(days=day) for day in (-2, ends)]
    certificate = authority.issue_cert(name, not_before=days[0], not_after=days[1])
    trust = str(tmp_path / "ca.pem") if trusted else ""  # "": duo_client's bundle
    with server(b"", certificate) as host:
        result = run(DUO_HOST=host, DUO_CA_CERTS=trust)
    failed = f"localhost is not trusted: certificate verify failed: {needed}"
    hint = "is --host (DUO_HOST) right? Or see --ca-certs (DUO_CA_CERTS)"
    error_line(result, f" error: {failed}: {hint}")


@pytest.mark.parametrize("login", ["", "proxy-user:proxy-password@"])
@pytest.mark.parametrize(
    ("reply", "needed", "hint"),
    [
        (None, "onnection refused", NETWORK),
        (b"HTTP/1.1 407 Login, please\r\n\r\n", "407 Login, please", NETWORK),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway", NETWORK),
        (b"220 mail.example.com ESMTP\r\n", "220 mail.example.com", ""),
    ],
    ids=["refused", "407", "502", "not a proxy"],
)
def test_a_proxy_that_fails(
    tenant: Tenant,
    run: Run,
    dead_port: str,
    login: str,
    reply: bytes | None,
    needed: str,
    hint: str,
) -> None:
    with server(reply or b"") as address:
        proxy = dead_port if reply is None else address
        results = [
            run(*argv, HTTPS_PROXY=f"http://{login}{proxy}") for argv in ((), ("-vvv",))
        ]
    error_line(results[0], f"the proxy {proxy}", needed, hint)
    assert tenant.requests == []
    for result in results:
        assert_no_secret(result)
        for secret in ("proxy-", base64.b64encode(login.rstrip("@").encode()).decode()):
            assert not secret or secret not in result.err


# Faults that last: a phone


class Row:
    """Phones in a row with the same verdict. What goes wrong does with the second."""

    def __init__(self, tenant: Tenant, count: int = 3, **fields: Any) -> None:
        self.tenant = tenant
        users = [f"user-{n}" for n in range(count)]
        self.ids = [tenant.add_phone(user, **fields) for user in users]

    def fail(self, kind: str, method: str, **how: Any) -> Fault:
        """Let this go wrong for ever with the second phone."""
        path = f"phones/{self.ids[1]}"
        return self.tenant.fail(kind, method=method, path=path, times=None, **how)

    @property
    def written(self) -> list[str]:
        """The phones that a write was sent for, in turn, each once."""
        writes = [each for each in self.tenant.requests if each.method != "GET"]
        return [*dict.fromkeys(each.path[-20:] for each in writes)]


ONE_PHONE: dict[str, tuple[Kind, str, int]] = {
    # The fault, what the line has to say, how many tries.
    "400": (("status", {"status": 400}), "400 Bad Request", 1),
    "404": (("status", {"status": 404, "code": 40499}), "404 Not Found", 1),
    "404 with HTML": (("status", {"status": 404, "body": b"<html>"}), "404 Not", 1),
    "500": (("status", {"status": 500}), "500 Internal Server Error", 3),
    "502": (("status", {"status": 502}), "502 Bad Gateway", 3),
    "200 and FAIL": (
        ("status", {"status": 200, "code": 40002, "message": "No"}),
        ": Duo answers",
        1,
    ),
    "reset": (("reset_before", {}), NO_ANSWER, 3),
    "orderly close": (("close_before", {}), NO_ANSWER, 3),
    "time-out": (("hang", {}), "timed out", 3),
}
NO_PHONE: dict[str, tuple[Kind, str, int]] = {
    **{
        name: (kind, needed[0], 3)
        for name, (kind, needed) in answers(
            "response", [None, 7, "", "DP", [], [{}]], "not a phone"
        ).items()
    },
    "HTML": (("junk", {}), NOT_JSON[1], 3),
    "not UTF-8": (("junk", {"body": b'"\xff"'}), NOT_JSON[1], 3),
    "deep": (("junk", {"body": b"[" * 200_000}), NOT_JSON[1], 3),
}


@pytest.mark.parametrize(
    ("write", "on_write", "failing"),
    [(write, True, each) for write in WRITES for each in ONE_PHONE]
    + [(WRITES[1], False, each) for each in (*ONE_PHONE, *NO_PHONE)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_one_phone_that_fails_does_not_stop_the_others(
    tenant: Tenant, run: Run, write: Write, on_write: bool, failing: str
) -> None:
    row = Row(tenant, **write.fields)
    before = tenant.phone(row.ids[1])
    (kind, how), needed, tries = {**ONE_PHONE, **NO_PHONE}[failing]
    fault = row.fail(kind, write.method if on_write else "GET", **how)
    result = run("--json", "--untag", *["--timeout", "0.3"] * (kind == "hang"))
    assert result.status == 1
    assert fault.hits == tries
    error, _summary = result.err.splitlines()
    assert all(each in error for each in (needed, row.ids[1], "user-1"))
    assert result.summary["failed"] == 1
    told = [each for each in result.events[:-1] if each["event"] != "deleting"]
    assert [each["event"] for each in told] == [write.event, "failed", write.event]
    assert [each["phone_id"] for each in told] == row.ids
    assert tenant.phone(row.ids[1]) == before
    assert_no_stale_write(tenant)


FATAL: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "code": 40103},
    "403": {"status": 403},
    "429 given up": {"status": 429},
}


@pytest.mark.parametrize("on_write", [False, True])
@pytest.mark.parametrize("failing", FATAL)
def test_what_ends_the_run_leaves_the_other_phones(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    on_write: bool,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "PATIENCE", 0)
    row = Row(tenant, name=STUCK)
    method = "DELETE" if on_write else "GET"
    fault = row.fail("status", method, **FATAL[failing])
    result = run("--json")
    assert result.status == 1
    assert fault.hits == 1
    error, _summary = result.err.splitlines()
    assert row.ids[1] in error
    assert (result.summary["deleted"], result.summary["failed"]) == (1, 1)
    assert row.written == row.ids[: 1 + on_write]
    assert [row.tenant.phone(each) is None for each in row.ids] == [True, False, False]
    assert_no_stale_write(tenant)


@pytest.mark.parametrize("kind", ["hang", "reset_before"])
def test_a_server_that_dies_after_the_walk(tenant: Tenant, run: Run, kind: str) -> None:
    """A thousand phones do not mean a thousand time-outs: four of them do."""
    for number in range(1000):
        tenant.add_phone(f"user-{number % 20}")
    fault = tenant.fail(kind, path="phones/", times=None)
    began = time.monotonic()
    result = run("--timeout", "0.1")
    assert time.monotonic() - began < 3
    assert result.status == 1
    assert 4 * 3 <= fault.hits <= 5 * 3  # a fifth was being read meanwhile
    *errors, last, _summary = result.err.splitlines()
    assert ["no answer from" in each for each in errors] == [True] * 4
    assert "error: 4 phones in a row without an answer" in last


@pytest.mark.usefixtures("_real_pauses")
@pytest.mark.parametrize(("patience", "refused"), [(0, 1), (0.3, 2)])
def test_a_429_that_lasts_is_given_up(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
    refused: int,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "PATIENCE", patience)
    work = OneOfEach(tenant)
    tenant.limit(0, 60)
    error_line(run(), "429 Too Many Requests", "rate limit")
    assert len(tenant.requests) == refused
    work.assert_untouched()


@pytest.mark.usefixtures("_real_pauses")
def test_a_429_that_lasts_is_given_up_by_all_threads(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "PATIENCE", 0.3)
    tenant.populate(300 * 8)
    tenant.limit(1, 60)
    result = run()
    error, _summary = result.err.splitlines()
    assert "429 Too Many Requests" in error
    assert result.status == 1
    # The four that were on their way, and then none, some or all of them once more:
    # they wait together, and the first to give up ends the run.
    assert len(tenant.requests) <= 1 + 4 + 4


def test_an_answer_about_another_phone_vouches_for_none(
    tenant: Tenant, run: Run
) -> None:
    ann = tenant.add_phone("ann", name=STUCK)
    bob = tenant.add_phone("bob", name=STUCK)
    other = {**(tenant.phone(ann) or {}), "users": []}
    tenant.fail("answer", response=other, method="GET", path=bob, times=None)
    assert run().status == 1
    assert tenant.phone(ann) is None
    assert tenant.phone(bob)


# Records that are not what they should be


@pytest.mark.parametrize("entry", [None, 7, "DPX", [], [{}]], ids=repr)
def test_a_phone_that_is_no_object(tenant: Tenant, run: Run, entry: Any) -> None:
    """It ends the walk, as phones do that are no list, and nothing is written."""
    phone_id = tenant.add_phone("bob", name=STUCK)
    phones = [entry, tenant.phone(phone_id)]
    users = [{"username": "ann", "phones": phones}]
    tenant.fail("answer", path="users$", response=users)
    result = run("--json")
    error_line(result, NO_RECORDS)
    assert (result.status, result.kinds) == (1, ["failed"])
    assert tenant.phone(phone_id)
    assert len(tenant.requests) == 1


@pytest.mark.parametrize(
    "field",
    [
        {},
        {"phone_id": []},
        {"phone_id": {}},
        *({"phone_id": odd} for odd in (None, "", 7, 1.5, True, ".", "DP/../X")),
        *({"phone_id": f"DP{odd}"} for odd in (" X", "\n", "%2e", "é", "?", "#")),
    ],
    ids=repr,
)
def test_a_phone_without_a_usable_id(
    tenant: Tenant, run: Run, field: dict[str, Any]
) -> None:
    good = tenant.add_phone("ann", name=STUCK)
    bad = {"platform": "Generic Smartphone", "number": "+15550100", **field}
    users = [{"username": "ann", "phones": [bad, tenant.phone(good)]}]
    tenant.fail("answer", path="users$", response=users)
    result = run("--json")
    assert (result.status, result.kinds) == (1, ["failed", "deleting", "deleted"])
    error, _summary = result.err.splitlines()
    assert "ann" in error
    assert "phone_id" in error
    assert [request.path[-20:] for request in tenant.requests[1:]] == [good, good]


@pytest.mark.parametrize("odd", [None, 7, True, "", [], {}, {"a": 1}], ids=repr)
def test_fields_of_odd_types_do_no_harm(tenant: Tenant, run: Run, odd: Any) -> None:
    """The verdict needs a platform and a name; the rest is only shown."""
    fields = ("number", "model", "type", "extension", "capabilities", "users")
    phone_id = tenant.add_phone("ann", name=STUCK, **dict.fromkeys(fields, odd))
    strange = [
        tenant.add_phone("ann", name=STUCK, platform=odd),
        tenant.add_phone("ann", name={"a": odd}),
    ]
    for field in ("username", "user_id", "aliases", "alias1", "email", "groups"):
        next(iter(tenant.users.values()))[field] = odd
    tenant.add_user("bob", phones=None)
    tenant.add_user("cleo", phones=MISSING)
    result = run("--json", "-v")
    assert (result.status, result.kinds) == (0, ["deleting", "deleted", "named"])
    assert tenant.phone(phone_id) is None
    assert all(tenant.phone(each) for each in strange)
    assert not re.search("Traceback|Error", result.err)
