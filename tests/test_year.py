"""The simulated years of tests/simulation/year.py, for a short while."""

from __future__ import annotations

import pytest

from tests.simulation.year import ZONES, live

# A run that dies leaves its connections open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("_garbage_collected", "_not_traced"),
]


@pytest.mark.parametrize("seed", range(len(ZONES)))
def test_a_year_in_which_every_promise_is_kept(seed: int) -> None:
    """One in each time zone."""
    counts = live(seed, runs=40)
    for what in ("stamped", "deleted", "faults"):
        assert counts[what]


def test_years_have_their_misfortunes() -> None:
    """The first one has them all, as a rule.

    Its seed does not decide when a connection is seen to have ended.
    """
    missing = {"overlaps", "killed", "terminated", "late", "cut off", "torn"}
    missing |= {"failed", "quiet"}
    for seed in (28, 29, 30):
        counts = live(seed, runs=40)
        missing = {what for what in missing if not counts[what]}
        if not missing:
            break
    assert not missing
