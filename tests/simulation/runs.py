"""The runs of a simulated year: how each is called, what befalls it, what it did."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.simulation.people import GENERIC, Phone
from tests.simulation.tenant import Fault, Record, Request, Tenant

HARMLESS = ("close_after", "connection_close", "answer_twice")
"""Faults that must not keep a run from anything."""
WHOLE = (*HARMLESS, "ignore_names", "end_early")
"""Faults that leave the answer to the read of a phone whole."""
OTHER = {"phone_id": "DPX", "platform": GENERIC[0], "name": ""}
ANSWERS: list[Any] = [
    None,
    {},
    [1],
    "x",
    [{"phones": [None, {}]}],
    OTHER,
    OTHER,
    OTHER,
]
"""What a server answers that has got something mixed up."""
FAULTS: list[tuple[str, Record]] = [
    ("reset_before", {}),
    ("reset_after", {}),
    ("reset_after", {}),
    ("close_before", {}),
    ("close_after", {}),
    ("connection_close", {}),
    ("truncate", {}),
    ("junk", {}),
    ("interim", {}),
    ("interim", {"status": 102}),
    ("answer_twice", {}),
    ("answer_twice", {"response": OTHER}),
    ("answer_twice", {"data": b"HTTP/1.1 404 Not Found\r\n\r\n"}),
    ("end_early", {}),
    ("end_early", {}),
    ("end_early", {}),
    ("endless", {"page": "empty"}),
    *[("status", {"status": status}) for status in (400, 401, 403, 429, 500, 502, 503)],
    *[("answer", {"response": response}) for response in ANSWERS],
]
HANGS: list[tuple[str, Record]] = [
    ("hang", {"before": True}),
    ("hang", {"before": False}),
    ("drip", {"pause": 0.1}),
]
OUTAGES: list[tuple[str, Record]] = [
    ("status", {"status": 500}),
    ("status", {"status": 503}),
    ("reset_before", {}),
    ("reset_after", {}),
    ("close_before", {}),
]
OUTAGE_OF = (
    ("GET", "/users"),
    ("GET", "/phones/"),
    ("GET", "/phones/"),
    ("POST", "/phones/"),
    ("DELETE", "/phones/"),
    ("DELETE", "/phones/"),
)
"""The kinds of request that fail for a while."""
SHORT_TIMEOUT = ["--timeout", "0.5"]


def phone_of(request: Request) -> str:
    """Return the id of the phone that a request is about, "" if it is about none."""
    return request.path.partition("/phones/")[2]


def deed_of(request: Request) -> str:
    """Return what a write does."""
    if request.method == "DELETE":
        return "deleted"
    if request.params.get("name"):
        return "stamped"
    return "untagged"


@dataclass
class Read:
    """A phone as a run was told of it."""

    phone: Phone
    record: Record
    now: int
    asked: float
    """When the request for it came, by the clock of `Year.passed`."""


@dataclass
class Write:
    """A write that a run has sent."""

    deed: str
    phone_id: str
    name: str
    """What it writes."""
    sequence: int
    """Of its request."""
    read: Read
    """What it relied on."""


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

    # What befalls it

    eventful: float = 0
    """How likely it is that something happens while it waits for an answer."""
    dies_at: tuple[int, str] | None = None
    """The number of a request, and when: before or after its work, or once answered."""
    late: float = 0
    """How likely it is that a write is held up on its way, to be carried out later."""
    cut_at: int = 0
    """The number of a request at which all connections end that wait for one."""
    refusals: int = 0
    """How many connections are refused then."""
    journal_breaks: tuple[int, str] | None = None
    """How many lines of the journal go well, and how the next one fails."""
    faults: list[Fault] = field(default_factory=list)
    real: bool = False
    """It is a process, whose clock stands still and which dies of a signal."""
    unread: bool = False
    """For a while, nobody reads the standard output of that process."""
    unheard: bool = False
    """Nobody reads the log of that process, and after a while it is told to end."""
    terminated: bool = False
    """That process does not die: it is told to end, and may report that."""
    parallel: bool = False
    """Two of its requests may be under way at a time."""
    stops_at: int = 0
    """The number of a read of a phone after which that process stops for a while."""

    # How it goes

    now: float | None = None
    """What its clock shows if that stands still."""
    child: subprocess.Popen[str] | None = None
    pipe: int | None = None
    draining: Any = field(default_factory=threading.Lock)
    offset: int = 0
    """How long the file of the journal was when it began."""
    on_disk: int = 0
    """How much of the file is on the disk, whatever happens."""
    dead: bool = False
    told_to_end: bool = False
    status: int | None = None
    requests: int = 0
    listed: set[str] = field(default_factory=set)
    """The users on the pages that it has been given."""
    total: int = 0
    """How many users there were when it was given the last page."""
    tags: set[tuple[str, int | None]] = field(default_factory=set)
    """The phones and their tags on the pages that it has been given."""
    counted: dict[str, set[str]] = field(default_factory=dict)
    """Who would lose a phone, by phone: what it knows before the first write."""
    sharers_read: set[str] = field(default_factory=set)
    """The phones of named users that were read to know who else shares them."""
    asked_about: dict[str, set[str]] = field(default_factory=dict)
    """Whose phone a prompt was about, by phone."""
    phone_id: str = ""
    """The phone of its last request."""
    asked: dict[str, float] = field(default_factory=dict)
    """When it last asked for each phone."""
    reads: dict[str, Read] = field(default_factory=dict)
    """What it was last told of each phone, if it has not yet written to it since."""
    agreed: set[str] = field(default_factory=set)
    """The phones that a prompt was answered with yes for; "" is all."""
    writes: list[Write] = field(default_factory=list)
    deeds: dict[str, str] = field(default_factory=dict)
    """What it did to which phone."""
    done: set[tuple[str, str]] = field(default_factory=set)
    """What was done to which phone since it began, by anybody: if an answer is lost,
    another run's work cannot be told from its own."""
    out: IO[str] = field(default_factory=io.StringIO)
    err: IO[str] = field(default_factory=io.StringIO)

    @property
    def troubled(self) -> bool:
        """Its answers may get lost."""
        harmful = [fault for fault in self.faults if fault.kind not in HARMLESS]
        return bool(harmful or self.late or self.cut_at)

    @property
    def quiet(self) -> bool:
        """All that it does can be foretold."""
        stalls = self.asks or self.unread or self.stops_at or self.eventful
        ends = self.dies_at or self.journal_breaks or self.unheard
        return not (self.troubled or stalls or ends)

    @property
    def drips(self) -> bool:
        """It gives up an answer that never ends, by the real clock."""
        return any(fault.kind == "drip" for fault in self.faults)

    @property
    def sent(self) -> set[tuple[str, str]]:
        """What it asked for, and for which phone."""
        return {(write.deed, write.phone_id) for write in self.writes}

    def argv(self) -> list[str]:
        """Return its command line."""
        words = ["--json", "-g", str(self.grace_period), *self.options]
        if self.limit is None:
            words += ["--max-deletions", "none"]
        else:
            words += ["--max-deletions", str(self.limit)]
        if self.file:
            words += ["--journal", self.file]
        if self.untag:
            words.append("--untag")
        if self.unheard:
            words.append("-v")
        if self.asks:
            words.append("--no-force")
        if self.dry:
            words.append("--dry-run")
        return words + self.names

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

    def written(self, *, on_disk: bool = False) -> list[str]:
        """Return the lines of its file since it began: others may write to it, too."""
        if not self.file or not Path(self.file).exists():
            return []
        data = Path(self.file).read_bytes()
        if on_disk:
            data = data[: self.on_disk]
        start = data.rfind(b"\n", 0, self.offset) + 1  # of a torn line
        return data[start:].decode().splitlines()

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


class Output(io.StringIO):
    """A standard output or error whose reader lets every line wait."""

    def __init__(self, wait: Callable[[], object]) -> None:
        super().__init__()
        self.wait = wait

    def write(self, text: str) -> int:
        self.wait()
        return super().write(text)


class Fortune:
    """Thinks up runs, and what befalls them."""

    def __init__(
        self,
        tenant: Tenant,
        chance: random.Random,
        story: deque[str],
        file: str,
        *,
        real: float,
        quick: bool,
        parallel: bool,
    ) -> None:
        """`real` is the share of processes; `quick`: no answer is awaited in vain."""
        self.tenant = tenant
        self.random = chance
        self.story = story
        self.file = file
        self.real = real
        self.quick = quick
        self.parallel = parallel
        self.number = 0
        self.outage: Fault | None = None
        self.outage_runs = 0
        """How many more runs it lasts."""

    def attempt(self, outer: Attempt | None = None) -> Attempt:
        """Think up a run; `outer` is the one in whose midst it comes."""
        pick = self.random.choice
        self.number += 1
        attempt = Attempt(
            self.number,
            grace_period=pick((0, 1, 5, 10, 10, 20, 60)),
            skew=pick((0, 0, 0, 1, -2, 45, -170, 180)),
            limit=pick((None, None, 100, 0, 1, 3, 8)),
            untag=self.happens(0.3),
            asks=self.happens(0.2),
            dry=self.happens(0.1),
            options=pick(([], ["-v"], ["-vv"])),
            file=pick(("", self.file, self.file)),
            eventful=pick((0, 0, 0.2, 0.5)),
            real=self.happens(self.real),
            parallel=self.parallel,
        )
        if self.happens(0.15):
            self.choose_names(attempt)
        self.choose_troubles(attempt)
        if attempt.real:
            self.choose_troubles_of_a_process(attempt)
        if outer:  # what goes wrong does so for both
            attempt.faults = outer.faults
            attempt.cut_at = outer.cut_at
            attempt.refusals = outer.refusals
        else:
            self.choose_faults(attempt)
        return attempt

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def choose_names(self, attempt: Attempt) -> None:
        users = [user["username"] for user in self.tenant.users.values()]
        for name in self.random.sample(users, min(len(users), 3)):
            in_its_case = self.random.choice((str.upper, str.lower))
            attempt.names.append(in_its_case(name))
        if self.happens(0.2):
            attempt.names.append("nobody")

    def choose_troubles(self, attempt: Attempt) -> None:
        pick = self.random.choice
        if self.happens(0.3):
            moment = pick(("before", "after", "answered"))
            attempt.dies_at = (self.random.randint(1, 8), moment)
        if self.happens(0.1):
            attempt.late = pick((0.2, 0.5, 1))
        if self.happens(0.07):
            attempt.cut_at = self.random.randint(1, 8)
            attempt.refusals = self.random.randint(0, 6)
        if attempt.file and self.happens(0.07):
            how = pick(("full", "torn", "sync"))
            attempt.journal_breaks = (self.random.randint(0, 4), how)

    def choose_troubles_of_a_process(self, attempt: Attempt) -> None:
        attempt.asks = False
        if attempt.dies_at and self.happens(0.5):
            attempt.terminated = True
        elif self.happens(0.05):
            attempt.stops_at = self.random.randint(1, 2)
        elif self.happens(0.05):
            attempt.unread = True
            attempt.eventful = 0  # or else nobody knows when something happens
        elif self.happens(0.05):
            attempt.unheard = True
            attempt.journal_breaks = None  # or else it is stuck in telling that

    def choose_faults(self, attempt: Attempt) -> None:
        if self.happens(0.3):
            for _ in range(self.random.randint(1, 3)):
                self.add_fault(attempt)
        elif self.happens(0.03):  # alone: one page in the midst may not be like that
            same = {"page": "same"}
            self.fail(attempt, "endless", same, path="/users", times=None, after=1)
        if self.happens(0.15):
            kind = self.random.choice(HARMLESS)
            method = self.random.choice((None, "GET"))
            self.fail(attempt, kind, {}, method=method, times=None)
        if self.outage is None and self.happens(0.06):
            self.begin_outage()
        if self.outage is not None:
            attempt.faults.append(self.outage)

    def add_fault(self, attempt: Attempt) -> None:
        kinds = list(FAULTS)
        if attempt.names:
            kinds += [("ignore_names", {})] * 9
        kind, how = self.random.choice(kinds)
        where: Record = {"after": self.random.choice((0, 0, 0, 1, 2, 5))}
        where["times"] = self.random.choice((1, 1, 2, 3, None))
        if kind == "endless":
            where.update(times=None, path="/users")
        timeless = self.parallel or attempt.real
        if how == {"status": 429} and timeless and where["times"] is None:
            where["times"] = 3  # nobody would give up in such a year
        if not self.quick and self.happens(0.05):
            kind, how = self.random.choice(HANGS)
            where["times"] = 1
            attempt.options = SHORT_TIMEOUT
            attempt.eventful = 0  # another run meanwhile would take longer than that
        if kind not in ("ignore_names", "end_early", "endless"):
            methods = (None, "GET", "POST", "DELETE", "DELETE")
            where["method"] = self.random.choice(methods)
            where["path"] = self.random.choice((None, "/phones/", "/users"))
        self.fail(attempt, kind, how, **where)

    def fail(self, attempt: Attempt, kind: str, how: Record, **where: Any) -> None:
        self.story.append(f"  fault: {kind} {how} {where}")
        attempt.faults.append(self.tenant.fail(kind, **where, **how))

    # Outages

    def begin_outage(self) -> None:
        """Let all requests of one kind fail, in several runs."""
        kind, how = self.random.choice(OUTAGES)
        method, path = self.random.choice(OUTAGE_OF)
        self.outage = self.tenant.fail(
            kind, method=method, path=path, times=None, **how
        )
        self.outage_runs = self.random.randint(1, 6)
        self.story.append(f"  outage: {method} {path}: {kind} {how}")

    def end_faults(self, attempt: Attempt) -> None:
        """Let the faults of a run end with it, but an outage last."""
        for fault in attempt.faults:
            if fault is not self.outage:
                fault.times = 0
        self.outage_runs -= 1
        if self.outage_runs <= 0:
            self.end_outage()

    def end_outage(self) -> None:
        if self.outage is not None:
            self.outage.times = 0
            self.outage = None
            self.story.append("  outage: over")
