"""--dry-run: its table, its totals and its exit status."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.tenant import MISSING, Tenant
from tests.support import (
    DAY,
    DRY_RUN,
    HOUR,
    MINUTE,
    NOW,
    SCOPE,
    SET_UP,
    SHORT_GRACE,
    STUCK,
    Run,
    add_situations,
    writes,
)

SEE_KEPT = "To see the phones that are kept: -v"


def cells(table: list[str]) -> list[list[str]]:
    """Cut the lines of a table where its titles begin."""
    begin = [match.start() for match in re.finditer(r"\S+( \S+)*", table[0])]
    end = [*begin[1:], None]
    return [[line[a:b].strip() for a, b in zip(begin, end)] for line in table]


def table(tenant: Tenant, run: Run, *argv: str) -> list[list[str]]:
    """The cells of its head and rows, where no phone is kept."""
    result = run("--dry-run", *argv)
    assert (result.status, result.err) == (0, "")
    assert writes(tenant) == []
    return cells(result.out.splitlines()[3:-1])


def test_the_table_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    """With -v also the phones that are kept, and the ids; deletions come last."""
    ids = add_situations(tenant)
    tablet = tenant.add_phone("gus", "fay", name=STUCK, number="")
    future = tenant.add_phone("hal", name=str(NOW + HOUR))
    again = tenant.add_phone("ida", name=STUCK, last_seen="2027-01-15T07:30:00")
    finished = tenant.add_phone("jo", name=STUCK, **SET_UP)
    odd = tenant.add_phone("kim", name=STUCK, last_seen="soon")
    tenant.change_user("stuck", last_login=NOW - 3 * DAY)
    tenant.change_user("fay", last_login=NOW - 2 * HOUR)
    due = "delete: grace period over"
    kept = 'keep: named "Dan\'s spare"'
    to_come = "wait: tag in the future"
    in_use = "stamp: in use since its tag"
    set_up = "untag: set up since its tag"
    unreadable = "wait: last_seen unreadable"
    left = "wait: 1 minute left"
    untagged = "stamp: not tagged yet"
    expected = [
        ["A RUN WOULD", "TAGGED", "LAST LOGIN", "NUMBER", "PHONE ID", "USERS"],
        [kept, "", "never", "+15550000003", ids["named"], "named"],
        [to_come, "", "never", "+15550000006", future, "hal"],
        [unreadable, "1 hour", "never", "+15550000009", odd, "kim"],
        [left, "9 minutes", "never", "+15550000002", ids["young"], "young"],
        [untagged, "", "never", "+15550000000", ids["begun"], "begun"],
        [in_use, "1 hour", "never", "+15550000007", again, "ida"],
        [set_up, "1 hour", "never", "+15550000008", finished, "jo"],
        [due, "1 hour", "3 days ago", "+15550000001", ids["stuck"], "stuck"],
        [due, "1 hour", "2 hours ago", "", tablet, "gus, fay"],
    ]
    verbose = run("--dry-run", "--no-force", "--untag", "-v")
    assert cells(verbose.out.splitlines()[3:-1]) == expected
    brief = run("--dry-run", "--no-force", "--untag")
    assert brief.err == ""
    *rows, last = brief.out.splitlines()[3:]
    assert last == SEE_KEPT
    del expected[1]
    for row in expected:
        del row[4]
    assert cells(rows[:-1]) == expected
    for totals in (rows[-1], verbose.out.splitlines()[-1]):
        assert re.fullmatch(
            r"11 users, 10 phones, 8 in limbo: 2 to stamp, 2 to delete, "
            r"1 to untag, 3 waiting, 1 kept; 1 request, \d+\.\d s",
            totals,
        )
    assert (verbose.status, brief.status) == (0, 0)
    assert writes(tenant) == []


def test_users_are_shown_in_full(tenant: Tenant, run: Run) -> None:
    """They stand last, so that nothing has to be cut."""
    everybody = ["maximiliane.oberhuber@example.com", "x" * 300]
    everybody += [f"user{number}" for number in range(90)]
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone(*everybody, name=STUCK)
    _, *rows = table(tenant, run)
    assert [row[-1] for row in rows] == ["ann", ", ".join(everybody)]


def test_a_number_is_cut_to_keep_the_columns(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann", name=STUCK, number="+1" + "5" * 300)
    tenant.add_phone("bob", name=STUCK, number="+1\n2")
    _, *rows = table(tenant, run)
    assert [row[-2:] for row in rows] == [
        ["+1" + "5" * 15 + "...", "ann"],
        ["+1 2", "bob"],
    ]


@pytest.mark.parametrize(
    ("last_logins", "shown"),
    [
        pytest.param([None], "never", id="never"),
        pytest.param([MISSING], "never", id="missing"),
        pytest.param([NOW - 59], "59 seconds ago", id="just now"),
        pytest.param([NOW + HOUR], "0 seconds ago", id="by another clock"),
        pytest.param([0], f"{NOW // DAY} days ago", id="in 1970"),
        pytest.param([NOW - HOUR, NOW - DAY], "1 hour ago", id="the first"),
        pytest.param([NOW - DAY, None, NOW - HOUR], "1 hour ago", id="the last"),
        pytest.param([None, None], "never", id="neither"),
        pytest.param(["soon"], "never", id="no time"),
        pytest.param([10**30], "0 seconds ago", id="far too large"),
    ],
)
@pytest.mark.parametrize("named", [[], ["u0"]], ids=["all", "named"])
def test_the_last_login_is_the_latest_of_its_users(
    *, tenant: Tenant, run: Run, last_logins: list[Any], shown: str, named: list[str]
) -> None:
    """Also of those not asked for. A user who has logged in since is not stuck."""
    users = []
    for number, last_login in enumerate(last_logins):
        users.append(f"u{number}")
        tenant.add_user(f"u{number}", last_login=last_login)
    tenant.add_phone(*users, name=STUCK)
    head, row = table(tenant, run, *named)
    assert (head[2], row[2]) == ("LAST LOGIN", shown)


def test_ages_are_told_in_their_largest_unit(tenant: Tenant, run: Run) -> None:
    ages = {
        "0 seconds": 0,
        "1 second": 1,
        "59 seconds": 59,
        "1 minute": MINUTE,
        "25 minutes": 26 * MINUTE - 1,
        "1 hour": 2 * HOUR - 1,
        "23 hours": DAY - 1,
        "1 day": DAY,
        "3 days": 3 * DAY + 5 * HOUR,
        "1095 days": 3 * 365 * DAY + 1,
    }
    for age, passed in ages.items():
        tenant.add_phone(age, name=str(NOW - passed))
    _, *rows = table(tenant, run)
    assert {row[-1]: row[1] for row in rows} == {age: age for age in ages}


@pytest.mark.parametrize(
    ("last_seen", "left"),
    [(None, "wait: 0 seconds left"), ("soon", "wait: last_seen unreadable")],
)
def test_a_phone_that_is_due_when_the_table_is_told(
    tenant: Tenant, run: Run, last_seen: str | None, left: str
) -> None:
    tenant.add_phone("ann", name=str(NOW - 9 * MINUTE), last_seen=last_seen)
    times = iter([NOW])
    result = run("-n", now=lambda: next(times, NOW + HOUR))
    assert result.status == 0
    assert left in result.out


@pytest.mark.parametrize("argv", [[], ["named", "done"]], ids=["all", "named"])
def test_an_empty_dry_run_has_no_table(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("named", name="Dan's spare")
    tenant.add_phone("done", name="iPhone", **SET_UP)
    result = run("--dry-run", *argv)
    *head, totals, last = result.out.splitlines()
    assert (result.status, result.err) == (0, "")
    assert head == [DRY_RUN, f"{tenant.host}: {SCOPE}", SHORT_GRACE]
    assert totals.startswith("2 users, 2 phones, 1 in limbo: 1 kept; ")
    assert last == SEE_KEPT


def test_a_dry_run_says_what_the_run_then_does(tenant: Tenant, run: Run) -> None:
    add_situations(tenant)
    tenant.add_phone("jo", name=STUCK, **SET_UP)
    foretold = run("--dry-run", "--untag", "--json", "-v").events[:-1]
    assert writes(tenant) == []
    done = run("--untag", "--json", "-v").events[:-1]
    became = {
        "would_stamp": "stamped",
        "would_delete": "deleted",
        "would_untag": "untagged",
    }
    expected = [(became.get(e["event"], e["event"]), e["phone_id"]) for e in foretold]
    happened = [(e["event"], e["phone_id"]) for e in done if e["event"] != "deleting"]
    assert happened == expected
    assert len(happened) == 5


# What it begins with


@pytest.mark.parametrize(
    ("argv", "scope", "warned"),
    [
        ("", SCOPE, True),
        ("-g 0", "grace period 0 minutes, deletion limit 100 users", True),
        ("-g 1", "grace period 1 minute, deletion limit 100 users", True),
        ("-g 16", "grace period 16 minutes, deletion limit 100 users", True),
        ("-g 17", "grace period 17 minutes, deletion limit 100 users", False),
        ("--max-deletions none", "grace period 10 minutes, deletion limit none", True),
        ("--max-deletions 1", "grace period 10 minutes, deletion limit 1 user", True),
        ("bob Ann", SCOPE, True),
    ],
)
def test_a_dry_run_and_the_prompts_begin_with_tenant_and_settings(
    tenant: Tenant, run: Run, argv: str, scope: str, warned: bool
) -> None:
    """The dry run also with a grace period shorter than Duo's own setup takes.

    The tenant's port is shown: it is not 443.
    """
    tenant.add_phone("ann")
    tenant.add_user("bob")
    expected = [DRY_RUN, f"{tenant.host}: {scope}"]
    if warned:
        expected.append(SHORT_GRACE)
    words = argv.split()
    lines = run("--dry-run", *words).out.splitlines()
    assert lines[: len(expected)] == expected
    assert lines[len(expected)].startswith("A RUN WOULD ")
    shown, question = run("--no-force", *words, stdin="n\n").err.splitlines()
    assert shown == f"{tenant.host}: {scope}"
    assert question.startswith("1 of 1: ")


@pytest.mark.parametrize("port", ["", ":443"])
def test_port_443_goes_without_saying(run: Run, port: str) -> None:
    """The proxy lets nobody through: this comes before the first request."""
    host = f"duo.example.com{port}"
    result = run("--dry-run", "--host", host, HTTPS_PROXY="http://127.0.0.1:1")
    assert result.out.splitlines()[1] == f"duo.example.com: {SCOPE}"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        pytest.param(["--no-force"], "Ann's", id="nothing to ask"),
        pytest.param(["--force"], "", id="a run"),
        pytest.param(["-n", "--json"], "", id="JSON lines of a dry run"),
    ],
)
def test_else_nothing_is_said_of_the_settings(
    tenant: Tenant, run: Run, argv: list[str], name: str
) -> None:
    tenant.add_phone("ann", name=name)
    result = run(*argv)
    assert result.status == 0
    assert "grace period" not in result.out + result.err


# Its exit status


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("missing/journal", "its folder is missing", id="missing folder"),
        pytest.param("readable", "Permission denied", id="no permission"),
        pytest.param("closed/journal", "Permission denied", id="closed folder"),
        pytest.param("/dev/null", "expected a regular file", id="a device"),
    ],
)
def test_a_dry_run_ends_as_the_run_would_without_its_journal(
    tenant: Tenant, run: Run, path: str, why: str
) -> None:
    """Before any request, and without making it."""
    tenant.ca_certs.parent.chmod(0o755)
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "readable").touch(0o444)
        (folder / "closed").mkdir(0o555)
        before = sorted(folder.rglob("*"))
        journal = folder / path
        if root:  # who can open every file
            os.setresuid(65534, 65534, 0)
        try:
            dry = run("--dry-run", "--journal", str(journal))
            wet = run("--journal", str(journal))
        finally:
            if root:
                os.setresuid(0, 0, 0)
        assert sorted(folder.rglob("*")) == before
    assert (dry.status, dry.out) == (2, "")
    assert f" error: --journal (DUO_JOURNAL): {journal}: {why}" in dry.err
    assert dry == wet
    assert tenant.requests == []
