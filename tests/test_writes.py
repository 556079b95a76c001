"""What a run writes, and when it does not: whatever happens in the meantime.

What people, failures and other runs can do at each step of a run, one thing at a time,
is tried by simulation/steps.py. Here are what a run writes, and what takes a network,
a kernel, several processes, or more than one misfortune.
"""

from __future__ import annotations

import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import MISSING, Record, Request, Tenant, cast
from tests.support import (
    DELETION,
    GONE,
    HOUR,
    LONG_AGO,
    MINUTE,
    NOW,
    SET_UP,
    STAMP,
    STAMPED,
    STUCK,
    UNTAG,
    WRITES,
    Result,
    Run,
    Write,
    add_situations,
    assert_no_stale_write,
    each_write,
    name_of,
    name_of_case,
    names,
    phone_of,
    start,
    threads_left_behind,
    wait_for_threads,
    when,
    write_methods,
    writes,
    written_phones,
)

CHANGED = "it has changed in the meantime: "
MAY_BE_DONE = "; a write was sent and not confirmed: it may still be carried out"


def befall(tenant: Tenant, phone_id: str, change: Record | None) -> None:
    """Let somebody change a phone, or delete it: None."""
    with tenant.lock:
        if change is None:
            del tenant.phones[phone_id]
        else:
            tenant.phones[phone_id].update(change)


# What is written


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        pytest.param("", {"begun": STAMPED, "stuck": GONE}, id="all users"),
        pytest.param("begun", {"begun": STAMPED}, id="one user to stamp"),
        pytest.param("stuck", {"stuck": GONE}, id="one user to delete"),
        pytest.param(
            "young stuck begun named",
            {"begun": STAMPED, "stuck": GONE},
            id="several users",
        ),
        pytest.param("young named done", {}, id="nothing to do"),
        pytest.param("-g 9 young", {"young": GONE}, id="a grace period just over"),
    ],
)
def test_scenarios(
    tenant: Tenant, run: Run, argv: str, changed: dict[str, str]
) -> None:
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(*argv.split())
    assert (result.status, result.out, result.err) == (0, "", "")
    assert names(tenant, ids) == {**before, **changed}
    assert len(writes(tenant)) == len(changed)


def test_the_life_of_one_phone(tenant: Tenant, run: Run) -> None:
    phone_id = tenant.add_phone("ann")
    for now, name in (
        (NOW, STAMPED),
        (NOW + 10 * MINUTE - 1, STAMPED),
        (NOW + 10 * MINUTE, GONE),
        (NOW + HOUR, GONE),
    ):
        assert run(now=now).status == 0
        assert name_of(tenant, phone_id) == name
    assert len(writes(tenant)) == 2


@pytest.mark.parametrize(
    ("argv", "changed"),
    [([], {}), (["--no-untag"], {}), (["--untag"], {"finished": ""})],
)
def test_untag(
    tenant: Tenant, run: Run, argv: list[str], changed: dict[str, str]
) -> None:
    ids = {
        "finished": tenant.add_phone("ann", name=STUCK, **SET_UP),
        "named since": tenant.add_phone("bob", name="iPhone", **SET_UP),
        "still at it": tenant.add_phone("cleo", name=str(NOW)),
    }
    before = names(tenant, ids)
    assert run(*argv).status == 0
    assert names(tenant, ids) == {**before, **changed}
    assert written_phones(tenant) == [ids[key] for key in changed]


def test_nothing_is_changed_but_a_phones_name_and_nothing_deleted_but_a_phone(
    tenant: Tenant, run: Run
) -> None:
    cast(tenant, NOW)
    tenant.add_phone("hal", name=STUCK, **SET_UP)
    assert run("--untag").status == 0
    assert {(each.method, *each.params) for each in writes(tenant)} == {
        ("POST", "name"),
        ("DELETE",),
    }
    for request in writes(tenant):
        assert re.fullmatch("/admin/v1/phones/DP[A-Z0-9]+", request.path)


@pytest.mark.parametrize(
    ("argv", "walked", "ahead", "timeout"),
    [
        pytest.param("", 0, True, 5, id="all users"),
        pytest.param("ann bob cleo", 1, True, 5, id="named users"),
        pytest.param("--no-force", 0, False, 0.3, id="asked"),
    ],
)
def test_the_next_phone_is_read_while_this_one_is_written(
    *,
    tenant: Tenant,
    run: Run,
    argv: str,
    walked: int,
    ahead: bool,
    timeout: float,
) -> None:
    """Where nothing is asked; and no further, and never two writes at a time.

    The walk has read the phones of named users once.
    """
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob", "cleo")]
    told: list[object] = []

    def is_read(phone_id: str, timeout: float) -> bool:
        try:
            tenant.wait_for(walked + 1, path=phone_id, timeout=timeout)
        except TimeoutError:
            return False
        return True

    def look() -> None:
        told.append(is_read(ids[1], timeout))
        told.append(is_read(ids[2], 0.3))
        told.append(written_phones(tenant))

    when(tenant, "DELETE", ids[0], look)
    assert run(*argv.split(), stdin="y\ny\ny\n").status == 0
    assert told == [ahead, False, ids[:1]]
    assert written_phones(tenant) == ids


# People and other runs


@pytest.mark.parametrize(
    ("write", "change", "reason"),
    [
        (STAMP, SET_UP, "no longer in limbo"),
        (DELETION, SET_UP, "set up since its tag"),
        (DELETION, {"name": str(NOW - 2 * HOUR)}, "another tag"),
        (DELETION, {"users": []}, "other users"),
        (UNTAG, {"name": "Ann's"}, "no longer tagged"),
    ],
)
def test_why_a_phone_is_left_alone_that_has_changed(
    tenant: Tenant, run: Run, write: Write, change: Record, reason: str
) -> None:
    phone_id = tenant.add_phone("ann", **write.fields)
    when(tenant, "GET", phone_id, lambda: befall(tenant, phone_id, change))
    result = run("--json", "--untag")
    assert (result.status, result.err, result.kinds) == (0, "", ["changed"])
    assert result.events[0]["reason"] == reason


def test_the_order_of_a_shared_phones_users_does_not_matter(
    tenant: Tenant, run: Run
) -> None:
    phone_id = tenant.add_phone("ann", "bob", name=STUCK)
    when(tenant, "GET", phone_id, lambda: tenant.move_phone(phone_id, "bob", "ann"))
    result = run("--json")
    assert (result.status, result.outcomes) == (0, ["deleted"])
    assert result.events[0]["users"] == ["bob", "ann"]


@pytest.mark.parametrize(
    ("gone", "second"),
    [
        pytest.param(200, "deleted", id="200"),
        pytest.param(404, "gone", id="404"),
    ],
)
def test_however_a_deletion_is_answered(
    tenant: Tenant, run: Run, gone: int, second: str
) -> None:
    """Of a phone that is there, and of one that somebody else has just deleted."""
    tenant.gone_status = gone
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob", "cleo")]
    when(tenant, "DELETE", ids[1], lambda: befall(tenant, ids[1], None))
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["deleted", second, "deleted"]
    assert written_phones(tenant) == ids
    assert tenant.phones == {}


@pytest.mark.parametrize(
    ("answer", "most"),
    [
        pytest.param(404, 1, id="404: only the first DELETE counts"),
        pytest.param(200, 3, id="200: all of them may count"),
    ],
)
def test_three_runs_at_once(tenant: Tenant, answer: int, most: int) -> None:
    """All of them have walked before one of them writes."""
    tenant.gone_status = answer
    begun = [tenant.add_phone(f"user-{number}") for number in range(8)]
    stuck = [tenant.add_phone(f"user-{number}", name=LONG_AGO) for number in range(8)]
    barrier = threading.Barrier(3)

    def meet(request: Request) -> None:
        if request.path.endswith("/users"):
            barrier.wait(20)

    tenant.after_request(meet)
    told: Counter[tuple[str, str]] = Counter()
    for child in [start(tenant, "--json") for _ in range(3)]:
        with child:
            out, err = child.communicate(timeout=30)
        assert (child.returncode, err) == (0, "")
        events = Result(0, out, err).events[:-1]
        told.update((each["phone_id"], each["event"]) for each in events)
    assert [*tenant.phones] == begun
    for each in stuck:
        assert 1 <= told[each, "deleted"] <= most
        assert told[each, "deleted"] + told[each, "gone"] == 3
    for each in begun:
        assert told[each, "stamped"] >= 1
        assert told[each, "stamped"] + told[each, "changed"] == 3


# Two seconds from a read to its write


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_that_is_stopped(tenant: Tenant, count: int) -> None:
    """The answer to a read lies there when it goes on; the phone has been set up."""
    ids = [tenant.add_phone(user, name=LONG_AGO) for user in ("ann", "bob", "cleo")]
    changed = ids[count - 1]
    started = threading.Event()
    stopped = threading.Event()

    def stop() -> None:
        assert started.wait(20)
        child.send_signal(signal.SIGSTOP)
        befall(tenant, changed, SET_UP)
        stopped.set()

    when(tenant, "GET", changed, stop, answered=True)
    with start(tenant, "--json") as child:
        started.set()
        assert stopped.wait(20)
        time.sleep(2.2)  # what the promise is about
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")
    assert set(tenant.phones) == {changed}
    assert changed not in written_phones(tenant)
    assert_no_stale_write(tenant)


@each_write
def test_a_handshake_that_is_slower_than_a_read_is_fresh(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """The phone is read again, and the write has a connection by then."""
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 1)
    phone_id = tenant.add_phone("ann", **write.fields)
    tenant.fail("connection_close", method="GET", path=phone_id)

    def close() -> None:
        tenant.close_idle()
        tenant.slow(connection=1.2)

    when(tenant, "GET", phone_id, close, answered=True)
    result = run("--json", "--untag", "-vv")
    assert (result.status, result.outcomes) == (0, [write.event])
    assert "this try failed: more than 2 s passed" in result.err
    sent = [each.method for each in tenant.requests if phone_of(each) == phone_id]
    assert sent == ["GET", "GET", write.method]
    assert_no_stale_write(tenant, 1)


@pytest.fixture
def client(tenant: Tenant) -> Iterator[duo_phone_cleanup.DuoAdmin]:
    """The program's client, without a run."""
    settings = duo_phone_cleanup.read_settings([], tenant.environment())
    stop = duo_phone_cleanup.Stop()
    log = duo_phone_cleanup.Log(0, stop)
    client = duo_phone_cleanup.DuoAdmin(settings, log, stop)
    yield client
    client.keep_none()


def test_the_client_sends_no_write_without_a_deadline(
    tenant: Tenant, client: duo_phone_cleanup.DuoAdmin
) -> None:
    """Nor after it; and a deadline holds for one write."""
    phone_id = tenant.add_phone("ann")
    with pytest.raises(duo_phone_cleanup.TooLate):
        client.delete_user("DU1")
    client.send_by = duo_phone_cleanup.boot_seconds() - 0.001
    with pytest.raises(duo_phone_cleanup.TooLate):
        client.delete_phone(phone_id)
    client.send_by = duo_phone_cleanup.boot_seconds() + MINUTE
    client.update_phone(phone_id, "+15551234567")
    with pytest.raises(duo_phone_cleanup.TooLate):
        client.delete_phone(phone_id)
    assert [each.method for each in tenant.requests] == ["POST"]


def test_a_write_that_was_given_up_is_not_sent_any_more(
    tenant: Tenant,
    client: duo_phone_cleanup.DuoAdmin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has a connection at last, and its deadline is far away."""
    monkeypatch.setattr(duo_phone_cleanup, "EXCHANGE_TIME_OUTS", 0)
    phone_id = tenant.add_phone("ann")
    tenant.slow(connection=1)
    client.send_by = duo_phone_cleanup.boot_seconds() + MINUTE
    with threads_left_behind() as threads, pytest.raises(duo_phone_cleanup.Passing):
        client.delete_phone(phone_id)
    calls = [each for each in threads if isinstance(each, duo_phone_cleanup.Call)]
    wait_for_threads(calls)
    assert [type(each.error) for each in calls] == [duo_phone_cleanup.TooLate]
    assert tenant.requests == []


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="there is no such option here"
)
def test_the_kernel_gives_up_a_write_after_two_seconds(
    tenant: Tenant, client: duo_phone_cleanup.DuoAdmin
) -> None:
    """And no read, which may take its time, on the same connection."""
    phone_id = tenant.add_phone("ann")

    def limit() -> int:
        (connection,) = client._kept
        return connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    client.read_phone(phone_id, None)
    assert limit() == 0
    client.send_by = duo_phone_cleanup.boot_seconds() + MINUTE
    client.update_phone(phone_id, name="new")
    assert limit() == 2000
    client.read_phone(phone_id, None)
    assert limit() == 0
    assert tenant.connections == 1


def test_what_was_not_delivered_of_a_write_is_thrown_away(
    tenant: Tenant, client: duo_phone_cleanup.DuoAdmin
) -> None:
    """To close its connection is to reset it: the kernel does not try again."""
    phone_id = tenant.add_phone("ann")
    client.send_by = duo_phone_cleanup.boot_seconds() + MINUTE
    client.update_phone(phone_id, name="new")
    (connection,) = client._kept
    linger = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", linger) == (1, 0)


# Writes without an answer

LOST = {"kind": "reset_before"}
REFUSED = {"kind": "status", "status": 400}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([{"kind": "truncate", "length": 10**14}], id="a long answer"),
        pytest.param(
            [
                {"kind": "reset_after"},
                {"kind": "truncate", "method": "GET", "path": "DP", "after": 1},
            ],
            id="done, and the reading that tells so fails, too",
        ),
    ],
)
def test_a_write_without_an_answer_is_found_done(
    tenant: Tenant, run: Run, faults: list[Record]
) -> None:
    """By another reading."""
    tenant.add_phone("ann")
    added = [tenant.fail(**{"method": "POST", **fault}) for fault in faults]
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["stamped"]
    assert [fault.hits for fault in added] == [1] * len(faults)
    assert tenant.requests[-1].method == "GET"
    assert_no_stale_write(tenant)


@pytest.mark.parametrize("blank", ["", None, MISSING], ids=["empty", "null", "missing"])
def test_an_untag_is_found_done_however_duo_tells_of_no_name(
    tenant: Tenant, run: Run, blank: object
) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK, **SET_UP)

    def make_blank() -> None:
        tenant.phones[phone_id]["name"] = blank
        if blank is MISSING:
            del tenant.phones[phone_id]["name"]

    when(tenant, "POST", phone_id, make_blank, answered=True)
    tenant.fail("reset_after", method="POST")
    assert run("--json", "--untag").kinds == ["untagged"]


@pytest.mark.parametrize(
    ("faults", "doubt"),
    [
        pytest.param([LOST, LOST, LOST], True, id="three times lost"),
        pytest.param([LOST, REFUSED], True, id="lost, then refused"),
        pytest.param([REFUSED], False, id="refused"),
        pytest.param([{**REFUSED, "status": 404, "code": 40499}], False, id="404"),
    ],
)
@each_write
def test_a_failure_says_whether_the_write_may_still_be_carried_out(
    *, tenant: Tenant, run: Run, write: Write, faults: list[Record], doubt: bool
) -> None:
    tenant.add_phone("ann", **write.fields)
    added = [tenant.fail(method=write.method, **fault) for fault in faults]
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert result.events[-2]["error"].endswith(MAY_BE_DONE) is doubt
    assert [fault.hits for fault in added] == [1] * len(faults)
    assert ("carried out" in result.err) is doubt


@pytest.mark.parametrize(
    ("write", "faults", "change", "reason"),
    [
        pytest.param(STAMP, [LOST], SET_UP, "no longer in limbo", id="stamp"),
        pytest.param(
            STAMP, [LOST], {"name": "Ann's"}, 'named "Ann\'s"', id="stamp, named"
        ),
        pytest.param(DELETION, [LOST], SET_UP, "set up since its tag", id="deletion"),
        pytest.param(
            DELETION,
            [{"kind": "status", "status": 408}],
            {"name": str(NOW - 2 * HOUR)},
            "another tag",
            id="deletion, stamped afresh",
        ),
        pytest.param(
            DELETION,
            [{"kind": "status", "status": 404, "body": b"<html>"}],
            SET_UP,
            "set up since its tag",
            id="deletion, a proxy's page",
        ),
        pytest.param(
            DELETION,
            [
                {"kind": "status", "status": 503},
                {
                    "kind": "answer",
                    "response": {"phone_id": "DPX", "name": STUCK, "users": []},
                    "method": "GET",
                    "path": "DP",
                    "after": 1,
                },
            ],
            SET_UP,
            "set up since its tag",
            id="deletion, and the next reading tells of another phone",
        ),
        pytest.param(UNTAG, [LOST], {"name": "Ann's"}, "no longer tagged", id="untag"),
    ],
)
def test_a_write_is_not_repeated_on_a_phone_that_has_changed(
    *,
    tenant: Tenant,
    run: Run,
    write: Write,
    faults: list[Record],
    change: Record,
    reason: str,
) -> None:
    """Nobody is told that it was left alone: the write may be on its way yet."""
    phone_id = tenant.add_phone("ann", **write.fields)
    expected = {**tenant.phones[phone_id], **change}
    when(tenant, write.method, phone_id, lambda: befall(tenant, phone_id, change))
    for fault in faults:
        tenant.fail(**{"method": write.method, **fault})
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert result.events[-2]["error"] == f"{CHANGED}{reason}{MAY_BE_DONE}"
    assert write_methods(tenant) == [write.method]
    assert tenant.phone(phone_id) == expected


# Writes that were certainly not carried out

somebody_goes_on = pytest.mark.parametrize(
    ("write", "change", "event"),
    [
        *((write, write.change, "changed") for write in WRITES),
        (DELETION, None, "gone"),
    ],
    ids=[*map(name_of_case, WRITES), "deleted by somebody else"],
)


@somebody_goes_on
def test_a_write_that_was_refused_leaves_no_doubt(
    *, tenant: Tenant, run: Run, write: Write, change: Record | None, event: str
) -> None:
    """While a 429 is waited out, the phone is changed or deleted."""
    phone_id = tenant.add_phone("ann", **write.fields)
    tenant.fail("status", status=429, method=write.method)
    when(tenant, write.method, phone_id, lambda: befall(tenant, phone_id, change))
    result = run("--json", "--untag")
    assert (result.status, result.err, result.outcomes) == (0, "", [event])
    assert write_methods(tenant) == [write.method]


@somebody_goes_on
def test_a_write_that_was_not_sent_leaves_no_doubt(
    *, tenant: Tenant, run: Run, write: Write, change: Record | None, event: str
) -> None:
    """It gets no connection; meanwhile, the phone is changed or deleted."""
    phone_id = tenant.add_phone("ann", **write.fields)
    tenant.fail("connection_close", method="GET", path=phone_id)

    def cut() -> None:
        tenant.close_idle()
        tenant.refuse(1)
        befall(tenant, phone_id, change)

    when(tenant, "GET", phone_id, cut, answered=True)
    result = run("--json", "--untag")
    assert (result.status, result.err, result.outcomes) == (0, "", [event])
    assert tenant.refusals == 0
    assert writes(tenant) == []


def test_a_write_that_a_signal_stops_before_it_is_sent_leaves_no_doubt(
    tenant: Tenant,
) -> None:
    """It waits for a connection; its phone is told to be about to be deleted."""
    phone_id = tenant.add_phone("ann", name=LONG_AGO)
    tenant.fail("connection_close", method="GET", path=phone_id)

    def slow_down() -> None:
        tenant.close_idle()
        tenant.slow(connection=1.5)

    when(tenant, "GET", phone_id, slow_down, answered=True)
    with start(tenant, "--json") as child:
        assert child.stdout
        assert '"deleting"' in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=20)
    assert child.returncode == 128 + signal.SIGTERM
    assert "carried out" not in err
    assert writes(tenant) == []
