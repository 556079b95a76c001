"""How many phones a run may delete: --max-deletions."""

from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize(
    ("argv", "variables", "over"),
    [
        ("--max-deletions 2", {}, True),
        ("--max-deletions 1", {}, True),
        ("", {"DUO_MAX_DELETIONS": "2"}, True),
        ("--max-deletions 3", {}, False),
        ("--max-deletions 4", {}, False),
        ("--max-deletions none", {"DUO_MAX_DELETIONS": "2"}, False),
        ("", {}, False),
    ],
)
@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
def test_max_deletions(
    *,
    tenant: Tenant,
    run: Run,
    mode: str,
    argv: str,
    variables: dict[str, Any],
    over: bool,
) -> None:
    stuck = {str(n): tenant.add_phone(f"u{n}", name=STUCK) for n in range(3)}
    begun = tenant.add_phone("ann")
    result = run(mode, *argv.split(), **variables)
    assert result.status == over
    if mode == "--force":
        assert set(names(tenant, stuck).values()) == {STUCK if over else GONE}
        assert tenant.phones[begun]["name"] == STAMPED
    else:
        assert writes(tenant) == []
        assert result.out.count("delete: grace period over") == 3, "one can look at all"
    if over:
        (message,) = [line for line in result.err.splitlines() if "error:" in line]
        limit = argv[-1:] or "2"
        told = "error: 3 phones due for deletion, none deleted: --max-deletions"
        assert f"{told} (DUO_MAX_DELETIONS) is {limit}. " in message
        assert message.endswith("run once by hand with --max-deletions none")
        assert ("--dry-run" in message) is (mode == "--force")
    else:
        assert result.err == ""


@pytest.mark.parametrize("due", [99, 100, 101])
def test_a_limit_holds_unless_it_is_lifted(tenant: Tenant, run: Run, due: int) -> None:
    """100 by default. A dry run shows it: nothing has to be deleted for this."""
    for number in range(due):
        tenant.add_phone(f"u{number}", name=STUCK)
    result = run("--dry-run")
    assert result.status == (due > 100)
    assert result.out.splitlines()[0] == SCOPE
    assert ("(DUO_MAX_DELETIONS) is 100" in result.err) is (due > 100)
    assert run("--dry-run", "--max-deletions", "none").status == 0


@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
@pytest.mark.parametrize("argv", [["--max-deletions", "0"], []], ids=["", "variable"])
def test_a_limit_of_zero_only_tags(
    tenant: Tenant, run: Run, argv: list[str], mode: str
) -> None:
    """It is what was asked for: no failure, and no advice."""
    variables: dict[str, Any] = {} if argv else {"DUO_MAX_DELETIONS": "0"}
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(mode, *argv, **variables)
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
    (line, *_) = run(mode, "-v", *argv, **variables).err.splitlines()
    assert "1 phone due for deletion, none deleted: " in line
    assert line.endswith("--max-deletions (DUO_MAX_DELETIONS) is 0")
    assert "error" not in line


def test_the_limit_is_no_matter_when_there_is_nothing_to_delete(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    assert run("--max-deletions", "0").status == 0
