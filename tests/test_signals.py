"""How a run ends that is told to: soon, with a summary and a status of its own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Record, Request, Tenant
from tests.support import (
    HOUR,
    NOW,
    SCOPE,
    SCRIPT,
    SHORT_GRACE,
    SIGNALS,
    STUCK,
    Number,
    Result,
    Run,
    clean_environment,
    handlers,
    start,
    threads_left_behind,
    wait_for_threads,
    written_phones,
)

HUP, INT, TERM = SIGNALS


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage not write its data as a process ends: here that is timed."""
    for name in [each for each in os.environ if each.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


@contextlib.contextmanager
def running(
    tenant: Tenant, *argv: str, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start the program; where a test fails, nobody waits for its end."""
    with start(tenant, "--json", *argv, **options) as child:
        try:
            yield child
        finally:
            child.kill()


def end(child: subprocess.Popen[str], *numbers: Number, terminal: int = -1) -> Result:
    """Send signals to a run, and see that it ends as it should."""
    began = time.monotonic()
    for number in numbers:
        child.send_signal(number)
    out, err = child.communicate(timeout=10)
    took = time.monotonic() - began
    if terminal >= 0:
        err = ""
        while " request" not in err and select.select([terminal], [], [], 5)[0]:
            err += os.read(terminal, 100_000).decode()
    result = Result(child.returncode, out, err)
    assert result.status in [128 + number for number in numbers]
    assert took < 1
    assert "Traceback" not in err
    assert " request" in err.splitlines()[-1]
    assert result.summary["exit_status"] == result.status
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


class Silence(NamedTuple):
    """From when on nothing is answered."""

    name: str
    fault: Record
    """The first request without an answer."""
    awaited: Record
    """The request that is waited for before the signal is sent."""
    done: list[str]
    """What has been done by then."""


READ = {"method": "GET", "path": "phones/"}
WRITE = {"method": "POST", "path": "phones/"}
DELETION = {"method": "DELETE"}
THE_WALK = Silence("the walk", {"path": "users$"}, {"path": "users$"}, [])
A_SECOND_PAGE = Silence(
    "a second page",
    {"path": "users$", "after": 1},
    {"path": "users$", "count": 2},
    [],
)
THE_FIRST_READ = Silence("the first read", READ, READ, [])
ANOTHER_READ = Silence(
    "another read", {"method": "GET", "path": "phones/DPBOB"}, WRITE, ["stamped"]
)
# A write that has no answer by then fails: it may still be carried out.
THE_DELETION = Silence(
    "the deletion",
    DELETION,
    DELETION,
    ["stamped", "deleting", "failed"],
)
ANOTHER_STAMP = Silence(
    "another stamp",
    {**WRITE, "after": 1},
    {**WRITE, "count": 2},
    ["stamped", "deleting", "deleted", "failed"],
)


@pytest.mark.parametrize(
    ("silence", "number"),
    [
        (THE_WALK, HUP),
        (THE_WALK, INT),
        (THE_WALK, TERM),
        (A_SECOND_PAGE, TERM),
        (THE_FIRST_READ, INT),
        (ANOTHER_READ, TERM),
        (THE_DELETION, HUP),
        (ANOTHER_STAMP, TERM),
    ],
    ids=lambda value: value.name,
)
def test_while_the_server_is_silent(
    tenant: Tenant, silence: Silence, number: Number
) -> None:
    tenant.add_phone("ann")
    old = str(int(time.time()) - HOUR)
    tenant.add_phone("bob", name=old, phone_id="DPBOB")
    tenant.add_phone("cleo")
    tenant.populate(300)
    tenant.fail("hang", times=None, **silence.fault)
    with running(tenant) as child:
        tenant.wait_for(**silence.awaited)
        result = end(child, number)
    assert result.kinds == silence.done
    for event in silence.done:
        assert result.summary[event] == 1


@pytest.mark.parametrize(
    ("status", "path", "number"),
    [
        (503, "users$", INT),
        (503, "phones/", TERM),
        (429, "users$", TERM),
        (429, "phones/", HUP),
    ],
)
def test_in_a_pause(tenant: Tenant, status: int, path: str, number: Number) -> None:
    tenant.add_phone("ann")
    tenant.fail("status", status=status, path=path, times=None)
    with running(tenant, "-vv") as child:
        assert child.stderr
        read_until(f"Duo answers {status}", child.stderr.readline)
        end(child, number)
    assert len([each for each in tenant.requests if each.status == status]) == 1


@pytest.mark.parametrize("number", [INT, HUP])
def test_at_an_open_prompt(tenant: Tenant, number: Number) -> None:
    for name in ("ann", "bob"):
        tenant.add_phone(name)
    master, slave = pty.openpty()
    try:
        with running(tenant, "--no-force", stdin=slave, stderr=slave) as child:
            read_until("[y/n/a/q]", lambda: os.read(master, 1000).decode())
            os.write(master, b"y\n")
            tenant.wait_for(method="POST")
            read_until("[y/n/a/q]", lambda: os.read(master, 1000).decode())
            result = end(child, number, terminal=master)
    finally:
        os.close(master)
        os.close(slave)
    assert result.kinds == ["stamped"]
    assert [request.method for request in tenant.requests].count("POST") == 1


def test_during_a_long_walk(tenant: Tenant) -> None:
    tenant.populate(300 * 12)
    tenant.slow(request=0.3)
    with running(tenant, "-vv") as child:
        tenant.wait_for(3)
        result = end(child, TERM)
    assert result.summary["users_seen"] < 300 * 12
    told = [line for line in result.err.splitlines() if "GET /" in line]
    assert all(": 200 after " in line for line in told)
    assert len(told) <= len(tenant.requests)


@pytest.mark.parametrize(
    "numbers", [(TERM, TERM), (TERM, HUP), (INT, TERM, HUP)], ids=str
)
def test_two_signals_in_quick_succession(
    tenant: Tenant, numbers: tuple[Number, ...]
) -> None:
    """As GNU timeout and systemd send them."""
    tenant.fail("hang", times=None)
    with running(tenant) as child:
        tenant.wait_for()
        end(child, *numbers)


@pytest.mark.parametrize("numbers", [(TERM,), (INT,), (TERM, HUP)], ids=str)
def test_a_run_that_is_suspended(tenant: Tenant, numbers: tuple[Number, ...]) -> None:
    """As from Ctrl-Z and kill: all threads wake at once, and any may be signalled."""
    tenant.populate(300 * 5)
    tenant.fail("hang", times=None, after=1)
    with running(tenant) as child:
        tenant.wait_for(5)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        end(child, *numbers, signal.SIGCONT)


def test_signals_that_do_not_stop(tenant: Tenant) -> None:
    """As from a person who holds Ctrl-C down: up to the very end of the process."""
    tenant.fail("hang", times=None)
    with running(tenant) as child:
        tenant.wait_for()
        deadline = time.monotonic() + 5
        while child.poll() is None and time.monotonic() < deadline:
            child.send_signal(INT)
            time.sleep(0.0005)
        end(child, INT)


@pytest.mark.parametrize("number", [HUP, INT])
def test_a_signal_that_is_ignored_stays_ignored(tenant: Tenant, number: Number) -> None:
    """As nohup, or a shell for what runs in the background, starts a process."""
    tenant.fail("hang", times=None)
    with handlers(signal.SIG_IGN, number), running(tenant) as child:
        tenant.wait_for()
        child.send_signal(number)
        tenant.release()
        out, err = child.communicate(timeout=10)
    result = Result(child.returncode, out, err)
    assert (result.status, result.err, result.kinds) == (0, "", [])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("argv", [[], ["--no-force"]], ids=["silence", "a prompt"])
def test_signals_that_whoever_started_the_program_has_blocked(
    tenant: Tenant, argv: list[str], number: Number
) -> None:
    """They stay blocked over exec; SIGALRM is what breaks off a wait."""
    tenant.add_phone("ann")
    if not argv:
        tenant.fail("hang", path="phones/", times=None)
    with blocked(*SIGNALS, signal.SIGALRM), running(tenant, *argv) as child:
        tenant.wait_for(path="phones/")
        if argv:
            stderr = child.stderr
            assert stderr
            # Not line by line: no line ends with the question.
            read_until("[y/n/a/q]", lambda: stderr.read(1))
        end(child, number)


def is_asleep(child: subprocess.Popen[str]) -> bool:
    """Tell whether a process waits for something. (It has but one thread.)"""
    _, _, fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")
    return fields.startswith("S")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_run(tenant: Tenant, tmp_path: Path, number: Number) -> None:
    """While the settings are read: here the key, from a pipe that nobody writes to."""
    pipe = tmp_path / "key"
    os.mkfifo(pipe, 0o600)
    with running(tenant, "--skey-file", str(pipe)) as child:
        writer = os.open(pipe, os.O_WRONLY)  # waits until the run has opened it
        # Python does not notice a signal that comes just before the read begins.
        while not is_asleep(child):
            time.sleep(0.01)
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
        os.close(writer)
    assert (child.returncode, out, err) == (128 + number, "", "")
    assert tenant.requests == []


def waiting(stream: IO[str]) -> int:
    """Give the number of bytes that a pipe holds."""
    (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    return int(count)


@pytest.mark.parametrize(
    ("argv", "output", "stderr"),
    [
        pytest.param(["--json", "-v"], "stdout", subprocess.PIPE, id="the journal"),
        pytest.param(["--dry-run", "-v"], "stdout", subprocess.PIPE, id="the table"),
        pytest.param(["-vv"], "stderr", subprocess.PIPE, id="the log"),
        pytest.param(["--json", "-v"], "stdout", subprocess.STDOUT, id="both"),
    ],
)
def test_a_signal_while_nobody_reads_the_output(
    tenant: Tenant, argv: list[str], output: str, stderr: int
) -> None:
    for number in range(900):  # more than a pipe holds
        tenant.add_phone(f"user-{number}", name="pinned by a person, for good" * 2)
    with start(tenant, *argv, bufsize=0, stderr=stderr) as child:
        try:
            stream = getattr(child, output)
            while waiting(stream) < 60_000:  # a pipe holds 64 KiB
                assert child.poll() is None
                time.sleep(0.01)
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=5) == 143
            assert time.monotonic() - began < 1.5
            if output == "stdout" and child.stderr:
                assert "error: stopped by SIGTERM" in child.stderr.read()
        except subprocess.TimeoutExpired:
            pytest.fail("the run goes on")
        finally:
            child.kill()


def test_an_alarm_set_by_whoever_started_the_program(tenant: Tenant) -> None:
    """As a time limit: it outlives exec, and ends a run as other signals do."""
    tenant.fail("hang", times=None)
    alarm = (
        "import os, signal, sys; signal.alarm(1); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", alarm, sys.executable, str(SCRIPT)],
        env=clean_environment(**tenant.environment()),
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        _, err = child.communicate(timeout=20)
    assert child.returncode == 128 + signal.SIGALRM
    assert "error: stopped by SIGALRM" in err


@pytest.mark.parametrize("numbers", [(TERM, HUP), (signal.SIGALRM,)], ids=str)
def test_signals_to_this_process(
    tenant: Tenant, run: Run, numbers: tuple[Number, ...]
) -> None:
    def tell(request: Request) -> None:
        for number in numbers:  # the tenant's threads, here, would take them, too
            signal.pthread_kill(main, number)

    main = threading.get_ident()
    tenant.on_request(tell)
    tenant.fail("hang", times=None)
    result = run("--json")
    assert result.status in [128 + number for number in numbers]
    assert result.summary["exit_status"] == result.status


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "users$"), ("GET", "phones/"), ("POST", "phones/"), ("DELETE", "phones/")],
)
def test_a_signal_just_before_a_wait(
    tenant: Tenant, run: Run, method: str, path: str
) -> None:
    """It does not interrupt the wait: here, since another thread takes it."""

    def tell(request: Request) -> None:
        if request.method == method and re.search(path, request.path):
            signal.raise_signal(TERM)

    tenant.add_phone("ann", name=STUCK)
    tenant.add_phone("bob")
    tenant.on_request(tell)
    tenant.fail("hang", method=method, path=path, times=None)
    began = time.monotonic()
    result = run("--json", "--timeout", "20")
    assert time.monotonic() - began < 5
    assert (result.status, result.summary["exit_status"]) == (143, 143)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("argv", "method", "path"),
    [
        pytest.param([], "GET", "users$", id="listing"),
        pytest.param(["ann"], "GET", "users$", id="look-up"),
        pytest.param([], "GET", "phones/", id="read"),
        pytest.param([], "POST", "phones/", id="write"),
    ],
)
def test_a_signal_that_does_not_interrupt_a_pause(
    *,
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    method: str,
    path: str,
    status: int,
) -> None:
    """It comes when the pause has begun, and another thread takes it."""
    monkeypatch.setattr(duo_phone_cleanup, "RETRY_PAUSE_SECONDS", 30)
    later = threading.Timer(0.5, signal.raise_signal, [TERM])

    def tell(request: Request) -> None:
        if request.method == method and re.search(path, request.path):
            later.start()

    tenant.add_phone("ann")
    tenant.on_request(tell)
    tenant.fail("status", method=method, path=path, status=status)
    began = time.monotonic()
    result = run("--json", *argv)
    assert time.monotonic() - began < 5
    assert (result.status, result.summary["exit_status"]) == (143, 143)
    later.join()


class StalledStderr(io.StringIO):
    """Standard error that nobody reads, while the process is told to end."""

    def write(self, text: str) -> int:
        signal.raise_signal(TERM)
        threading.Event().wait(20)
        return len(text)


def test_a_signal_while_nobody_reads_a_usage_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", StalledStderr())
    assert run("-g", "soon").status == 143


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({}, ["stamped"]),
        ({"name": STUCK}, ["deleting", "deleted"]),
        ({"name": STUCK, "activated": True}, ["untagged"]),
    ],
    ids=["stamp", "delete", "untag"],
)
def test_a_write_is_in_the_journal_though_nobody_reads_the_log(
    tenant: Tenant,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    record: Record,
    told: list[str],
) -> None:
    """The run is stuck in the log's line about it."""
    phone = tenant.add_phone("ann", **record)
    tenant.add_phone("bob")
    monkeypatch.setattr(sys, "stderr", StalledStderr())
    result = run("-v", "--json", "--untag")
    assert written_phones(tenant) == [phone]
    assert result.kinds == told
    assert (result.status, result.summary["exit_status"]) == (143, 143)


def test_a_signal_while_nobody_reads_the_summary_in_the_log(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes too late to stop anything: the journal and the status agree."""
    tenant.add_user("ann")
    monkeypatch.setattr(sys, "stderr", StalledStderr())
    result = run("-v", "--json")
    assert (result.status, result.summary["exit_status"]) == (0, 0)


# The end of the output


class SignalledStdout(io.StringIO):
    """Standard output during whose last line the process is told to end."""

    def write(self, text: str) -> int:
        if '"summary"' in text:
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_a_signal_while_the_summary_is_told(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes too late to stop anything: the summary and the status agree."""
    tenant.add_phone("ann")
    stdout = SignalledStdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    status = run("--json").status
    stamped, summary = [json.loads(line) for line in stdout.getvalue().splitlines()]
    assert stamped["event"] == "stamped"
    assert summary["exit_status"] == 0
    assert status == 0


def test_no_row_of_a_table_is_told_after_the_summary(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal comes when the table is about to be told, and it takes long."""
    tenant.add_phone("ann")
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    looks = iter([False, True])  # the walk asks for the time, too

    def clock() -> float:
        if next(looks, False):
            signal.raise_signal(signal.SIGTERM)
            threading.Event().wait(20)  # it is broken off
            raise AssertionError("not broken off")
        return NOW

    assert run("--dry-run", now=clock).status == 143
    scope, short_grace, line = stdout.getvalue().splitlines()
    assert (scope, short_grace) == (SCOPE, SHORT_GRACE)
    assert ": 1 to stamp; " in line
    assert line.endswith("; exit status 143")


def test_no_event_is_told_after_the_summary(
    tenant: Tenant, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deletion whose answer comes when a signal has ended the run."""

    def hook(request: Request) -> None:
        if request.method == "DELETE":  # the tenant's threads, here, would take it, too
            signal.pthread_kill(main, signal.SIGTERM)

    main = threading.get_ident()

    phone = tenant.add_phone("ann", name=STUCK)
    tenant.on_request(hook)
    tenant.fail("hang", method="DELETE", before=False)
    with threads_left_behind() as late:
        result = run("-vv", "--json")
        assert (result.status, result.kinds) == (143, ["deleting", "failed"])
    tenant.release()
    wait_for_threads(late)
    assert tenant.phone(phone) is None
    assert capsys.readouterr() == ("", "")
