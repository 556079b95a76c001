"""The simulated years of tests/simulation/year.py, for a short while."""

from __future__ import annotations

import pytest

from tests.simulation.year import ZONES, live

# A run that dies leaves its connections open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("_garbage_collected"),
]


@pytest.mark.parametrize("seed", range(len(ZONES)))
def test_a_year_in_which_every_promise_is_kept(seed: int) -> None:
    """One in each time zone."""
    counts = live(seed, runs=40)
    for what in ("stamped", "deleted", "faults"):
        assert counts[what]


def test_a_year_has_its_misfortunes() -> None:
    counts = live(28, runs=40)
    for what in ("overlaps", "killed", "terminated", "late", "cut off", "torn"):
        assert counts[what]
    assert counts["failed"]
    assert counts["quiet"]
