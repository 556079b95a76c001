"""Broken copies of the program: the steps must notice each, the simulated year most.

By the steps, one misfortune at most is enough: see tests/simulation/steps.py. The year
has to live a while: see tests/simulation/year.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import duo_phone_cleanup
from tests.simulation.stage import Stage
from tests.simulation.steps import OUTAGE, explore, play
from tests.simulation.year import live

pytestmark = pytest.mark.usefixtures("_not_traced")

DELETE = "delete own all force"
DELETE_SHARED = "delete shared all force"
STAMP = "stamp own all force"
UNTAG = "untag own all force"
ASK = "delete,stamp own all ask"

YEARS = range(1, 61)
"""The seeds of the years that are tried after the first one."""


class Copy(NamedTuple):
    """What a broken copy does otherwise, and how that is noticed."""

    right: str
    """In the program, once."""
    wrong: str
    """In its place."""
    case: str
    """Of the steps."""
    noticed: str
    """What is said of it: a regular expression."""
    seed: int | None = None
    """Of a year that notices it at once, if any does. When the program has changed,
    that may no longer be so: then the test takes longer."""


COPIES = {
    # Wrong verdicts
    "activated phones too": Copy(
        right='if record.get("activated") is True:',
        wrong='record = {**record, "activated": False}\n    if False:',
        case=DELETE,
        noticed="was due",
        seed=6,
    ),
    "activation unknown": Copy(
        right='record.get("activated") is False',
        wrong='not record.get("activated")',
        case=DELETE,
        noticed="None was due",
        seed=8,
    ),
    "named phones too": Copy(
        right="return Verdict.NAMED",
        wrong="return Verdict.STAMP",
        case=STAMP,
        noticed="None was due",
        seed=1,
    ),
    "old numbers are tags": Copy(
        right="if int(name) < FIRST_TAG:",
        wrong="if False:",
        case=DELETE,
        noticed="None was due",
        seed=2,
    ),
    "future numbers are tags": Copy(
        right="if tag is None or tag > now:",
        wrong="if tag is None:",
        case=UNTAG,
        noticed="None was due",
        seed=17,
    ),
    "phones in use too": Copy(
        right="return Verdict.STAMP_AGAIN",
        wrong="return Verdict.DELETE",
        case=DELETE,
        noticed="stamped was due",
        seed=1,
    ),
    "a minute early": Copy(
        right="if now - tag >=",
        wrong="if now + 60 - tag >=",
        case=DELETE,
        noticed="None was due",
        seed=1,
    ),
    "a second late": Copy(
        right="if now - tag >=",
        wrong="if now - 1 - tag >=",
        case=DELETE,
        noticed=r"left after|not \{",
        seed=10,
    ),
    # Wrong reads
    "a stale read": Copy(
        right="READ_VALID_SECONDS = 2 ",
        wrong="READ_VALID_SECONDS = 10**6 ",
        case=DELETE,
        noticed=r": read \S+ s before",
        seed=2,
    ),
    "a clock that sleeps": Copy(
        right='getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)',
        wrong="time.CLOCK_MONOTONIC",
        case=DELETE,
        noticed=r": read \S+ s before",
        seed=2,
    ),
    "a read without eyes": Copy(
        right="reason = self.change(phone, record, now)",
        wrong='reason = ""',
        case=DELETE,
        noticed="was due|with the tag|moved to",
        seed=1,
    ),
    "a phone that has moved": Copy(
        right="if users_of(record).keys() != phone.users.keys():",
        wrong="if False:",
        case=DELETE,
        noticed="moved to",
        seed=5,
    ),
    "a phone that has gained a user": Copy(
        right="if users_of(record).keys() != phone.users.keys():",
        wrong="if not phone.users.keys() <= users_of(record).keys():",
        case=DELETE,
        noticed="moved to",
        seed=10,
    ),
    "a phone stamped afresh": Copy(
        right="read_tag(record) != phone.tag:",
        wrong="not phone.tag:",
        case=DELETE,
        noticed="not with the tag of the walk",
        seed=8,
    ),
    # Wrong writes
    "a write is forgotten": Copy(
        right="phone.perhaps_written = True ",
        wrong="phone.perhaps_written = False ",
        case=DELETE,
        noticed="told (changed|gone)|does not say what may come",
        seed=4,
    ),
    "a write is not confirmed, and nobody says so": Copy(
        right='text += f"; {UNCONFIRMED}"',
        wrong="return self.report.event(Event.CHANGED, phone, reason=text)",
        case=DELETE,
        noticed="told changed",
        seed=20,
    ),
    "a last write is not looked after": Copy(
        right="if phone.perhaps_written:\n                with suppress(Passing,",
        wrong="if False:\n                with suppress(Passing,",
        case=DELETE,
        noticed="does not look after",
        seed=20,
    ),
    "another tag at another try": Copy(
        right="is not Verdict.DELETE and not phone.perhaps_written:",
        wrong="is not Verdict.DELETE:",
        case=STAMP,
        noticed="not from",
        seed=8,
    ),
    "somebody else's deletion is its own": Copy(
        right="if not (event is Event.DELETED and phone.perhaps_written):",
        wrong="if event is not Event.DELETED:",
        case=DELETE,
        noticed="not deleted",
        seed=1,
    ),
    "a signal loses a record": Copy(
        right="            self.came = boot_seconds()\n",
        wrong="            raise Stopped\n",
        case=DELETE,
        noticed="not in the journal|told None|told failed",
        seed=2,
    ),
    "what --untag erased is not told": Copy(
        right="            phone.tag = read_tag(record)\n",
        wrong="            phone.record = record\n",
        case=UNTAG,
        noticed=r"no longer \[",
        seed=36,
    ),
    # Wrong runs
    "a limit of phones": Copy(
        right="and len(users) > limit:",
        wrong="and len(due) > limit:",
        case=DELETE_SHARED,
        noticed=r"users lose a phone|not \{",
        seed=54,
    ),
    "deletions before stamps": Copy(
        right="return sorted(found, key=lambda phone: order.index(phone.verdict))",
        wrong="return found",
        case=ASK,
        noticed="not harmless things first",
        seed=1,
    ),
    "a yes to all holds for more": Copy(
        right="self.agreed.add(phone.verdict.verb)",
        wrong="self.agreed.update(WRITES)",
        case=ASK,
        noticed="nobody said yes",
        seed=26,
    ),
    "a walk that ends early": Copy(
        right="if offset + len(page.users) < page.total:",
        wrong="if False:",
        case=DELETE,
        noticed="the walk has not ended",
        seed=29,
    ),
    "no giving up": Copy(
        right="MAX_FAILED_IN_A_ROW = 4 ",
        wrong="MAX_FAILED_IN_A_ROW = 100 ",
        case=OUTAGE,
        noticed="goes on after",
        seed=13,
    ),
    # Wrong journals
    "a journal without lines": Copy(
        right="data = data[os.write(self.file, data) :]",
        wrong='data = b""',
        case=DELETE,
        noticed="not in the journal",
        seed=1,
    ),
    "a line glued to a torn one": Copy(
        right="return last != b",
        wrong="return False and last != b",
        case=DELETE,
        noticed="not in the journal",
        seed=4,
    ),
    "a line that is not on the disk": Copy(
        right="        if to_disk:\n",
        wrong="        if False:\n",
        case=DELETE,
        noticed="not in the journal",
        seed=1,
    ),
    "a journal that nobody can find": Copy(
        right="if not status.st_nlink:",
        wrong="if False:",
        case=DELETE,
        noticed="its journal is broken",
        seed=1,
    ),
    # In a year, too much happens at once for these
    "what has changed is not told": Copy(
        right="        self.report.event(event, phone, **details)\n\n    def carry_out",
        wrong="""        if event is not Event.CHANGED:
            self.report.event(event, phone, **details)

    def carry_out""",
        case=DELETE,
        noticed="nothing told of",
    ),
    "nothing is tried again": Copy(
        right="if tries == MAX_TRIES:",
        wrong="if True:",
        case=DELETE,
        noticed="failed, and need not",
    ),
}


def each_of(names: list[str]) -> pytest.MarkDecorator:
    """Let a test be about these broken copies."""
    return pytest.mark.parametrize("copy", [COPIES[name] for name in names], ids=names)


@contextlib.contextmanager
def in_place_of_the_program(copy: Copy) -> Iterator[None]:
    """Let the program be this copy."""
    program = vars(duo_phone_cleanup)
    source = Path(duo_phone_cleanup.__file__).read_text()
    assert source.count(copy.right) == 1
    code = compile(source.replace(copy.right, copy.wrong), "a broken copy", "exec")
    kept = dict(program)
    try:
        exec(code, program)
        yield
    finally:
        program.clear()
        program.update(kept)


@each_of([*COPIES])
def test_the_steps_notice(copy: Copy) -> None:
    """And the line that tells of it plays it again."""
    with in_place_of_the_program(copy):
        with Stage() as stage:
            trials = explore(stage, copy.case, 1)
            line = next(trial.broken for trial in trials if trial.broken)
        assert re.search(copy.noticed, line)
        assert play(line).broken == line
    again = play(line)
    assert not again.broken
    assert again.happened == len(again.plan)


# A run that dies leaves its connections open.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("_garbage_collected")
@each_of([name for name in COPIES if COPIES[name].seed])
def test_the_year_notices(copy: Copy) -> None:
    with in_place_of_the_program(copy):
        for seed in (copy.seed, *YEARS):
            try:
                live(seed)
            except AssertionError as error:
                if re.search(copy.noticed, str(error)):
                    return
    pytest.fail(f"Not noticed: {copy.noticed}")
