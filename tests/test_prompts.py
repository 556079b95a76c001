"""Prompts of --no-force: answered from pipes, at terminals, and not at all."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Protocol

import pytest
from pexpect.fdpexpect import fdspawn

import duo_phone_cleanup
from tests.simulation.tenant import Record, Tenant
from tests.support import (
    DAY,
    GONE,
    HOUR,
    LONG_AGO,
    MINUTE,
    NOW,
    SCOPE,
    SCRIPT,
    SET_UP,
    SHORT_GRACE,
    STUCK,
    Result,
    Run,
    clean_environment,
    name_of,
    phone_of,
    redirected,
    start,
    when,
    writes,
)


def names_of(tenant: Tenant, *phone_ids: str) -> list[Any]:
    """What the phones are called now."""
    return [name_of(tenant, each) for each in phone_ids]


def asked(err: str) -> list[str]:
    """Which of the phones was asked about, each time, out of how many."""
    return re.findall(r"\b\d+ of \d+\b", err)


# What is asked


IN_USE: Record = {"name": STUCK, "last_seen": "2027-01-15T07:59:00"}


class Question(NamedTuple):
    """A phone, and what is asked about it."""

    fields: Record
    verb: str
    about: str
    argv: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(
            Question(
                {},
                "stamp",
                "last login never, not tagged yet, its name becomes a tag",
            ),
            id="stamp",
        ),
        pytest.param(
            Question({"name": STUCK}, "delete", "tagged 1 hour ago, last login never"),
            id="delete",
        ),
        pytest.param(
            Question(
                {"name": str(NOW - 25 * MINUTE)},
                "delete",
                "tagged 25 minutes ago, last login never",
            ),
            id="minutes",
        ),
        pytest.param(
            Question(
                {"name": str(NOW - 3 * DAY - 1)},
                "delete",
                "tagged 3 days ago, last login never",
            ),
            id="days",
        ),
        pytest.param(
            Question(
                IN_USE,
                "stamp",
                "tagged 1 hour ago, last login never, in use since its tag, "
                "its name becomes a tag",
            ),
            id="stamp again",
        ),
        pytest.param(
            Question(
                {"name": STUCK, **SET_UP},
                "untag",
                "tagged 1 hour ago, last login never, set up since its tag, "
                "its name becomes blank",
                argv=("--untag",),
            ),
            id="untag",
        ),
    ],
)
@pytest.mark.parametrize(
    ("number", "shown"),
    [
        pytest.param("+15550000001", "phone +15550000001", id="phone"),
        pytest.param("", "tablet", id="tablet"),
    ],
)
def test_a_prompt_says_what_one_needs_to_decide(
    tenant: Tenant, run: Run, question: Question, number: str, shown: str
) -> None:
    """What matters first; and no time that is not the one to be written."""
    tenant.add_phone("ann", number="1")
    phone_id = tenant.add_phone("bob", "cleo", number=number, **question.fields)
    tenant.add_phone("dan", name="Dan's")  # not to be asked about
    result = run("--no-force", *question.argv, stdin="n\nn\n")
    assert asked(result.err) == ["1 of 2", "2 of 2"]
    (line,) = [line for line in result.err.splitlines() if "2 of 2" in line]
    what = f"{question.verb} {shown} of bob, cleo"
    assert line == f"2 of 2: {what} ({question.about}, {phone_id})? [y/n/a/q] n"


@pytest.mark.parametrize(
    ("argv", "first", "second"),
    [
        ([], SCOPE, SHORT_GRACE),
        (
            ["-g", "0", "--max-deletions", "1"],
            "localhost: grace period 0 minutes, deletion limit 1 user",
            SHORT_GRACE,
        ),
        (
            ["-g", "16", "--max-deletions", "none"],
            "localhost: grace period 16 minutes, deletion limit none",
            SHORT_GRACE,
        ),
        (
            ["-g", "17"],
            "localhost: grace period 17 minutes, deletion limit 100 users",
            "1 of 1: ",
        ),
    ],
)
def test_what_the_prompts_begin_with(
    tenant: Tenant, run: Run, argv: list[str], first: str, second: str
) -> None:
    """A look at the wrong tenant, or a misspelt grace period, is seen at once."""
    tenant.add_phone("ann", name=STUCK)
    result = run("--no-force", *argv, stdin="n\n")
    lines = result.err.splitlines()
    assert lines[0] == first
    assert lines[1].startswith(second)
    assert asked(result.err) == ["1 of 1"]
    assert (result.status, result.out) == (0, "")


@pytest.mark.parametrize(
    ("bob", "cleo", "shown"),
    [
        pytest.param(None, None, "never", id="never"),
        pytest.param(None, NOW - 3 * DAY, "3 days ago", id="one of them"),
        pytest.param(NOW - HOUR, NOW - 3 * DAY, "1 hour ago", id="both"),
        pytest.param(NOW, None, "0 seconds ago", id="now"),
        pytest.param(NOW + HOUR, None, "0 seconds ago", id="by a clock that is fast"),
    ],
)
def test_a_prompt_tells_a_stuck_user_from_one_who_logs_in(
    tenant: Tenant, run: Run, bob: int | None, cleo: int | None, shown: str
) -> None:
    """By the latest login of all who share the phone, also of those not asked for."""
    tenant.add_user("bob", last_login=bob)
    tenant.add_user("cleo", last_login=cleo)
    tenant.add_phone("bob", "cleo", name=STUCK)
    result = run("--no-force", "bob", stdin="n\n")
    assert f" of bob, cleo (tagged 1 hour ago, last login {shown}, " in result.err


def test_a_prompt_is_about_the_record_just_read(tenant: Tenant, run: Run) -> None:
    """Number, users and last login may have changed since the walk."""
    phone_id = tenant.add_phone("ann", number="+15550000007", name=STUCK)

    def change() -> None:
        tenant.phones[phone_id]["number"] = "+15550000008"
        tenant.move_phone(phone_id, "ann", "bob")
        tenant.change_user("ann", last_login=NOW - DAY)

    when(tenant, "GET", phone_id, change)
    result = run("--no-force", stdin="n\n")
    facts = f"tagged 1 hour ago, last login 1 day ago, {phone_id}"
    question = f"delete phone +15550000008 of ann, bob ({facts})? [y/n/a/q] n"
    assert result.err.splitlines()[-1] == f"1 of 1: {question}"


# What is answered

LONG = "x" * 5000
AT_THE_LIMIT = ["y".rjust(width, "x") for width in (2, 255, 1001, 4097, 8193, 65537)]


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("y", "n"),
        ("Y", "N"),
        ("yes", "no"),
        ("YES", "NO"),
        ("Yes", "nO"),
        (" y ", "\tn "),
        ("y\r", "no\r"),
    ],
)
def test_yes_and_no(tenant: Tenant, run: Run, yes: str, no: str) -> None:
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob", name=STUCK)]
    result = run("--no-force", stdin=f"{no}\n{yes}\n")
    assert (result.status, names_of(tenant, *ids)) == (0, ["", GONE])
    assert asked(result.err) == ["1 of 2", "2 of 2"]


@pytest.mark.parametrize(
    ("answers", "expected", "questions", "told"),
    [
        pytest.param("a\n", [str(NOW), GONE, str(NOW)], 1, 3, id="all"),
        pytest.param("n\nA\n", ["", GONE, str(NOW)], 2, 3, id="no, then all"),
        pytest.param("q\n", ["", STUCK, ""], 1, 0, id="quit"),
        pytest.param("y\nQ\n", [str(NOW), STUCK, ""], 2, 1, id="yes, then quit"),
        pytest.param("n\nn\nn\n", ["", STUCK, ""], 3, 3, id="no to all"),
        pytest.param("q\ny\ny\ny\n", ["", STUCK, ""], 1, 0, id="quit is the last word"),
    ],
)
def test_all_and_quit(
    *,
    tenant: Tenant,
    run: Run,
    answers: str,
    expected: list[str],
    questions: int,
    told: int,
) -> None:
    """Of each phone but those after a q it is told what became of it."""
    ids = [
        tenant.add_phone("ann"),
        tenant.add_phone("bob", name=STUCK),
        tenant.add_phone("cleo"),
    ]
    result = run("--no-force", "-v", stdin=answers)
    assert (result.status, names_of(tenant, *ids)) == (0, expected)
    assert len(asked(result.err)) == questions
    scope, short_grace, *lines, summary = result.err.splitlines()
    assert (scope, short_grace) == (SCOPE, SHORT_GRACE)
    assert len(lines) == questions + told
    assert " 3 users, 3 phones, 3 in limbo" in summary
    changed = [name for name in expected if name not in ("", STUCK)]
    assert len(writes(tenant)) == len(changed)


def shown(text: str) -> str:
    """What a case is called."""
    if len(text) > 20:
        return f"{text[:20]!r}…{len(text)}"
    return repr(text)


@pytest.mark.parametrize(
    "junk",
    [
        "",
        " ",
        "x",
        "1",
        "ye",
        "yess",
        "yn",
        "y y",
        "y n",
        "all",
        "quit",
        "j",
        "ja",
        "nein",
        "yes please",
        "\N{CYRILLIC SMALL LETTER U}",
        "\0",
        "y\0",
        "\x1b[A",
        "\N{FULLWIDTH LATIN SMALL LETTER Y}",
        "\x04",
        LONG,
        "y" * 5000,
        *AT_THE_LIMIT,
    ],
    ids=shown,
)
def test_anything_else_is_asked_again(tenant: Tenant, run: Run, junk: str) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK)
    result = run("--no-force", stdin=f"{junk}\n{junk}\nn\n")
    assert (result.status, names_of(tenant, phone_id)) == (0, [STUCK])
    assert asked(result.err) == ["1 of 1"] * 3
    assert len(result.err) < 2000, "what was answered is not repeated at length"
    help_line = "y: yes, n: no, a: yes to all that are left, q: stop here"
    assert result.err.splitlines().count(help_line) == 2


@pytest.mark.parametrize(("answer", "name"), [(b"n", STUCK), (b"y", GONE)])
@pytest.mark.parametrize("junk", [b"\xff", b"\xffy", b"y\xc3", b"\xed\xa0\x80"])
def test_what_cannot_be_decoded_is_asked_again(
    tenant: Tenant, run: Run, junk: bytes, answer: bytes, name: str
) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK)
    result = run("--no-force", stdin=junk + b"\n" + answer + b"\n")
    assert result.status == 0
    assert asked(result.err) == ["1 of 1"] * 2
    assert name_of(tenant, phone_id) == name


# Nobody answers

NOBODY_ANSWERS = (
    "no answer to a prompt, so nothing more is written: where nobody can answer, "
    "leave out --no-force (DUO_FORCE=no)"
)
"""The error then."""


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("", ["", STUCK]),
        ("y\n", [str(NOW), STUCK]),
        ("n\n", ["", STUCK]),
        ("\n\n\n", ["", STUCK]),
        ("what?", ["", STUCK]),
    ],
    ids=repr,
)
def test_the_end_of_the_input_is_the_end_of_the_run(
    tenant: Tenant, run: Run, answers: str, expected: list[str]
) -> None:
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob", name=STUCK)]
    result = run("--no-force", stdin=answers)
    assert (result.status, names_of(tenant, *ids)) == (1, expected)
    error = result.err.splitlines()[-2]  # before the summary
    assert error.endswith(f" error: {NOBODY_ANSWERS}")


def test_where_nobody_can_answer_the_error_says_what_to_leave_out(
    tenant: Tenant,
) -> None:
    """As under cron, with a variable that is set for runs by hand."""
    tenant.add_phone("ann")
    with start(
        tenant, "--json", env={"DUO_FORCE": "no"}, stdin=subprocess.DEVNULL
    ) as child:
        out, err = child.communicate(timeout=30)
    result = Result(child.returncode, out, err)
    assert result.status == 1
    assert result.kinds == ["failed"]
    assert result.events[0]["error"] == NOBODY_ANSWERS
    assert f" error: {NOBODY_ANSWERS}\n" in err
    assert writes(tenant) == []


def test_the_end_of_the_input_is_no_matter_when_nothing_is_asked(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann", name="Ann's")
    result = run("--no-force")
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("streams", ["<&-", "2>&-", "<&- 2>&-", "2>/dev/full"])
def test_with_a_stream_closed_nothing_is_written(tenant: Tenant, streams: str) -> None:
    """Who cannot see the question has not answered it."""
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob", name=STUCK)]
    with redirected(tenant, streams, "--no-force") as child:
        out, err = child.communicate("y\ny\n", timeout=30)
    assert (child.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert names_of(tenant, *ids) == ["", STUCK]
    assert writes(tenant) == []


@pytest.mark.parametrize("lost", ["a closed file", "a terminal that is gone"])
def test_an_input_that_cannot_be_read_is_the_end_of_the_run(
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lost: str,
) -> None:
    phone = tenant.add_phone("ann")
    for name, value in tenant.environment().items():
        monkeypatch.setenv(name, value)
    ours, other_end = os.openpty()
    with open(ours, encoding="utf-8") as stdin:  # noqa: PTH123
        os.close(other_end)  # from now on, reading is an OSError
        monkeypatch.setattr(sys, "stdin", stdin)
        if lost == "a closed file":
            stdin.close()
        assert duo_phone_cleanup.main(["--no-force"]) == 1
    assert f" error: {NOBODY_ANSWERS}\n" in capsys.readouterr().err
    assert tenant.phones[phone]["name"] == ""


@pytest.mark.parametrize(
    ("answers", "questions"),
    [
        pytest.param("n\ny\ny\n", ["1 of 3", "2 of 3", "3 of 3"], id="each"),
        pytest.param("n\na\n", ["1 of 3", "2 of 3"], id="all at the second"),
    ],
)
def test_answers_from_a_pipe_count_in_order(
    tenant: Tenant, answers: str, questions: list[str]
) -> None:
    """All of them are there before the first question is."""
    ids = [tenant.add_phone(user, name=LONG_AGO) for user in ("ann", "bob", "cleo")]
    with start(tenant, "--no-force") as child:
        _, err = child.communicate(answers, timeout=30)
    assert child.returncode == 0
    assert names_of(tenant, *ids) == [LONG_AGO, GONE, GONE]
    assert asked(err) == questions


# What happens while a prompt is open


class Clock:
    """A clock that is set by hand."""

    now = NOW

    def __call__(self) -> float:
        return self.now


class Answers(io.RawIOBase):
    """Standard input on which things happen before each answer."""

    def __init__(self, *answers: tuple[Callable[[], object], str]) -> None:
        self.left = [*answers]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            return 0
        happen, answer = self.left.pop(0)
        happen()
        line = f"{answer}\n".encode()
        buffer[: len(line)] = line
        return len(line)


class Converse(Protocol):
    """Calls main() with --no-force, and such answers."""

    def __call__(
        self, *answers: tuple[Callable[[], object], str], clock: Clock = ...
    ) -> Result: ...


@pytest.fixture
def converse(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Converse:
    """Run main() in this process, with -v and JSON lines, untagging, too."""

    def converse(
        *answers: tuple[Callable[[], object], str], clock: Clock | None = None
    ) -> Result:
        stdin = io.TextIOWrapper(io.BufferedReader(Answers(*answers)), "utf-8")
        monkeypatch.setattr(os, "environ", clean_environment(**tenant.environment()))
        monkeypatch.setattr(sys, "stdin", stdin)
        argv = ["--no-force", "--untag", "--json", "-v"]
        status = duo_phone_cleanup.main(argv, clock or Clock())
        return Result(status, *capsys.readouterr())

    return converse


def nothing() -> None:
    """Happen."""


at_each_prompt = pytest.mark.parametrize(
    "at", ["its own prompt", "another's prompt", "after all"]
)


def converse_while(at: str, converse: Converse, happen: Callable[[], object]) -> Result:
    """Say yes to all while this happens: at the prompt that is named."""
    if at == "its own prompt":
        return converse((happen, "y"))
    if at == "another's prompt":
        return converse((happen, "y"), (nothing, "y"))
    return converse((happen, "a"))


RENAMED = {"name": "Ann's phone"}
FRESH_TAG = {"name": str(NOW - 1)}
BLANK: Record = {"name": ""}
USED = {"last_seen": "2027-01-15T07:59:00"}


@pytest.mark.parametrize(
    ("before", "meanwhile"),
    [
        pytest.param({}, RENAMED, id="to stamp, renamed"),
        pytest.param({}, SET_UP, id="to stamp, activated"),
        pytest.param({}, {"platform": "Apple iOS"}, id="to stamp, platform known"),
        pytest.param({}, FRESH_TAG, id="to stamp, stamped"),
        pytest.param({}, {"name": STUCK}, id="to stamp, an old tag"),
        pytest.param({}, None, id="to stamp, deleted"),
        pytest.param({"name": STUCK}, RENAMED, id="to delete, renamed"),
        pytest.param({"name": STUCK}, SET_UP, id="to delete, activated"),
        pytest.param({"name": STUCK}, {"platform": None}, id="to delete, no platform"),
        pytest.param({"name": STUCK}, FRESH_TAG, id="to delete, stamped afresh"),
        pytest.param(
            {"name": STUCK}, {"name": str(NOW - 2 * HOUR)}, id="to delete, older tag"
        ),
        pytest.param({"name": STUCK}, BLANK, id="to delete, made blank"),
        pytest.param({"name": STUCK}, USED, id="to delete, used"),
        pytest.param({"name": STUCK}, None, id="to delete, deleted"),
        pytest.param({"name": STUCK, **SET_UP}, RENAMED, id="to untag, renamed"),
        pytest.param({"name": STUCK, **SET_UP}, BLANK, id="to untag, made blank"),
        pytest.param({"name": STUCK, **SET_UP}, None, id="to untag, deleted"),
    ],
)
@at_each_prompt
def test_a_phone_that_changes_meanwhile_is_left_alone(
    tenant: Tenant, converse: Converse, at: str, before: Record, meanwhile: Any
) -> None:
    if at != "its own prompt":
        tenant.add_phone("first")
    phone_id = tenant.add_phone("ann", **before)

    def change() -> None:
        with tenant.lock:
            if meanwhile is None:
                del tenant.phones[phone_id]
            else:
                tenant.phones[phone_id].update(meanwhile)
        changed.append(tenant.phone(phone_id))

    changed: list[Record | None] = []
    result = converse_while(at, converse, change)
    assert result.status == 0
    assert changed == [tenant.phone(phone_id)]
    assert [r for r in writes(tenant) if r.path.endswith(phone_id)] == []
    event = "changed"
    if meanwhile is None:
        event = "gone"
    assert result.kinds[-1] == event
    assert result.events[-2]["phone_id"] == phone_id
    (line,) = [each for each in result.err.splitlines() if f" {event}: " in each]
    assert phone_id in line
    assert len(asked(result.err)) == 1, "nothing is asked about what has changed"


MOVED = [
    pytest.param({}, ["bob"], id="to stamp, to another user"),
    pytest.param({"name": STUCK}, ["bob"], id="to delete, to another user"),
    pytest.param({"name": STUCK}, ["cleo"], id="to delete, one user fewer"),
    pytest.param({"name": STUCK}, [], id="to delete, to nobody"),
    pytest.param({"name": STUCK, **SET_UP}, ["bob"], id="to untag, to another user"),
]


@pytest.mark.parametrize(("fields", "users"), MOVED)
@at_each_prompt
def test_a_phone_that_moves_to_somebody_else_meanwhile_is_left_alone(
    tenant: Tenant, converse: Converse, at: str, fields: Record, users: list[str]
) -> None:
    """Who answers has been asked about somebody else."""
    if at != "its own prompt":
        tenant.add_phone("first")
    phone_id = tenant.add_phone("ann", "cleo", **fields)

    def move() -> None:
        tenant.move_phone(phone_id, *users)

    result = converse_while(at, converse, move)
    assert result.status == 0
    assert [r for r in writes(tenant) if phone_of(r) == phone_id] == []
    assert result.kinds[-1] == "changed"
    assert result.events[-2]["phone_id"] == phone_id
    assert len(asked(result.err)) == 1, "nothing is asked about what has changed"


def test_a_user_who_is_told_of_in_a_prompt_must_still_have_the_phone(
    tenant: Tenant, converse: Converse
) -> None:
    """One more since the walk is in the question; and has gone when it is answered."""
    phone_id = tenant.add_phone("ann", name=STUCK)
    when(tenant, "GET", phone_id, lambda: tenant.move_phone(phone_id, "ann", "bob"))
    result = converse((lambda: tenant.move_phone(phone_id, "ann"), "y"))
    assert " of ann, bob (" in result.err
    assert (result.status, result.kinds) == (0, ["changed"])
    assert writes(tenant) == []


def test_no_to_a_stamp_never_leads_to_a_deletion(
    tenant: Tenant, converse: Converse
) -> None:
    """Not even where another run stamped the phone and the prompt was left open."""
    phone_id = tenant.add_phone("ann")
    clock = Clock()

    def stamp() -> None:
        tenant.phones[phone_id]["name"] = str(NOW)
        clock.now += HOUR

    for answer, event in (("n", "declined"), ("y", "changed")):
        tenant.phones[phone_id]["name"] = ""
        assert converse((stamp, answer), clock=clock).kinds == [event]
    assert writes(tenant) == []


def test_a_prompt_left_open_the_tag_is_the_time_of_the_write(
    tenant: Tenant, converse: Converse
) -> None:
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob"), tenant.add_phone("cleo")]
    clock = Clock()

    def wait() -> None:
        clock.now += 20 * MINUTE

    result = converse((wait, "y"), (wait, "n"), (wait, "a"), clock=clock)
    assert result.status == 0
    expected = [str(NOW + 20 * MINUTE), "", str(NOW + 60 * MINUTE)]
    assert names_of(tenant, *ids) == expected


def test_a_prompt_left_open_the_next_one_says_how_long_ago_now(
    tenant: Tenant, converse: Converse
) -> None:
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob", name=STUCK)
    clock = Clock()

    def wait() -> None:
        clock.now += 2 * HOUR

    err = converse((wait, "n"), (nothing, "n"), clock=clock).err
    assert "1 hour ago" in err.split("1 of 2")[1]
    assert "3 hours ago" in err.split("2 of 2")[1]


def test_questions_left_open_for_twenty_minutes(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is by the time and the record of a read just before it."""
    ann = tenant.add_phone("ann")
    bob = tenant.add_phone("bob")
    times = [NOW]
    when(tenant, "GET", ann, lambda: times.append(NOW + 20 * MINUTE), count=2)
    when(tenant, "GET", bob, lambda: times.append(NOW + 40 * MINUTE), count=2)
    monkeypatch.setattr(os, "environ", clean_environment(**tenant.environment()))
    answers, typed = os.pipe()
    os.write(typed, b"y\ny\n")
    os.close(typed)
    with os.fdopen(answers) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert duo_phone_cleanup.main(["--no-force"], clock=lambda: times[-1]) == 0
    assert name_of(tenant, ann) == str(NOW + 20 * MINUTE)
    assert name_of(tenant, bob) == str(NOW + 40 * MINUTE)
    assert [(each.method, phone_of(each)) for each in tenant.requests[1:]] == [
        ("GET", ann),
        ("GET", ann),
        ("POST", ann),
        ("GET", bob),
        ("GET", bob),
        ("POST", bob),
    ]


# At a terminal


@contextlib.contextmanager
def at_terminal(
    tenant: Tenant, shell: str = "", own: bool = True, early: bytes = b""
) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """Start the program at a terminal; give that, at the first prompt, and the process.

    It is the session's `own` terminal, or one that it merely uses. The shell that
    starts the program does something else first. Something may be typed `early`.
    """
    ours, theirs = pty.openpty()
    os.write(ours, early)
    # A session without a terminal of its own makes it of the first one that it opens.
    streams = f"<>{os.ttyname(theirs)} >&0 2>&0"
    program = [sys.executable, str(SCRIPT), "--no-force"]
    with (
        subprocess.Popen(
            ["/bin/sh", "-c", f'{shell} exec "$@" {streams}', "sh", *program],
            env=clean_environment(**tenant.environment()),
            start_new_session=own,
        ) as child,
        contextlib.closing(fdspawn(ours, timeout=20)) as terminal,
    ):
        try:
            terminal.expect(r"1 of \d+")
        finally:
            os.close(theirs)
        yield terminal, child


@pytest.fixture
def two(tenant: Tenant) -> list[str]:
    """The ids of a phone to stamp and one to delete, by the real clock."""
    stuck = str(int(time.time()) - HOUR)
    return [tenant.add_phone("ann"), tenant.add_phone("bob", name=stuck)]


def test_a_conversation(tenant: Tenant, two: list[str]) -> None:
    with at_terminal(tenant) as (terminal, child):
        terminal.expect("ann")
        terminal.sendline("maybe")
        terminal.expect("1 of 2")
        terminal.send(b"\xff\n")
        terminal.expect("1 of 2")
        terminal.sendline("n")
        terminal.expect("2 of 2.*bob.*1 hour ago")
        terminal.sendline("y")
        rest = terminal.read().decode()
        assert child.wait(20) == 0
    assert names_of(tenant, *two) == ["", GONE]
    assert "Traceback" not in rest
    lines = rest.splitlines()
    assert lines[0].endswith("y"), "Enter ends the line, not the program as well"
    assert "deleted" in lines[1]


@pytest.mark.parametrize("early", [b"y\n", b"a\n", b"y\ny\n", b"q\n", b"y", b"\n\n"])
def test_what_was_typed_early_is_no_answer(
    tenant: Tenant, two: list[str], early: bytes
) -> None:
    """Before a question, or at the one before it."""
    before = names_of(tenant, *two)
    with at_terminal(tenant, early=early) as (terminal, child):
        terminal.send(b"n\n" + early)
        terminal.expect("2 of 2")
        terminal.sendline("n")
        rest = terminal.read().decode()
        assert child.wait(20) == 0
    assert names_of(tenant, *two) == before
    assert rest.count("declined: ") == 1
    assert "2 of 2" not in rest, "it was not asked again"


def test_an_answer_without_enter(tenant: Tenant, two: list[str]) -> None:
    """Ctrl-D sends what has been typed: the second one, nothing."""
    with at_terminal(tenant) as (terminal, child):
        terminal.send("n\x04\x04")
        terminal.expect("2 of 2")
        terminal.send("y\x04\x04")
        rest = terminal.read().decode()
        assert child.wait(20) == 0
    assert names_of(tenant, *two) == ["", GONE]
    assert "deleted" not in rest.splitlines()[0]
    assert "deleted" in rest.splitlines()[1]


def test_a_phone_set_up_while_a_terminal_waits(tenant: Tenant, two: list[str]) -> None:
    with at_terminal(tenant) as (terminal, child):
        terminal.sendline("n")
        terminal.expect("2 of 2")
        tenant.phones[two[1]].update(SET_UP)
        terminal.sendline("y")
        terminal.expect(f"changed.*{two[1]}")
        terminal.read()
        assert child.wait(20) == 0
    assert writes(tenant) == []


@pytest.mark.parametrize(
    ("shell", "own", "key", "status"),
    [
        pytest.param("", True, "\x04", 1, id="end of input"),
        pytest.param("", True, "", 129, id="closed"),
        pytest.param("trap '' HUP;", True, "", 1, id="closed, hang-up ignored"),
        pytest.param("", False, "", 1, id="lost"),
    ],
)
def test_a_terminal_that_goes_away_is_the_end_of_the_run(
    *,
    tenant: Tenant,
    two: list[str],
    shell: str,
    own: bool,
    key: str,
    status: int,
) -> None:
    before = names_of(tenant, *two)
    with at_terminal(tenant, shell, own) as (terminal, child):
        terminal.sendline("n")
        terminal.expect("2 of 2")
        if key:
            terminal.send(key)
            assert b"Traceback" not in terminal.read()
        else:
            terminal.close()
        assert child.wait(20) == status
    assert names_of(tenant, *two) == before
    assert writes(tenant) == []
