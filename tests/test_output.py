"""What is told where: the log, the summary, progress; hostile text, broken streams."""

from __future__ import annotations

import io
import json
import os
import re
import select
import sys
import threading
import time

import pytest

from tests.simulation.tenant import SKEY, Record, Request, Tenant, cast
from tests.support import (
    LONG_AGO,
    SCOPE,
    SET_UP,
    SHORT_GRACE,
    STUCK,
    Result,
    Run,
    Terminal,
    add_outcomes,
    process,
    redirected,
    start,
    threads_left_behind,
    wait_for_threads,
    write_methods,
    writes,
)

LOG = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
SECONDS = r", \d+\.\d s"

# The log


@pytest.mark.parametrize("argv", [[], ["--untag"], ["ann", "bob", "cleo", "gus"]])
def test_cron_hears_nothing_of_a_run_that_goes_well(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    add_outcomes(tenant)
    result = run(*argv)
    assert len(writes(tenant)) >= 2
    assert (result.status, result.out, result.err) == (0, "", "")


def test_a_process_without_a_terminal_says_nothing(tenant: Tenant) -> None:
    cast(tenant, time.time())
    result = process(tenant)
    assert len(writes(tenant)) == 3
    assert (result.status, result.out, result.err) == (0, "", "")


def test_v_tells_each_action_and_a_summary(tenant: Tenant, run: Run) -> None:
    """The actions in the order of the walk."""
    ids = add_outcomes(tenant)
    result = run("-v", "--untag")
    assert (result.status, result.out) == (0, "")
    *actions, summary = result.err.splitlines()
    about_each = [
        ("stamped", "+15550000000", "ann"),
        ("deleted", "+15550000001", "bob"),
        ("untagged", "+15550000004", "eve"),
        ("changed", "+15550000005", "fay"),
        ("gone", "+15550000006", "gus"),
    ]
    assert len(actions) == len(about_each)
    for line, (event, number, user) in zip(actions, about_each):
        text = f"{event}: phone {number} of {user} ({ids[event]})"
        assert re.fullmatch(LOG + re.escape(text), line)
    text = (
        "7 users, 7 phones, 6 in limbo: 1 stamped, 1 deleted, 1 untagged, 1 changed, "
        f"1 gone, 1 waiting, 1 kept; {len(tenant.requests)} requests"
    )
    assert re.fullmatch(LOG + text + SECONDS, summary)


def test_v_names_all_who_share_a_phone_or_a_tablet(tenant: Tenant, run: Run) -> None:
    phone = tenant.add_phone("ann", "bob", name=STUCK)
    tablet = tenant.add_phone("cleo", "dan", number="", name=STUCK)
    first, second, _summary = run("-v").err.splitlines()
    assert first.endswith(f" deleted: phone +15550000000 of ann, bob ({phone})")
    assert second.endswith(f" deleted: tablet of cleo, dan ({tablet})")


def test_vv_tells_each_request_too(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    tenant.fail("status", method="DELETE")  # it is tried again
    log = run("-vv", "--untag").err
    step = LOG + r"(\w+) (/admin/v1/\w+(?:/\w+)?)\S*: (\d+) after (\d\.\d\d) s$"
    told = re.findall(step, log, re.MULTILINE)
    answers = [(each.method, each.path, str(each.status)) for each in tenant.requests]
    # The next phone is read while this one is written: in another order, perhaps.
    assert sorted(each[:3] for each in told) == sorted(answers)
    assert min(float(seconds) for *_, seconds in told) < 0.9
    assert ("DELETE", f"/admin/v1/phones/{ids['deleted']}", "503") in answers
    failed = re.findall(r" this try failed: Duo answers (\d+) ", log)
    assert sorted(failed) == ["404", "503"], "one has gone, one is tried again"
    for event in ("waiting", "named"):
        assert re.search(f" {event}: .*{ids[event]}", log)


# The summary


@pytest.mark.parametrize(
    ("argv", "text", "status"),
    [
        ("ann", "1 user, 1 phone, 1 in limbo: 1 stamped; 4 requests", 0),
        ("bob", "1 user, 2 phones, 2 in limbo: 1 deleted, 1 kept; 5 requests", 0),
        ("cleo", "1 user, 0 phones, 0 in limbo; 1 request", 0),
        (
            "ann bob --max-deletions 0",
            "2 users, 3 phones, 3 in limbo: 1 stamped, 1 kept, 1 due, none deleted;"
            " 6 requests",
            0,
        ),
        (
            "nobody ann",
            "1 user, 1 phone, 1 in limbo: 1 stamped, 1 unknown; 4 requests",
            1,
        ),
        ("nobody", "0 users, 0 phones, 0 in limbo: 1 unknown; 1 request", 1),
        ("-g 60 bob", "1 user, 2 phones, 2 in limbo: 1 deleted, 1 kept; 5 requests", 0),
        ("-g 61 bob", "1 user, 2 phones, 2 in limbo: 1 waiting, 1 kept; 3 requests", 0),
    ],
)
def test_the_summary_is_a_sentence(
    tenant: Tenant, run: Run, argv: str, text: str, status: int
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=STUCK)
    tenant.add_phone("bob", name="Bob's")
    tenant.add_user("cleo")
    result = run("-v", *argv.split())
    expected = LOG + text + SECONDS
    if status:
        expected += "; exit status 1"
    assert re.fullmatch(expected, result.err.splitlines()[-1])
    assert result.status == status


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="in limbo"),
        pytest.param({"name": "Their own"}, id="kept"),
        pytest.param(SET_UP, id="set up"),
    ],
)
def test_a_shared_phone_is_counted_once(
    tenant: Tenant, run: Run, fields: Record
) -> None:
    tenant.add_phone("ann", "bob", "cleo", **fields)
    tenant.add_phone("ann")
    result = run("--json", "-v")
    assert " 3 users, 2 phones, " in result.err.splitlines()[-1]
    assert result.summary["users_seen"] == 3
    assert result.summary["phones_seen"] == 2


@pytest.mark.parametrize(
    ("pages_read", "argv", "summary"),
    [
        pytest.param(0, [], "nothing was read: 1 failed; 1 request", id="at once"),
        pytest.param(
            0, ["-v"], "nothing was read: 1 failed; 1 request", id="at once, -v"
        ),
        pytest.param(
            1,
            [],
            "300 users, 2 phones, 2 in limbo: 1 failed; 2 requests",
            id="half way",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_the_summary_of_a_walk_that_fails(
    *,
    tenant: Tenant,
    run: Run,
    pages_read: int,
    argv: list[str],
    summary: str,
    dry_run: bool,
) -> None:
    """It tells what was seen; where nothing was, it is no row of zeros."""
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob")
    for number in range(300):
        tenant.add_user(f"u{number}")
    tenant.fail("status", status=400, path="users", after=pages_read, times=None)
    expected = summary + SECONDS + "; exit status 1"
    if dry_run:  # it tells that where the table would be
        result = run("--dry-run", *argv)
        (error,) = result.err.splitlines()
        *scope, told = result.out.splitlines()
        assert scope == [SCOPE, SHORT_GRACE]
        assert re.fullmatch(expected, told)
    else:
        result = run(*argv)
        error, told = result.err.splitlines()
        assert re.fullmatch(LOG + expected, told)
    assert " error: Duo answers 400 " in error
    assert result.status == 1
    assert writes(tenant) == []


def test_no_request_is_told_of_after_the_summary(
    tenant: Tenant, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pages that were asked for and then not waited for."""
    let_go = threading.Event()

    def hook(request: Request) -> None:
        if request.params["offset"] == "300":
            tenant.wait_for(4)
            tenant.fail("status", status=400)
        elif request.params["offset"] != "0":
            let_go.wait(30)

    tenant.populate(1200)
    tenant.on_request(hook)
    with threads_left_behind() as late:
        result = run("-vv", "--json")
        assert (result.status, result.summary["requests"]) == (1, 4)
    let_go.set()
    wait_for_threads(late)
    assert [request.status for request in tenant.requests].count(200) == 3
    assert capsys.readouterr() == ("", "")


# At a terminal


def answered(terminal: Terminal, answer: bytes) -> str:
    """Wait for the question and answer it; give what was written before."""
    written = b""
    while b"? [y/n/a/q] " not in written:
        assert select.select([terminal.ours], [], [], 20)[0]
        written += os.read(terminal.ours, 65536)
    os.write(terminal.ours, answer)
    return written.decode()


def displayed(text: str) -> list[str]:
    """The lines that a terminal shows, trailing blanks apart."""
    lines = [""]
    column = 0
    for part in re.split(r"(\r|\n|\x1b\[K)", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            end = column + len(part)
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][end:]
            column = end
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("argv", [[], ["-v"], ["--json"]])
def test_a_terminal_is_told_without_v(tenant: Tenant, argv: list[str]) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name="Bob's")
    log = Terminal()
    with start(tenant, *argv, stderr=log.theirs) as child:
        out, _ = child.communicate(timeout=30)
    stamped, summary = displayed(log.read())
    assert " stamped: " in stamped
    assert " 2 users, 2 phones, 2 in limbo: 1 stamped, 1 kept; 3 requests, " in summary
    assert child.returncode == 0
    assert (out == "") is (argv != ["--json"])


def test_the_progress_of_a_long_walk(tenant: Tenant) -> None:
    """Several runs at a time, since each has to take more than a second."""
    tenant.add_phone("ann")
    tenant.populate(1200)
    tenant.slow(row=0.6 / 300)
    progress = re.compile(r"\d+ of 1201 users")
    plain = Terminal()
    asking = Terminal()
    table = Terminal()
    aside = Terminal()
    journal = Terminal()
    children = {
        "plain": start(tenant, "--no-force", stdin=plain.theirs, stderr=plain.theirs),
        "asking": start(tenant, "--no-force", stderr=asking.theirs),
        "table": start(tenant, "-n", stdout=table.theirs, stderr=table.theirs),
        "aside": start(tenant, "-n", stderr=aside.theirs),
        "journal": start(
            tenant, "-n", "--json", stdout=journal.theirs, stderr=journal.theirs
        ),
        "none": start(tenant, "-n", "-v"),
    }
    early = answered(plain, b"n\n")
    ends: dict[str, tuple[str, str]] = {}
    for name, child in children.items():
        stdin = None
        if name == "asking":
            stdin = "n\n"
        with child:
            ends[name] = child.communicate(stdin, timeout=60)
        assert child.returncode == 0

    raw = asking.read()
    assert len(progress.findall(raw)) > 1
    before, after = raw.split("localhost: ")
    assert "\n" not in before
    assert displayed(f"{before}|") == ["|"], "the prompts come on an empty line"
    assert not progress.search(after)
    scope, short_grace, question, declined, summary = displayed(raw)
    assert (scope, short_grace) == (SCOPE, SHORT_GRACE)
    assert question.startswith("1 of 1: ")
    assert " declined: " in declined
    assert " 1201 users, " in summary
    (seconds,) = re.findall(r" requests, ([0-9.]+) s$", summary)
    assert 1 < float(seconds) < 60

    raw = early + plain.read()
    assert progress.search(raw)
    assert not [line for line in displayed(raw) if progress.search(line)]

    raw = table.read()
    assert progress.search(raw)
    scope, short_grace, head, row, totals = displayed(raw)
    assert (scope, short_grace) == (SCOPE, SHORT_GRACE)
    assert head.startswith("USERS")
    assert re.fullmatch(r"ann +\+15550000000 +never +stamp: not tagged yet", row)
    assert totals.startswith("1201 users, ")

    raw = aside.read()
    assert progress.search(raw)
    assert displayed(raw) == []
    assert not progress.search(ends["aside"][0])
    assert len(ends["aside"][0].splitlines()) == 5

    raw = journal.read()
    assert progress.search(raw)
    *lines, summary = displayed(raw)
    assert [json.loads(x)["event"] for x in lines] == ["would_stamp", "summary"]
    assert " 1201 users, " in summary

    assert not progress.search("".join(ends["none"]))


def test_progress_never_passes_the_number_of_users(tenant: Tenant) -> None:
    """Of named users that is how many names were asked for, whatever Duo answers."""
    asked = [f"u{number}" for number in range(250)]
    for number in range(400):
        tenant.add_user(f"u{number}")
    tenant.slow(request=0.6)
    first = Terminal()
    second = Terminal()
    with (
        start(tenant, *asked, stderr=first.theirs) as child,
        start(tenant, *asked, "U249", stderr=second.theirs) as another,
    ):
        assert child.wait(30) == 0
        assert another.wait(30) == 0
    for terminal, number in ((first, 250), (second, 251)):
        shown = re.findall(r"(\d+) of (\d+) users", terminal.read())
        assert len(shown) >= 2
        assert {total for _, total in shown} == {str(number)}
        assert all(int(seen) <= number for seen, _ in shown)


def test_the_progress_of_the_writes(tenant: Tenant) -> None:
    """Of the phones that are written to; it leaves nothing on the screen."""
    for number in range(5):
        tenant.add_phone(f"u{number}")
        tenant.add_phone(f"u{number}", name="Kept")
    tenant.slow(request=0.2)  # with all but the last write, more than a second
    terminal = Terminal()
    with start(tenant, stderr=terminal.theirs) as child:
        assert child.wait(30) == 0
    raw = terminal.read()
    assert re.findall(r"\d+ of \d+", raw)[-1] == "5 of 5"
    *stamped, summary = displayed(raw)
    assert len(stamped) == 5
    for line in stamped:
        assert re.match(LOG + "stamped: phone ", line)
    assert re.match(LOG + "5 users, 10 phones, ", summary)


def test_a_rate_limit_that_is_waited_out_is_shown(tenant: Tenant) -> None:
    """On a terminal, where a run has taken more than a second; then it is cleared."""
    tenant.add_phone("ann")
    tenant.fail("status", status=429, path="users$", times=2)
    terminal = Terminal()
    with start(tenant, stderr=terminal.theirs) as child:
        assert child.wait(30) == 0
    raw = terminal.read()
    assert re.search(r"Duo's rate limit: waiting for \d s", raw)
    stamped, summary = displayed(raw)
    assert " stamped: " in stamped
    assert " 1 user, 1 phone, " in summary


def test_a_short_walk_shows_no_progress(tenant: Tenant) -> None:
    tenant.populate(40)
    terminal = Terminal()
    with start(tenant, stdout=terminal.theirs, stderr=terminal.theirs) as child:
        assert child.wait(30) == 0
    raw = terminal.read()
    assert "of 40" not in raw
    assert raw.count("\r") == 1
    assert raw.count("\n") == 1


# Hostile text

HOSTILE = [
    "\nFAKE",
    "\rFAKE",
    "\r\nFAKE",
    "\x0bFAKE",
    "\x85FAKE",
    "\u2028FAKE",
    "\u2029FAKE",
    "\x1b[31mred",
    "\x9b31mred",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x08\x08",
    "\x7f",
    "\0",
    "\u202eLTR",
    "\u200f",
    "\u2066x\u2069",
    "\ufeff",
    "\ud800",
    "\udcff",
    "\U000e0041",
]
TEXT = "|".join(HOSTILE)


def check_harmless(result: Result, begin: str) -> None:
    """Check that each line begins like this, and that no character does anything."""
    for text in (result.out, result.err):
        odd = {each for each in text if not each.isprintable() and each != "\n"}
        assert not odd
    for line in [*result.out.splitlines(), *result.err.splitlines()]:
        assert re.match(begin, line), line


@pytest.mark.parametrize(
    ("argv", "begin"),
    [
        pytest.param("-vv", LOG, id="log"),
        pytest.param(
            "--no-force",
            LOG + rf"|\d+ of \d+: |{SCOPE}|{SHORT_GRACE}|y: ",
            id="prompts",
        ),
        pytest.param(
            "--dry-run -v",
            rf"{SCOPE}|{SHORT_GRACE}|USERS |who|\d+ users, ",
            id="table",
        ),
        pytest.param("--json -v", '{"event"|' + LOG, id="journal"),
        pytest.param("--json --dry-run", '{"event"', id="journal of a dry run"),
    ],
)
def test_hostile_text_is_escaped(
    tenant: Tenant, run: Run, argv: str, begin: str
) -> None:
    names = [f"who{text}" for text in [*HOSTILE, TEXT]]
    for name in names:
        tenant.add_phone(name, number=name)
        tenant.add_phone(name, number=f"+1{name}", name=STUCK)
        tenant.add_phone(name, name=f"my {name}")
    result = run(*argv.split(), stdin="\x1b[31m\r\u202e\nn\nn\nn\na\n")
    assert result.status == 0
    check_harmless(result, begin)
    if "--json" in argv:
        told = [user for each in result.events[:-1] for user in each["users"]]
        assert {*told} == {*names}, "whoever reads the journal gets the text itself"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("status", [400, 401])
def test_duos_messages_are_escaped(
    tenant: Tenant, run: Run, status: int, text: str
) -> None:
    tenant.add_phone("ann")
    how: Record = {"status": status, "message": f"sorry {text}", "message_detail": text}
    tenant.fail("status", path="phones", **how)
    result = run("--json", "-vv")
    assert result.status == 1
    assert "sorry" in result.err
    check_harmless(result, '{"event"|' + LOG)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_name_that_was_asked_for_is_escaped(
    tenant: Tenant, run: Run, text: str
) -> None:
    result = run("--json", f"who{text}")
    assert result.status == 1
    assert result.events[0]["user"] == f"who{text}"
    check_harmless(result, '{"event"|' + LOG)


# Encodings


@pytest.mark.parametrize(
    ("variables", "encoding", "shown"),
    [
        pytest.param(
            {"PYTHONIOENCODING": "ascii"},
            "ascii",
            "zo\\xeb\\u6f22\\U0001f600",
            id="ascii",
        ),
        pytest.param(
            {"PYTHONIOENCODING": "latin-1"},
            "latin-1",
            "zoë\\u6f22\\U0001f600",
            id="latin-1",
        ),
        pytest.param(
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "ascii",
            "zo\\xeb\\u6f22\\U0001f600",
            id="C, strictly",
        ),
        pytest.param({"LC_ALL": "C"}, "utf-8", "zoë漢😀", id="C"),
    ],
)
def test_encodings(
    tenant: Tenant, variables: dict[str, str], encoding: str, shown: str
) -> None:
    tenant.add_phone("zoë漢😀")
    for argv in (["--dry-run"], ["--no-force", "-v"]):
        with start(tenant, *argv, env=variables, encoding=encoding) as child:
            out, err = child.communicate("y\n", timeout=30)
        assert child.returncode == 0, err
        assert shown in out + err
    assert len(writes(tenant)) == 1


# Broken streams

GONE_READER = "the reader of standard output has gone"
"""The error where a pipe is closed at its other end."""


def check_quiet_end(err: str, *expected: str) -> None:
    """Check that no error of Python's comes out, and an error line for each of these.

    The summary may follow.
    """
    for text in ("Traceback", "Exception", "Error", "NoneType"):
        assert text not in err
    lines = [line for line in err.splitlines() if not re.search(r"; \d+ request", line)]
    assert len(lines) == len(expected), err
    for line, text in zip(lines, expected):
        assert " error: " in line
        assert text in line


@pytest.mark.parametrize(
    ("streams", "errors"),
    [
        pytest.param(">&-", ["standard output"], id="closed"),
        pytest.param(">/dev/full", ["standard output"], id="full"),
        pytest.param(">&- 2>&-", [], id="closed, and standard error, too"),
    ],
)
@pytest.mark.parametrize(
    ("names", "written"),
    [
        pytest.param([LONG_AGO, ""], [], id="a deletion first"),
        pytest.param(["", LONG_AGO], ["POST"], id="a stamp first"),
    ],
)
def test_without_a_journal_nothing_more_is_written(
    tenant: Tenant,
    streams: str,
    errors: list[str],
    names: list[str],
    written: list[str],
) -> None:
    """A stamp is journaled when it is done: the first is the last."""
    for name in names:
        tenant.add_phone("ann", name=name)
    with redirected(tenant, streams, "--json") as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert write_methods(tenant) == written
    check_quiet_end(err, *errors)


@pytest.mark.parametrize(
    ("broken_at", "written", "done"),
    [
        pytest.param("DELETE", ["DELETE"], "1 deleted", id="at the first deletion"),
        pytest.param(
            "POST", ["DELETE", "POST"], "1 stamped, 1 deleted", id="at the first stamp"
        ),
    ],
)
def test_a_journal_whose_reader_leaves(
    tenant: Tenant, broken_at: str, written: list[str], done: str
) -> None:
    for name in (LONG_AGO, "", LONG_AGO, ""):
        tenant.add_phone("ann", name=name)
    reader, writer = os.pipe()
    gone = threading.Event()

    def leave(request: Request) -> None:
        if request.method == broken_at and not gone.is_set():
            gone.set()
            os.close(reader)

    tenant.on_request(leave)
    with start(tenant, "--json", stdout=writer) as child:
        os.close(writer)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert write_methods(tenant) == written
    check_quiet_end(err, GONE_READER)
    assert f" in limbo: {done}; " in err, "it has a line of its own, and is no number"
    assert err.endswith("; exit status 1\n")


def test_a_table_whose_reader_leaves(tenant: Tenant) -> None:
    """As head does: here, after the first two lines."""
    tenant.add_phone("ann")
    reader, writer = os.pipe()
    shown: list[str] = []

    def leave(_: Request) -> None:
        shown.append(os.read(reader, 1000).decode())
        os.close(reader)

    tenant.on_request(leave)
    with start(tenant, "--dry-run", stdout=writer) as child:
        os.close(writer)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert shown == [f"{SCOPE}\n{SHORT_GRACE}\n"]
    error, summary = err.splitlines()
    assert re.fullmatch(LOG + f"error: {GONE_READER}", error)
    text = "1 user, 1 phone, 1 in limbo: 1 to stamp; 1 request"
    assert re.fullmatch(LOG + text + SECONDS + "; exit status 1", summary)


def test_a_journal_that_cannot_take_its_last_line(tenant: Tenant) -> None:
    tenant.add_user("ann")
    with redirected(tenant, ">/dev/full", "-v", "--json") as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    check_quiet_end(err, "standard output")
    assert "exit status 0" not in err


@pytest.mark.parametrize(
    ("argv", "summary"),
    [
        # The first line of a table comes before anything is read.
        pytest.param(["-n"], "nothing was read; 0 requests, ", id="the table"),
        pytest.param(
            ["-n", "--json"],
            "1 user, 1 phone, 1 in limbo: 1 to stamp; 1 request, ",
            id="JSON lines",
        ),
    ],
)
@pytest.mark.parametrize(
    ("streams", "error"),
    [
        (">&-", "error: standard output cannot be written: it is closed"),
        (
            ">/dev/full",
            "error: standard output cannot be written: No space left on device",
        ),
        ("| :", f"error: {GONE_READER}"),
    ],
)
def test_a_dry_run_that_nobody_reads(
    *, tenant: Tenant, streams: str, error: str, argv: list[str], summary: str
) -> None:
    tenant.add_phone("ann")
    if streams == "| :":
        reader, writer = os.pipe()
        os.close(reader)
        child = start(tenant, *argv, stdout=writer)
        os.close(writer)
    else:
        child = redirected(tenant, streams, *argv)
    with child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    check_quiet_end(err, error)
    assert f" {summary}" in err, "where it can be read"


class StdoutThatFills(io.StringIO):
    """Standard output that takes no more when the totals come."""

    def write(self, text: str) -> int:
        if "; 1 request, " in text:
            raise OSError("full")
        return super().write(text)


def test_totals_that_cannot_be_written(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant.add_user("ann")
    monkeypatch.setattr(sys, "stdout", StdoutThatFills())
    result = run("--dry-run")
    error, summary = result.err.splitlines()
    assert result.status == 1
    assert "standard output cannot be written: full" in error
    assert summary.endswith("exit status 1")


@pytest.mark.parametrize(
    ("streams", "argv"),
    [
        (">&-", []),
        ("2>&-", ["-vv"]),
        ("2>/dev/full", ["-vv"]),
        ("<&- >&- 2>&-", ["-vv"]),
    ],
)
def test_a_run_needs_no_stream(tenant: Tenant, streams: str, argv: list[str]) -> None:
    phone_id = tenant.add_phone("ann", name=LONG_AGO)
    with redirected(tenant, streams, *argv) as child:
        assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 0
    assert tenant.phone(phone_id) is None


@pytest.mark.parametrize(
    ("streams", "argv", "errors"),
    [
        (">/dev/full", [], ["nobody"]),
        ("2>&-", ["-vv"], []),
        ("2>/dev/full", ["-vv"], []),
        (">&- 2>&-", ["-vv"], []),
    ],
)
def test_a_run_with_an_error_needs_no_stream(
    tenant: Tenant, streams: str, argv: list[str], errors: list[str]
) -> None:
    phone_id = tenant.add_phone("ann", name=LONG_AGO)
    with redirected(tenant, streams, *argv, "ann", "nobody") as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (1, "")
    assert tenant.phone(phone_id) is None
    check_quiet_end(err, *errors)


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_a_usage_error_that_nobody_hears(tenant: Tenant, streams: str) -> None:
    with redirected(tenant, streams, "--grace-period=soon") as child:
        assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 2


# The secret key


@pytest.mark.parametrize(
    ("argv", "fault", "status"),
    [
        ([], "", 0),
        (["--json"], "", 0),
        (["--dry-run"], "", 0),
        (["--dry-run", "--json"], "", 0),
        (["--no-force"], "", 0),
        (["ann", "nobody"], "", 1),
        (["-s", SKEY[::-1]], "", 1),
        (["-i", "DI" + SKEY[2:20]], "", 1),
        ([], "status", 0),
        ([], "junk", 0),
        ([], "reset_after", 0),
        (["-g", "soon"], "", 2),
        ([f"--skye={SKEY}"], "", 2),
        ([f"--skey={SKEY[:20]} {SKEY[20:]}"], "", 2),
        (["--skey", SKEY, "--skey-file", SKEY], "", 2),
        ([SKEY, "--host", SKEY + "!"], "", 2),
    ],
)
def test_the_secret_key_is_in_no_output(
    tenant: Tenant, run: Run, argv: list[str], fault: str, status: int
) -> None:
    add_outcomes(tenant)
    if fault:
        tenant.fail(fault, times=2)
    result = run("-vvv", *argv, stdin="y\nn\na\n")
    assert result.status == status
    shown = result.out + result.err
    assert shown
    for key in (SKEY, SKEY[::-1]):
        pieces = {key[start : start + 6] for start in range(len(key) - 5)}
        assert [piece for piece in pieces if piece in shown] == []
