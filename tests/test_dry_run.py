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


def test_the_table_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_situations(tenant)
    ids["tablet"] = tenant.add_phone("gus", "fay", name=STUCK, number="")
    ids["future"] = tenant.add_phone("hal", name=str(NOW + HOUR))
    ids["again"] = tenant.add_phone("ida", name=STUCK, last_seen="2027-01-15T07:30:00")
    ids["finished"] = tenant.add_phone("jo", name=STUCK, **SET_UP)
    ids["odd"] = tenant.add_phone("kim", name=STUCK, last_seen="soon")
    ages = {"young": "9 minutes", "begun": "", "named": "", "future": ""}
    actions = {
        "begun": "stamp: not tagged yet",
        "stuck": "delete: grace period over",
        "young": "wait: 1 minute left",
        "named": 'keep: named "Dan\'s spare"',
        "tablet": "delete: grace period over",
        "future": "wait: its tag is in the future",
        "again": "stamp: in use since it was tagged",
        "finished": "untag: set up since it was tagged",
        "odd": "wait: its last_seen cannot be read",
    }
    users = {"tablet": "gus, fay", "future": "hal", "again": "ida"}
    users = {**users, "finished": "jo", "odd": "kim"}
    for argv, titles in (([], 4), (["-v"], 5)):
        result = run("--dry-run", "--no-force", "--untag", *argv)
        assert result.status == 0
        assert result.err == "" or argv
        first, head, *rows, totals = result.out.splitlines()
        assert first == SCOPE
        columns = [match.start() for match in re.finditer(r"\S+( \S+)*", head)]
        assert len(columns) == titles
        bounds = list(zip(columns, [*columns[1:], None]))
        table = [[row[a:b].strip() for a, b in bounds] for row in [head, *rows]]
        title = ["USERS", "NUMBER", "AGE", "A RUN WOULD", "PHONE ID"]
        assert table.pop(0) == title[:titles]
        for who, action in actions.items():
            if who == "named" and not argv:
                continue  # kept phones are only counted
            row = [
                users.get(who, who),
                tenant.phones[ids[who]]["number"] or "without number",
                ages.get(who, "1 hour"),
                action,
                ids[who],
            ]
            assert table.pop(0) == row[:titles]
        assert table == []
        assert re.fullmatch(
            r"11 users, 10 phones, 8 in limbo: 2 to stamp, 2 to delete, "
            r"1 to untag, 3 waiting, 1 kept; 1 request, \d+\.\d s",
            totals,
        )
    assert {request.method for request in tenant.requests} == {"GET"}


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
        at = head.index(title)
        assert [row.index(f"  {text}") + 2 for row in rows] == [at] * 3
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


@pytest.mark.parametrize("argv", [["--no-force"], ["--force"], ["-n", "--json"]])
def test_else_nothing_is_said_of_the_settings(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("ann", name="Ann's" if argv == ["--no-force"] else "")
    result = run(*argv)
    assert "grace period" not in result.out + result.err
