"""A simulated year: people do what they do, and no run may ever wrong them.

A `Year` lives through many runs of the program on one simulated tenant. Between the
runs, and while they wait for an answer, users begin, finish, abandon and restart
set-ups, phones are used and shared, administrators name and delete them. Runs come at
odd intervals, with clocks that go wrong; they overlap, meet faults, stall, ask and are
answered, and die. Each write is judged when it reaches the tenant: by when this run was
last given the phone, and by what was true of the phone then, not by its record or by
what the program says. Each journal is held against what was done. In the end, two clean
runs leave no abandoned phone.

It is all decided by a seed, and the program's clocks show the year's time. In one year
of four the program reads ahead, and the seed decides less. The suite lives a short
while (test_year.py); by hand::

    python -m tests.simulation.year --runs 5000 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, Callable
from unittest import mock

import duo_phone_cleanup
from tests.simulation.tenant import MISSING, Fault, Record, Request, Tenant

MINUTE, HOUR, DAY = 60, 3600, 86400
RUNS = 100  # in one year: then another one begins, with another tenant
FRESH = 2  # seconds: a write comes no later after the read of its phone was asked for
DELAY = 1  # seconds that a request of a process may take to arrive
STALL = FRESH + DELAY + 0.2
QUICK = {"PAGE": 4, "EXCHANGE": 2}
"""Constants of the program: short pages, and no long wait for an answer."""
PROCESS = f"""
import os, sys, duo_phone_cleanup as program
vars(program).update({QUICK}, PAUSE=0.001, PATIENCE=60)
now, parallel, *argv = sys.argv[1:]
ahead = program.ahead
if parallel == "False":
    program.ahead = lambda function, items, width: ahead(function, items, 0)
os._exit(program.main(argv, clock=lambda: float(now)))
"""
DEEDS = {"stamped": "would_stamp", "deleted": "would_delete", "untagged": "would_untag"}
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Chatham")
GENERIC = ("Generic Smartphone", "generic smartphone", "GENERIC SMARTPHONE")
BLANK = ("", "", "", None, MISSING, " ", "\t")
NAMES = (
    *("Ann's phone", "iPhone 12", "📱", "-", "0", "null", "\x1b[31m\n", "9" * 40),
    *("104233", "20240701", "0612345678", "170000000", "17000000000", "1_700_000_000"),
    *(" 1700000000", "1700000000\n", "+1700000000", "1700000000.0", "1.7e9"),
    *("１７００００００００", "١٧٠٠٠٠٠٠٠٠", "DO NOT DELETE 1700000000"),  # noqa: RUF001
)
GARBLED: list[Any] = ["yesterday", "2025-13-01", [], True, 1.5]
OTHER = {"phone_id": "DPX", "platform": GENERIC[0], "name": ""}
ANSWERS: list[Any] = [None, {}, [1], "x", [{"phones": [None, {}]}], *[OTHER] * 3]
HARMLESS = ("close_after", "connection_close")
"""Faults that must not keep a run from anything."""
WHOLE = (*HARMLESS, "ignore_names", "end_early")
"""Faults that leave the answer to the read of a phone whole."""
FULL = "/dev/full"  # where no journal can be written


class Killed(BaseException):
    """Ends a run as kill -9 would: nothing of the program catches it."""


@dataclass
class Phone:
    """What is true of a phone, whatever form its record gives to that."""

    limbo: bool = True
    tag: int | None = None
    """Its name, if a run wrote it."""
    named: bool = False
    """A person wrote its name."""
    used: int | None = None
    readable: bool = True
    """Its last_seen says so in a way that can be read."""

    def due(self, now: float, grace_period: int) -> str | None:
        """Return the one thing that a run may do to it: this is the promise."""
        if not self.limbo:
            return None if self.tag is None else "untagged"
        if self.named:
            return None
        if self.tag is None:
            return "stamped"
        if self.tag > now or not self.readable:
            return None
        if self.used is not None and self.used > self.tag:
            return "stamped"
        return "deleted" if now - self.tag >= grace_period * MINUTE else None


@dataclass
class Read:
    """A phone as a run was told of it."""

    phone: Phone
    record: Record
    now: int
    asked: float
    """When the request for it came, by the clock of `Year.monotonic`."""


@dataclass
class Attempt:
    """One run of the program: how it is called, what befalls it, what it did."""

    number: int
    grace_period: int
    skew: int = 0
    """Seconds that its clock is ahead."""
    names: list[str] = field(default_factory=list)
    limit: int | None = None
    untag: bool = False
    asks: bool = False
    dry: bool = False
    options: list[str] = field(default_factory=list)
    file: str = ""
    """Its journal, besides standard output."""

    eventful: float = 0
    """How likely it is that something happens while it waits for an answer."""
    dies_at: tuple[int, str] | None = None
    """The number of a request, and when: before or after its work, or once answered."""
    faults: list[Fault] = field(default_factory=list)
    real: bool = False
    """It is a process, whose clock stands still and which dies of a signal."""
    unread: bool = False
    """For a while, nobody reads the standard output of that process."""
    stops_at: int = 0
    """The number of a read of a phone after which that process stops for a while."""

    now: float | None = None
    """What its clock shows if that stands still."""
    child: subprocess.Popen[str] | None = None
    pipe: int | None = None
    draining: Any = field(default_factory=threading.Lock)
    offset: int = 0
    """How long the file of the journal was when it began."""
    dead: bool = False
    status: int | None = None
    requests: int = 0
    listed: set[str] = field(default_factory=set)
    """The users on the pages that it has been given."""
    total: int = 0
    """How many users there were when it was given the last page."""
    tags: set[tuple[str, int | None]] = field(default_factory=set)
    """The phones and their tags on the pages that it has been given."""
    phone_id: str = ""
    """The phone of its last request."""
    asked: dict[str, float] = field(default_factory=dict)
    """When it last asked for each phone."""
    reads: dict[str, Read] = field(default_factory=dict)
    """What it was last told of each phone, if it has not yet written to it since."""
    agreed: set[str] = field(default_factory=set)
    """The phones that a prompt was answered with yes for; "" is all."""
    sent: set[tuple[str, str]] = field(default_factory=set)
    deeds: dict[str, str] = field(default_factory=dict)
    """What it did to which phone."""
    done: set[tuple[str, str]] = field(default_factory=set)
    """What was done to which phone since it began, by anybody: if an answer is lost,
    another run's work cannot be told from its own."""
    out: IO[str] = field(default_factory=io.StringIO)
    err: IO[str] = field(default_factory=io.StringIO)

    @property
    def quiet(self) -> bool:
        """All that it does can be foretold."""
        harmful = [fault for fault in self.faults if fault.kind not in HARMLESS]
        trouble = self.dies_at or self.unread or self.stops_at or self.file == FULL
        return not (self.eventful or self.asks or harmful or trouble)

    def argv(self) -> list[str]:
        flags = {"--untag": self.untag, "--no-force": self.asks, "--dry-run": self.dry}
        limit = [] if self.limit is None else ["--max-deletions", str(self.limit)]
        file = ["--journal", self.file] if self.file else []
        options = ["--json", "-g", str(self.grace_period), *limit, *file, *self.options]
        return [*options, *(flag for flag in flags if flags[flag]), *self.names]

    def lines(self) -> list[str]:
        """Return the lines of standard output so far."""
        with self.draining, contextlib.suppress(BlockingIOError):
            while self.pipe is not None:
                data = os.read(self.pipe, 65536).decode()
                self.out.write(data)
                if not data:
                    break
        self.out.seek(0)
        return [line for line in self.out.read().splitlines() if line]

    def journal(self) -> list[Record]:
        """Return the JSON lines so far."""
        return [json.loads(line) for line in self.lines()]

    def concerns(self, owners: set[str]) -> bool:
        """Tell whether it is to look at the phones of these users."""
        return not self.names or bool(owners & {name.lower() for name in self.names})


def deed_of(request: Request) -> str:
    """Return what a write does."""
    if request.method == "DELETE":
        return "deleted"
    return "stamped" if request.params.get("name") else "untagged"


class Answers(io.RawIOBase):
    """What a standard input reads from: each line is made up when it is read."""

    def __init__(self, answer: Callable[[], str]) -> None:
        super().__init__()
        self.answer = answer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        line = self.answer().encode()
        buffer[: len(line)] = line
        return len(line)


class Output(io.StringIO):
    """A standard output or error whose reader lets every line wait."""

    def __init__(self, wait: Callable[[], object]) -> None:
        super().__init__()
        self.wait = wait

    def write(self, text: str) -> int:
        self.wait()
        return super().write(text)


class Watched(Tenant):
    """A tenant that tells its year what it does, at the moment when it does it."""

    def __init__(self) -> None:
        super().__init__()
        self.spoiled: set[int] = set()  # requests whose answers do not arrive whole
        self.note: Callable[[Request], None]

    def _fault_for(self, request: Request) -> Fault | None:
        fault = super()._fault_for(request)
        if fault and fault.kind not in WHOLE:
            self.spoiled.add(request.sequence)
        return fault

    def _work(self, request: Request) -> Any:
        answer = super()._work(request)
        self.note(request)
        return answer


class Year:
    """A tenant and its people."""

    def __init__(
        self, tenant: Watched, directory: str, seed: int, real: float, quick: bool
    ) -> None:
        self.tenant, self.real, self.quick = tenant, real, quick
        self.random = random.Random(seed)
        self.now = self.random.uniform(1.72e9, 1.78e9)
        self.file = Path(directory, "journal")
        # Two requests of a run may be under way. Then no time passes meanwhile, and no
        # other run: a write that is sent in time is to arrive in time.
        self.parallel = seed % 4 == 3
        self.lock: Any = tenant.lock if self.parallel else contextlib.nullcontext()
        self.phones: dict[str, Phone] = {}
        self.running: list[Attempt] = []  # each in a request of the one before
        self.numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.story: deque[str] = deque(maxlen=100)
        self.wrongs: list[str] = []
        tenant.delete_status = self.random.choice((200, 204))
        tenant.gone_status = self.random.choice((200, 204, 404))
        tenant.last_offset_null = self.random.choice((True, False))
        tenant.note = self.note
        tenant.on_request(self.before)
        tenant.after_request(self.after)

    def live(self, runs: int) -> None:
        """Live through so many runs and two clean ones. Raises AssertionError."""
        while self.counts["runs"] < runs:
            for _ in range(self.random.randrange(4)):
                self.happen()
            self.tear()
            attempt = self.attempt()
            self.wait(attempt)
            self.carry_out(attempt)
        for phone_id in [
            key for key, phone in self.phones.items() if not phone.readable
        ]:
            self.use(phone_id)
        self.now += HOUR  # past every tag of a clock that was ahead
        grace_period = self.random.choice((0, 1, 10, 60))
        for _ in range(2):
            self.carry_out(Attempt(next(self.numbers), grace_period))
            self.now += grace_period * MINUTE
        abandoned = [p for p in self.phones.values() if p.limbo and not p.named]
        self.check(not abandoned, f"left after two clean runs: {abandoned}")
        self.check(self.phones.keys() == self.tenant.phones.keys(), "phones are gone")
        self.raise_if_wrong()

    # What people do

    def happen(self, phone_id: str = "") -> None:
        """Let somebody do something, to this phone or to any."""
        if phone_id not in self.phones:
            phone_id = self.random.choice([*self.phones, ""])
        if not phone_id or len(self.phones) < 6:
            self.begin()
            return
        deeds: dict[Callable[[str], object], int] = {
            self.finish: 4,
            self.use: 4,
            self.restart: 3,
            self.name: 3,
            self.unname: 2,
            self.share: 1,
            self.garble: 1,
            self.remove: 1 if len(self.phones) < 20 else 20,
        }
        self.random.choices([*deeds], [*deeds.values()])[0](phone_id)

    def change(self, phone_id: str, **fields: Any) -> Phone:
        told = {k: "missing" if v is MISSING else v for k, v in fields.items()}
        self.story.append(f"    {phone_id}: {told}")
        with self.tenant.lock:
            record = {**self.tenant.phones[phone_id], **fields}
            kept = {key: value for key, value in record.items() if value is not MISSING}
            self.tenant.phones[phone_id] = kept
        return self.phones[phone_id]

    def limbo(self) -> Record:
        pick = self.random.choice
        return {"platform": pick(GENERIC), "activated": pick((False, None, MISSING))}

    def begin(self) -> None:
        pick = self.random.choice
        number = {} if pick((True, False)) else {"number": pick(("", None, MISSING))}
        user, fields = f"user{self.random.randrange(15)}", {**number, **self.limbo()}
        phone_id = self.tenant.add_phone(user, name=pick(BLANK), **fields)
        self.phones[phone_id] = Phone()
        self.story.append(f"    {phone_id}: begun by {user}")

    def restart(self, phone_id: str) -> None:
        self.change(phone_id, **self.limbo()).limbo = True

    def finish(self, phone_id: str) -> None:
        """Somebody sets it up, or it turns out to be one for calls only."""
        platforms = ("Apple iOS", "Google Android", None, *GENERIC)
        done = (*((True, each) for each in platforms), (False, "Unknown"))
        activated, platform = self.random.choice(done)
        phone = self.change(phone_id, activated=activated, platform=platform)
        phone.limbo = False
        self.use(phone_id)

    def use(self, phone_id: str) -> None:
        seen = datetime.fromtimestamp(int(self.now), timezone.utc)
        plain = seen.strftime("%Y-%m-%dT%H:%M:%S")
        elsewhere = seen.astimezone(timezone(timedelta(hours=5, minutes=45)))
        forms = (plain, plain, plain + "Z", elsewhere.isoformat(), int(self.now))
        phone = self.change(phone_id, last_seen=self.random.choice(forms))
        phone.used, phone.readable = int(self.now), True

    def garble(self, phone_id: str) -> None:
        last_seen = self.random.choice(GARBLED)
        self.change(phone_id, last_seen=last_seen).readable = False

    def name(self, phone_id: str) -> None:
        number = self.tenant.phones[phone_id].get("number") or "spare"
        name = self.random.choice((*NAMES, number, *[number[-10:]] * 3))
        phone = self.change(phone_id, name=name)
        phone.named, phone.tag = True, None

    def unname(self, phone_id: str) -> None:
        phone = self.change(phone_id, name=self.random.choice(BLANK))
        phone.named, phone.tag = False, None
        self.did("untagged", phone_id)

    def share(self, phone_id: str) -> None:
        with self.tenant.lock:
            user_id = self.random.choice([*self.tenant.users])
            users = self.tenant.phones[phone_id]["users"]
            if user_id not in users:
                users.append(user_id)
                self.tenant.users[user_id]["phones"].append(phone_id)
        self.story.append(f"    {phone_id}: shared")

    def remove(self, phone_id: str) -> None:
        with self.tenant.lock:
            del self.tenant.phones[phone_id], self.phones[phone_id]
        self.did("deleted", phone_id)
        self.story.append(f"    {phone_id}: deleted by a person")

    def did(self, deed: str, phone_id: str) -> None:
        for attempt in self.running:
            attempt.done.add((deed, phone_id))

    def tear(self) -> None:
        """Leave half a last line in the journal, as a disk does that is full."""
        text = self.file.read_text() if self.file.exists() else ""
        if text.endswith("\n") and self.random.random() < 0.1:
            last = text.splitlines()[-1][: self.random.randint(1, 400)]
            self.file.write_text(text[: text.rfind("\n", 0, -1) + 1] + last)
            self.story.append("    the journal is torn")
            self.counts["torn"] += 1

    # The runs

    def attempt(self) -> Attempt:
        """Think up a run."""
        pick, chance = self.random.choice, self.random.random
        attempt = Attempt(
            next(self.numbers),
            grace_period=pick((0, 1, 5, 10, 10, 20, 60)),
            skew=pick((0, 0, 0, 1, -2, 45, -170, 180)),
            limit=pick((None, None, None, 0, 1, 3)),
            untag=chance() < 0.3,
            asks=chance() < 0.2,
            dry=chance() < 0.1,
            options=pick(([], ["-v"], ["-vv"])),
            file=pick(("", str(self.file), str(self.file))),
            eventful=pick((0, 0, 0.2, 0.5)),
            real=chance() < self.real,
        )
        if chance() < 0.15:
            users = [user["username"] for user in self.tenant.users.values()]
            names = self.random.sample(users, min(len(users), 3))
            attempt.names = [pick((str.upper, str.lower))(name) for name in names]
            attempt.names += ["nobody"] * (chance() < 0.2)
        if chance() < 0.3:
            moment = pick(("before", "after", "answered"))
            attempt.dies_at = (self.random.randint(1, 8), moment)
        if chance() < 0.03:
            attempt.file = FULL
        if attempt.real:
            attempt.asks = False
            attempt.stops_at = self.random.randint(1, 2) * (chance() < 0.05)
            attempt.unread = not attempt.stops_at and chance() < 0.05
            if attempt.unread:  # or else nobody knows when something happens
                attempt.eventful = 0
        if self.running:  # inside another run: what goes wrong does so for both
            attempt.faults = self.running[-1].faults
        elif chance() < 0.3:
            for _ in range(self.random.randint(1, 3)):
                self.add_fault(attempt)
        elif chance() < 0.1:  # a server that closes after each answer
            attempt.faults.append(self.tenant.fail(pick(HARMLESS), times=None))
            self.story.append(f"  fault: {attempt.faults[0].kind} for ever")
        return attempt

    def add_fault(self, attempt: Attempt) -> None:
        pick = self.random.choice
        kinds: list[tuple[str, Record]] = [
            *((f"reset_{when}", {}) for when in ("before", "after", "after")),
            *((f"close_{when}", {}) for when in ("before", "after")),
            *(("connection_close", {}), ("truncate", {}), ("junk", {})),
            ("end_early", {}),
            *[("ignore_names", {})] * 9 * bool(attempt.names),
            *(("status", {"status": s}) for s in (400, 401, 403, 429, 500, 502, 503)),
            *(("answer", {"response": other}) for other in ANSWERS),
        ]
        kind, how = pick(kinds)
        # A 429 for ever would be given up at a time that no seed decides.
        times = pick((1, 1, 2, 3, 3 if how == {"status": 429} else None))
        if not self.quick and self.random.random() < 0.05:
            hangs = ("hang", {"before": True}), ("hang", {"before": False})
            (kind, how), times = pick((*hangs, ("drip", {}))), 1
            # Another run meanwhile would take longer than that.
            attempt.options, attempt.eventful = ["--timeout", "0.5"], 0
        where: Record = {"times": times, "after": pick((0, 0, 0, 1, 2, 5))}
        if kind not in WHOLE:
            where["method"] = pick((None, "GET", "POST", "DELETE", "DELETE"))
            where["path"] = pick((None, "/phones/", "/users"))
        self.story.append(f"  fault: {kind} {how} {where}")
        attempt.faults.append(self.tenant.fail(kind, **where, **how))

    def wait(self, attempt: Attempt) -> None:
        """Let time pass until a run, often to the second of a grace period's end."""
        passed = (self.random.uniform(1, 90), 300, self.random.uniform(0, DAY), HOUR)
        then = self.now + self.random.choice(passed)
        edge = self.random.choice((-60, -30, -1, 0, 0, 1)) - attempt.skew
        tags = (phone.tag for phone in self.phones.values() if phone.limbo)
        ends = [tag + attempt.grace_period * MINUTE + edge for tag in tags if tag]
        ends = [end for end in ends if end > self.now]
        self.now = self.random.choice((then, self.random.choice(ends or [then])))

    def time(self, attempt: Attempt) -> float:
        """Return what the clock of a run shows."""
        return self.now + attempt.skew if attempt.now is None else attempt.now

    def carry_out(self, attempt: Attempt) -> None:
        """Carry a run out, and judge what it told and did."""
        attempt.now = self.time(attempt) if attempt.real else None
        with contextlib.suppress(FileNotFoundError):
            attempt.offset = self.file.stat().st_size
        argv, expected = attempt.argv(), self.foretell(attempt)
        self.story.append(f"run {attempt.number} at {self.time(attempt):.1f}: {argv}")
        self.running.append(attempt)
        if attempt.real:
            self.start_process(attempt, argv)
        else:
            self.call_main(attempt, argv)
        self.running.pop()
        self.review(attempt, expected)
        self.counts.update(attempt.deeds.values())
        self.counts.update(runs=1, requests=attempt.requests, overlaps=0, faults=0)
        self.counts.update(killed=attempt.dead, quiet=attempt.quiet, real=attempt.real)
        self.counts.update(unread=attempt.unread)
        if self.running:
            self.counts["overlaps"] += 1
            return
        for fault in attempt.faults:
            self.counts["faults"] += fault.hits
            fault.times = 0
        self.raise_if_wrong()

    def call_main(self, attempt: Attempt, argv: list[str]) -> None:
        def clock() -> float:
            if attempt.dead:
                raise Killed
            return self.time(attempt)

        def stall(sure: bool) -> None:
            self.meanwhile(attempt, attempt.phone_id, 0.2, sure)

        attempt.out = Output(lambda: stall(True))  # only the main thread writes to it
        attempt.err = Output(lambda: stall(False))
        answers = io.BufferedReader(Answers(lambda: self.answer(attempt)))
        threads = {*threading.enumerate()}
        streams = {
            "stdin": io.TextIOWrapper(answers),
            "stdout": attempt.out,
            "stderr": attempt.err,
        }
        with mock.patch.multiple(sys, **streams):  # type: ignore[call-overload]
            try:
                attempt.status = duo_phone_cleanup.main(argv, clock=clock)
            except Killed:
                pass
            except BaseException as error:
                self.check(False, f"main() raised {error!r}")
            # What it did not wait for is not to come during another run.
            for fault in attempt.faults:
                if fault.kind == "drip":
                    fault.released.set()
            while left := {*threading.enumerate()} - threads - self.tenant._threads:
                with contextlib.suppress(RuntimeError):  # it is just being started
                    left.pop().join()

    def start_process(self, attempt: Attempt, argv: list[str]) -> None:
        surroundings = str(self.time(attempt)), str(self.parallel)
        command = [sys.executable, "-c", PROCESS, *surroundings, *argv]
        attempt.pipe, writing = os.pipe()
        os.set_blocking(attempt.pipe, False)
        with tempfile.TemporaryFile("w+") as err:
            if attempt.unread:  # the pipe is full: the first line has to wait
                os.write(writing, b"\n" * 65536)
            attempt.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=writing, stderr=err, text=True
            )
            os.close(writing)
            if attempt.unread:
                time.sleep(STALL + 1)
                self.happen(attempt.phone_id)
            while attempt.child.poll() is None:
                time.sleep(0.01)
                attempt.lines()
            attempt.status = attempt.child.wait()
            attempt.lines()
            os.close(attempt.pipe)
            attempt.pipe = None
            err.seek(0)
            attempt.err = io.StringIO(err.read())

    def stop(self, child: subprocess.Popen[str], phone_id: str) -> None:
        """Stop a process for a while, in which something happens to a phone."""

        def go_on() -> None:
            self.happen(phone_id)
            child.send_signal(signal.SIGCONT)

        self.counts["stopped"] += 1
        self.story.append("  it is stopped for a while")
        child.send_signal(signal.SIGSTOP)
        threading.Timer(STALL, go_on).start()

    # What the program takes for the module time; of a process this is the real one.

    def monotonic(self) -> float:
        attempt = self.running[-1]
        self.meanwhile(attempt, attempt.phone_id, 0.05)  # it may be stopped here
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.parallel:
            time.sleep(min(seconds, 0.001))
        elif not self.running[-1].quiet:  # what is foretold is due at one moment
            self.now += seconds

    def answer(self, attempt: Attempt) -> str:
        """Answer a prompt, after a while."""
        attempt.reads.clear()  # that was before the prompt
        attempt.err.seek(0)
        phone_id = re.findall("DP[A-Z0-9]{18}", attempt.err.read())[-1]
        self.meanwhile(attempt, phone_id)
        self.now += self.random.choice((1, 5, 20 * MINUTE))
        answers = {"y": 9, "YES": 5, "n": 5, "no": 3, "a": 2, "q": 1, "maybe": 3, "": 1}
        (answer,) = self.random.choices([*answers], [*answers.values()])
        self.story.append(f"  asked about {phone_id}, answered {answer!r}")
        if answer in ("q", ""):
            attempt.agreed.clear()
        elif answer[0] in "yYa":
            attempt.agreed.add("" if answer == "a" else phone_id)
        return answer and answer + "\n"

    # What the tenant sees

    def before(self, request: Request) -> None:
        """A request has come."""
        attempt, phone_id = self.running[-1], request.path.rpartition("/phones/")[2]
        with self.lock:
            attempt.requests += 1
            if attempt.dead:
                raise ConnectionAbortedError
            attempt.phone_id = phone_id
            self.story.append(f"  {attempt.number}: {request.method} {phone_id}")
            if request.method != "GET":
                self.judge(attempt, request, phone_id)
            attempt.asked[phone_id] = self.passed(attempt)
            self.meanwhile(attempt, phone_id)
            self.die(attempt, "before")

    def note(self, request: Request) -> None:
        """A request is carried out, and succeeds: the tenant is locked."""
        attempt, phone_id = self.running[-1], request.path.rpartition("/")[2]
        known, record = self.phones.get(phone_id), self.tenant.phones.get(phone_id)
        if "/phones/" not in request.path:
            self.note_page(attempt, request.params)
        elif known and request.method == "GET":
            if record and request.sequence not in self.tenant.spoiled:
                told, now = self.tenant._expanded(record), int(self.time(attempt))
                read = Read(replace(known), told, now, attempt.asked[phone_id])
                attempt.reads[phone_id] = read
        elif known:
            deed, name = deed_of(request), request.params.get("name")
            known.tag, known.named = int(name) if name else None, False
            if deed == "deleted":
                del self.phones[phone_id]
            attempt.deeds[phone_id] = deed
            self.did(deed, phone_id)

    def after(self, request: Request) -> None:
        """A request has been carried out; its answer has not been sent."""
        attempt, phone_id = self.running[-1], request.path.rpartition("/")[2]
        reads = request.method == "GET" and phone_id in attempt.reads
        with self.lock:
            if reads:
                self.meanwhile(attempt, phone_id)  # in the round trip that is left
            if reads and attempt.dies_at == (attempt.requests, "answered"):
                self.story.append(f"  {attempt.number} dies when it has this answer")
                attempt.dead = True  # but for a process, the next look at the clock
            self.die(attempt, "after")
            if reads and attempt.child:
                attempt.stops_at -= 1
                if not attempt.stops_at:
                    self.stop(attempt.child, phone_id)

    def note_page(self, attempt: Attempt, params: Record) -> None:
        start, users = int(params.get("offset", 0)), [*self.tenant.users]
        end = start + int(params["limit"])
        page = users[start:end]
        attempt.listed.update(page)
        if end >= len(users):
            attempt.total = attempt.total or len(users)
        if "username_list" not in params:
            users = page
        for phone_id, phone in self.phones.items():
            if not {*self.tenant.phones[phone_id]["users"]}.isdisjoint(users):
                attempt.tags.add((phone_id, phone.tag))

    def meanwhile(
        self, attempt: Attempt, phone_id: str, chance: float = 0.5, sure: bool = False
    ) -> None:
        """Let something happen while a run waits: to this phone, and another run.

        Time passes, too, if it is sure that no write is on its way.
        """
        with self.lock:
            if self.random.random() >= attempt.eventful * chance:
                return
            self.happen(phone_id)
            if self.parallel and not sure:
                return
            if self.random.random() < 0.3 and len(self.running) < 3 - 2 * self.parallel:
                self.carry_out(self.attempt())
            self.now += self.random.choice((0, 0.5, 1, 3, 30, 20 * MINUTE))

    def die(self, attempt: Attempt, moment: str) -> None:
        if attempt.dies_at == (attempt.requests, moment):
            self.story.append(f"  {attempt.number} dies {moment} this")
            attempt.dead = True
            if attempt.child:
                attempt.child.kill()
                attempt.child.wait()
            raise ConnectionAbortedError

    # The judgement

    def check(self, right: object, wrong: str) -> None:
        """Note what is wrong. It is raised later: this may be a tenant thread."""
        if not right:
            self.wrongs.append(wrong)
            self.story.append(f"WRONG: {wrong}")

    def raise_if_wrong(self) -> None:
        if self.wrongs:
            raise AssertionError("\n".join([*self.story, "", *self.wrongs]))

    def passed(self, attempt: Attempt) -> float:
        """Return the time by a clock that is not set, in seconds."""
        return time.monotonic() if attempt.real else self.now

    def judge(self, attempt: Attempt, request: Request, phone_id: str) -> None:
        """Hold a write against the promise before it is carried out."""
        name, now = request.params.get("name", ""), self.time(attempt)
        deed = deed_of(request)
        attempt.sent.add((deed, phone_id))
        about = f"run {attempt.number}, {deed} {phone_id}"
        read = attempt.reads.pop(phone_id, None)  # it vouches for one try
        if not read:
            self.check(False, f"{about}: not read before")
            return
        age, limit = self.passed(attempt) - read.asked, FRESH + DELAY * attempt.real
        self.check(age <= limit, f"{about}: read {age:.1f} s before")
        due = read.phone.due(now, attempt.grace_period)
        self.check(due == deed, f"{about}: {due} was due at {now} to {read.phone}")
        whole = attempt.names or len(attempt.listed) >= attempt.total > 0
        self.check(whole, f"{about}: the walk has not ended")
        self.check(not attempt.dry, f"{about}: in a dry run")
        self.check(attempt.untag or deed != "untagged", f"{about}: without --untag")
        agreed = not attempt.asks or attempt.agreed & {"", phone_id}
        self.check(agreed, f"{about}: nobody said yes")
        owners = {user["username"] for user in read.record["users"]}
        self.check(attempt.concerns(owners), f"{about}: nobody named {owners}")
        if deed == "stamped":
            right = (
                re.fullmatch("[0-9]{10}", str(name)) and read.now <= int(name) <= now
            )
            self.check(right, f"{about}: {name}, not from {read.now} to {now}")
        if deed != "deleted":
            self.check(request.params.keys() == {"name"}, f"{about}: {request.params}")
            return
        same = (phone_id, read.phone.tag) in attempt.tags
        self.check(same, f"{about}: not with the tag of the walk")
        line = (attempt.lines() or ["{}"])[-1]
        told = [json.loads(line).get(key) for key in ("event", "phone_id", "record")]
        self.check(told == ["deleting", phone_id, read.record], f"{about}: told {told}")
        right = not attempt.file or line in self.written(attempt)
        self.check(right, f"{about}: not in the journal")
        deletions = sum(what == deed for what, _ in attempt.sent)
        right = attempt.limit is None or deletions <= attempt.limit
        self.check(right, f"{about}: more than {attempt.limit}")

    def written(self, attempt: Attempt) -> list[str]:
        """Return the lines of a journal since a run began: others may write to it."""
        if attempt.file in ("", FULL):
            return []
        data = self.file.read_bytes() if self.file.exists() else b""
        start = data.rfind(b"\n", 0, attempt.offset) + 1  # of a torn line
        return data[start:].decode().splitlines()

    def foretell(self, attempt: Attempt) -> dict[str, str]:
        """Return what a run is to do if nothing happens meanwhile."""
        deeds = {}
        for phone_id, phone in self.phones.items():
            users = self.tenant.phones[phone_id]["users"]
            owners = {self.tenant.users[user]["username"] for user in users}
            deed = phone.due(self.time(attempt), attempt.grace_period)
            wanted = attempt.concerns(owners) and (attempt.untag or deed != "untagged")
            if deed and wanted:
                deeds[phone_id] = deed
        deletions = [*deeds.values()].count("deleted")
        dry = attempt.dry and attempt.limit != 0
        if attempt.limit is not None and deletions > attempt.limit and not dry:
            return {key: deed for key, deed in deeds.items() if deed != "deleted"}
        return deeds

    def review(self, attempt: Attempt, expected: dict[str, str]) -> None:
        """Hold what a run told against what it did."""
        about, journal = f"run {attempt.number}", attempt.journal()
        told = Counter(event["event"] for event in journal)
        outcomes: dict[str, str] = {}
        possible = attempt.done if attempt.faults else attempt.done & attempt.sent
        if any(fault.kind == "answer" for fault in attempt.faults):  # even to a 404
            possible = possible | attempt.sent
        for event in journal:
            what, phone_id = event["event"], event.get("phone_id")
            if not phone_id or what in ("deleting", "waiting", "named"):
                continue
            self.check(phone_id not in outcomes, f"{about}: twice told of {phone_id}")
            outcomes[phone_id] = what
            right = (what, phone_id) in possible
            self.check(right or what not in DEEDS, f"{about}: not {what} {phone_id}")
            right = phone_id not in self.phones or what not in ("gone", "deleted")
            self.check(right, f"{about}: {what} is still there: {phone_id}")
        attempt.err.seek(0)
        err = attempt.err.read()
        self.check("Traceback" not in err, f"{about}: {err}")
        missing = {*attempt.lines()} - {*self.written(attempt)}
        right = attempt.dead or attempt.dry or attempt.file in ("", FULL)
        self.check(right or not missing, f"{about}: not in the journal: {missing}")
        if attempt.dead:
            return
        for phone_id, deed in attempt.deeds.items():
            fair = {deed}
            if attempt.faults:  # its answer may have been lost, for good,
                fair.add("failed")
                if attempt.eventful and deed != "deleted":  # and the deed undone
                    fair.update(("changed", "gone"))
            outcome = outcomes.get(phone_id)
            self.check(outcome in fair, f"{about}: {deed} {phone_id}, told {outcome}")
        summary = journal[-1] if journal else {}
        del told["summary"]
        right = summary.get("event") == "summary" and told.items() <= summary.items()
        right = right and summary["exit_status"] == attempt.status
        self.check(right, f"{about}: {told} is summed up as {summary}")
        bad = bool(told["failed"] or told["unknown_user"])
        self.check(
            attempt.status == bad, f"{about}: exit {attempt.status} after {told}"
        )
        if attempt.quiet:
            did = {key: what for key, what in outcomes.items() if what in DEEDS}
            if attempt.dry:
                done = {would: deed for deed, would in DEEDS.items()}
                did = {key: done.get(what, what) for key, what in outcomes.items()}
            self.check(did == expected, f"{about}: did {did}, not {expected}")
            right = told["unknown_user"] == attempt.names.count("nobody")
            self.check(right, f"{about}: not all unknown users: {told}")
            # A request on a connection that is closed does not arrive.
            lost = summary.get("requests", 0) - attempt.requests
            self.check(
                not lost or (lost > 0 and attempt.faults),
                f"{about}: {attempt.requests} requests, not {summary}",
            )


@contextlib.contextmanager
def world(year: Year, zone: str) -> Iterator[None]:
    """Set up the surroundings of the program."""
    ahead, clock = duo_phone_cleanup.ahead, types.SimpleNamespace(**vars(time))
    clock.monotonic, clock.sleep = year.monotonic, year.sleep
    system, journals = types.SimpleNamespace(**vars(os)), list[int]()

    def opened(*how: Any) -> int:
        journals.append(os.open(*how))
        return journals[-1]

    system.open = opened
    program: Record = {**QUICK, "time": clock, "os": system, "random": year.random}
    if not year.parallel:  # the seed alone is to decide
        program["ahead"] = lambda function, items, width: ahead(function, items, 0)
    with contextlib.ExitStack() as stack:
        stack.callback(time.tzset)
        stack.callback(lambda: [*map(os.close, journals)])  # as a process's end does
        environment = {**year.tenant.environment(), "TZ": zone}
        stack.enter_context(mock.patch.dict(os.environ, environment))
        time.tzset()
        stack.enter_context(mock.patch.multiple(duo_phone_cleanup, **program))
        # A run inside another one is in a thread of the tenant's, where this fails.
        stack.enter_context(mock.patch.object(signal, "signal"))
        yield


def live(
    seed: int, runs: int = RUNS, real: float = 0, quick: bool = True
) -> Counter[str]:
    """Live through a year; return how often what happened. Raises AssertionError."""
    tenant = Watched()
    with tempfile.TemporaryDirectory() as directory, tenant:
        year = Year(tenant, directory, seed, real, quick)
        try:
            with world(year, ZONES[seed % len(ZONES)]):
                year.live(runs)
        except AssertionError as error:
            flags = f" --real {real}" * bool(real) + " --quick" * quick
            again = f"python -m tests.simulation.year --seed {seed}{flags}"
            raise AssertionError(f"{error}\n\nAgain: {again}") from None
        return year.counts


def main() -> int:
    """Live through years until there have been so many runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.year")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=1, help="of the first year")
    text = "of the runs, from 0 to 1, that are processes, and are killed (slow)"
    parser.add_argument("--real", type=float, default=0, metavar="SHARE", help=text)
    parser.add_argument(
        "--quick", action="store_true", help="no answer is awaited in vain"
    )
    options = parser.parse_args()
    seed, counts, began = options.seed, Counter[str](), time.monotonic()
    while counts["runs"] < options.runs:
        try:
            counts += live(seed, RUNS, options.real, options.quick)
        except AssertionError as error:
            print(error)
            return 1
        seed += 1
    print(", ".join(f"{what} {number}" for what, number in counts.items()))
    print(f"Seeds {options.seed} to {seed - 1}: all promises kept.")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
