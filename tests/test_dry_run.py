"""--dry-run: its table, its totals and its exit status."""

from __future__ import annotations

import fcntl
import re
import struct
import termios
from typing import Any

import pytest

from tests.simulation.tenant import MISSING, Record, Tenant
from tests.support import (
    DAY,
    HOUR,
    LONG_AGO,
    MINUTE,
    NOW,
    SCOPE,
    SET_UP,
    SHORT_GRACE,
    STUCK,
    Run,
    Terminal,
    add_situations,
    start,
    writes,
)

WIDE = "\u6f22\u5b57\U0001f4f1\uff37"
"""Characters that take two columns of a terminal."""


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return len(text) + len([each for each in text if each in WIDE])


def cells(table: list[str]) -> list[list[str]]:
    """Cut the lines of a table where its titles begin."""
    begin = [match.start() for match in re.finditer(r"\S+( \S+)*", table[0])]
    end = [*begin[1:], None]
    return [[line[a:b].strip() for a, b in zip(begin, end)] for line in table]


def test_the_table_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    """With -v also the phones that are kept, and the ids."""
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
        ["USERS", "NUMBER", "TAGGED", "LAST LOGIN", "A RUN WOULD", "PHONE ID"],
        ["begun", "+15550000000", "", "never", untagged, ids["begun"]],
        ["stuck", "+15550000001", "1 hour", "3 days ago", due, ids["stuck"]],
        ["young", "+15550000002", "9 minutes", "never", left, ids["young"]],
        ["named", "+15550000003", "", "never", kept, ids["named"]],
        ["gus, fay", "", "1 hour", "2 hours ago", due, tablet],
        ["hal", "+15550000006", "", "never", to_come, future],
        ["ida", "+15550000007", "1 hour", "never", in_use, again],
        ["jo", "+15550000008", "1 hour", "never", set_up, finished],
        ["kim", "+15550000009", "1 hour", "never", unreadable, odd],
    ]
    verbose = run("--dry-run", "--no-force", "--untag", "-v")
    brief = run("--dry-run", "--no-force", "--untag")
    assert brief.err == ""
    assert cells(verbose.out.splitlines()[2:-1]) == expected
    expected = [row[:5] for row in expected if row[0] != "named"]
    assert cells(brief.out.splitlines()[2:-1]) == expected
    for result in (verbose, brief):
        assert result.status == 0
        assert result.out.splitlines()[:2] == [SCOPE, SHORT_GRACE]
        assert re.fullmatch(
            r"11 users, 10 phones, 8 in limbo: 2 to stamp, 2 to delete, "
            r"1 to untag, 3 waiting, 1 kept; 1 request, \d+\.\d s",
            result.out.splitlines()[-1],
        )
    assert writes(tenant) == []


def table(tenant: Tenant, run: Run, *argv: str) -> list[str]:
    """Its head and rows."""
    result = run("--dry-run", "--untag", *argv)
    assert result.status == 0
    return result.out.splitlines()[2:-1]


# Who can log in


@pytest.mark.parametrize(
    ("last_logins", "shown"),
    [
        pytest.param([None], "never", id="never"),
        pytest.param([MISSING], "never", id="missing"),
        pytest.param([NOW - 59], "59 seconds ago", id="just now"),
        pytest.param([NOW - 90 * DAY], "90 days ago", id="long ago"),
        pytest.param([NOW + HOUR], "0 seconds ago", id="by another clock"),
        pytest.param([0], f"{NOW // DAY} days ago", id="in 1970"),
        pytest.param([None, NOW - DAY], "1 day ago", id="one of two"),
        pytest.param([NOW - HOUR, NOW - DAY], "1 hour ago", id="the first"),
        pytest.param([NOW - DAY, None, NOW - HOUR], "1 hour ago", id="the last"),
        pytest.param([None, None], "never", id="neither"),
        pytest.param(["soon"], "never", id="no time"),
        pytest.param([10**30], "0 seconds ago", id="far too large"),
    ],
)
def test_the_last_login_is_the_latest_of_its_users(
    tenant: Tenant, run: Run, last_logins: list[Any], shown: str
) -> None:
    """A user who has logged in since is not stuck."""
    users = []
    for number, last_login in enumerate(last_logins):
        users.append(f"u{number}")
        tenant.add_user(f"u{number}", last_login=last_login)
    tenant.add_phone(*users, name=STUCK)
    head, row = cells(table(tenant, run))
    assert head[3] == "LAST LOGIN"
    assert row[3] == shown


@pytest.mark.parametrize("named", ["ann", "bob"])
def test_the_last_login_of_a_named_users_phone_may_be_anothers(
    tenant: Tenant, run: Run, named: str
) -> None:
    tenant.add_user("ann")
    tenant.add_user("bob", last_login=NOW - HOUR)
    tenant.add_phone("ann", "bob", name=STUCK)
    _, row = cells(table(tenant, run, named))
    assert row[3] == "1 hour ago"


# Its width


def add_all_kinds(tenant: Tenant, user: str) -> int:
    """Give a user a phone for each thing that may be done, and count them.

    The user has just logged in, which takes the most columns to say.
    """
    records: list[Record] = [
        {},
        {"name": STUCK},
        {"name": str(NOW - 9 * MINUTE)},
        {"name": STUCK, "last_seen": NOW},
        {"name": STUCK, **SET_UP},
        {"name": STUCK, "last_seen": "soon"},
        {"name": str(NOW + HOUR)},
        {"name": str(NOW - 59 * MINUTE), "last_seen": NOW},
    ]
    tenant.add_user(user, last_login=NOW - 59 * MINUTE)
    for record in records:
        tenant.add_phone(user, **record)
    return len(records)


@pytest.mark.parametrize(
    "user",
    ["ann", "elizabeth.taylor", "x" * 300, WIDE * 20, "a\n" * 30],
    ids=["short", "usual", "long", "wide", "escaped"],
)
def test_the_table_fits_80_columns(tenant: Tenant, run: Run, user: str) -> None:
    """Whatever is to be done."""
    kinds = add_all_kinds(tenant, user)
    tenant.add_phone(user, "bob", "cleo", "dan", "eve", "fay", "gus", name=STUCK)
    rows = table(tenant, run)
    assert len(rows) == 1 + kinds + 1
    assert max(map(columns, rows)) <= 80


@pytest.mark.parametrize("argv", [[], ["-v"]], ids=["brief", "with ids"])
def test_short_names_are_not_cut(tenant: Tenant, run: Run, argv: list[str]) -> None:
    """However wide the rest is: there are nine columns for them."""
    add_all_kinds(tenant, "elizabeth")
    tenant.add_phone("ann", "jim", name=STUCK)
    _, *rows = cells(table(tenant, run, *argv))
    assert {row[0] for row in rows} == {"elizabeth", "ann, jim"}


def test_many_users_are_cut_with_their_number(tenant: Tenant, run: Run) -> None:
    """So that a phone that many people would lose does not look like any other."""
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone(*[f"user{number}" for number in range(90)], name=STUCK)
    rows = table(tenant, run)
    users = [row[0] for row in cells(rows)]
    assert users[:2] == ["USERS", "ann, bob"]
    assert re.fullmatch(r"user0, user.*\.\.\. \(90\)", users[2])
    assert max(map(columns, rows)) == 80, "they have what the other columns leave"


def test_the_number_is_shown_where_nothing_else_fits(tenant: Tenant, run: Run) -> None:
    """With the ids, there are nine columns for the users."""
    add_all_kinds(tenant, "ann")
    tenant.add_phone(*[f"user{number}" for number in range(1000)], name=STUCK)
    rows = table(tenant, run, "-v", "--max-deletions", "none")
    assert rows[-1].startswith("... (1000)")


def test_a_long_name_is_cut_without_a_number(tenant: Tenant, run: Run) -> None:
    """There is but one of it."""
    tenant.add_phone("x" * 300, name=STUCK)
    _, row = cells(table(tenant, run))
    assert re.fullmatch(r"x+\.\.\.", row[0])


@pytest.mark.parametrize(
    "name",
    ["Zo\u00eb", "a\nb", "ann\x1b[31m", "x" * 300, WIDE, WIDE * 30, f"ann{WIDE}"],
    ids=["accent", "line", "color", "long", "wide", "wide and long", "mixed"],
)
def test_columns_stay_in_line(tenant: Tenant, run: Run, name: str) -> None:
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone(name, name=STUCK)
    tenant.add_phone("bob", name, name=STUCK)
    tenant.add_phone("bob", name=STUCK, number=f"+1{name}")
    head, *rows = table(tenant, run, "-v")
    assert len(rows) == 4
    titles = {"TAGGED": "1 hour", "LAST LOGIN": "never", "A RUN WOULD": "delete:"}
    for title, text in titles.items():
        for row in rows:
            before, found, _ = row.partition(f"  {text}")
            assert found
            assert columns(before) + 2 == columns(head.partition(title)[0])
    assert len({columns(row) for row in rows}) == 1
    assert max(map(columns, rows)) <= 100, "long names and numbers are cut"


def table_on_a_terminal(tenant: Tenant, width: int) -> list[str]:
    """Run a dry run at a terminal of so many columns; give its head and rows."""
    terminal = Terminal()
    size = struct.pack("HHHH", 24, width, 0, 0)
    fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, size)
    with start(tenant, "--dry-run", stdout=terminal.theirs) as child:
        written = terminal.read()
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    return written.splitlines()[2:-1]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        pytest.param(120, 120, id="120"),
        pytest.param(100, 100, id="100"),
        pytest.param(80, 80, id="80"),
        pytest.param(0, 80, id="a terminal that does not know"),
    ],
)
def test_the_table_is_as_wide_as_the_terminal(
    tenant: Tenant, width: int, expected: int
) -> None:
    tenant.add_phone(*[f"user{number}" for number in range(90)], name=LONG_AGO)
    tenant.add_phone("ann", name=LONG_AGO)
    rows = table_on_a_terminal(tenant, width)
    assert max(map(columns, rows)) == expected
    assert len(rows) == 3


def test_the_table_is_no_wider_than_it_has_to_be(tenant: Tenant) -> None:
    tenant.add_phone("ann", name=LONG_AGO)
    rows = table_on_a_terminal(tenant, 200)
    assert [row[0] for row in cells(rows)] == ["USERS", "ann"]
    assert max(map(columns, rows)) < 80


def test_in_a_pipe_the_table_has_80_columns(tenant: Tenant) -> None:
    tenant.add_phone(*[f"user{number}" for number in range(90)], name=LONG_AGO)
    with start(tenant, "--dry-run") as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    assert max(map(columns, out.splitlines()[2:-1])) == 80


# Its words


def test_the_dry_run_says_ages_in_their_largest_unit(tenant: Tenant, run: Run) -> None:
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
        "31 days": 31 * DAY,
        "2189 days": 6 * 365 * DAY - 1,
    }
    for passed in ages.values():
        tenant.add_phone("ann", name=str(NOW - passed), number=f"old {passed}.")
    rows = run("--dry-run").out.splitlines()
    for said, passed in ages.items():
        (row,) = (row for row in rows if f"old {passed}." in row)
        assert f"  {said}  " in row, row


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


@pytest.mark.parametrize(
    ("argv", "users"),
    [
        pytest.param([], "ann, bob, cleo", id="all"),
        pytest.param(["bob"], "bob, ann, cleo", id="one of them named"),
        pytest.param(["cleo", "ann"], "ann, cleo, bob", id="two of them named"),
    ],
)
def test_a_dry_run_names_all_who_share_a_phone(
    tenant: Tenant, run: Run, argv: list[str], users: str
) -> None:
    """A look-up of names does not show the others: the phone is read for them."""
    phone = tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    result = run("--dry-run", *argv)
    (row,) = [each for each in result.out.splitlines() if "+15550000000" in each]
    assert row.startswith(f"{users}  ")
    expected = ["/admin/v1/users"]
    if argv:
        expected.append(f"/admin/v1/phones/{phone}")
    assert [each.path for each in tenant.requests] == expected


@pytest.mark.parametrize("argv", [[], ["named", "done"]], ids=["all", "named"])
def test_an_empty_dry_run_has_no_table(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("named", name="Dan's spare")
    tenant.add_phone("done", name="iPhone", **SET_UP)
    result = run("--dry-run", *argv)
    *head, totals = result.out.splitlines()
    assert (result.status, result.err) == (0, "")
    assert head == [SCOPE, SHORT_GRACE]
    assert totals.startswith("2 users, 2 phones, 1 in limbo: 1 kept; ")


# What it says of the run


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


@pytest.mark.parametrize(
    ("argv", "scope", "warned"),
    [
        ("", "grace period 10 minutes, deletion limit 100 users", True),
        ("-g 0", "grace period 0 minutes, deletion limit 100 users", True),
        ("-g 1", "grace period 1 minute, deletion limit 100 users", True),
        ("-g 16", "grace period 16 minutes, deletion limit 100 users", True),
        ("-g 17", "grace period 17 minutes, deletion limit 100 users", False),
        ("-g 18", "grace period 18 minutes, deletion limit 100 users", False),
        (
            "-g 1440 --max-deletions none",
            "grace period 1440 minutes, deletion limit none",
            False,
        ),
        (
            "--max-deletions 7",
            "grace period 10 minutes, deletion limit 7 users",
            True,
        ),
        ("--max-deletions 1", "grace period 10 minutes, deletion limit 1 user", True),
        ("bob Ann", "grace period 10 minutes, deletion limit 100 users", True),
    ],
)
def test_a_dry_run_and_the_prompts_begin_with_tenant_and_settings(
    tenant: Tenant, run: Run, argv: str, scope: str, warned: bool
) -> None:
    """And with a grace period that is shorter than Duo's own setup takes."""
    tenant.add_phone("ann")
    tenant.add_user("bob")
    expected = [f"localhost: {scope}"]
    if warned:
        expected.append(SHORT_GRACE)
    words = argv.split()
    lines = run("--dry-run", *words).out.splitlines()
    assert lines[: len(expected)] == expected
    assert lines[len(expected)].startswith("USERS")
    lines = run("--no-force", *words, stdin="n\n").err.splitlines()
    assert lines[: len(expected)] == expected
    assert lines[len(expected)].startswith("1 of 1: ")


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
    assert "grace period" not in result.out + result.err
