"""Every misfortune at every step, one at a time: see tests/simulation/steps.py.

First with the program as it is; then with broken copies of it, which must be noticed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import duo_phone_cleanup
from tests.simulation.steps import CASES, OUTAGE, Stage, explore, play

DELETE = "delete own all force 1"
STAMP = "stamp own all force 1"
UNTAG = "untag own all force 1"
ACTIVATED = 'if record.get("activated") is True:'
ALL_ARE_NOT = 'record = {**record, "activated": False}\n    if False:'
USERS = "if users_of(record).keys() != phone.users.keys():"
SOME_USERS = "if not phone.users.keys() <= users_of(record).keys():"
CLOCK = 'getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)'
DONE_BY_OTHERS = "if not (event is Event.DELETED and phone.perhaps_written):"
UNTOLD = 'text += f"; {UNCONFIRMED}"'
TOLD_AS_CHANGED = "return self.report.event(Event.CHANGED, phone, reason=text)"
NOTED = "            self.came = boot_seconds()\n"
RAISED = "            raise Stopped\n"
BEFORE = "            phone.tag = read_tag(record)\n"
AFTER = "            phone.record = record\n"

BROKEN = [
    # Wrong verdicts
    (ACTIVATED, ALL_ARE_NOT, DELETE),
    ('record.get("activated") is False', 'not record.get("activated")', DELETE),
    ("return Verdict.NAMED", "return Verdict.STAMP", STAMP),
    ("if int(name) < FIRST_TAG:", "if False:", DELETE),
    ("return Verdict.STAMP_AGAIN", "return Verdict.DELETE", DELETE),
    ("if tag is None or tag > now:", "if tag is None:", UNTAG),
    ("if now - tag >=", "if now + 60 - tag >=", DELETE),
    ("if now - tag >=", "if now - 1 - tag >=", DELETE),
    # Wrong reads and writes
    ("READ_VALID_SECONDS = 2 ", "READ_VALID_SECONDS = 10**6 ", DELETE),
    (CLOCK, "time.CLOCK_MONOTONIC", DELETE),
    ("reason = self.change(phone, record, now)", 'reason = ""', DELETE),
    (USERS, "if False:", DELETE),
    (USERS, SOME_USERS, DELETE),
    ("read_tag(record) != phone.tag:", "not phone.tag:", DELETE),
    (UNTOLD, TOLD_AS_CHANGED, DELETE),
    (DONE_BY_OTHERS, "if event is not Event.DELETED:", DELETE),
    # Wrong runs
    ("and len(users) > limit:", "and len(due) > limit:", "delete shared all force 1"),
    ("if offset + len(page.users) < page.total:", "if False:", DELETE),
    ("MAX_FAILED_IN_A_ROW = 4 ", "MAX_FAILED_IN_A_ROW = 100 ", OUTAGE),
    (NOTED, RAISED, DELETE),
    # Wrong journals
    ("data = data[os.write(self.file, data) :]", 'data = b""', DELETE),
    ("return last != b", "return False and last != b", DELETE),
    ("        if to_disk:\n", "        if False:\n", DELETE),
    ("if not status.st_nlink:", "if False:", DELETE),
    (BEFORE, AFTER, UNTAG),
]
"""Lines of the program, what they must not be, and a case that shows why."""


@pytest.mark.parametrize("case", CASES)
def test_every_misfortune_at_every_step(case: str) -> None:
    with Stage() as stage:
        broken = [trial.broken for trial in explore(stage, case, 1)]
    print(f"{case}: {len(broken)} tried")
    assert [*filter(None, broken)] == []
    assert len(broken) > 40


@contextlib.contextmanager
def broken_copy(right: str, wrong: str) -> Iterator[None]:
    """Let the program be another one."""
    program = vars(duo_phone_cleanup)
    source = Path(duo_phone_cleanup.__file__).read_text()
    assert source.count(right) == 1
    code = compile(source.replace(right, wrong), "a broken copy", "exec")
    kept = dict(program)
    try:
        exec(code, program)
        yield
    finally:
        program.clear()
        program.update(kept)


@pytest.mark.parametrize(("right", "wrong", "case"), BROKEN)
def test_a_broken_copy_is_noticed(right: str, wrong: str, case: str) -> None:
    """By one misfortune at most; the line that is printed plays it again."""
    with broken_copy(right, wrong):
        with Stage() as stage:
            trials = explore(stage, case, 1)
            line = next(trial.broken for trial in trials if trial.broken)
        print(line)
        assert play(line).broken == line
    assert not play(line).broken
