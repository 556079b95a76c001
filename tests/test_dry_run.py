"""--dry-run: its table, its totals and its exit status."""

from __future__ import annotations

import re

import pytest

from tests.simulation.tenant import Record, Tenant
from tests.support import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    SCOPE,
    SET_UP,
    STUCK,
    Run,
    add_situations,
    writes,
)


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
    due = "delete: grace period over"
    kept = 'keep: named "Dan\'s spare"'
    to_come = "wait: its tag is in the future"
    in_use = "stamp: in use since it was tagged"
    set_up = "untag: set up since it was tagged"
    unreadable = "wait: its last_seen cannot be read"
    expected = [
        ["USERS", "NUMBER", "AGE", "A RUN WOULD", "PHONE ID"],
        ["begun", "+15550000000", "", "stamp: not tagged yet", ids["begun"]],
        ["stuck", "+15550000001", "1 hour", due, ids["stuck"]],
        ["young", "+15550000002", "9 minutes", "wait: 1 minute left", ids["young"]],
        ["named", "+15550000003", "", kept, ids["named"]],
        ["gus, fay", "without number", "1 hour", due, tablet],
        ["hal", "+15550000006", "", to_come, future],
        ["ida", "+15550000007", "1 hour", in_use, again],
        ["jo", "+15550000008", "1 hour", set_up, finished],
        ["kim", "+15550000009", "1 hour", unreadable, odd],
    ]
    verbose = run("--dry-run", "--no-force", "--untag", "-v")
    brief = run("--dry-run", "--no-force", "--untag")
    assert brief.err == ""
    assert cells(verbose.out.splitlines()[1:-1]) == expected
    expected = [row[:4] for row in expected if row[0] != "named"]
    assert cells(brief.out.splitlines()[1:-1]) == expected
    for result in (verbose, brief):
        assert result.status == 0
        assert result.out.splitlines()[0] == SCOPE
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
    return result.out.splitlines()[1:-1]


def test_the_table_fits_80_columns(tenant: Tenant, run: Run) -> None:
    """For names and numbers of ordinary length, whatever is to be done."""
    in_use: Record = {"name": STUCK, "last_seen": NOW}
    records: list[Record] = [
        {},
        {"name": STUCK},
        {"name": str(NOW - 9 * MINUTE)},
        in_use,
        {"name": STUCK, **SET_UP},
        {"name": STUCK, "last_seen": "soon"},
        {"name": str(NOW + HOUR)},
        {"name": str(NOW - 59 * MINUTE), "last_seen": NOW},
    ]
    for record in records:
        tenant.add_phone("elizabeth.taylor", **record)
    tenant.add_phone("ann", "bob", "cleo", **in_use)
    rows = table(tenant, run)
    assert len(rows) == 1 + len(records) + 1
    assert max(map(len, rows)) <= 80


@pytest.mark.parametrize(
    "name",
    ["Zo\u00eb", "a\nb", "ann\x1b[31m", "x" * 300],
    ids=ascii,
)
def test_columns_stay_in_line(tenant: Tenant, run: Run, name: str) -> None:
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone(name, name=STUCK)
    tenant.add_phone("bob", name=STUCK, number=f"+1{name}")
    head, *rows = table(tenant, run, "-v")
    for title, text in (("AGE", "1 hour"), ("A RUN WOULD", "delete:")):
        for row in rows:
            assert row.index(f"  {text}") + 2 == head.index(title)
    assert len({len(row) for row in rows}) == 1
    assert max(map(len, rows)) <= 180, "long names are cut"


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
    [(None, "wait: 0 seconds left"), ("soon", "wait: its last_seen cannot be read")],
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
    [([], "ann, bob, cleo"), (["bob"], "bob"), (["cleo", "ann"], "ann, cleo")],
    ids=["all", "one of them named", "two of them named"],
)
def test_a_dry_run_names_those_looked_at_who_share_a_phone(
    tenant: Tenant, run: Run, argv: list[str], users: str
) -> None:
    """It does not read the phone again, which would name the others, too."""
    tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    result = run("--dry-run", *argv)
    (row,) = [x for x in result.out.splitlines() if "+15550000000" in x]
    assert row.startswith(f"{users}  ")
    assert [each.path for each in tenant.requests] == ["/admin/v1/users"]


@pytest.mark.parametrize("argv", [[], ["named", "done"]], ids=["all", "named"])
def test_an_empty_dry_run_has_no_table(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("named", name="Dan's spare")
    tenant.add_phone("done", name="iPhone", **SET_UP)
    result = run("--dry-run", *argv)
    first, totals = result.out.splitlines()
    assert (result.status, result.err, first) == (0, "", SCOPE)
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
    ("argv", "scope"),
    [
        ("", "grace period 10 minutes, deletion limit 100"),
        ("-g 0", "grace period 0 minutes, deletion limit 100"),
        ("-g 1", "grace period 1 minute, deletion limit 100"),
        (
            "-g 1440 --max-deletions none",
            "grace period 1440 minutes, deletion limit none",
        ),
        ("--max-deletions 7", "grace period 10 minutes, deletion limit 7"),
        ("--max-deletions 1", "grace period 10 minutes, deletion limit 1"),
        ("bob Ann", "grace period 10 minutes, deletion limit 100"),
    ],
)
def test_a_dry_run_and_the_first_prompt_say_which_tenant_and_settings(
    tenant: Tenant, run: Run, argv: str, scope: str
) -> None:
    tenant.add_phone("ann")
    tenant.add_user("bob")
    first = run("--dry-run", *argv.split()).out.splitlines()[0]
    assert first == f"localhost: {scope}"
    lines = run("--no-force", *argv.split(), stdin="n\n").err.splitlines()
    assert lines[0] == first
    assert lines[1].startswith("1 of 1: ")


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
