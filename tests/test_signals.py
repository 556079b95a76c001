"""How a run ends that is told to: soon, with a summary and a status of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Record, Request, Tenant
from tests.support import (
    DRY_RUN,
    LONG_AGO,
    NOW,
    SCOPE,
    SHORT_GRACE,
    SIGNALS,
    STUCK,
    Number,
    Result,
    Run,
    handlers,
    start,
    when,
    write_methods,
    written_phones,
)

HUP, INT, TERM = SIGNALS
CONT = signal.SIGCONT


@pytest.fixture
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage not write its data as a process ends: it has two seconds."""
    for name in [each for each in os.environ if each.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


soon = pytest.mark.usefixtures("_unmeasured")


@contextlib.contextmanager
def running(
    tenant: Tenant, *argv: str, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start the program; where a test fails, nobody waits for its end."""
    with start(tenant, *argv, **options) as child:
        try:
            yield child
        finally:
            child.kill()


def end(child: subprocess.Popen[str], *numbers: Number) -> Result:
    """Send signals to a run of --json, and see that it ends as it should.

    A run that takes more than two seconds for that tells no summary.
    """
    for number in numbers:
        child.send_signal(number)
    out, err = child.communicate(timeout=10)
    result = Result(child.returncode, out, err)
    # Of signals that come together, Python takes the one of the lowest number first.
    assert result.status in [128 + number for number in numbers]
    assert result.summary["exit_status"] == result.status
    told, summary = err.splitlines()[-2:]
    assert told.endswith(f" error: stopped by {Number(result.status - 128).name}")
    assert summary.endswith(f"; exit status {result.status}")
    assert "Traceback" not in err
    return result


def read_until(text: str, read: Callable[[], str]) -> None:
    """Read what a run writes up to a text."""
    told = ""
    while text not in told:
        more = read()
        assert more, f"{told!r} has no {text!r}"
        told += more


@contextlib.contextmanager
def blocked(*numbers: Number) -> Iterator[None]:
    """Block signals in this thread, and in a process that is started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# While it waits


class Silence(NamedTuple):
    """From when on nothing is answered."""

    name: str
    fault: Record
    number: Number
    told: list[str]
    """A write without an answer fails: it may still be carried out."""


STAMPED = ["stamped", "stamped"]
SILENCES = [
    Silence("the walk", {"path": "users$"}, HUP, []),
    Silence("a time limit that somebody has set", {}, signal.SIGALRM, []),
    Silence("a second page", {"path": "users$", "after": 1}, INT, []),
    Silence("a read", {"method": "GET", "path": "phones/"}, TERM, []),
    Silence("a stamp", {"method": "POST", "after": 1}, INT, ["stamped", "failed"]),
    Silence("a deletion", {"method": "DELETE"}, HUP, [*STAMPED, "deleting", "failed"]),
]


@soon
@pytest.mark.parametrize("silence", SILENCES, ids=lambda each: each.name)
def test_while_the_server_is_silent(tenant: Tenant, silence: Silence) -> None:
    for name in ("ann", "bob"):
        tenant.add_phone(name)
    tenant.add_phone("cleo", name=LONG_AGO)
    tenant.populate(300)
    fault = tenant.fail("hang", times=None, **silence.fault)
    with running(tenant, "--json") as child:
        assert fault.held.wait(20)
        result = end(child, silence.number)
    assert result.kinds == silence.told


@pytest.mark.parametrize(
    ("status", "path", "tries"), [(503, "/users", 1), (429, "/DP1", 2)]
)
def test_in_a_pause(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    path: str,
    tries: int,
) -> None:
    """It takes twenty seconds and more, but is over at once; no request follows."""
    monkeypatch.setattr(duo_phone_cleanup, "RETRY_PAUSE_SECONDS", 30)
    tenant.add_phone("ann", phone_id="DP1")
    fault = tenant.fail("status", status=status, path=path, times=None)
    later = threading.Timer(0.5, signal.raise_signal, [TERM])
    when(tenant, "GET", path, later.start, count=tries)
    began = time.monotonic()
    assert run("--json").status == 143
    assert time.monotonic() - began < 15
    assert fault.hits == tries
    later.join()


@soon
def test_at_a_prompt(tenant: Tenant) -> None:
    """A hang-up: the input ends, too. What was agreed to before is done and told."""
    for name in ("ann", "bob"):
        tenant.add_phone(name)
    with running(tenant, "--json", "--no-force") as child:
        stdin = child.stdin
        stderr = child.stderr
        assert stdin
        assert stderr
        read_until("[y/n/a/q]", lambda: stderr.read(1))  # no line ends there
        stdin.write("y\n")
        stdin.flush()
        read_until("[y/n/a/q]", lambda: stderr.read(1))
        result = end(child, HUP)
    assert result.kinds == ["stamped"]
    assert write_methods(tenant) == ["POST"]


# More than one


@soon
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([TERM, TERM, CONT], id="GNU timeout"),
        pytest.param([TERM, HUP, CONT], id="systemd"),
    ],
)
@pytest.mark.parametrize("suspended", [False, True])
def test_signals_in_quick_succession(
    tenant: Tenant, numbers: list[Number], suspended: bool
) -> None:
    tenant.populate(300 * 5)
    tenant.fail("hang", times=None, after=1)
    with running(tenant, "--json") as child:
        tenant.wait_for(5)
        if suspended:  # all threads wake at once
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        end(child, *numbers)


@soon
def test_signals_that_do_not_stop(tenant: Tenant) -> None:
    """As from a person who holds Ctrl-C down: up to the very end of the process."""
    fault = tenant.fail("hang", times=None)
    with running(tenant, "--json") as child:
        assert fault.held.wait(20)
        deadline = time.monotonic() + 5
        while child.poll() is None and time.monotonic() < deadline:
            child.send_signal(INT)
            time.sleep(0.0005)
        end(child, INT)


# As it was started


@pytest.mark.parametrize("number", [HUP, INT])
def test_a_signal_that_is_ignored_stays_ignored(tenant: Tenant, number: Number) -> None:
    """As nohup, or a shell for what runs in the background, starts a process."""
    fault = tenant.fail("hang", times=None)
    with handlers(signal.SIG_IGN, number), running(tenant) as child:
        assert fault.held.wait(20)
        child.send_signal(number)
        fault.released.set()
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (0, "", "")


@soon
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_blocked_is_taken_all_the_same(
    tenant: Tenant, number: Number
) -> None:
    """Whoever starts the program may have blocked it: it stays so over exec."""
    fault = tenant.fail("hang", times=None)
    with blocked(number), running(tenant, "--json") as child:
        assert fault.held.wait(20)
        end(child, number)


# What is stuck is given up after two seconds


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_while_the_settings_are_read(tenant: Tenant, tmp_path: Path) -> None:
    """Here the key, from a pipe that nobody writes to; SIGALRM was blocked."""
    pipe = tmp_path / "key"
    os.mkfifo(pipe, 0o600)
    with (
        blocked(signal.SIGALRM),
        running(tenant, "--skey-file", str(pipe), env={"DUO_SKEY": ""}) as child,
    ):
        writer = os.open(pipe, os.O_WRONLY)  # waits until the run has opened it
        state = Path(f"/proc/{child.pid}/status")
        # Python does not notice a signal that comes just before the read begins.
        while "(sleeping)" not in state.read_text():
            time.sleep(0.01)
        child.send_signal(TERM)
        out, err = child.communicate(timeout=10)
        os.close(writer)
    assert (child.returncode, out, err) == (143, "", "")
    assert tenant.requests == []


@pytest.mark.parametrize(("option", "output"), [("--json", "stdout"), ("-v", "stderr")])
def test_an_output_that_nobody_reads(
    tenant: Tenant, tmp_path: Path, option: str, output: str
) -> None:
    """The file of the journal is written first: it has all that was done."""
    journal = tmp_path / "journal"
    for name in ("ann", "bob"):
        tenant.add_phone(name)
    reading, writing = os.pipe()
    fill(writing)
    streams = {output: writing}
    with running(tenant, "--journal", str(journal), option, **streams) as child:
        tenant.wait_for(method="POST")
        began = time.monotonic()
        child.send_signal(TERM)
        child.send_signal(TERM)
        assert child.wait(timeout=10) == 143
        assert 1.9 < time.monotonic() - began < 5
    os.close(reading)
    os.close(writing)
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    phones = [each["phone_id"] for each in told if "phone_id" in each]
    assert phones == written_phones(tenant)


def fill(pipe: int) -> None:
    """Write as much to a pipe as it holds."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b".")
    os.set_blocking(pipe, True)


# No handler raises: what has been done is told


class Signaled(io.StringIO):
    """An output during whose first line with this word signals come."""

    def __init__(self, word: str, *numbers: Number) -> None:
        super().__init__()
        self.word = word
        self.numbers = numbers

    def write(self, text: str) -> int:
        if self.word in text:
            self.word = "nothing more"
            for number in self.numbers:
                signal.raise_signal(number)
        return super().write(text)


def test_the_first_signal_counts(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant.add_phone("ann")
    monkeypatch.setattr(sys, "stdout", Signaled('"stamped"', TERM, HUP))
    result = run("--json")
    assert result.status == 143
    assert " error: stopped by SIGTERM\n" in result.err


@pytest.mark.parametrize(
    ("answered", "told"),
    [(True, ["deleting", "deleted"]), (False, ["deleting", "failed"])],
)
def test_a_signal_while_a_write_is_under_way(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    answered: bool,
    told: list[str],
) -> None:
    """It gets a moment to be answered."""
    main = threading.get_ident()

    def tell(request: Request) -> None:
        if request.method == "DELETE":  # the tenant's threads would take it, too
            signal.pthread_kill(main, TERM)

    if answered:
        monkeypatch.setattr(duo_phone_cleanup, "ANSWER_SECONDS", 1.5)
        tenant.slow(request=0.3)
    else:
        tenant.fail("hang", method="DELETE")
    tenant.add_phone("ann", name=STUCK)
    tenant.on_request(tell)
    result = run("--json")
    assert (result.status, result.kinds) == (143, told)


@pytest.mark.parametrize(
    ("stream", "word", "methods"),
    [
        ("stderr", ": users from 0", []),
        ("stderr", ": GET DP", ["GET"]),
        ("stdout", '"deleting"', ["GET", "GET"]),
        ("stderr", ": DELETE ", ["GET", "GET"]),
    ],
)
def test_no_request_begins_after_a_signal(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
    word: str,
    methods: list[str],
) -> None:
    """It comes while a line is told just before one."""
    tenant.add_phone("ann", name=STUCK)
    monkeypatch.setattr(sys, stream, Signaled(word, TERM))
    assert run("--json", "-vv").status == 143
    assert [request.method for request in tenant.requests] == methods


def test_no_row_of_a_table_is_told_after_a_signal(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann")

    def clock() -> float:  # the walk asks for the time
        signal.raise_signal(TERM)
        return NOW

    result = run("--dry-run", now=clock)
    dry_run, scope, short_grace, summary = result.out.splitlines()
    assert (dry_run, short_grace) == (DRY_RUN, SHORT_GRACE)
    assert scope == f"{tenant.host}: {SCOPE}"
    assert summary.endswith("; exit status 143")
    assert result.status == 143
