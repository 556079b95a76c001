"""The journal: its JSON lines on standard output, and in a file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dateutil.parser import isoparse

from tests.simulation.tenant import Request, Tenant
from tests.support import (
    HOUR,
    MINUTE,
    NOW,
    STUCK,
    Run,
    add_outcomes,
    start,
    write_methods,
    writes,
)

TAGGED = "2027-01-15T07:00:00Z"
"""The time it says."""
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
    return {key: value for key, value in event.items() if key not in ("event", "time")}


# What the lines tell


def test_the_journal_of_a_run(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    ids["failed"] = tenant.add_phone("hal", number="")
    tenant.fail("status", status=400, method="POST", path=ids["failed"], message="No")
    users = ("ann", "bob", "cleo", "dan", "eve", "fay", "gus", "hal", "nobody")
    result = run("--json", "--untag", "-v", *users)
    assert result.status == 1
    events = {each["event"]: each for each in result.events}
    order = ["unknown_user", "stamped", "deleting", "deleted", "waiting", "named"]
    assert result.kinds == [*order, "untagged", "changed", "gone", "failed"]
    assert about(events["unknown_user"]) == {"user": "nobody"}
    told = {name: about(events[name]) for name in ids}
    tags = {name: told[name].pop("tagged") for name in told}
    assert isoparse(tags.pop("stamped") or TAGGED).timestamp() in (NOW, NOW - HOUR)
    assert isoparse(tags.pop("waiting")).timestamp() == NOW - MINUTE
    assert tags["deleted"] == TAGGED
    assert tags["named"] is tags["gone"] is tags["failed"] is None
    assert "No" in told["failed"].pop("error")
    for number, (name, phone_id) in enumerate(ids.items()):
        assert told[name] == {
            "phone_id": phone_id,
            "number": "" if name == "failed" else f"+1555000000{number}",
            "users": [users[number]],
        }
    summary = about(result.events[-1])
    assert {name: summary[name] for name in EVENTS} == {
        name: result.kinds.count(name) for name in EVENTS
    }
    assert summary["users_seen"] == summary["phones_seen"] == 8
    assert summary["requests"] == len(tenant.requests)
    assert summary["exit_status"] == result.status
    assert 0 <= summary["seconds"] < 60


def test_the_journal_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    result = run("--json", "--untag", "--dry-run")
    assert (result.status, result.err) == (0, "")
    kinds = ["would_stamp", "would_delete", "waiting", "named", "would_untag"]
    assert result.kinds == [*kinds, "would_delete", "would_stamp"]
    assert [each["phone_id"] for each in result.events[:-1]] == [*ids.values()]
    told = about(result.events[1])
    record = {**tenant.phones[ids["deleted"]], "users": None}
    assert {**told.pop("record"), "users": None} == record
    assert told == {
        "phone_id": ids["deleted"],
        "number": "+15550000001",
        "users": ["bob"],
        "tagged": TAGGED,
    }
    counts = Counter(result.kinds)
    assert {name: result.summary[name] for name in EVENTS} == {
        name: counts[name] for name in EVENTS
    }


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
    assert result.summary["waiting"] == result.summary["named"] == 1
    assert result.err == ""


def test_the_record_is_in_the_journal_before_it_is_deleted(
    tenant: Tenant, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record as it was just read, not as it was on the walk."""
    phone_id = tenant.add_phone("ann", "bob", name=STUCK)
    path = tmp_path / "journal"
    seen: list[tuple[str, Any]] = []

    def look(request: Request) -> None:
        seen.append((request.method, [*map(json.loads, path.read_text().splitlines())]))
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
    for name in [STUCK, ""] if first == "stuck" else ["", STUCK]:
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
    argv = ["--journal", str(path)] if way == "option" else []
    variables: dict[str, Any] = {} if argv else {"DUO_JOURNAL": str(path)}
    with umask(mask):
        result = run(*argv, **variables)
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
    assert kinds(path) == ["of somebody else", *["stamped", "summary"] * 3]
    assert path.stat().st_mode == mode


@pytest.mark.parametrize("verbose", [[], ["-v"]], ids=["", "-v"])
def test_the_file_has_what_standard_output_has(
    tenant: Tenant, run: Run, path: Path, verbose: list[str]
) -> None:
    add_two(tenant)
    tenant.add_phone("bob\n\u6f22\ud800", name="Bob's")
    tenant.add_phone("cleo", name=str(NOW - MINUTE))
    result = run("--json", "--journal", str(path), *verbose)
    assert result.status == 0
    assert path.read_text() == result.out
    more = ["named", "waiting"] if verbose else []
    assert kinds(path) == ["deleting", "deleted", "stamped", *more, "summary"]


@pytest.mark.parametrize("before", [None, b"", b"{}\n", b'{"event": "dele'])
@pytest.mark.parametrize("argv", [[], ["--json"]], ids=["", "--json"])
def test_a_dry_run_writes_nothing_to_it(
    tenant: Tenant, run: Run, path: Path, argv: list[str], before: bytes | None
) -> None:
    add_two(tenant)
    if before is not None:
        path.write_bytes(before)
    result = run("--dry-run", "--journal", str(path), *argv)
    assert (result.status, result.err) == (0, "")
    assert ("would_delete" if argv else "delete:") in result.out
    assert (path.read_bytes() if path.exists() else b"") == (before or b"")
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duo_phone_cleanup.PAUSE", 0)
        assert run("--journal", str(path)).status == 0
    assert seen == [
        ("DELETE", ["deleting"]),
        ("DELETE", ["deleting"] * 2),
        ("POST", ["deleting", "deleting", "deleted"]),
    ]
    assert flags
    assert all(each & os.O_DSYNC == os.O_DSYNC for each in flags)
    assert all(each & os.O_APPEND for each in flags)


# A last line that was torn


@pytest.mark.parametrize(
    ("before", "ended"),
    [
        (b"", False),
        (b"\n", False),
        (b"{}\n", False),
        (b'{"event": "deleting", "phone_', True),
        (b'{"event": "summary"}', True),
        (b"{}\n{}\n{", True),
        (b"x" * 100_000, True),
        ("zo\u00eb".encode()[:-1], True),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_torn_last_line_is_ended_first(
    tenant: Tenant, run: Run, path: Path, before: bytes, ended: bool
) -> None:
    tenant.add_phone("ann")
    path.write_bytes(before)
    assert run("--journal", str(path)).status == 0
    data = path.read_bytes()
    kept = before + b"\n" * ended
    assert data.startswith(kept)
    added = data[len(kept) :].splitlines()
    assert [json.loads(line)["event"] for line in added] == ["stamped", "summary"]


@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_disk_that_fills_up_and_is_mended(
    tenant: Tenant, run: Run, path: Path, room: int
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
    torn = 1 if room else 0
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
    for given in (["--journal", str(tmp_path / where)], []):
        variables: dict[str, Any] = (
            {} if given else {"DUO_JOURNAL": str(tmp_path / where)}
        )
        result = run(*argv, *given, **variables)
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


@pytest.mark.parametrize("first", ["stuck", "begun"])
@pytest.mark.parametrize("argv", [[], ["--json"]], ids=["", "--json"])
def test_without_a_journal_nothing_more_is_written(
    tenant: Tenant, run: Run, argv: list[str], first: str
) -> None:
    """A stamp is journaled when it is done: the first is the last."""
    add_two(tenant, first)
    result = run("--journal", "/dev/full", *argv)
    assert result.status == 1
    assert write_methods(tenant) == ["POST"] * (first == "begun")
    error, summary = result.err.splitlines()
    assert " error: --journal (DUO_JOURNAL) cannot be written: " in error
    assert "/dev/full" not in error
    assert " 1 failed; " in summary
    assert summary.endswith("; exit status 1")
    if argv:  # which says why the run has ended
        done = "stamped" if first == "begun" else "deleting"
        assert result.kinds == [done, "failed"]
        told = result.events[1]["error"]
        assert told.startswith("--journal (DUO_JOURNAL) cannot be written: ")
        assert result.summary["failed"] == result.summary["exit_status"] == 1


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


@pytest.mark.parametrize("leave_at", ["DELETE", "POST"])
def test_the_file_is_whole_where_standard_output_breaks(
    tenant: Tenant, path: Path, leave_at: str
) -> None:
    """It tells of each write that was made, and why the run has ended."""
    for name in ("1111111111", "", "1111111111", ""):
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
    stamped = ["stamped"] if leave_at == "POST" else []
    assert kinds(path) == ["deleting", "deleted", *stamped, "failed", "summary"]
    assert len(writes(tenant)) == 1 + len(stamped)
    assert lines(path)[-1]["exit_status"] == 1
