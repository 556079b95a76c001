"""The simulated years of tests/simulation/year.py, for a short while."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import duo_phone_cleanup
from duo_phone_cleanup import OPTIONS, Phone, Record, Run, Verdict, read_tag, verdict
from tests.simulation.year import ZONES, live

# A run that dies leaves its connections open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.mark.parametrize("seed", range(len(ZONES)))
def test_a_year_in_which_every_promise_is_kept(seed: int) -> None:
    counts = live(seed, runs=40)
    assert all(counts[what] for what in ("stamped", "deleted", "faults"))


def activated_too(phone: Record, now: int, grace_period: int) -> object:
    return verdict({**phone, "activated": False}, now, grace_period)


def named_too(phone: Record, now: int, grace_period: int) -> object:
    name = phone.get("name") if read_tag(phone) else ""
    return verdict({**phone, "name": name}, now, grace_period)


def in_use_too(phone: Record, now: int, grace_period: int) -> object:
    return verdict({**phone, "last_seen": ""}, now, grace_period)


def a_minute_early(phone: Record, now: int, grace_period: int) -> object:
    says, later = (verdict(phone, at, grace_period) for at in (now, now + 60))
    return later if says is Verdict.WAIT and later is Verdict.DELETE else says


def a_second_late(phone: Record, now: int, grace_period: int) -> object:
    says, before = (verdict(phone, at, grace_period) for at in (now, now - 1))
    return before if says is Verdict.DELETE else says


@pytest.mark.parametrize(
    "wrong", [activated_too, named_too, in_use_too, a_minute_early, a_second_late]
)
def test_a_year_with_a_wrong_verdict_is_noticed(
    wrong: Callable[[Record, int, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "verdict", wrong)
    with pytest.raises(AssertionError, match=r"was due|left after|not \{"):
        list(map(live, range(1, 9)))


def blind(run: Run, phone: Phone) -> str:
    recheck(run, phone)
    return ""


def forgotten(path: str) -> Callable[[str], None]:
    return lambda _: None


def glued(path: str) -> Callable[[str], object]:
    file = vars(duo_phone_cleanup)["os"].open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    return lambda line: os.write(file, f"{line}\n".encode())


def journal(wrong: Callable[[str], object]) -> Record:
    """OPTIONS, where --journal is opened wrong."""
    right = duo_phone_cleanup.to_journal
    return {
        title: [
            (row[0], wrong if row[1] is right else row[1], *row[2:]) for row in rows
        ]
        for title, rows in OPTIONS.items()
    }


recheck = Run.recheck


@pytest.mark.parametrize(
    ("where", "name", "wrong", "noticed"),
    [
        (duo_phone_cleanup, "FRESH", 1e9, "s before"),
        (Run, "recheck", blind, "was due|with the tag"),
        (duo_phone_cleanup, "OPTIONS", journal(forgotten), "not in the journal"),
        (duo_phone_cleanup, "OPTIONS", journal(glued), "not in the journal"),
    ],
)
def test_a_year_with_a_wrong_run_is_noticed(
    where: object,
    name: str,
    wrong: object,
    noticed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=noticed):
        list(map(live, range(1, 9)))
