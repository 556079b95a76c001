"""The simulated years of tests/simulation/year.py, for a short while.

First with the program as it is; then with broken copies of it, each of which must be
noticed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

import duo_phone_cleanup
from duo_phone_cleanup import (
    DuoAdmin,
    Event,
    Journal,
    Page,
    Phone,
    Record,
    Report,
    Run,
    Stop,
    Stopped,
    Verdict,
    is_limbo,
    read_tag,
    users_of,
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
    counts = live(5) + live(6)
    for what in ("overlaps", "killed", "terminated", "late", "cut off", "torn"):
        assert counts[what]
    assert counts["failed"]
    assert counts["quiet"]


def live_until_noticed(noticed: str, *first: int) -> None:
    """Live through years until one of them fails with a message like this.

    `first` are the seeds of years that have done so at once, where few years do.
    They may no longer when the program has changed: then this takes longer.
    """
    for seed in (*first, *SEEDS):
        try:
            live(seed)
        except AssertionError as error:
            if re.search(noticed, str(error)):
                return
    pytest.fail(f"Not noticed: {noticed}")


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


def unknown_too(record: Record, now: int, grace_period: int) -> Verdict | None:
    if record.get("activated") is not True:
        record = {**record, "activated": False}
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
        unknown_too,
        a_minute_early,
        a_second_late,
    ],
)
def test_a_wrong_verdict_is_noticed(
    wrong: Callable[[Record, int, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "verdict", wrong)
    live_until_noticed(r"was due|left after|, not \{|failures: ")


def test_an_old_number_that_is_taken_for_a_tag_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "FIRST_TAG", 10**9)
    live_until_noticed("None was due")


# Wrong reads and writes

read_again = Run.read_again
change = Run.change
carry_out = Run.carry_out
plan = Run.plan
page_of = DuoAdmin.page_of
event = Report.event
note = Stop.note
write = Journal.write
ends_in_torn_line = Journal.ends_in_torn_line


def test_a_stale_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "READ_VALID_SECONDS", 10**6)
    live_until_noticed("s before")


def test_a_clock_that_sleeps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def awake_seconds() -> Any:
        return vars(duo_phone_cleanup)["time"].monotonic()

    monkeypatch.setattr(duo_phone_cleanup, "boot_seconds", awake_seconds)
    live_until_noticed("s before")


def test_a_read_without_eyes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "change", lambda *_: "")
    live_until_noticed("was due|with the tag|moved to")


def test_a_write_to_a_phone_that_has_moved_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def anybodys(run: Run, phone: Phone, record: Record, now: int) -> str:
        phone.users = users_of(record)
        return change(run, phone, record, now)

    monkeypatch.setattr(Run, "change", anybodys)
    live_until_noticed("moved to")


def test_a_write_to_a_phone_that_has_gained_a_user_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_others(run: Run, phone: Phone, record: Record, now: int) -> str:
        if phone.users.keys() <= users_of(record).keys():
            phone.users = users_of(record)
        return change(run, phone, record, now)

    monkeypatch.setattr(Run, "change", with_others)
    live_until_noticed("moved to")


def test_a_forgotten_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(run: Run, phone: Phone, reading: Any) -> None:
        phone.perhaps_written = False
        read_again(run, phone, reading)

    monkeypatch.setattr(Run, "read_again", forgetful)
    live_until_noticed("told (changed|gone)|does not say what may come")


def test_a_write_that_is_not_looked_after_at_last_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(run: Run, phone: Phone, reading: Any) -> None:
        if phone.verdict.verb in run.agreed:
            run.duo.retry(run.read_and_write, phone, reading)
        else:
            carry_out(run, phone, reading)

    monkeypatch.setattr(Run, "carry_out", hasty)
    live_until_noticed("does not look after", 8, 6)


def test_another_tag_at_another_try_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def afresh(run: Run, phone: Phone, reading: Any) -> None:
        read_again(run, phone, reading)
        if phone.verdict.verb == "stamp":
            phone.new_name = str(run.now())

    monkeypatch.setattr(Run, "read_again", afresh)
    live_until_noticed("not from", 2, 8, 4)


def test_a_deletion_by_somebody_else_told_as_its_own_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boast(report: Report, what: Event, *about: Any, **details: Any) -> None:
        if what is Event.GONE:
            what = Event.DELETED
        event(report, what, *about, **details)

    monkeypatch.setattr(Report, "event", boast)
    live_until_noticed("not deleted")


def test_a_signal_that_loses_a_record_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_off(stop: Stop, number: int, frame: object) -> None:
        note(stop, number, frame)
        raise Stopped

    monkeypatch.setattr(Stop, "note", break_off)
    live_until_noticed("told None")


# Wrong runs


def test_a_limit_of_phones_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_phones(run: Run, found: list[Phone]) -> list[Phone]:
        due = [phone for phone in found if phone.verdict is Verdict.DELETE]
        limit = run.settings.max_deletions
        if limit is not None and len(due) <= limit:
            run.settings = run.settings._replace(max_deletions=None)
        return plan(run, found)

    monkeypatch.setattr(Run, "plan", by_phones)
    live_until_noticed("users lose a phone|not {", 5, 14)


def test_deletions_before_stamps_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_listed(run: Run, found: list[Phone]) -> list[Phone]:
        plan(run, found)
        return found

    monkeypatch.setattr(Run, "plan", as_listed)
    live_until_noticed("not harmless things first")


def test_a_yes_to_all_that_holds_for_more_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def generous(run: Run, phone: Phone, reading: Any) -> None:
        carry_out(run, phone, reading)
        if run.agreed:
            run.agreed = {"stamp", "untag", "delete"}

    monkeypatch.setattr(Run, "carry_out", generous)
    live_until_noticed("nobody said yes", 16, 22)


def test_a_walk_that_ends_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def credulous(duo: DuoAdmin, call: Any) -> Page:
        page = page_of(duo, call)
        if page.next_offset is None:
            page = page._replace(total=0)
        return page

    monkeypatch.setattr(DuoAdmin, "page_of", credulous)
    live_until_noticed("the walk has not ended")


def test_a_run_that_does_not_give_up_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_FAILED_IN_A_ROW", 100)
    live_until_noticed("goes on after", 13, 24)


# Wrong journals


def test_a_journal_without_lines_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "write", lambda *_, **__: None)
    live_until_noticed("not in the journal")


def test_a_line_glued_to_a_torn_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def glue(journal: Journal, line: str, *, to_disk: bool) -> None:
        os.write(journal.file, f"{line}\n".encode())

    monkeypatch.setattr(Journal, "write", glue)
    live_until_noticed("not in the journal")


def test_a_line_that_is_not_on_the_disk_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsynced(journal: Journal, line: str, *, to_disk: bool) -> None:
        write(journal, line, to_disk=False)

    monkeypatch.setattr(Journal, "write", unsynced)
    live_until_noticed("not in the journal")


def test_a_journal_that_nobody_can_find_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def careless(journal: Journal) -> bool:
        try:
            return ends_in_torn_line(journal)
        except OSError:
            return False

    monkeypatch.setattr(Journal, "ends_in_torn_line", careless)
    live_until_noticed("its journal is broken")
