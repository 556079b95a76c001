"""The program at work on a simulated Duo tenant: ``python -m tests.tools.demo``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from duo_phone_cleanup import duration
from tests.simulation.tenant import Tenant, cast

SCRIPT = Path(__file__).parents[2] / "duo_phone_cleanup.py"
LATER = 15
"""Minutes between the two runs: more than the grace period of 10."""

PROBLEM = """\
Ann started to set up her phone in Duo and stopped halfway. Duo keeps the phone:
platform "Generic Smartphone", not activated. Now she can't log in and can't enroll
again, so she calls the help desk. duo_phone_cleanup runs from cron every few minutes.
It stamps such a phone: it writes the time into the phone's name, as a tag. Once the tag
is ten minutes old, it deletes the phone.

The Duo tenant in this demo is simulated, on this machine. Nothing is sent to Duo."""

Phones = dict[str, dict[str, Any]]


def phones(tenant: Tenant) -> Phones:
    """Return every phone's record as it is now, with the names of its users."""
    with tenant.lock:
        return {
            phone_id: {**phone, "users": [tenant.users[u] for u in phone["users"]]}
            for phone_id, phone in tenant.phones.items()
        }


def meaning(phone: dict[str, Any]) -> str:
    """Say what a phone's name means."""
    name = phone["name"]
    tagged = name.isdigit()
    if phone["activated"] and tagged:
        return "set up in time: not touched"
    if phone["activated"]:
        return "set up: not touched"
    if not name:
        return "just started, no run has seen it"
    if not tagged:
        return "named by a person: kept"
    seconds = int(time.time()) - int(name)
    if seconds < 60:
        return "stamped: the time is its tag"
    return f"tagged {duration(seconds)} ago"


def show(now: Phones, before: Phones) -> None:
    """Print the phones as a table, and mark those that changed since."""
    rows = [["USER", "NUMBER", "PLATFORM", "ACTIVATED", "NAME", ""]]
    for phone_id, phone in {**before, **now}.items():
        users = ", ".join(user["username"] for user in phone["users"])
        row = [users, str(phone["number"]), "", "", "", "<- deleted: can enroll again"]
        if phone_id in now:
            activated = "no"
            if phone["activated"]:
                activated = "yes"
            what = meaning(phone)
            if phone != before[phone_id]:
                what = f"<- {what}"
            row[2:] = [phone["platform"], activated, phone["name"], what]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        print("  " + "  ".join(cells).rstrip())
    print()


def run(tenant: Tenant) -> int:
    """Run the program as a user would; show what it prints, return its exit status."""
    print(f"    $ python {SCRIPT.name} -v", flush=True)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DUO_")}
    environ.update(tenant.environment(), NO_PROXY="localhost", no_proxy="localhost")
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "-v"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(f"    {line}", end="", flush=True)
    return process.returncode


def later(tenant: Tenant) -> None:
    """Let time pass, in which one user finishes."""
    with tenant.lock:
        for phone in tenant.phones.values():
            if phone["name"].isdigit():
                phone["name"] = str(int(phone["name"]) - LATER * 60)
            if tenant.users[phone["users"][0]]["username"] == "cleo":
                phone.update(activated=True, platform="Apple iOS")


def demo() -> int:
    """Tell the story; return the exit status."""
    print(PROBLEM)
    with Tenant() as tenant:
        cast(tenant, time.time())
        print("\n1. The tenant has these phones:")
        before = phones(tenant)
        show(before, before)
        print("2. The program runs, with DUO_HOST, DUO_IKEY and DUO_SKEY set.\n")
        status = run(tenant)
        after = phones(tenant)
        show(after, before)
        if status:
            return status
        print(f"3. {LATER} minutes later, Cleo has finished her setup, Ann has not.")
        print("   (The demo sets the tags back, so that you need not wait.)")
        print("   The program runs again.\n")
        later(tenant)
        status = run(tenant)
        show(phones(tenant), after)
    print("That is all it does. To set it up, see the quick start in README.md.")
    return status


def main() -> int:
    """Run the demo to its end, or until interrupted."""
    # Make, for one, ends what it started with SIGTERM: clean up then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return demo()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
