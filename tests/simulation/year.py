"""A simulated year: people do what they do, and no run may ever wrong them.

A `Year` lives through many runs of the program on one simulated tenant. Between the
runs, and while they wait for an answer, users begin, finish, abandon and restart
set-ups, phones are used, shared and moved, administrators name and delete them. Runs
come at odd intervals, with clocks that go wrong, on machines that fall asleep; they
overlap, meet faults, stall, ask and are answered, and die. Writes are held up on their
way, and carried out when nobody expects them any more. In the end, two clean runs
leave no abandoned phone.

people.py has what people do, runs.py what befalls a run, judgment.py what must hold.

It is all decided by a seed, and the program's clocks show the year's time. In one year
of four the program reads ahead, and the seed decides less. The suite lives a short
while (test_year.py); by hand::

    python -m tests.simulation.year --runs 5000 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
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
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import duo_phone_cleanup
from tests.simulation.judgment import Judgment
from tests.simulation.people import DAY, HOUR, MINUTE, Clock, People, owners_of
from tests.simulation.runs import (
    WHOLE,
    Attempt,
    Fortune,
    Output,
    Read,
    Write,
    deed_of,
    phone_of,
    text_of,
)
from tests.simulation.tenant import Fault, Record, Request, Tenant, _Refusal

RUNS = 100  # in one year: then another one begins, with another tenant
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Chatham")
ANSWERS = {"y": 9, "YES": 5, "n": 5, "no": 3, "a": 4, "q": 1, "maybe": 3, "": 1}
"""What is answered to a prompt, and how often; "" ends the input."""
PROMPT = r"\d+ of \d+: (\w+) .*(DP[A-Z0-9]{18})"
DEEDS_BY_VERB = {"stamp": "stamped", "untag": "untagged", "delete": "deleted"}
SHORT_PAGES: Record = {"USERS_A_PAGE": 4}
BY_REAL_TIME: Record = {
    **SHORT_PAGES,
    "RETRY_PAUSE_SECONDS": 0.001,
    "MAX_WAIT_429_SECONDS": 0.3,
}
"""Constants of the program where the real clock goes on: no long pauses."""
# A run in this process must not end it where it is slow after a signal.
BY_YEARS_TIME: Record = {
    **SHORT_PAGES,
    "RETRY_PAUSE_SECONDS": 1,
    "SLICE_SECONDS": 1000,
    "STUCK_SECONDS": 60,
}
"""The same where it does not: a wait ends when there is an answer."""
PROCESS = f"""
import os, sys
import duo_phone_cleanup as program
vars(program).update({BY_REAL_TIME})
now, parallel, *argv = sys.argv[1:]
ahead = program.ahead
if parallel == "False":
    program.ahead = lambda start_call, items, width: ahead(start_call, items, 0)
os._exit(program.main(argv, clock=lambda: float(now)))
"""

start = duo_phone_cleanup.start
ahead = duo_phone_cleanup.ahead


def start_and_wait(*what: Any) -> Any:
    """Start a call as the program does, and end it: the seed alone is to decide."""
    call = start(*what)
    call.join()
    return call


def one_by_one(start_call: Any, items: Any, _width: int) -> Iterator[tuple[Any, Any]]:
    """Do as `ahead` does, but nothing ahead."""
    return ahead(start_call, items, 0)


class Killed(BaseException):
    """Ends a run as kill -9 would: nothing of the program catches it."""


class Watched(Tenant):
    """A tenant that tells its year what it does, at the moment when it does it."""

    def __init__(self, year: Year) -> None:
        super().__init__(clock=lambda: year.clock.now)
        self.year = year
        self.spoiled: set[int] = set()  # requests whose answers do not arrive whole

    def carry_out_late(self, request: Request) -> None:
        """Do what was asked long ago; nobody hears of it."""
        with self.lock, contextlib.suppress(_Refusal):
            self._work(request)

    def _fault_for(self, request: Request) -> Fault | None:
        fault = super()._fault_for(request)
        if fault and fault.kind not in WHOLE:
            # A look-up of names has but one page, whatever follows.
            same = fault.how.get("page") == "same"
            if not (same and "username_list" in request.params):
                self.spoiled.add(request.sequence)
            if fault.kind == "status" and fault.how["status"] < 500:
                self.year.judgment.refused.add(request.sequence)
        return fault

    def _work(self, request: Request) -> Any:
        answer = super()._work(request)
        self.year.note(request)
        return answer


class Disk:
    """How the program writes its journals: at times, that fails."""

    def __init__(self, year: Year) -> None:
        self.year = year
        self.files: set[int] = set()

    def module(self) -> types.SimpleNamespace:
        """Return what the program takes for the module os."""
        system = types.SimpleNamespace(**vars(os))
        system.open = self.open
        system.fstat = self.fstat
        system.write = self.write
        system.fsync = self.fsync
        return system

    def open(self, path: Any, *how: Any) -> int:
        file = os.open(path, *how)
        if str(path) == self.year.file:
            self.files.add(file)
        return file

    def fstat(self, file: int) -> os.stat_result:
        """Look at a journal before a line is written; it may just have been removed."""
        attempt = self.year.running[-1]
        self.year.interrupt(attempt)
        # While another run is inside this one, a deletion of that may be under way.
        if len(self.year.running) == 1 and self.breaks(attempt, "removed"):
            Path(self.year.file).unlink(missing_ok=True)
            self.year.counts["removed"] += 1
        return os.fstat(file)

    def write(self, file: int, data: bytes) -> int:
        attempt = self.year.running[-1]
        if self.breaks(attempt, "full"):
            raise OSError(errno.ENOSPC, "the disk is full")
        if self.breaks(attempt, "torn"):
            os.write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "the disk is full")
        if attempt.journal_breaks:
            lines, how = attempt.journal_breaks
            attempt.journal_breaks = (lines - 1, how)
        return os.write(file, data)

    def fsync(self, file: int) -> None:
        attempt = self.year.running[-1]
        if file not in self.files:
            return  # the folder
        if self.breaks(attempt, "sync"):
            raise OSError(errno.EIO, "the disk fails")
        attempt.on_disk = os.fstat(file).st_size

    def breaks(self, attempt: Attempt, how: str) -> bool:
        if attempt.journal_breaks is None:
            return False
        lines, way = attempt.journal_breaks
        if way != how or lines > 0:
            return False
        attempt.journal_broke = True
        return True

    def close(self) -> None:
        """Close the journals, as the end of a process does."""
        for file in self.files:
            os.close(file)
        self.files.clear()


class Year:
    """A tenant, its people, and the runs of the program."""

    def __init__(self, directory: str, seed: int, real: float) -> None:
        self.random = random.Random(seed)
        self.clock = Clock(self.random.uniform(1.72e9, 1.78e9))
        self.file = str(Path(directory, "journal"))
        # Two requests of a run may be under way. Then no time passes meanwhile, and no
        # other run: a write that is sent in time is to arrive in time.
        self.parallel = seed % 4 == 3
        self.tenant = self.make_tenant()
        self.lock: Any = contextlib.nullcontext()
        if self.parallel:
            self.lock = self.tenant.lock
        self.story: deque[str] = deque(maxlen=300)
        self.people = People(self.tenant, self.random, self.clock, self.story, self.did)
        self.judgment = Judgment(self.people, self.story)
        self.fortune = Fortune(self.people, self.file, real, self.parallel)
        self.disk = Disk(self)
        self.running: list[Attempt] = []  # each in a request of the one before
        self.senders: dict[int, Attempt] = {}  # of all requests
        self.held_up: list[Request] = []  # writes that have not arrived yet
        self.counts: Counter[str] = Counter()

    def make_tenant(self) -> Watched:
        tenant = Watched(self)
        tenant.gone_status = self.random.choice((200, 404))
        tenant.last_offset_null = self.random.choice((True, False))
        tenant.look_up_counts_all = self.random.choice((True, False))
        tenant.on_request(self.before)
        tenant.after_request(self.after)
        return tenant

    def live(self, runs: int) -> None:
        """Live through so many runs and two clean ones. Raises AssertionError."""
        while self.counts["runs"] < runs:
            for _ in range(self.random.randrange(4)):
                self.happen()
            self.tear_journal()
            attempt = self.fortune.attempt()
            self.wait(attempt)
            self.carry_out(attempt)
        self.end()

    def end(self) -> None:
        """Let two clean runs follow: no abandoned phone may be left."""
        while self.held_up:
            self.let_one_arrive()
        for phone_id, phone in self.people.phones.items():
            if not phone.readable:
                self.people.use(phone_id)
        self.clock.now += HOUR  # past every tag of a clock that was ahead
        grace_period = self.random.choice((0, 1, 10, 60))
        for number in ("last but one", "last"):
            self.story.append(f"the {number} run")
            self.carry_out(Attempt(0, grace_period))
            self.clock.now += grace_period * MINUTE
        left = self.people.abandoned()
        self.judgment.check(not left, f"left after two clean runs: {left}")
        same = self.people.phones.keys() == self.tenant.phones.keys()
        self.judgment.check(same, "phones are gone")
        self.judgment.raise_if_wrong()

    # What happens

    def did(self, deed: str, phone_id: str) -> None:
        for attempt in self.running:
            attempt.done.add((deed, phone_id))

    def happen(self, phone_id: str = "") -> None:
        """Let somebody do something, or a write arrive that was held up."""
        if self.held_up and self.random.random() < 0.3:
            self.let_one_arrive()
        else:
            self.people.happen(phone_id)

    def let_one_arrive(self) -> None:
        """Let a write arrive that was held up, unless it is lost for good."""
        place = self.random.randrange(len(self.held_up))
        request = self.held_up.pop(place)
        number = self.senders[request.sequence].number
        about = f"{request.method} {phone_of(request)} of run {number}"
        if self.random.random() < 0.2:
            self.story.append(f"    lost for good: {about}")
            return
        self.story.append(f"    arrives late: {about}")
        self.counts["late"] += 1
        self.tenant.carry_out_late(request)

    def tear_journal(self) -> None:
        """Leave half a last line in the journal, as a disk does that is full."""
        file = Path(self.file)
        if not file.exists() or self.random.random() >= 0.1:
            return
        text = file.read_text()
        if text.endswith("\n"):
            last = text.splitlines()[-1][: self.random.randint(1, 400)]
            file.write_text(text[: text.rfind("\n", 0, -1) + 1] + last)
            self.story.append("    the journal is torn")
            self.counts["torn"] += 1

    def wait(self, attempt: Attempt) -> None:
        """Let time pass until a run, often to the second of a grace period's end."""
        now = self.clock.now
        passed = (self.random.uniform(1, 90), 300, self.random.uniform(0, DAY), HOUR)
        later = now + self.random.choice(passed)
        edge = self.random.choice((-60, -30, -1, 0, 0, 1)) - attempt.skew
        ends = []
        for phone in self.people.phones.values():
            if phone.limbo and phone.tag:
                ends.append(phone.tag + attempt.grace_period * MINUTE + edge)
        ends = [end for end in ends if end > now]
        end = self.random.choice(ends or [later])
        self.clock.now = self.random.choice((later, end))

    def meanwhile(
        self, attempt: Attempt, phone_id: str, chance: float = 0.5, sure: bool = False
    ) -> None:
        """Let something happen while a run waits: to this phone, and another run.

        Time passes, too, if it is sure that no write is on its way.
        """
        with self.lock:
            if attempt.told_to_end:  # it will soon be over
                return
            if self.random.random() >= attempt.eventful * chance:
                return
            self.happen(phone_id)
            if self.parallel and not sure:
                return
            most = 3
            if self.parallel:
                most = 1
            if self.random.random() < 0.3 and len(self.running) < most:
                self.carry_out(self.fortune.attempt(attempt))
            seconds = self.random.choice((0, 0.5, 1, 3, 30, 20 * MINUTE))
            self.clock.now += seconds
            if self.random.random() < 0.3:
                self.story.append(f"    the machine sleeps for {seconds} s")
                self.clock.slept += seconds

    # The runs

    def time(self, attempt: Attempt) -> float:
        """Return what the clock of a run shows."""
        if attempt.now is not None:
            return attempt.now
        return self.clock.now + attempt.skew

    def carry_out(self, attempt: Attempt) -> None:
        """Carry a run out, and judge what it told and did."""
        if attempt.real:
            attempt.now = self.time(attempt)
        argv = attempt.argv()
        now = self.time(attempt)
        expected = self.judgment.foretell(attempt, now)
        self.story.append(f"run {attempt.number} at {now:.1f}: {argv}")
        self.running.append(attempt)
        if attempt.real:
            self.start_process(attempt, argv)
        else:
            self.call_main(attempt, argv)
        self.running.pop()
        self.judgment.review(attempt, expected)
        self.count(attempt)
        if not self.running:
            self.tenant.refuse(0)
            for fault in attempt.faults:
                fault.times = 0
            self.judgment.raise_if_wrong()

    def count(self, attempt: Attempt) -> None:
        self.counts.update(attempt.deeds.values())
        self.counts.update(runs=1, requests=attempt.requests)
        self.counts.update(
            killed=attempt.dead,
            quiet=attempt.quiet,
            processes=attempt.real,
            terminated=attempt.told_to_end,
            failed=attempt.status == 1,
            overlaps=bool(self.running),
        )
        if not self.running:
            self.counts["faults"] += sum(fault.hits for fault in attempt.faults)

    def call_main(self, attempt: Attempt, argv: list[str]) -> None:
        """Run the program in this process."""

        def clock() -> float:
            if attempt.dead:
                raise Killed
            self.interrupt(attempt)
            return self.time(attempt)

        def stall(sure: bool) -> None:
            self.interrupt(attempt)
            if sure:  # or else a read of old could be answered after a later one
                self.wait_for_threads(threads)
            self.meanwhile(attempt, attempt.phone_id, 0.2, sure)

        attempt.out = Output(lambda: stall(True))  # only the main thread writes to it
        attempt.err = Output(lambda: stall(False))
        answers = types.SimpleNamespace(readline=lambda: self.answer(attempt).encode())
        prompted = types.SimpleNamespace(isatty=lambda: False, buffer=answers)
        streams: Record = {
            "stdin": prompted,
            "stdout": attempt.out,
            "stderr": attempt.err,
        }
        attempt.thread = threading.get_ident()
        threads = set(threading.enumerate())
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(sys, **streams))
            constants = self.constants(attempt)
            stack.enter_context(mock.patch.multiple(duo_phone_cleanup, **constants))
            try:
                attempt.status = duo_phone_cleanup.main(argv, clock=clock)
            except Killed:
                pass
            except BaseException as error:
                self.judgment.check(False, f"main() raised {error!r}")
            self.wait_for_threads(threads)
        if not self.running[:-1]:
            self.disk.close()

    def constants(self, attempt: Attempt) -> Record:
        """Return the constants of the program for a run in this process."""
        if self.parallel:  # no time passes, so that no pause would end
            return {**BY_YEARS_TIME, "RETRY_PAUSE_SECONDS": 0}
        return {**BY_YEARS_TIME, "start": start_and_wait, "ahead": one_by_one}

    def wait_for_threads(self, before: set[threading.Thread]) -> None:
        """What a run did not wait for is not to come during another one."""
        while True:
            left = set(threading.enumerate()) - before - self.tenant._threads
            if not left:
                return
            with contextlib.suppress(RuntimeError):  # it is just being started
                left.pop().join()

    def start_process(self, attempt: Attempt, argv: list[str]) -> None:
        """Run the program as a process."""
        words = [str(self.time(attempt)), str(self.parallel), *argv]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            attempt.out = out
            attempt.child = subprocess.Popen(
                [sys.executable, "-c", PROCESS, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            attempt.status = attempt.child.wait()
            attempt.out = io.StringIO(text_of(out))
            attempt.err = io.StringIO(text_of(err))

    def terminate(self, attempt: Attempt) -> None:
        """Tell a run to end, which may still report that."""
        self.story.append(f"  {attempt.number} is told to end")
        attempt.told_to_end = True
        if attempt.child:
            attempt.child.terminate()
            # Its answer may come as the program gives it up.
            time.sleep(self.random.choice((0, 0, 0.1, 0.3)))
        else:
            attempt.signal_comes = True

    def take_signal(self, number: int, handler: Any) -> None:
        """Do as signal.signal, which fails in the threads of runs inside others."""
        self.running[-1].handlers[number] = handler

    def interrupt(self, attempt: Attempt) -> None:
        """Let a run notice sooner or later that a signal has come."""
        if not attempt.signal_comes or threading.get_ident() != attempt.thread:
            return
        if self.random.random() < 0.5:
            attempt.signal_comes = False
            attempt.handlers[signal.SIGTERM](signal.SIGTERM, None)

    def die(self, attempt: Attempt, moment: str, number: int) -> None:
        if attempt.dies_at != (number, moment):
            return
        if attempt.terminated:
            self.terminate(attempt)
            return
        self.story.append(f"  {attempt.number} dies {moment} this")
        attempt.dead = True
        if attempt.child:
            attempt.child.kill()
            attempt.child.wait()
        raise ConnectionAbortedError

    def cut(self, attempt: Attempt) -> None:
        """Let the network fail: connections end, new ones are refused for a while."""
        if attempt.cut_at != attempt.requests:
            return
        refused = self.random.randint(0, 6)
        self.story.append(f"  cut off; {refused} connections are refused")
        self.tenant.close_idle()
        self.tenant.refuse(refused)
        self.counts["cut off"] += 1

    def hold_up(self, attempt: Attempt, request: Request) -> None:
        """Let a write be under way for long: its run hears no more of it."""
        if self.random.random() >= attempt.late:
            return
        self.story.append("  this is held up")
        self.held_up.append(request)
        raise ConnectionAbortedError

    # What the program takes for the module time; of a process this is the real one.

    def clock_gettime(self, which: int) -> float:
        attempt = self.running[-1]
        if attempt.dead:
            raise Killed
        self.interrupt(attempt)
        self.meanwhile(attempt, attempt.phone_id, 0.05)  # it may be stopped here
        if which == time.CLOCK_MONOTONIC:
            return self.clock.monotonic()
        return self.clock.boot()

    def monotonic(self) -> float:
        return self.clock_gettime(time.CLOCK_MONOTONIC)

    def sleep(self, seconds: float) -> None:
        attempt = self.running[-1]
        if attempt.quiet:  # what is foretold is due at one moment
            self.clock.paused += seconds
        else:
            self.clock.now += seconds

    def passed(self, attempt: Attempt) -> float:
        """Return the time by the clock that tells how old a read is."""
        if attempt.real:
            return time.monotonic()
        return self.clock.boot()

    def answer(self, attempt: Attempt) -> str:
        """Answer a prompt."""
        verb, phone_id = re.findall(PROMPT, text_of(attempt.err))[-1]
        if phone_id in attempt.reads:
            owners = owners_of(attempt.reads[phone_id].record)
            attempt.asked_about[phone_id] = owners
        attempt.reads.clear()  # that was before the prompt
        answer = self.reply(attempt, phone_id)
        self.story.append(f"  asked about {phone_id}, answered {answer!r}")
        if answer in ("q", ""):
            attempt.agreed.clear()
        elif answer == "a":
            attempt.agreed.add(DEEDS_BY_VERB[verb])
        elif answer in ("y", "YES"):
            attempt.agreed.add(phone_id)
        if not answer:
            return ""
        return answer + "\n"

    def reply(self, attempt: Attempt, phone_id: str) -> str:
        """Think up an answer, after a while; "" ends the input."""
        self.meanwhile(attempt, phone_id)
        self.clock.now += self.random.choice((1, 5, 20 * MINUTE))
        (answer,) = self.random.choices([*ANSWERS], [*ANSWERS.values()])
        return answer

    # What the tenant sees

    def before(self, request: Request) -> None:
        """A request has come."""
        attempt = self.running[-1]
        phone_id = phone_of(request)
        with self.lock:
            attempt.requests += 1
            self.senders[request.sequence] = attempt
            if attempt.dead:
                raise ConnectionAbortedError
            attempt.phone_id = phone_id
            self.story.append(f"  {attempt.number}: {request.method} {phone_id}")
            if request.method != "GET":
                self.receive(attempt, request, phone_id)
                self.hold_up(attempt, request)
            else:
                for write in attempt.writes:
                    write.looked_after |= write.phone_id == phone_id
            attempt.asked[phone_id] = self.passed(attempt)
            self.meanwhile(attempt, phone_id)
            self.cut(attempt)
            self.die(attempt, "before", attempt.requests)

    def receive(self, attempt: Attempt, request: Request, phone_id: str) -> None:
        """Let a write be judged that has come."""
        deed = deed_of(request)
        about = f"run {attempt.number}, {deed} {phone_id}"
        if deed != "deleted":
            right = request.params.keys() == {"name"}
            self.judgment.check(right, f"{about}: {request.params}")
        read = attempt.reads.pop(phone_id, None)  # it vouches for one try
        if read is None:
            self.judgment.check(False, f"{about}: not read before")
            return
        name = str(request.params.get("name", ""))
        write = Write(deed, phone_id, name, request.sequence, read)
        attempt.writes.append(write)
        if name == str(read.phone.tag):  # it has that already
            attempt.done.add((deed, phone_id))
        now = self.time(attempt)
        self.judgment.judge(attempt, write, now, self.passed(attempt))

    def note(self, request: Request) -> None:
        """A request is carried out, and succeeds: the tenant is locked."""
        attempt = self.senders[request.sequence]
        phone_id = phone_of(request)
        whole = request.sequence not in self.tenant.spoiled
        if not phone_id:
            if whole:
                self.note_page(attempt, request.params)
        elif request.method == "GET":
            if whole and phone_id in self.people.phones:
                self.note_read(attempt, phone_id)
        elif phone_id in self.people.phones:
            deed = deed_of(request)
            attempt.deeds[phone_id] = deed
            self.people.written(phone_id, deed, str(request.params.get("name")))

    def note_page(self, attempt: Attempt, params: Record) -> None:
        """Take note of whom, and which phones, a run is told of."""
        users = [*self.tenant.users]
        if "username_list" not in params:
            start = int(params.get("offset", 0))
            end = start + int(params.get("limit", 100))
            if end >= len(users):
                attempt.total = attempt.total or len(users)
            users = users[start:end]
        attempt.listed.update(users)
        for phone_id, phone in self.people.phones.items():
            set_up_since = phone.due(self.time(attempt), 0) == "untagged"
            if not phone.limbo and not (set_up_since and attempt.untag):
                continue  # a run does not keep it in mind
            for user_id in self.tenant.phones[phone_id]["users"]:
                owner = self.tenant.users[user_id]["username"]
                if user_id in users and attempt.concerns({owner}):
                    attempt.tags.add((phone_id, phone.tag))
                    attempt.counted.setdefault(phone_id, set()).add(owner)

    def note_read(self, attempt: Attempt, phone_id: str) -> None:
        """Take note of what a run is told of a phone."""
        record = self.tenant._expanded(self.tenant.phones[phone_id])
        known = replace(self.people.phones[phone_id])
        asked = attempt.asked[phone_id]
        now = int(self.time(attempt))
        attempt.reads[phone_id] = Read(known, record, now, asked)
        if phone_id in attempt.first_read:
            return
        attempt.first_read[phone_id] = now
        if attempt.names:  # to know who else shares it
            counted = attempt.counted.setdefault(phone_id, set())
            counted.update(owners_of(record))

    def after(self, request: Request) -> None:
        """A request has been carried out; its answer has not been sent."""
        attempt = self.senders[request.sequence]
        phone_id = phone_of(request)
        reads = request.method == "GET" and phone_id in attempt.reads
        with self.lock:
            if reads:
                self.meanwhile(attempt, phone_id)  # in the round trip that is left
            self.die(attempt, "after", attempt.requests)
            if request.method != "GET":
                self.die(attempt, "written", len(attempt.writes))


@contextlib.contextmanager
def world(year: Year, zone: str) -> Iterator[None]:
    """Set up the surroundings of the program."""
    clock = types.SimpleNamespace(**vars(time))
    clock.clock_gettime = year.clock_gettime
    clock.monotonic = year.monotonic
    clock.sleep = year.sleep
    program: Record = {
        "time": clock,
        "os": year.disk.module(),
        "random": year.random,
    }
    environment = {**year.tenant.environment(), "TZ": zone}
    with contextlib.ExitStack() as stack:
        stack.callback(time.tzset)
        stack.enter_context(mock.patch.dict(os.environ, environment))
        time.tzset()
        stack.enter_context(mock.patch.multiple(duo_phone_cleanup, **program))
        stack.enter_context(mock.patch.object(signal, "signal", year.take_signal))
        stack.enter_context(mock.patch.object(signal, "setitimer"))
        yield


def live(seed: int, runs: int = RUNS, real: float = 0) -> Counter[str]:
    """Live through a year; return how often what happened. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as directory:
        year = Year(directory, seed, real)
        try:
            with year.tenant, world(year, ZONES[seed % len(ZONES)]):
                year.live(runs)
        except AssertionError as error:
            again = f"python -m tests.simulation.year --seed {seed}"
            if real:
                again += f" --real {real}"
            raise AssertionError(f"{error}\n\nAgain: {again}") from None
        return year.counts


def main() -> int:
    """Live through years until there have been so many runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.year")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=1, help="of the first year")
    text = "of the runs, from 0 to 1, that are processes (slow)"
    parser.add_argument("--real", type=float, default=0, metavar="SHARE", help=text)
    options = parser.parse_args()
    seed = options.seed
    counts: Counter[str] = Counter()
    while counts["runs"] < options.runs:
        try:
            counts.update(live(seed, RUNS, options.real))
        except AssertionError as error:
            print(error)
            return 1
        seed += 1
    print(", ".join(f"{what} {number}" for what, number in counts.items() if number))
    print(f"Seeds {options.seed} to {seed - 1}: all promises kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
