"""Every misfortune at every step, one at a time: see tests/simulation/steps.py."""

from __future__ import annotations

import pytest

from tests.simulation.stage import Stage
from tests.simulation.steps import CASES, explore


@pytest.mark.parametrize("case", CASES)
def test_every_misfortune_at_every_step(case: str) -> None:
    with Stage() as stage:
        trials = [trial.broken for trial in explore(stage, case, 1)]
    broken = [line for line in trials if line]
    print(f"{len(trials)} tried", *broken, sep="\n")
    assert not broken
    assert len(trials) > 40
