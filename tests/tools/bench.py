"""The program side by side with the one before it: ``python -m tests.tools.bench``.

Both run as whole processes, in turn, on one simulated tenant that is a process of its
own. Both use one environment, made once inside that of the Python that runs this: the
same interpreter, the same duo_client. Both start as installed commands do: compiled.
Nothing is asserted: on a busy machine times say little, and ratios more.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import platform
import py_compile
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import duo_client

from tests.simulation.tenant import Request, Tenant, _Refusal

SCRIPT = Path(__file__).resolve().parents[2] / "duo_phone_cleanup.py"
OTHER = "duo-phone-cleanup==0.1.0"
ENVIRONMENT = Path(sys.prefix, "bench")
PYTHON = str(ENVIRONMENT / "bin/python")

# The network, in seconds: a round trip of 10 ms; the server's 15 ms for a request and
# half of one for each row. A connection is a round trip, and two for its TLS.
CONNECTION = 0.030
REQUEST = 0.025
ROW = 0.0005
PAGE = 300

# Stands between this process and one that is measured: the peak memory that the system
# reports for a child is never less than its parent's.
STOPWATCH = """\
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - began
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([status, seconds, cpu, usage.ru_maxrss]))
"""

# The other program takes a host, but neither a port nor a CA bundle, and leaves them to
# duo_client: so these two defaults of duo_client's are changed. That costs nothing that
# can be measured, and no more is loaded than the program loads by itself.
ELSEWHERE = """\
import functools, os, sys
import duo_client
duo_client.Admin.__init__ = functools.partialmethod(
    duo_client.Admin.__init__,
    ca_certs=os.environ["DUO_CA_CERTS"],
    port=int(os.environ["BENCH_PORT"]),
)
"""
CALL_OTHER = f"{ELSEWHERE}from duo_phone_cleanup.__main__ import main; main()"
# Four threads that walk through the pages and leave a 429 to duo_client.
WALK_WITH_OWN_BACK_OFF = f"""{ELSEWHERE}
from concurrent.futures import ThreadPoolExecutor
keys = (os.environ[name] for name in ("DUO_IKEY", "DUO_SKEY", "DUO_HOST"))
get_users = functools.partial(duo_client.Admin(*keys).get_users, {PAGE})
with ThreadPoolExecutor(4) as pool:
    for users in pool.map(get_users, range(0, int(sys.argv[1]), {PAGE})):
        assert users
"""


class Program(NamedTuple):
    """What is measured: the arguments that Python runs it by."""

    arguments: list[str]
    is_this: bool


THIS = Program(["-c", "from duo_phone_cleanup import script; script()"], True)
THIS_FILE = Program([str(SCRIPT)], True)
THE_OTHER = Program(["-c", CALL_OTHER], False)
OWN_BACK_OFF = Program(["-c", WALK_WITH_OWN_BACK_OFF], False)

# ---------------------------------------------------------------------- the tenant
# What happens in its process: functions of the tenant, called through a pipe.


def serve(pipe: Any) -> None:
    """Open a tenant, and do with it what is asked for until that is nothing."""
    with Tenant() as tenant:
        for function in iter(pipe.recv, None):
            pipe.send(function(tenant))


def settings(tenant: Tenant) -> dict[str, str]:
    return tenant.environment()


def far_away(tenant: Tenant) -> None:
    tenant.slow(connection=CONNECTION, request=REQUEST, row=ROW)


def limited(tenant: Tenant, requests: int, seconds: float) -> None:
    """Answer 429 to all but so many requests in any so many seconds."""
    passed: deque[float] = deque(maxlen=requests)

    def count(_: Request) -> None:
        now = time.monotonic()
        with tenant.lock:
            if len(passed) == requests and now - passed[0] < seconds:
                raise _Refusal(42901)
            passed.append(now)

    tenant.on_request(count)


def fill(tenant: Tenant, users: int, stuck: int = 0) -> None:
    """Have so many users, all set up but twice `stuck`: to delete, and to stamp."""
    with tenant.lock:
        tenant.users.clear()
        tenant.phones.clear()
        tenant.populate(users)
        for user in tenant.users.values():  # the other program needs there to be a list
            user["phones"] = user.get("phones") or []
        names = [user["username"] for user in tenant.users.values()]
        for name in names[: 2 * stuck : 2]:
            tenant.add_phone(name, name=str(int(time.time()) - 3600))
        for name in names[1 : 2 * stuck : 2]:
            tenant.add_phone(name)


def traffic(tenant: Tenant) -> tuple[int, int, int]:
    """Give the requests, how many of them were refused, and the connections so far."""
    refused = [request for request in tenant.requests if request.status == 429]
    return len(tenant.requests), len(refused), tenant.connections


# --------------------------------------------------------------------- measuring


@dataclass
class Usage:
    """What one process took, or the medians of several."""

    seconds: float
    cpu: float
    """Seconds of it that the process itself worked, not waited."""
    memory: float
    """At its peak, in MiB."""
    requests: float = 0
    refused: float = 0
    connections: float = 0

    @classmethod
    def median(cls, usages: list[Usage]) -> Usage:
        columns = zip(*(vars(usage).values() for usage in usages))
        return cls(*map(statistics.median, columns))


class Site:
    """A tenant in another process, and the programs that are run on it."""

    def __init__(self, *prepare: Callable[[Tenant], None]) -> None:
        self._prepare = prepare

    def __enter__(self) -> Site:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        variables = self.do(settings)
        self._home = tempfile.TemporaryDirectory()
        py_compile.compile(shutil.copy(SCRIPT, self._home.name))
        # Both read duo_client's long list of CAs, as they do when they talk to Duo.
        bundle = Path(self._home.name, "ca.pem")
        parts = (duo_client.client.DEFAULT_CA_CERTS, variables["DUO_CA_CERTS"])
        bundle.write_text("".join(Path(part).read_text() for part in parts))
        host, _, port = variables["DUO_HOST"].partition(":")
        variables.update(DUO_CA_CERTS=str(bundle), BENCH_PORT=port)
        # The other program reads its tags in local time.
        variables.update(NO_PROXY="localhost", no_proxy="localhost", TZ="UTC")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DUO_", "PYTHON"))
        }
        self._environment = {**kept, **variables}
        self._environment_of_other = {**self._environment, "DUO_HOST": host}
        for function in self._prepare:
            self.do(function)
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()
        self._home.cleanup()

    def do(self, function: Callable[[Tenant], Any]) -> Any:
        """Call a function of the tenant there, and give what it gives."""
        self._pipe.send(function)
        return self._pipe.recv()

    def run(self, program: Program, *argv: str) -> Usage:
        """Run a program to its end."""
        if program.is_this:
            folder = Path(self._home.name)
            environment = self._environment
        else:
            folder = ENVIRONMENT
            environment = self._environment_of_other
        before = self.do(traffic)
        process = subprocess.run(
            [PYTHON, "-I", "-S", "-c", STOPWATCH, PYTHON, *program.arguments, *argv],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        status, seconds, cpu, memory = json.loads(process.stdout.splitlines()[-1])
        if status or process.stderr:
            raise RuntimeError(f"{program}: status {status}\n{process.stderr}")
        memory /= 1024  # Linux gives KiB,
        if sys.platform == "darwin":
            memory /= 1024  # macOS bytes
        counts = [now - was for now, was in zip(self.do(traffic), before)]
        return Usage(seconds, cpu, memory, *counts)

    def compare(
        self,
        repetitions: int,
        *argv: str,
        programs: Sequence[Program] = (THE_OTHER, THIS),
        rebuild: Callable[[Tenant], None] | None = None,
    ) -> list[Usage]:
        """Run the programs in turn, on a tenant rebuilt each time if that is given."""
        usages: list[list[Usage]] = [[] for _ in programs]
        for _ in range(repetitions):
            for program, taken in zip(programs, usages):
                if rebuild:
                    self.do(rebuild)
                taken.append(self.run(program, *argv))
        return [Usage.median(taken) for taken in usages]


# ------------------------------------------------------------------- the table


@dataclass
class Line:
    """A figure of both programs, or without one the heading of a scenario."""

    what: str
    other: float = math.nan
    this: float = math.nan
    floor: float = math.nan
    most: float = math.nan
    """What it is to be for this program."""

    def cells(self) -> list[str]:
        places = self.places()
        return [
            self.what,
            shown(self.other, places),
            shown(self.this, places),
            shown(self.ratio(), 2),
            shown(self.floor, places),
            shown(self.most, places),
            self.verdict(),
        ]

    def places(self) -> int:
        """Give how many decimal places its figures have."""
        if self.what.startswith("MiB"):
            return 1
        if not self.what.startswith("seconds"):
            return 0
        if self.this > 1:
            return 2
        return 3

    def ratio(self) -> float:
        if not self.this:
            return math.nan
        return self.other / self.this

    def verdict(self) -> str:
        if math.isnan(self.most):
            return ""
        if self.this <= self.most:
            return "met"
        return "MISSED"


def shown(figure: float, places: int) -> str:
    if math.isnan(figure):
        return ""
    return f"{figure:,.{places}f}"


def show(lines: list[Line]) -> None:
    """Print the table."""
    head = ["", "the other", "this", "ratio", "floor", "at most", ""]
    rows = [head, *(line.cells() for line in lines)]
    columns = zip(*(row for row in rows if any(row[1:])))  # headings may be wider
    widths = [max(map(len, column)) for column in columns]
    for what, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:])]
        if any(figures):
            what = f"  {what}"
        print(f"{what:{widths[0] + 2}}  {'  '.join(cells)}".rstrip())


def lines(
    other: Usage,
    this: Usage,
    *,
    floor: float = math.nan,
    seconds: float = math.nan,
    requests: float = math.nan,
    connections: float = math.nan,
) -> Iterator[Line]:
    """Give a scenario's figures, and the most that those of this program may be."""
    yield Line("seconds", other.seconds, this.seconds, floor, seconds)
    yield Line("seconds of CPU", other.cpu, this.cpu)
    yield Line("requests", other.requests, this.requests, most=requests)
    yield Line("connections", other.connections, this.connections, most=connections)
    yield Line("MiB at its peak", other.memory, this.memory)


# ------------------------------------------------------------------- the scenarios


def times(usual: int, quick: bool) -> int:
    """Give how often each program is run."""
    if quick:
        return 1
    return usual


@functools.cache
def start_up() -> float:
    """Give the seconds that this program takes to say its version."""
    with Site() as site:
        (usage,) = site.compare(9, "--version", programs=(THIS,))
    return usage.seconds


def walk(quick: bool) -> Iterator[Line]:
    """A large tenant with nothing to do."""
    users = 9000
    pages = math.ceil(users / PAGE)
    with Site(far_away, functools.partial(fill, users=users)) as site:
        other, this = site.compare(times(3, quick))
    # The first page comes alone, the others by fours.
    rounds = 1 + math.ceil((pages - 1) / 4)
    floor = rounds * (REQUEST + PAGE * ROW) + start_up()
    yield Line(f"walk of {users:,} users, nothing to do: a fifth, and 1.25 x floor")
    most = min(other.seconds / 5, 1.25 * floor)
    yield from lines(
        other, this, floor=floor, seconds=most, requests=pages, connections=4
    )


def named(quick: bool) -> Iterator[Line]:
    """One user by name."""
    users = 2000
    with Site(far_away, functools.partial(fill, users=users)) as site:
        other, this = site.compare(times(5, quick), "user001000")
    floor = CONNECTION + REQUEST + ROW + start_up()
    yield Line(f"one named user of {users:,}: 1 request")
    yield from lines(other, this, floor=floor, requests=1)


def writes(quick: bool) -> Iterator[Line]:
    """Deletions and stamps, each after a fresh read."""
    users = 420
    stuck = 60
    rebuild = functools.partial(fill, users=users, stuck=stuck)
    with Site(far_away) as site:
        other, this = site.compare(times(3, quick), rebuild=rebuild)
    pages = math.ceil(users / PAGE)
    requests = pages + 2 * 2 * stuck
    floor = CONNECTION + requests * REQUEST + users * ROW + start_up()
    yield Line(f"{stuck} deletions and {stuck} stamps in {users} users: 0.65 of it")
    most = 0.65 * other.seconds
    yield from lines(other, this, floor=floor, seconds=most, requests=requests)


def memory(quick: bool) -> Iterator[Line]:
    """The peak of a small and of a large tenant, without delays."""
    peaks = []
    for users in (1500, 15_000):
        with Site(functools.partial(fill, users=users)) as site:
            usages = site.compare(times(3, quick))
        peaks.append([usage.memory for usage in usages])
    yield Line("peak memory, 1,500 and 15,000 users: grows by 8 MiB at most")
    (other_small, this_small), (other_large, this_large) = peaks
    yield Line("MiB, 1,500 users", other_small, this_small)
    yield Line("MiB, 15,000 users", other_large, this_large, most=this_small + 8)


def small(quick: bool) -> Iterator[Line]:
    """A small tenant with nothing to do: what most runs are."""
    users = 20
    filled = functools.partial(fill, users=users)
    over_the_network = CONNECTION + REQUEST + users * ROW
    for where, prepare, least in (
        ("over the network", [far_away, filled], over_the_network),
        ("without delays", [filled], 0),
    ):
        with Site(*prepare) as site:
            other, this, file = site.compare(
                times(21, quick), programs=[THE_OTHER, THIS, THIS_FILE]
            )
        yield Line(f"{users} users, nothing to do, {where}: no slower")
        floor = least + start_up()
        yield from lines(other, this, floor=floor, seconds=other.seconds)
        yield Line("seconds, not installed", other.seconds, file.seconds)


def manners(quick: bool) -> Iterator[Line]:
    """A walk against a rate limit, beside one that leaves a 429 to duo_client."""
    users = 18_000
    requests = 20
    window = 6  # seconds
    pages = users // PAGE
    floor = (math.ceil(pages / requests) - 1) * window
    limit = functools.partial(limited, requests=requests, seconds=window)
    others = []
    ours = []
    with Site(far_away, functools.partial(fill, users=users), limit) as site:
        for _ in range(times(3, quick)):
            others.append(site.run(OWN_BACK_OFF, str(users)))
            time.sleep(window)  # what one has asked for is not held against the next
            ours.append(site.run(THIS))
            time.sleep(window)
    other = Usage.median(others)
    this = Usage.median(ours)
    yield Line(
        f"walk of {pages} pages, {requests} in any {window} s (the other: four threads"
        " with duo_client's own back-off): 1.5 x floor"
    )
    yield from lines(other, this, floor=floor, seconds=1.5 * floor)
    yield Line("refused requests", other.refused, this.refused)


def growth(quick: bool) -> Iterator[Line]:
    """How the cost of a walk grows, without delays."""
    sizes = [1000, 10_000]
    if not quick:
        sizes.append(100_000)
    for users in sizes:
        with Site(functools.partial(fill, users=users)) as site:
            other, this = site.compare(times(3, quick))
        yield Line(f"walk of {users:,} users without delays")
        yield from lines(other, this)


SCENARIOS = (walk, named, writes, memory, small, manners, growth)


def install() -> None:
    """Make the environment: the other program, and the libraries that are used here."""
    packages = ("duo_client", "python-dateutil")
    wanted = [OTHER, *(f"{name}=={metadata.version(name)}" for name in packages)]
    mark = ENVIRONMENT / "made-with"
    if mark.exists() and mark.read_text().split() == wanted:
        return
    print(f"Installing {OTHER} into {ENVIRONMENT}", file=sys.stderr)
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    mark.write_text("\n".join(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.bench")
    parser.add_argument(
        "--quick", action="store_true", help="once each, not the largest"
    )
    names = {scenario.__name__: scenario for scenario in SCENARIOS}
    parser.add_argument("--only", choices=names, action="append", help="repeatable")
    options = parser.parse_args()
    install()
    table: list[Line] = []
    for name in options.only or names:
        print(f"measuring: {names[name].__doc__}", file=sys.stderr)
        table += names[name](options.quick)
    show(table)
    print(
        f"\nMedians; {time.strftime('%Y-%m-%d')}, Python {platform.python_version()},"
        f" duo_client {duo_client.__version__}, {os.cpu_count()} processors"
    )


if __name__ == "__main__":
    main()
