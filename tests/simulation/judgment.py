"""What must hold of every run of a simulated year, and of every trial.

A write is judged when it reaches the tenant: by when its run was last given the phone,
and by what was true of the phone then, not by its record or by what the program says.
What a run told is judged when it has ended: by what it sent, and what became of that.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque

from tests.simulation.people import People, owners_of
from tests.simulation.runs import Attempt, Write, text_of
from tests.simulation.tenant import Record

FRESH = 2  # seconds: a write comes no later after the read of its phone was asked for
DELAY = 1  # seconds that a request may take to arrive, by the real clock
IN_A_ROW = 4  # phones that fail in passing, one after the other: then a run ends
PASSING = (
    "no answer from ",
    " answers 5",
    "not as Duo does",
    "more than 2 s passed",
    "cannot be read",
    "is not the record of this phone",
    "does not say whose",
)
"""What is told of a phone that failed in passing."""
TERMINATED = 143  # exit status after a SIGTERM
UNCONFIRMED = "it may still be carried out"
DEEDS = ("stamped", "untagged", "deleted")
"""In the order in which a run does them: harmless ones first."""
DEEDS_OF_A_DRY_RUN = {
    "would_stamp": "stamped",
    "would_delete": "deleted",
    "would_untag": "untagged",
}


def iso(seconds: int | None) -> str | None:
    """Return a time as the journal has it."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def last_login(users: list[Record]) -> str | None:
    """Return when one of these users last logged in, as the journal has it."""
    logins = [user.get("last_login") for user in users]
    return iso(max((each for each in logins if each is not None), default=None))


class Judgment:
    """Holds what a year's runs do against what the program promises."""

    def __init__(self, people: People, story: deque[str]) -> None:
        self.people = people
        self.story = story
        self.refused: set[int] = set()
        """The writes that were answered with a refusal, which leaves nothing open."""
        self.wrongs: list[str] = []

    def check(self, right: object, wrong: str) -> None:
        """Note what is wrong. It is raised later: this may be a tenant thread."""
        if not right:
            self.wrongs.append(wrong)
            self.story.append(f"WRONG: {wrong}")

    def raise_if_wrong(self) -> None:
        if self.wrongs:
            raise AssertionError("\n".join([*self.story, "", *self.wrongs]))

    # A write

    def judge(self, attempt: Attempt, write: Write, now: float, passed: float) -> None:
        """Hold a write against the promise, before it is carried out.

        `now` is by the clock of its run, `passed` by that of its read.
        """
        about = f"run {attempt.number}, {write.deed} {write.phone_id}"
        read = write.read
        age = passed - read.asked
        limit = FRESH
        if attempt.real:
            limit += DELAY
        self.check(age <= limit, f"{about}: read {age:.1f} s before")
        due = read.phone.due(now, attempt.grace_period)
        self.check(due == write.deed, f"{about}: {due} was due at {now} to {read}")
        whole = attempt.names or len(attempt.listed) >= attempt.total > 0
        self.check(whole, f"{about}: the walk has not ended")
        self.check(not attempt.dry, f"{about}: in a dry run")
        wanted = attempt.untag or write.deed != "untagged"
        self.check(wanted, f"{about}: without --untag")
        agreed = not attempt.asks or attempt.agreed & {write.deed, write.phone_id}
        self.check(agreed, f"{about}: nobody said yes")
        self.check(not attempt.journal_broke, f"{about}: its journal is broken")
        order = [DEEDS.index(each.deed) for each in attempt.writes]
        self.check(order == sorted(order), f"{about}: not harmless things first")
        self.judge_owners(attempt, write, about)
        if write.deed == "stamped":
            self.judge_tag(attempt, write, now, about)
        if write.deed == "deleted":
            self.judge_deletion(attempt, write, about)

    def judge_owners(self, attempt: Attempt, write: Write, about: str) -> None:
        """The phone must be of those it was said to be of, and of nobody else."""
        owners = owners_of(write.read.record)
        self.check(attempt.concerns(owners), f"{about}: nobody named {owners}")
        counted = attempt.counted.get(write.phone_id, set())
        for known in (counted, attempt.asked_about.get(write.phone_id, counted)):
            self.check(known == owners, f"{about}: of {known}, moved to {owners}")

    def judge_tag(self, attempt: Attempt, write: Write, now: float, about: str) -> None:
        """It is the time of the read, or as before where that may still be written."""
        tags = [
            each.name
            for each in attempt.writes
            if each.phone_id == write.phone_id and each.sequence not in self.refused
        ]
        since = write.read.now
        if attempt.loses_unseen:
            since = attempt.first_read[write.phone_id]
        tag = re.fullmatch("[0-9]{10}", write.name)
        right = tag and since <= int(write.name) <= now
        if len(tags) > 1:
            right = write.name == tags[0]
        text = f"{write.name}, not from {since} to {now}, or {tags}"
        self.check(right, f"{about}: {text}")

    def judge_deletion(self, attempt: Attempt, write: Write, about: str) -> None:
        """It is in the journal, and within the limit."""
        read = write.read
        same = (write.phone_id, read.phone.tag) in attempt.tags
        self.check(same, f"{about}: not with the tag of the walk")
        lines = attempt.lines()
        self.check(lines, f"{about}: nothing told")
        if not lines:
            return
        event = json.loads(lines[-1])
        expected = {
            "event": "deleting",
            "phone_id": write.phone_id,
            "record": read.record,
            "users": [user["username"] for user in read.record["users"]],
            "tagged": iso(read.phone.tag),
            "last_login": last_login(read.record["users"]),
        }
        right = expected.items() <= event.items()
        self.check(right, f"{about}: told {event}, not {expected}")
        if attempt.file:
            safe = lines[-1] in attempt.written(on_disk=not attempt.real)
            self.check(safe, f"{about}: not in the journal")
        if attempt.limit is not None:
            users: set[str] = set()
            for each in attempt.writes:
                if each.deed == "deleted":
                    users |= attempt.counted.get(each.phone_id, set())
            text = f"{len(users)} users lose a phone, more than {attempt.limit}"
            self.check(len(users) <= attempt.limit, f"{about}: {text}")

    # What a run is to do

    def foretell(self, attempt: Attempt, now: float) -> dict[str, str]:
        """Return what becomes of which phone if nothing happens meanwhile."""
        deeds = self.due(attempt, now)
        if not self.within_limit(attempt, deeds):
            for phone_id, deed in deeds.items():
                if deed == "deleted":
                    deeds[phone_id] = "left"
        return deeds

    def due(self, attempt: Attempt, now: float) -> dict[str, str]:
        """Return what is due to the phones that a run is to look at."""
        deeds = {}
        for phone_id, phone in self.people.phones.items():
            deed = phone.due(now, attempt.grace_period)
            if deed is None or not attempt.concerns({*self.people.owners(phone_id)}):
                continue
            if attempt.untag or deed != "untagged":
                deeds[phone_id] = deed
        return deeds

    def within_limit(self, attempt: Attempt, deeds: dict[str, str]) -> bool:
        """Tell whether as many users may lose a phone as would."""
        users: set[str] = set()
        for phone_id, deed in deeds.items():
            if deed == "deleted":
                users.update(self.people.owners(phone_id))
        return attempt.limit is None or len(users) <= attempt.limit

    # What a run told

    def review(self, attempt: Attempt, expected: dict[str, str]) -> None:
        """Hold what a run told against what it did, and a quiet one was to do."""
        about = f"run {attempt.number}"
        err = text_of(attempt.err)
        self.check("Traceback" not in err, f"{about}: {err}")
        self.review_deeds_told(attempt, about)
        for event in attempt.journal():
            self.review_event(attempt, event, about)
        self.review_file(attempt, about)
        if attempt.dead:
            return
        self.review_deeds_done(attempt, about)
        self.review_failures_in_a_row(attempt, about)
        self.review_summary(attempt, about)
        if attempt.quiet:
            self.review_quiet(attempt, expected, about)

    def review_deeds_told(self, attempt: Attempt, about: str) -> None:
        """What is told must have been sent, and done."""
        possible = attempt.done & attempt.sent
        if attempt.loses_unseen:
            possible |= attempt.done
        if any("response" in fault.how for fault in attempt.faults):  # to a refusal
            possible |= attempt.sent
        told = [event["phone_id"] for event in attempt.outcomes()]
        self.check(len(told) == len({*told}), f"{about}: twice told of one of {told}")
        for event in attempt.outcomes():
            what = event["event"]
            phone_id = event["phone_id"]
            right = what not in DEEDS or (what, phone_id) in possible
            self.check(right, f"{about}: not {what} {phone_id}")
            there = what in ("gone", "deleted") and phone_id in self.people.phones
            self.check(not there, f"{about}: {what} is still there: {phone_id}")

    def review_event(self, attempt: Attempt, event: Record, about: str) -> None:
        """What is told must be what it relied on, and what it wrote."""
        what = event["event"]
        phone_id = event.get("phone_id")
        writes = [each for each in attempt.writes if each.phone_id == phone_id]
        if what == "changed":
            self.check(event.get("reason"), f"{about}: no reason: {event}")
        if what == "stamped" and writes:
            tags = [iso(int(each.name)) for each in writes]
            self.check(event["tagged"] in tags, f"{about}: {event}, sent {tags}")
        if what == "untagged" and writes:
            names = [each.read.record["name"] for each in writes]
            right = event["record"].get("name") in names
            self.check(right, f"{about}: no longer {names}: {event}")
        open_ones = [each for each in writes if each.sequence not in self.refused]
        if what == "failed" and open_ones:
            right = UNCONFIRMED in event["error"]
            self.check(right, f"{about}: does not say what may come: {event}")
            right = attempt.is_cut_short or attempt.loses_unseen
            right = right or writes[-1].looked_after or writes[-1] not in open_ones
            self.check(right, f"{about}: does not look after it: {event}")

    def review_file(self, attempt: Attempt, about: str) -> None:
        """The file has all that standard output has: it comes first."""
        if attempt.dry or not attempt.file or attempt.journal_breaks:
            return
        missing = sorted({*attempt.lines()} - {*attempt.written()})
        self.check(not missing, f"{about}: not in the journal: {missing}")

    def review_deeds_done(self, attempt: Attempt, about: str) -> None:
        """What was sent must be told, as done or as failed: it may yet be done."""
        outcomes = {each["phone_id"]: each["event"] for each in attempt.outcomes()}
        for write in attempt.writes:
            outcome = outcomes.get(write.phone_id)
            fair: set[str | None] = {write.deed}
            if attempt.troubled or (attempt.real and attempt.told_to_end):
                fair.add("failed")
            if attempt.deeds.get(write.phone_id) != "deleted":
                fair.add("gone")  # if it is: see above
            if attempt.journal_breaks and write.deed == "deleted":
                fair.add(None)  # "deleting" was the last that could be told of it
            if write.sequence in self.refused:
                fair.update(("changed", "failed"))
                if attempt.is_cut_short:
                    fair.add(None)  # it changed nothing
            text = f"{write.deed} {write.phone_id}, told {outcome}"
            self.check(outcome in fair, f"{about}: {text}")

    def review_failures_in_a_row(self, attempt: Attempt, about: str) -> None:
        """So many phones that fail in passing, one after the other, end a run."""
        in_a_row = 0
        for event in attempt.outcomes():
            self.check(in_a_row < IN_A_ROW, f"{about}: goes on after {in_a_row}")
            error = event.get("error", "")
            in_a_row += 1
            if not any(text in error for text in PASSING):
                in_a_row = 0
        ends = [each for each in attempt.lines() if "phones in a row" in each]
        self.check(in_a_row == IN_A_ROW or not ends, f"{about}: {in_a_row}, {ends}")

    def review_summary(self, attempt: Attempt, about: str) -> None:
        """The last line counts what was told, and has the exit status."""
        told = Counter(event["event"] for event in attempt.journal())
        most = 1
        if attempt.journal_breaks:  # at the first one: that changes the status
            most = 2
        summary: Record = [{}, *attempt.journal()][-1]
        right = summary.get("event") == "summary" and told.pop("summary") <= most
        self.check(right, f"{about}: no summary, or too many: {attempt.lines()}")
        right = told.items() <= summary.items()
        self.check(right, f"{about}: {told} is summed up as {summary}")
        fair = {int(bool(told["failed"] or told["unknown_user"]))}
        if attempt.told_to_end:  # perhaps too late
            fair.add(TERMINATED)
        text = f"exit {attempt.status} after {told}, {summary}"
        self.check(attempt.status in fair, f"{about}: {text}")
        same = summary.get("exit_status") == attempt.status
        self.check(same, f"{about}: {text}")

    def review_quiet(
        self, attempt: Attempt, expected: dict[str, str], about: str
    ) -> None:
        """A run to which nothing happens does all that is due, and no more."""
        did = {}
        for event in attempt.outcomes():
            what = event["event"]
            did[event["phone_id"]] = DEEDS_OF_A_DRY_RUN.get(what, what)
        told = Counter(event["event"] for event in attempt.journal())
        failures = int("left" in expected.values() and attempt.limit != 0)
        self.check(told["failed"] == failures, f"{about}: failures: {told}")
        unknown = attempt.names.count("nobody")
        self.check(told["unknown_user"] == unknown, f"{about}: unknown users: {told}")
        if not attempt.tells_all:
            expected = {k: what for k, what in expected.items() if what != "left"}
        self.check(did == expected, f"{about}: did {did}, not {expected}")
        # A request on a connection that has just been closed does not arrive.
        requests = attempt.journal()[-1].get("requests", 0)
        lost = requests - attempt.requests
        right = lost == 0 or (lost > 0 and attempt.faults)
        self.check(right, f"{about}: {attempt.requests} requests, told {requests}")

    # What is known of a trial alone

    def review_found(self, attempt: Attempt, found: set[str]) -> None:
        """A run that goes well forgets no phone to which something was due."""
        left = found - {event["phone_id"] for event in attempt.outcomes()}
        text = f"run {attempt.number}: nothing told of {left}"
        self.check(attempt.status or not left, text)

    def review_no_failure(self, attempt: Attempt, *, exceeds_limit: bool) -> None:
        """What befell this run is no failure, unless more users lose a phone by it."""
        for event in attempt.journal():
            if event["event"] != "failed":
                continue
            right = exceeds_limit and "--max-deletions" in event["error"]
            self.check(right, f"run {attempt.number}: failed, and need not: {event}")
