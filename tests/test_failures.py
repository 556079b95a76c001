"""What goes wrong at Duo or in its answers: what is tried again, and what it stops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Record, Tenant
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


TARGETS = [
    Target("page", {"path": "users$"}),
    Target("second page", {"path": "users$", "after": 1}, ordinary_users=300),
    Target("look-up", {"path": "users$"}, users=("ann", "bob", "cleo")),
    Target("re-read", {"method": "GET", "path": "DP-delete"}),
    Target("stamp", {"method": "POST"}),
    Target("untag", {"method": "POST", "after": 1}),
    Target("deletion", {"method": "DELETE"}),
]


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


def test_a_429_is_no_try(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    tenant.add_phone("ann", name=STUCK)
    fault = tenant.fail("status", status=429, times=2, method="DELETE")
    result = run("--json")
    assert (result.status, result.outcomes) == (0, ["deleted"])
    assert fault.hits == 2


@pytest.mark.usefixtures("_real_pauses")
@pytest.mark.parametrize(
    ("method", "patience", "refused"),
    [
        pytest.param("GET", 0, 1, id="no patience"),
        # What was asked for ahead, at once again, and after a pause.
        pytest.param("GET", 1, 3, id="all requests"),
        pytest.param("DELETE", 1, 3, id="writes alone: each has a reading before"),
    ],
)
def test_a_429_that_lasts_is_given_up(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    patience: int,
    refused: int,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", patience)
    phone = tenant.add_phone("ann", name=STUCK)
    fault = tenant.fail("status", status=429, method=method, times=None)
    result = run()
    error, _summary = result.err.splitlines()
    hint = "see what else uses up this tenant's rate limit, or run less often"
    assert error.endswith(f": Duo answers 429 Too Many Requests: {hint}")
    assert result.status == 1
    assert fault.hits == refused
    assert tenant.phone(phone)


# A walk that fails


class Walk(NamedTuple):
    """A fault of the walk, what the error line says, its hint, and the tries."""

    name: str
    fault: Record
    says: str
    hint: str = ""
    tries: int = 1


def status(number: int, **how: Any) -> Record:
    """The fault of an answer with this status."""
    return {"kind": "status", "status": number, **how}


def page(number: int) -> Record:
    """The fault of a page with this status, as some proxy may send one."""
    return status(number, body=b"<html>No</html>")


def answer(**how: Any) -> Record:
    """The fault of an answer that has this in place of what it should have."""
    return {"kind": "answer", **how}


def not_ok(**says: Any) -> Record:
    """The fault of an answer that is sent as 200 and says that it is none."""
    return status(200, body=json.dumps({"stat": "FAIL", **says}).encode())


KEYS = "check --ikey (DUO_IKEY) and --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)"
IKEY = "check --ikey (DUO_IKEY), and that --host (DUO_HOST) is of this application"
SKEY = "check --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)"
CLOCK = "set this machine's clock"
PERMISSIONS = (
    "give the Admin API application the permissions Grant resource - Read and"
    " Grant resource - Write, and see its Networks for API Access"
)
HOST = "check --host (DUO_HOST) and HTTPS_PROXY"
LATER = "Duo has trouble, or a proxy: see status.duo.com; a later run tries again"
WRONG_IKEY = "Duo answers 401 Invalid integration key in request credentials"
WRONG_SKEY = "Duo answers 401 Invalid signature in request credentials"
NO_TIME = "Duo answers 401 Missing request timestamp"
BAD_TIME = "Duo answers 401 Bad request timestamp"
BAD_LIMIT = "Duo answers 400 Invalid request parameters (limit)"
FORBIDDEN = "Duo answers 403 Access forbidden"
HOSTILE = "No\nwa\x1b[31my\r" + 5000 * "!"
TROUBLE = "Duo answers 500 Internal Server Error"
NO_JSON = "the answer of HOST:PORT cannot be read: no JSON"
NO_PAGE = "Duo's answer is not a page of users"
NO_RECORDS = "Duo gives user ann phones that are no records"
NO_NEXT = "Duo's user listing does not go on: next_offset"
ODD_PHONES = {"username": "ann", "phones": 7}

WALKS = [
    # What is no use trying again.
    Walk("40102", status(401, code=40102), WRONG_IKEY, IKEY),
    Walk("40103", status(401, code=40103), WRONG_SKEY, SKEY),
    Walk("40104", status(401, code=40104), NO_TIME, CLOCK),
    Walk("40105", status(401, code=40105), BAD_TIME, CLOCK),
    Walk("401", status(401, code=40199), "Duo answers 401 Unauthorized", KEYS),
    Walk("403", status(403), FORBIDDEN, PERMISSIONS),
    Walk("404", status(404), "Duo answers 404 Resource not found", HOST),
    Walk("400", status(400, code=40002, message_detail="limit"), BAD_LIMIT),
    Walk("403 as 200", not_ok(code=40301, message="No"), "403 No", PERMISSIONS),
    Walk("200 without a code", not_ok(message="No\nway"), "Duo answers 200 No way"),
    Walk("200 without a word", not_ok(), "Duo answers 200 without a message"),
    Walk("hostile", status(400, message=HOSTILE), "400 No wa\\x1b[31my !!!!!"),
    Walk("odd", status(400, message={"a": [1]}, code={}), "400 {'a': [1]}"),
    Walk("phones 7", answer(response=[ODD_PHONES], metadata={}), NO_RECORDS),
    Walk("next text", answer(response=[], metadata={"next_offset": "1"}), NO_NEXT),
    Walk("next 1.0", answer(response=[], metadata={"next_offset": 1.0}), NO_NEXT),
    # A page of some proxy, which knows nothing of keys and permissions.
    Walk("page 401", page(401), "HOST:PORT answers 401 Unauthorized, and not", HOST),
    Walk("page 403", page(403), "HOST:PORT answers 403 Forbidden, and not", HOST),
    # What may pass.
    Walk("page 302", page(302), "HOST:PORT answers 302 Found, and not", HOST, 3),
    Walk("page 404", page(404), "HOST:PORT answers 404 Not Found, and not", HOST, 3),
    Walk("page 502", page(502), "HOST:PORT answers 502 Bad Gateway, and", LATER, 3),
    Walk("list 503", status(503, body=b"[]"), "503 Service Unavail", LATER, 3),
    Walk("408", status(408), "Duo answers 408 Request Timeout", "", 3),
    Walk("500", status(500), TROUBLE, LATER, 3),
    Walk("500 as 200", not_ok(code=50001, message="Busy"), "500 Busy", LATER, 3),
    Walk("reset", {"kind": "reset_before"}, NO_ANSWER, NETWORK, 3),
    Walk("cut short", {"kind": "truncate"}, "cannot be read: IncompleteRead", HOST, 3),
    Walk("HTML", answer(body=b"<html>No</html>"), NO_JSON, HOST, 3),
    Walk("not UTF-8", answer(body=b'{"stat":"\xff"}'), NO_JSON, HOST, 3),
    Walk("deep", answer(body=b"[" * 100_000 + b"]" * 100_000), NO_JSON, HOST, 3),
    Walk("null", answer(body=b"null"), NO_JSON, HOST, 3),
    Walk("nothing", answer(body=b"{}"), NO_JSON, HOST, 3),
    Walk("no response", answer(body=b'{"stat": "OK"}'), NO_JSON, HOST, 3),
    Walk("response null", answer(response=None), NO_PAGE, HOST, 3),
    Walk("response object", answer(response={"users": []}), NO_PAGE, HOST, 3),
    Walk("user null", answer(response=[None]), NO_PAGE, HOST, 3),
    Walk("metadata null", answer(response=[], metadata=None), NO_PAGE, HOST, 3),
]


@pytest.mark.parametrize("walk", WALKS, ids=name_of_case)
def test_a_walk_that_fails_writes_nothing(tenant: Tenant, run: Run, walk: Walk) -> None:
    phones = OneOfEach(tenant)
    fault = tenant.fail(times=None, **walk.fault)
    result = run("--json")
    line = error_line(result, walk.says.replace("HOST:PORT", tenant.host))
    assert line.endswith(walk.hint)
    assert line.isprintable()
    assert "html" not in line
    assert result.kinds == ["failed"]
    assert result.summary["exit_status"] == 1
    assert fault.hits == walk.tries
    phones.assert_untouched()
    assert_no_secret(run("--json", "-vvv"))


@pytest.mark.parametrize(
    "fault", [status(403), {"kind": "reset_before"}], ids=["403", "reset"]
)
def test_a_walk_that_fails_half_way_writes_nothing(
    tenant: Tenant, run: Run, fault: Record
) -> None:
    phones = OneOfEach(tenant, 600)
    tenant.fail(path="users$", after=1, times=None, **fault)
    result = run("--json")
    assert (result.status, result.kinds) == (1, ["failed"])
    assert result.summary["users_seen"] == 300
    phones.assert_untouched()


def test_a_machine_that_has_no_more_threads(tenant: Tenant) -> None:
    """One error line and the summary, as a run needs them."""
    tenant.add_phone("ann")
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
    assert line.endswith(" error: this machine has no thread left")
    assert " nothing was read: 1 failed; 0 requests, " in summary
    assert tenant.requests == []


# A phone that fails


class OnePhone(NamedTuple):
    """A fault of one phone, what the error line tells of it, how often it is tried."""

    name: str
    fault: Record
    told: str
    tries: int
    timeout: str = "30"


NOT_THE_RECORD = ": Duo's answer is not the record of this phone"
FAULTS = [
    OnePhone("400", status(400), "400 Bad Request", 1),
    OnePhone("404", status(404, code=40499), "404 Not Found", 1),
    OnePhone("400 as 200", status(200, code=40002, message="No"), "400 No", 1),
    OnePhone("page 404", page(404), "404 Not Found, and not as Duo does", 3),
    OnePhone("500", status(500), "500 Internal Server Error", 3),
    OnePhone("reset", {"kind": "reset_before"}, NO_ANSWER, 3),
    OnePhone("time-out", {"kind": "hang"}, "timed out", 3, timeout="1"),
]
FAULTS_OF_READS = [
    OnePhone("null", answer(response=None), NOT_THE_RECORD, 3),
    OnePhone("another phone", answer(response={"phone_id": "DP0"}), NOT_THE_RECORD, 3),
    OnePhone("HTML", answer(body=b"<html>"), " cannot be read: no JSON", 3),
]


def add_three(tenant: Tenant, write: Write) -> list[str]:
    """Add phones to be written to: what goes wrong does with the second."""
    return [tenant.add_phone(f"user-{n}", **write.fields) for n in range(3)]


def check_that_the_others_are_done(
    tenant: Tenant, run: Run, write: Write, method: str, one: OnePhone
) -> str:
    """With a fault of such requests for the second phone of three; give its error."""
    ids = add_three(tenant, write)
    before = tenant.phone(ids[1])
    fault = tenant.fail(method=method, path=ids[1], times=None, **one.fault)
    result = run("--json", "--untag", "--timeout", one.timeout)
    assert result.status == 1
    assert result.outcomes == [write.event, "failed", write.event]
    told = [each for each in result.events[:-1] if each["event"] != "deleting"]
    assert [each["phone_id"] for each in told] == ids
    assert fault.hits == one.tries
    assert tenant.phone(ids[1]) == before
    assert_no_stale_write(tenant)
    error, _summary = result.err.splitlines()
    for text in (one.told, ids[1], "user-1"):
        assert text in error
    return error


@pytest.mark.parametrize("one", FAULTS, ids=name_of_case)
@each_write
def test_one_phone_whose_write_fails_does_not_stop_the_others(
    tenant: Tenant, run: Run, write: Write, one: OnePhone
) -> None:
    """What Duo itself refuses is not carried out later: the rest is tried again."""
    error = check_that_the_others_are_done(tenant, run, write, write.method, one)
    assert ("it may still be carried out" in error) is (one.tries > 1)


@pytest.mark.parametrize("one", FAULTS + FAULTS_OF_READS, ids=name_of_case)
def test_one_phone_whose_read_fails_does_not_stop_the_others(
    tenant: Tenant, run: Run, one: OnePhone
) -> None:
    error = check_that_the_others_are_done(tenant, run, DELETION, "GET", one)
    assert "carried out" not in error


@pytest.mark.parametrize(("method", "reached"), [("GET", 1), ("DELETE", 2)])
@pytest.mark.parametrize("number", [401, 403, 429])
def test_what_ends_the_run_leaves_the_other_phones(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    method: str,
    reached: int,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", 0)
    ids = add_three(tenant, DELETION)
    fault = tenant.fail("status", status=number, method=method, path=ids[1], times=None)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["deleted", "failed"])
    assert fault.hits == 1
    error, _summary = result.err.splitlines()
    assert f"({ids[1]}): Duo answers {number} " in error
    assert "carried out" not in error
    assert written_phones(tenant) == ids[:reached]
    assert [*tenant.phones] == ids[1:]


# Phones in a row without an answer


IN_A_ROW = "error: 4 phones in a row failed, so the run ends: "


@pytest.mark.parametrize(
    ("phones", "done", "failed"),
    [("---o---o", 2, 6), ("o---x---o", 2, 7)],
)
def test_fewer_phones_in_a_row_do_not_end_the_run(
    tenant: Tenant, run: Run, phones: str, done: int, failed: int
) -> None:
    """o: it is written; -: a write to it fails in passing; x: it is refused."""
    for number, kind in enumerate(phones):
        tenant.add_phone("ann", phone_id=f"DP{kind}{number}")
    tenant.fail("status", method="POST", path="DP-", times=None)
    tenant.fail("status", status=400, method="POST", path="DPx", times=None)
    result = run("--json")
    assert result.status == 1
    assert result.kinds.count("stamped") == done
    assert result.kinds.count("failed") == failed
    assert IN_A_ROW not in result.err


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param({"kind": "hang"}, NO_ANSWER, id="silence"),
        pytest.param({"kind": "reset_before"}, NO_ANSWER, id="reset"),
        pytest.param(status(500), f"{TROUBLE}: {LATER}", id="500"),
    ],
)
def test_a_server_that_dies_after_the_walk(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    fault: Record,
    told: str,
) -> None:
    """A hundred phones do not mean a hundred time-outs: four of them do."""
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    for number in range(100):
        tenant.add_phone(f"user-{number % 20}", name=STUCK)
    added = tenant.fail(path="phones/", times=None, **fault)
    result = run("--json", "--timeout", "0.7")
    assert (result.status, result.kinds) == (1, ["failed"] * 5)
    assert 4 <= added.hits <= 5  # a fifth was being read meanwhile
    *errors, last, _summary = result.err.splitlines()
    assert [error for error in errors if f": {told}" not in error] == []
    assert f"{IN_A_ROW}{told}" in last
    assert write_methods(tenant) == []


def test_reads_that_are_too_slow_to_write_on_end_the_run(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is slow is told."""
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.05)
    ids = [tenant.add_phone(f"u{number}", name=STUCK) for number in range(100)]
    tenant.slow(request=0.1)
    result = run("--json")
    assert (result.status, result.outcomes) == (1, ["failed"] * 5)
    *errors, last, _summary = result.err.splitlines()
    slow = (
        "more than 2 s passed after the phone was read: Duo, the network, a disk or"
        " this machine is too slow to write safely"
    )
    for error, phone in zip(errors, ids):
        assert error.endswith(f"({phone}): {slow}")
    assert last.endswith(f" {IN_A_ROW}{slow}")
    assert write_methods(tenant) == []
    # A page; of four phones, a read ahead and three tries; of the fifth, a read ahead.
    assert len(tenant.requests) <= 1 + 4 * 4 + 1


def test_the_same_phone_never_answers(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run after run, the ones behind it are done."""
    monkeypatch.setattr(duo_phone_cleanup, "MAX_TRIES", 1)
    tenant.add_phone("ann", phone_id="DP-silent", name=STUCK)
    fault = tenant.fail("hang", method="DELETE", path="DP-silent", times=None)
    for user in ("bob", "cleo"):
        phone = tenant.add_phone(user, name=STUCK)
        result = run("--json", "--timeout", "1")
        assert tenant.phone(phone) is None
        assert result.status == 1
        assert re.search(r" error: phone \+1555\d+ of ann \(DP-silent\): ", result.err)
    assert fault.hits == 2


def test_a_duo_client_with_another_transport(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests would pass by all that guards the writes: so there are none."""
    transport = duo_phone_cleanup.DuoAdmin._make_request

    def another(duo: duo_phone_cleanup.DuoAdmin, *request: Any) -> Any:
        answer = transport(duo, *request)
        vars(threading.current_thread())["sent"] = duo_phone_cleanup.NEVER
        return answer

    monkeypatch.setattr(duo_phone_cleanup.DuoAdmin, "_make_request", another)
    work = OneOfEach(tenant)
    result = run("--json", "--untag")
    assert (result.status, result.kinds) == (1, ["failed"])
    assert " is not supported" in result.err
    work.assert_untouched()
