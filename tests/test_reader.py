"""What a reader of the program found: mixed-up answers, unread output, late tables."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import IO

import pytest

import duo_phone_cleanup
from tests.conftest import HOUR, MINUTE, NOW, SCRIPT, Run, clean_environment, start
from tests.tenant import Request, Tenant


def test_an_answer_about_another_phone_vouches_for_none(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "PAUSE", 0)
    ann = tenant.add_phone("ann", name=str(NOW - HOUR))
    bob = tenant.add_phone("bob", name=str(NOW - HOUR))
    other = {**(tenant.phone(ann) or {}), "users": []}
    tenant.fail("answer", response=other, method="GET", path=bob, times=None)
    assert run().status == 1
    assert tenant.phone(ann) is None
    assert tenant.phone(bob)


def waiting(stream: IO[str]) -> int:
    """Give the number of bytes that a pipe holds."""
    (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    return int(count)


@pytest.mark.parametrize("argv", [["--json", "-v"], ["--dry-run"], ["-vv"]], ids=str)
def test_a_signal_while_nobody_reads_the_output(
    tenant: Tenant, argv: list[str]
) -> None:
    for number in range(900):  # more than a pipe holds
        tenant.add_phone(f"user-{number}", name="pinned by a person, for good" * 2)
    with start(tenant, *argv, bufsize=0) as child:
        try:
            stream = child.stderr if argv == ["-vv"] else child.stdout
            assert stream
            while waiting(stream) < 60_000:  # a pipe holds 64 KiB
                time.sleep(0.01)
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=5) == 143
            assert time.monotonic() - began < 1.5
        except subprocess.TimeoutExpired:
            pytest.fail("the run goes on")
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("last_seen", "left"),
    [(None, "wait: 0 seconds left"), ("soon", "wait: its last_seen is unreadable")],
)
def test_a_phone_that_is_due_when_the_table_is_told(
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    last_seen: str | None,
    left: str,
) -> None:
    tenant.add_phone("ann", name=str(NOW - 9 * MINUTE), last_seen=last_seen)
    for name, value in tenant.environment().items():
        monkeypatch.setenv(name, value)
    times = iter([NOW])
    assert duo_phone_cleanup.main(["-n"], lambda: next(times, NOW + HOUR)) == 0
    assert left in capsys.readouterr().out


def test_a_machine_that_has_no_more_threads(tenant: Tenant) -> None:
    """A run can do without."""
    phone = tenant.add_phone("ann")
    tenant.populate(900)
    program = (
        "import threading, duo_phone_cleanup\n"
        "threading.stack_size(1 << 46)\n"  # more than any address space has
        "duo_phone_cleanup.script()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(**tenant.environment(), PYTHONPATH=str(SCRIPT.parent)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert tenant.phones[phone]["name"]


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
    assert "no answer, the input has ended" in capsys.readouterr().err
    assert tenant.phones[phone]["name"] == ""


@pytest.mark.parametrize("tag", [NOW - HOUR - 1, NOW - HOUR + 1])
def test_a_phone_with_another_tag_that_is_due_as_well(
    tenant: Tenant, run: Run, tag: int
) -> None:
    """Another run may have deleted it, and its user begun again: not seen by us."""
    phone = tenant.add_phone("ann", name=str(NOW - HOUR))

    def tag_afresh(request: Request) -> None:
        if request.path.endswith(phone):
            tenant.phones[phone]["name"] = str(tag)

    tenant.on_request(tag_afresh)
    assert run("--json").kinds == ["changed"]
    assert tenant.phones[phone]["name"] == str(tag)
