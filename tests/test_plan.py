"""How many users a run may take a phone from: --max-deletions."""

from __future__ import annotations

import re

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
LIFT = "If they are right, --max-deletions none lifts it for one run"


def exceeded(phones: str, users: str, limit: int) -> str:
    """What is told of a limit that is exceeded, without advice."""
    option = "--max-deletions (DUO_MAX_DELETIONS)"
    due = f"error: {phones} due for deletion, none deleted: "
    return f"{due}{users} would lose one, and {option} is {limit}. "


def assert_exceeded(
    result: Result, mode: str, phones: str, users: str, limit: int
) -> None:
    """The message is told once, with what to do next.

    A run tells it before it does anything else, a dry run last of all.
    """
    assert result.status == 1
    lines = result.err.splitlines()
    if mode == "--force":
        assert result.out == ""
        message, sentence = lines
        advice = LOOK + LIFT
    else:
        (message,) = lines
        sentence = result.out.splitlines()[-1]
        advice = LIFT
    expected = exceeded(phones, users, limit) + advice
    assert re.fullmatch(r"[\d-]+ [\d:]+ " + re.escape(expected), message)
    due = phones.split()[0]
    assert f"{due} due and left, 1 failed; " in sentence
    assert "to delete" not in sentence
    assert sentence.endswith("; exit status 1")


@pytest.mark.parametrize(
    ("argv", "variable", "limit"),
    [
        pytest.param("--max-deletions 2", "", 2, id="2"),
        pytest.param("--max-deletions 1", "3", 1, id="1"),
        pytest.param("", "2", 2, id="2 by the variable"),
        pytest.param("--max-deletions 3", "", None, id="3"),
        pytest.param("--max-deletions none", "2", None, id="none"),
        pytest.param("", "", None, id="100"),
    ],
)
@each_mode
def test_max_deletions(
    *,
    tenant: Tenant,
    run: Run,
    mode: str,
    argv: str,
    variable: str,
    limit: int | None,
) -> None:
    """Three phones are due, and no other counts; `limit` is exceeded, if given."""
    stuck = {user: tenant.add_phone(user, name=STUCK) for user in ("u1", "u2", "u3")}
    begun = tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    result = run(mode, *argv.split(), DUO_MAX_DELETIONS=variable)
    shown = "delete: grace period over"
    expected = GONE
    if limit:
        shown = "leave: due, over the limit"
        expected = STUCK
        assert_exceeded(result, mode, "3 phones", "3 users", limit)
    else:
        assert (result.status, result.err) == (0, "")
    if mode == "--dry-run":
        assert writes(tenant) == []
        assert result.out.count(shown) == 3, "one can look at all"
    else:
        assert tenant.phones[begun]["name"] == STAMPED
        assert set(names(tenant, stuck).values()) == {expected}


@pytest.mark.parametrize(("due", "status"), [(100, 0), (101, 1)])
def test_a_limit_holds_unless_it_is_lifted(
    tenant: Tenant, run: Run, due: int, status: int
) -> None:
    """100 by default. A dry run shows it: nothing has to be deleted for this."""
    for number in range(due):
        tenant.add_phone(f"u{number}", name=STUCK)
    result = run("--dry-run")
    assert result.status == status
    assert result.out.splitlines()[1].endswith(SCOPE)
    assert ("(DUO_MAX_DELETIONS) is 100. " in result.err) is (status == 1)
    assert run("--dry-run", "--max-deletions", "none").status == 0


# Users are counted, not phones


@pytest.mark.parametrize(
    ("owners", "users"),
    [
        pytest.param([["ann", "bob", "cleo"], ["dan"]], 4, id="a shared phone"),
        pytest.param(
            [["ann", "bob"], ["bob", "cleo"], ["ann"], ["ann"]],
            3,
            id="users of two phones",
        ),
    ],
)
def test_each_user_counts_once(
    tenant: Tenant, run: Run, owners: list[list[str]], users: int
) -> None:
    for sharers in owners:
        tenant.add_phone(*sharers, name=STUCK)
    phones = len(owners)
    result = run("--max-deletions", str(users - 1))
    told = f"{phones} phones", f"{users} users"
    assert_exceeded(result, "--force", *told, limit=users - 1)
    assert writes(tenant) == []
    result = run("--max-deletions", str(users))
    assert (result.status, result.err) == (0, "")
    assert tenant.phones == {}


@pytest.mark.parametrize("asked", [["ann"], ["ann", "ANNIE", "bob"]], ids=len)
@each_mode
def test_of_a_named_users_phone_all_who_share_it_count(
    tenant: Tenant, run: Run, mode: str, asked: list[str]
) -> None:
    """The look-up by name shows the named users alone."""
    others = [f"u{number}" for number in range(9)]
    tenant.add_user("ann", aliases=["annie"])
    phone = tenant.add_phone("ann", "bob", *others, name=STUCK)
    result = run(mode, "--max-deletions", "10", *asked)
    assert_exceeded(result, mode, "1 phone", "11 users", 10)
    assert name_of(tenant, phone) == STUCK
    assert run(mode, "--max-deletions", "11", *asked).status == 0


# What is told besides


def test_the_limit_is_told_before_anything_is_done(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("cleo")
    tenant.fail("status", method="POST", status=400)
    result = run("--max-deletions", "1", "ann", "cleo", "nobody")
    unknown, limit, failed, summary = result.err.splitlines()
    assert unknown.endswith(" error: no such user in Duo: nobody")
    assert limit[20:] == exceeded("1 phone", "2 users", 1) + LOOK + LIFT
    assert " error: phone +15550000001 of cleo" in failed
    assert ": 1 due and left, 2 failed, 1 unknown; " in summary


def test_the_limit_is_told_before_the_first_question(tenant: Tenant, run: Run) -> None:
    """What it leaves out is not asked about."""
    tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("cleo")
    result = run("--no-force", "--max-deletions", "1", stdin="n\n")
    limit, scope, question, summary = result.err.splitlines()
    assert limit[20:] == exceeded("1 phone", "2 users", 1) + LOOK + LIFT
    assert scope.endswith("deletion limit 1 user")
    assert question.startswith("1 of 1: stamp phone +15550000001 of cleo (")
    assert ": 1 declined, 1 due and left, 1 failed; " in summary


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        pytest.param([], ["failed", "stamped"], id="a run"),
        pytest.param(["-v"], ["failed", "stamped", "left"], id="-v"),
        pytest.param(["-n"], ["failed", "would_stamp", "left"], id="a dry run"),
    ],
)
def test_what_is_over_the_limit_in_the_json_lines(
    tenant: Tenant, run: Run, mode: list[str], kinds: list[str]
) -> None:
    """It is left, with no record: a run would not delete it."""
    phone = tenant.add_phone("ann", "bob", name=STUCK)
    tenant.add_phone("cleo")
    result = run(*mode, "--json", "--max-deletions", "1")
    assert result.kinds == kinds
    failed, *_, last, summary = result.events
    told = exceeded("1 phone", "2 users", 1)
    assert f"error: {failed['error']}".startswith(told)
    assert failed["error"].endswith(LIFT)
    assert f" error: {failed['error']}\n" in result.err
    assert (summary["failed"], summary["left"], summary["exit_status"]) == (1, 1, 1)
    if last["event"] == "left":
        assert (last["phone_id"], last["users"]) == (phone, ["ann", "bob"])
        assert "record" not in last


@each_mode
@pytest.mark.parametrize(
    ("argv", "variable"),
    [
        pytest.param(["--max-deletions", "0"], "", id="option"),
        pytest.param([], "0", id="variable"),
    ],
)
def test_a_limit_of_zero_only_stamps(
    *, tenant: Tenant, run: Run, argv: list[str], variable: str, mode: str
) -> None:
    """It is what was asked for: no failure, and no advice."""
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(mode, "--json", "-v", *argv, DUO_MAX_DELETIONS=variable)
    assert result.status == 0
    assert "error" not in result.err
    if mode == "--force":
        assert result.kinds == ["named", "waiting", "stamped", "left"]
        assert names(tenant, ids) == {**before, "begun": STAMPED}
    else:
        assert result.kinds == ["named", "waiting", "would_stamp", "left"]
        assert names(tenant, ids) == before
