"""What goes wrong at Duo or in its answers: what is tried again, and what it stops."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import SKEY, Fault, Tenant
from tests.support import (
    NETWORK,
    NO_ANSWER,
    SCRIPT,
    STUCK,
    WRITES,
    OneOfEach,
    Run,
    Write,
    assert_no_secret,
    assert_no_stale_write,
    clean_environment,
    each_write,
    error_line,
    written_phones,
)

GRANT = "Grant resource"
STAMP = {"method": "POST"}
DELETION = {"method": "DELETE"}
Kind = tuple[str, dict[str, Any]]  # of a fault, and how it is
Case = tuple[Kind, tuple[str, ...]]  # and what the error line has to say

# Tries

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


# Rate limits


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


# A walk that fails


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


def test_a_machine_that_has_no_more_threads(tenant: Tenant) -> None:
    """One error line and the summary, as a run needs them."""
    phone = tenant.add_phone("ann")
    tenant.populate(900)
    program = (
        "import threading, duo_phone_cleanup\n"
        "threading.stack_size(1 << 46)\n"  # more than any address space has
        "duo_phone_cleanup.script()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(**tenant.environment(), PYTHONPATH=str(SCRIPT.parent)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    line, summary = result.stderr.splitlines()
    assert "error: this machine has no thread left" in line
    assert " nothing was read: 1 failed; 0 requests, " in summary
    assert tenant.phones[phone]["name"] == ""
    assert tenant.requests == []


# A phone that fails


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


# Phones in a row without an answer


@each_write
@pytest.mark.parametrize(
    ("row", "done", "failed"),
    [
        ("o-o", "oo", 1),
        ("---o---o", "oo", 6),  # never four in a row
        ("o----oo", "o", 4),
        ("o---x---o", "oo", 7),  # of seven failures one had an answer
    ],
)
def test_phones_without_an_answer(
    tenant: Tenant, run: Run, write: Write, row: str, done: str, failed: int
) -> None:
    """A phone without one fails alone; four in a row end the run."""
    for number, each in enumerate(row):
        tenant.add_phone(f"user-{number}", phone_id=f"DP{each}{number}", **write.fields)
    fault = tenant.fail("reset_before", method=write.method, path="DP-", times=None)
    tenant.fail("status", status=400, method=write.method, path="DPx", times=None)
    result = run("--json", "--untag")
    ends = "----" in row
    assert result.status == 1
    assert result.kinds.count(write.event) == len(done)
    assert result.summary["failed"] == failed + ends
    assert ("4 phones in a row without an answer" in result.err) == ends
    assert fault.hits == 3 * row.count("-")
    reached = row.index("----") + 4 if ends else len(row)
    assert {int(each[3:]) for each in written_phones(tenant)} == {*range(reached)}


def test_phones_without_an_answer_between_phones_that_are_kept(
    tenant: Tenant, run: Run
) -> None:
    """Nothing is asked about those that are kept: they are no answer."""
    for number in range(8):
        tenant.add_phone(f"user-{number}", name=STUCK)
        tenant.add_phone(f"user-{number}", name="kept")
    tenant.fail("reset_before", path="phones/", times=None)
    result = run("--json")
    assert (result.status, result.summary["failed"]) == (1, 5)
    assert "4 phones in a row without an answer" in result.err


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


def test_the_same_phone_never_answers(tenant: Tenant, run: Run) -> None:
    """Run after run, the ones behind it are done."""
    tenant.add_phone("ann", phone_id="DP-silent", name=STUCK)
    fault = tenant.fail("hang", method="DELETE", path="DP-silent", times=None)
    for user in ("bob", "cleo"):
        phone = tenant.add_phone(user, name=STUCK)
        result = run("--json", "--timeout", "0.2")
        assert tenant.phone(phone) is None
        assert result.status == 1
        assert "error: ann's phone" in result.err
    assert fault.hits == 6
