"""The runs of a simulated year: how each is called, what befalls it, what it did."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.simulation.people import GENERIC, People, Phone
from tests.simulation.tenant import Fault, Record, Request

HARMLESS = ("close_after", "connection_close", "answer_twice")
"""Faults that must not keep a run from anything."""
WHOLE = (*HARMLESS, "ignore_names", "end_early")
"""Faults that leave the answer to the read of a phone whole."""
OTHER = {"phone_id": "DPX", "platform": GENERIC[0], "name": ""}
ANSWERS: list[Any] = [None, {}, [1], "x", [{"phones": [None, {}]}], *[OTHER] * 3]
"""What a server answers that has got something mixed up."""
HTML = b"<html><h1>502 Bad Gateway</h1></html>"
"""From some gateway on the way to Duo."""
FAULTS: list[tuple[str, Record]] = [
    ("reset_before", {}),
    *[("reset_after", {})] * 2,
    ("close_before", {}),
    ("close_after", {}),
    ("connection_close", {}),
    ("truncate", {}),
    ("truncate", {"length": 10**14}),
    ("truncate", {"length": 10**20}),
    ("answer", {"body": HTML}),
    *[("interim", {})] * 2,
    *[("answer_twice", {})] * 3,
    *[("end_early", {})] * 3,
    ("endless", {"page": "empty"}),
    *[("status", {"status": status}) for status in (400, 401, 403, 429, 500)],
    ("status", {"status": 502, "body": HTML}),
    ("status", {"status": 503}),
    *[("answer", {"response": response}) for response in ANSWERS],
]
NO_OUTCOMES = ("deleting", "waiting", "named")
"""What is told of a phone besides what became of it."""
LONGEST_TEXT = 10**7  # bytes


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


def text_of(output: IO[Any]) -> str:
    """Return what was written to an output, also while more is written to it."""
    if isinstance(output, io.StringIO):
        return output.getvalue()
    return os.pread(output.fileno(), LONGEST_TEXT, 0).decode()


@dataclass
class Read:
    """A phone as a run was told of it."""

    phone: Phone
    record: Record = field(repr=False)
    now: int
    asked: float  # when the request for it came, by the clock of `Year.passed`


@dataclass
class Write:
    """A write that a run has sent."""

    deed: str
    phone_id: str
    name: str  # what it writes
    sequence: int  # of its request
    read: Read  # what it relied on
    looked_after: bool = False  # the phone was asked for again since


@dataclass
class Attempt:
    """One run of the program: how it is called, what befalls it, what it did."""

    number: int
    grace_period: int
    skew: int = 0  # seconds that its clock is ahead
    names: list[str] = field(default_factory=list)
    limit: int | None = None
    untag: bool = False
    asks: bool = False
    dry: bool = False
    options: list[str] = field(default_factory=list)
    file: str = ""  # its journal, besides standard output

    # What befalls it

    eventful: float = 0
    """How likely it is that something happens while it waits for an answer."""
    dies_at: tuple[int, str] | None = None
    """The number of a request, and when: before or after its work; or the number of a
    write that has just been carried out."""
    late: float = 0
    """How likely it is that a write is held up on its way, to be carried out later."""
    cut_at: int = 0
    """The number of a request at which all connections end that wait for one."""
    journal_breaks: tuple[int, str] | None = None
    """How many lines of the journal go well, and how the next one fails."""
    faults: list[Fault] = field(default_factory=list)
    real: bool = False
    """It is a process, whose clock stands still and which dies of a signal."""
    terminated: bool = False  # it does not die: it is told to end, and may report that

    # How it goes

    now: float | None = None  # what its clock shows if that stands still
    child: subprocess.Popen[bytes] | None = None
    on_disk: int = 0  # how much of the file is on the disk, whatever happens
    journal_broke: bool = False  # a line of it could not be written
    dead: bool = False
    told_to_end: bool = False
    signal_comes: bool = False
    """It is in this process, and has not noticed that it is told to end."""
    thread: int = 0  # the main one of a run in this process
    handlers: dict[int, Any] = field(default_factory=dict)  # those of its signals
    status: int | None = None
    requests: int = 0
    listed: set[str] = field(default_factory=set)
    """The users on the pages that it has been given."""
    total: int = 0  # how many users there were when it was given the last page
    tags: set[tuple[str, int | None]] = field(default_factory=set)
    """The phones and their tags on the pages that it has been given."""
    counted: dict[str, set[str]] = field(default_factory=dict)
    """Who would lose a phone, by phone: what it knows before the first write."""
    first_read: dict[str, int] = field(default_factory=dict)
    """When it was first told of each phone alone, by its clock."""
    asked_about: dict[str, set[str]] = field(default_factory=dict)
    """Whose phone a prompt was about, by phone."""
    phone_id: str = ""  # the phone of its last request
    asked: dict[str, float] = field(default_factory=dict)
    """When it last asked for each phone."""
    reads: dict[str, Read] = field(default_factory=dict)
    """What it was last told of each phone, if it has not yet written to it since."""
    agreed: set[str] = field(default_factory=set)
    """The phones, and the deeds, that a prompt was answered with yes for."""
    writes: list[Write] = field(default_factory=list)
    deeds: dict[str, str] = field(default_factory=dict)  # what it did to which phone
    done: set[tuple[str, str]] = field(default_factory=set)
    """What was done to which phone since it began, by anybody: if an answer is lost,
    another run's work cannot be told from its own."""
    out: IO[Any] = field(default_factory=io.StringIO)
    err: IO[Any] = field(default_factory=io.StringIO)

    @property
    def troubled(self) -> bool:
        """Its answers may get lost."""
        harmful = [fault for fault in self.faults if fault.kind not in HARMLESS]
        return bool(harmful or self.late or self.cut_at)

    @property
    def loses_unseen(self) -> bool:
        """The tenant may never see what it sends, on a connection that just ended."""
        closes = [fault for fault in self.faults if fault.kind == "close_after"]
        return bool(closes or self.cut_at)

    @property
    def quiet(self) -> bool:
        """All that it does can be foretold."""
        stalls = self.asks or self.eventful
        ends = self.dies_at or self.journal_breaks
        return not (self.troubled or stalls or ends)

    @property
    def is_cut_short(self) -> bool:
        """It is to end at once, whatever it was about to do."""
        return self.told_to_end or bool(self.journal_breaks)

    @property
    def tells_all(self) -> bool:
        """Its JSON lines have those events, too, of which there are many."""
        return self.dry or bool({"-v", "-vv"} & {*self.options})

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
        if self.asks:
            words.append("--no-force")
        if self.dry:
            words.append("--dry-run")
        return words + self.names

    def lines(self) -> list[str]:
        """Return the lines of standard output so far."""
        return [line for line in text_of(self.out).splitlines() if line]

    def journal(self) -> list[Record]:
        """Return the JSON lines so far."""
        return [json.loads(line) for line in self.lines()]

    def outcomes(self) -> list[Record]:
        """Return those of them that tell what became of a phone."""
        return [
            event
            for event in self.journal()
            if "phone_id" in event and event["event"] not in NO_OUTCOMES
        ]

    def written(self, *, on_disk: bool = False) -> list[str]:
        """Return the lines of its file: others write to it, too."""
        if not self.file or not Path(self.file).exists():
            return []
        data = Path(self.file).read_bytes()
        if on_disk:
            data = data[: self.on_disk]
        return data.decode().splitlines()

    def concerns(self, owners: set[str]) -> bool:
        """Tell whether it is to look at the phones of these users."""
        return not self.names or bool(owners & {name.lower() for name in self.names})


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

    def __init__(self, people: People, file: str, real: float, parallel: bool) -> None:
        """`real` is the share of processes."""
        self.tenant = people.tenant
        self.random = people.random
        self.story = people.story
        self.file = file
        self.real = real
        self.parallel = parallel
        self.number = 0

    def attempt(self, outer: Attempt | None = None) -> Attempt:
        """Think up a run; `outer` is the one in whose midst it comes."""
        pick = self.random.choice
        self.number += 1
        attempt = Attempt(
            self.number,
            grace_period=pick((0, 1, 5, 10, 10, 20, 60)),
            skew=pick((0, 0, 0, 1, -2, 45, -170, 180)),
            limit=pick((None, None, 100, 0, 1, 3, 8)),
            untag=self.happens(0.7),
            asks=self.happens(0.2),
            dry=self.happens(0.1),
            options=pick(([], ["-v"], ["-vv"])),
            file=pick(("", self.file, self.file)),
            eventful=pick((0, 0, 0.2, 0.5)),
            real=self.happens(self.real),
        )
        if self.happens(0.15):
            self.choose_names(attempt)
        self.choose_troubles(attempt)
        if attempt.real:
            attempt.asks = False
            attempt.journal_breaks = None
        if outer:  # what goes wrong does so for both
            attempt.faults = outer.faults
            attempt.cut_at = outer.cut_at
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
            moment = pick(("before", "after"))
            attempt.dies_at = (self.random.randint(1, 8), moment)
            if self.happens(0.3):
                attempt.dies_at = (self.random.randint(1, 3), "written")
            attempt.terminated = self.happens(0.5)
        if self.happens(0.1):
            attempt.late = pick((0.2, 0.5, 1))
        if self.happens(0.07):
            attempt.cut_at = self.random.randint(1, 8)
        if attempt.file and self.happens(0.07):
            how = pick(("full", "torn", "sync"))
            attempt.journal_breaks = (self.random.randint(0, 4), how)
        elif attempt.file and self.happens(0.07):  # not before it is opened
            attempt.journal_breaks = (self.random.randint(1, 3), "removed")

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

    def add_fault(self, attempt: Attempt) -> None:
        kinds = list(FAULTS)
        if attempt.names:
            kinds += [("ignore_names", {})] * 9
        kind, how = self.random.choice(kinds)
        where: Record = {"after": self.random.choice((0, 0, 0, 1, 2, 5))}
        where["times"] = self.random.choice((1, 2, 3, None, None))
        if kind == "endless":
            where.update(times=None, path="/users")
        timeless = self.parallel or attempt.real
        if how == {"status": 429} and timeless and where["times"] is None:
            where["times"] = 3  # nobody would give up in such a year
        if kind not in ("ignore_names", "end_early", "endless"):
            methods = (None, "GET", "POST", "DELETE", "DELETE")
            where["method"] = self.random.choice(methods)
            where["path"] = self.random.choice(("/phones/", "/phones/", "/users"))
        self.fail(attempt, kind, how, **where)

    def fail(self, attempt: Attempt, kind: str, how: Record, **where: Any) -> None:
        self.story.append(f"  fault: {kind} {how} {where}")
        attempt.faults.append(self.tenant.fail(kind, **where, **how))
