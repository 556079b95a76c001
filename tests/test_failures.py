"""What goes wrong at Duo or in its answers: what is tried again, and what it stops."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any, NamedTuple

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import SKEY, Fault, Record, Tenant
from tests.support import (
    DELETION,
    NETWORK,
    NO_ANSWER,
    SCRIPT,
    STUCK,
    OneOfEach,
    Run,
    Write,
    assert_no_secret,
    assert_no_stale_write,
    clean_environment,
    each_write,
    error_line,
    name_of_case,
    write_methods,
    written_phones,
)

GRANT = "Grant resource"

# Tries


class Target(NamedTuple):
    """One of the requests of a run."""

    name: str
    fault: Record
    """What picks it out of the run, for `Tenant.fail`."""
    users: tuple[str, ...] = ()
    """The users named on the command line."""
    ordinary_users: int = 0
    """How many there are besides."""


THE_PAGE = Target("page", {"path": "users$"})
THE_STAMP = Target("stamp", {"method": "POST"})
THE_DELETION = Target("deletion", {"method": "DELETE"})
TARGETS = [
    THE_PAGE,
    Target("second page", {"path": "users$", "after": 1}, ordinary_users=300),
    Target("look-up", {"path": "users$"}, users=("ann", "bob", "cleo")),
    Target("re-read", {"method": "GET", "path": "DP-delete"}),
    THE_STAMP,
    Target("untag", {"method": "POST", "after": 1}),
    THE_DELETION,
]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "reset_before"}, id="reset"),
        pytest.param({"kind": "reset_after"}, id="answer lost"),
        pytest.param({"kind": "close_before"}, id="orderly close"),
        pytest.param({"kind": "truncate"}, id="cut short"),
        pytest.param({"kind": "close_after"}, id="connection dropped afterwards"),
        pytest.param({"kind": "connection_close"}, id="connection closed afterwards"),
        pytest.param({"kind": "status", "status": 408}, id="408"),
        pytest.param({"kind": "status", "status": 500}, id="500"),
        pytest.param({"kind": "status", "status": 502}, id="502 with HTML"),
        pytest.param({"kind": "status", "status": 503}, id="503"),
        pytest.param({"kind": "junk"}, id="HTML"),
        pytest.param({"kind": "junk", "body": b""}, id="empty"),
        pytest.param({"kind": "junk", "body": b'"\xff"'}, id="not UTF-8"),
    ],
)
@pytest.mark.parametrize("target", TARGETS, ids=name_of_case)
def test_a_passing_fault_is_ridden_out(
    tenant: Tenant, run: Run, target: Target, fault: Record
) -> None:
    phones = OneOfEach(tenant, target.ordinary_users)
    added = tenant.fail(**target.fault, **fault)
    phones.assert_done(run("--json", "--untag", *target.users))
    assert added.hits == 1


@pytest.mark.parametrize(("times", "failures"), [(2, 0), (3, 1)])
@pytest.mark.parametrize("target", TARGETS, ids=name_of_case)
def test_three_tries_in_all(
    tenant: Tenant, run: Run, target: Target, times: int, failures: int
) -> None:
    OneOfEach(tenant, target.ordinary_users)
    fault = tenant.fail("status", times=times, **target.fault)
    result = run("--json", "--untag", *target.users)
    assert fault.hits == times
    assert result.kinds.count("failed") == failures
    assert result.status == failures
    assert_no_stale_write(tenant)


# Rate limits


@pytest.mark.parametrize(
    "target", [THE_PAGE, THE_STAMP, THE_DELETION], ids=name_of_case
)
def test_a_429_is_waited_out_and_is_no_try(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    phones = OneOfEach(tenant)
    fault = tenant.fail("status", status=429, **target.fault)
    phones.assert_done(run("--json", "--untag"))
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
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", patience)
    work = OneOfEach(tenant)
    tenant.limit(0, 60)
    hint = "see what else uses up this tenant's rate limit, or run less often"
    error_line(run(), f" error: Duo answers 429 Too Many Requests: {hint}")
    assert len(tenant.requests) == refused
    work.assert_untouched()


@pytest.mark.usefixtures("_real_pauses")
def test_a_429_that_lasts_is_given_up_by_all_threads(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", 0.3)
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


class Walk(NamedTuple):
    """A fault of the walk, what the error line tells of it, how often it is tried."""

    name: str
    fault: Record
    told: tuple[str, ...]
    tries: int


def status(number: int, **how: Any) -> Record:
    """The fault of an answer with this status."""
    return {"kind": "status", "status": number, **how}


def page(number: int) -> Record:
    """The fault of a page with this status, as some proxy may send one."""
    return status(number, body=b"<html>No</html>", content_type="text/html")


def answer(**how: Any) -> Record:
    """The fault of an answer that has this in place of what it should have."""
    return {"kind": "answer", **how}


def not_ok(**envelope: Any) -> Record:
    """The fault of an answer that is sent as 200 and says that it is none."""
    return answer(envelope={"stat": "FAIL", **envelope})


def metadata(value: Any) -> Record:
    """The fault of a page that tells this about itself."""
    return answer(response=[], metadata=value)


def user_with_phones(value: Any) -> Record:
    """The fault of a page with one user, whose phones are this."""
    return answer(response=[{"username": "ann", "phones": value}], metadata={})


# Duo's own messages, each with its hint.
CHECK_HOST = "check --host (DUO_HOST) and HTTPS_PROXY"
CHECK_KEYS = (
    "check --ikey (DUO_IKEY) and --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)"
)
CHECK_IKEY = (
    "check --ikey (DUO_IKEY), and that --host (DUO_HOST) is of this application"
)
CHECK_SKEY = "check --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)"
CHECK_CLOCK = "set this machine's clock"
GIVE_PERMISSIONS = (
    "give the Admin API application the permissions Grant resource - Read and"
    " Grant resource - Write, and see its Networks for API Access"
)
LATER = "Duo has trouble, or a proxy: see status.duo.com; a later run tries again"


def duo_answers(message: str, hint: str) -> tuple[str]:
    """An error line that has Duo's own message, and a hint."""
    return (f" error: Duo answers {message}: {hint}",)


def page_answers(status: str, hint: str) -> tuple[str, str]:
    """An error line about a page that is not Duo's, and a hint."""
    return (" error: localhost:", f" answers {status}, and not as Duo does: {hint}")


NO_REQUEST = duo_answers("401 Missing request credentials", CHECK_KEYS)
WRONG_IKEY = duo_answers(
    "401 Invalid integration key in request credentials", CHECK_IKEY
)
WRONG_SKEY = duo_answers("401 Invalid signature in request credentials", CHECK_SKEY)
NO_TIME = duo_answers("401 Missing request timestamp", CHECK_CLOCK)
WRONG_TIME = duo_answers("401 Bad request timestamp", CHECK_CLOCK)
ANOTHER_401 = duo_answers("401 Unauthorized", CHECK_KEYS)
FORBIDDEN = duo_answers("403 Access forbidden", GIVE_PERMISSIONS)
NOT_FOUND = duo_answers("404 Resource not found", CHECK_HOST)
INVALID = ("error: Duo answers 400 Invalid request parameters (limit)",)
TROUBLE = duo_answers("500 Internal Server Error", LATER)
UNAVAILABLE = duo_answers("503 Service Unavailable", LATER)
# Of a 200 that is none.
STILL_FORBIDDEN = duo_answers("403 Access forbidden", GIVE_PERMISSIONS)
STILL_WRONG_SKEY = duo_answers("401 Invalid signature", CHECK_SKEY)
STILL_BUSY = duo_answers("500 Busy", LATER)
# What Duo never sends.
LOGIN = "407 Proxy Authentication Required"
BUSY = "503 Service Unavailable"
NO_CONNECTION = (NO_ANSWER, NETWORK)
NOT_JSON = ("localhost:", "is not Duo's Admin API: no JSON: check --host (DUO_HOST)")
UNREADABLE = ("error: Duo's answer cannot be read: no JSON",)
NOT_A_PAGE = ("not a page of users",)
NO_RECORDS = ("error: Duo gives user ann phones that are no records",)
NEXT = ("next_offset",)
HOSTILE = "No\nwa\x1b[31my\r" + 5000 * "!"

WALKS = [
    # What is no use trying again.
    Walk("40101", status(401, code=40101), NO_REQUEST, 1),
    Walk("40102", status(401, code=40102), WRONG_IKEY, 1),
    Walk("40103", status(401, code=40103), WRONG_SKEY, 1),
    Walk("40104", status(401, code=40104), NO_TIME, 1),
    Walk("40105", status(401, code=40105), WRONG_TIME, 1),
    Walk("401 of a new kind", status(401, code=40199), ANOTHER_401, 1),
    Walk("403", status(403, code=40301), FORBIDDEN, 1),
    Walk("404", status(404), NOT_FOUND, 1),
    Walk("400", status(400, code=40002, message_detail="limit"), INVALID, 1),
    Walk("405", status(405), ("405 Method not allowed",), 1),
    # A page of some proxy: it knows nothing of keys and permissions.
    Walk("302", page(302), page_answers("302 Found", CHECK_HOST), 1),
    Walk("401, a page", page(401), page_answers("401 Unauthorized", CHECK_HOST), 1),
    Walk("403, a page", page(403), page_answers("403 Forbidden", CHECK_HOST), 1),
    Walk("404, a page", page(404), page_answers("404 Not Found", CHECK_HOST), 1),
    Walk("407, a page", page(407), page_answers(LOGIN, CHECK_HOST), 1),
    Walk(
        "200, forbidden",
        not_ok(code=40301, message="Access forbidden"),
        STILL_FORBIDDEN,
        1,
    ),
    Walk(
        "200, wrong key",
        not_ok(code=40103, message="Invalid signature"),
        STILL_WRONG_SKEY,
        1,
    ),
    Walk("200, no code", not_ok(message="No\nway"), ("Duo answers", " No way"), 1),
    Walk("200, no message", not_ok(), ("error: Duo answers",), 1),
    Walk(
        "hostile message",
        status(400, message=HOSTILE),
        ("400 No wa\\x1b[31my !!!!!",),
        1,
    ),
    Walk(
        "message that is no text",
        status(400, message={"a": [1]}, code={}),
        ("400 {'a': [1]}",),
        1,
    ),
    # What may pass.
    Walk("200, busy", not_ok(code=50001, message="Busy"), STILL_BUSY, 3),
    Walk("408", status(408), ("408 Request Timeout",), 3),
    Walk("500", status(500), TROUBLE, 3),
    Walk("502, a page", page(502), page_answers("502 Bad Gateway", LATER), 3),
    Walk("503", status(503), UNAVAILABLE, 3),
    Walk("503, a page", page(503), page_answers(BUSY, LATER), 3),
    Walk("503, a list", status(503, body=b"[]"), page_answers(BUSY, LATER), 3),
    Walk("504, a page", page(504), page_answers("504 Gateway Timeout", LATER), 3),
    Walk("reset", {"kind": "reset_before"}, NO_CONNECTION, 3),
    Walk("orderly close", {"kind": "close_before"}, NO_CONNECTION, 3),
    Walk("cut short", {"kind": "truncate"}, ("is not Duo's Admin API",), 3),
    Walk("HTML", {"kind": "junk"}, NOT_JSON, 3),
    Walk("empty", {"kind": "junk", "body": b""}, NOT_JSON, 3),
    Walk("not UTF-8", {"kind": "junk", "body": b'{"stat":"\xff"}'}, NOT_JSON, 3),
    Walk("deep", {"kind": "junk", "body": b"[" * 200_000}, NOT_JSON, 3),
    Walk(
        "deep and well formed",
        {"kind": "junk", "body": b"[" * 100_000 + b"]" * 100_000},
        NOT_JSON,
        3,
    ),
    Walk("envelope null", answer(envelope=None), NOT_JSON, 3),
    Walk("envelope 7", answer(envelope=7), NOT_JSON, 3),
    Walk("envelope text", answer(envelope=""), NOT_JSON, 3),
    Walk("envelope []", answer(envelope=[]), NOT_JSON, 3),
    Walk("envelope [{}]", answer(envelope=[{}]), NOT_JSON, 3),
    Walk("envelope {}", answer(envelope={}), NOT_JSON, 3),
    Walk("envelope without response", answer(envelope={"stat": "OK"}), NOT_JSON, 3),
    Walk("response null", answer(response=None), NOT_A_PAGE, 3),
    Walk("response 7", answer(response=7), NOT_A_PAGE, 3),
    Walk("response text", answer(response="users"), NOT_A_PAGE, 3),
    Walk("response {}", answer(response={}), NOT_A_PAGE, 3),
    Walk("response object", answer(response={"users": []}), NOT_A_PAGE, 3),
    Walk("metadata null", metadata(None), NOT_A_PAGE, 3),
    Walk("metadata 7", metadata(7), NOT_A_PAGE, 3),
    Walk("metadata text", metadata("x"), NOT_A_PAGE, 3),
    Walk("metadata list", metadata([1]), NOT_A_PAGE, 3),
    Walk("user null", answer(response=[None]), NOT_A_PAGE, 3),
    Walk("user 7", answer(response=[7]), NOT_A_PAGE, 3),
    Walk("user text", answer(response=["ann"]), NOT_A_PAGE, 3),
    Walk("user []", answer(response=[[]]), NOT_A_PAGE, 3),
    # A page whose records are not what they should be.
    Walk("phones 7", user_with_phones(7), NO_RECORDS, 1),
    Walk("phones text", user_with_phones("DP"), NO_RECORDS, 1),
    Walk("phones object", user_with_phones({"DP": {}}), NO_RECORDS, 1),
    Walk("next_offset 0", metadata({"next_offset": 0}), NEXT, 1),
    Walk("next_offset -300", metadata({"next_offset": -300}), NEXT, 1),
    Walk("next_offset text", metadata({"next_offset": "300"}), NEXT, 1),
    Walk("next_offset 300.0", metadata({"next_offset": 300.0}), NEXT, 1),
    Walk("next_offset []", metadata({"next_offset": []}), NEXT, 1),
    Walk("next_offset {}", metadata({"next_offset": {}}), NEXT, 1),
]
HALF_WAY = [
    Walk("403", status(403), FORBIDDEN, 1),
    Walk("503", status(503), UNAVAILABLE, 3),
    Walk("reset", {"kind": "reset_before"}, NO_CONNECTION, 3),
    Walk("HTML", {"kind": "junk"}, UNREADABLE, 3),
    Walk("user 7", answer(response=[7]), NOT_A_PAGE, 3),
]


@pytest.mark.parametrize("walk", WALKS, ids=name_of_case)
def test_a_walk_that_fails_writes_nothing(tenant: Tenant, run: Run, walk: Walk) -> None:
    phones = OneOfEach(tenant)
    fault = tenant.fail(times=None, **walk.fault)
    result = run("--json")
    line = error_line(result, *walk.told)
    assert line.isprintable()
    assert "html" not in line
    assert result.kinds == ["failed"]
    assert result.summary["exit_status"] == 1
    assert fault.hits == walk.tries
    phones.assert_untouched()
    assert_no_secret(run("--json", "-vvv"))


@pytest.mark.parametrize("walk", HALF_WAY, ids=name_of_case)
def test_a_walk_that_fails_half_way_writes_nothing(
    tenant: Tenant, run: Run, walk: Walk
) -> None:
    phones = OneOfEach(tenant, 600)
    fault = tenant.fail(path="users$", after=1, times=None, **walk.fault)
    result = run("--json")
    error, _summary = result.err.splitlines()
    for text in walk.told:
        assert text in error
    assert fault.hits >= walk.tries
    assert (result.status, result.kinds) == (1, ["failed"])
    assert result.summary["users_seen"] >= 300
    phones.assert_untouched()


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
    ("permissions", "tries"),
    [
        pytest.param({"write"}, [], id="write only"),
        pytest.param({"read"}, ["POST"], id="read only"),
        pytest.param(set(), [], id="none"),
    ],
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
    assert write_methods(tenant) == tries


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
    """Three phones to be written to. What goes wrong does with the second."""

    def __init__(self, tenant: Tenant, write: Write) -> None:
        self.tenant = tenant
        self.ids = [
            tenant.add_phone(user, **write.fields)
            for user in ("user-0", "user-1", "user-2")
        ]

    def fail(self, method: str, fault: Record) -> Fault:
        """Let this go wrong for ever with the second phone."""
        path = f"phones/{self.ids[1]}"
        return self.tenant.fail(method=method, path=path, times=None, **fault)


class OnePhone(NamedTuple):
    """A fault of one phone, what the error line tells of it, how often it is tried."""

    name: str
    fault: Record
    told: str
    tries: int
    blames_the_host: bool = False
    """Not by an odd answer: Duo has answered before. By none, or a proxy's page."""


NO_JSON = ": Duo's answer cannot be read: no JSON"
NOT_THE_RECORD = ": Duo's answer is not the record of this phone"
FAULTS = [
    OnePhone("400", status(400), "400 Bad Request", 1),
    OnePhone("404", status(404, code=40499), "404 Not Found", 1, blames_the_host=True),
    OnePhone(
        "404, a page", page(404), "404 Not Found, and not as", 1, blames_the_host=True
    ),
    OnePhone("500", status(500), "500 Internal Server Error", 3),
    OnePhone("502", status(502), "502 Bad Gateway", 3),
    OnePhone("200, FAIL", status(200, code=40002, message="No"), ": Duo answers", 1),
    OnePhone("reset", {"kind": "reset_before"}, NO_ANSWER, 3, blames_the_host=True),
    OnePhone(
        "orderly close", {"kind": "close_before"}, NO_ANSWER, 3, blames_the_host=True
    ),
    OnePhone("time-out", {"kind": "hang"}, "timed out", 3, blames_the_host=True),
]
FAULTS_OF_READS = [
    OnePhone("response null", answer(response=None), NOT_THE_RECORD, 3),
    OnePhone("response 7", answer(response=7), NOT_THE_RECORD, 3),
    OnePhone("response empty", answer(response=""), NOT_THE_RECORD, 3),
    OnePhone("response text", answer(response="DP"), NOT_THE_RECORD, 3),
    OnePhone("response []", answer(response=[]), NOT_THE_RECORD, 3),
    OnePhone("response [{}]", answer(response=[{}]), NOT_THE_RECORD, 3),
    OnePhone("HTML", {"kind": "junk"}, NO_JSON, 3),
    OnePhone("not UTF-8", {"kind": "junk", "body": b'"\xff"'}, NO_JSON, 3),
    OnePhone("deep", {"kind": "junk", "body": b"[" * 200_000}, NO_JSON, 3),
]


def check_that_the_others_are_done(
    tenant: Tenant, run: Run, write: Write, method: str, one: OnePhone
) -> None:
    """With a fault of such requests for the second phone of three."""
    row = Row(tenant, write)
    before = tenant.phone(row.ids[1])
    fault = row.fail(method, one.fault)
    argv = ["--json", "--untag"]
    if one.name == "time-out":
        argv += ["--timeout", "0.3"]
    result = run(*argv)
    assert result.status == 1
    assert fault.hits == one.tries
    error, _summary = result.err.splitlines()
    for text in (one.told, row.ids[1], "user-1"):
        assert text in error
    assert ("DUO_HOST" in error) is one.blames_the_host
    assert result.summary["failed"] == 1
    assert result.outcomes == [write.event, "failed", write.event]
    told = [each for each in result.events[:-1] if each["event"] != "deleting"]
    assert [each["phone_id"] for each in told] == row.ids
    assert tenant.phone(row.ids[1]) == before
    assert_no_stale_write(tenant)


@pytest.mark.parametrize("one", FAULTS, ids=name_of_case)
@each_write
def test_one_phone_whose_write_fails_does_not_stop_the_others(
    tenant: Tenant, run: Run, write: Write, one: OnePhone
) -> None:
    check_that_the_others_are_done(tenant, run, write, write.method, one)


@pytest.mark.parametrize("one", FAULTS + FAULTS_OF_READS, ids=name_of_case)
def test_one_phone_whose_read_fails_does_not_stop_the_others(
    tenant: Tenant, run: Run, one: OnePhone
) -> None:
    check_that_the_others_are_done(tenant, run, DELETION, "GET", one)


@pytest.mark.parametrize(
    ("method", "reached"),
    [
        pytest.param("GET", 1, id="a read"),
        pytest.param("DELETE", 2, id="a write"),
    ],
)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(status(401, code=40103), id="401"),
        pytest.param(status(403), id="403"),
        pytest.param(status(429), id="429 given up"),
    ],
)
def test_what_ends_the_run_leaves_the_other_phones(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    fault: Record,
    method: str,
    reached: int,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", 0)
    row = Row(tenant, DELETION)
    added = row.fail(method, fault)
    result = run("--json")
    assert result.status == 1
    assert added.hits == 1
    error, _summary = result.err.splitlines()
    assert row.ids[1] in error
    assert (result.summary["deleted"], result.summary["failed"]) == (1, 1)
    assert written_phones(tenant) == row.ids[:reached]
    assert [*tenant.phones] == row.ids[1:]
    assert_no_stale_write(tenant)


# Phones in a row without an answer


IN_A_ROW = "error: 4 phones in a row failed, so the run ends: "


class InARow(NamedTuple):
    """Phones, one after the other, and what becomes of them."""

    phones: str
    """o: it is written; -: a write to it fails in passing; x: it is refused."""
    done: int
    failed: int
    """The end of the run, too, is a failure."""
    reached: int
    ended: bool
    fault: Record = status(503)
    """Of the writes that fail in passing."""


FOUR = InARow("o----oo", done=1, failed=5, reached=5, ended=True)


@pytest.mark.parametrize(
    "row",
    [
        InARow("o-o", done=2, failed=1, reached=3, ended=False),
        InARow("---o---o", done=2, failed=6, reached=8, ended=False),
        InARow("o---x---o", done=2, failed=7, reached=9, ended=False),
        InARow("-o-o-o-o-o-o-o", done=7, failed=7, reached=14, ended=False),
        FOUR,
        FOUR._replace(fault={"kind": "reset_before"}),  # no answer
        FOUR._replace(fault=page(502)),  # of a proxy
        FOUR._replace(fault=status(200, body=b"<html>")),  # no JSON
    ],
    ids=lambda row: row.phones,
)
def test_phones_that_fail_in_passing(tenant: Tenant, run: Run, row: InARow) -> None:
    """Each fails alone; four in a row end the run."""
    ids = [f"DP{kind}{number}" for number, kind in enumerate(row.phones)]
    for phone_id in ids:
        tenant.add_phone("ann", phone_id=phone_id)
    added = tenant.fail(method="POST", path="DP-", times=None, **row.fault)
    tenant.fail("status", status=400, method="POST", path="DPx", times=None)
    result = run("--json")
    assert result.status == 1
    assert result.kinds.count("stamped") == row.done
    assert result.summary["failed"] == row.failed
    assert (IN_A_ROW in result.err) is row.ended
    assert added.hits == 3 * row.phones.count("-")
    assert set(written_phones(tenant)) == set(ids[: row.reached])


@each_write
def test_writes_that_fail_in_passing_four_times_in_a_row(
    tenant: Tenant, run: Run, write: Write
) -> None:
    ids = [tenant.add_phone(f"u{number}", **write.fields) for number in range(6)]
    tenant.fail("reset_before", method=write.method, times=None)
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"] * 5)
    *_, last, _summary = result.err.splitlines()
    assert f"{IN_A_ROW}no answer from {tenant.host}: " in last
    assert set(written_phones(tenant)) == set(ids[:4])


def test_a_503_for_each_phone_ends_the_run(tenant: Tenant, run: Run) -> None:
    """With a message that says what the trouble is."""
    for number in range(100):
        tenant.add_phone(f"u{number}", name=STUCK)
    fault = tenant.fail("status", path="phones/", times=None)
    result = run("--json")
    assert (result.status, result.kinds) == (1, ["failed"] * 5)
    *errors, last, _summary = result.err.splitlines()
    assert len(errors) == 4
    assert f"{IN_A_ROW}Duo answers 503 Service Unavailable: {LATER}" in last
    assert 4 * 3 <= fault.hits <= 5 * 3  # a fifth was being read meanwhile
    assert write_methods(tenant) == []


def test_reads_that_are_too_slow_to_write_on_end_the_run(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred phones do not take hours; and what is slow is told."""
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.05)
    ids = [tenant.add_phone(f"u{number}", name=STUCK) for number in range(100)]
    fault = tenant.fail("delay", path="phones/", seconds=0.1, times=None)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["failed"] * 5)
    *errors, last, _summary = result.err.splitlines()
    slow = (
        "more than 2 s passed after the phone was read: Duo, the network or this"
        " machine is too slow to write safely"
    )
    for error, phone in zip(errors, ids):
        assert error.endswith(f"({phone}): {slow}")
    assert last.endswith(f" {IN_A_ROW}{slow}")
    assert write_methods(tenant) == []
    assert fault.hits <= 4 * 4 + 1  # of the fifth, one read was under way


def test_a_slow_phone_between_others_does_not_end_the_run(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.4)
    ids = [tenant.add_phone(f"u{number}", name=STUCK) for number in range(3)]
    tenant.fail("delay", path=ids[1], seconds=0.5, times=None)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["deleted", "failed", "deleted"])
    assert written_phones(tenant) == [ids[0], ids[2]]


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
    assert IN_A_ROW in result.err


@pytest.mark.parametrize("kind", ["hang", "reset_before"])
def test_a_server_that_dies_after_the_walk(tenant: Tenant, run: Run, kind: str) -> None:
    """A hundred phones do not mean a hundred time-outs: four of them do."""
    for number in range(100):
        tenant.add_phone(f"user-{number % 20}")
    fault = tenant.fail(kind, path="phones/", times=None)
    began = time.monotonic()
    result = run("--timeout", "0.2")
    assert time.monotonic() - began < 5
    assert result.status == 1
    assert 4 * 3 <= fault.hits <= 5 * 3  # a fifth was being read meanwhile
    *errors, last, _summary = result.err.splitlines()
    assert len(errors) == 4
    for error in errors:
        assert f": {NO_ANSWER}" in error
    assert f"{IN_A_ROW}{NO_ANSWER}" in last


def test_the_same_phone_never_answers(tenant: Tenant, run: Run) -> None:
    """Run after run, the ones behind it are done."""
    tenant.add_phone("ann", phone_id="DP-silent", name=STUCK)
    fault = tenant.fail("hang", method="DELETE", path="DP-silent", times=None)
    for user in ("bob", "cleo"):
        phone = tenant.add_phone(user, name=STUCK)
        result = run("--json", "--timeout", "0.2")
        assert tenant.phone(phone) is None
        assert result.status == 1
        assert re.search(r" error: phone \+1555\d+ of ann \(DP-silent\): ", result.err)
    assert fault.hits == 6
