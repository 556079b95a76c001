"""The journal: its JSON lines on standard output, and in a file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dateutil.parser import isoparse

import duo_phone_cleanup
from tests.simulation.tenant import Request, Tenant
from tests.support import (
    HOUR,
    LONG_AGO,
    MINUTE,
    NOW,
    SET_UP,
    STUCK,
    Run,
    add_outcomes,
    start,
    when,
    write_methods,
)

NOT_WRITTEN = "--journal (DUO_JOURNAL) cannot be written: "
"""How the error begins where the file can no longer be written."""
TOO_LARGE = f"{NOT_WRITTEN}File too large"
"""The error where the disk is full, as disk() has it."""
TAGGED = "2027-01-15T07:00:00Z"
"""The time that STUCK says."""
EVENTS = {
    "stamped",
    "deleting",
    "deleted",
    "untagged",
    "would_stamp",
    "would_delete",
    "would_untag",
    "declined",
    "changed",
    "gone",
    "failed",
    "unknown_user",
    "waiting",
    "named",
    "left",
}
"""Their names are an interface."""


def about(event: dict[str, Any]) -> dict[str, Any]:
    """What an event says of its phone, and of anything else."""
    assert isoparse(event["time"]).timestamp() == NOW
    assert event["time"].endswith("Z")
    rest = dict(event)
    del rest["event"]
    del rest["time"]
    return rest


# What the lines tell


def test_the_journal_of_a_run(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    for user in ("bob", "cleo", "eve"):
        tenant.change_user(user, last_login=NOW - HOUR)
    tenant.change_user("fay", last_login=10**18)  # beyond all years
    ids["failed"] = tenant.add_phone("hal", number="")
    tenant.fail("status", status=400, method="POST", path=ids["failed"], message="No")
    users = ("ann", "bob", "cleo", "dan", "eve", "fay", "gus", "hal", "nobody")
    result = run("--json", "--untag", "-v", *users)
    assert result.kinds == [
        "unknown_user",
        "named",
        "waiting",
        "stamped",
        "gone",
        "failed",
        "untagged",
        "deleting",
        "deleted",
        "changed",
    ]
    told = {each["event"]: about(each) for each in result.events}
    assert told["unknown_user"] == {"user": "nobody"}
    assert "No" in told["failed"].pop("error")
    assert told["changed"].pop("reason") == "set up since its tag"
    assert told["untagged"].pop("record")["phone_id"] == ids["untagged"]
    just_now = "2027-01-15T08:00:00Z"
    a_minute_ago = "2027-01-15T07:59:00Z"
    an_hour_ago = "2027-01-15T07:00:00Z"
    for event, number, user, tagged, last_login in (
        ("stamped", "+15550000000", "ann", just_now, None),
        ("deleted", "+15550000001", "bob", TAGGED, an_hour_ago),
        ("waiting", "+15550000002", "cleo", a_minute_ago, an_hour_ago),
        ("named", "+15550000003", "dan", None, None),
        ("untagged", "+15550000004", "eve", None, an_hour_ago),
        ("changed", "+15550000005", "fay", TAGGED, None),
        ("gone", "+15550000006", "gus", None, None),
        ("failed", "", "hal", None, None),
    ):
        assert told[event] == {
            "phone_id": ids[event],
            "number": number,
            "users": [user],
            "tagged": tagged,
            "last_login": last_login,
        }
    summary = told["summary"]
    assert summary["users_seen"] == summary["phones_seen"] == 8
    assert summary["requests"] == len(tenant.requests)
    assert summary["exit_status"] == result.status == 1
    assert 0 <= summary["seconds"] < 60


def test_each_event_is_told_and_counted(tenant: Tenant, run: Run) -> None:
    told = set()
    for argv in (
        ["--untag"],
        ["--dry-run", "--untag"],
        ["--max-deletions", "1"],
        ["--no-force", "ann", "nobody"],
    ):
        tenant.users.clear()
        tenant.phones.clear()
        add_outcomes(tenant)
        result = run("--json", "-v", *argv, stdin="n\n")
        told.update(result.kinds)
        for event in EVENTS:
            assert result.summary[event] == result.kinds.count(event)
    assert told == EVENTS
    assert {event.value.json for event in duo_phone_cleanup.Event} == EVENTS


def test_the_journal_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    result = run("--json", "--untag", "--dry-run")
    assert (result.status, result.err) == (0, "")
    assert [(each["event"], each["phone_id"]) for each in result.events[:-1]] == [
        ("named", ids["named"]),
        ("waiting", ids["waiting"]),
        ("would_stamp", ids["stamped"]),
        ("would_stamp", ids["gone"]),
        ("would_untag", ids["untagged"]),
        ("would_delete", ids["deleted"]),
        ("would_delete", ids["changed"]),
    ]
    told = about(result.events[5])
    record = told.pop("record")
    record.pop("users", None)
    phone = tenant.phones[ids["deleted"]]
    del phone["users"]
    assert record == phone
    assert told == {
        "phone_id": ids["deleted"],
        "number": "+15550000001",
        "users": ["bob"],
        "tagged": TAGGED,
        "last_login": None,
    }


def test_what_is_left_alone_is_journaled_with_v_only(tenant: Tenant, run: Run) -> None:
    """And without its record, of which every run would make a copy."""
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob", name="Bob's")
    tenant.add_phone("cleo", name=str(NOW - MINUTE))
    brief = run("--json", "--max-deletions", "0")
    assert brief.kinds == []
    verbose = run("--json", "-v", "--max-deletions", "0")
    assert verbose.kinds == ["named", "waiting", "left"]
    for event in verbose.events:
        assert "record" not in event


def test_the_record_is_in_the_journal_before_it_is_deleted(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """The record as it was just read, not as it was on the walk."""
    phone_id = tenant.add_phone("ann", "bob", name=STUCK)
    phone = tenant.phones[phone_id]
    journals: list[list[dict[str, Any]]] = []
    when(tenant, "GET", phone_id, lambda: phone.update(model="Nokia 3310"))
    when(tenant, "DELETE", phone_id, lambda: journals.append(lines(path)))
    assert run("--journal", str(path)).status == 0
    [[deleting]] = journals
    assert deleting["event"] == "deleting"
    told = about(deleting)
    record = told.pop("record")
    users = [user["username"] for user in record.pop("users")]
    del phone["users"]
    assert record == phone
    assert record["model"] == "Nokia 3310"
    assert users == told["users"] == ["ann", "bob"]
    assert (told["phone_id"], told["tagged"]) == (phone_id, TAGGED)


def test_untagged_carries_the_record_as_it_was_before(tenant: Tenant, run: Run) -> None:
    """So that the name can be written back; as it was just read, not on the walk."""
    phone_id = tenant.add_phone("ann", name=STUCK, **SET_UP)
    phone = tenant.phones[phone_id]
    when(tenant, "GET", phone_id, lambda: phone.update(model="Nokia 3310"))
    result = run("--json", "--untag")
    assert result.kinds == ["untagged"]
    assert phone["name"] == ""
    record = result.events[0]["record"]
    assert [user["username"] for user in record.pop("users")] == ["ann"]
    before = {**phone, "name": STUCK}
    del before["users"]
    assert record == before
    assert record["model"] == "Nokia 3310"


# What is written to the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is to be."""
    return tmp_path / "journal"


def lines(path: Path) -> list[dict[str, Any]]:
    """The events in a journal, of which every line must be whole."""
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def kinds(path: Path) -> list[str]:
    return [line["event"] for line in lines(path)]


def add_two(tenant: Tenant) -> None:
    """Add a phone to stamp and one to delete."""
    for name in ("", STUCK):
        tenant.add_phone("ann", name=name)


@contextlib.contextmanager
def disk() -> Iterator[Callable[[int], None]]:
    """Give a function that lets no file grow beyond so many bytes.

    To write more is an OSError then.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_new_file_is_its_owners_alone(tenant: Tenant, run: Run, path: Path) -> None:
    before = os.umask(0)
    try:
        assert run("--journal", str(path)).status == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_has_what_standard_output_has(
    tenant: Tenant, run: Run, path: Path
) -> None:
    add_two(tenant)
    tenant.add_phone("bob\n\u6f22\ud800", name="Bob's")
    tenant.add_phone("cleo", name=str(NOW - MINUTE))
    result = run("--json", "--journal", str(path), "-v")
    assert path.read_text() == result.out
    assert result.kinds == ["named", "waiting", "stamped", "deleting", "deleted"]


def test_the_file_comes_first_then_standard_output_then_the_log(
    tenant: Tenant, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them is stuck: what comes before it has been written."""
    phone_id = tenant.add_phone("ann", name=STUCK)
    written: list[str] = []

    class Stream(io.StringIO):
        """It notes what the file ends with when something is written to it."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.stream = name

        def write(self, text: str) -> int:
            if phone_id in text:
                *_, last = kinds(path)
                written.append(f"{self.stream} after {last}")
            return len(text)

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Stream(name))
    assert run("--json", "-v", "--journal", str(path)).status == 0
    assert written == [
        "stdout after deleting",
        "stdout after deleted",
        "stderr after deleted",
    ]


def test_deleting_is_on_the_disk_before_the_request(
    tenant: Tenant, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each try. No other line is waited for: a crash may lose it."""
    add_two(tenant)
    on_disk: list[list[str]] = [[]]
    at_writes: list[tuple[str, list[str], list[str]]] = []
    fsync = os.fsync

    def note_fsync(file: int) -> None:
        fsync(file)
        if os.path.samestat(os.fstat(file), path.stat()):
            on_disk.append(kinds(path))

    def look(request: Request) -> None:
        if request.method != "GET":
            at_writes.append((request.method, kinds(path), on_disk[-1]))

    monkeypatch.setattr(os, "fsync", note_fsync)
    tenant.on_request(look)
    tenant.fail("status", method="DELETE")
    assert run("--journal", str(path)).status == 0
    once = ["stamped", "deleting"]
    twice = [*once, "deleting"]
    assert at_writes == [
        ("POST", [], []),
        ("DELETE", once, once),
        ("DELETE", twice, twice),
    ]
    assert on_disk == [[], once, twice]
    assert kinds(path) == [*twice, "deleted", "summary"]


def test_a_new_file_is_found_again_after_a_crash(
    tenant: Tenant, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry in the folder is on the disk before anything is asked of Duo."""
    folders: list[int] = []
    fsync = os.fsync

    def note_fsync(file: int) -> None:
        fsync(file)
        if path.exists() and os.path.samestat(os.fstat(file), path.parent.stat()):
            folders.append(len(tenant.requests))

    monkeypatch.setattr(os, "fsync", note_fsync)
    tenant.add_phone("ann")
    assert run("--journal", str(path)).status == 0
    assert folders == [0]


def test_a_fifo_without_a_reader_is_a_usage_error(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """To open it only for writing would wait for ever."""
    os.mkfifo(path, 0o600)
    result = run("--journal", str(path))
    assert (result.status, tenant.requests) == (2, [])
    why = f"{path}: expected a regular file (--json serves a pipe)"
    assert f" error: --journal (DUO_JOURNAL): {why} (see --help)" in result.err


# Several runs at once


def test_several_runs_at_once_leave_whole_lines(tenant: Tenant, path: Path) -> None:
    """A run that is held up within a line may find an empty one behind it."""
    users = ["ann", "bob", "cleo"]
    for user in users:
        for _ in range(20):
            tenant.add_phone(user, name=LONG_AGO, model="x" * 3000)
    children = [start(tenant, "--journal", str(path), user) for user in users]
    for child in children:
        with child:
            assert child.communicate(timeout=60) == ("", "")
        assert child.returncode == 0
    events = [json.loads(line) for line in path.read_text().splitlines() if line]
    for user in users:
        told = [each["event"] for each in events if each.get("users") == [user]]
        assert told == 20 * ["deleting", "deleted"]
    assert [each["event"] for each in events].count("summary") == len(users)
    assert len(events) == len(users) * (20 * 2 + 1)


def test_another_runs_line_that_is_half_written_is_not_taken_for_torn(
    tenant: Tenant, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get an empty line behind it."""
    path.write_text('{"event": "of anoth')
    pread = os.pread

    def read_while_the_rest_is_written(file: int, size: int, at: int) -> bytes:
        data = pread(file, size, at)
        monkeypatch.setattr(os, "pread", pread)
        with path.open("a") as another:
            another.write('er"}\n')
        return data

    monkeypatch.setattr(os, "pread", read_while_the_rest_is_written)
    assert run("--journal", str(path)).status == 0
    assert kinds(path) == ["of another", "summary"]


# A file that can no longer be written


def test_a_disk_that_fills_up_within_a_line_and_is_mended(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """No later line is glued to the torn one."""
    tenant.add_phone("ann", name=STUCK)
    path.write_bytes(b"{}\n")
    with disk() as limit:
        limit(3 + 100)
        assert run("--journal", str(path)).status == 1
    assert len(path.read_bytes()) == 3 + 100
    assert run("--journal", str(path)).status == 0
    whole = path.read_bytes().splitlines()[2:]
    told = [json.loads(line)["event"] for line in whole]
    assert told == ["deleting", "deleted", "summary"]
    assert write_methods(tenant) == ["DELETE"]


def test_without_a_journal_nothing_more_is_written(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """The other outputs have what the file lacks, and say why the run has ended."""
    for _ in range(2):
        tenant.add_phone("ann", name=STUCK)
    with disk() as limit:
        limit(0)
        result = run("--journal", str(path), "--json", "-vv")
    assert result.status == 1
    assert path.read_bytes() == b""
    assert write_methods(tenant) == []
    assert result.kinds == ["deleting", "failed"]
    assert result.events[1]["error"] == TOO_LARGE
    assert " deleting: phone " in result.err
    assert f" error: {TOO_LARGE}\n" in result.err
    assert result.err.count(" error: ") == 1


def test_a_file_that_is_removed_while_a_phone_is_deleted(
    tenant: Tenant, run: Run, path: Path
) -> None:
    phone = tenant.add_phone("ann", name=STUCK)
    when(tenant, "DELETE", phone, path.unlink)
    result = run("--journal", str(path), "--json")
    assert result.kinds == ["deleting", "deleted", "failed"]
    assert result.events[2]["error"] == f"{NOT_WRITTEN}it has been removed"


def test_a_file_that_is_renamed_meanwhile_takes_the_rest(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """As logrotate does."""
    first = tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("ann", name=STUCK)
    renamed = path.with_suffix(".1")
    when(tenant, "DELETE", first, lambda: path.rename(renamed))
    assert run("--journal", str(path)).status == 0
    assert kinds(renamed) == 2 * ["deleting", "deleted"] + ["summary"]
    assert not path.exists()


def test_a_disk_that_is_full_when_a_deletion_is_tried_again(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """The first one may still be carried out: that is told, too."""
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("reset_before", method="DELETE")
    with disk() as limit:
        when(tenant, "DELETE", phone, lambda: limit(path.stat().st_size))
        result = run("--journal", str(path), "--json")
    assert result.status == 1
    assert write_methods(tenant) == ["DELETE"]
    assert kinds(path) == ["deleting"]
    assert result.kinds == ["deleting", "deleting", "failed", "failed"]
    unconfirmed, broken = result.events[2:4]
    assert unconfirmed["phone_id"] == phone
    assert unconfirmed["error"].endswith("it may still be carried out")
    assert broken["error"] == TOO_LARGE


def test_the_file_is_whole_where_the_reader_of_standard_output_leaves(
    tenant: Tenant, path: Path
) -> None:
    """It tells of each write that was made, and why the run has ended."""
    for name in (LONG_AGO, "", LONG_AGO):
        tenant.add_phone("ann", name=name)
    reader, writer = os.pipe()

    def leave(request: Request) -> None:
        if request.method == "DELETE":
            os.close(reader)

    tenant.on_request(leave)
    with start(tenant, "--json", "--journal", str(path), stdout=writer) as child:
        os.close(writer)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    error, summary = err.splitlines()
    assert error.endswith(" error: the reader of standard output has gone")
    assert summary.endswith("; exit status 1")
    assert kinds(path) == ["stamped", "deleting", "deleted", "failed", "summary"]
    assert write_methods(tenant) == ["POST", "DELETE"]
