"""The journal: its JSON lines on standard output, and in a file."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dateutil.parser import isoparse

from tests.simulation.tenant import MISSING, Record, Request, Tenant
from tests.support import (
    DAY,
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

NOT_WRITTEN = "--journal (DUO_JOURNAL) cannot be written: File too large"
"""The error where the disk is full, as full_disk() has it."""
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
    for user in ("bob", "cleo", "eve", "fay"):
        tenant.change_user(user, last_login=NOW - HOUR)
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
    an_hour_ago = "2027-01-15T07:00:00Z"
    assert told["untagged"].pop("record")["phone_id"] == ids["untagged"]
    for event, number, user, tagged, last_login in (
        ("stamped", "+15550000000", "ann", just_now, None),
        ("deleted", "+15550000001", "bob", TAGGED, an_hour_ago),
        ("waiting", "+15550000002", "cleo", a_minute_ago, an_hour_ago),
        ("named", "+15550000003", "dan", None, None),
        ("untagged", "+15550000004", "eve", None, an_hour_ago),
        ("changed", "+15550000005", "fay", TAGGED, an_hour_ago),
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
    for event in EVENTS:
        assert summary[event] == result.kinds.count(event)
    assert summary["users_seen"] == summary["phones_seen"] == 8
    assert summary["requests"] == len(tenant.requests)
    assert summary["exit_status"] == result.status
    assert 0 <= summary["seconds"] < 60


NEVER: Record = {"last_login": None}


@pytest.mark.parametrize(
    ("ann", "bob", "told"),
    [
        pytest.param(NEVER, NEVER, None, id="never"),
        pytest.param({"last_login": NOW}, NEVER, "2027-01-15T08:00:00Z", id="one"),
        pytest.param(
            {"last_login": NOW - DAY},
            {"last_login": NOW - HOUR},
            "2027-01-15T07:00:00Z",
            id="the latest",
        ),
        pytest.param({"last_login": MISSING}, NEVER, None, id="not told"),
        pytest.param({"last_login": "1800000000"}, NEVER, None, id="a text"),
        pytest.param({"last_login": True}, NEVER, None, id="a truth value"),
        pytest.param({"last_login": 10**18}, NEVER, None, id="beyond all years"),
    ],
)
@pytest.mark.parametrize("argv", [[], ["--dry-run"]], ids=["", "--dry-run"])
def test_when_a_phones_users_last_logged_in(
    *,
    tenant: Tenant,
    run: Run,
    ann: Record,
    bob: Record,
    told: str | None,
    argv: list[str],
) -> None:
    tenant.add_user("ann", **ann)
    tenant.add_user("bob", **bob)
    tenant.add_phone("ann", "bob", name=STUCK)
    result = run("--json", *argv)
    assert result.status == 0
    assert result.kinds
    for event in result.events[:-1]:
        assert event["last_login"] == told


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
        "last_login": None,
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
    assert {"waiting", "named"} <= set(run("--json", "-v").kinds)


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
    if before is None:
        assert not path.exists()
    else:
        assert path.read_bytes() == before
    assert write_methods(tenant) == []


@pytest.mark.parametrize("where", ["/dev/full", "/dev/stdout", "/none/journal", "/"])
def test_a_dry_run_does_not_even_open_it(tenant: Tenant, run: Run, where: str) -> None:
    result = run("--dry-run", "--journal", where)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        pytest.param(["-g", "soon"], {}, id="an option"),
        pytest.param(["--dryrun"], {}, id="an unknown option"),
        pytest.param([], {"DUO_MAX_DELETIONS": "few"}, id="a variable"),
        pytest.param([], {"DUO_SKEY": ""}, id="nothing of the key"),
        pytest.param(["--skey-file", "/none"], {}, id="two keys"),
        pytest.param([], {"HTTPS_PROXY": "socks://proxy"}, id="the proxy"),
    ],
)
def test_no_file_is_made_where_the_settings_are_wrong(
    tenant: Tenant,
    run: Run,
    path: Path,
    argv: list[str],
    variables: dict[str, Any],
) -> None:
    assert run("--journal", str(path), *argv, **variables).status == 2
    assert not path.exists()
    assert tenant.requests == []


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
    once = ["deleting"]
    twice = ["deleting", "deleting"]
    assert at_writes == [
        ("DELETE", once, once),
        ("DELETE", twice, twice),
        ("POST", [*twice, "deleted"], twice),
    ]
    assert on_disk == [[], once, twice]
    assert kinds(path) == [*twice, "deleted", "stamped", "summary"]


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


@pytest.mark.parametrize(
    ("mode", "warned"),
    [(0o600, False), (0o640, False), (0o660, False), (0o604, True), (0o644, True)],
)
def test_a_warning_if_others_can_read_it(
    *, tenant: Tenant, run: Run, path: Path, mode: int, warned: bool
) -> None:
    tenant.add_phone("ann")
    path.touch()
    path.chmod(mode)
    result = run("--journal", str(path))
    expected = ""
    if warned:
        expected = "warning: others can read the file of --journal (DUO_JOURNAL)\n"
    assert (result.status, result.err) == (0, expected)
    assert kinds(path) == ["stamped", "summary"]
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_several_runs_at_once_leave_whole_lines(tenant: Tenant, path: Path) -> None:
    """A run that sees half of another one's line may put an empty one behind it."""
    users = ["ann", "bob", "cleo"]
    for user in users:
        for _ in range(20):
            tenant.add_phone(user, name=LONG_AGO, model="x" * 3000)
    children = [start(tenant, "--journal", str(path), user) for user in users]
    for child in children:
        with child:
            assert child.communicate(timeout=60) == ("", "")
        assert child.returncode == 0
    text = path.read_text()
    assert text.endswith("\n")
    events = [json.loads(line) for line in text.splitlines() if line]
    for user in users:
        told = [each["event"] for each in events if each.get("users") == [user]]
        assert told == 20 * ["deleting", "deleted"]
    assert [each["event"] for each in events].count("summary") == len(users)
    assert len(events) == len(users) * (20 * 2 + 1)


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
    path.touch(0o600)
    path.write_bytes(b"{}\n")
    with full_disk(3 + room):
        result = run("--journal", str(path), "-v")
    assert result.status == 1
    error, summary = result.err.splitlines()
    assert error.endswith(f" error: {NOT_WRITTEN}")
    assert str(path) not in error
    assert " in limbo; " in summary, "it has a line of its own, and is no number"
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


# A file that cannot be opened


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("", "Is a directory"),
        ("none/journal", "No such file or directory"),
        ("file/journal", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_opened_is_a_usage_error(
    tenant: Tenant, run: Run, tmp_path: Path, where: str, why: str
) -> None:
    """It is named: a quoted ~, for one, is seen then."""
    (tmp_path / "file").touch()
    add_two(tenant)
    path = str(tmp_path / where)
    by_option = run("--journal", path)
    by_variable = run(DUO_JOURNAL=path)
    for result in (by_option, by_variable):
        assert (result.status, result.out) == (2, "")
        (line,) = result.err.splitlines()
        assert f" error: --journal (DUO_JOURNAL): {path}: {why} (see --help)" in line
    assert tenant.requests == []


@contextlib.contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Do without root's permissions, which make every file readable."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_file_of_another_account_is_a_usage_error(tenant: Tenant, run: Run) -> None:
    """As when root has made the journal, and now it is cron's turn."""
    tenant.ca_certs.parent.chmod(0o755)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "journal")
        path.touch(0o400)
        owner = path.owner()
        with as_an_ordinary_user():
            result = run("--journal", str(path))
    assert (result.status, result.out, tenant.requests) == (2, "", [])
    why = f"{path}: Permission denied (it belongs to {owner})"
    assert f" error: --journal (DUO_JOURNAL): {why} (see --help)" in result.err


# What is no regular file has no record that stays


def check_not_regular(err: str, path: str) -> None:
    (line,) = err.splitlines()
    why = f"{path}: expected a regular file (--json serves a pipe)"
    assert f" error: --journal (DUO_JOURNAL): {why} (see --help)" in line


def test_a_device_is_a_usage_error(tenant: Tenant, run: Run) -> None:
    add_two(tenant)
    for path in ("/dev/full", "/dev/null"):
        result = run("--journal", path)
        assert (result.status, result.out, tenant.requests) == (2, "", [])
        check_not_regular(result.err, path)


@pytest.mark.parametrize("with_reader", [False, True])
def test_a_fifo_is_a_usage_error(
    *, tenant: Tenant, run: Run, path: Path, with_reader: bool
) -> None:
    """Also where nobody reads it: then, opening it to write would wait for ever."""
    add_two(tenant)
    os.mkfifo(path, 0o600)
    with contextlib.ExitStack() as stack:
        if with_reader:
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, reader)
        result = run("--journal", str(path))
    assert (result.status, result.out, tenant.requests) == (2, "", [])
    check_not_regular(result.err, str(path))


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/stderr", "/dev/fd/1"])
def test_a_pipe_is_a_usage_error(tenant: Tenant, path: str) -> None:
    add_two(tenant)
    with start(tenant, "--journal", path) as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, tenant.requests) == (2, "", [])
    check_not_regular(err, path)


# A file that can no longer be written


@pytest.mark.parametrize(
    ("first", "written", "told"),
    [("stuck", [], "deleting"), ("begun", ["POST"], "stamped")],
)
@pytest.mark.parametrize("argv", [[], ["--json"]], ids=["", "--json"])
def test_without_a_journal_nothing_more_is_written(
    *,
    tenant: Tenant,
    run: Run,
    path: Path,
    argv: list[str],
    first: str,
    written: list[str],
    told: str,
) -> None:
    """A stamp is journaled when it is done: the first is the last."""
    add_two(tenant, first)
    with full_disk(0):
        result = run("--journal", str(path), *argv)
    assert result.status == 1
    assert path.read_bytes() == b""
    assert write_methods(tenant) == written
    error, summary = result.err.splitlines()
    assert error.endswith(f" error: {NOT_WRITTEN}")
    assert str(path) not in error
    assert "failed" not in summary, "it has a line of its own, and is no number"
    assert summary.endswith("; exit status 1")
    if argv:  # which says why the run has ended
        assert result.kinds == [told, "failed"]
        assert result.events[1]["error"] == NOT_WRITTEN
        assert result.summary["failed"] == 1
        assert result.summary["exit_status"] == 1


def test_the_log_has_a_write_that_the_journal_cannot_take(
    tenant: Tenant, run: Run, path: Path
) -> None:
    tenant.add_phone("ann")
    with full_disk(0):
        result = run("-v", "--journal", str(path))
    stamped, error, summary = result.err.splitlines()
    assert " stamped: " in stamped
    assert error.endswith(f" error: {NOT_WRITTEN}")
    assert ": 1 stamped; " in summary
    assert (result.status, path.read_bytes()) == (1, b"")


@contextlib.contextmanager
def disk_full_at_a_deletion(tenant: Tenant, path: Path) -> Iterator[None]:
    """Let files grow no more once a deletion has arrived."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(request: Request) -> None:
        if request.method == "DELETE":
            full = (path.stat().st_size, before[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, full)

    tenant.on_request(fill)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_when_a_phone_has_been_deleted(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """Standard output has the lines that the file does not."""
    add_two(tenant)
    with disk_full_at_a_deletion(tenant, path):
        result = run("--journal", str(path), "--json")
    assert result.status == 1
    assert write_methods(tenant) == ["DELETE"]
    assert kinds(path) == ["deleting"]
    assert result.kinds == ["deleting", "deleted", "failed"]
    assert result.events[2]["error"] == NOT_WRITTEN
    assert (result.summary["deleted"], result.summary["exit_status"]) == (1, 1)


def test_a_disk_that_is_full_when_a_deletion_is_tried_again(
    tenant: Tenant, run: Run, path: Path
) -> None:
    """The first one may still be carried out: that is told, too."""
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("reset_before", method="DELETE")
    with disk_full_at_a_deletion(tenant, path):
        result = run("--journal", str(path), "--json")
    assert result.status == 1
    assert write_methods(tenant) == ["DELETE"]
    assert kinds(path) == ["deleting"]
    assert result.kinds == ["deleting", "deleting", "failed", "failed"]
    unconfirmed, broken = result.events[2:4]
    assert unconfirmed["phone_id"] == phone
    assert unconfirmed["error"].endswith("it may still be carried out")
    assert broken["error"] == NOT_WRITTEN


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
    error, summary = err.splitlines()
    assert error.endswith(" error: the reader of standard output has gone")
    assert "failed" not in summary, "it has a line of its own, and is no number"
    assert kinds(path) == [*told, "failed", "summary"]
    assert write_methods(tenant) == written
    assert lines(path)[-1]["exit_status"] == 1
