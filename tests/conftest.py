"""The fixtures: a simulated tenant, and a way to run the program on it."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Tenant

pytest.register_assert_rewrite("tests.support")  # a failure there shows values, too
from tests.support import (  # noqa: E402
    NOW,
    SIGNALS,
    Result,
    Run,
    clean_environment,
    handlers,
)

PAUSE = duo_phone_cleanup.RETRY_PAUSE_SECONDS


@pytest.fixture(autouse=True)
def _as_from_a_shell() -> Iterator[None]:
    """Let signals reach what the tests start, and put back the handlers of main()."""
    before = {each: signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)}
    ignored = [each for each in SIGNALS if before[each] is signal.SIG_IGN]  # by nohup
    with handlers(signal.SIG_DFL, *ignored):
        yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the next try.

    And no run in this process ends it where it is slow after a signal.
    """
    monkeypatch.setattr(duo_phone_cleanup, "RETRY_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(duo_phone_cleanup, "STUCK_SECONDS", 60)


@pytest.fixture
def _real_pauses(monkeypatch: pytest.MonkeyPatch, _short_pauses: None) -> None:
    """For what is about the pauses themselves."""
    monkeypatch.setattr(duo_phone_cleanup, "RETRY_PAUSE_SECONDS", PAUSE)


@pytest.fixture
def _garbage_collected() -> Iterator[None]:
    """For tests that leave connections open: the next test would be blamed for them."""
    yield
    gc.collect()


@pytest.fixture
def _not_traced() -> Iterator[None]:
    """For tests of very many runs: coverage takes twice as long, and gains nothing."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


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
