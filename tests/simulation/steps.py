"""Every step, every misfortune: all that can happen to a run, tried without chance.

What a run does to a phone is a handful of steps. In each case, each misfortune of one
table happens at each step of the other one at which it can: alone (test_steps.py), or
two together::

    python -m tests.simulation.steps

A `Trial` is a `Year` of one run, to which nothing happens but what is planned.
judgment.py says what must hold, stage.py takes the place of machine and network. A
broken promise is one line; given back as the argument, it is played again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.people import HOUR, MINUTE, Phone
from tests.simulation.runs import OTHER, Attempt, deed_of, phone_of
from tests.simulation.stage import Stage
from tests.simulation.tenant import Record, Request, _Refusal
from tests.simulation.year import Killed, Year

STEPS = {
    "begins": "a connection to Duo is about to be made",
    "arrives": "a request is at Duo, which has not carried it out yet",
    "is answered": "its answer is there or lost, and nobody has looked at it",
    "to the journal": "a line is about to be written to the journal",
    "to stdout": "a line is about to be written to standard output",
    "is asked": "a prompt waits for its answer",
}
"""What a run does that others see, or that can fail: "reading 2 is answered"."""

NOW = 1_800_000_000
GRACE = 10  # minutes
TAG = NOW - GRACE * MINUTE  # its grace period ends at this very second
TOO_LONG = 3  # seconds, for a read
CONSTANTS: Record = {"USERS_A_PAGE": 2, "SLICE_SECONDS": 1, "MAX_WAIT_429_SECONDS": 5}
"""So that there are two pages, and waits are short."""
FIELDS: dict[str, Record] = {
    "stamp": {},
    "delete": {"name": str(TAG)},
    "untag": {"name": str(TAG), "activated": True},
}
WAYS = itertools.product(FIELDS, ("own", "shared"), ("all", "named"), ("force", "ask"))
OUTAGE = "stamp,stamp,stamp,stamp,stamp own named force"
"""Here nothing happens but what goes on "from now on"."""
CASES = [" ".join(way) for way in WAYS]
CASES += ["delete,delete own all force"]
CASES += ["untag,stamp own all force"]
CASES += ["delete,stamp own all ask"]
CASES += [OUTAGE]
"""What is due to each phone, whose they are, who is looked at, and by whose leave."""
Plan = tuple[tuple[str, str], ...]  # steps, and the misfortunes at them
Misfortune = tuple[str, Callable[["Trial"], object]]
"""At which steps it can happen (a regular expression), and what it does."""


@dataclass
class Tried(Attempt):
    """A run, and what befalls it besides."""

    quiet: bool = True  # nothing befalls it
    loses_unseen: bool = False  # what it sends arrives, or it is told at once
    loses: bool = False  # an answer, or it comes too late
    deaf: bool = False  # nobody reads its standard output any more
    reply: str = "y"  # to a prompt
    told: list[str] = field(default_factory=list)  # in the journal
    kept: list[str] | None = None  # what was in the journal when that was removed

    @property
    def troubled(self) -> bool:
        return self.loses or super().troubled

    @property
    def is_cut_short(self) -> bool:
        return self.deaf or super().is_cut_short

    def lines(self) -> list[str]:
        if not self.deaf:
            return super().lines()
        # Where the summary could not be told, another one follows.
        former = [line for line in self.told[:-1] if '"summary"' not in line]
        return former + self.told[-1:]

    def written(self, *, on_disk: bool = False) -> list[str]:
        if self.kept is not None:
            return self.kept
        return super().written(on_disk=on_disk)


class Trial(Year):
    """A year of one run, to which nothing happens but what is planned."""

    def __init__(self, stage: Stage, case: str, plan: Plan) -> None:
        super().__init__(stage.directory, seed=0, real=0)
        self.disk = stage.disk
        self.disk.year = self
        stage.trial = self
        self.clock.now = NOW
        self.case = case
        self.plan = plan
        self.steps: dict[str, list[str]] = {}  # and what could happen at each
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.happened = 0  # of what is planned
        self.found: dict[str, str | None] = {}  # what was due, as its walk saw it
        self.broken = ""  # the promises, in one line
        self.request: Request | None = None  # of the run, until it is answered
        self.done_500: set[int] = set()  # carried out, and answered with 500
        self.delay = 0  # seconds until an answer comes
        self.tenant.on_request(self.arrived)
        self.tenant.after_request(self.refuse_500)
        for name in ("ann", "bob", "cat"):
            self.tenant.add_user(name, created=NOW)
        verbs, whose, who, leave = case.split()
        owners = ["ann"]
        if whose == "shared":
            owners.append("cat")  # on the other page
        self.run = Tried(1, GRACE, file=self.file, limit=len(owners))  # it just fits
        self.run.untag = "untag" in verbs
        self.run.asks = leave == "ask"
        if who == "named":
            self.run.names = ["ann"]
        for verb in verbs.split(","):
            self.add_phone(verb, owners)

    def add_phone(self, verb: str, owners: list[str]) -> None:
        """Add a phone to which this is due. What befalls a phone befalls the last."""
        fields = FIELDS[verb]
        self.phone_id = self.tenant.add_phone(*owners, **fields)
        phone = Phone(limbo=verb != "untag", activated=verb == "untag")
        if fields:
            phone.tag = TAG
        self.people.phones[self.phone_id] = phone

    def play(self) -> None:
        """Carry the run out, with all that is planned."""
        Path(self.file).unlink(missing_ok=True)
        with contextlib.suppress(AssertionError):
            self.carry_out(self.run)
        self.arrive()
        self.review()
        if self.judgment.wrongs:
            befell = [" @ " + ": ".join(each) for each in self.plan]
            wrongs = " ".join("; ".join(self.judgment.wrongs).split())
            self.broken = f"{self.case}{''.join(befell)} => {wrongs}"

    def review(self) -> None:
        """Judge what cannot be judged of a year: here, all that happens is planned."""
        if self.run.dead:
            return
        if self.run.reply in ("y", "n", "a"):
            found = {phone_id for phone_id, due in self.found.items() if due}
            self.judgment.review_found(self.run, found)
        names = {name for _, name in self.plan}
        more_users = names & {"it gains a user", "it moves"}
        if len(self.plan) == 1:
            names -= {*RIDDEN_OUT}
        if names <= {*GOING_ON}:
            self.judgment.review_no_failure(self.run, exceeds_limit=bool(more_users))

    def note_page(self, attempt: Attempt, params: Record) -> None:
        super().note_page(attempt, params)
        if attempt is not self.run:
            return
        for phone_id in attempt.counted.keys() - self.found.keys():
            phone = self.people.phones[phone_id]
            self.found[phone_id] = phone.due(self.time(attempt), GRACE)

    # The steps

    def step(self, subject: str, what: str) -> None:
        """The run has come to a step: now comes what is planned for it."""
        assert what in STEPS
        if len(self.running) > 1:
            return  # it is another run
        if self.run.dead:
            raise Killed
        self.numbers[subject, what] += 1
        label = f"{subject} {self.numbers[subject, what]} {what}"
        self.steps[label] = possible(label, self.has_phone(), bool(self.held_up))
        for at, misfortune in self.plan:
            if at == label and (self.has_phone() or misfortune not in OF_A_PHONE):
                self.story.append(f"  {label}: {misfortune}")
                self.happened += 1
                self.run.quiet = False
                MISFORTUNES[misfortune][1](self)

    def has_phone(self) -> bool:
        return self.phone_id in self.people.phones

    def arrived(self, request: Request) -> None:
        """A write has been judged before, by what was true then: see Year.receive."""
        if len(self.running) == 1:
            self.request = request
        self.step(subject_of(request), "arrives")

    def refuse_500(self, request: Request) -> None:
        if request.sequence in self.done_500:
            raise _Refusal(50001)

    def note_answer(self, call: Any) -> None:
        call.answered = self.clock.boot() + self.delay
        if len(self.running) > 1:
            return  # it is another run's
        self.delay = 0
        request = self.request
        self.request = None
        if request:
            self.step(subject_of(request), "is answered")

    def meanwhile(
        self, attempt: Attempt, phone_id: str, chance: float = 0, sure: bool = False
    ) -> None:
        """Nothing comes by chance. It is sure where a line is written to stdout."""
        if sure and attempt is self.run:
            self.step("line", "to stdout")
            if self.run.deaf:
                raise BrokenPipeError

    def reply(self, attempt: Attempt, phone_id: str) -> str:
        """Yes is answered to a prompt, unless something else is planned."""
        self.run.reply = "y"
        self.step("prompt", "is asked")
        return self.run.reply

    def constants(self, attempt: Attempt) -> Record:
        return CONSTANTS

    def call_main(self, attempt: Attempt, argv: list[str]) -> None:
        super().call_main(attempt, argv)
        if self.run.deaf and self.run.journal_breaks:
            self.run.dead = True  # it had nowhere to tell anything

    # What the misfortunes do

    def activate(self, activated: bool | None) -> None:
        phone = self.people.change(self.phone_id, activated=activated)
        phone.limbo = False
        phone.activated = bool(activated)

    def call_it(self, name: str) -> None:
        self.people.call(self.phone_id, name)

    def begin_again(self, tag: int) -> None:
        """Another run has given it this tag."""
        self.people.change(self.phone_id, name=str(tag), activated=False, last_seen="")
        self.people.phones[self.phone_id] = Phone(tag=tag)

    def share(self, *others: str, among: int = 9) -> None:
        """Let so many of its users keep it, and others have it."""
        owners = [*self.people.owners(self.phone_id)[:among], *others]
        self.people.give(self.phone_id, list(dict.fromkeys(owners)))

    def run_another(self) -> None:
        run = Tried(2, GRACE, file=self.file, untag=True, quiet=False)
        run.faults = self.run.faults
        self.carry_out(run)

    def set(self, **facts: Any) -> None:
        assert facts.keys() <= vars(self.run).keys()
        vars(self.run).update(facts)

    def fail(self, kind: str, times: int | None = 1, **how: Any) -> None:
        method = None
        if self.request and times:
            method = self.request.method
        self.fortune.fail(self.run, kind, how, method=method, times=times)

    def lose_answer(self) -> Request:
        assert self.request
        self.run.loses = True
        self.tenant.spoiled.add(self.request.sequence)
        return self.request

    def be_late(self) -> None:
        self.held_up.append(self.lose_answer())
        raise ConnectionAbortedError

    def arrive(self) -> None:
        while self.held_up:
            self.tenant.carry_out_late(self.held_up.pop())

    def answer_in(self, seconds: int) -> None:
        self.run.loses = True
        self.delay = seconds
        if seconds > TOO_LONG:  # it is given up
            self.lose_answer()

    def kill(self) -> None:
        self.run.dead = True
        raise Killed

    def tell_to_end(self) -> None:
        self.run.told_to_end = True
        self.run.handlers[signal.SIGTERM](signal.SIGTERM, None)

    def sleep_too_long(self) -> None:
        """In a sleep, fewer clocks go on than where only the process is stopped."""
        self.clock.now += TOO_LONG
        self.clock.slept += TOO_LONG

    def tear_journal(self) -> None:
        """Another run has found the disk full."""
        with Path(self.file).open("a") as file:
            file.write('{"event": "dele')

    def remove_journal(self) -> None:
        self.run.kept = self.run.written(on_disk=True)
        self.run.journal_breaks = (0, "removed")
        Path(self.file).unlink(missing_ok=True)


def subject_of(request: Request) -> str:
    """Return what the steps of a request are called by."""
    if request.method != "GET":
        return deed_of(request)
    if phone_of(request):
        return "reading"
    return "page"


# What can happen

SEEN = "arrives|is asked"
"""A run sees Duo only as a request arrives. What happens at another step is to it as if
it had happened just before, unless a prompt was open."""
ARRIVES = "arrives"
WRITE = "ed [0-9]+ arrives"
JOURNAL = "to the journal"
BETWEEN = "is answered|to stdout"
"""Before each line of the journal, at which nobody looks meanwhile."""
EVERYWHERE = "begins|arrives|is answered|to |is asked"

OF_A_PHONE: dict[str, Misfortune] = {
    "it is activated": (SEEN, lambda its: its.activate(True)),
    "activated is null": (SEEN, lambda its: its.activate(None)),
    "it is used": (SEEN, lambda its: its.people.use(its.phone_id)),
    "it is called spare": (SEEN, lambda its: its.call_it("spare")),
    "it is called 1201234567": (SEEN, lambda its: its.call_it("1201234567")),
    "it is called 2125551234": (SEEN, lambda its: its.call_it("2125551234")),
    "its name is blanked": (SEEN, lambda its: its.people.unname(its.phone_id)),
    "it is deleted": (SEEN, lambda its: its.people.remove(its.phone_id)),
    "it gains a user": (SEEN, lambda its: its.share("bob")),
    "it loses a user": (SEEN, lambda its: its.share(among=1)),
    "it moves": (SEEN, lambda its: its.share("bob", among=0)),
    "it begins again": (SEEN, lambda its: its.begin_again(TAG + 30)),
    "it began again": (SEEN, lambda its: its.begin_again(TAG - 30)),
}
GOING_ON: dict[str, Misfortune] = {
    **OF_A_PHONE,
    "another run": (SEEN, Trial.run_another),
    "a late write arrives": (SEEN, Trial.arrive),
    "stopped": (EVERYWHERE, Trial.sleep_too_long),
    "the journal is torn": (BETWEEN, Trial.tear_journal),
}
"""After these, something else may happen at the same step. They are no failure."""
RIDDEN_OUT: dict[str, Misfortune] = {
    "429": (ARRIVES, lambda its: its.fail("status", status=429)),
    "500": (ARRIVES, lambda its: its.fail("status", status=500)),
    "lost": (ARRIVES, lambda its: its.fail("reset_before")),
    "done late": (WRITE, Trial.be_late),
    "done, 500": (ARRIVES, lambda its: its.done_500.add(its.lose_answer().sequence)),
    "done, answer lost": (ARRIVES, lambda its: its.fail("reset_after")),
    "done, answer cut": (ARRIVES, lambda its: its.fail("truncate")),
    "done, absurd length": (ARRIVES, lambda its: its.fail("truncate", length=10**20)),
    "done, another's answer": (ARRIVES, lambda its: its.fail("answer", response=OTHER)),
    "done, answer late": (ARRIVES, lambda its: its.answer_in(TOO_LONG)),
    "done, no answer": (ARRIVES, lambda its: its.answer_in(HOUR)),
    "closed after it": (ARRIVES, lambda its: its.fail("close_after")),
    "no": ("is asked", lambda its: its.set(reply="n")),
    "yes to all": ("is asked", lambda its: its.set(reply="a")),
    "stop here": ("is asked", lambda its: its.set(reply="q")),
    "killed": (EVERYWHERE, Trial.kill),
}
"""These are no failure, either, where they come alone."""
MISFORTUNES: dict[str, Misfortune] = {
    **GOING_ON,
    **RIDDEN_OUT,
    "400": (ARRIVES, lambda its: its.fail("status", status=400)),
    "429 from now on": (ARRIVES, lambda its: its.fail("status", None, status=429)),
    "500 from now on": (ARRIVES, lambda its: its.fail("status", None, status=500)),
    "answers lost from now on": (ARRIVES, lambda its: its.fail("reset_after", None)),
    # Nine: all tries of three phones. (Without a number, reads would be lost, too.)
    "writes lost from now on": (WRITE, lambda its: its.fail("reset_before", 9)),
    "the listing ends early": ("page . arrives", lambda its: its.fail("end_early")),
    "SIGTERM": (EVERYWHERE, Trial.tell_to_end),
    "the journal is removed": (BETWEEN, Trial.remove_journal),
    "the disk is full": (JOURNAL, lambda its: its.set(journal_breaks=(0, "full"))),
    "the disk tears a line": (JOURNAL, lambda its: its.set(journal_breaks=(0, "torn"))),
    "the disk fails": (JOURNAL, lambda its: its.set(journal_breaks=(0, "sync"))),
    "nobody reads": ("to stdout", lambda its: its.set(deaf=True)),
    "nobody answers": ("is asked", lambda its: its.set(reply="")),
}


# Trying it


def explore(stage: Stage, case: str, most: int, plan: Plan = ()) -> Iterator[Trial]:
    """Play this plan, and all that go on like it with up to so many misfortunes."""
    trial = Trial(stage, case, plan)
    trial.play()
    if trial.happened < len(plan):
        return
    yield trial
    if trial.broken or len(plan) == most:
        return
    for what in further(trial):
        yield from explore(stage, case, most, (*plan, what))


def further(trial: Trial) -> list[tuple[str, str]]:
    """Return what may happen besides, at a later step or at the same one."""
    every = [(label, name) for label in trial.steps for name in trial.steps[label]]
    if trial.case == OUTAGE:
        every = [(label, name) for label, name in every if "from now on" in name]
    if not trial.plan:
        return every
    at, former = trial.plan[-1]
    left = every[every.index((at, former)) + 1 :]
    if former not in GOING_ON:
        left = [(label, name) for label, name in left if label != at]
    return left


@functools.cache
def possible(label: str, has_phone: bool, has_late: bool) -> list[str]:
    """Return what can happen at a step."""
    names = [name for name in MISFORTUNES if re.search(MISFORTUNES[name][0], label)]
    if not has_phone:
        names = [name for name in names if name not in OF_A_PHONE]
    if not has_late:
        names = [name for name in names if name != "a late write arrives"]
    return names


def explore_pairs(start: tuple[str, Plan]) -> list[str]:
    """Play all pairs that begin so; return of each what is broken, or ""."""
    with Stage() as stage:
        _, *pairs = explore(stage, start[0], 2, start[1])
    return [trial.broken for trial in pairs]


def play(line: str) -> Trial:
    """Play what a line is about."""
    case, *befell = line.partition(" => ")[0].split(" @ ")
    plan = [each.split(": ") for each in befell]
    with Stage() as stage:
        trial = Trial(stage, case, tuple((step, name) for step, name in plan))
        trial.play()
    return trial


def main() -> int:
    """Try all, alone and in pairs, or what a line is about."""
    if sys.argv[1:]:
        trial = play(sys.argv[1])
        if trial.happened < len(trial.plan):
            print("It did not happen.")
            return 1
        print(*trial.story, trial.broken or "All promises kept.", sep="\n")
        return int(bool(trial.broken))
    began = time.monotonic()
    singles = 0
    pairs = 0
    broken = 0
    with multiprocessing.Pool(2) as pool:
        for case in CASES:
            with Stage() as stage:
                trials = [*explore(stage, case, 1)]
            lines = [trial.broken for trial in trials]
            singles += len(lines)
            starts = [(case, trial.plan) for trial in trials if trial.plan]
            for more in pool.imap_unordered(explore_pairs, starts):
                lines += more
                pairs += len(more)
            for line in filter(None, lines):
                print(line)
                broken += 1
            print(f"{case}: up to here {singles} alone, {pairs} pairs", flush=True)
    print(f"{broken} broken; {time.monotonic() - began:.0f} s")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
