"""Every misfortune at every step, one at a time: see tests/simulation/steps.py."""

from __future__ import annotations

import pytest

from tests.simulation.steps import CASES, Stage, explore


@pytest.mark.parametrize("case", CASES)
def test_every_misfortune_at_every_step(case: str) -> None:
    with Stage() as stage:
        broken = [trial.broken for trial in explore(stage, case, 1)]
    print(f"{case}: {len(broken)} tried")
    assert [*filter(None, broken)] == []
    assert len(broken) > 40
