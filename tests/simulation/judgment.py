"""What must hold of every run of a simulated year.

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
from tests.simulation.runs import Attempt, Write
from tests.simulation.tenant import Record

FRESH = 2  # seconds: a write comes no later after the read of its phone was asked for
DELAY = 1  # seconds that a request may take to arrive, by the real clock
IN_A_ROW = 4  # phones that fail in passing, one after the other: then a run ends
PASSING = (
    "no answer from ",
    " answers 5",
    "more than 2 s passed",
    "cannot be read",
    "is not the record of this phone",
    "does not say whose",
    "is not Duo's Admin API",
)
"""What is told of a phone that failed in passing."""
TERMINATED = 143  # exit status after a SIGTERM
UNCONFIRMED = "it may still be carried out"
DEEDS = ("stamped", "deleted", "untagged")
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
        if attempt.real or attempt.drips:
            limit += DELAY
        self.check(age <= limit, f"{about}: read {age:.1f} s before")
        due = read.phone.due(now, attempt.grace_period)
        self.check(due == write.deed, f"{about}: {due} was due at {now} to {read}")
        whole = attempt.names or len(attempt.listed) >= attempt.total > 0
        self.check(whole, f"{about}: the walk has not ended")
        self.check(not attempt.dry, f"{about}: in a dry run")
        wanted = attempt.untag or write.deed != "untagged"
        self.check(wanted, f"{about}: without --untag")
        agreed = not attempt.asks or attempt.agreed & {"", write.phone_id}
        self.check(agreed, f"{about}: nobody said yes")
        self.judge_owners(attempt, write, about)
        if write.deed == "stamped":
            tag = re.fullmatch("[0-9]{10}", write.name)
            right = tag and read.now <= int(write.name) <= now
            text = f"{write.name}, not from {read.now} to {now}"
            self.check(right, f"{about}: {text}")
        if write.deed == "deleted":
            self.judge_deletion(attempt, write, about)

    def judge_owners(self, attempt: Attempt, write: Write, about: str) -> None:
        """Everybody it was said to be of must still have the phone."""
        owners = owners_of(write.read.record)
        self.check(attempt.concerns(owners), f"{about}: nobody named {owners}")
        known = attempt.counted.get(write.phone_id, set())
        known = known | attempt.asked_about.get(write.phone_id, set())
        self.check(known <= owners, f"{about}: of {known}, moved to {owners}")

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
        """Return what a run is to do if nothing happens meanwhile."""
        deeds = self.due(attempt, now)
        if attempt.dry or self.within_limit(attempt, deeds):
            return deeds
        return {key: deed for key, deed in deeds.items() if deed != "deleted"}

    def foretell_failures(self, attempt: Attempt, now: float) -> int:
        """Return how many failures it tells of then: a limit that is exceeded."""
        exceeded = not self.within_limit(attempt, self.due(attempt, now))
        return int(exceeded and attempt.limit != 0)

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

    def review(self, attempt: Attempt, expected: dict[str, str], failures: int) -> None:
        """Hold what a run told against what it did.

        `expected` are its deeds and `failures` its failures if it is a quiet one.
        """
        about = f"run {attempt.number}"
        attempt.err.seek(0)
        err = attempt.err.read()
        self.check("Traceback" not in err, f"{about}: {err}")
        journal = attempt.journal()
        outcomes = self.outcomes(attempt, journal, about)
        self.review_deeds_told(attempt, outcomes, about)
        self.review_events(attempt, journal, about)
        self.review_file(attempt, about)
        if attempt.dead:
            return
        self.review_deeds_done(attempt, outcomes, about)
        self.review_failures_in_a_row(journal, about)
        told = Counter(event["event"] for event in journal)
        self.review_summary(attempt, journal, told, about)
        if attempt.quiet:
            self.review_quiet(attempt, outcomes, told, expected, failures, about)

    def outcomes(
        self, attempt: Attempt, journal: list[Record], about: str
    ) -> dict[str, str]:
        """Return what became of each phone."""
        outcomes: dict[str, str] = {}
        for event in journal:
            what = event["event"]
            phone_id = event.get("phone_id")
            if not phone_id or what in ("deleting", "waiting", "named"):
                continue
            self.check(phone_id not in outcomes, f"{about}: twice told of {phone_id}")
            outcomes[phone_id] = what
        return outcomes

    def review_deeds_told(
        self, attempt: Attempt, outcomes: dict[str, str], about: str
    ) -> None:
        """What is told must have been sent, and done."""
        kinds = {fault.kind for fault in attempt.faults}
        possible = attempt.done & attempt.sent
        # Sent on a connection that has just ended, and never seen by the tenant.
        if "close_after" in kinds or (attempt.parallel and attempt.cut_at):
            possible |= attempt.done
        if "answer" in kinds:  # even to a refusal
            possible |= attempt.sent
        for phone_id, what in outcomes.items():
            right = what not in DEEDS or (what, phone_id) in possible
            self.check(right, f"{about}: not {what} {phone_id}")
            there = what in ("gone", "deleted") and phone_id in self.people.phones
            self.check(not there, f"{about}: {what} is still there: {phone_id}")

    def review_events(
        self, attempt: Attempt, journal: list[Record], about: str
    ) -> None:
        """What is told of a deed must be what it relied on, and what it wrote."""
        for event in journal:
            what = event["event"]
            phone_id = event.get("phone_id")
            writes = [each for each in attempt.writes if each.phone_id == phone_id]
            if what == "stamped" and writes:
                tags = [iso(int(each.name)) for each in writes]
                right = event["tagged"] in tags
                self.check(right, f"{about}: {event}, sent {tags}")
            unrefused = [each for each in writes if each.sequence not in self.refused]
            if what == "failed" and unrefused:
                right = UNCONFIRMED in event["error"]
                self.check(right, f"{about}: does not say what may come: {event}")
            if what == "untagged" and writes:
                names = [each.read.record["name"] for each in writes]
                right = event["record"].get("name") in names
                self.check(right, f"{about}: no longer {names}: {event}")

    def review_file(self, attempt: Attempt, about: str) -> None:
        """The file has all that standard output has."""
        if attempt.dead or attempt.dry or not attempt.file or attempt.journal_breaks:
            return
        missing = {*attempt.lines()} - {*attempt.written()}
        self.check(not missing, f"{about}: not in the journal: {missing}")

    def review_deeds_done(
        self, attempt: Attempt, outcomes: dict[str, str], about: str
    ) -> None:
        """What was sent must be told, as done or as failed: it may yet be done."""
        for write in attempt.writes:
            outcome = outcomes.get(write.phone_id)
            fair: set[str | None] = {write.deed}
            if attempt.troubled or attempt.told_to_end:
                fair.add("failed")
            if attempt.deeds.get(write.phone_id) != "deleted":
                fair.add("gone")  # if it is: see above
            if attempt.journal_breaks and write.deed == "deleted":
                fair.add(None)  # "deleting" was the last that could be told of it
            if write.sequence in self.refused:
                fair.update(("changed", "failed"))
            text = f"{write.deed} {write.phone_id}, told {outcome}"
            self.check(outcome in fair, f"{about}: {text}")

    def review_failures_in_a_row(self, journal: list[Record], about: str) -> None:
        """So many phones that fail in passing, one after the other, end a run."""
        in_a_row = 0
        for event in journal:
            what = event["event"]
            if "phone_id" not in event or what in ("deleting", "waiting", "named"):
                continue
            self.check(in_a_row < IN_A_ROW, f"{about}: goes on after {in_a_row}")
            if what == "failed" and any(text in event["error"] for text in PASSING):
                in_a_row += 1
            else:
                in_a_row = 0
        ends = [event for event in journal if "phones in a row" in str(event)]
        self.check(in_a_row == IN_A_ROW or not ends, f"{about}: {in_a_row}, {ends}")

    def review_summary(
        self,
        attempt: Attempt,
        journal: list[Record],
        told: Counter[str],
        about: str,
    ) -> None:
        """The last line counts what was told, and has the exit status."""
        summary: Record = {}
        if journal:
            summary = journal[-1]
        most = 1
        if attempt.journal_breaks:  # at the first one: that changes the status
            most = 2
        right = summary.get("event") == "summary" and told.pop("summary") <= most
        self.check(right, f"{about}: no summary, or too many: {journal}")
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
        self,
        attempt: Attempt,
        outcomes: dict[str, str],
        told: Counter[str],
        expected: dict[str, str],
        failures: int,
        about: str,
    ) -> None:
        """A run to which nothing happens does all that is due, and no more."""
        did = {}
        for phone_id, what in outcomes.items():
            if attempt.dry:
                did[phone_id] = DEEDS_OF_A_DRY_RUN.get(what, what)
            else:
                did[phone_id] = what
        self.check(did == expected, f"{about}: did {did}, not {expected}")
        unknown = attempt.names.count("nobody")
        self.check(told["unknown_user"] == unknown, f"{about}: unknown users: {told}")
        self.check(told["failed"] == failures, f"{about}: failures: {told}")
        # A request on a connection that has just been closed does not arrive.
        requests = attempt.journal()[-1].get("requests", 0)
        lost = requests - attempt.requests
        right = lost == 0 or (lost > 0 and attempt.faults)
        self.check(right, f"{about}: {attempt.requests} requests, told {requests}")
