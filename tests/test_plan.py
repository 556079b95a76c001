"""How many phones a run may delete: --max-deletions."""

from __future__ import annotations

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
    Run,
    add_situations,
    names,
    writes,
)


class Limit(NamedTuple):
    """How the limit is set, with three phones due for deletion."""

    argv: str
    variable: str
    exceeded: str
    """The limit that is exceeded, "" if none is."""


@pytest.mark.parametrize(
    "limit",
    [
        Limit("--max-deletions 2", "", exceeded="2"),
        Limit("--max-deletions 1", "", exceeded="1"),
        Limit("", "2", exceeded="2"),
        Limit("--max-deletions 3", "", exceeded=""),
        Limit("--max-deletions 4", "", exceeded=""),
        Limit("--max-deletions none", "2", exceeded=""),
        Limit("", "", exceeded=""),
    ],
)
@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
def test_max_deletions(tenant: Tenant, run: Run, mode: str, limit: Limit) -> None:
    stuck = {user: tenant.add_phone(user, name=STUCK) for user in ("u1", "u2", "u3")}
    begun = tenant.add_phone("ann")
    result = run(mode, *limit.argv.split(), DUO_MAX_DELETIONS=limit.variable)
    if mode == "--dry-run":
        assert writes(tenant) == []
        assert result.out.count("delete: grace period over") == 3, "one can look at all"
    else:
        assert tenant.phones[begun]["name"] == STAMPED
        expected = GONE
        if limit.exceeded:
            expected = STUCK
        assert set(names(tenant, stuck).values()) == {expected}
    if limit.exceeded:
        assert result.status == 1
        (message,) = [line for line in result.err.splitlines() if "error:" in line]
        told = "error: 3 phones due for deletion, none deleted: --max-deletions"
        assert f"{told} (DUO_MAX_DELETIONS) is {limit.exceeded}. " in message
        assert message.endswith("run once by hand with --max-deletions none")
        assert ("--dry-run" in message) is (mode == "--force")
    else:
        assert result.status == 0
        assert result.err == ""


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
    assert ("(DUO_MAX_DELETIONS) is 100" in result.err) is (status == 1)
    assert run("--dry-run", "--max-deletions", "none").status == 0


@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
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
        first, _, *rows, totals = result.out.splitlines()
        assert first == "localhost: grace period 10 minutes, deletion limit 0"
        assert [row.split()[0] for row in rows] == ["begun", "young"]
        assert "delete" not in totals
        assert names(tenant, ids) == before
    result = run(mode, "-v", *argv, DUO_MAX_DELETIONS=variable)
    line = result.err.splitlines()[0]
    assert "1 phone due for deletion, none deleted: " in line
    assert line.endswith("--max-deletions (DUO_MAX_DELETIONS) is 0")
    assert "error" not in line


def test_the_limit_is_no_matter_when_there_is_nothing_to_delete(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    assert run("--max-deletions", "0").status == 0
