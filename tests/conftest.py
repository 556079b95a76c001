"""What the tests share: a simulated tenant, and two ways to run the program on it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Tenant

SCRIPT = Path(duo_phone_cleanup.__file__).resolve()
NOW = 1_800_000_000  # what the clock shows in a run, unless told otherwise
MINUTE, HOUR = 60, 3600
SIGNALS = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
Number = signal.Signals


@dataclass
class Result:
    """What a run left behind."""

    status: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def kinds(self) -> list[str]:
        """The names of the events, without the summary."""
        return [each["event"] for each in self.events if each["event"] != "summary"]

    @property
    def summary(self) -> dict[str, Any]:
        """The last event."""
        last = self.events[-1]
        assert last["event"] == "summary"
        return last


class Run(Protocol):
    """Calls main() in this process, with the settings of the tenant."""

    def __call__(
        self,
        *argv: str,
        now: float | Callable[[], float] = NOW,
        stdin: str | bytes = "",
        **variables: str,
    ) -> Result: ...


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of the program or of Python's.

    PYTHONUNBUFFERED, for one, hides what may go wrong with buffers.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DUO_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }
    return {**kept, **variables}


@contextlib.contextmanager
def handlers(handler: Any, *numbers: Number) -> Iterator[None]:
    """Set handlers here. A process that is started ignores what is ignored here."""
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)


@pytest.fixture(autouse=True)
def _as_from_a_shell() -> Iterator[None]:
    """Let signals reach what the tests start, and put back the handlers of main()."""
    before = {each: signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)}
    ignored = [each for each in SIGNALS if before[each] is signal.SIG_IGN]  # by nohup
    with handlers(signal.SIG_DFL, *ignored):
        yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    """An empty tenant; see tests/simulation/tenant.py."""
    with Tenant() as tenant:
        yield tenant


@pytest.fixture
def run(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run main() in this process; `now` gives the time, keywords are variables."""

    def run(
        *argv: str,
        now: float | Callable[[], float] = NOW,
        stdin: str | bytes = "",
        **variables: str,
    ) -> Result:
        clock = now if callable(now) else lambda: now
        environment = clean_environment(**{**tenant.environment(), **variables})
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", environment)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
            capsys.readouterr()
            try:
                status = duo_phone_cleanup.main(argv, clock)
            except SystemExit as stopped:  # --help and --version
                status = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


def start(
    tenant: Tenant, *argv: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start the program as a process with the settings of the tenant; pipes for all."""
    environment = clean_environment(**{**tenant.environment(), **(env or {})})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *argv],
        env=environment,
        text=True,
        **{**pipes, **options},
    )


def process(
    tenant: Tenant, *argv: str, stdin: str = "", env: dict[str, str] | None = None
) -> Result:
    """Run the program as a process to its end. Its clock is the real one."""
    with start(tenant, *argv, env=env) as child:
        out, err = child.communicate(stdin, timeout=60)
    return Result(child.returncode, out, err)
