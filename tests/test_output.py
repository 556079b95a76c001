"""What is told where: the log, the summary, progress; hostile text, broken streams."""

from __future__ import annotations

import os
import re

import pytest

from tests.simulation.tenant import SKEY, Request, Tenant
from tests.support import (
    DRY_RUN,
    LONG_AGO,
    SCOPE,
    SET_UP,
    SHORT_GRACE,
    STUCK,
    Result,
    Run,
    Terminal,
    add_outcomes,
    redirected,
    start,
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


def test_v_tells_each_action_and_a_summary(tenant: Tenant, run: Run) -> None:
    """The harmless actions first."""
    ids = add_outcomes(tenant)
    result = run("-v", "--untag")
    assert (result.status, result.out) == (0, "")
    *actions, summary = result.err.splitlines()
    about_each = [
        ("stamped", "+15550000000", "ann", ""),
        ("gone", "+15550000006", "gus", ""),
        ("untagged", "+15550000004", "eve", ""),
        ("deleted", "+15550000001", "bob", ""),
        ("changed", "+15550000005", "fay", ": set up since its tag"),
    ]
    assert len(actions) == len(about_each)
    for line, (event, number, user, reason) in zip(actions, about_each):
        text = f"{event}: phone {number} of {user} ({ids[event]}){reason}"
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
    told = re.findall(LOG + r"request (\d+): (.+)$", log, re.MULTILINE)
    numbers = [int(number) for number, _ in told]
    assert numbers == [*range(1, len(tenant.requests) + 1)]
    requests = [text for _, text in told]
    assert requests[0] == "users from 0"
    assert f"GET {ids['deleted']}" in requests
    path = f"/admin/v1/phones/{ids['deleted']}"
    assert len([each for each in requests if each.startswith(f"DELETE {path}")]) == 2
    assert re.findall(r" this try failed: Duo answers (\d+) ", log) == ["503"]
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
            "2 users, 3 phones, 3 in limbo: 1 stamped, 1 kept, 1 due and left;"
            " 6 requests",
            0,
        ),
        (
            "nobody ann",
            "1 user, 1 phone, 1 in limbo: 1 stamped, 1 unknown; 4 requests",
            1,
        ),
        ("nobody", "nothing was read: 1 unknown; 1 request", 1),
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


def test_a_shared_phone_is_counted_once(tenant: Tenant, run: Run) -> None:
    """In limbo, kept or set up."""
    tenant.add_phone("ann", "bob", "cleo")
    tenant.add_phone("ann", "bob", name="Their own")
    tenant.add_phone("bob", "cleo", **SET_UP)
    result = run("-v")
    assert " 3 users, 3 phones, 2 in limbo: " in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "pages_read", "summary"),
    [
        ("--dry-run", 0, "nothing was read: 1 failed; 1 request"),
        ("-v", 1, "300 users, 2 phones, 2 in limbo: 1 failed; 2 requests"),
    ],
)
def test_the_summary_of_a_walk_that_fails(
    tenant: Tenant, run: Run, argv: str, pages_read: int, summary: str
) -> None:
    """It tells what was seen; a dry run tells it where the table would be."""
    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob")
    for number in range(300):
        tenant.add_user(f"u{number}")
    tenant.fail("status", status=400, path="users", after=pages_read, times=None)
    result = run(argv)
    *_, told = (result.err + result.out).splitlines()
    assert re.fullmatch(f"({LOG})?{summary}{SECONDS}; exit status 1", told)
    assert " error: Duo answers 400 " in result.err
    assert result.status == 1
    assert writes(tenant) == []


# At a terminal


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


def test_the_progress_of_a_long_walk(tenant: Tenant) -> None:
    """Several runs at a time, since each has to take more than a second."""
    tenant.add_phone("ann")
    tenant.populate(1200)
    tenant.slow(row=0.6 / 300)
    progress = re.compile(r"\d+ of 1201 users")
    asking = Terminal()
    table = Terminal()
    with (
        start(tenant, "--no-force", stderr=asking.theirs) as asking_child,
        start(tenant, "-n", stdout=table.theirs, stderr=table.theirs) as table_child,
        start(tenant, "-n", "-v") as child,
    ):
        asking_child.communicate("n\n", timeout=60)
        table_child.communicate(timeout=60)
        ends = child.communicate(timeout=60)
    assert not progress.search("".join(ends)), "it is for terminals"

    raw = asking.read()
    assert len(progress.findall(raw)) > 1
    before, after = raw.split(f"{tenant.host}: ")
    assert displayed(f"{before}|") == ["|"], "the prompts come on an empty line"
    assert not progress.search(after)
    *_, summary = displayed(raw)
    (seconds,) = re.findall(r" requests, ([0-9.]+) s$", summary)
    assert 1 < float(seconds) < 60

    raw = table.read()
    assert progress.search(raw)
    *begin, head, row, totals = displayed(raw)
    assert begin == [DRY_RUN, f"{tenant.host}: {SCOPE}", SHORT_GRACE]
    assert head.startswith("A RUN WOULD")
    assert re.fullmatch(r"stamp: not tagged yet +never +\+15550000000 +ann", row)
    assert totals.startswith("1201 users, ")


def test_the_progress_of_the_writes(tenant: Tenant) -> None:
    """Of the phones that are written to; what is done is told without -v."""
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
    tenant.fail("status", status=429, path="users$", times=3)
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
            LOG + rf"|\d+ of \d+: |localhost:\d+: {SCOPE}|y: ",
            id="prompts",
        ),
        pytest.param(
            "--dry-run -v",
            rf"{DRY_RUN}|localhost:\d+: |{SHORT_GRACE}|A RUN|\w+: |\d+ users, ",
            id="table",
        ),
        pytest.param("--json -v", '{"event"|' + LOG, id="journal"),
        pytest.param("--json --dry-run", '{"event"', id="journal of a dry run"),
    ],
)
def test_hostile_text_is_escaped(
    tenant: Tenant, run: Run, argv: str, begin: str
) -> None:
    names = [f"who{text}" for text in [*HOSTILE, "|".join(HOSTILE)]]
    for name in names:
        tenant.add_phone(name, number=name)
        tenant.add_phone(name, number=f"+1{name}", name=STUCK)
        tenant.add_phone(name, name=f"my {name}")
    result = run(*argv.split(), stdin="\x1b[31m\r\u202e\nn\na\n" + len(names) * "n\n")
    assert result.status == 0
    check_harmless(result, begin)
    if "--json" in argv:
        told = [user for each in result.events[:-1] for user in each["users"]]
        assert {*told} == {*names}, "whoever reads the journal gets the text itself"


def test_duos_messages_are_escaped(tenant: Tenant, run: Run) -> None:
    for text in HOSTILE:
        tenant.add_phone("ann")
        tenant.fail("status", path="phones", status=400, message=f"sorry {text}")
    result = run("--json", "-vv")
    assert result.outcomes == len(HOSTILE) * ["failed"]
    check_harmless(result, '{"event"|' + LOG)


def test_a_name_that_was_asked_for_is_escaped(run: Run) -> None:
    names = [f"who{text}" for text in HOSTILE]
    result = run("--json", *names)
    assert [each["user"] for each in result.events[:-1]] == names
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


@pytest.mark.parametrize("argv", [["--json"], ["-n"], ["-n", "--json"]], ids=" ".join)
@pytest.mark.parametrize(
    ("streams", "error"),
    [
        (">&-", " error: standard output cannot be written: it is closed\n"),
        (
            ">/dev/full",
            " error: standard output cannot be written: No space left on device\n",
        ),
        (">&- 2>&-", ""),
    ],
)
def test_what_was_asked_for_cannot_be_written(
    tenant: Tenant, streams: str, error: str, argv: list[str]
) -> None:
    """It is told once, and nothing is deleted without its record."""
    tenant.add_phone("ann", name=LONG_AGO)
    with redirected(tenant, streams, *argv) as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert err.count(" error: ") == error.count(" error: ")
    assert error in err
    assert "Traceback" not in err
    assert writes(tenant) == []


def test_a_table_whose_reader_leaves(tenant: Tenant) -> None:
    """As head does: here, after the first three lines. It is told in one line."""
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
    assert shown == [f"{DRY_RUN}\n{tenant.host}: {SCOPE}\n{SHORT_GRACE}\n"]
    text = "error: the reader of standard output has gone\n"
    assert re.fullmatch(LOG + text, err)


def test_a_journal_that_cannot_take_its_last_line(tenant: Tenant) -> None:
    tenant.add_user("ann")
    with redirected(tenant, ">/dev/full", "-v", "--json") as child:
        _, err = child.communicate(timeout=30)
    error, summary = err.splitlines()
    assert child.returncode == 1
    assert " error: standard output cannot be written: " in error
    assert summary.endswith("; exit status 1")


@pytest.mark.parametrize(
    ("streams", "argv", "status"),
    [
        (">&-", [], 0),
        ("2>&-", ["-vv"], 0),
        ("2>/dev/full", ["-vv", "ann", "nobody"], 1),
        ("<&- >&- 2>&-", ["-vv", "ann", "nobody"], 1),
        ("2>&-", ["--grace-period=soon"], 2),
        ("2>/dev/full", ["--grace-period=soon"], 2),
    ],
)
def test_a_run_needs_no_stream(
    tenant: Tenant, streams: str, argv: list[str], status: int
) -> None:
    tenant.add_phone("ann", name=LONG_AGO)
    with redirected(tenant, streams, *argv) as child:
        assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == status
    assert (tenant.phones == {}) is (status < 2)


# The secret key


@pytest.mark.parametrize(
    ("argv", "fault", "status"),
    [
        (["--json"], "status", 0),
        (["--dry-run"], "truncate", 0),
        (["--no-force"], "reset_after", 0),
        (["ann", "nobody"], "", 1),
        (["-s", SKEY[::-1]], "", 1),
        (["-i", "DI" + SKEY[2:20]], "", 1),
    ],
)
def test_the_secret_key_is_in_no_output(
    tenant: Tenant, run: Run, argv: list[str], fault: str, status: int
) -> None:
    add_outcomes(tenant)
    if fault:
        tenant.fail(fault, times=2)
    result = run("-vvv", *argv, stdin="y\nn\na\na\n")
    assert result.status == status
    shown = result.out + result.err
    assert shown
    for key in (SKEY, SKEY[::-1]):
        pieces = {key[start : start + 6] for start in range(len(key) - 5)}
        assert [piece for piece in pieces if piece in shown] == []
