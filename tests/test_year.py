"""The simulated years of tests/simulation/year.py, for a short while.

First with the program as it is; then with broken copies of it, each of which must be
noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import duo_phone_cleanup
from duo_phone_cleanup import (
    UNCONFIRMED,
    DuoAdmin,
    Event,
    Failure,
    Journal,
    Outputs,
    Page,
    Phone,
    Record,
    Run,
    Verdict,
    boot_seconds,
    is_limbo,
    read_tag,
    verdict,
)
from tests.simulation.year import ZONES, live

# A run that dies leaves its connections open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("_garbage_collected"),
]

SEEDS = range(1, 61)
"""Of the years in which a broken copy must be noticed: it ends the first of them."""


@pytest.mark.parametrize("seed", range(len(ZONES)))
def test_a_year_in_which_every_promise_is_kept(seed: int) -> None:
    """One in each time zone."""
    counts = live(seed, runs=40)
    for what in ("stamped", "deleted", "faults"):
        assert counts[what]


def test_a_year_has_its_misfortunes() -> None:
    counts = live(5, runs=60)
    for what in ("overlaps", "killed", "late", "cut off", "torn", "failed", "quiet"):
        assert counts[what]


def live_until_noticed(noticed: str, *first: int) -> None:
    """Live through years; one of them has to fail with a message like this.

    `first` are the seeds of years that have failed so at once, where few years do.
    They may no longer when the program has changed: then this takes longer.
    """
    with pytest.raises(AssertionError, match=noticed):
        live_through([*first, *SEEDS])


def live_through(seeds: Iterable[int]) -> None:
    for seed in seeds:
        live(seed)


# Wrong verdicts


def activated_too(record: Record, now: int, grace_period: int) -> Verdict | None:
    return verdict({**record, "activated": False}, now, grace_period)


def named_too(record: Record, now: int, grace_period: int) -> Verdict | None:
    if read_tag(record) is None:
        record = {**record, "name": ""}
    return verdict(record, now, grace_period)


def in_use_too(record: Record, now: int, grace_period: int) -> Verdict | None:
    return verdict({**record, "last_seen": ""}, now, grace_period)


def in_the_future_too(record: Record, now: int, grace_period: int) -> Verdict | None:
    if not is_limbo(record) and read_tag(record) is not None:
        return Verdict.UNTAG
    return verdict(record, now, grace_period)


def a_minute_early(record: Record, now: int, grace_period: int) -> Verdict | None:
    decided = verdict(record, now, grace_period)
    if decided is Verdict.WAIT:
        return verdict(record, now + 60, grace_period)
    return decided


def a_second_late(record: Record, now: int, grace_period: int) -> Verdict | None:
    decided = verdict(record, now, grace_period)
    if decided is Verdict.DELETE:
        return verdict(record, now - 1, grace_period)
    return decided


@pytest.mark.parametrize(
    "wrong",
    [
        activated_too,
        named_too,
        in_use_too,
        in_the_future_too,
        a_minute_early,
        a_second_late,
    ],
)
def test_a_wrong_verdict_is_noticed(
    wrong: Callable[[Record, int, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "verdict", wrong)
    live_until_noticed(r"was due|left after|, not \{|failures: ", 16)


# Wrong reads and writes

read_again = Run.read_again
still_stands = Run.still_stands
deal_with = Run.deal_with
plan = Run.plan
rename = Run.rename
ask_for_users = DuoAdmin._ask_for_users
write_json = Outputs.write_json


def test_a_stale_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 10**6)
    live_until_noticed("s before")


def test_a_clock_that_sleeps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def awake_seconds() -> Any:
        return vars(duo_phone_cleanup)["time"].monotonic()

    monkeypatch.setattr(duo_phone_cleanup, "boot_seconds", awake_seconds)
    live_until_noticed("s before", 16, 28, 12)


def test_a_read_without_eyes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(run: Run, phone: Phone) -> None:
        sent = boot_seconds()
        read_again(run, phone)
        phone.read_sent = sent
        phone.tag_to_write = run.now()

    monkeypatch.setattr(Run, "read_again", blind)
    live_until_noticed("was due|with the tag|s before")


def test_a_write_to_a_phone_that_has_moved_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def anybodys(run: Run, phone: Phone, record: Record, now: int) -> bool:
        phone.users = []
        return still_stands(run, phone, record, now)

    monkeypatch.setattr(Run, "still_stands", anybodys)
    live_until_noticed("moved to", 18, 2, 5)


def test_a_forgotten_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(run: Run, phone: Phone, reading: Any) -> Event:
        try:
            return deal_with(run, phone, reading)
        except Failure as failure:
            if UNCONFIRMED in str(failure):
                return Event.CHANGED
            raise

    monkeypatch.setattr(Run, "deal_with", forgetful)
    live_until_noticed("told changed")


def test_a_deletion_by_somebody_else_told_as_its_own_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boastful(run: Run, phone: Phone, reading: Any) -> Event:
        event = deal_with(run, phone, reading)
        if event is Event.GONE:
            return Event.DELETED
        return event

    monkeypatch.setattr(Run, "deal_with", boastful)
    live_until_noticed("not deleted")


# Wrong runs


def test_a_limit_of_phones_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_phones(run: Run, found: list[Phone]) -> list[Phone]:
        due = [phone for phone in found if phone.verdict is Verdict.DELETE]
        limit = run.settings.max_deletions
        if run.settings.dry_run:  # which would tell of no failure, and delete nothing
            return plan(run, found)
        if limit is None or len(due) <= limit:
            return found
        return plan(run, found)

    monkeypatch.setattr(Run, "plan", by_phones)
    live_until_noticed("users lose a phone", 26, 1, 17)


def test_a_walk_that_ends_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def credulous(duo: DuoAdmin, params: dict[str, str]) -> Page:
        page = ask_for_users(duo, params)
        if page.next_offset is None:
            page = page._replace(total=0)
        return page

    monkeypatch.setattr(DuoAdmin, "_ask_for_users", credulous)
    live_until_noticed("the walk has not ended", 13, 5, 4)


def test_a_run_that_does_not_give_up_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_FAILED_IN_A_ROW", 100)
    live_until_noticed("goes on after", 24, 14)


# Wrong journals


def test_a_journal_without_lines_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "write", lambda *_: None)
    live_until_noticed("not in the journal")


def test_a_line_glued_to_a_torn_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def glue(journal: Journal, line: str) -> None:
        os.write(journal.file, f"{line}\n".encode())

    monkeypatch.setattr(Journal, "write", glue)
    live_until_noticed("not in the journal")


def test_a_line_that_is_not_on_the_disk_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsynced(outputs: Outputs, facts: Record, *, to_disk: bool = False) -> None:
        write_json(outputs, facts)

    monkeypatch.setattr(Outputs, "write_json", unsynced)
    live_until_noticed("not in the journal")


def test_a_record_of_what_came_after_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rename_both(run: Run, phone: Phone, name: str) -> Event:
        event = rename(run, phone, name)
        phone.record = {**phone.record, "name": name}
        return event

    monkeypatch.setattr(Run, "rename", rename_both)
    live_until_noticed("no longer")
