"""The journal: its JSON lines on standard output, and in a file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dateutil.parser import isoparse

from tests.simulation.tenant import Request, Tenant
from tests.support import (
    LONG_AGO,
    MINUTE,
    NOW,
    STUCK,
    Run,
    add_outcomes,
    start,
    write_methods,
)

TAGGED = "2027-01-15T07:00:00Z"
"""The time that STUCK says."""
EVENTS = [
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
]


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
    ids["failed"] = tenant.add_phone("hal", number="")
    tenant.fail("status", status=400, method="POST", path=ids["failed"], message="No")
    users = ("ann", "bob", "cleo", "dan", "eve", "fay", "gus", "hal", "nobody")
    result = run("--json", "--untag", "-v", *users)
    assert result.status == 1
    assert result.kinds == [
        "unknown_user",
        "stamped",
        "deleting",
        "deleted",
        "waiting",
        "named",
        "untagged",
        "changed",
        "gone",
        "failed",
    ]
    told = {each["event"]: about(each) for each in result.events}
    assert told["unknown_user"] == {"user": "nobody"}
    assert "No" in told["failed"].pop("error")
    just_now = "2027-01-15T08:00:00Z"
    a_minute_ago = "2027-01-15T07:59:00Z"
    for event, number, user, tagged in (
        ("stamped", "+15550000000", "ann", just_now),
        ("deleted", "+15550000001", "bob", TAGGED),
        ("waiting", "+15550000002", "cleo", a_minute_ago),
        ("named", "+15550000003", "dan", None),
        ("untagged", "+15550000004", "eve", None),
        ("changed", "+15550000005", "fay", TAGGED),
        ("gone", "+15550000006", "gus", None),
        ("failed", "", "hal", None),
    ):
        assert told[event] == {
            "phone_id": ids[event],
            "number": number,
            "users": [user],
            "tagged": tagged,
        }
    summary = told["summary"]
    for event in EVENTS:
        assert summary[event] == result.kinds.count(event)
    assert summary["users_seen"] == summary["phones_seen"] == 8
    assert summary["requests"] == len(tenant.requests)
    assert summary["exit_status"] == result.status
    assert 0 <= summary["seconds"] < 60


def test_the_journal_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    result = run("--json", "--untag", "--dry-run")
    assert (result.status, result.err) == (0, "")
    assert result.kinds == [
        "would_stamp",
        "would_delete",
        "waiting",
        "named",
        "would_untag",
        "would_delete",
        "would_stamp",
    ]
    assert [each["phone_id"] for each in result.events[:-1]] == [*ids.values()]
    told = about(result.events[1])
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
    }
    for event in EVENTS:
        assert result.summary[event] == result.kinds.count(event)


def test_the_journal_is_told_of_a_no(tenant: Tenant, run: Run) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK)
    result = run("--json", "--no-force", stdin="n\n")
    assert result.kinds == ["declined"]
    assert result.summary["declined"] == 1
    told = about(result.events[0])
    assert (told["phone_id"], told["tagged"]) == (phone_id, TAGGED)


def test_what_is_left_alone_is_journaled_with_v_only(tenant: Tenant, run: Run) -> None:
    add_outcomes(tenant)
    result = run("--json")
    assert result.kinds == ["stamped", "deleting", "deleted", "changed", "gone"]
    assert result.summary["waiting"] == 1
    assert result.summary["named"] == 1
    assert result.err == ""


def test_the_record_is_in_the_journal_before_it_is_deleted(
    tenant: Tenant, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record as it was just read, not as it was on the walk."""
    phone_id = tenant.add_phone("ann", "bob", name=STUCK)
    path = tmp_path / "journal"
    seen: list[tuple[str, Any]] = []

    def look(request: Request) -> None:
        seen.append((request.method, lines(path)))
        if request.path.endswith(phone_id) and request.method == "GET":
            tenant.phones[phone_id].update(model="Nokia 3310", extension="42")

    tenant.on_request(look)
    with path.open("w") as journal:
        monkeypatch.setattr(sys, "stdout", journal)
        phone = tenant.phones[phone_id]
        assert run("--json").status == 0
    assert [(method, len(lines)) for method, lines in seen] == [
        ("GET", 0),
        ("GET", 0),
        ("DELETE", 1),
    ]
    (deleting,) = seen[-1][1]
    assert deleting["event"] == "deleting"
    told = about(deleting)
    record = told.pop("record")
    users = [user["username"] for user in record.pop("users")]
    assert record == {k: v for k, v in phone.items() if k != "users"}
    assert record["model"] == "Nokia 3310"
    assert users == told["users"] == ["ann", "bob"]
    assert (told["phone_id"], told["tagged"]) == (phone_id, TAGGED)


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


def add_two(tenant: Tenant, first: str = "stuck") -> None:
    """Add a phone to delete and one to stamp; or the other way round."""
    names = [STUCK, ""]
    if first == "begun":
        names.reverse()
    for name in names:
        tenant.add_phone("ann", name=name)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: to write more is an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o007, 0o022, 0o077], ids=oct)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_file_is_its_owners_alone(
    tenant: Tenant, run: Run, path: Path, mask: int, way: str
) -> None:
    add_two(tenant)
    with umask(mask):
        if way == "option":
            result = run("--journal", str(path))
        else:
            result = run(DUO_JOURNAL=str(path))
    assert (result.status, result.out, result.err) == (0, "", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kinds(path) == ["deleting", "deleted", "stamped", "summary"]
    assert lines(path)[0]["record"]["name"] == STUCK


def test_runs_are_appended(tenant: Tenant, run: Run, path: Path) -> None:
    path.write_text('{"event": "of somebody else"}\n')
    mode = path.stat().st_mode
    written = [path.read_text()]
    for _ in range(3):
        tenant.add_phone("ann")
        assert run("--journal", str(path)).status == 0
        assert path.read_text().startswith(written[-1])
        written.append(path.read_text())
    runs = 3 * ["stamped", "summary"]
    assert kinds(path) == ["of somebody else", *runs]
    assert path.stat().st_mode == mode


@pytest.mark.parametrize(
    ("verbose", "left_alone"),
    [
        pytest.param([], [], id="without -v"),
        pytest.param(["-v"], ["named", "waiting"], id="with -v"),
    ],
)
def test_the_file_has_what_standard_output_has(
    tenant: Tenant, run: Run, path: Path, verbose: list[str], left_alone: list[str]
) -> None:
    add_two(tenant)
    tenant.add_phone("bob\n\u6f22\ud800", name="Bob's")
    tenant.add_phone("cleo", name=str(NOW - MINUTE))
    result = run("--json", "--journal", str(path), *verbose)
    assert result.status == 0
    assert path.read_text() == result.out
    assert kinds(path) == ["deleting", "deleted", "stamped", *left_alone, "summary"]


@pytest.mark.parametrize("before", [None, b"", b"{}\n", b'{"event": "dele'])
@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        pytest.param([], "delete:", id="the table"),
        pytest.param(["--json"], "would_delete", id="JSON lines"),
    ],
)
def test_a_dry_run_writes_nothing_to_it(
    *,
    tenant: Tenant,
    run: Run,
    path: Path,
    argv: list[str],
    shown: str,
    before: bytes | None,
) -> None:
    add_two(tenant)
    if before is not None:
        path.write_bytes(before)
    result = run("--dry-run", "--journal", str(path), *argv)
    assert (result.status, result.err) == (0, "")
    assert shown in result.out
    if before is not None:
        assert path.read_bytes() == before
    elif path.exists():
        assert path.read_bytes() == b""
    assert write_methods(tenant) == []
    assert run("--dry-run", "--journal", "/dev/full", *argv).status == 0


def test_deleting_is_on_the_disk_before_the_request(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """Once for each try; O_DSYNC: a write returns when it is on the disk."""
    add_two(tenant)
    seen: list[tuple[str, list[str]]] = []
    flags: list[int] = []

    def look(request: Request) -> None:
        if request.method != "GET":
            seen.append((request.method, kinds(path)))
        for each in range(3, 1024):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(each), path.stat()):
                    flags.append(fcntl.fcntl(each, fcntl.F_GETFL))

    tenant.on_request(look)
    tenant.fail("status", method="DELETE")
    assert run("--journal", str(path)).status == 0
    assert seen == [
        ("DELETE", ["deleting"]),
        ("DELETE", ["deleting", "deleting"]),
        ("POST", ["deleting", "deleting", "deleted"]),
    ]
    assert flags
    assert all(each & os.O_DSYNC == os.O_DSYNC for each in flags)
    assert all(each & os.O_APPEND for each in flags)


# A last line that was torn


@pytest.mark.parametrize(
    ("before", "end"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"\n", b"", id="an empty line"),
        pytest.param(b"{}\n", b"", id="a whole line"),
        pytest.param(b'{"event": "deleting", "phone_', b"\n", id="torn"),
        pytest.param(b'{"event": "summary"}', b"\n", id="only its end is missing"),
        pytest.param(b"{}\n{}\n{", b"\n", id="torn after whole lines"),
        pytest.param(b"x" * 100_000, b"\n", id="long"),
        pytest.param(b"zo\xc3", b"\n", id="torn within a character"),
    ],
)
def test_a_torn_last_line_is_ended_first(
    tenant: Tenant, run: Run, path: Path, before: bytes, end: bytes
) -> None:
    tenant.add_phone("ann")
    path.write_bytes(before)
    assert run("--journal", str(path)).status == 0
    data = path.read_bytes()
    kept = before + end
    assert data.startswith(kept)
    added = data[len(kept) :].splitlines()
    assert [json.loads(line)["event"] for line in added] == ["stamped", "summary"]


@pytest.mark.parametrize(("room", "torn"), [(0, 0), (1, 1), (100, 1), (250, 1)])
def test_a_disk_that_fills_up_and_is_mended(
    tenant: Tenant, run: Run, path: Path, room: int, torn: int
) -> None:
    """Nothing more is written to Duo; and no later line is glued to the torn one."""
    add_two(tenant)
    path.write_bytes(b"{}\n")
    with full_disk(3 + room):
        result = run("--journal", str(path), "-v")
    assert result.status == 1
    error, summary = result.err.splitlines()
    assert " error: --journal (DUO_JOURNAL) cannot be written: " in error
    assert str(path) not in error
    assert " 1 failed; " in summary
    assert write_methods(tenant) == []
    assert len(path.read_bytes()) == 3 + room
    assert run("--journal", str(path)).status == 0
    whole = path.read_bytes().splitlines()[1 + torn :]
    assert [json.loads(line)["event"] for line in whole] == [
        "deleting",
        "deleted",
        "stamped",
        "summary",
    ]
    assert sorted(write_methods(tenant)) == ["DELETE", "POST"]


# A file that cannot be opened, or not be written


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("", "Is a directory"),
        ("none/journal", "No such file or directory"),
        ("file/journal", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("argv", [[], ["--dry-run"]], ids=["", "--dry-run"])
def test_a_file_that_cannot_be_opened_is_a_usage_error(
    tenant: Tenant, run: Run, tmp_path: Path, where: str, why: str, argv: list[str]
) -> None:
    (tmp_path / "file").touch()
    add_two(tenant)
    path = str(tmp_path / where)
    by_option = run(*argv, "--journal", path)
    by_variable = run(*argv, DUO_JOURNAL=path)
    for result in (by_option, by_variable):
        assert (result.status, result.out) == (2, "")
        (line,) = result.err.splitlines()
        assert f" error: --journal (DUO_JOURNAL): {why}" in line
        assert str(tmp_path) not in line
    assert tenant.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write every file")
def test_a_file_without_permission_to_write_it(
    tenant: Tenant, run: Run, path: Path
) -> None:
    path.touch(0o400)
    result = run("--journal", str(path))
    assert (result.status, tenant.requests) == (2, [])


@pytest.mark.parametrize(
    ("first", "written", "told"),
    [("stuck", [], "deleting"), ("begun", ["POST"], "stamped")],
)
@pytest.mark.parametrize("argv", [[], ["--json"]], ids=["", "--json"])
def test_without_a_journal_nothing_more_is_written(
    *,
    tenant: Tenant,
    run: Run,
    argv: list[str],
    first: str,
    written: list[str],
    told: str,
) -> None:
    """A stamp is journaled when it is done: the first is the last."""
    add_two(tenant, first)
    result = run("--journal", "/dev/full", *argv)
    assert result.status == 1
    assert write_methods(tenant) == written
    error, summary = result.err.splitlines()
    assert " error: --journal (DUO_JOURNAL) cannot be written: " in error
    assert "/dev/full" not in error
    assert " 1 failed; " in summary
    assert summary.endswith("; exit status 1")
    if argv:  # which says why the run has ended
        assert result.kinds == [told, "failed"]
        why = result.events[1]["error"]
        assert why.startswith("--journal (DUO_JOURNAL) cannot be written: ")
        assert result.summary["failed"] == 1
        assert result.summary["exit_status"] == 1


def test_a_journal_that_cannot_take_its_last_line(
    tenant: Tenant, run: Run, path: Path
) -> None:
    tenant.add_phone("ann")
    assert run("--journal", str(path)).status == 0
    room = path.stat().st_size - 5
    path.unlink()
    tenant.add_phone("ann")
    tenant.phones.pop(next(iter(tenant.phones)))
    with full_disk(room):
        result = run("--journal", str(path))
    assert result.status == 1
    error, summary = result.err.splitlines()
    assert " error: " in error
    assert summary.endswith("; exit status 1")
    assert len(path.read_bytes()) == room


@pytest.mark.parametrize(
    ("leave_at", "written", "told"),
    [
        ("DELETE", ["DELETE"], ["deleting", "deleted"]),
        ("POST", ["DELETE", "POST"], ["deleting", "deleted", "stamped"]),
    ],
)
def test_the_file_is_whole_where_standard_output_breaks(
    tenant: Tenant, path: Path, leave_at: str, written: list[str], told: list[str]
) -> None:
    """It tells of each write that was made, and why the run has ended."""
    for name in (LONG_AGO, "", LONG_AGO, ""):
        tenant.add_phone("ann", name=name)
    reader, writer = os.pipe()

    def leave(request: Request) -> None:
        if request.method == leave_at:
            os.close(reader)

    tenant.on_request(leave)
    with start(tenant, "--json", "--journal", str(path), stdout=writer) as child:
        os.close(writer)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert " error: standard output cannot be written: " in err
    assert kinds(path) == [*told, "failed", "summary"]
    assert write_methods(tenant) == written
    assert lines(path)[-1]["exit_status"] == 1
