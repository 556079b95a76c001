"""Prompts of --no-force: answered from pipes, at terminals, and not at all."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pexpect.fdpexpect import fdspawn

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
    STUCK,
    Run,
    clean_environment,
    name_of,
    phone_of,
    redirected,
    start,
    when,
    writes,
)

OLD: Record = {"name": STUCK}
DONE: Record = {"name": STUCK, **SET_UP}
USED: Record = {"last_seen": "2027-01-15T07:59:00"}


def names_of(tenant: Tenant, *phone_ids: str) -> list[Any]:
    """What the phones are called now."""
    return [name_of(tenant, each) for each in phone_ids]


def asked(err: str) -> list[str]:
    """Which of the phones was asked about, each time, out of how many."""
    return re.findall(r"\b\d+ of \d+\b", err)


# What is asked


@pytest.mark.parametrize(
    ("fields", "what", "about"),
    [
        pytest.param(
            {},
            "stamp phone +15550000001",
            "not tagged yet, last login never",
            id="stamp",
        ),
        pytest.param(
            {**OLD, **USED},
            "stamp phone +15550000001",
            "in use since its tag, tagged 1 hour ago, last login never",
            id="stamp again",
        ),
        pytest.param(
            OLD,
            "delete phone +15550000001",
            "grace period over, tagged 1 hour ago, last login never",
            id="delete",
        ),
        pytest.param(
            {**OLD, "number": ""},
            "delete tablet",
            "grace period over, tagged 1 hour ago, last login never",
            id="delete a tablet",
        ),
        pytest.param(
            DONE,
            "untag phone +15550000001",
            "set up since its tag, tagged 1 hour ago, last login never",
            id="untag",
        ),
    ],
)
def test_a_prompt_says_what_one_needs_to_decide(
    tenant: Tenant, run: Run, fields: Record, what: str, about: str
) -> None:
    tenant.add_phone("ann")
    phone_id = tenant.add_phone("bob", "cleo", **fields)
    tenant.add_phone("dan", name="Dan's")  # not to be asked about
    result = run("--no-force", "--untag", stdin="n\nn\n")
    assert (result.status, result.out) == (0, "")
    assert asked(result.err) == ["1 of 2", "2 of 2"]
    expected = f"2 of 2: {what} of bob, cleo ({about}, {phone_id})? [y/n/a/q] n"
    assert result.err.splitlines()[-1] == expected


def test_a_prompt_is_about_the_record_just_read(tenant: Tenant, run: Run) -> None:
    """Number and last login may have changed since the walk."""
    phone_id = tenant.add_phone("ann", number="+15550000007", name=STUCK)

    def change() -> None:
        tenant.phones[phone_id]["number"] = "+15550000008"
        tenant.change_user("ann", last_login=NOW - DAY)

    when(tenant, "GET", phone_id, change)
    result = run("--no-force", stdin="n\n")
    facts = f"grace period over, tagged 1 hour ago, last login 1 day ago, {phone_id}"
    question = f"delete phone +15550000008 of ann ({facts})? [y/n/a/q] n"
    assert result.err.splitlines()[-1] == f"1 of 1: {question}"


# What is answered


@pytest.mark.parametrize(
    ("yes", "no"),
    [("y", "n"), ("Y", "N"), ("Yes", "nO"), (" y ", "\tn "), ("y\r", "no\r")],
)
def test_yes_and_no(tenant: Tenant, run: Run, yes: str, no: str) -> None:
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob", name=STUCK)]
    result = run("--no-force", stdin=f"{no}\n{yes}\n")
    assert (result.status, names_of(tenant, *ids)) == (0, ["", GONE])
    assert asked(result.err) == ["1 of 2", "2 of 2"]


@pytest.mark.parametrize(
    ("answers", "expected", "questions", "told"),
    [
        pytest.param("a\na\n", [str(NOW), GONE, str(NOW)], 2, 3, id="all, twice"),
        pytest.param("a\nn\n", [str(NOW), STUCK, str(NOW)], 2, 3, id="all, then no"),
        pytest.param("n\nA\ny\n", ["", GONE, str(NOW)], 3, 3, id="no, all, yes"),
        pytest.param("q\ny\ny\ny\n", ["", STUCK, ""], 1, 0, id="quit"),
        pytest.param("y\nQ\n", [str(NOW), STUCK, ""], 2, 1, id="yes, then quit"),
        pytest.param("n\nn\nn\n", ["", STUCK, ""], 3, 3, id="no to all"),
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
    """All are all of one verb, and stamps come first.

    Of each phone but those after a q it is told what became of it.
    """
    ids = [
        tenant.add_phone("ann"),
        tenant.add_phone("bob", name=STUCK),
        tenant.add_phone("cleo"),
    ]
    result = run("--no-force", "-v", stdin=answers)
    assert (result.status, names_of(tenant, *ids)) == (0, expected)
    assert len(asked(result.err)) == questions
    scope, *lines, summary = result.err.splitlines()
    assert scope.endswith(SCOPE)
    assert len(lines) == questions + told
    assert " 3 users, 3 phones, 3 in limbo" in summary
    changed = [name for name in expected if name not in ("", STUCK)]
    assert len(writes(tenant)) == len(changed)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b" ",
        b"x",
        b"ye",
        b"y y",
        b"all",
        b"y\0",
        b"\x1b[A",
        "\N{CYRILLIC SMALL LETTER U}".encode(),
        b"\xffy",
        b"y\xc3",
        pytest.param(b"y" * 100_000, id="long"),
    ],
)
def test_anything_else_is_asked_again(tenant: Tenant, run: Run, junk: bytes) -> None:
    phone_id = tenant.add_phone("ann", name=STUCK)
    result = run("--no-force", stdin=b"%b\n%b\ny\n" % (junk, junk))
    assert (result.status, name_of(tenant, phone_id)) == (0, GONE)
    assert asked(result.err) == ["1 of 1"] * 3
    assert len(result.err) < 2000, "what was answered is not repeated at length"
    help_line = "y: yes, n: no, a: yes to all that are left to delete, q: stop here"
    assert result.err.splitlines().count(help_line) == 2


def test_answers_from_a_pipe_count_in_order(tenant: Tenant) -> None:
    """All of them are there before the first question is."""
    ids = [tenant.add_phone(user, name=LONG_AGO) for user in ("ann", "bob", "cleo")]
    with start(tenant, "--no-force") as child:
        _, err = child.communicate("n\na\n", timeout=30)
    assert child.returncode == 0
    assert names_of(tenant, *ids) == [LONG_AGO, GONE, GONE]
    assert asked(err) == ["1 of 3", "2 of 3"]


# Nobody answers


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("", ["", STUCK]),
        ("y\n", [str(NOW), STUCK]),
        ("\n\n\n", ["", STUCK]),
        ("what?", ["", STUCK]),
    ],
    ids=repr,
)
def test_the_end_of_the_input_is_the_end_of_the_run(
    tenant: Tenant, run: Run, answers: str, expected: list[str]
) -> None:
    """As under cron, with a variable that is set for runs by hand."""
    ids = [tenant.add_phone("ann"), tenant.add_phone("bob", name=STUCK)]
    result = run("--json", stdin=answers, DUO_FORCE="no")
    assert (result.status, names_of(tenant, *ids)) == (1, expected)
    assert result.kinds[-1] == "failed"
    error = result.events[-2]["error"]
    assert error == (
        "no answer to a prompt, so nothing more is written: where nobody can answer, "
        "leave out --no-force (DUO_FORCE=no)"
    )
    assert f" error: {error}\n" in result.err


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


# What happens while a prompt is open


def test_nothing_is_asked_about_a_phone_that_has_changed(
    tenant: Tenant, run: Run
) -> None:
    """Its user sets it up as the one before it is about to be asked about."""
    first = tenant.add_phone("ann", name=STUCK)
    changed = tenant.add_phone("bob", name=STUCK)

    def set_up() -> None:
        tenant.phones[changed].update(SET_UP)

    when(tenant, "GET", first, set_up, answered=True)
    result = run("--no-force", "--json", stdin="y\ny\n")
    assert (result.status, result.outcomes) == (0, ["deleted", "changed"])
    assert asked(result.err) == ["1 of 2"]


def test_questions_left_open_for_twenty_minutes(tenant: Tenant, run: Run) -> None:
    """Each goes by the time of a read just before it, and so does each write."""
    ann = tenant.add_phone("ann")
    bob = tenant.add_phone("bob", name=STUCK)
    times = [NOW]
    when(tenant, "GET", ann, lambda: times.append(NOW + 20 * MINUTE), count=2)
    when(tenant, "GET", bob, lambda: times.append(NOW + 3 * HOUR))
    result = run("--no-force", stdin="y\ny\n", now=lambda: times[-1])
    assert result.status == 0
    assert "2 of 2: delete phone +15550000001 of bob (grace period over, " in result.err
    assert "tagged 4 hours ago" in result.err
    (stamp, _) = writes(tenant)
    assert stamp.params["name"] == str(NOW + 20 * MINUTE)
    assert [(each.method, phone_of(each)) for each in tenant.requests[1:]] == [
        ("GET", ann),
        ("GET", ann),
        ("POST", ann),
        ("GET", bob),
        ("GET", bob),
        ("DELETE", bob),
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
        terminal.send(b"\xff\n")
        terminal.expect("1 of 2")
        terminal.sendline("n")
        terminal.expect("2 of 2.*bob.*1 hour ago")
        terminal.sendline("y")
        rest = terminal.read().decode()
        assert child.wait(20) == 0
    assert names_of(tenant, *two) == ["", GONE]
    lines = rest.splitlines()
    assert lines[0].endswith("y"), "Enter ends the line, not the program as well"
    assert "deleted" in lines[1]


@pytest.mark.parametrize("early", [b"y\ny\n", b"q\n", b"y"])
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
