"""What several test files share, besides the fixtures of conftest.py."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import SKEY, Record, Request, Tenant

SCRIPT = Path(duo_phone_cleanup.__file__).resolve()
MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = 1_800_000_000
"""What the clock shows in a run, unless told otherwise."""
STAMPED = str(NOW)
"""What a phone is called that such a run has stamped."""
STUCK = str(NOW - HOUR)
"""A tag past its grace period."""
LONG_AGO = "1711111111"
"""A tag past its grace period by the real clock, too, which processes go by."""
GONE = "(deleted)"
"""What `name_of` calls a phone that is no longer there."""
SCOPE = "grace period 10 minutes, deletion limit 100 users"
"""What a dry run and the prompts begin with, after the host."""
DRY_RUN = "This is a dry run: it changes nothing."
"""The first line of a dry run."""
SHORT_GRACE = (
    "Duo's own setup seems to take up to 17 minutes: a user may still be at it"
)
"""What follows it where the grace period is shorter than that."""
SET_UP = {"activated": True, "platform": "Apple iOS"}
"""The fields of a phone that was set up after all."""
SIGNALS = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
Number = signal.Signals
NO_ANSWER = "no answer from localhost:"
NETWORK = ": check --host (DUO_HOST), the network and HTTPS_PROXY"
"""The hint that follows an error of the network."""


# Running the program


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
    def outcomes(self) -> list[str]:
        """What became of the phones: without what only announces a deletion."""
        return [kind for kind in self.kinds if kind != "deleting"]

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

    PYTHONUNBUFFERED, for one, hides what may go wrong with buffers. Nor does it have
    the width of the terminal where the tests are run.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DUO_", "PYTHON", "COLUMNS"))
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


def redirected(
    tenant: Tenant, redirections: str, *argv: str, **options: Any
) -> subprocess.Popen[str]:
    """Start the program by a shell, which redirects its streams; the rest are pipes."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    program = [sys.executable, str(SCRIPT), *argv]
    return subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *program],
        env=clean_environment(**tenant.environment()),
        text=True,
        **{**pipes, **options},
    )


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


# Phones to run it on


class Write(NamedTuple):
    """A kind of write, and a phone that a run makes it to."""

    name: str
    method: str
    event: str
    """The event that tells of it."""
    fields: Record
    """The phone's."""
    change: Record
    """What its user may make of the phone meanwhile: then nothing is written."""


STAMP = Write("stamp", "POST", "stamped", {}, SET_UP)
DELETION = Write("deletion", "DELETE", "deleted", {"name": STUCK}, SET_UP)
UNTAG = Write(
    "untag", "POST", "untagged", {"name": STUCK, **SET_UP}, {"name": "Ann's phone"}
)
WRITES = [STAMP, DELETION, UNTAG]


def name_of_case(case: Any) -> str:
    return str(case.name)


each_write = pytest.mark.parametrize("write", WRITES, ids=name_of_case)


class OneOfEach:
    """A tenant with one phone for each kind of write."""

    def __init__(self, tenant: Tenant, ordinary_users: int = 0) -> None:
        self.tenant = tenant
        self.stamp = tenant.add_phone("ann", phone_id="DP-stamp")
        self.delete = tenant.add_phone("bob", phone_id="DP-delete", name=STUCK)
        tenant.populate(ordinary_users)
        self.untag = tenant.add_phone("cleo", phone_id="DP-untag", name=STUCK, **SET_UP)

    def assert_done(self, result: Result) -> None:
        """Everything has been done, and counted once, without a word."""
        assert (result.status, result.err) == (0, "")
        assert result.outcomes == ["stamped", "untagged", "deleted"]
        assert self.tenant.phones[self.stamp]["name"] == str(NOW)
        assert self.tenant.phone(self.delete) is None
        assert self.tenant.phones[self.untag]["name"] == ""
        assert_no_stale_write(self.tenant)

    def assert_untouched(self) -> None:
        """No write has been sent."""
        assert writes(self.tenant) == []


def add_situations(tenant: Tenant) -> dict[str, str]:
    """Add a user in each situation that the program is about; give their phones' ids.

    One phone each.
    """
    return {
        "begun": tenant.add_phone("begun"),
        "stuck": tenant.add_phone("stuck", name=STUCK),
        "young": tenant.add_phone("young", name=str(NOW - 9 * MINUTE)),
        "named": tenant.add_phone("named", name="Dan's spare"),
        "done": tenant.add_phone("done", name="iPhone", **SET_UP),
    }


def add_outcomes(tenant: Tenant) -> dict[str, str]:
    """Add a phone for each thing that can become of one in good order; give their ids.

    Two of them change when they are read for the second time. One is untagged only with
    --untag.
    """
    ids = {
        "stamped": tenant.add_phone("ann"),
        "deleted": tenant.add_phone("bob", name=STUCK),
        "waiting": tenant.add_phone("cleo", name=str(NOW - MINUTE)),
        "named": tenant.add_phone("dan", name="Dan's spare"),
        "untagged": tenant.add_phone("eve", name=STUCK, **SET_UP),
        "changed": tenant.add_phone("fay", name=STUCK),
        "gone": tenant.add_phone("gus"),
    }

    def interfere(request: Request) -> None:
        with tenant.lock:
            if request.path.endswith(ids["changed"]):
                tenant.phones[ids["changed"]].update(SET_UP)
            elif request.path.endswith(ids["gone"]):
                tenant.phones.pop(ids["gone"], None)

    tenant.on_request(interfere)
    return ids


def name_of(tenant: Tenant, phone_id: str) -> Any:
    """What the phone is called now."""
    phone = tenant.phone(phone_id)
    if phone is None:
        return GONE
    return phone["name"]


def names(tenant: Tenant, ids: dict[str, str]) -> dict[str, Any]:
    """What the phones are called now, by the same keys as their ids."""
    return {key: name_of(tenant, phone_id) for key, phone_id in ids.items()}


# What a run has sent


def writes(tenant: Tenant) -> list[Request]:
    """The requests that write."""
    return [request for request in tenant.requests if request.method != "GET"]


def write_methods(tenant: Tenant) -> list[str]:
    """The methods of the requests that write."""
    return [request.method for request in writes(tenant)]


def written_phones(tenant: Tenant) -> list[str]:
    """The ids of the phones that writes were sent for."""
    return [phone_of(request) for request in writes(tenant)]


def phone_of(request: Request) -> str:
    """The id of the phone that a request is about, "" if it is about none."""
    return request.path.partition("/phones/")[2]


def when(
    tenant: Tenant,
    method: str,
    path: str,
    happen: Callable[[], object],
    *,
    count: int = 1,
    answered: bool = False,
) -> None:
    """Let this happen as the count-th such request arrives, or before it is answered.

    The request's path ends with `path`.
    """
    seen = []

    def hook(request: Request) -> None:
        if request.method == method and request.path.endswith(path):
            seen.append(request)
            if len(seen) == count:
                happen()

    if answered:
        tenant.after_request(hook)
    else:
        tenant.on_request(hook)


# What must hold


def assert_no_stale_write(tenant: Tenant, fresh: float = 2.0) -> None:
    """Each write used up a read of the same phone, a fresh one; none came too often."""
    reads: dict[str, float] = {}
    tries: Counter[tuple[str, str]] = Counter()
    for request in tenant.requests:
        if request.method == "GET":
            reads[request.path] = request.time
        else:
            assert request.time - reads.pop(request.path) <= fresh
            tries[request.method, request.path] += 1
    assert max(tries.values(), default=0) <= 3


def assert_no_secret(result: Result) -> None:
    """Neither the key nor a piece of it was told."""
    told = result.out + result.err
    assert not [at for at in range(len(SKEY) - 4) if SKEY[at : at + 5] in told]
    assert "Traceback" not in told


def error_line(result: Result, *needed: str) -> str:
    """The one error of a run that failed before it saw a user; a summary follows it."""
    line, summary = result.err.splitlines()
    counts = r" nothing was read: 1 failed; \d+ requests?, \d+\.\d s; exit status 1$"
    assert re.search(counts, summary)
    for each in ("error: ", *needed):
        assert each in line
    assert result.status == 1
    assert len(line) < 500
    return line


@contextlib.contextmanager
def threads_left_behind() -> Iterator[set[threading.Thread]]:
    """Give a set that is filled with the threads that are started meanwhile."""
    before = set(threading.enumerate())
    late: set[threading.Thread] = set()
    yield late
    late.update(set(threading.enumerate()) - before)
    assert late


def wait_for_threads(threads: Iterable[threading.Thread]) -> None:
    """Wait for threads that a run has left behind."""
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def usual(text: str) -> str:
    """A help in one line, and as Python 3.13 words it.

    Before, argparse repeats a metavar: "-s SKEY, --skey SKEY".
    """
    return re.sub(
        r"(-\w) ([A-Z]+), (--[\w-]+) \2", r"\1, \3 \2", " ".join(text.split())
    )
