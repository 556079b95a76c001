"""Every misfortune at every step, one at a time: see tests/simulation/steps.py."""

from __future__ import annotations

import pytest

from tests.simulation.stage import Stage
from tests.simulation.steps import CASES, MISFORTUNES, explore, further

pytestmark = pytest.mark.usefixtures("_not_traced")


@pytest.mark.parametrize("case", CASES)
def test_every_misfortune_at_every_step(case: str) -> None:
    with Stage() as stage:
        trials = [*explore(stage, case, 1)]
    print(f"{len(trials)} tried")
    assert [trial.broken for trial in trials if trial.broken] == []
    assert len(trials) == 1 + len(further(trials[0]))


def test_each_misfortune_can_happen() -> None:
    can_happen: set[str] = set()
    with Stage() as stage:
        for case in CASES:
            [trial] = explore(stage, case, 0)
            can_happen.update(name for _, name in further(trial))
    # Nothing is late where nothing else has happened.
    assert can_happen == {*MISFORTUNES} - {"a late write arrives"}
