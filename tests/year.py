"""A simulated year: people do what they do, and no run may ever wrong them.

A `Year` lives through many runs of the program on one simulated tenant. Between the
runs, and while they wait for an answer, users begin, finish, abandon and restart
set-ups, phones are used and shared, administrators name and delete them. Runs come at
odd intervals, with clocks that go wrong; they overlap, meet faults, ask and are
answered, and die. Each write is judged when it reaches the tenant, by what is true of
the phone and not by its record or by what the program says; each journal is held
against what was done. In the end, two clean runs leave no abandoned phone.

It is all decided by a seed. The suite lives a short while (test_year.py); by hand::

    python -m tests.year --runs 5000 --seed 7
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
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import IO, Any, Callable
from unittest import mock

import duo_phone_cleanup
from tests.tenant import MISSING, Fault, Record, Request, Tenant

MINUTE, HOUR, DAY = 60, 3600, 86400
RUNS = 100  # in one year: then another one begins, with another tenant
QUICK = {"PAUSE": 0.001, "PATIENCE": 60, "PAGE": 4, "PAGES_AHEAD": 1}
"""Constants of the program. One page at a time: the seed alone is to decide."""
PROCESS = f"""
import sys, duo_phone_cleanup
vars(duo_phone_cleanup).update({QUICK})
sys.exit(duo_phone_cleanup.main(sys.argv[2:], clock=lambda: float(sys.argv[1])))
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

    phone_id: str
    phone: Phone
    record: Record
    now: int


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

    eventful: float = 0
    """How likely it is that something happens while it waits for an answer."""
    dies_at: tuple[int, str] | None = None
    """The number of a request, and when: before or after its work, or once answered."""
    faults: list[Fault] = field(default_factory=list)
    real: bool = False
    """It is a process, whose clock stands still and which dies of a signal."""

    now: float | None = None
    """What its clock shows if that stands still."""
    child: subprocess.Popen[str] | None = None
    walking: bool = True
    dead: bool = False
    status: int | None = None
    requests: int = 0
    whole: bool = False
    """It has been given the last page."""
    tags: set[tuple[str, int | None]] = field(default_factory=set)
    """The phones and their tags on the pages that it has been given."""
    read: Read | None = None
    """What its last request was answered with, if that read a phone."""
    agreed: set[str] = field(default_factory=set)
    """The phones that a prompt was answered with yes for; "" is all."""
    sent: set[tuple[str, str]] = field(default_factory=set)
    deeds: dict[str, str] = field(default_factory=dict)
    """What it did to which phone."""
    out: IO[str] = field(default_factory=io.StringIO)
    err: IO[str] = field(default_factory=io.StringIO)

    @property
    def quiet(self) -> bool:
        """All that it does can be foretold."""
        return not (self.eventful or self.dies_at or self.faults or self.asks)

    def argv(self) -> list[str]:
        flags = {"--untag": self.untag, "--no-force": self.asks, "--dry-run": self.dry}
        limit = [] if self.limit is None else ["--max-deletions", str(self.limit)]
        options = ["--json", "-g", str(self.grace_period), *limit, *self.options]
        return [*options, *(flag for flag in flags if flags[flag]), *self.names]

    def journal(self) -> list[Record]:
        """Return the JSON lines so far; those of a process have reached its file."""
        self.out.seek(0)
        return [json.loads(line) for line in self.out.read().splitlines()]

    def concerns(self, owners: set[str]) -> bool:
        """Tell whether it is to look at the phones of these users."""
        return not self.names or bool(owners & {name.lower() for name in self.names})


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


class Year:
    """A tenant and its people."""

    def __init__(self, tenant: Tenant, seed: int, real: float, hangs: bool) -> None:
        self.tenant, self.real, self.hangs = tenant, real, hangs
        self.random = random.Random(seed)
        self.now = self.random.uniform(1.72e9, 1.78e9)
        self.phones: dict[str, Phone] = {}
        self.running: list[Attempt] = []  # each in a request of the one before
        self.numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.story: deque[str] = deque(maxlen=100)
        self.wrongs: list[str] = []
        tenant.on_request(self.before)
        tenant.after_request(self.after)

    def live(self, runs: int) -> None:
        """Live through so many runs and two clean ones. Raises AssertionError."""
        while self.counts["runs"] < runs:
            for _ in range(self.random.randrange(4)):
                self.happen()
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
        self.story.append(f"    {phone_id}: deleted by a person")

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
        if attempt.real:
            attempt.asks = False
        if self.running:  # inside another run: what goes wrong does so for both
            attempt.faults = self.running[-1].faults
        elif chance() < 0.3:
            for _ in range(self.random.randint(1, 3)):
                self.add_fault(attempt)
        return attempt

    def add_fault(self, attempt: Attempt) -> None:
        pick = self.random.choice
        kinds: list[tuple[str, Record]] = [
            *((f"reset_{when}", {}) for when in ("before", "after", "after")),
            *((f"close_{when}", {}) for when in ("before", "after")),
            *(("connection_close", {}), ("truncate", {}), ("junk", {})),
            *(("status", {"status": s}) for s in (400, 401, 403, 429, 500, 502, 503)),
            *(("answer", {"response": other}) for other in ANSWERS),
        ]
        kind, how = pick(kinds)
        # A 429 for ever would be given up at a time that no seed decides.
        times = pick((1, 1, 2, 3, 3 if how == {"status": 429} else None))
        if self.hangs and self.random.random() < 0.05:
            kind, how, times = "hang", {"before": pick((True, False))}, 1
            # Another run meanwhile would take longer than that.
            attempt.options, attempt.eventful = ["--timeout", "0.5"], 0
        where: Record = {
            "method": pick((None, "GET", "POST", "DELETE", "DELETE")),
            "path": pick((None, "/phones/", "/users")),
            "times": times,
            "after": pick((0, 0, 0, 1, 2, 5)),
        }
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
        if self.running:
            self.counts["overlaps"] += 1
            return
        for fault in attempt.faults:
            self.counts["faults"] += fault.hits
            fault.times = 0
        self.raise_if_wrong()

    def call_main(self, attempt: Attempt, argv: list[str]) -> None:
        def clock() -> float:
            # A run whose walk dies is told so, and ends: the clock must not end it
            # while it may still ask for a page.
            if attempt.dead and not attempt.walking:
                raise Killed
            return self.time(attempt)

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
            # A page that it did not wait for is not to come during another run.
            for thread in {*threading.enumerate()} - threads - self.tenant._threads:
                thread.join()

    def start_process(self, attempt: Attempt, argv: list[str]) -> None:
        command = [sys.executable, "-c", PROCESS, str(self.time(attempt)), *argv]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"]
            attempt.out, attempt.err = files
            streams = dict(zip(("stdout", "stderr"), files), stdin=subprocess.DEVNULL)
            attempt.child = subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]
            attempt.status = attempt.child.wait()
            for file in files:
                file.seek(0)
            attempt.out, attempt.err = (io.StringIO(file.read()) for file in files)

    def answer(self, attempt: Attempt) -> str:
        """Answer a prompt, after a while."""
        attempt.read = None  # it was read before the prompt
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
        attempt.requests += 1
        if attempt.dead:
            raise ConnectionAbortedError
        attempt.walking = "/phones/" not in request.path
        self.story.append(f"  {attempt.number}: {request.method} {phone_id}")
        read, attempt.read = attempt.read, None
        if request.method != "GET":
            self.judge(attempt, request, phone_id, read)
        # While it waits for a later page it looks at the one before, and at its clock.
        if not attempt.walking or request.params["offset"] == "0":
            self.meanwhile(attempt, phone_id)
        elif self.random.random() < attempt.eventful:
            self.happen()
        self.die(attempt, "before")

    def after(self, request: Request) -> None:
        """A request has been carried out; its answer has not been sent."""
        attempt, phone_id = self.running[-1], request.path.rpartition("/")[2]
        known, record = self.phones.get(phone_id), self.tenant.phones.get(phone_id)
        if attempt.walking:
            self.note_page(attempt, request.params)
        elif request.method == "GET":
            if known and record:
                told, now = self.tenant._expanded(record), int(self.time(attempt))
                attempt.read = Read(phone_id, replace(known), told, now)
            self.meanwhile(attempt, phone_id)  # in the round trip that is left
        elif known and not record:
            del self.phones[phone_id]
            attempt.deeds[phone_id] = "deleted"
        elif known:
            name = request.params["name"]
            known.tag, known.named = int(name) if name else None, False
            attempt.deeds[phone_id] = "stamped" if name else "untagged"
        if attempt.dies_at == (attempt.requests, "answered") and attempt.read:
            self.story.append(f"  {attempt.number} dies when it has this answer")
            attempt.dead = True  # but for a process, the next look at the clock
        self.die(attempt, "after")

    def note_page(self, attempt: Attempt, params: Record) -> None:
        end, users = int(params["offset"]) + int(params["limit"]), [*self.tenant.users]
        attempt.whole = "username_list" in params or end >= len(users)
        if "username_list" not in params:
            users = users[int(params["offset"]) : end]
        for phone_id, phone in self.phones.items():
            if not {*self.tenant.phones[phone_id]["users"]}.isdisjoint(users):
                attempt.tags.add((phone_id, phone.tag))

    def meanwhile(self, attempt: Attempt, phone_id: str) -> None:
        """Let something happen while a run waits: to this phone, and another run."""
        if self.random.random() >= attempt.eventful / 2:
            return
        self.happen(phone_id)
        if self.random.random() < 0.3 and len(self.running) < 3:
            self.carry_out(self.attempt())
        self.now += self.random.choice((0, 0.5, 30, 20 * MINUTE))

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

    def judge(
        self, attempt: Attempt, request: Request, phone_id: str, read: Read | None
    ) -> None:
        """Hold a write against the promise before it is carried out."""
        name, now = request.params.get("name", ""), self.time(attempt)
        deed = "stamped" if name else "untagged"
        deed = "deleted" if request.method == "DELETE" else deed
        attempt.sent.add((deed, phone_id))
        about = f"run {attempt.number}, {deed} {phone_id}"
        if read is None or read.phone_id != phone_id:
            self.check(False, f"{about}: not read just before")
            return
        due = read.phone.due(now, attempt.grace_period)
        self.check(due == deed, f"{about}: {due} was due at {now} to {read.phone}")
        self.check(attempt.whole, f"{about}: the walk has not ended")
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
        last = (attempt.journal() or [{}])[-1]
        told = [last.get(key) for key in ("event", "phone_id", "record")]
        self.check(told == ["deleting", phone_id, read.record], f"{about}: told {told}")
        deletions = sum(what == deed for what, _ in attempt.sent)
        right = attempt.limit is None or deletions <= attempt.limit
        self.check(right, f"{about}: more than {attempt.limit}")

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
        if attempt.limit is not None and deletions > attempt.limit and not attempt.dry:
            return {key: deed for key, deed in deeds.items() if deed != "deleted"}
        return deeds

    def review(self, attempt: Attempt, expected: dict[str, str]) -> None:
        """Hold what a run told against what it did."""
        about, journal = f"run {attempt.number}", attempt.journal()
        told = Counter(event["event"] for event in journal)
        outcomes: dict[str, str] = {}
        for event in journal:
            what, phone_id = event["event"], event.get("phone_id")
            if not phone_id or what in ("deleting", "waiting", "named"):
                continue
            self.check(phone_id not in outcomes, f"{about}: twice told of {phone_id}")
            outcomes[phone_id] = what
            right = attempt.deeds.get(phone_id) == what or attempt.faults
            right = right and (what, phone_id) in attempt.sent
            self.check(right or what not in DEEDS, f"{about}: not {what} {phone_id}")
            right = phone_id not in self.phones or what not in ("gone", "deleted")
            self.check(right, f"{about}: {what} is still there: {phone_id}")
        attempt.err.seek(0)
        err = attempt.err.read()
        self.check("Traceback" not in err, f"{about}: {err}")
        if attempt.dead:
            return
        for phone_id, deed in attempt.deeds.items():
            possible = {deed}
            if attempt.faults:  # its answer may have been lost, for good,
                possible.add("failed")
                if attempt.eventful and deed != "deleted":  # and the deed undone
                    possible.update(("changed", "gone"))
            outcome = outcomes.get(phone_id)
            self.check(
                outcome in possible, f"{about}: {deed} {phone_id}, told {outcome}"
            )
        summary = journal[-1] if journal else {}
        del told["summary"]
        right = summary.get("event") == "summary" and told.items() <= summary.items()
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
            right = summary.get("requests") == attempt.requests
            self.check(right, f"{about}: {attempt.requests} requests, not {summary}")


@contextlib.contextmanager
def world(tenant: Tenant, zone: str) -> Iterator[None]:
    """Set up the surroundings of the program."""
    with contextlib.ExitStack() as stack:
        stack.callback(time.tzset)
        environment = {**tenant.environment(), "TZ": zone}
        stack.enter_context(mock.patch.dict(os.environ, environment))
        time.tzset()
        quick = mock.patch.multiple(duo_phone_cleanup, **QUICK)  # type: ignore[call-overload]
        stack.enter_context(quick)
        # A run inside another one is in a thread of the tenant's, where this fails.
        stack.enter_context(mock.patch.object(signal, "signal"))
        yield


def live(
    seed: int, runs: int = RUNS, real: float = 0, hangs: bool = False
) -> Counter[str]:
    """Live through a year; return how often what happened. Raises AssertionError."""
    with Tenant() as tenant, world(tenant, ZONES[seed % len(ZONES)]):
        year = Year(tenant, seed, real, hangs)
        try:
            year.live(runs)
        except AssertionError as error:
            again = f"python -m tests.year --seed {seed}" + f" --real {real}" * bool(
                real
            )
            raise AssertionError(f"{error}\n\nAgain: {again}") from None
        return year.counts


def main() -> int:
    """Live through years until there have been so many runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.year")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=1, help="of the first year")
    text = "of the runs, from 0 to 1, that are processes, and are killed (slow)"
    parser.add_argument("--real", type=float, default=0, metavar="SHARE", help=text)
    options = parser.parse_args()
    seed, counts, began = options.seed, Counter[str](), time.monotonic()
    while counts["runs"] < options.runs:
        try:
            counts += live(seed, real=options.real, hangs=True)
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
