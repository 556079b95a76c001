"""The journal in a file: --journal. What its lines say is in test_output.py."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.tenant import Request, Tenant
from tests.support import MINUTE, NOW, STUCK, Run, start, write_methods, writes


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


# What is written


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


# A line that was torn


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
        *("deleting", "deleted", "stamped", "summary")
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
