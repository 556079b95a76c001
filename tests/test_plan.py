"""How many users a run may take a phone from: --max-deletions."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.simulation.tenant import Tenant
from tests.support import (
    GONE,
    MINUTE,
    NOW,
    SCOPE,
    STAMPED,
    STUCK,
    Result,
    Run,
    add_situations,
    name_of,
    names,
    writes,
)

each_mode = pytest.mark.parametrize("mode", ["--force", "--dry-run"])
LOOK = "Look at them with --dry-run. "
"""What a dry run does not advise."""
ONCE = "If they are right, run once by hand with --max-deletions none"


def exceeded(phones: str, users: str, limit: int) -> str:
    """What is told of a limit that is exceeded, without advice."""
    option = "--max-deletions (DUO_MAX_DELETIONS)"
    due = f"error: {phones} due for deletion, none deleted: "
    return f"{due}{users} would lose one, and {option} is {limit}. "


def assert_exceeded(
    result: Result, mode: str, phones: str, users: str, limit: int
) -> None:
    """The message stands last of all, once, with what to do next."""
    assert result.status == 1
    lines = result.err.splitlines()
    if mode == "--force":
        assert result.out == ""
        sentence, message = lines
        advice = LOOK + ONCE
    else:
        (message,) = lines
        sentence = result.out.splitlines()[-1]
        advice = ONCE
    expected = exceeded(phones, users, limit) + advice
    assert re.fullmatch(r"[\d-]+ [\d:]+ " + re.escape(expected), message)
    due = phones.split()[0]
    assert f"{due} due, none deleted; " in sentence
    assert "failed" not in sentence
    assert "to delete" not in sentence
    assert sentence.endswith("; exit status 1")


class Limit(NamedTuple):
    """How the limit is set, with three phones due for deletion."""

    argv: str
    variable: str
    exceeded: int
    """The limit that is exceeded, 0 if none is."""


@pytest.mark.parametrize(
    "limit",
    [
        Limit("--max-deletions 2", "", exceeded=2),
        Limit("--max-deletions 1", "", exceeded=1),
        Limit("", "2", exceeded=2),
        Limit("--max-deletions 3", "", exceeded=0),
        Limit("--max-deletions 4", "", exceeded=0),
        Limit("--max-deletions none", "2", exceeded=0),
        Limit("", "", exceeded=0),
    ],
)
@each_mode
def test_max_deletions(tenant: Tenant, run: Run, mode: str, limit: Limit) -> None:
    stuck = {user: tenant.add_phone(user, name=STUCK) for user in ("u1", "u2", "u3")}
    begun = tenant.add_phone("ann")
    result = run(mode, *limit.argv.split(), DUO_MAX_DELETIONS=limit.variable)
    shown = "delete: grace period over"
    expected = GONE
    if limit.exceeded:
        shown = "leave: due, over the limit"
        expected = STUCK
        assert_exceeded(result, mode, "3 phones", "3 users", limit.exceeded)
    else:
        assert (result.status, result.err) == (0, "")
    if mode == "--dry-run":
        assert writes(tenant) == []
        assert result.out.count(shown) == 3, "one can look at all"
    else:
        assert tenant.phones[begun]["name"] == STAMPED
        assert set(names(tenant, stuck).values()) == {expected}


@pytest.mark.parametrize(("due", "status"), [(99, 0), (100, 0), (101, 1)])
def test_a_limit_holds_unless_it_is_lifted(
    tenant: Tenant, run: Run, due: int, status: int
) -> None:
    """100 by default. A dry run shows it: nothing has to be deleted for this."""
    for number in range(due):
        tenant.add_phone(f"u{number}", name=STUCK)
    result = run("--dry-run")
    assert result.status == status
    assert result.out.splitlines()[0] == SCOPE
    assert ("(DUO_MAX_DELETIONS) is 100. " in result.err) is (status == 1)
    assert run("--dry-run", "--max-deletions", "none").status == 0


# Users are counted, not phones


@each_mode
def test_one_phone_of_very_many_users_exceeds_the_limit(
    tenant: Tenant, run: Run, mode: str
) -> None:
    everybody = [f"u{number}" for number in range(120)]
    phone = tenant.add_phone(*everybody, name=STUCK)
    result = run(mode, "--max-deletions", "100")
    assert_exceeded(result, mode, "1 phone", "120 users", 100)
    assert name_of(tenant, phone) == STUCK
    assert writes(tenant) == []
    result = run("--json", "--max-deletions", "120")
    assert (result.status, result.outcomes) == (0, ["deleted"])


@pytest.mark.parametrize("limit", [2, 3, 4, 5])
def test_a_shared_phone_counts_once_for_each_of_its_users(
    tenant: Tenant, run: Run, limit: int
) -> None:
    """Four users would lose one of these two phones."""
    shared = tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    own = tenant.add_phone("dan", name=STUCK)
    result = run("--max-deletions", str(limit))
    if limit < 4:
        assert_exceeded(result, "--force", "2 phones", "4 users", limit)
        assert names(tenant, {"shared": shared, "own": own}) == {
            "shared": STUCK,
            "own": STUCK,
        }
    else:
        assert (result.status, result.err) == (0, "")
        assert tenant.phones == {}


@pytest.mark.parametrize("limit", [2, 3])
def test_a_user_who_would_lose_two_phones_counts_once(
    tenant: Tenant, run: Run, limit: int
) -> None:
    """Whether others share them or not: here, three users have four phones."""
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("bob", "cleo", name=STUCK)
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("ann", name=STUCK)
    result = run("--max-deletions", str(limit))
    if limit < 3:
        assert_exceeded(result, "--force", "4 phones", "3 users", limit)
        assert len(tenant.phones) == 4
    else:
        assert (result.status, result.err) == (0, "")
        assert tenant.phones == {}


def test_only_a_phone_that_is_due_counts(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann", "bob", "cleo")
    tenant.add_phone("dan", "eve", "fay", name=str(NOW - MINUTE))
    tenant.add_phone("gus", "hal", "ida", name="spare")
    due = tenant.add_phone("jo", name=STUCK)
    result = run("--max-deletions", "1")
    assert (result.status, result.err) == (0, "")
    assert name_of(tenant, due) == GONE


@each_mode
def test_of_a_named_users_phone_all_who_share_it_count(
    tenant: Tenant, run: Run, mode: str
) -> None:
    """The look-up by name shows the named user alone."""
    others = [f"u{number}" for number in range(10)]
    phone = tenant.add_phone("ann", *others, name=STUCK)
    result = run(mode, "--max-deletions", "10", "ann")
    assert_exceeded(result, mode, "1 phone", "11 users", 10)
    assert name_of(tenant, phone) == STUCK
    assert run(mode, "--max-deletions", "11", "ann").status == 0


@each_mode
def test_a_user_who_is_named_with_an_alias_and_shares_a_phone_counts_once(
    tenant: Tenant, run: Run, mode: str
) -> None:
    tenant.add_user("ann", aliases=["annie"])
    tenant.add_phone("ann", "bob", name=STUCK)
    result = run(mode, "--max-deletions", "1", "ann", "ANNIE", "bob")
    assert_exceeded(result, mode, "1 phone", "2 users", 1)
    assert run(mode, "--max-deletions", "2", "ann", "ANNIE", "bob").status == 0


# What is told besides


def test_other_errors_do_not_come_after_the_limits(tenant: Tenant, run: Run) -> None:
    """It stands where the eye is, also below the summary."""
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("cleo")
    tenant.fail("status", method="POST", status=400)
    result = run("--max-deletions", "1", "ann", "cleo", "nobody")
    lines = result.err.splitlines()
    assert [line[20:].partition(":")[0] for line in lines[:2]] == ["error", "error"]
    assert ": no such user in Duo: nobody" in lines[0]
    assert "phone +15550000001 of cleo" in lines[1]
    assert ": 1 failed, 1 unknown, 1 due, none deleted; " in lines[2]
    told = exceeded("1 phone", "2 users", 1)
    assert lines[3][20:] == told + LOOK + ONCE
    assert len(lines) == 4


@each_mode
def test_in_the_json_lines_an_exceeded_limit_is_a_failure(
    tenant: Tenant, run: Run, mode: str
) -> None:
    """Before anything else is done."""
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("cleo")
    result = run(mode, "--json", "--max-deletions", "1")
    first = result.events[0]
    told = exceeded("1 phone", "2 users", 1)
    assert (first["event"], result.kinds.count("failed")) == ("failed", 1)
    assert f"error: {first['error']}".startswith(told)
    assert first["error"].endswith(ONCE)
    assert (result.summary["failed"], result.summary["exit_status"]) == (1, 1)
    assert result.summary["deleted"] == 0
    assert result.err.splitlines()[-1].endswith(f"error: {first['error']}")


# A limit of none at all


@each_mode
@pytest.mark.parametrize(
    ("argv", "variable"),
    [
        pytest.param(["--max-deletions", "0"], "", id="option"),
        pytest.param([], "0", id="variable"),
    ],
)
def test_a_limit_of_zero_only_tags(
    tenant: Tenant, run: Run, argv: list[str], variable: str, mode: str
) -> None:
    """It is what was asked for: no failure, and no advice."""
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(mode, *argv, DUO_MAX_DELETIONS=variable)
    assert (result.status, result.err) == (0, "")
    if mode == "--force":
        assert result.out == ""
        assert names(tenant, ids) == {**before, "begun": STAMPED}
    else:
        first, _, _, *rows, totals = result.out.splitlines()
        assert first == "localhost: grace period 10 minutes, deletion limit 0 users"
        due = {row.split()[0]: row.partition("leave: ")[2] for row in rows}
        assert due == {"begun": "", "stuck": "due, over the limit", "young": ""}
        assert ": 1 to stamp, 1 waiting, 1 kept, 1 due, none deleted; " in totals
        assert names(tenant, ids) == before
    result = run(mode, "-v", *argv, DUO_MAX_DELETIONS=variable)
    line = result.err.splitlines()[0]
    assert "1 phone due for deletion, none deleted: " in line
    assert line.endswith("--max-deletions (DUO_MAX_DELETIONS) is 0")
    assert "error" not in result.err
    result = run(mode, "--json", *argv, DUO_MAX_DELETIONS=variable)
    assert (result.status, result.err, result.summary["failed"]) == (0, "", 0)
    assert "failed" not in result.kinds


def test_the_limit_is_no_matter_when_there_is_nothing_to_delete(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    assert run("--max-deletions", "0").status == 0
