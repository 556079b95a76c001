"""Every step, every misfortune: all that can happen to a run, tried without chance.

What a run does to a phone is a handful of steps. Each misfortune of one table happens
at each step of the other one, in each case: alone (test_steps.py), or two together::

    python -m tests.simulation.steps

A `Trial` is a `Year` of one run, to which nothing happens but what is planned, and
judgment.py says what must hold. There is neither a network nor a thread: a request is
answered as it is sent. A broken promise is one line; given back as the argument, it is
played again.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import itertools
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import duo_phone_cleanup
from tests.simulation.people import HOUR, MINUTE, Phone, owners_of
from tests.simulation.runs import OTHER, Attempt, deed_of, phone_of, text_of
from tests.simulation.tenant import IKEY, SKEY, Record, Request, _Drop, _Refusal
from tests.simulation.year import DEEDS_BY_VERB, PROMPT, Disk, Killed, Year

STEPS = {
    "begins": "a connection to Duo is about to be made",
    "arrives": "a request is at Duo, which has not carried it out yet",
    "is done": "it is carried out, and not answered",
    "is answered": "its answer is there, and nobody has looked at it",
    "to the journal": "a line is about to be written to the journal",
    "to stdout": "a line is about to be written to standard output",
    "is asked": "a prompt waits for its answer",
}
"""What a run does that others see, or that can fail: "reading 2 is answered"."""

ENVIRONMENT = {"DUO_HOST": "localhost", "DUO_IKEY": IKEY, "DUO_SKEY": SKEY}
NOW = 1_800_000_000
GRACE = 10  # minutes
TAG = NOW - GRACE * MINUTE  # its grace period ends at this very second
TOO_LONG = 3  # seconds, for a read
CONSTANTS: Record = {
    "USERS_A_PAGE": 2,
    "SLICE_SECONDS": 1,
    "RETRY_PAUSE_SECONDS": 1,
    "MAX_WAIT_429_SECONDS": 5,
}
"""So that there are two pages, and waits are short."""
FIELDS: dict[str, Record] = {
    "stamp": {},
    "delete": {"name": str(TAG)},
    "untag": {"name": str(TAG), "activated": True},
}
WAYS = itertools.product(FIELDS, ("own", "shared"), ("all", "named"), ("force", "ask"))
CASES = [" ".join(way) for way in WAYS]
CASES += ["delete,delete own all force"]
CASES += ["untag,stamp own all force"]
CASES += ["delete,stamp own all ask"]
# Nothing happens to these but what goes on "from now on".
OUTAGE = "stamp,stamp,stamp,stamp,stamp own named force"
CASES += [OUTAGE]
"""What is due to each phone, whose they are, who is looked at, and by whose leave."""
Plan = tuple[tuple[str, str], ...]  # steps, and the misfortunes at them
Deed = Callable[["Trial"], object]  # a misfortune


@dataclass
class Tried(Attempt):
    """A run, and what befalls it besides."""

    befallen: int = 0  # misfortunes
    loses: bool = False  # an answer, or it comes too late
    deaf: bool = False  # nobody reads its standard output any more
    reply: str = "y\n"  # to a prompt
    told: list[str] = field(default_factory=list)  # in the journal
    kept: list[str] | None = None  # what was in the journal when that was removed

    @property
    def quiet(self) -> bool:
        return not self.befallen

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


# In place of a machine and a network


def ignore(*_: object) -> None:
    """Do nothing."""


class Connection(http.client.HTTPConnection):
    """Both ends of a connection: a request is answered as soon as it is sent."""

    settimeout = setsockopt = ignore

    def __init__(self, stage: Stage, *address: Any, **_: Any) -> None:
        super().__init__(*address)
        self.stage = stage
        self.sent = b""
        self.answer = b""
        self.is_over = False

    def connect(self) -> None:
        self.stage.trial.step("connection", "begins")
        self.sock: Any = self

    def send(self, data: Any) -> None:
        self.sent += data

    def getresponse(self) -> http.client.HTTPResponse:
        reader: Any = io.BytesIO(self.sent)
        tenant: Any = self.stage.trial.tenant
        self.sent = self.answer = b""
        self.is_over = True
        with contextlib.suppress(_Drop, OSError):
            self.is_over = not tenant._exchange(self, io.BufferedReader(reader), 1)
        return super().getresponse()

    def sendall(self, data: bytes) -> None:
        self.answer += data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self.answer)


class TriedDisk(Disk):
    """How the program writes its journals: each line is a step."""

    year: Trial

    def write(self, file: int, data: bytes) -> int:
        line = data.decode().strip()
        self.year.step(json.loads(line)["event"], "to the journal")
        vars(self.year.running[-1])["told"].append(line)
        return super().write(file, data)


class Stage(contextlib.ExitStack):
    """What surrounds the program while it is on trial."""

    trial: Any = None

    def __enter__(self) -> Stage:
        self.directory = self.enter_context(tempfile.TemporaryDirectory())
        self.disk = TriedDisk(self.trial)
        self.calls: list[object] = []  # a run within another one has its own
        read = duo_phone_cleanup.read_settings
        # Nothing happens before a run has its settings: each are read but once.
        once = functools.cache(lambda *argv: read(argv, ENVIRONMENT))
        clock = {
            **vars(time),
            "clock_gettime": lambda which: self.trial.clock_gettime(which),
            "sleep": lambda seconds: self.trial.sleep(seconds),
        }
        self.patch(
            duo_phone_cleanup,
            HTTPSConnection=functools.partial(Connection, self),
            os=self.disk.module(),
            random=SimpleNamespace(uniform=max),
            read_settings=lambda argv, _: once(*argv),
            select=SimpleNamespace(select=lambda read, *_: (read[0].is_over, [], [])),
            threading=SimpleNamespace(current_thread=lambda: self.calls[-1]),
            time=SimpleNamespace(**clock),
        )
        self.patch(
            duo_phone_cleanup.Call,
            start=lambda call: self.make(call),
            is_alive=lambda call: self.trial.clock.boot() < call.answered,
            join=lambda _, seconds: self.trial.sleep(seconds),
        )
        self.patch(
            signal,
            signal=lambda *handler: self.trial.take_signal(*handler),
            setitimer=ignore,
            pthread_sigmask=ignore,
        )
        return self

    def patch(self, what: Any, **names: Any) -> None:
        self.enter_context(mock.patch.multiple(what, **names))

    def make(self, call: Any) -> None:
        self.calls.append(call)
        call.run()
        self.calls.pop()
        self.trial.note_answer(call)

    def play(self, case: str, plan: Plan = ()) -> Trial:
        trial = Trial(self, case, plan)
        self.trial = trial
        trial.play()
        return trial


class Trial(Year):
    """A year of one run, to which nothing happens but what is planned."""

    def __init__(self, stage: Stage, case: str, plan: Plan) -> None:
        super().__init__(stage.directory, seed=0, real=0)
        self.disk = stage.disk
        self.disk.year = self
        self.clock.now = NOW
        self.case = case
        self.plan = plan
        self.steps: dict[str, list[str]] = {}  # and what could happen at each
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.happened = 0  # of what is planned
        self.seen: set[str] = set()  # the phones that its walk was told of
        self.found: set[str] = set()  # those of them to which something was due
        self.broken = ""  # the promises, in one line
        self.request: Request | None = None  # the last one of the run
        self.subject = ""  # of its steps, until it is answered
        self.done_500: set[int] = set()  # carried out, and answered with 500
        self.delay = 0  # seconds until an answer comes
        self.tenant.on_request(self.arrived)
        self.tenant.after_request(self.is_done)
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
        if not self.run.dead:
            self.review_whole()
        if self.judgment.wrongs:
            befell = [" @ " + ": ".join(each) for each in self.plan]
            wrongs = " ".join("; ".join(self.judgment.wrongs).split())
            self.broken = f"{self.case}{''.join(befell)} => {wrongs}"

    def review_whole(self) -> None:
        """A run that goes well forgets no phone, and does so whatever people do."""
        told = [event for event in self.run.journal() if event["event"] != "deleting"]
        if not self.run.status and self.run.reply in ("y\n", "n\n", "a\n"):
            left = self.found - {event.get("phone_id") for event in told}
            self.judgment.check(not left, f"run 1: nothing told of {left}")
        names = {name for _, name in self.plan}
        if len(self.plan) == 1:
            names -= {*RIDDEN_OUT}
        if names - {*GOING_ON}:
            return
        failed = [event for event in told if event["event"] == "failed"]
        failed = [event for event in failed if "--max-deletions" not in event["error"]]
        self.judgment.check(not failed, f"run 1: failed, and need not: {failed}")

    def note_page(self, attempt: Attempt, params: Record) -> None:
        super().note_page(attempt, params)
        if attempt is not self.run:
            return
        for phone_id in {phone_id for phone_id, _ in attempt.tags} - self.seen:
            self.seen.add(phone_id)  # what the next page says does not count
            if self.people.phones[phone_id].due(self.time(attempt), GRACE):
                self.found.add(phone_id)

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
                self.run.befallen += 1
                MISFORTUNES[misfortune][1](self)

    def has_phone(self) -> bool:
        return self.phone_id in self.people.phones

    def arrived(self, request: Request) -> None:
        """A write has been judged before, by what was true then: see Year.receive."""
        if len(self.running) == 1:
            self.request = request
            self.subject = subject_of(request)
        self.step(subject_of(request), "arrives")

    def is_done(self, request: Request) -> None:
        self.step(subject_of(request), "is done")
        if request.sequence in self.done_500:
            raise _Refusal(50001)

    def note_answer(self, call: Any) -> None:
        call.answered = self.clock.boot() + self.delay
        self.delay = 0
        subject = self.subject
        self.subject = ""
        if subject:
            self.step(subject, "is answered")

    def meanwhile(
        self, attempt: Attempt, phone_id: str, chance: float = 0, sure: bool = False
    ) -> None:
        """Nothing comes by chance. It is sure where a line is written to stdout."""
        if sure and attempt is self.run:
            self.step("line", "to stdout")
            if self.run.deaf:
                raise BrokenPipeError

    def answer(self, attempt: Attempt) -> str:
        """Answer a prompt."""
        verb, phone_id = re.findall(PROMPT, text_of(attempt.err))[-1]
        if phone_id in attempt.reads:
            owners = owners_of(attempt.reads.pop(phone_id).record)
            attempt.asked_about[phone_id] = owners
        self.run.reply = "y\n"
        self.step("prompt", "is asked")
        if self.run.reply == "y\n":
            attempt.agreed.add(phone_id)
        if self.run.reply == "a\n":
            attempt.agreed.add(DEEDS_BY_VERB[verb])
        return self.run.reply

    def constants(self, attempt: Attempt) -> Record:
        return CONSTANTS

    def call_main(self, attempt: Attempt, argv: list[str]) -> None:
        super().call_main(attempt, argv)
        if self.run.deaf and self.run.journal_breaks:
            self.run.dead = True  # it had nowhere to tell anything

    # The misfortunes that take more than a line

    def activate(self, activated: bool | None) -> None:
        phone = self.people.change(self.phone_id, activated=activated)
        phone.limbo = False
        phone.activated = bool(activated)

    def begin_again(self, tag: int) -> None:
        """Another run has given it this tag."""
        fields = {"name": str(tag), "activated": False, "last_seen": ""}
        self.people.change(self.phone_id, **fields)
        self.people.phones[self.phone_id] = Phone(tag=tag)

    def share(self, *others: str, among: int = 9) -> None:
        """Let so many of its users keep it, and others have it."""
        owners = [*self.people.owners(self.phone_id)[:among], *others]
        self.people.give(self.phone_id, list(dict.fromkeys(owners)))

    def run_another(self) -> None:
        run = Tried(2, GRACE, file=self.file, untag=True, befallen=2)
        run.faults = self.run.faults
        self.carry_out(run)

    def fail(self, kind: str, times: int | None, how: Record) -> None:
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


# What can happen, and at which steps (a regular expression)


def calling(name: str) -> Deed:
    return lambda its: its.people.call(its.phone_id, name)


def failing(kind: str, times: int | None = 1, **how: Any) -> Deed:
    return lambda its: its.fail(kind, times, how)


def making(**facts: Any) -> Deed:
    return lambda its: vars(its.run).update(facts)


SEEN = "arrives|is asked"
"""A run sees Duo only as a request arrives. How long before that something happened is
all the same to it, unless a prompt was open."""
ARRIVES = "arrives"
WRITE = "ed [0-9]+ arrives"
JOURNAL = "to the journal"
BETWEEN = "is answered|to stdout"
"""Before each line of the journal, at which nobody looks meanwhile."""

EVERYWHERE = "begins|arrives|is answered|to |is asked"
"""But "is done": between "arrives" and that, the program only waits, so that one of the
two is enough."""
BUT_ANSWERED = "begins|arrives|is done|to |is asked"
"""Whoever dies then dies like one whose request "is done"."""

OF_A_PHONE: dict[str, tuple[str, Deed]] = {
    "it is activated": (SEEN, lambda its: its.activate(True)),
    "activated is null": (SEEN, lambda its: its.activate(None)),
    "it is used": (SEEN, lambda its: its.people.use(its.phone_id)),
    "it is called spare": (SEEN, calling("spare")),
    "it is called 1201234567": (SEEN, calling("1201234567")),
    "it is called 2125551234": (SEEN, calling("2125551234")),
    "its name is blanked": (SEEN, lambda its: its.people.unname(its.phone_id)),
    "it is deleted": (SEEN, lambda its: its.people.remove(its.phone_id)),
    "it gains a user": (SEEN, lambda its: its.share("bob")),
    "it loses a user": (SEEN, lambda its: its.share(among=1)),
    "it moves": (SEEN, lambda its: its.share("bob", among=0)),
    "it begins again": (SEEN, lambda its: its.begin_again(TAG + 30)),
    "it began again": (SEEN, lambda its: its.begin_again(TAG - 30)),
}
GOING_ON: dict[str, tuple[str, Deed]] = {
    **OF_A_PHONE,
    "another run": (SEEN, Trial.run_another),
    "a late write arrives": (SEEN, Trial.arrive),
    "stopped": (EVERYWHERE, Trial.sleep_too_long),
    "the journal is torn": (BETWEEN, Trial.tear_journal),
}
"""After these, something else may happen at the same step. They are no failure."""
RIDDEN_OUT: dict[str, tuple[str, Deed]] = {
    "429": (ARRIVES, failing("status", status=429)),
    "500": (ARRIVES, failing("status", status=500)),
    "lost": (ARRIVES, failing("reset_before")),
    "done late": (WRITE, Trial.be_late),
    "done, 500": (ARRIVES, lambda its: its.done_500.add(its.lose_answer().sequence)),
    "done, answer lost": (ARRIVES, failing("reset_after")),
    "done, answer cut": (ARRIVES, failing("truncate")),
    "done, absurd length": (ARRIVES, failing("truncate", length=10**20)),
    "done, another's answer": (ARRIVES, failing("answer", response=OTHER)),
    "done, answer late": (ARRIVES, lambda its: its.answer_in(TOO_LONG)),
    "done, no answer": (ARRIVES, lambda its: its.answer_in(HOUR)),
    "closed after it": (ARRIVES, failing("close_after")),
    "no": ("is asked", making(reply="n\n")),
    "yes to all": ("is asked", making(reply="a\n")),
    "stop here": ("is asked", making(reply="q\n")),
    "killed": (BUT_ANSWERED, Trial.kill),
}
"""These are no failure, either, where they come alone."""
MISFORTUNES: dict[str, tuple[str, Deed]] = {
    **GOING_ON,
    **RIDDEN_OUT,
    "400": (ARRIVES, failing("status", status=400)),
    "429 from now on": (ARRIVES, failing("status", None, status=429)),
    "500 from now on": (ARRIVES, failing("status", None, status=500)),
    "answers lost from now on": (ARRIVES, failing("reset_after", None)),
    # Nine: all tries of three phones. (Without a number, reads would be lost, too.)
    "writes lost from now on": (WRITE, failing("reset_before", 9)),
    "the listing ends early": ("page . arrives", failing("end_early")),
    "SIGTERM": (EVERYWHERE, Trial.tell_to_end),
    "the journal is removed": (BETWEEN, Trial.remove_journal),
    "the disk is full": (JOURNAL, making(journal_breaks=(0, "full"))),
    "the disk tears a line": (JOURNAL, making(journal_breaks=(0, "torn"))),
    "the disk fails": (JOURNAL, making(journal_breaks=(0, "sync"))),
    "nobody reads": ("to stdout", making(deaf=True)),
    "nobody answers": ("is asked", making(reply="")),
}


# Trying it


def explore(stage: Stage, case: str, most: int, plan: Plan = ()) -> Iterator[Trial]:
    """Play this plan, and all that go on like it with up to so many misfortunes."""
    trial = stage.play(case, plan)
    if trial.happened < len(plan):
        return
    yield trial
    if trial.broken or len(plan) == most:
        return
    for what in further(trial):
        yield from explore(stage, case, most, (*plan, what))


def further(trial: Trial) -> Iterator[tuple[str, str]]:
    """Yield what may happen besides, at a later step or at the same one."""
    begun = not trial.plan
    for label, names in trial.steps.items():
        left = list(names)
        if not begun and label == trial.plan[-1][0]:
            begun = True
            former = trial.plan[-1][1]
            left = names[names.index(former) + 1 :]
            if former not in GOING_ON:
                left = []
        for name in left:
            if begun and (trial.case != OUTAGE or "from now on" in name):
                yield label, name


@functools.cache
def possible(label: str, has_phone: bool, has_late: bool) -> list[str]:
    """Return what can happen at a step."""
    names = [name for name in MISFORTUNES if re.search(MISFORTUNES[name][0], label)]
    if not has_phone:
        names = [name for name in names if name not in OF_A_PHONE]
    if not has_late:
        names = [name for name in names if name != "a late write arrives"]
    return names


def explore_pairs(start: tuple[str, Plan]) -> tuple[int, list[str]]:
    """Play all pairs that begin so; return how many, and the broken promises."""
    with Stage() as stage:
        broken = [trial.broken for trial in explore(stage, start[0], 2, start[1])]
    return max(0, len(broken) - 1), [line for line in broken if line]


def play(line: str) -> Trial:
    """Play what a line is about."""
    case, *befell = line.partition(" => ")[0].split(" @ ")
    plan = [each.split(": ") for each in befell]
    with Stage() as stage:
        return stage.play(case, tuple((step, name) for step, name in plan))


def main() -> int:
    """Try all, alone and in pairs, or what a line is about."""
    if sys.argv[1:]:
        trial = play(sys.argv[1])
        print(*trial.story, trial.broken or "All promises kept.", sep="\n")
        return int(bool(trial.broken))
    began = time.monotonic()
    singles = 0
    pairs = 0
    broken = 0
    with multiprocessing.Pool(2) as pool:
        for case in CASES:
            with Stage() as stage:
                starts = [(case, (what,)) for what in further(stage.play(case))]
            singles += len(starts)
            for number, lines in pool.imap_unordered(explore_pairs, starts):
                pairs += number
                broken += len(lines)
                for line in lines:
                    print(line)
            print(f"{case}: up to here {singles} alone, {pairs} pairs", flush=True)
    print(f"{broken} broken; {time.monotonic() - began:.0f} s")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
