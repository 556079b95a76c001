"""What a run writes, and when it does not: whatever happens in the meantime."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import MISSING, Record, Request, Tenant, cast
from tests.support import (
    DELETION,
    GONE,
    HOUR,
    MINUTE,
    NOW,
    SET_UP,
    STAMP,
    STAMPED,
    STUCK,
    UNTAG,
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
    when,
    write_methods,
    writes,
    written_phones,
)

MAY_BE_DONE = (
    "it has changed in the meantime; a write was sent and not confirmed:"
    " it may still be carried out"
)

# What is written


@pytest.mark.parametrize(
    ("argv", "stdin", "changed"),
    [
        pytest.param("", "", {"begun": STAMPED, "stuck": GONE}, id="all users"),
        pytest.param("begun", "", {"begun": STAMPED}, id="one user to stamp"),
        pytest.param("stuck", "", {"stuck": GONE}, id="one user to delete"),
        pytest.param(
            "young stuck begun named",
            "",
            {"begun": STAMPED, "stuck": GONE},
            id="several users",
        ),
        pytest.param(
            "--no-force",
            "y\ny\n",
            {"begun": STAMPED, "stuck": GONE},
            id="asked, yes",
        ),
        pytest.param("--no-force", "n\nn\n", {}, id="asked, no"),
        pytest.param("--no-force", "n\ny\n", {"stuck": GONE}, id="asked, no and yes"),
        pytest.param(
            "--no-force", "y\nn\n", {"begun": STAMPED}, id="asked, yes and no"
        ),
        pytest.param("young named done", "", {}, id="nothing to do"),
        pytest.param("-g 9 young", "", {"young": GONE}, id="a grace period just over"),
    ],
)
def test_scenarios(
    tenant: Tenant, run: Run, argv: str, stdin: str, changed: dict[str, str]
) -> None:
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(*argv.split(), stdin=stdin)
    assert result.status == 0
    assert names(tenant, ids) == {**before, **changed}
    assert len(writes(tenant)) == len(changed)
    if "--no-force" not in argv:
        assert (result.out, result.err) == ("", "")


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
    ("argv", "stdin", "name"),
    [
        ("", "", STUCK),
        ("--no-untag", "", STUCK),
        ("--untag", "", ""),
        ("--untag --dry-run", "", STUCK),
        ("--untag --no-force", "n\n", STUCK),
        ("--untag --no-force", "y\n", ""),
    ],
)
def test_untag(tenant: Tenant, run: Run, argv: str, stdin: str, name: str) -> None:
    ids = {
        "finished": tenant.add_phone("ann", name=STUCK, **SET_UP),
        "named since": tenant.add_phone("bob", name="iPhone", **SET_UP),
        "still at it": tenant.add_phone("cleo", name=str(NOW)),
    }
    before = names(tenant, ids)
    assert run(*argv.split(), stdin=stdin).status == 0
    assert names(tenant, ids) == {**before, "finished": name}
    if name == STUCK:
        assert writes(tenant) == []
    else:
        assert written_phones(tenant) == [ids["finished"]]


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
    ("argv", "timeout", "reading"),
    [
        pytest.param("", 5, "the next is read", id="all users"),
        pytest.param("ann bob cleo", 5, "the next is read", id="named users"),
        pytest.param("--no-force", 0.3, "the next is not read", id="asked"),
    ],
)
def test_the_next_phone_is_read_while_this_one_is_written(
    tenant: Tenant, run: Run, argv: str, timeout: float, reading: str
) -> None:
    """Where nothing is asked; and no further, and never two writes at a time."""
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob", "cleo")]
    told: list[str] = []

    def look(request: Request) -> None:
        if request.method == "DELETE":
            told.append(f"write {ids.index(phone_of(request))}")
            if phone_of(request) == ids[1]:
                try:
                    tenant.wait_for(path=ids[2], timeout=timeout)
                    told.append("the next is read")
                except TimeoutError:
                    told.append("the next is not read")

    tenant.on_request(look)
    assert run(*argv.split(), stdin="y\ny\ny\n").status == 0
    assert told == ["write 0", "write 1", reading, "write 2"]


# People

NAMED = {"name": "Ann's spare"}
TAGGED_AFRESH = {"name": str(NOW - MINUTE)}
TAGGED_EARLIER = {"name": str(NOW - 2 * HOUR)}
BLANK: Record = {"name": ""}
NO_NAME: Record = {"name": None}
IN_USE = {"last_seen": NOW - MINUTE}
IN_LIMBO = {"platform": "Generic Smartphone", "activated": False}


@pytest.mark.parametrize(
    ("write", "change"),
    [
        pytest.param(STAMP, SET_UP, id="stamp, activated"),
        pytest.param(STAMP, NAMED, id="stamp, named by a person"),
        pytest.param(STAMP, TAGGED_AFRESH, id="stamp, tagged afresh"),
        pytest.param(STAMP, TAGGED_EARLIER, id="stamp, tagged earlier"),
        pytest.param(DELETION, SET_UP, id="deletion, activated"),
        pytest.param(DELETION, NAMED, id="deletion, named by a person"),
        pytest.param(DELETION, TAGGED_AFRESH, id="deletion, tagged afresh"),
        pytest.param(DELETION, TAGGED_EARLIER, id="deletion, tagged earlier"),
        pytest.param(DELETION, BLANK, id="deletion, tag removed"),
        pytest.param(DELETION, NO_NAME, id="deletion, tag removed, null"),
        pytest.param(DELETION, IN_USE, id="deletion, in use since"),
        pytest.param(UNTAG, NAMED, id="untag, named by a person"),
        pytest.param(UNTAG, BLANK, id="untag, tag removed"),
        pytest.param(UNTAG, IN_LIMBO, id="untag, back in limbo"),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_phone_that_has_changed_is_left_alone(
    tenant: Tenant, run: Run, write: Write, change: Record, asked: bool
) -> None:
    """It changed after the walk, or while the question about it was open."""
    phone_id = tenant.add_phone("ann", **write.fields)
    phone = tenant.phones[phone_id]
    expected = {**phone, **change}
    argv = ["--json", "--untag"]
    stdin = ""
    count = 1
    if asked:  # which is between two reads
        argv.append("--no-force")
        stdin = "y\n"
        count = 2
    when(tenant, "GET", phone_id, lambda: phone.update(change), count=count)
    result = run(*argv, stdin=stdin)
    assert (result.status, result.kinds) == (0, ["changed"])
    assert writes(tenant) == []
    assert tenant.phone(phone_id) == expected
    if not asked:
        assert result.err == ""


@pytest.mark.parametrize("tag", [NOW - HOUR - 1, NOW - HOUR + 1])
def test_a_phone_with_another_tag_that_is_due_as_well(
    tenant: Tenant, run: Run, tag: int
) -> None:
    """Another run may have deleted it, and its user begun again: not seen by us."""
    phone = tenant.add_phone("ann", name=str(NOW - HOUR))

    def tag_afresh(request: Request) -> None:
        if request.path.endswith(phone):
            tenant.phones[phone]["name"] = str(tag)

    tenant.on_request(tag_afresh)
    assert run("--json").kinds == ["changed"]
    assert tenant.phones[phone]["name"] == str(tag)


@each_write
def test_a_phone_that_is_somebody_elses_by_now_is_left_alone(
    tenant: Tenant, run: Run, write: Write
) -> None:
    """It moved after the walk; nobody knows what its new user is doing with it."""
    phone_id = tenant.add_phone("ann", **write.fields)
    before = tenant.phones[phone_id]["name"]
    when(tenant, "GET", phone_id, lambda: tenant.move_phone(phone_id, "bob"))
    result = run("--json", "--untag")
    assert (result.status, result.err, result.kinds) == (0, "", ["changed"])
    assert result.events[0]["users"] == ["bob"]
    assert writes(tenant) == []
    assert tenant.phones[phone_id]["name"] == before


@pytest.mark.parametrize(
    ("users", "events"),
    [
        pytest.param(["ann"], ["changed"], id="one less"),
        pytest.param(["bob", "cleo"], ["changed"], id="another one"),
        pytest.param(["ann", "bob", "cleo"], ["deleted"], id="one more"),
        pytest.param(["bob", "ann"], ["deleted"], id="in another order"),
    ],
)
def test_all_users_of_a_shared_phone_must_still_have_it(
    tenant: Tenant, run: Run, users: list[str], events: list[str]
) -> None:
    phone_id = tenant.add_phone("ann", "bob", name=STUCK)
    when(tenant, "GET", phone_id, lambda: tenant.move_phone(phone_id, *users))
    result = run("--json")
    assert (result.status, result.err, result.outcomes) == (0, "", events)
    assert result.events[0]["users"] == users


def test_a_phone_that_moves_while_the_question_about_it_is_open(
    tenant: Tenant, run: Run
) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK)
    move = functools.partial(tenant.move_phone, phone_id, "bob")
    when(tenant, "GET", phone_id, move, count=2)
    result = run("--json", "--no-force", stdin="y\n")
    assert (result.status, result.kinds) == (0, ["changed"])
    assert writes(tenant) == []


@pytest.mark.parametrize("answer", [404, 200])
@pytest.mark.parametrize("moment", ["read", "read after the answer", "write"])
@each_write
def test_a_phone_that_has_gone_is_a_success(
    tenant: Tenant, run: Run, write: Write, moment: str, answer: int
) -> None:
    """However Duo then answers a DELETE: if with a success, it counts as ours."""
    tenant.gone_status = answer
    phone_id = tenant.add_phone("ann", **write.fields)
    argv = ["--json", "--untag"]
    stdin = ""
    method = "GET"
    count = 1
    if moment == "read after the answer":
        argv.append("--no-force")
        stdin = "y\n"
        count = 2
    if moment == "write":
        method = write.method
    when(tenant, method, phone_id, tenant.phones.clear, count=count)
    result = run(*argv, stdin=stdin)
    assert result.status == 0
    if moment == "write":
        assert write_methods(tenant) == [write.method]
    else:
        assert writes(tenant) == []
    if moment == "write" and write.method == "DELETE" and answer != 404:
        assert result.outcomes == ["deleted"]
    else:
        assert result.outcomes == ["gone"]
    if moment != "read after the answer":
        assert result.err == ""


# Other runs


class Work:
    """Phones to write to, and phones that are none of a run's business.

    By the real clock, which processes go by.
    """

    def __init__(self, tenant: Tenant, count: int = 1) -> None:
        self.tenant = tenant
        self.now = int(time.time())
        old = str(self.now - HOUR)
        users = [f"user-{number}" for number in range(count)]
        self.stamp = [tenant.add_phone(user) for user in users]
        self.delete = [tenant.add_phone(user, "dan", name=old) for user in users]
        keep = [
            tenant.add_phone("eve", name="Eve's spare"),
            tenant.add_phone("eve", name=str(self.now)),
            tenant.add_phone("eve", name=old, **SET_UP),
        ]
        self.keep = {each: tenant.phone(each) for each in keep}

    def assert_nothing_wrong(self) -> None:
        """Whatever has been done by now."""
        phones = self.tenant.phones
        assert {each: phones[each] for each in self.keep} == self.keep
        for each in self.stamp:
            name = phones[each]["name"]
            assert name == "" or self.now <= int(name) <= time.time()

    def assert_done(self) -> None:
        """All of it."""
        self.assert_nothing_wrong()
        assert set(self.tenant.phones) == {*self.stamp, *self.keep}
        assert all(self.tenant.phones[each]["name"] for each in self.stamp)


def finish(child: subprocess.Popen[str]) -> Result:
    """Wait for the end of a run."""
    with child:
        out, err = child.communicate(timeout=30)
    return Result(child.returncode, out, err)


def journals(results: Iterable[Result]) -> Counter[tuple[str, str]]:
    """How often each event was told of each phone, by runs that went well."""
    told: Counter[tuple[str, str]] = Counter()
    for result in results:
        assert (result.status, result.err) == (0, "")
        told.update((each["phone_id"], each["event"]) for each in result.events[:-1])
    return told


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
    work = Work(tenant, 8)
    barrier = threading.Barrier(3)

    def meet(request: Request) -> None:
        if request.path.endswith("/users"):
            barrier.wait(20)

    tenant.after_request(meet)
    children = [start(tenant, "--json") for _ in range(3)]
    told = journals(map(finish, children))
    work.assert_done()
    for each in work.delete:
        assert 1 <= told[each, "deleted"] <= most
        assert told[each, "deleted"] + told[each, "gone"] == 3
    for each in work.stamp:
        assert told[each, "stamped"] >= 1
        assert told[each, "stamped"] + told[each, "changed"] == 3


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_run_within_a_run(tenant: Tenant, run: Run, method: str, count: int) -> None:
    """A whole run goes by before the answer, to a GET with what has been read."""
    tenant.gone_status = 404  # so that only the first DELETE counts
    work = Work(tenant, 2)
    inner: list[Result] = []

    def overlap() -> None:
        inner.append(finish(start(tenant, "--json")))

    when(tenant, method, "", overlap, count=count, answered=method == "GET")
    told = journals([run("--json", now=time.time()), *inner])
    work.assert_done()
    assert [told[each, "deleted"] for each in work.delete] == [1, 1]
    assert all(told[each, "stamped"] for each in work.stamp)
    assert len(inner) == 1


# Runs that are killed


@pytest.mark.parametrize("count", range(1, 6))
def test_the_run_after_one_that_was_killed(
    tenant: Tenant, run: Run, count: int
) -> None:
    """It dies by kill -9 as it waits for an answer: of the walk, a read, a write."""
    work = Work(tenant)
    started = threading.Event()
    dead = threading.Event()

    def wait(request: Request) -> None:
        if request.sequence > count:
            assert dead.wait(20)

    def kill(request: Request) -> None:
        if request.sequence == count:
            assert started.wait(20)
            child.kill()
            dead.set()

    tenant.on_request(wait)  # or a read on the way would be answered, and lead to more
    tenant.after_request(kill)
    child = start(tenant, "--json")
    started.set()
    killed = finish(child)
    assert killed.status == -signal.SIGKILL
    assert len(tenant.requests) in (count, count + 1)  # with the next phone's read
    work.assert_nothing_wrong()
    if write_methods(tenant)[-1:] == ["DELETE"]:  # what was deleted is on record
        record = killed.events[-1]["record"]
        assert record["phone_id"] == work.delete[0]
        assert record["name"] == str(work.now - HOUR)
    result = run("--json", now=time.time())
    assert (result.status, result.err) == (0, "")
    work.assert_done()


# Fresh reads, and the two seconds


class Stalled:
    """A process that deletes a row of phones, one of whose streams nobody reads."""

    def __init__(self, tenant: Tenant, stream: str, *argv: str) -> None:
        self.tenant = tenant
        old = str(int(time.time()) - HOUR)
        self.ids = [tenant.add_phone(f"user-{n}", name=old) for n in range(30)]
        self.reader, writer = socket.socketpair()
        # A pipe would take 64 KB before it is full.
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 6000)
        with writer:
            streams: dict[str, Any] = dict.fromkeys(("stdout", "stderr"))
            streams[stream] = writer
            self.child = start(tenant, *argv, **streams)

    def wait(self) -> None:
        """Wait until no request has come for more than two seconds."""
        self.tenant.wait_for(method="DELETE")
        with contextlib.suppress(TimeoutError):
            while True:
                count = len(self.tenant.requests)
                last = self.tenant.requests[-1]
                left = last.time + 2.2 - time.monotonic()
                self.tenant.wait_for(count + 1, timeout=left)

    def set_up(self) -> set[str]:
        """Let the users set up every phone that was read and is still there."""
        read = {phone_of(request) for request in self.tenant.requests}
        with self.tenant.lock:
            chosen = read & {*self.tenant.phones}
            for each in chosen:
                self.tenant.phones[each].update(SET_UP)
        return chosen

    def finish(self) -> None:
        """Read the stream to its end."""
        with self.child, self.reader, self.reader.makefile() as stream:
            for _ in stream:
                pass
        assert self.child.returncode == 0


def test_a_stream_that_nobody_reads() -> None:
    """A phone set up meanwhile is not deleted, whatever the run was stuck in."""
    with Tenant() as first, Tenant() as second:
        rows = [
            Stalled(first, "stdout", "--json"),  # in a line of the journal
            Stalled(second, "stderr", "-vv"),  # in a line of the log
        ]
        for row in rows:
            row.wait()
        chosen = [row.set_up() for row in rows]
        for row, phones in zip(rows, chosen):
            row.finish()
            assert set(row.tenant.phones) == phones
            assert sorted(written_phones(row.tenant)) == sorted({*row.ids} - phones)
            assert_no_stale_write(row.tenant)
            assert 0 < len(phones) < 10


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_that_is_stopped(tenant: Tenant, count: int) -> None:
    """The answer to a read lies there when it goes on; the phone has been set up."""
    old = str(int(time.time()) - HOUR)
    ids = [tenant.add_phone(user, name=old) for user in ("ann", "bob", "cleo")]
    changed = ids[count - 1]
    started = threading.Event()
    stopped = threading.Event()

    def stop(request: Request) -> None:
        if phone_of(request) == changed and not stopped.is_set():
            assert started.wait(20)
            child.send_signal(signal.SIGSTOP)
            with tenant.lock:
                tenant.phones[changed].update(SET_UP)
            stopped.set()

    tenant.after_request(stop)
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


class SlowHandshake:
    """One phone; its first read is answered, and then all connections are closed.

    A new one takes longer than that read is fresh.
    """

    def __init__(
        self, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, write: Write
    ) -> None:
        monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.3)
        self.tenant = tenant
        self.phone = tenant.add_phone("ann", **write.fields)
        tenant.fail("connection_close", method="GET", path=self.phone)
        when(tenant, "GET", self.phone, self.close_all, answered=True)

    def close_all(self) -> None:
        """Close all connections but that of the read, which ends after its answer."""
        self.tenant.close_idle()
        self.tenant.slow(connection=0.4)


@pytest.mark.parametrize("write", [STAMP, DELETION], ids=name_of_case)
def test_a_handshake_that_is_slower_than_a_read_is_fresh(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """The phone is read again, and the write has a connection by then."""
    slow = SlowHandshake(tenant, monkeypatch, write)
    result = run("--json", "--untag", "-vv")
    assert (result.status, result.outcomes) == (0, [write.event])
    assert "this try failed: more than 2 s passed" in result.err
    sent = [each.method for each in tenant.requests if phone_of(each) == slow.phone]
    assert sent == ["GET", "GET", write.method]
    assert_no_stale_write(tenant, 0.3)


@pytest.mark.parametrize("write", [STAMP, DELETION], ids=name_of_case)
def test_a_phone_that_has_changed_before_a_slow_handshake_was_over(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """Nothing has been sent by then: it is simply left alone."""
    slow = SlowHandshake(tenant, monkeypatch, write)
    change = functools.partial(tenant.phones[slow.phone].update, write.change)
    when(tenant, "GET", slow.phone, change, answered=True)
    result = run("--json", "--untag")
    assert (result.status, result.err, result.outcomes) == (0, "", ["changed"])
    assert writes(tenant) == []


class SleepingMachine:
    """A machine that is suspended for a minute, as often as it is told to.

    One of its clocks goes on meanwhile: CLOCK_BOOTTIME.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        self.clock_gettime = time.clock_gettime
        monkeypatch.setattr(time, "clock_gettime", self.read_clock)

    def read_clock(self, clock: int) -> float:
        """Tell the time by one of its clocks."""
        if clock == time.CLOCK_BOOTTIME:
            return self.clock_gettime(clock) + self.slept
        return self.clock_gettime(clock)

    def sleep(self) -> None:
        """Let a minute go by."""
        self.slept += MINUTE


@pytest.mark.skipif(
    not hasattr(time, "CLOCK_BOOTTIME"), reason="there is no such clock here"
)
@pytest.mark.parametrize("changes", [False, True], ids=["same phone", "activated"])
@each_write
def test_a_machine_that_sleeps_between_read_and_write(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
    changes: bool,
) -> None:
    """The two seconds have passed meanwhile: the phone is read again."""
    machine = SleepingMachine(monkeypatch)
    phone = tenant.add_phone("ann", **write.fields)

    def sleep() -> None:
        machine.sleep()
        if changes:
            tenant.phones[phone].update(write.change)

    when(tenant, "GET", phone, sleep, answered=True)
    result = run("--json", "--untag")
    assert (result.status, result.err) == (0, "")
    sent = [each.method for each in tenant.requests if phone_of(each) == phone]
    if changes:
        assert result.outcomes == ["changed"]
        assert sent == ["GET", "GET"]
    else:
        assert result.outcomes == [write.event]
        assert sent == ["GET", "GET", write.method]


class StallingDisk:
    """A disk that takes half a second for one line of the journal, the first.

    A read is fresh for 0.3 s.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.3)
        monkeypatch.setattr(os, "fsync", self.fsync)
        self.path = path
        self.stalled = False

    def fsync(self, _: int) -> None:
        """Stall once, when there is something in the file."""
        if self.path.stat().st_size and not self.stalled:
            self.stalled = True
            time.sleep(0.5)


def test_a_journal_that_stalls_before_a_deletion(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The phone is read again, and found to be activated by now."""
    journal = tmp_path / "journal"
    disk = StallingDisk(monkeypatch, journal)
    ann = tenant.add_phone("ann", name=STUCK)
    bob = tenant.add_phone("bob", name=STUCK)
    activate = functools.partial(tenant.phones[ann].update, SET_UP)
    when(tenant, "GET", ann, activate, answered=True)
    result = run("--journal", str(journal))
    assert (result.status, result.err) == (0, "")
    assert disk.stalled
    assert written_phones(tenant) == [bob]
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    told = [(each["event"], each["phone_id"]) for each in lines[:-1]]
    assert told == [
        ("deleting", ann),
        ("changed", ann),
        ("deleting", bob),
        ("deleted", bob),
    ]


def test_a_late_write_ends_no_connection(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is no fault of the network: the run goes on with those that it has."""
    journal = tmp_path / "journal"
    disk = StallingDisk(monkeypatch, journal)
    ids = [tenant.add_phone(f"user-{number}", name=STUCK) for number in range(10)]
    result = run("--journal", str(journal))
    assert (result.status, result.err) == (0, "")
    assert disk.stalled
    assert written_phones(tenant) == ids
    assert tenant.connections <= 4
    assert_no_stale_write(tenant, 0.3)


def make_client(tenant: Tenant) -> duo_phone_cleanup.DuoAdmin:
    """The program's client, without a run."""
    settings = duo_phone_cleanup.read_settings([], tenant.environment())
    log = duo_phone_cleanup.Log(0)
    tally = duo_phone_cleanup.Tally()
    return duo_phone_cleanup.DuoAdmin(settings, log, tally, duo_phone_cleanup.Stop())


def check_that_it_is_too_late(call: Callable[..., object], *arguments: Any) -> None:
    """The call is refused because of its deadline."""
    with pytest.raises(duo_phone_cleanup.Failure) as caught:
        call(*arguments)
    assert caught.value.kind is duo_phone_cleanup.Kind.TOO_LATE


def test_the_client_sends_no_write_without_a_deadline(tenant: Tenant) -> None:
    phone = tenant.add_phone("ann")
    client = make_client(tenant)
    check_that_it_is_too_late(client.update_phone, phone, "+15551234567")
    check_that_it_is_too_late(client.delete_phone, phone)
    check_that_it_is_too_late(client.delete_user, "DU1")
    assert tenant.requests == []
    client.stop_reusing()


def test_the_client_sends_no_write_after_its_deadline(tenant: Tenant) -> None:
    phone = tenant.add_phone("ann")
    client = make_client(tenant)
    client.send_by = duo_phone_cleanup.boot_seconds() - 0.001
    check_that_it_is_too_late(client.delete_phone, phone)
    assert tenant.requests == []
    client.stop_reusing()


def test_a_deadline_holds_for_one_write(tenant: Tenant) -> None:
    phone = tenant.add_phone("ann")
    client = make_client(tenant)
    client.send_by = duo_phone_cleanup.boot_seconds() + MINUTE
    client.update_phone(phone, "+15551234567")
    check_that_it_is_too_late(client.delete_phone, phone)
    assert write_methods(tenant) == ["POST"]
    client.stop_reusing()


def user_time_outs(tenant: Tenant) -> list[int]:
    """TCP_USER_TIMEOUT of each socket of this process that leads to the tenant."""
    port = int(tenant.host.partition(":")[2])
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it may be closed by now, or connect yet
            if not path.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as sock:
                if sock.getpeername()[1] == port:
                    option = socket.TCP_USER_TIMEOUT
                    found.append(sock.getsockopt(socket.IPPROTO_TCP, option))
    return found


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="there is no such option here"
)
@each_write
def test_the_kernel_gives_up_a_write_after_two_seconds(
    tenant: Tenant, run: Run, write: Write
) -> None:
    """And no read, which may take its time: the next phone's is under way."""
    ann = tenant.add_phone("ann", **write.fields)
    bob = tenant.add_phone("bob", **write.fields)
    seen: list[list[int]] = []

    def look(request: Request) -> None:
        if phone_of(request) == ann:
            if request.method == write.method:
                tenant.wait_for(method="GET", path=bob)
            seen.append(sorted(user_time_outs(tenant)))

    tenant.on_request(look)
    assert run("--untag").status == 0
    at_the_read, at_the_write = seen
    assert set(at_the_read) == {0}
    assert at_the_write[-1] == 2000
    assert set(at_the_write[:-1]) == {0}


@each_write
def test_a_connection_is_reset_whose_write_is_given_up(
    tenant: Tenant, run: Run, write: Write
) -> None:
    """So that the kernel does not deliver what is still on its way."""
    phone = tenant.add_phone("ann", **write.fields)
    tenant.fail("hang", method=write.method, path=phone)
    assert run("--untag", "--timeout", "0.5").status == 0
    given_up = writes(tenant)[0]
    # The hanging request's thread looks every 20 ms whether its client has gone.
    deadline = time.monotonic() + 10
    while given_up.left is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert given_up.left == "reset"


def test_a_write_that_outlasts_the_read_ahead(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next phone was read while this one was deleted: too long ago by then."""
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 0.3)
    ann = tenant.add_phone("ann", name=STUCK)
    bob = tenant.add_phone("bob", name=STUCK)
    read = threading.Event()

    def happen(request: Request) -> None:
        if (request.method, phone_of(request)) == ("GET", bob):
            tenant.phones[bob].update(SET_UP)
            read.set()
        if (request.method, phone_of(request)) == ("DELETE", ann):
            assert read.wait(20)
            time.sleep(0.4)

    tenant.after_request(happen)
    assert run("--json").kinds == ["deleting", "deleted", "changed"]
    assert written_phones(tenant) == [ann]


ANOTHER_PHONE = {"phone_id": "DPX", "name": STUCK}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "status", "status": 503}, id="503"),
        pytest.param({"kind": "junk"}, id="no JSON"),
        pytest.param({"kind": "answer", "response": ANOTHER_PHONE}, id="another phone"),
    ],
)
@each_write
def test_a_read_that_tells_nothing_vouches_for_nothing(
    tenant: Tenant, run: Run, write: Write, fault: Record
) -> None:
    """A write fails, the phone is set up, and the next read of it fails, too.

    The write was not confirmed, so that it is a failure and may still be carried out.
    """
    ann = tenant.add_phone("ann", **write.fields)
    tenant.fail("status", method=write.method)
    tenant.fail(method="GET", path="phones/", after=1, **fault)

    def meanwhile(request: Request) -> None:
        if request.method == write.method:
            tenant.phones[ann].update(write.change)

    tenant.on_request(meanwhile)
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert result.events[-2]["error"] == MAY_BE_DONE
    assert written_phones(tenant) == [ann]
    assert tenant.phones[ann].items() >= write.change.items()


def test_an_answer_about_another_phone_vouches_for_none(
    tenant: Tenant, run: Run
) -> None:
    ann = tenant.add_phone("ann", name=STUCK)
    bob = tenant.add_phone("bob", name=STUCK)
    other = {**tenant.phones[ann], "users": []}
    tenant.fail("answer", response=other, method="GET", path=bob, times=None)
    assert run().status == 1
    assert tenant.phone(ann) is None
    assert tenant.phone(bob)


# The answers to writes


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

    def meanwhile(request: Request) -> None:
        if (request.method, phone_of(request)) == ("DELETE", ids[1]):
            del tenant.phones[ids[1]]

    tenant.on_request(meanwhile)
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["deleted", second, "deleted"]
    assert written_phones(tenant) == ids
    assert tenant.phones == {}


def test_a_deletion_that_was_refused_is_not_ours(tenant: Tenant, run: Run) -> None:
    """While a 429 is waited out, somebody else deletes the phone."""
    ann = tenant.add_phone("ann", name=STUCK)
    tenant.fail("status", status=429, method="DELETE")

    def delete(request: Request) -> None:
        if request.method == "DELETE":
            del tenant.phones[ann]

    tenant.on_request(delete)
    assert run("--json").kinds == ["deleting", "gone"]


def no_connection_for_its_write(
    tenant: Tenant, phone: str, happen: Callable[[], object]
) -> None:
    """Close all connections after a phone's read, refuse the next; let this happen."""
    tenant.fail("connection_close", method="GET", path=phone)

    def cut() -> None:
        tenant.close_idle()
        tenant.refuse(1)
        happen()

    when(tenant, "GET", phone, cut, answered=True)


def test_a_deletion_that_was_not_sent_is_not_ours(tenant: Tenant, run: Run) -> None:
    """Meanwhile, somebody else deletes the phone."""
    ann = tenant.add_phone("ann", name=STUCK)
    delete = functools.partial(tenant.phones.pop, ann)
    no_connection_for_its_write(tenant, ann, delete)
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["gone"]
    assert tenant.refused == 1
    assert writes(tenant) == []


@each_write
def test_a_write_that_was_not_sent_changes_nothing_about_a_phone_that_changes(
    tenant: Tenant, run: Run, write: Write
) -> None:
    """Meanwhile, its user goes on: no failure."""
    ann = tenant.add_phone("ann", **write.fields)
    change = functools.partial(tenant.phones[ann].update, write.change)
    no_connection_for_its_write(tenant, ann, change)
    result = run("--json", "--untag")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["changed"]
    assert tenant.refused == 1
    assert writes(tenant) == []


# Writes that may still be carried out


@each_write
def test_a_held_write_to_a_phone_that_changes_may_still_be_carried_out(
    tenant: Tenant, run: Run, write: Write
) -> None:
    """Nobody is told that the phone was left alone: it is deleted in the end."""
    phone = tenant.add_phone("ann", **write.fields)
    fault = tenant.fail("hold", method=write.method)
    change = functools.partial(tenant.phones[phone].update, write.change)
    when(tenant, write.method, phone, change)
    result = run("--json", "--untag", "--timeout", "0.5")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert result.events[-2]["error"] == MAY_BE_DONE
    assert result.events[-2]["phone_id"] == phone
    assert f"({phone}): {MAY_BE_DONE}\n" in result.err
    assert write_methods(tenant) == [write.method]
    assert tenant.phones[phone].items() >= write.change.items()
    fault.released.set()
    assert fault.carried_out.wait(20)
    if write is DELETION:
        assert tenant.phone(phone) is None


@each_write
def test_a_held_write_to_a_phone_that_stays_the_same_is_tried_again(
    tenant: Tenant, run: Run, write: Write
) -> None:
    phone = tenant.add_phone("ann", **write.fields)
    tenant.fail("hold", method=write.method)
    result = run("--json", "--untag", "--timeout", "0.5")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == [write.event]
    sent = [each.method for each in tenant.requests if phone_of(each) == phone]
    assert sent == ["GET", write.method, "GET", write.method]


@each_write
def test_a_write_that_is_never_answered_may_still_be_carried_out(
    tenant: Tenant, run: Run, write: Write
) -> None:
    phone = tenant.add_phone("ann", **write.fields)
    fault = tenant.fail("hold", method=write.method, times=None)
    result = run("--json", "--untag", "--timeout", "0.3")
    assert (result.status, result.outcomes) == (1, ["failed"])
    error = result.events[-2]["error"]
    assert error.startswith(f"no answer from {tenant.host}: The read operation timed")
    assert error.endswith(
        "; a write was sent and not confirmed: it may still be carried out"
    )
    assert fault.hits == 3
    assert written_phones(tenant) == [phone] * 3


def test_a_run_that_is_stopped_before_a_write_has_no_doubt_about_it(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal comes while the second deletion is journaled, which is never sent."""
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob")]
    journal = tmp_path / "journal"

    def fsync(_: int) -> None:
        if ids[1] in journal.read_text():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", fsync)
    result = run("--journal", str(journal))
    assert result.status == 128 + signal.SIGTERM
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    told = [each["event"] for each in lines]
    assert told == ["deleting", "deleted", "deleting", "summary"]
    assert "carried out" not in result.err
    assert written_phones(tenant) == [ids[0]]


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param({"status": 400}, id="400"),
        pytest.param({"status": 403}, id="403"),
        pytest.param({"status": 404, "code": 40499}, id="404"),
    ],
)
@each_write
def test_a_write_that_is_refused_is_not_carried_out_later(
    tenant: Tenant, run: Run, write: Write, refusal: Record
) -> None:
    tenant.add_phone("ann", **write.fields)
    tenant.fail("status", method=write.method, **refusal)
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert "carried out" not in result.err


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(
            [
                {"kind": "reset_after", "method": "POST"},
                {"kind": "truncate", "path": "DP-stamp", "after": 2},
            ],
            id="a stamp's answer, and that of the read that finds it done",
        ),
        pytest.param(
            [
                {"kind": "reset_after", "method": "DELETE"},
                {"kind": "truncate", "path": "DP-delete", "after": 2},
            ],
            id="a deletion's answer, and that of the read that finds it done",
        ),
        pytest.param(
            [
                {"kind": "reset_before", "method": "POST"},
                {"kind": "reset_after", "method": "POST"},
            ],
            id="a stamp that is not done, and one that is",
        ),
        pytest.param(
            [
                {"kind": "reset_before", "method": "DELETE"},
                {"kind": "reset_after", "method": "DELETE"},
            ],
            id="a deletion that is not done, and one that is",
        ),
        pytest.param(
            [
                {"kind": "truncate", "method": "POST"},
                {"kind": "truncate", "method": "DELETE"},
            ],
            id="the answers to both writes",
        ),
    ],
)
def test_faults_one_after_the_other(
    tenant: Tenant, run: Run, faults: list[Record]
) -> None:
    """With a clock that goes on between the tries, so that each stamp differs."""
    tenant.add_phone("ann", phone_id="DP-stamp")
    tenant.add_phone("bob", phone_id="DP-delete", name=STUCK)
    added = [tenant.fail(**fault) for fault in faults]
    clock = itertools.count(NOW)
    result = run("--json", now=lambda: next(clock))
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["stamped", "deleted"]
    assert NOW < int(tenant.phones["DP-stamp"]["name"]) < next(clock)
    assert tenant.phone("DP-delete") is None
    assert [fault.hits for fault in added] == [1, 1]
    assert_no_stale_write(tenant)


@pytest.mark.parametrize(
    ("write", "change"),
    [
        pytest.param(DELETION, SET_UP, id="deletion, activated"),
        pytest.param(DELETION, NAMED, id="deletion, named"),
        pytest.param(
            DELETION, {"name": str(NOW - HOUR - 1)}, id="deletion, another old tag"
        ),
        pytest.param(UNTAG, NAMED, id="untag, named"),
        pytest.param(STAMP, SET_UP, id="stamp, activated"),
        pytest.param(STAMP, NAMED, id="stamp, named"),
    ],
)
def test_a_write_is_not_repeated_on_a_phone_that_has_changed(
    tenant: Tenant, run: Run, write: Write, change: Record
) -> None:
    phone_id = tenant.add_phone("ann", **write.fields)
    expected = {**tenant.phones[phone_id], **change}

    def meanwhile(request: Request) -> None:
        if request.method == write.method:
            tenant.phones[phone_id].update(change)

    tenant.on_request(meanwhile)
    tenant.fail("reset_before", method=write.method)
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed"])
    assert result.events[-2]["error"] == MAY_BE_DONE
    assert tenant.phones[phone_id] == expected
    assert write_methods(tenant) == [write.method]


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
