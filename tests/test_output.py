"""What is told where: the log, the summary, progress; hostile text, broken streams."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import sys
import threading
import time
from collections import Counter

import pytest

from tests.simulation.tenant import SKEY, Record, Request, Tenant, cast
from tests.support import (
    STUCK,
    Result,
    Run,
    add_outcomes,
    process,
    redirected,
    start,
    threads_left_behind,
    wait_for_threads,
    writes,
)

LOG = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "

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


def check_actions(log: str, ids: dict[str, str]) -> list[str]:
    """Find a line for each action in the order of the walk; give the lines after."""
    lines = log.splitlines()
    for event in ("stamped", "deleted", "untagged", "changed", "gone"):
        line = lines.pop(0)
        about = rf"(ann|bob|eve|fay|gus)'s phone \+1555000000\d \({ids[event]}\)"
        assert re.fullmatch(LOG + f"{event}: {about}", line)
    return lines


def check_summary(line: str, requests: int) -> None:
    text = (
        "7 users, 7 phones, 6 in limbo: 1 stamped, 1 deleted, 1 untagged, 1 changed, "
        f"1 gone, 1 waiting, 1 kept; {requests} requests, "
    )
    assert re.fullmatch(LOG + re.escape(text) + r"\d+\.\d s", line)


def test_v_tells_each_action_and_a_summary(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    result = run("-v", "--untag")
    assert (result.status, result.out) == (0, "")
    (summary,) = check_actions(result.err, ids)
    check_summary(summary, len(tenant.requests))


def test_vv_tells_each_request_too(tenant: Tenant, run: Run) -> None:
    ids = add_outcomes(tenant)
    tenant.fail("status", method="DELETE")  # it is tried again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duo_phone_cleanup.PAUSE", 0)
        log = run("-vv", "--untag").err.splitlines()
    told = [
        re.fullmatch(
            LOG + r"(\w+) (/admin/v1/\w+(?:/\w+)?)\S*: (\d+) after (\d\.\d\d) s", x
        )
        for x in log
    ]
    answers = [(each.method, each.path, str(each.status)) for each in tenant.requests]
    # The next phone is read while this one is written: in another order, perhaps.
    assert Counter(match.groups()[:3] for match in told if match) == Counter(answers)
    assert min(float(match[4]) for match in told if match) < 0.9
    assert ("DELETE", f"/admin/v1/phones/{ids['deleted']}", "503") in answers
    failed = re.findall(r" this try: Duo answers (\d+) ", "\n".join(log))
    assert sorted(failed) == ["404", "503"], "one has gone, one is tried again"
    for event in ("waiting", "named"):
        assert [x for x in log if f" {event}: " in x and ids[event] in x]


# The summary


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("ann", "1 user, 1 phone, 1 in limbo: 1 stamped; 3 requests"),
        ("bob", "1 user, 2 phones, 2 in limbo: 1 deleted, 1 kept; 3 requests"),
        ("cleo", "1 user, 0 phones, 0 in limbo; 1 request"),
        ("ann bob --max-deletions 0", "2 users, 3 phones, 3 in limbo: 1 stamped, 1 k"),
        ("nobody ann", "1 user, 1 phone, 1 in limbo: 1 stamped, 1 unknown; 3 re"),
        ("nobody", "nothing was read: 1 unknown; 1 request"),
        ("-g 60 bob", "1 user, 2 phones, 2 in limbo: 1 deleted, 1 kept; 3 requests"),
        ("-g 61 bob", "1 user, 2 phones, 2 in limbo: 1 waiting, 1 kept; 1 request"),
    ],
)
def test_the_summary_is_a_sentence(
    tenant: Tenant, run: Run, argv: str, text: str
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=STUCK)
    tenant.add_phone("bob", name="Bob's")
    tenant.add_user("cleo")
    result = run("-v", *argv.split())
    line = result.err.splitlines()[-1]
    status = "; exit status 1" * ("nobody" in argv)
    assert re.fullmatch(
        LOG + re.escape(text) + rf"[^;]*(; \d requests?)?, \d+\.\d s{status}", line
    )
    assert result.status == bool(status)


@pytest.mark.parametrize(
    ("page", "argv", "summary"),
    [
        (1, [], "nothing was read: 1 failed; 1 request, "),
        (1, ["-v"], "nothing was read: 1 failed; 1 request, "),
        (2, [], "300 users, 2 phones, 2 in limbo: 1 failed; 2 requests, "),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_the_summary_of_a_walk_that_fails(
    *,
    tenant: Tenant,
    run: Run,
    page: int,
    argv: list[str],
    summary: str,
    dry_run: bool,
) -> None:
    """It tells what was seen; where nothing was, it is no row of zeros."""
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob")
    for number in range(300):
        tenant.add_user(f"u{number}")
    tenant.fail("status", status=400, path="users", after=page - 1, times=None)
    result = run(*argv, *["-n"] * dry_run)
    assert result.status == 1
    assert writes(tenant) == []
    error, *told = result.err.splitlines()
    assert " error: Duo answers 400 " in error
    begin = LOG
    if dry_run:  # it tells that where the table would be
        assert told == []
        _, *told = result.out.splitlines()
        begin = ""
    (line,) = told
    assert re.fullmatch(begin + re.escape(summary) + r"\d+\.\d s; exit status 1", line)


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


class Terminal:
    """A terminal for a program to write to: `theirs` is its end."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()

    def read(self) -> str:
        """What was written, when all programs have closed it."""
        os.close(self.theirs)
        parts = []
        with contextlib.suppress(OSError):  # that is how it ends
            while True:
                parts.append(os.read(self.ours, 65536))
        os.close(self.ours)
        return b"".join(parts).decode()

    def screen(self) -> list[str]:
        """What it shows in the end."""
        return displayed(self.read())


def answered(terminal: Terminal, answer: bytes) -> str:
    """Wait for the question and answer it; give what was written before."""
    written = b""
    while b"? [y/n/a/q] " not in written:
        written += os.read(terminal.ours, 65536)
    os.write(terminal.ours, answer)
    return written.decode()


def displayed(text: str) -> list[str]:
    """The lines that a terminal shows, trailing blanks apart."""
    lines, column = [""], 0
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
    stamped, summary = log.screen()
    assert " stamped: " in stamped
    assert " 2 users, 2 phones, 2 in limbo: 1 stamped, 1 kept; 3 requests, " in summary
    assert (child.returncode, bool(out)) == (0, "--json" in argv)


def test_the_progress_of_a_long_walk(tenant: Tenant) -> None:
    """Several runs at a time, since each has to take more than a second."""
    tenant.add_phone("ann")
    tenant.populate(1200)
    tenant.slow(row=0.6 / 300)
    progress = re.compile(r"\d+ of 1201 users")
    plain, asking, table, aside, journal = (Terminal() for _ in range(5))
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
        with child:
            ends[name] = child.communicate("n\n" if name == "asking" else None, 60)
    assert {
        name: child.returncode for name, child in children.items()
    } == dict.fromkeys(children, 0)

    raw = asking.read()
    assert len(progress.findall(raw)) > 1
    before, after = raw.split("localhost:")
    assert "\n" not in before
    assert displayed(f"{before}|") == ["|"], "the prompts come on an empty line"
    assert not progress.search(after)
    _, question, declined, summary = displayed(raw)
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
    first, head, row, totals = displayed(raw)
    assert first.startswith("localhost: ")
    assert head.startswith("USERS")
    assert re.fullmatch(r"ann +\+15550000000 +stamp: not tagged yet", row)
    assert totals.startswith("1201 users, ")

    raw = aside.read()
    assert progress.search(raw)
    assert displayed(raw) == []
    assert not progress.search(ends["aside"][0])
    assert len(ends["aside"][0].splitlines()) == 4

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
    ours = [Terminal(), Terminal()]
    with (
        start(tenant, *asked, stderr=ours[0].theirs) as child,
        start(tenant, *asked, "U249", stderr=ours[1].theirs) as another,
    ):
        assert (child.wait(30), another.wait(30)) == (0, 0)
    for terminal, number in zip(ours, (250, 251)):
        shown = re.findall(r"(\d+) of (\d+) users", terminal.read())
        assert len(shown) >= 2
        assert {total for _, total in shown} == {str(number)}
        assert all(int(seen) <= number for seen, _ in shown)


def test_a_short_walk_shows_no_progress(tenant: Tenant) -> None:
    tenant.populate(40)
    terminal = Terminal()
    with start(tenant, stdout=terminal.theirs, stderr=terminal.theirs) as child:
        assert child.wait(30) == 0
    raw = terminal.read()
    assert "of 40" not in raw
    assert raw.count("\r") == raw.count("\n") == 1


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
            "--no-force", LOG + r"|\d+ of \d+: |localhost: |y: ", id="prompts"
        ),
        pytest.param(
            "--dry-run -v", "localhost: |USERS |who|[0-9]+ users, ", id="table"
        ),
        pytest.param("--json -v", '{"event"|' + LOG, id="journal"),
        pytest.param("--json --dry-run", '{"event"', id="journal of a dry run"),
    ],
)
def test_hostile_text_is_escaped(
    tenant: Tenant, run: Run, argv: str, begin: str
) -> None:
    names = [f"who{number}{text}" for number, text in enumerate([*HOSTILE, TEXT])]
    for number, name in enumerate(names):
        stuck = {"number": f"+1{name}", "name": STUCK}
        fields: list[Record] = [stuck, {"name": f"my {name}"}, {"number": name}]
        tenant.add_phone(name, **fields[number % 3])
    result = run(*argv.split(), stdin="\x1b[31m\r\u202e\n" + "n\n" * 9 + "a\n")
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
        ({"PYTHONIOENCODING": "ascii"}, "ascii", "zo\\xeb\\u6f22\\U0001f600"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", "zoë\\u6f22\\U0001f600"),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "ascii",
            "zo\\xeb\\u6f22\\U0001f600",
        ),
        ({"LC_ALL": "C"}, "utf-8", "zoë漢😀"),
    ],
    ids=["ascii", "latin-1", "C, strictly", "C"],
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


def check_quiet_end(err: str, *expected: str) -> None:
    """Check that no error of Python's comes out, and no more than one of these."""
    for text in ("Traceback", "Exception", "Error", "NoneType"):
        assert text not in err
    lines = [line for line in err.splitlines() if not re.search(r"; \d+ request", line)]
    assert len(lines) == len(expected), err
    for line, text in zip(lines, expected):
        assert " error: " in line
        assert text in line


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("first", ["stuck", "begun"])
def test_without_a_journal_nothing_more_is_written(
    tenant: Tenant, streams: str, first: str
) -> None:
    """A stamp is journaled when it is done: the first is the last."""
    names = ["1111111111", ""]
    for name in names if first == "stuck" else reversed(names):
        tenant.add_phone("ann", name=name)
    with redirected(tenant, f"{streams}", "--json") as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert len(writes(tenant)) == (first == "begun")
    check_quiet_end(err, *["standard output"] * ("2" not in streams))


@pytest.mark.parametrize("broken_at", ["DELETE", "POST"])
def test_a_journal_whose_reader_leaves(tenant: Tenant, broken_at: str) -> None:
    for number in range(4):
        tenant.add_phone("ann", name="" if number % 2 else "1111111111")
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
    assert writes(tenant)[-1].method == broken_at
    assert len(writes(tenant)) == (1 if broken_at == "DELETE" else 2)
    check_quiet_end(err, "standard output")
    assert " 1 failed; " in err, "it is counted"
    assert err.endswith("; exit status 1\n")


def test_a_journal_that_cannot_take_its_last_line(tenant: Tenant) -> None:
    tenant.add_user("ann")
    with redirected(tenant, ">/dev/full", "-v", "--json") as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    check_quiet_end(err, "standard output")
    assert "exit status 0" not in err


@pytest.mark.parametrize("argv", [["-n"], ["-n", "--json"]], ids=" ".join)
@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "| :"])
def test_a_dry_run_that_nobody_reads(
    tenant: Tenant, streams: str, argv: list[str]
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
    check_quiet_end(err, "standard output")
    # The first line of a table comes before anything is read.
    seen = "1 user, 1 phone, 1 in limbo: 1 to stamp, 1 failed; 1 request, "
    seen = seen if "--json" in argv else "nothing was read: 1 failed; 0 requests, "
    assert f" {seen}" in err, "where it can be read"


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
    ("streams", "users"),
    [
        (">&-", []),
        (">/dev/full", ["ann", "nobody"]),
        ("2>&-", []),
        ("2>&-", ["ann", "nobody"]),
        ("2>/dev/full", []),
        ("2>/dev/full", ["ann", "nobody"]),
        (">&- 2>&-", ["ann", "nobody"]),
        ("<&- >&- 2>&-", []),
    ],
)
def test_a_run_needs_no_stream(tenant: Tenant, streams: str, users: list[str]) -> None:
    phone_id = tenant.add_phone("ann", name="1111111111")
    with redirected(
        tenant, streams, "-vv" if "2" in streams else "-f", *users
    ) as child:
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (bool(users), "")
    assert tenant.phone(phone_id) is None
    check_quiet_end(err, *["nobody"] * (bool(users) and "2" not in streams))


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
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    fault: str,
    status: int,
) -> None:
    monkeypatch.setattr("duo_phone_cleanup.PAUSE", 0)
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
