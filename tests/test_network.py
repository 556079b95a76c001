"""Connections, time-outs, servers that are not Duo's, certificates and proxies."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

import duo_phone_cleanup
from tests.simulation.tenant import Tenant
from tests.support import (
    DELETION,
    NETWORK,
    NO_ANSWER,
    STAMP,
    STUCK,
    UNTAG,
    OneOfEach,
    Run,
    assert_no_stale_write,
    error_line,
    when,
    written_phones,
)

NO_ANSWER_AT_ALL = "no answer from {}: no whole answer in time"

# Connections


def test_connections_are_kept_as_long_as_all_goes_well(
    tenant: Tenant, run: Run
) -> None:
    tenant.populate(1000)
    for number in range(5):
        tenant.add_phone(f"u{number}", name=STUCK)
    assert run().status == 0
    assert tenant.connections <= 4
    assert len(tenant.requests) == 4 + 5 * 2


def test_no_connection_is_kept_after_one_was_broken(tenant: Tenant, run: Run) -> None:
    """The server may have closed the others as well, without a word."""
    tenant.populate(1000)
    for number in range(5):
        tenant.add_phone(f"u{number}", name=STUCK)
    tenant.fail("close_before", path="users$")
    assert run().status == 0
    used = [request.connection for request in tenant.requests]
    assert len(used) == 1 + 4 + 5 * 2
    assert len({*used}) == len(used)


@pytest.mark.parametrize("kind", ["close_after", "connection_close"])
def test_a_server_that_closes_after_every_answer(
    tenant: Tenant, run: Run, kind: str
) -> None:
    """Whether it says so or not, all the work gets done."""
    tenant.populate(1000)
    ids = []
    events = []
    for write in (STAMP, UNTAG, DELETION):
        for number in range(4):
            ids.append(tenant.add_phone(f"u{number}", **write.fields))
            events.append(write.event)
    tenant.fail(kind, times=None)
    result = run("--json", "--untag")
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == ids
    assert result.outcomes == events
    assert_no_stale_write(tenant)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes from one side of a connection to the other."""
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                return
            target.sendall(data)


def test_a_server_that_takes_two_connections_at_a_time(
    tenant: Tenant, run: Run
) -> None:
    """The rest is refused: the work gets done all the same."""
    phones = OneOfEach(tenant, 700)
    port = int(tenant.host.partition(":")[2])
    free = threading.BoundedSemaphore(2)

    class Door(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if not free.acquire(blocking=False):
                return
            with socket.create_connection(("127.0.0.1", port)) as duo:
                back = (duo, self.request)
                threading.Thread(target=copy, args=back, daemon=True).start()
                copy(self.request, duo)
            free.release()

    with serve(Door) as host:
        phones.assert_done(run("--json", "--untag", DUO_HOST=host))


def test_a_connection_that_the_server_has_closed_is_not_used_again(
    tenant: Tenant, run: Run
) -> None:
    """Two have brought the pages. One ends with a read, the other one meanwhile."""
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.populate(700)
    tenant.slow(request=0.2)  # so that two pages are under way at a time
    tenant.fail("connection_close", method="GET", path=phone)
    when(tenant, "GET", phone, tenant.close_idle, answered=True)
    result = run("--json", "-vv")
    assert (result.status, result.outcomes) == (0, ["deleted"])
    assert "this try failed" not in result.err


# Answers that nobody asked for


def test_the_true_answer_after_an_interim_one_is_not_taken_for_the_next_one(
    tenant: Tenant, run: Run
) -> None:
    """It is to a phone that is read ahead. The deletion before it is refused."""
    first = tenant.add_phone("ann", name=STUCK)
    second = tenant.add_phone("bob", name=STUCK)
    tenant.slow(request=0.3)  # the pause between the two answers
    tenant.fail("connection_close", method="GET", path=first)
    when(tenant, "GET", second, lambda: time.sleep(0.15))
    tenant.fail("interim", method="GET", path=second)
    tenant.fail("status", method="DELETE", status=400, times=None)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["failed", "failed"])
    assert result.err.count("Duo answers 400 Bad Request") == 2


def test_a_second_answer_is_not_taken_for_the_next_one(
    tenant: Tenant, run: Run
) -> None:
    """The deletion is refused; a success lies on the connection of the read."""
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("answer_twice", path=phone)
    tenant.fail("status", method="DELETE", status=400)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert "Duo answers 400 Bad Request" in result.err


# Servers that are silent or slow


def test_a_server_that_falls_silent(tenant: Tenant, run: Run) -> None:
    fault = tenant.fail("hang", times=None)
    error_line(run("--timeout", "0.5"), NO_ANSWER, f"timed out{NETWORK}")
    assert fault.hits == 3


@pytest.mark.parametrize(
    ("method", "path", "done"),
    [
        pytest.param("GET", "users", False, id="page"),
        pytest.param("GET", "DP-delete", False, id="re-read"),
        pytest.param("POST", "DP-stamp", True, id="stamp, done"),
        pytest.param("DELETE", "DP-delete", True, id="deletion, done"),
    ],
)
def test_a_time_out_is_ridden_out(
    tenant: Tenant, run: Run, method: str, path: str, done: bool
) -> None:
    phones = OneOfEach(tenant)
    over = threading.Event()
    when(tenant, method, path, over.wait, answered=done)
    phones.assert_done(run("--json", "--untag", "--timeout", "1"))
    assert len(tenant.requests) >= 1 + 3 * 2 + 1
    over.set()


class Dripping(socketserver.BaseRequestHandler):
    """Gives a reply that comes by bits, for ten seconds."""

    beginning = b""
    drop = b""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(self.beginning)
            for _ in range(500):
                time.sleep(0.02)
                self.request.sendall(self.drop)


class DrippingPage(Dripping):
    beginning = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    drop = b" "


class DrippingHandshake(Dripping):
    beginning = b"\x16\x03\x03\x40\x00"  # of a handshake of 16 KiB
    drop = b"\x00"


class DrippingProxy(Dripping):
    beginning = b"HTTP/1.1 200 Connection established\r\n"
    drop = b"a"


@contextlib.contextmanager
def serve(
    handler: type[socketserver.BaseRequestHandler], certificate: Any = None
) -> Iterator[str]:
    """Serve everybody on localhost so, over TLS if there is one; give the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        certificate.configure_cert(context)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def get_request(self) -> tuple[socket.socket, Any]:
            talk, address = super().get_request()
            if certificate:
                talk = context.wrap_socket(talk, server_side=True)
            return talk, address

    with Server(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"localhost:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


def test_a_page_that_drips_in(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after some time-outs, though none of its waits is long."""
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    monkeypatch.setattr(duo_phone_cleanup, "EXCHANGE_TIME_OUTS", 1.5)
    authority = trustme.CA()
    trust = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(trust)
    with serve(DrippingPage, authority.issue_cert("localhost")) as host:
        began = time.monotonic()
        result = run("--timeout", "1", DUO_HOST=host, DUO_CA_CERTS=trust)
    assert 1.5 <= time.monotonic() - began < 8
    assert " 1 request, " in result.err
    line = error_line(result)
    assert line.endswith(f" error: {NO_ANSWER_AT_ALL.format(host)}{NETWORK}")


def test_a_handshake_that_drips_in(run: Run) -> None:
    """Python gives a handshake one time-out in all."""
    began = time.monotonic()
    with serve(DrippingHandshake) as host:
        result = run("--timeout", "0.1", DUO_HOST=host)
    assert time.monotonic() - began < 5
    error_line(result, f"no answer from {host}: ", f"timed out{NETWORK}")


def test_the_answer_of_a_proxy_that_drips_in(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after some time-outs, though none of its waits is long."""
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    monkeypatch.setattr(duo_phone_cleanup, "EXCHANGE_TIME_OUTS", 1.5)
    began = time.monotonic()
    with serve(DrippingProxy) as proxy:
        result = run("--timeout", "1", HTTPS_PROXY=f"http://{proxy}")
    assert 1.5 <= time.monotonic() - began < 8
    line = error_line(result)
    told = NO_ANSWER_AT_ALL.format(f"the proxy {proxy}")
    assert line.endswith(f" error: {told}{NETWORK}")
    assert tenant.requests == []


# Servers that are not Duo's, or none


@contextlib.contextmanager
def server(reply: bytes = b"", certificate: Any = None) -> Iterator[str]:
    """Serve the same reply to everybody on localhost, over TLS if there is one."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(reply)

    with serve(Handler, certificate) as address:
        yield address


def test_a_refused_connection(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"localhost:{unused.getsockname()[1]}"
        result = run(DUO_HOST=host)
    error_line(result, f"no answer from {host}: ", "onnection refused", NETWORK)


def test_an_unknown_host(run: Run) -> None:
    # Too long for any name server to be asked about it.
    host = ".".join(["a" * 60] * 5)
    error_line(run(DUO_HOST=host), f"no answer from {host[:20]}", NETWORK)


@pytest.mark.parametrize(
    ("reply", "needed"),
    [
        pytest.param(b"", [NO_ANSWER, NETWORK], id="nothing"),
        pytest.param(
            b"SSH-2.0-OpenSSH_9.6\r\n", ["SSH-2.0", "DUO_HOST"], id="not HTTP"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ["IncompleteRead", "DUO_HOST"],
            id="chunks",
        ),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", ["204 No Content"], id="204"),
    ],
)
def test_a_server_that_is_not_duo(
    run: Run, tmp_path: Path, reply: bytes, needed: list[str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with server(reply, authority.issue_cert("localhost")) as host:
        result = run(DUO_HOST=host, DUO_CA_CERTS=str(tmp_path / "ca.pem"))
    assert error_line(result, *needed).isprintable()


# Certificates


def test_a_server_without_tls(run: Run) -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as host:
        line = error_line(run(DUO_HOST=host), f"no answer from {host}: ", NETWORK)
    assert "_ssl.c" not in line
    assert "[SSL" not in line


class Certificate(NamedTuple):
    """A certificate that is not to be trusted, and why."""

    why: str
    name: str = "localhost"
    days_left: int = 1
    trusted: bool = True
    """Whether the authority that issued it is trusted."""


@pytest.mark.parametrize(
    "certificate",
    [
        pytest.param(
            Certificate("unable to get local issuer certificate", trusted=False),
            id="of another authority",
        ),
        pytest.param(
            Certificate(
                "Hostname mismatch, certificate is not valid for 'localhost'",
                name="api-12345678.duosecurity.com",
            ),
            id="for another host",
        ),
        pytest.param(
            Certificate("certificate has expired", days_left=-1), id="expired"
        ),
    ],
)
def test_a_certificate_that_fails(
    run: Run, tmp_path: Path, certificate: Certificate
) -> None:
    authority = trustme.CA()
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.timezone.utc)
    issued = authority.issue_cert(
        certificate.name,
        not_before=now - 2 * day,
        not_after=now + certificate.days_left * day,
    )
    trust = ""  # duo_client's bundle
    if certificate.trusted:
        trust = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(trust)
    with server(b"", issued) as host:
        result = run(DUO_HOST=host, DUO_CA_CERTS=trust)
    failed = f"localhost is not trusted: certificate verify failed: {certificate.why}"
    hint = "is --host (DUO_HOST) right? Or see --ca-certs (DUO_CA_CERTS)"
    error_line(result, f" error: {failed}: {hint}")


@pytest.mark.parametrize("word", ["HTTP", "DISABLE"])
def test_a_file_named_like_a_switch_does_not_turn_verification_off(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """To duo_client, these words mean "not encrypted" and "not verified"."""
    monkeypatch.chdir(tmp_path)
    trustme.CA().cert_pem.write_to_path(word)
    error_line(run("--ca-certs", word), "localhost is not trusted: certificate")


# Proxies

USER = "proxy-user"
PASSWORD = "p@ss:wörd"
LOGIN = "proxy-user:p%40ss%3Aw%C3%B6rd"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real CONNECT proxy that wants a user and a password; its address."""
    port_file = tmp_path_factory.mktemp("proxy") / "port"
    options = [
        "--port=0",
        f"--port-file={port_file}",
        "--hostname=127.0.0.1",
        f"--basic-auth={USER}:{PASSWORD}",
        "--num-workers=1",
        "--num-acceptors=1",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "proxy", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (port_file.exists() and port_file.read_text().strip()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)  # it tells by nothing but this file
    yield f"127.0.0.1:{port_file.read_text().strip()}"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", ""])
def test_goes_through_a_proxy(
    tenant: Tenant, run: Run, proxy: str, scheme: str
) -> None:
    """The certificate is checked for Duo's name, not for the proxy's 127.0.0.1."""
    phone = tenant.add_phone("ann")
    result = run("-vv", HTTPS_PROXY=f"{scheme}{LOGIN}@{proxy}")
    assert result.status == 0
    assert tenant.phones[phone]["name"].isdigit()
    for secret in (PASSWORD, LOGIN, USER):
        assert secret not in result.err


def test_no_proxy_goes_past_the_proxy(tenant: Tenant, run: Run) -> None:
    tenant.add_user("ann")
    result = run(HTTPS_PROXY="http://127.0.0.1:1", NO_PROXY="localhost")
    assert result.status == 0
    assert len(tenant.requests) == 1


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"HTTP/1.1 407 Login, please\r\n\r\n", f"407 Login, please{NETWORK}\n"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", f"502 Bad Gateway{NETWORK}\n"),
        (b"220 mail.example.com ESMTP\r\n", "cannot be read: 220 mail.example.com"),
    ],
)
def test_a_proxy_that_fails(tenant: Tenant, run: Run, reply: bytes, told: str) -> None:
    """It is named, and its password is not."""
    encoded = base64.b64encode(b"proxy-user:proxy-password").decode()
    with server(reply) as proxy:
        result = run("-vv", HTTPS_PROXY=f"http://proxy-user:proxy-password@{proxy}")
    assert result.status == 1
    assert f" the proxy {proxy}" in result.err
    assert told in result.err
    for secret in ("proxy-user", "proxy-password", encoded):
        assert secret not in result.err
    assert tenant.requests == []


@pytest.mark.parametrize(
    ("proxy", "dialed"),
    [
        ("HTTP://localhost:1", "localhost:1"),
        ("http://LOCALHOST:1/", "localhost:1"),
        ("HTTP://me:SECRET@LocalHost:1", "localhost:1"),
        ("http://[::FFFF:7F00:1]:1", "::ffff:7f00:1:1"),
        ("HTTP://[::FFFF:127.0.0.1]:1", "::ffff:127.0.0.1:1"),
    ],
)
def test_capitals_in_a_proxy_are_fine(
    tenant: Tenant, run: Run, proxy: str, dialed: str
) -> None:
    """Nothing answers there: what was dialed is named, without a password."""
    result = run(HTTPS_PROXY=proxy)
    assert result.status == 1
    line, summary = result.err.splitlines()
    assert f" error: no answer from the proxy {dialed}: " in line.lower()
    assert " nothing was read: 1 failed; 0 requests, " in summary
    assert "SECRET" not in result.err
    assert tenant.requests == []
