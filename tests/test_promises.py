"""What the README promises, under a hostile eye: nothing stale, nobody starved."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import MISSING, Request, Tenant
from tests.support import (
    HOUR,
    SET_UP,
    STUCK,
    WRITES,
    Run,
    Write,
    assert_no_stale_write,
    each_write,
    phone_of,
    start,
    written_phones,
)

# Two seconds


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
                count, last = len(self.tenant.requests), self.tenant.requests[-1]
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
    started, stopped = threading.Event(), threading.Event()

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


@pytest.mark.parametrize("changes", [False, True])
@each_write
def test_a_handshake_that_is_slower_than_a_read_is_fresh(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
    changes: bool,
) -> None:
    """After each read, the server closes. The write gets through in the end."""
    monkeypatch.setattr(duo_phone_cleanup, "FRESH", 0.3)
    phone = tenant.add_phone("ann", **write.fields)
    tenant.slow(connection=0.4)
    tenant.fail("connection_close", method="GET", path="phones/", times=None)

    def happen(request: Request) -> None:
        if request.method == "GET" and phone_of(request) and changes:
            tenant.phones[phone].update(write.change)

    tenant.after_request(happen)
    result = run("--json", "--untag")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == ["changed" if changes else write.event]
    assert written_phones(tenant) == [phone] * (not changes)
    assert_no_stale_write(tenant, 0.3)


def test_a_write_that_outlasts_the_read_ahead(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next phone was read while this one was deleted: too long ago by then."""
    monkeypatch.setattr(duo_phone_cleanup, "FRESH", 0.3)
    ann, bob = (tenant.add_phone(user, name=STUCK) for user in ("ann", "bob"))
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


# Named users


BROKEN_READS: dict[str, tuple[str, dict[str, Any]]] = {
    "503": ("status", {"status": 503}),
    "no JSON": ("junk", {}),
    "another phone": ("answer", {"response": {"phone_id": "DPX", "name": STUCK}}),
}


@pytest.mark.parametrize("broken", BROKEN_READS)
@each_write
def test_a_read_that_tells_nothing_vouches_for_nothing(
    tenant: Tenant, run: Run, write: Write, broken: str
) -> None:
    """A write fails, the phone is set up, and the next read of it fails, too."""
    ann = tenant.add_phone("ann", **write.fields)
    tenant.fail("status", method=write.method)
    kind, how = BROKEN_READS[broken]
    tenant.fail(kind, method="GET", path="phones/", after=1, **how)

    def meanwhile(request: Request) -> None:
        if request.method == write.method:
            tenant.phones[ann].update(write.change)

    tenant.on_request(meanwhile)
    result = run("--json", "--untag")
    assert (result.status, result.kinds[-1]) == (0, "changed")
    assert written_phones(tenant) == [ann]
    assert tenant.phones[ann].items() >= write.change.items()


@pytest.mark.parametrize("name", ["ann", "ANN", "a.miller"])
def test_a_server_that_ignores_the_question(
    tenant: Tenant, run: Run, name: str
) -> None:
    """It answers with everybody, a page of them: only those asked for are looked at."""
    tenant.add_user("ann", aliases=["A.Miller"])
    ids = [tenant.add_phone(user, name=STUCK) for user in ("bob", "ann", "cleo")]
    tenant.populate(400)
    fault = tenant.fail("ignore_names", path="users$", times=None)
    result = run("--json", name)
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == [ids[1]]
    assert (result.summary["users_seen"], result.summary["limbo"]) == (1, 1)
    assert fault.hits == 1


def test_a_name_that_nobody_bears_widens_nothing(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("bob", name=STUCK)
    tenant.fail("ignore_names", path="users$", times=None)
    result = run("--json", "bo")
    assert (result.status, result.kinds) == (1, ["unknown_user"])
    assert result.summary["users_seen"] == 0
    assert written_phones(tenant) == []


def test_each_spelling_of_a_name_is_answered_for(tenant: Tenant, run: Run) -> None:
    """Duo takes names that differ in case for one; a person may not."""
    phone = tenant.add_phone("straße", name=STUCK)
    names = ["nobody", "STRASSE", "Nobody", "straße", "NOBODY", "Nobody"]
    result = run("--json", *names)
    unknown = [each["user"] for each in result.events if "user" in each]
    assert unknown == ["nobody", "Nobody", "NOBODY"]
    assert result.err.count("error: ") == 3
    assert (result.status, result.summary["users_seen"]) == (1, 1)
    assert written_phones(tenant) == [phone]


# Listings


@pytest.mark.parametrize("times", [1, None])
def test_a_listing_that_ends_too_early(
    tenant: Tenant, run: Run, times: int | None
) -> None:
    """A phone that was not seen may be the one too many: nothing is written."""
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("ann", "bob")
    tenant.populate(898)
    tenant.fail("end_early", path="users$", times=times)
    result = run("--json")
    error, summary = result.err.splitlines()
    assert error.endswith(" error: Duo's listing ends before its total")
    assert "300 users, " in summary
    assert ", 2 in limbo: 1 failed; 1 request, " in summary
    assert (result.status, result.kinds) == (1, ["failed"])
    seen = [result.summary[each] for each in ("users_seen", "limbo", "requests")]
    assert seen == [300, 2, 1]
    assert written_phones(tenant) == []


LENGTHS: dict[str, Callable[[int], int]] = {
    "one less": lambda _: 299,
    "short": lambda _: 100,
    "growing": lambda offset: min(300, 40 + offset),
    "shrinking": lambda offset: max(50, 300 - offset),
    "up and down": lambda offset: 300 if offset % 2 else 151,
}


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_pages_of_other_lengths_than_asked(
    tenant: Tenant, run: Run, length: str, null: bool
) -> None:
    """Each user is seen once, wherever Duo chooses to go on."""
    tenant.populate(350)
    first = tenant.add_phone("ann")
    tenant.populate(350)
    last = tenant.add_phone("bob")
    tenant.last_offset_null = null

    def shorten(request: Request) -> None:
        if "offset" in request.params:
            offset = int(request.params["offset"])
            request.params["limit"] = str(LENGTHS[length](offset))

    tenant.on_request(shorten)
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.kinds == ["stamped", "stamped"]
    assert written_phones(tenant) == [first, last]
    assert result.summary["users_seen"] == 702
    assert result.summary["phones_seen"] == len(tenant.phones)


@pytest.mark.parametrize(
    "metadata",
    [MISSING, {}, {"next_offset": None}, {"total_objects": "1"}],
    ids=["none", "empty", "no next one", "total in text"],
)
@pytest.mark.parametrize("users", [(), ("ann",)])
def test_a_single_page_that_says_little_about_itself(
    tenant: Tenant, run: Run, metadata: Any, users: tuple[str, ...]
) -> None:
    phone = tenant.add_phone("ann", name=STUCK)
    page = [{"username": "ann", "phones": [tenant.phone(phone)]}]
    tenant.fail("answer", path="users$", response=page, metadata=metadata)
    result = run("--json", *users)
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == [phone]


@pytest.mark.parametrize("silent", [False, True])
def test_a_page_that_turns_out_not_to_be_needed(
    tenant: Tenant, run: Run, silent: bool
) -> None:
    """Most users go after the first page, so that it has named too many.

    The pages asked for on that account fail, while there is still work to do.
    """
    ids = [tenant.add_phone(f"u{number}", name=STUCK) for number in range(16)]
    tenant.populate(1484)
    tenant.slow(request=0.1 if silent else 0)
    asked, over = threading.Event(), threading.Event()

    def shrink(request: Request) -> None:
        if request.params.get("offset") == "0":
            with tenant.lock:
                for user_id in [*tenant.users][600:]:
                    del tenant.users[user_id]

    def refuse(request: Request) -> None:
        offset = int(request.params.get("offset", 0))
        if offset == 300:
            assert asked.wait(20)
        if offset >= 600:
            asked.set()
            if silent:
                over.wait(20)
            request.params["limit"] = "0"  # which is answered with 400

    tenant.after_request(shrink)
    tenant.on_request(refuse)
    try:
        result = run("--json", "--timeout", "0.4" if silent else "10")
    finally:
        over.set()
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == ids
    assert result.summary["users_seen"] == 600
    tries = Counter(each.params.get("offset") for each in tenant.requests)
    assert tries["600"] == (3 if silent else 1)


def test_a_walk_that_fails_at_once_has_no_counts(tenant: Tenant, run: Run) -> None:
    tenant.fail("status", status=403)
    result = run("-v")
    _error, summary = result.err.splitlines()
    assert " nothing was read: 1 failed; 1 request, " in summary
    assert summary.endswith(" s; exit status 1")
    assert " 0 " not in summary


# Every wait ends


def test_a_page_that_drips_in(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after ten times the time-out, though none of its waits is long."""
    monkeypatch.setattr(duo_phone_cleanup, "TRIES", 1)
    tenant.add_user("ann")  # whose record alone takes ten seconds
    tenant.fail("drip", path="users$", pause=0.02)
    began = time.monotonic()
    result = run("--timeout", "0.2")
    assert 2 <= time.monotonic() - began < 4
    line, summary = result.err.splitlines()
    why = f" error: no answer from {tenant.host}: no whole answer in ten time-outs"
    assert line.endswith(f"{why}: check --host (DUO_HOST), the network and HTTPS_PROXY")
    assert " nothing was read: 1 failed; 1 request, " in summary
    assert result.status == 1


def test_a_deletion_whose_answer_drips_in(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is then found done. (Its answer is too short to drip for long.)"""
    monkeypatch.setattr(duo_phone_cleanup, "EXCHANGE", 2)
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("drip", method="DELETE", pause=0.1)
    result = run("--json", "--timeout", "0.5")
    assert (result.status, result.err) == (0, "")
    assert result.kinds == ["deleting", "deleted"]
    assert written_phones(tenant) == [phone]
    assert len(tenant.requests) == 4  # the last one: another read


# Nobody starves


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


def test_a_deletion_that_was_refused_is_not_ours(tenant: Tenant, run: Run) -> None:
    """While a 429 is waited out, somebody else deletes the phone."""
    ann = tenant.add_phone("ann", name=STUCK)
    tenant.fail("status", status=429, method="DELETE")

    def delete(request: Request) -> None:
        if request.method == "DELETE":
            del tenant.phones[ann]

    tenant.on_request(delete)
    assert run("--json").kinds == ["deleting", "gone"]


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


# Connections


@pytest.mark.parametrize("kind", ["close_after", "connection_close"])
def test_a_server_that_closes_after_every_answer(
    tenant: Tenant, run: Run, kind: str
) -> None:
    """Whether it says so or not, all the work gets done."""
    tenant.populate(1000)
    fields = [write.fields for write in WRITES] * 4
    ids = [tenant.add_phone(f"u{n}", **each) for n, each in enumerate(fields)]
    tenant.fail(kind, times=None)
    result = run("--json", "--untag")
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == ids
    assert result.outcomes == ["stamped", "deleted", "untagged"] * 4
    assert_no_stale_write(tenant)


def test_no_connection_is_used_twice_after_a_failure(tenant: Tenant, run: Run) -> None:
    """The server may have closed the others as well, without a word."""
    tenant.populate(1000)
    for number in range(5):
        tenant.add_phone(f"u{number}", name=STUCK)
    tenant.fail("status", path="users$")
    assert run().status == 0
    used = [request.connection for request in tenant.requests]
    assert len(used) == 1 + 4 + 5 * 2
    assert len({*used}) == len(used)


def test_connections_are_kept_as_long_as_all_goes_well(
    tenant: Tenant, run: Run
) -> None:
    tenant.populate(1000)
    for number in range(5):
        tenant.add_phone(f"u{number}", name=STUCK)
    assert run().status == 0
    assert tenant.connections <= 4
    assert len(tenant.requests) == 4 + 5 * 2


@pytest.fixture
def _soon_idle(monkeypatch: pytest.MonkeyPatch, tenant: Tenant) -> None:
    """Servers close an idle connection soon, and the program knows it."""
    assert tenant.idle_seconds
    assert tenant.idle_seconds > duo_phone_cleanup.IDLE
    monkeypatch.setattr(duo_phone_cleanup, "IDLE", 0.2)
    tenant.idle_seconds = 0.4


@pytest.mark.usefixtures("_soon_idle")
def test_an_idle_connection_is_not_used_again(tenant: Tenant, run: Run) -> None:
    """One page takes long: what brought the others has been closed by then."""
    tenant.populate(1100)
    for user in ("ann", "bob", "cleo"):
        tenant.add_phone(user, name=STUCK)

    def linger(request: Request) -> None:
        if request.params.get("offset") == "300":
            time.sleep(0.6)

    tenant.after_request(linger)
    result = run("-vv")
    assert result.status == 0
    assert "this try" not in result.err
    assert "failed" not in result.err
    assert len(tenant.requests) == 4 + 3 * 2


# Deletions


@pytest.mark.parametrize("gone", [200, 204, 404])
@pytest.mark.parametrize("deleted", [200, 204])
def test_however_a_deletion_is_answered(
    tenant: Tenant, run: Run, deleted: int, gone: int
) -> None:
    """Of a phone that is there, and of one that somebody else has just deleted."""
    tenant.delete_status, tenant.gone_status = deleted, gone
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob", "cleo")]

    def meanwhile(request: Request) -> None:
        if (request.method, phone_of(request)) == ("DELETE", ids[1]):
            del tenant.phones[ids[1]]

    tenant.on_request(meanwhile)
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.outcomes == [
        "deleted",
        "gone" if gone == 404 else "deleted",
        "deleted",
    ]
    assert written_phones(tenant) == ids
    assert tenant.phones == {}
