"""What people and other runs do while a run is under way, and runs that are killed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Request, Tenant
from tests.support import (
    HOUR,
    MINUTE,
    NOW,
    SET_UP,
    WRITES,
    Result,
    Run,
    Write,
    clean_environment,
    each_write,
    start,
    when,
    write_methods,
)

LIMBO = {"platform": "Generic Smartphone", "activated": False}

CHANGES: dict[str, dict[str, Any]] = {
    "activated": SET_UP,
    "named by a person": {"name": "Ann's spare"},
    "tagged afresh": {"name": str(NOW - MINUTE)},
    "tagged earlier": {"name": str(NOW - 2 * HOUR)},
    "tag removed": {"name": ""},
    "tag removed, null": {"name": None},
    "in use since": {"last_seen": NOW - MINUTE},
    "back in limbo": LIMBO,
}
MEANWHILE = {
    "stamp": list(CHANGES)[:4],
    "deletion": list(CHANGES)[:-1],
    "untag": ["named by a person", "tag removed", "back in limbo"],
}


# People


@pytest.mark.parametrize(
    ("write", "change"),
    [(write, change) for write in WRITES for change in MEANWHILE[write.name]],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_phone_that_has_changed_is_left_alone(
    tenant: Tenant, run: Run, write: Write, change: str, asked: bool
) -> None:
    """It changed after the walk, or while the question about it was open."""
    phone_id = tenant.add_phone("ann", **write.fields)
    phone = tenant.phones[phone_id]
    expected = {**phone, **CHANGES[change]}
    happen = functools.partial(phone.update, CHANGES[change])
    when(tenant, "GET", phone_id, happen, count=1 + asked)
    result = run("--json", "--untag", *["--no-force"] * asked, stdin="y\n" * asked)
    assert (result.status, result.kinds) == (0, ["changed"])
    assert write_methods(tenant) == []
    assert tenant.phone(phone_id) == expected
    assert asked or result.err == ""


@pytest.mark.parametrize("answer", [404, 200, 204])
@pytest.mark.parametrize("moment", ["read", "read after the answer", "write"])
@each_write
def test_a_phone_that_has_gone_is_a_success(
    tenant: Tenant, run: Run, write: Write, moment: str, answer: int
) -> None:
    """However Duo then answers a DELETE: if with a success, it counts as ours."""
    tenant.gone_status = answer
    phone_id = tenant.add_phone("ann", **write.fields)
    asked = moment == "read after the answer"
    method = write.method if moment == "write" else "GET"
    when(tenant, method, phone_id, tenant.phones.clear, count=1 + asked)
    result = run("--json", "--untag", *["--no-force"] * asked, stdin="y\n" * asked)
    assert result.status == 0
    ours = write.method == method == "DELETE" and answer != 404
    assert result.outcomes == ["deleted" if ours else "gone"]
    assert write_methods(tenant) == [write.method] * (moment == "write")
    assert asked or result.err == ""


def test_questions_left_open_for_twenty_minutes(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is by the time and the record of a read just before it."""
    phones = [tenant.add_phone(name) for name in ("ann", "bob")]
    times = [NOW]
    for each, minutes in zip(phones, (20, 40)):
        later = functools.partial(times.append, NOW + minutes * MINUTE)
        when(tenant, "GET", each, later, count=2)
    monkeypatch.setattr(os, "environ", clean_environment(**tenant.environment()))
    answers, typed = os.pipe()
    os.write(typed, b"y\ny\n")
    os.close(typed)
    with os.fdopen(answers) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert duo_phone_cleanup.main(["--no-force"], clock=lambda: times[-1]) == 0
    names = [tenant.phones[each]["name"] for each in phones]
    assert names == [str(NOW + 20 * MINUTE), str(NOW + 40 * MINUTE)]
    assert [(each.method, each.path[-20:]) for each in tenant.requests[1:]] == [
        (method, each) for each in phones for method in ("GET", "GET", "POST")
    ]


@pytest.mark.parametrize("users", [(), ("ann", "user000002", "BOB")])
@each_write
def test_a_shared_phone_once(
    tenant: Tenant, run: Run, write: Write, users: tuple[str, ...]
) -> None:
    """However many users share it, on whatever pages they are."""
    tenant.add_user("ann")
    tenant.populate(300)
    phone_id = tenant.add_phone("ann", "user000002", "bob", **write.fields)
    result = run("--json", "--untag", *users)
    assert result.status == 0
    assert write_methods(tenant) == [write.method]
    told = result.events[-2]
    assert (told["event"], told["phone_id"]) == (write.event, phone_id)
    assert told["users"] == ["ann", "user000002", "bob"]
    assert result.summary[write.event] == 1
    assert result.summary["limbo"] == (write.name != "untag")


def test_all_who_share_a_phone_are_told_of(tenant: Tenant, run: Run) -> None:
    """Also of a phone that is left alone, which is not read again."""
    tenant.add_phone("ann", "bob", "cleo", name=str(NOW - MINUTE))
    (waiting,) = run("--json", "-v").events[:-1]
    assert (waiting["event"], waiting["users"]) == ("waiting", ["ann", "bob", "cleo"])


# Other runs


class Work:
    """Phones to write to, and phones that are none of a run's business.

    By the real clock, which processes go by.
    """

    def __init__(self, tenant: Tenant, count: int = 1) -> None:
        self.tenant, self.now = tenant, int(time.time())
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
        times = range(self.now, int(time.time()) + 1)
        for each in self.stamp:
            assert phones[each]["name"] in ("", *map(str, times))

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


@pytest.mark.parametrize("answer", [404, 200])
def test_three_runs_at_once(tenant: Tenant, answer: int) -> None:
    """All of them have walked before one of them writes."""
    tenant.gone_status = answer  # 404: only the first DELETE counts
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
        assert told[each, "deleted"] in ([1] if answer == 404 else [1, 2, 3])
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

    def kill(request: Request) -> None:
        if request.sequence == count:
            assert started.wait(20)
            child.kill()

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
