#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#     "duo_client>=5.5,<6",
#     "python-dateutil>=2.9,<5",
# ]
# ///
"""Delete phones that users left half set up in Duo, so that they can start over.

A user who stops before a new phone is activated leaves a limbo phone behind:
a "Generic Smartphone" that is not activated. As a rule, the user can neither
log in nor enroll again. The first run to see it stamps it: it writes a tag into
the phone's name, the time in seconds since the epoch. A later run deletes it
once that tag is older than the grace period. A phone that a person has given
any other name is kept forever. The tags, in Duo, are its only state: a run may
be killed, repeated or overlap another.

The only writes to Duo are delete_phone and update_phone with a new name, both in
Run.write. No other line calls them, and the line above each call sets the time by
which it has to be sent: two seconds after the phone's last read was sent.
DuoAdmin._exchange refuses a write without such a time, or after it. Nothing is written
unless verdict() wants it twice: by the phone's record in the listing, and by its record
read just before the write, which must name the same users. By default the grace period
is 10 minutes, nobody is asked (--no-force asks), a run deletes nothing where more than
100 users would lose a phone, and only --journal, --json or -v tell what was deleted.

The file is in the order of trust: verdict, run, Duo client, report, command line.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import enum
import json
import os
import random
import re
import select
import signal
import socket
import ssl
import stat
import struct
import sys
import termios
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timezone
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, Optional, TextIO, TypeVar

import dateutil  # its parser loads on first use: most runs need none
import duo_client

__version__ = "2.0.0"

# A phone or user as Duo gives it: any field may be missing, null or of another type.
Record = dict[str, Any]
Fields = dict[str, Any]  # of a JSON line, or of the settings, by name
Reading = Optional["Call[Any]"]  # a request that was begun ahead, if one was
T = TypeVar("T")
Clock = Callable[[], int]  # gives the time in seconds since the epoch


# ------------------------------------------------------------------------- the verdict

FIRST_TAG = 1704067200  # 2024-01-01 UTC: no program wrote tags before
ISO_8601 = "[0-9]{4}[0-9W-]*(T[0-9:.,]+(Z|[+-][0-9:]+)?)?"


class Verdict(enum.Enum):
    """What to do with a phone, why, the event that tells of it, and a dry run's.

    In the order in which a run deals with phones: harmless things first.
    """

    NAMED = "keep", "named {name}", "NAMED", "NAMED"
    FUTURE = "wait", "tag in the future", "WAITING", "WAITING"
    UNREADABLE = "wait", "last_seen unreadable", "WAITING", "WAITING"
    WAIT = "wait", "{left} left", "WAITING", "WAITING"
    STAMP = "stamp", "not tagged yet", "STAMPED", "WOULD_STAMP"
    STAMP_AGAIN = "stamp", "in use since its tag", "STAMPED", "WOULD_STAMP"
    UNTAG = "untag", "set up since its tag", "UNTAGGED", "WOULD_UNTAG"
    LEFT = "leave", "due, over the limit", "LEFT", "LEFT"  # by Run.plan alone
    DELETE = "delete", "grace period over", "DELETED", "WOULD_DELETE"

    def __init__(self, verb: str, reason: str, done: str, would: str) -> None:
        self.verb = verb
        self.reason = reason
        self.done = done
        self.would = would


def is_limbo(record: Record) -> bool:
    """Tell whether a phone is in limbo: a "Generic Smartphone", not activated."""
    platform = str(record.get("platform")).lower()
    return platform == "generic smartphone" and record.get("activated") is False


def read_tag(record: Record) -> int | None:
    """Return the tag in seconds since the epoch, None if the phone's name is no tag."""
    name = record.get("name")
    # Not by int(): it takes " 12 ", "+12", "1_000" and the digits of other scripts.
    if not isinstance(name, str) or not re.fullmatch("[0-9]{10}", name):
        return None
    # Duo's users name phones by their number.
    digits_of_number = re.sub("[^0-9]", "", str(record.get("number")))
    if digits_of_number.endswith(name):
        return None
    if int(name) < FIRST_TAG:  # a person's: student and employee numbers read so
        return None
    return int(name)


def read_last_seen(record: Record) -> float | None:
    """Return last_seen in seconds since the epoch. Raises ValueError, OverflowError."""
    last_seen = record.get("last_seen")
    if last_seen is None or last_seen == "":
        return None
    if type(last_seen) is int:
        return last_seen
    # dateutil's versions differ on what is no plain ISO 8601, such as "T 9:13".
    if not isinstance(last_seen, str) or not re.fullmatch(ISO_8601, last_seen):
        raise ValueError("neither ISO 8601 nor an integer")
    seen = dateutil.parser.isoparser("T").isoparse(last_seen)
    if seen.tzinfo is None:
        seen = seen.replace(tzinfo=timezone.utc)
    return seen.timestamp()


def verdict(record: Record, now: int, grace_period: int) -> Verdict | None:
    """Return the first rule that fits a phone; None: none of this program's business.

    `now` is in seconds since the epoch, `grace_period` in minutes.
    """
    tag = read_tag(record)
    if record.get("activated") is True:
        # Ten digits in the future are no tag of ours: a phone number reads so.
        if tag is None or tag > now:
            return None
        return Verdict.UNTAG
    if not is_limbo(record):
        return None
    name = record.get("name")
    if name is None or (isinstance(name, str) and not name.strip()):
        return Verdict.STAMP
    if tag is None:
        return Verdict.NAMED
    if tag > now:
        return Verdict.FUTURE
    try:
        last_seen = read_last_seen(record)
    except (ValueError, OverflowError):
        return Verdict.UNREADABLE
    if last_seen is not None and last_seen > tag:
        return Verdict.STAMP_AGAIN  # the tag is from an earlier life
    if now - tag >= grace_period * 60:
        return Verdict.DELETE
    return Verdict.WAIT


# ------------------------------------------------------------ words that the run needs

NEVER = float("-inf")  # a time that is always over
FOREVER = float("inf")  # a time that never comes


class Failure(Exception):
    """Something could not be done: why, and what to do about it, in one line."""

    refused = False  # whether Duo answered that it did not carry out this request


class Passing(Failure):
    """It failed in passing: another try may go well."""


class TooLate(Passing):
    """A write was not sent, since its phone was read too long ago."""


class RateLimited(Failure):
    """Duo refuses requests for a while."""


class Gone(Failure):
    """Duo does not know this phone: somebody has deleted it."""


class Fatal(Failure):
    """Nothing else would go well either: the run ends."""


class OutputBroken(Exception):
    """Standard output or the journal cannot be written: the run ends."""


class Stopped(Exception):
    """The run ends, after a signal or an error that has been reported."""


class Settled(Exception):
    """What became of a phone is known: that is recorded, and no more is written."""

    def __init__(self, event: Event, **details: str) -> None:
        super().__init__()
        self.event = event
        self.details = details


class User(NamedTuple):
    """A user who has a phone."""

    key: str  # the user_id, or else the name
    name: str
    last_login: int | None  # seconds since the epoch; None: never


class Phone:
    """A phone with a verdict, the users who share it, and what was written to it."""

    def __init__(self, phone_id: str, record: Record, verdict: Verdict) -> None:
        self.phone_id = phone_id
        self.verdict = verdict
        self.record = record  # as last read before a write
        self.tag = read_tag(record)  # the name that it has now, if that is a tag
        self.users: dict[str, User] = {}  # by their keys
        self.read_sent = NEVER  # when its last read was sent, by boot_seconds()
        self.new_name: str | None = None  # what a stamp or --untag writes
        self.perhaps_written = False  # once a sent write got neither yes nor no


# ------------------------------------------------------------- the run: walk, plan, act

READ_VALID_SECONDS = 2  # at most, from sending a phone's read to sending its write
MAX_FAILED_IN_A_ROW = 4  # phones; then Duo or the network is the trouble
WRITES = ("stamp", "untag", "delete")
PHONE_ID = re.compile("[A-Za-z0-9_-]+")  # it becomes part of a path
UNCONFIRMED = "a write was sent and not confirmed: it may still be carried out"


class Run:
    """One execution: walk the users and their phones, plan, act."""

    def __init__(
        self, settings: Settings, now: Clock, duo: DuoAdmin, report: Report
    ) -> None:
        self.settings = settings
        self.now = now
        self.duo = duo
        self.report = report
        self.agreed: set[str] = set()  # the verbs that need no prompt
        if settings.force:
            self.agreed.update(WRITES)

    def execute(self) -> None:
        """Walk, plan and act. Raises Stopped, OutputBroken."""
        try:
            self.report.begin()
            plan = self.plan(self.walk())
            if self.settings.dry_run:
                self.report.rehearse(plan)
            else:
                self.act(plan)
        except Failure as failure:
            self.report.fail(str(failure))

    def walk(self) -> list[Phone]:
        """Return the phones with a verdict, each once, in the order of the listing."""
        found: dict[str, Phone] = {}
        if not self.settings.users:
            for page in self.duo.list_users():
                for user in page.users:
                    self.look_at(user, found)
                self.report.walked(page.total)
            return list(found.values())
        unknown = {name.casefold(): name for name in self.settings.users}
        for user in self.duo.look_up_users(list(unknown.values())):
            self.look_at(user, found)
            for name in names_of(user):
                unknown.pop(name, None)
        for name in unknown.values():
            self.report.event(Event.UNKNOWN_USER, user=name)
        for phone in found.values():
            with suppress(Gone):
                # The users who share it and were not named are affected, too.
                record = self.duo.retry(self.duo.read_phone, phone.phone_id)
                phone.users.update(users_of(record))
        return list(found.values())

    def look_at(self, user: Record, found: dict[str, Phone]) -> None:
        """Add the phones of one user that have a verdict to those found."""
        sharer = make_user(user)
        phones = user.get("phones") or []
        if not is_list_of_records(phones):
            raise Failure(f"Duo gives user {sharer.name} phones that are no records")
        self.report.saw_user(phones)
        for record in phones:
            decided = verdict(record, self.now(), self.settings.grace_period)
            if decided is None:
                continue
            if decided is Verdict.UNTAG and not self.settings.untag:
                continue
            phone_id = record.get("phone_id")
            if not isinstance(phone_id, str) or not PHONE_ID.fullmatch(phone_id):
                text = f"user {sharer.name} has a phone without a usable phone_id"
                self.report.fail(text)
                continue
            if phone_id not in found:
                found[phone_id] = Phone(phone_id, record, decided)
            found[phone_id].users[sharer.key] = sharer

    def plan(self, found: list[Phone]) -> list[Phone]:
        """Return the phones, harmless things first; leave deletions over the limit."""
        due = [phone for phone in found if phone.verdict is Verdict.DELETE]
        users = {key for phone in due for key in phone.users}
        limit = self.settings.max_deletions
        if limit is not None and len(users) > limit:
            for phone in due:
                phone.verdict = Verdict.LEFT
            if limit > 0:  # 0 says to stamp only: no failure
                self.report.limit_exceeded(len(due), len(users), limit)
        order = list(Verdict)
        return sorted(found, key=lambda phone: order.index(phone.verdict))

    def act(self, plan: list[Phone]) -> None:
        """Deal with the phones one by one. Raises Fatal, Stopped, OutputBroken."""
        self.report.begin_act(plan)
        failed_in_a_row = 0
        for phone, reading in ahead(self.begin_reading, plan, 1):
            self.duo.stop.check()
            try:
                self.deal_with(phone, reading)
                failed_in_a_row = 0
            except Passing as failure:
                failed_in_a_row += 1
                if failed_in_a_row == MAX_FAILED_IN_A_ROW:
                    text = f"{failed_in_a_row} phones in a row failed, so the run ends"
                    raise Fatal(f"{text}: {failure}") from None
            except Fatal:
                raise Stopped from None  # deal_with() has reported it
            except Failure:
                failed_in_a_row = 0

    def begin_reading(self, phone: Phone) -> Reading:
        """Begin to read a phone again while the one before it is written."""
        if phone.verdict.verb not in self.agreed:
            return None
        return self.duo.begin_phone(phone.phone_id)

    def deal_with(self, phone: Phone, reading: Reading) -> None:
        """Do what a phone's verdict says; record what came of it, failures too."""
        event = Event[phone.verdict.done]
        details = {}
        try:
            if phone.verdict.verb in WRITES:
                self.carry_out(phone, reading)
        except Settled as settled:
            event = settled.event
            details = settled.details
        except Gone:
            # After a deletion that had no answer, it is taken for this run's.
            if not (event is Event.DELETED and phone.perhaps_written):
                event = Event.GONE
        except Failure as failure:
            text = str(failure)
            if phone.perhaps_written:
                text += f"; {UNCONFIRMED}"
            self.report.fail(text, phone)
            raise
        except (Stopped, OutputBroken):
            if phone.perhaps_written:
                self.report.fail(UNCONFIRMED, phone)
            raise
        self.report.event(event, phone, **details)

    def carry_out(self, phone: Phone, reading: Reading) -> None:
        """Ask about a phone and write to it. Raises Settled, Failure, Stopped."""
        self.report.show_progress()
        if phone.verdict.verb not in self.agreed:
            self.duo.retry(self.read_again, phone)
            answer = self.report.ask(phone)
            if answer == "n":
                raise Settled(Event.DECLINED)
            if answer == "a":
                self.agreed.add(phone.verdict.verb)
        try:
            self.duo.retry(self.read_and_write, phone, reading)
        except Passing:
            # After the last try, one more reading settles it, without a write.
            if phone.perhaps_written:
                with suppress(Passing, RateLimited):
                    self.read_again(phone, None)
            raise

    def read_and_write(self, phone: Phone, reading: Reading) -> None:
        """Read a phone again and write to it. Raises Settled, Failure, Stopped."""
        self.read_again(phone, reading)
        if phone.verdict is Verdict.DELETE:
            # Its record comes first: where that cannot be written, nothing is deleted.
            self.report.event(Event.DELETING, phone)
        self.duo.write_sent = False
        try:
            self.write(phone)
        except (Failure, Stopped) as end:
            refused = isinstance(end, Failure) and end.refused
            if self.duo.write_sent and not refused:
                phone.perhaps_written = True  # and stays so, whatever another try does
            raise

    def read_again(self, phone: Phone, reading: Reading) -> None:
        """Read a phone again. Raises Settled unless what is planned is still right."""
        if reading is None or reading.began + READ_VALID_SECONDS < boot_seconds():
            reading = self.duo.begin_phone(phone.phone_id)
        record = self.duo.read_phone(phone.phone_id, reading)
        if reading.sent == NEVER:  # then this client's transport was passed by
            raise Fatal(f"duo_client {duo_client.__version__} is not supported")
        now = self.now()
        if phone.perhaps_written and (record.get("name") or "") == phone.new_name:
            phone.tag = read_tag(record)
            # Only the answer was lost. (Never so of a deletion, which has no new_name.)
            raise Settled(Event[phone.verdict.done])
        reason = self.change(phone, record, now)
        phone.record = record
        phone.tag = read_tag(record)
        phone.users = users_of(record)
        phone.read_sent = reading.sent
        if reason and phone.perhaps_written:
            raise Failure(f"it has changed in the meantime: {reason}")
        if reason:
            raise Settled(Event.CHANGED, reason=reason)
        if phone.verdict is Verdict.UNTAG:
            phone.new_name = ""
        elif phone.verdict is not Verdict.DELETE and not phone.perhaps_written:
            phone.new_name = str(now)  # kept where it may have been written already

    def change(self, phone: Phone, record: Record, now: int) -> str:
        """Say why what is planned for a phone is wrong by its new record, "" if not."""
        decided = verdict(record, now, self.settings.grace_period)
        if decided is None and phone.verdict is Verdict.UNTAG:
            return "no longer tagged"
        if decided is None:
            return "no longer in limbo"
        if decided is not phone.verdict:
            return self.report.reason(decided, record)
        if phone.verdict is Verdict.DELETE and read_tag(record) != phone.tag:
            return "another tag"  # another run stamped it afresh
        if users_of(record).keys() != phone.users.keys():
            return "other users"
        return ""

    def write(self, phone: Phone) -> None:
        """Send what a phone's verdict says. Raises Failure, Stopped."""
        with self.duo.errors_explained():
            if phone.verdict is Verdict.DELETE:
                self.duo.send_by = phone.read_sent + READ_VALID_SECONDS
                self.duo.delete_phone(phone.phone_id)
                return
            self.duo.send_by = phone.read_sent + READ_VALID_SECONDS
            self.duo.update_phone(phone.phone_id, name=phone.new_name)
        phone.tag = read_tag({**phone.record, "name": phone.new_name})


# ------------------------------------------------------------ threads, waits, signals

SLICE_SECONDS = 0.1  # in which waits are cut, to notice a signal
ANSWER_SECONDS = 0.3  # after a signal, in which a write may still be answered
STUCK_SECONDS = 2  # after a signal; an output that is stuck then is given up
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def boot_seconds() -> float:
    """Return seconds by a clock that nobody sets, and no suspension stops (Linux)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Call(threading.Thread, Generic[T]):
    """A call in a daemon thread, for which the program's end does not wait.

    What follows from its result happens on the main thread. The times are by
    boot_seconds().
    """

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.arguments = arguments
        self.began = boot_seconds()
        self.send_by = FOREVER  # NEVER once nobody waits for it any more
        self.sent = NEVER  # when its request was sent
        self.value: T
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call, in the thread."""
        # The main thread takes the signals: it may not notice what another one takes.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:
            # Without the frames, one of which may hold a socket open.
            self.error = error.with_traceback(None)


def start(call: Call[T]) -> Call[T]:
    """Begin a call. Raises Fatal."""
    try:
        call.start()
    except RuntimeError:
        raise Fatal("this machine has no thread left") from None
    return call


def ahead(
    begin: Callable[[T], Any], items: Iterable[T], width: int
) -> Iterator[tuple[T, Any]]:
    """Yield each item and its call, once the next `width` calls have begun, too."""
    begun: list[tuple[T, Any]] = []
    for item in items:
        begun.append((item, begin(item)))
        if len(begun) > width:
            yield begun.pop(0)
    yield from begun


class Stop:
    """The first signal that came, and the waits of the main thread, which notice it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.came = FOREVER  # when, by boot_seconds()

    def take_signals(self) -> None:
        """Let signals be noted from now on."""
        for number in SIGNALS:
            # nohup lets a process ignore them. Its parent may also have blocked them.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def note(self, number: int, _: object) -> None:
        """Note the first signal; whoever waits or goes on will see to it."""
        if self.signal is None:
            self.signal = number
            self.came = boot_seconds()
            signal.signal(signal.SIGALRM, self.end)
            signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)

    def end(self, *_: object) -> None:
        """End the process: an output or a file is stuck, so nobody sees to it."""
        os._exit(128 + (self.signal or 0))

    def check(self) -> None:
        """Raise Stopped after a signal."""
        if self.signal is not None:
            raise Stopped

    def wait_for(self, call: Call[T], end: float, patience: float = 0) -> T:
        """Wait for a call until `end`; return its result.

        After a signal, wait for so many seconds more. Raises what the call raises,
        TimeoutError, Stopped.
        """
        while call.is_alive():
            now = boot_seconds()
            if now > self.came + patience:
                raise Stopped
            if now > end:
                raise TimeoutError("no whole answer in time")
            call.join(SLICE_SECONDS)
        if call.error is not None:
            raise call.error
        return call.value

    def sleep(self, seconds: float) -> None:
        """Pause. Raises Stopped."""
        end = boot_seconds() + seconds
        self.check()
        while boot_seconds() < end:
            time.sleep(min(seconds, SLICE_SECONDS))
            self.check()


# ---------------------------------------------------------------------- the Duo client

NAMES_A_LOOK_UP = 100  # the most that Duo takes (Admin API, username_list)
USERS_A_PAGE = 300  # the most that Duo gives (Admin API, Retrieve Users)
PAGES_AHEAD = 3  # asked for while one is waited for
DELIVERY_MILLISECONDS = 2000  # after which the kernel gives up a write on its way
MAX_TRIES = 3  # in all, of a step that fails in passing
# Before the second try, at most; twice that before the third, and after a first 429.
RETRY_PAUSE_SECONDS = 1.0
MAX_WAIT_429_SECONDS = 180  # Duo counts requests by the minute
EXCHANGE_TIME_OUTS = 10  # time-outs that a whole exchange may take

# What duo_client, http.client and ssl raise: RuntimeError for an answer that is an
# error, ValueError for one that is no text, RecursionError (a RuntimeError) for one
# too deep, OverflowError and MemoryError for one of an absurd length.
ERRORS = (OSError, HTTPException, RuntimeError, ValueError, OverflowError, MemoryError)
TOO_LATE = (
    f"more than {READ_VALID_SECONDS} s passed after the phone was read: Duo, the"
    " network, a disk or this machine is too slow to write safely"
)
NO_NEXT_PAGE = "Duo's user listing does not go on: next_offset"
CHECK_HOST = "check --host (DUO_HOST) and HTTPS_PROXY"
CHECK_CLOCK = "set this machine's clock"
TROUBLE = "Duo has trouble, or a proxy: see status.duo.com; a later run tries again"
# What follows and what to do, by Duo's error code or else by the HTTP status.
KINDS = {40401: Gone, 401: Fatal, 403: Fatal, 408: Passing, 429: RateLimited}
HINTS = {
    40102: "check --ikey (DUO_IKEY), and that --host (DUO_HOST) is of this application",
    40103: "check --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)",
    40104: CHECK_CLOCK,
    40105: CHECK_CLOCK,
    401: "check --ikey (DUO_IKEY) and --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)",
    403: "give the Admin API application the permissions Grant resource - Read and"
    " Grant resource - Write, and see its Networks for API Access",
    404: CHECK_HOST,
    429: "see what else uses up this tenant's rate limit, or run less often",
}


class Page(NamedTuple):
    """A page of the user listing."""

    users: list[Record]
    total: int  # users on all pages; 0 if Duo does not say
    next_offset: int | None  # None: it is the last page


def is_list_of_records(value: Any) -> bool:
    """Tell whether a value from Duo is a list of records."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def make_user(user: Record) -> User:
    """Return what is kept of a user's record."""
    user_id = str(user.get("user_id") or "")
    name = str(user.get("username") or user_id or "a user without a name")
    last_login = user.get("last_login")
    if type(last_login) is not int:
        last_login = None
    return User(user_id or name, name, last_login)


def users_of(record: Record) -> dict[str, User]:
    """Return the users of a phone that read_phone() has read, by their keys."""
    users = map(make_user, record["users"])
    return {user.key: user for user in users}


def names_of(user: Record) -> set[str]:
    """Return the names and aliases of a user in one case: Duo's look-up ignores it."""
    names = [user.get("username")]
    aliases = user.get("aliases")
    if isinstance(aliases, dict):
        names.extend(aliases.values())
    return {str(name).casefold() for name in names if name}


class DuoAdmin(duo_client.Admin):
    """The Admin API over connections that are kept, with an end to every wait.

    _make_request is all that it overrides: duo_client's whole transport. A read is a
    call that may be under way while others are; a write is waited for at once.
    """

    def __init__(self, settings: Settings, log: Log, stop: Stop) -> None:
        host, port, _ = settings.host
        super().__init__(settings.ikey, settings.skey, host, port=port)
        self.timeout = settings.timeout
        self.dialed = f"{host}:{port}"
        if settings.proxy:
            name, port, headers = settings.proxy
            self.set_proxy(name, port, headers)
            self.dialed = f"the proxy {name}:{port}"
        self.tls = settings.ca_certs
        self.log = log
        self.stop = stop
        self.requests = 0  # that were sent, or are under way
        # By when the next write has to be sent, by boot_seconds(). It holds for one.
        self.send_by = NEVER
        self.write_sent = False  # the last one; one without an answer, too
        self._keep = True  # whether connections are kept for another request
        self._kept: list[HTTPSConnection] = []  # all that threads share

    # Requests

    def begin(self, call: Call[T], what: str) -> Call[T]:
        """Begin a request, in a thread. Raises Fatal, Stopped."""
        self.log.write(f"request {self.requests + 1}: {what}", EVERY_STEP)
        self.stop.check()  # after the log, which may have been stuck until a signal
        start(call)
        self.requests += 1
        return call

    def answer_of(self, call: Call[T], patience: float = 0) -> T:
        """Wait for the answer to a request. Raises Failure, Stopped."""
        end = call.began + EXCHANGE_TIME_OUTS * self.timeout
        try:
            with self.errors_explained():
                return self.stop.wait_for(call, end, patience)
        finally:
            call.send_by = NEVER  # what is given up is not sent any more
            if call.sent == NEVER:
                self.requests -= 1

    def _make_request(self, method: str, uri: str, body: Any, headers: Any) -> Any:
        """Send a request; return its answer and the answer's body."""
        if method == "GET":  # which runs in the thread of a Call already
            return self._exchange(method, uri, body, headers)
        call = Call(self._exchange, method, uri, body, headers)
        call.send_by = self.send_by
        self.send_by = NEVER
        try:
            return self.answer_of(self.begin(call, f"{method} {uri}"), ANSWER_SECONDS)
        finally:
            self.write_sent = call.sent != NEVER

    def _exchange(self, method: str, uri: str, body: Any, headers: Any) -> Any:
        """Send one request and read its whole answer, in the thread of a Call."""
        call = threading.current_thread()
        assert isinstance(call, Call)
        connection = self._take_connection()
        keep = False
        try:
            self._set_up_socket(connection.sock, method)
            # First noted, then compared: answer_of() first sets send_by, then looks at
            # what is noted. So what it takes for not sent is refused here.
            call.sent = boot_seconds()
            if call.sent > call.send_by:
                call.sent = NEVER
                keep = True
                raise TooLate(TOO_LATE)
            connection.request(method, uri, body, headers)
            response = connection.getresponse()
            data = response.read()
            # The true answer to a request comes after one with a status under 200.
            keep = response.status >= 200 and connection.sock is not None
        finally:
            if keep:
                self._kept.append(connection)
            else:
                connection.close()
            if not self._keep:
                self.keep_none()
        return response, data

    # Connections

    def _take_connection(self) -> HTTPSConnection:
        """Return a connection that is ready for a request."""
        while self._kept:
            with suppress(IndexError):  # another thread has taken the last one
                connection = self._kept.pop()
                readable, _, _ = select.select([connection.sock], [], [], 0)
                if not readable:
                    return connection
                connection.close()  # it has ended, as a rule
        return self._dial()

    def _dial(self) -> HTTPSConnection:
        # Not duo_client's class: it sends a proxy's name as the TLS server name. It
        # also lacks TCP_NODELAY: a POST on a kept connection takes 40 ms longer.
        name = self.proxy_host or self.host
        port = self.proxy_port or self.port
        connection = HTTPSConnection(name, port, timeout=self.timeout, context=self.tls)
        connection.auto_open = 0  # it must not reconnect after send_by was looked at
        if self.proxy_host:
            connection.set_tunnel(self.host, self.port, self.proxy_headers)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def keep_none(self) -> None:
        """Close the connections that are kept, and keep none from now on."""
        self._keep = False
        with suppress(IndexError):
            while True:
                self._kept.pop().close()

    def _set_up_socket(self, sock: Any, method: str) -> None:
        """Let the kernel (Linux) give up a write that it cannot deliver at once."""
        milliseconds = 0  # no limit
        if method != "GET":
            milliseconds = DELIVERY_MILLISECONDS
            # Closing resets the connection: what was not delivered is thrown away.
            at_once = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        with suppress(AttributeError):  # Linux alone has it
            option = socket.TCP_USER_TIMEOUT
            sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)

    # Trying again

    def retry(
        self, step: Callable[[Any, Any], T], subject: Any, call: Reading = None
    ) -> T:
        """Carry out a step, again if it fails in passing or Duo answers 429.

        `call` is a request that was begun ahead. Raises Failure but RateLimited,
        Stopped, and OutputBroken where the step does.
        """
        tries = 0
        limited_since = FOREVER
        while True:
            try:
                return step(subject, call)
            except RateLimited as failure:
                self.log.write(f"this try failed: {failure}", EVERY_STEP)
                limited_since = min(limited_since, boot_seconds())
                waited = boot_seconds() - limited_since
                if waited > MAX_WAIT_429_SECONDS:
                    raise Fatal(str(failure)) from None
                if call is None:  # else it was begun ahead: ask at once
                    self._wait_out_rate_limit(waited)
            except Passing as failure:
                self.log.write(f"this try failed: {failure}", EVERY_STEP)
                tries += 1
                if tries == MAX_TRIES:
                    raise
                if not isinstance(failure, TooLate):
                    # A server may close each connection without saying so.
                    self.keep_none()
                self.stop.sleep(tries * RETRY_PAUSE_SECONDS * random.uniform(0.7, 1))
            call = None

    def _wait_out_rate_limit(self, waited: float) -> None:
        pause = (2 * RETRY_PAUSE_SECONDS + waited / 10) * random.uniform(0.7, 1)
        self.log.progress(f"Duo's rate limit: waiting for {pause:.0f} s")
        self.stop.sleep(pause)

    # Errors

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Turn the errors of a request into Failures that say what can be done."""
        try:
            yield
        except ERRORS as error:
            raise self.explain(error) from None

    def explain(self, error: Exception) -> Failure:
        """Return the Failure of an error."""
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"{self.host} is not trusted: {reason_of(error)}"
            hint = "is --host (DUO_HOST) right? Or see --ca-certs (DUO_CA_CERTS)"
            return Fatal(f"{text}: {hint}")
        if isinstance(error, OSError):
            text = f"no answer from {self.dialed}: {self.without_login(error)}"
            hint = "check --host (DUO_HOST), the network and HTTPS_PROXY"
            return Passing(f"{text}: {hint}")
        # An error without a status is, as with 200, of an answer that cannot be read.
        status = getattr(error, "status", 200)
        body = getattr(error, "data", None)
        if isinstance(body, dict) and body.get("stat") == "FAIL":
            return explain_refusal(status, body)
        if status == 200:
            what = "no JSON"
            if isinstance(error, HTTPException):
                what = shorten(self.without_login(error), 200)
            text = f"the answer of {self.dialed} cannot be read: {what}"
            return Passing(f"{text}: {CHECK_HOST}")
        # A proxy's, for example.
        said = f"{status} {getattr(error, 'reason', '')}"
        text = f"{self.dialed} answers {shorten(said, 100)}, and not as Duo does"
        hint = CHECK_HOST
        if status == 429 or status >= 500:
            hint = TROUBLE
        kind = KINDS.get(status, Passing)  # a proxy may have passed it on
        return kind(f"{text}: {hint}")

    def without_login(self, error: Exception) -> str:
        """Return what an error says, but not the login that a proxy may repeat."""
        text = reason_of(error)
        for header in (self.proxy_headers or {}).values():
            text = text.replace(header.split()[-1], "...")
        return text

    # Users and phones

    def list_users(self) -> Iterator[Page]:
        """Yield every page of the user listing. Raises Failure, Stopped."""
        offset = 0
        length = USERS_A_PAGE
        total = 0  # until the first page names it
        while True:
            # Pages are asked for ahead, guessing that all are as long as the last one;
            # and guessing again from where Duo goes on, if that was wrong.
            guesses = range(offset, max(total, offset + 1), length)
            for guess, call in ahead(self.begin_page, guesses, PAGES_AHEAD):
                if guess != offset:
                    break  # Duo goes on elsewhere
                page = self.retry(self.get_page, offset, call)
                yield page
                if page.next_offset is None:
                    return
                total = page.total
                length = page.next_offset - offset
                offset = page.next_offset

    def begin_page(self, offset: int) -> Call[Any]:
        """Begin to ask for a page of the user listing."""
        params = {"limit": str(USERS_A_PAGE), "offset": str(offset)}
        return self.begin(Call(self.ask_for_users, params), f"users from {offset}")

    def get_page(self, offset: int, call: Reading) -> Page:
        """Return a page of the user listing. Raises Failure, Stopped."""
        page = self.page_of(call or self.begin_page(offset))
        if page.next_offset is None:
            if offset + len(page.users) < page.total:
                raise Failure("Duo's user listing ends before its total")
            return page
        if page.next_offset <= offset or not page.users:
            raise Failure(NO_NEXT_PAGE)
        if 0 < page.total < page.next_offset:
            raise Failure("Duo's user listing goes on after its total")
        return page

    def look_up_users(self, names: list[str]) -> Iterator[Record]:
        """Yield the users who bear one of these names. Raises Failure, Stopped."""
        wanted = {name.casefold() for name in names}
        for first in range(0, len(names), NAMES_A_LOOK_UP):
            some = names[first : first + NAMES_A_LOOK_UP]
            for user in self.retry(self.find_users, some):
                # A server that ignores the question must not widen the run.
                if names_of(user) & wanted:
                    yield user

    def find_users(self, names: list[str], _: None) -> list[Record]:
        """Return the users that Duo gives for these names. Raises Failure, Stopped."""
        # Not by duo_client's get_users_by_names, which follows next_offset for ever.
        call = Call(self.ask_for_users, {"username_list": json.dumps(names)})
        self.begin(call, count(len(names), "user"))
        return self.page_of(call).users

    def ask_for_users(self, params: dict[str, str]) -> Any:
        """Ask for users; return their records and metadata."""
        answer = self.api_call("GET", "/admin/v1/users", params)
        return self.parse_json_response_and_metadata(*answer)

    def page_of(self, call: Call[Any]) -> Page:
        """Wait for a page. Raises Failure, Stopped."""
        users, metadata = self.answer_of(call)
        if not is_list_of_records(users) or not isinstance(metadata, dict):
            raise Passing(f"Duo's answer is not a page of users: {CHECK_HOST}")
        total = metadata.get("total_objects")
        if type(total) is not int:
            total = 0
        next_offset = metadata.get("next_offset")
        if next_offset is not None and type(next_offset) is not int:
            raise Failure(NO_NEXT_PAGE)
        return Page(users, total, next_offset)

    def begin_phone(self, phone_id: str) -> Call[Any]:
        """Begin to read a phone."""
        return self.begin(Call(self.get_phone_by_id, phone_id), f"GET {phone_id}")

    def read_phone(self, phone_id: str, call: Reading) -> Record:
        """Return the record of a phone, with its users. Raises Failure, Stopped."""
        record = self.answer_of(call or self.begin_phone(phone_id))
        # An answer that got mixed up must not vouch for another phone.
        if not isinstance(record, dict) or record.get("phone_id") != phone_id:
            raise Passing("Duo's answer is not the record of this phone")
        if not is_list_of_records(record.get("users")):
            raise Passing("Duo does not say whose phone this is")
        return record


def explain_refusal(status: int, body: Record) -> Failure:
    """Return the Failure of an answer that is one of Duo's own errors."""
    code = body.get("code")
    if type(code) is not int:
        code = 0
    if status == 200 and code:
        status = code // 100
    text = f"Duo answers {status} {body.get('message') or 'without a message'}"
    if body.get("message_detail"):
        text += f" ({body['message_detail']})"
    text = shorten(text, 200)
    kind = KINDS.get(code) or KINDS.get(status, Failure)
    hint = HINTS.get(code) or HINTS.get(status)
    if status >= 500:
        kind = Passing
        hint = TROUBLE
    if hint:
        text += f": {hint}"
    failure = kind(text)
    failure.refused = 400 <= status < 500 and status != 408
    return failure


# ------------------------------------------------------------------- what is reported

# The verbosity from which the log shows a line. A terminal counts as -v.
ALWAYS = 0
WHAT_IS_DONE = 1
EVERY_STEP = 2
PROGRESS_AFTER_SECONDS = 1  # a short run needs none
SETUP_MINUTES = 17  # after which Duo's own setup seems to time out (observed)


class Told(NamedTuple):
    """How an event is told."""

    json: str  # its name in the JSON lines: an interface
    level: int
    log: str
    summary: str  # after its number; "": the summary leaves it out
    has_record: bool = False  # its JSON line has the phone's whole record
    is_frequent: bool = False  # it has a JSON line only with -v, or in a dry run


class Event(enum.Enum):
    """What a run reports. What is always shown makes the exit status 1."""

    STAMPED = Told("stamped", WHAT_IS_DONE, "stamped", "stamped")
    DELETING = Told("deleting", EVERY_STEP, "deleting", "", has_record=True)
    DELETED = Told("deleted", WHAT_IS_DONE, "deleted", "deleted")
    UNTAGGED = Told("untagged", WHAT_IS_DONE, "untagged", "untagged", has_record=True)
    WOULD_STAMP = Told("would_stamp", EVERY_STEP, "would stamp", "to stamp")
    WOULD_DELETE = Told(
        "would_delete", EVERY_STEP, "would delete", "to delete", has_record=True
    )
    WOULD_UNTAG = Told("would_untag", EVERY_STEP, "would untag", "to untag")
    DECLINED = Told("declined", WHAT_IS_DONE, "declined", "declined")
    CHANGED = Told("changed", WHAT_IS_DONE, "changed", "changed")
    GONE = Told("gone", WHAT_IS_DONE, "gone", "gone")
    WAITING = Told("waiting", EVERY_STEP, "waiting", "waiting", is_frequent=True)
    NAMED = Told("named", EVERY_STEP, "named", "kept", is_frequent=True)
    LEFT = Told("left", EVERY_STEP, "left", "due and left", is_frequent=True)
    FAILED = Told("failed", ALWAYS, "error", "failed")
    UNKNOWN_USER = Told("unknown_user", ALWAYS, "error: no such user in Duo", "unknown")


def describe(phone: Phone) -> str:
    """Return what people know a phone by."""
    names = ", ".join(user.name for user in phone.users.values())
    number = phone.record.get("number")
    if number:
        return f"phone {number} of {names}"
    return f"tablet of {names}"


def printable(text: str, stream: TextIO | None) -> str:
    """Write as escapes what does not print, and what the stream's encoding lacks."""
    shown = ""
    for character in text:
        if character.isprintable():
            shown += character
        else:
            shown += ascii(character)[1:-1]
    encoding = getattr(stream, "encoding", None) or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def write_to_stderr(text: str) -> bool:
    """Write to standard error; return whether that worked."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # none, broken, closed
        return False
    return True


def shorten(text: str, width: int) -> str:
    """Cut a text to one line of at most so many characters."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    return text[: width - 3] + "..."


def count(number: int, what: str) -> str:
    """Say how many of something there are: "1 user", "2 users"."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}s"


def iso(seconds: int | None) -> str | None:
    """Return seconds since the epoch in ISO 8601, UTC; None for None."""
    if seconds is None:
        return None
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # from Duo: it may be any number
        return None


def duration(seconds: int) -> str:
    """Return a length of time in its largest unit: "25 minutes", "3 days"."""
    for unit, length in ("day", 86400), ("hour", 3600), ("minute", 60):
        if seconds >= length:
            return count(seconds // length, unit)
    return count(max(0, seconds), "second")


def last_login_of(phone: Phone) -> int | None:
    """Return when one of its users last logged in, in seconds since the epoch."""
    logins = [user.last_login for user in phone.users.values()]
    return max((each for each in logins if each is not None), default=None)


class Log:
    """Standard error: dated lines, questions, and how far a long run has come."""

    def __init__(self, verbose: int, stop: Stop) -> None:
        self.terminal = bool(sys.stderr and sys.stderr.isatty())
        self.stop = stop
        self.level = verbose
        if self.terminal:
            self.level = max(verbose, WHAT_IS_DONE)
        self.began = boot_seconds()
        self.clear = ""  # what ends or clears the line that the cursor is on

    def write(self, text: str, level: int = ALWAYS) -> None:
        """Write a line with its date, if the verbosity is at least `level`."""
        if level <= self.level:
            self.show(time.strftime("%Y-%m-%d %H:%M:%S ") + text)

    def show(self, text: str, end: str = "\n", clear: str = "") -> bool:
        """Write a text; return whether that worked."""
        text = self.clear + printable(text, sys.stderr) + end
        self.clear = clear
        return write_to_stderr(text)

    def progress(self, text: str) -> None:
        """Show on a terminal how far a run has come, until something else is shown."""
        if self.terminal and boot_seconds() - self.began > PROGRESS_AFTER_SECONDS:
            self.show(text, "", "\r" + " " * len(text) + "\r")

    def ask(self, question: str) -> str:
        """Show a question; return the line that answers it, "" if there is none."""
        # What was typed before the question is no answer. (A pipe keeps it.)
        with suppress(TypeError, OSError, ValueError, termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        if not self.show(question, "", "\n"):
            return ""
        answer = self.stop.wait_for(start(Call(read_line)), FOREVER)
        self.stop.check()  # a hang-up ends the input, too
        self.clear = ""
        if not (answer.endswith("\n") and sys.stdin.isatty()):
            # (A line typed on a terminal is on the screen already.)
            self.show(shorten(answer, 40))
        return answer


def read_line() -> str:
    """Return a line of standard input, "" at its end or if there is none."""
    try:
        return sys.stdin.buffer.readline().decode(errors="replace")
    except (AttributeError, OSError, ValueError):  # none, lost, closed
        return ""


class Journal:
    """A file of JSON lines. If it is new, only its owner can read it."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError, ValueError."""
        # Opened for reading, too, to see how its last line ends.
        self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        mode = os.fstat(self.file).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(NOT_REGULAR)
        warn_if_others_can_read(mode, "--journal")
        # A new file is found again after a crash only if its folder is on the disk.
        with suppress(OSError):  # not every folder can be read, or synced
            folder = os.open(Path(path).absolute().parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def write(self, line: str, *, to_disk: bool) -> None:
        """Append a line, at once onto the disk if asked to. Raises OSError."""
        data = f"{line}\n".encode()
        if self.ends_in_torn_line():
            data = b"\n" + data
        while data:
            data = data[os.write(self.file, data) :]
        if to_disk:
            os.fsync(self.file)

    def ends_in_torn_line(self) -> bool:
        """Tell whether a full disk tore the last line. Raises OSError."""
        status = os.fstat(self.file)
        if not status.st_nlink:
            raise OSError("it has been removed")
        if not status.st_size:
            return False
        last = os.pread(self.file, 1, status.st_size - 1)
        # A file that grows meanwhile is being written by another run.
        return last != b"\n" and os.fstat(self.file).st_size == status.st_size


class Report:
    """Tells what happens: in the journal, on standard output, in the log."""

    def __init__(
        self, settings: Settings, now: Clock, log: Log, journal: Journal | None
    ) -> None:
        self.settings = settings
        self.now = now
        self.log = log
        self.journal = journal  # None: there is none, or it is broken
        self.has_stdout = True  # until it is broken
        self.users_seen = 0
        self.phones_seen: set[str] = set()  # their ids: a shared phone counts once
        self.limbo: set[str] = set()
        self.events: Counter[Event] = Counter()
        self.writes_planned = 0
        self.writes_begun = 0
        self.last_words = ""  # of a dry run

    # Outputs

    def write_json(self, facts: Fields, *, to_disk: bool = False) -> None:
        """Write a JSON line to all that have them. Raises OutputBroken."""
        line = json.dumps(facts)
        try:
            if self.journal:
                self.journal.write(line, to_disk=to_disk)
        except OSError as error:
            self.journal = None
            text = f"{LABELS['--journal']} cannot be written: {reason_of(error)}"
            raise OutputBroken(text) from None
        finally:  # the other output has the line, too
            if self.settings.json:
                self.write_to_stdout(line)

    def write_text(self, text: str) -> None:
        """Write a line of a dry run's text. Raises OutputBroken."""
        if self.settings.dry_run and not self.settings.json:
            self.write_to_stdout(printable(text, sys.stdout))

    def write_to_stdout(self, line: str) -> None:
        """Write a line to standard output, unless it is broken. Raises OutputBroken."""
        if not self.has_stdout:
            return
        self.log.show("", "")  # clears the line that shows progress
        try:
            if sys.stdout is None:
                raise OSError("it is closed")
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            self.has_stdout = False
            text = f"standard output cannot be written: {reason_of(error)}"
            if isinstance(error, BrokenPipeError):
                text = "the reader of standard output has gone"
            raise OutputBroken(text) from None

    # Before

    def scope(self) -> str:
        """Say what a dry run or the prompts are about."""
        host, port, _ = self.settings.host
        if port != 443:
            host += f":{port}"
        limit = "none"
        if self.settings.max_deletions is not None:
            limit = count(self.settings.max_deletions, "user")
        grace = f"grace period {count(self.settings.grace_period, 'minute')}"
        return f"{host}: {grace}, deletion limit {limit}"

    def begin(self) -> None:
        """Show what a dry run is about. Raises OutputBroken."""
        self.write_text("This is a dry run: it changes nothing.")
        self.write_text(self.scope())
        if self.settings.grace_period < SETUP_MINUTES:
            text = f"Duo's own setup seems to take up to {SETUP_MINUTES} minutes"
            self.write_text(f"{text}: a user may still be at it")

    def begin_act(self, plan: list[Phone]) -> None:
        """Show what the prompts are about, if there are any."""
        writes = [phone for phone in plan if phone.verdict.verb in WRITES]
        self.writes_planned = len(writes)
        if self.writes_planned and not self.settings.force:
            self.log.show(self.scope())

    # Meanwhile

    def saw_user(self, phones: list[Record]) -> None:
        """Count a user and the user's phones."""
        self.users_seen += 1
        for record in phones:
            phone_id = str(record.get("phone_id"))
            self.phones_seen.add(phone_id)
            if is_limbo(record):
                self.limbo.add(phone_id)

    def walked(self, total: int) -> None:
        """Show how far the walk has come."""
        text = count(self.users_seen, "user")
        if total:
            text = f"{self.users_seen} of {count(total, 'user')}"
        self.log.progress(text)

    def show_progress(self) -> None:
        """Show how far the writes have come: another one begins."""
        self.writes_begun += 1
        self.log.progress(f"{self.writes_begun} of {self.writes_planned}")

    def event(self, event: Event, phone: Phone | None = None, **details: str) -> None:
        """Report an event, and the phone it is about. Raises OutputBroken."""
        self.events[event] += 1
        try:
            has_all = self.settings.verbose or self.settings.dry_run
            if has_all or not event.value.is_frequent:
                facts = {**self.facts(event, phone), **details}
                self.write_json(facts, to_disk=event is Event.DELETING)
        finally:  # last, since the log may be stuck until a signal ends the run
            parts = [event.value.log]
            if phone:
                parts.append(f"{describe(phone)} ({phone.phone_id})")
            parts.extend(details.values())
            self.log.write(": ".join(parts), event.value.level)

    def facts(self, event: Event, phone: Phone | None) -> Fields:
        """Return the fields that an event has in the JSON lines."""
        facts: Fields = {"event": event.value.json, "time": iso(self.now())}
        if phone:
            facts["phone_id"] = phone.phone_id
            facts["number"] = phone.record.get("number")
            facts["users"] = [user.name for user in phone.users.values()]
            facts["tagged"] = iso(phone.tag)
            facts["last_login"] = iso(last_login_of(phone))
            if event.value.has_record:
                facts["record"] = phone.record
        return facts

    def fail(self, error: str, phone: Phone | None = None) -> None:
        """Report what went wrong, with one phone or in all. Raises OutputBroken."""
        self.event(Event.FAILED, phone, error=error)

    def limit_exceeded(self, due: int, users: int, limit: int) -> None:
        """Report that too many users would lose a phone. Raises OutputBroken."""
        option = LABELS["--max-deletions"]
        text = f"{count(due, 'phone')} due for deletion, none deleted: "
        text += f"{count(users, 'user')} would lose one, and {option} is {limit}. "
        lift = "If they are right, --max-deletions none lifts it for one run"
        if not self.settings.dry_run:
            self.fail(f"{text}Look at them with --dry-run. {lift}")
            return
        self.last_words = text + lift  # told where the eye is: below the table
        self.events[Event.FAILED] += 1
        self.write_json({**self.facts(Event.FAILED, None), "error": text + lift})

    # Prompts

    def ask(self, phone: Phone) -> str:
        """Ask whether to write to a phone: "y", "n" or "a". Raises Stopped."""
        number = f"{self.writes_begun} of {self.writes_planned}"
        question = f"{number}: {self.question(phone)}? [y/n/a/q] "
        while True:
            typed = self.log.ask(question)
            if not typed:
                text = "no answer to a prompt, so nothing more is written"
                hint = "where nobody can answer, leave out --no-force (DUO_FORCE=no)"
                self.fail(f"{text}: {hint}")
                raise Stopped
            answer = typed.strip().lower()
            if answer == "q":
                raise Stopped
            if answer in ("y", "yes", "n", "no", "a"):
                return answer[0]
            all_left = f"yes to all that are left to {phone.verdict.verb}"
            self.log.show(f"y: yes, n: no, a: {all_left}, q: stop here")

    def question(self, phone: Phone) -> str:
        """Say what is to be done to a phone, and what tells whether that is right."""
        facts = [self.reason(phone.verdict, phone.record)]
        tagged = self.tagged_ago(phone)
        if tagged:
            facts.append(f"tagged {tagged} ago")
        facts.append(f"last login {self.login_ago(phone)}")
        facts.append(phone.phone_id)
        return f"{phone.verdict.verb} {describe(phone)} ({', '.join(facts)})"

    def tagged_ago(self, phone: Phone) -> str:
        """Say how long ago a phone was tagged, "" if it is not, or in the future."""
        if phone.tag is None or phone.tag > self.now():
            return ""
        return duration(self.now() - phone.tag)

    def login_ago(self, phone: Phone) -> str:
        """Say how long ago one of its users last logged in."""
        last_login = last_login_of(phone)
        if last_login is None:
            return "never"
        return f"{duration(self.now() - last_login)} ago"

    def reason(self, verdict: Verdict, record: Record) -> str:
        """Say why a phone has a verdict."""
        name = shorten(repr(record.get("name")), 40)
        over = (read_tag(record) or 0) + self.settings.grace_period * 60
        left = duration(over - self.now())
        return verdict.reason.format(name=name, left=left)

    # A dry run

    def rehearse(self, plan: list[Phone]) -> None:
        """Report what a run would do, a row for each phone. Raises OutputBroken."""
        rows: list[dict[str, str]] = []
        for phone in plan:
            self.log.stop.check()
            self.event(Event[phone.verdict.would], phone)
            if self.settings.verbose or phone.verdict is not Verdict.NAMED:
                rows.append(self.row(phone))
        if not rows:
            return
        rows.insert(0, {title: title for title in rows[0]})
        for column in rows[0]:
            width = max(len(row[column]) for row in rows)
            for row in rows:
                row[column] = row[column].ljust(width)
        for row in rows:
            self.write_text("  ".join(row.values()).rstrip())

    def row(self, phone: Phone) -> dict[str, str]:
        """Return what the table says of a phone, by column and escaped."""
        reason = self.reason(phone.verdict, phone.record)
        cells = {
            "A RUN WOULD": f"{phone.verdict.verb}: {reason}",
            "TAGGED": self.tagged_ago(phone),
            "LAST LOGIN": self.login_ago(phone),
            "NUMBER": shorten(str(phone.record.get("number") or ""), 20),
            "PHONE ID": phone.phone_id,
            "USERS": ", ".join(user.name for user in phone.users.values()),
        }
        if not self.settings.verbose:
            del cells["PHONE ID"]
        return {column: printable(cell, sys.stdout) for column, cell in cells.items()}

    # The end

    def output_broke(self, broken: OutputBroken) -> None:
        """Report that an output cannot be written, where that can be read."""
        with suppress(OutputBroken):  # the other one, too
            self.fail(str(broken))

    def end(self, requests: int) -> int:
        """Report the summary; return the exit status."""
        stopped_by = self.log.stop.signal
        facts = self.summary(requests, stopped_by)
        sentence = sentence_of(facts)
        try:
            self.write_json(facts)
            self.write_text(sentence)
            if facts["named"] and not self.settings.verbose:
                self.write_text("To see the phones that are kept: -v")
        except OutputBroken as broken:
            self.output_broke(broken)
            # Again, for the other output: this has changed the exit status.
            return self.end(requests)
        if stopped_by is not None:
            self.log.write(f"error: stopped by {signal.Signals(stopped_by).name}")
        if self.settings.json or not self.settings.dry_run:
            level = WHAT_IS_DONE
            if facts["exit_status"]:
                level = ALWAYS
            self.log.write(sentence, level)
        if self.last_words:
            self.log.write(f"error: {self.last_words}")
        return int(facts["exit_status"])

    def summary(self, requests: int, stopped_by: int | None) -> Fields:
        """Return the fields of the JSON summary."""
        facts: Fields = {
            "event": "summary",
            "time": iso(self.now()),
            "users_seen": self.users_seen,
            "phones_seen": len(self.phones_seen),
            "limbo": len(self.limbo),
        }
        status = 0
        for event in Event:
            facts[event.value.json] = self.events[event]
            if self.events[event] and event.value.level == ALWAYS:
                status = 1
        if stopped_by is not None:
            status = 128 + stopped_by
        facts["requests"] = requests
        facts["seconds"] = round(boot_seconds() - self.log.began, 1)
        facts["exit_status"] = status
        return facts


def sentence_of(facts: Fields) -> str:
    """Return the summary as people read it."""
    text = "nothing was read"
    if facts["users_seen"]:
        users = count(facts["users_seen"], "user")
        phones = count(facts["phones_seen"], "phone")
        text = f"{users}, {phones}, {facts['limbo']} in limbo"
    parts = []
    for event in Event:
        number = facts[event.value.json]
        if number and event.value.summary:
            parts.append(f"{number} {event.value.summary}")
    if parts:
        text += ": " + ", ".join(parts)
    text += f"; {count(facts['requests'], 'request')}, {facts['seconds']} s"
    if facts["exit_status"]:
        text += f"; exit status {facts['exit_status']}"
    return text


# -------------------------------------------------------------------- the command line

EXAMPLES = """\
examples:
  duo_phone_cleanup --dry-run             show what a run would do
  duo_phone_cleanup --no-force ann bob    look at two users, ask before writing
  duo_phone_cleanup --max-deletions 0     stamp, but delete nothing
  duo_phone_cleanup --journal duo.jsonl   as from cron: silent if all goes well

Options override variables; an empty variable counts as unset. In a variable, a
switch is yes or no (DUO_FORCE=no). HTTPS_PROXY and NO_PROXY are honored.

Exit status: 0 all went well, or you answered no or q; 1 something failed, or a
limit or an unknown user stopped part of it; 2 wrong usage; 129, 130, 143
stopped by SIGHUP, SIGINT, SIGTERM.
"""
# From this ratio of difflib on, a name is taken for a misspelling of another: two
# letters swapped in a short name have 0.83, DUO_API_HOST and DUO_HOST have 0.8.
MISSPELLED = 0.82
SHORT_NAME = 8  # DUO_ and four letters: DUO_AKEY is Duo Web's, no misspelled DUO_SKEY
YES = ("y", "yes", "t", "true", "on", "1")
NO = ("n", "no", "f", "false", "off", "0")
NOT_REGULAR = "expected a regular file (--json serves a pipe)"


class UsageError(Exception):
    """The settings are wrong. No value but a path is shown: any other may be a key."""


class Server(NamedTuple):
    """Where Duo or a proxy is, and the headers that a proxy wants."""

    name: str
    port: int
    headers: dict[str, str]


class Settings(NamedTuple):
    """What a run goes by: a field for each option, and more."""

    host: Server
    ikey: str
    skey: str
    skey_file: str | None  # the key that was in it
    dry_run: bool
    force: bool
    grace_period: int  # minutes
    max_deletions: int | None  # users; None: no limit
    untag: bool
    verbose: int
    json: bool
    journal: str | None  # a path
    timeout: float  # seconds
    ca_certs: ssl.SSLContext  # which trusts these alone
    users: list[str]
    proxy: Server | None


def checked(text: str, pattern: str, expected: str) -> str:
    """Return a text that fits a pattern. Raises ValueError."""
    if not re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
        raise ValueError(f"expected {expected}")
    return text


def to_switch(text: str) -> bool:
    """Return a switch. Raises ValueError."""
    return checked(text, "|".join(YES + NO), "yes or no").lower() in YES


def to_key(text: str) -> str:
    """Return a key. Raises ValueError."""
    return checked(text, "[!-~]+", "a key as Duo shows it, one word of ASCII")


def to_number(text: str) -> int:
    """Return a whole number. Raises ValueError."""
    return int(checked(text, r"\d{1,9}", "a whole number, 0 or more"))


def to_limit(text: str) -> int | None:
    """Return a number of users, None for no limit. Raises ValueError."""
    if text.lower() == "none":
        return None
    return int(checked(text, r"\d{1,9}", "a whole number of users, 0 or more, or none"))


def to_seconds(text: str) -> float:
    """Return seconds. Raises ValueError."""
    pattern = r"(?=.*[1-9])\d{1,6}(\.\d{1,6})?"  # some digit is not 0
    return float(checked(text, pattern, "seconds, more than 0"))


def to_server(text: str) -> Server:
    """Return the server of HOST[:PORT] or of a URL. Raises ValueError."""
    expected = "HOST[:PORT], such as api-12345678.duosecurity.com"
    part = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    # Without a dot, it may be a key that was pasted here.
    pattern = rf"(localhost|{part}(\.{part})+)(:\d{{1,5}})?"
    address = checked(re.sub("^https?://|/.*", "", text.lower()), pattern, expected)
    name, _, port = address.partition(":")
    if port and not 0 < int(port) < 65536:
        raise ValueError(f"expected {expected}")
    return Server(name, int(port or 443), {})


def to_key_of_file(path: str) -> str:
    """Return the key in a file; warn if others can read it. Raises OSError."""
    with Path(path).open(encoding="ascii", errors="replace") as file:
        warn_if_others_can_read(os.fstat(file.fileno()).st_mode, "--skey-file")
        return to_key(file.read(1000).strip())


def to_tls_context(path: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the CAs in a file. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies, always
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise OSError("expected a regular file")  # a pipe could keep it waiting
        context.load_verify_locations(path)
    except OSError as error:
        raise ValueError(about_file(path, error)) from None
    return context


def to_path(text: str) -> str:
    """Return the path of a file. Raises ValueError."""
    return checked(text, "(?s:.+)", "the path of a file")


class Option(NamedTuple):
    """A setting: an option of the command line, and an environment variable."""

    flag: str
    short: str  # "": none
    metavar: str  # "": it takes no value
    convert: Callable[[str], Any]  # raises ValueError or OSError
    help: str
    default: str | None = None  # a text, as a variable is

    @property
    def field(self) -> str:
        """Its name in Settings."""
        return self.flag[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"DUO_{self.field.upper()}"


GRACE_HELP = f"""minutes that a tagged phone may stay; Duo's own setup seems to
time out after about {SETUP_MINUTES}"""
LIMIT_HELP = """delete nothing if more than N users would lose a phone; none: no limit,
0: only stamp"""
UNTAG_HELP = "make the name of a phone blank again that was set up after it was tagged"
CA_HELP = "CA certificates to trust instead, for networks that inspect TLS"
CA_CERTS = duo_client.client.DEFAULT_CA_CERTS
OPTIONS = {
    "the Admin API application (its secret key can delete anybody's second factor)": [
        Option("--host", "-H", "HOST", to_server, "API hostname, HOST or HOST:PORT"),
        Option("--ikey", "-i", "IKEY", to_key, "integration key"),
        Option("--skey", "-s", "SKEY", to_key, "secret key; others can see it in ps"),
        Option("--skey-file", "", "FILE", to_key_of_file, "read it from a file"),
    ],
    "what a run does": [
        Option("--dry-run", "-n", "", to_switch, "only show what a run would do", "no"),
        Option("--force", "-f", "", to_switch, "do not ask before each write", "yes"),
        Option("--grace-period", "-g", "MINUTES", to_number, GRACE_HELP, "10"),
        Option("--max-deletions", "", "N", to_limit, LIMIT_HELP, "100"),
        Option("--untag", "", "", to_switch, UNTAG_HELP, "no"),
    ],
    "output": [
        Option("--verbose", "-v", "", to_number, "show what is done; -vv: more", "0"),
        Option("--json", "", "", to_switch, "JSON lines on standard output", "no"),
        Option("--journal", "", "FILE", to_path, "append the JSON lines to a file"),
    ],
    "network": [
        Option("--timeout", "", "SECONDS", to_seconds, "for each wait", "30"),
        Option("--ca-certs", "", "FILE", to_tls_context, CA_HELP, CA_CERTS),
    ],
}
ALL_OPTIONS = [option for options in OPTIONS.values() for option in options]
# What a person knows a setting by: "--skey (DUO_SKEY)".
LABELS = {each.flag: f"{each.flag} ({each.variable})" for each in ALL_OPTIONS}


def reason_of(error: Exception) -> str:
    """Return what an error says, without OpenSSL's noise."""
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"^\[[A-Z0-9: _]*] |^_ssl\.c:\d+: |\.? \(_ssl\.c:\d+\)$", "", text)


def about_file(path: str, error: Exception) -> str:
    """Say what is wrong with a file, and whose it is if that is the trouble."""
    text = f"{path}: {reason_of(error)}"
    if isinstance(error, PermissionError):
        with suppress(OSError, KeyError):
            text += f" (it belongs to {Path(path).owner()})"
    return text


def warn_if_others_can_read(mode: int, flag: str) -> None:
    """Warn of a file that users outside its group can read."""
    if mode & 0o004:
        write_to_stderr(f"warning: others can read the file of {LABELS[flag]}\n")


class Parser(argparse.ArgumentParser):
    """A parser whose errors show no value: it may be a key."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        flag = re.findall("--[a-z-]+", message)[0]
        wrong = "takes no value"
        if "expected" in message:
            wrong = "expected a value"
        raise UsageError(f"{LABELS.get(flag, flag)}: {wrong}")


def make_parser() -> Parser:
    """Return a parser of options that leaves out what is not given."""
    parser = Parser(
        prog="duo_phone_cleanup",
        usage="%(prog)s [options] [user ...]",
        description=(__doc__ or "").partition("\n\nThe only writes")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument_group("user ...", "names or aliases of the users to look at")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            add_option(group, option)
    group = parser.add_argument_group("this program")
    group.add_argument("-h", "--help", action="help", help="show this help")
    group.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {__version__}, duo_client {duo_client.__version__},"
        f" Python {sys.version.split()[0]}",
        help="show the versions of this program, duo_client and Python",
    )
    return parser


def add_option(group: Any, option: Option) -> None:
    """Add an option to a group of a parser."""
    flags = [flag for flag in (option.short, option.flag) if flag]
    text = option.help
    # (The path of --ca-certs is too long.)
    if option.default and option.default.isalnum():
        text += f" (default: {option.default})"
    text += f" [{option.variable}]"
    if option.metavar:
        group.add_argument(*flags, metavar=option.metavar, help=text)
    elif option.convert is to_switch:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    else:
        group.add_argument(*flags, action="count", help=text)


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings. Raises UsageError; SystemExit after --help, --version."""
    given, users = read_words(argv)
    refuse_misspelled_variables(environ)
    keys = [given.get("skey", ""), environ.get("DUO_SKEY", "").strip()]
    if "skey" in given or "skey_file" in given:  # either of them beats both variables
        environ = {**environ, "DUO_SKEY": "", "DUO_SKEY_FILE": ""}
    texts: Fields = {}
    for option in ALL_OPTIONS:
        texts[option.field] = environ.get(option.variable) or option.default
    texts.update(given)
    if texts["skey"] and texts["skey_file"]:
        raise UsageError(f"{LABELS['--skey']} or {LABELS['--skey-file']}, not both")
    for key in keys:
        refuse_pasted_key(key, argv, users, texts)
    values: Fields = {}
    for option in ALL_OPTIONS:
        values[option.field] = convert(option, texts[option.field])
        if option.field == "skey_file":
            refuse_pasted_key(values[option.field], argv, users, texts)
    values["skey"] = values["skey"] or values["skey_file"]
    missing = [name for name in ("host", "ikey", "skey") if not values[name]]
    if missing:
        names = ", ".join(LABELS[f"--{name}"] for name in missing)
        raise UsageError(f"missing: {names}. If they are in a file: set -a; . FILE")
    return Settings(**values, users=users, proxy=find_proxy(values["host"]))


def read_words(argv: Sequence[str]) -> tuple[Fields, list[str]]:
    """Return the options given and the users. Raises UsageError, SystemExit."""
    end = [*argv, "--"].index("--")  # what follows are users
    words = list(argv[:end])
    for word in words:
        if is_long_name_with_one_dash(word):
            raise unknown_option(words, word)
    known, others = make_parser().parse_known_args(words)
    for word in others:
        if word.startswith("-"):
            raise unknown_option(words, word)
    return vars(known), [*others, *argv[end + 1 :]]


def is_long_name_with_one_dash(word: str) -> bool:
    """Tell whether a word is like -skey (or -Hduo), which argparse takes for -s key."""
    switches = [option.short[1:] for option in ALL_OPTIONS if not option.metavar]
    if re.fullmatch(f"-[h{''.join(switches)}]+", word):
        return False
    return re.match("-[A-Za-z]([a-z_-]+$|[a-z_-]*=)", word) is not None


def unknown_option(words: list[str], word: str) -> UsageError:
    """Return the error of a word that is no option, and not shown: it may be a key."""
    numbers = [number for number, each in enumerate(words, 1) if each == word]
    places = [f"argument {number}" for number in numbers]
    places.append("an argument")  # of -vX, argparse may give back -X
    name = "--" + word.partition("=")[0].lstrip("-")
    flags = ["--help", "--version"]
    for option in ALL_OPTIONS:
        flags += [option.flag, option.flag.replace("--", "--no-", 1)]
    return UsageError(f"{places[0]} is not an option{suggestion(name, flags)}")


def suggestion(name: str, names: list[str]) -> str:
    """Return a question for the name that was nearly given, "" if there is none."""
    near = difflib.get_close_matches(name, names, 1, MISSPELLED)
    return "".join(f": did you mean {each}?" for each in near)


def refuse_misspelled_variables(environ: Mapping[str, str]) -> None:
    """Raise UsageError for a variable that is nearly ours; others are left alone."""
    ours = [option.variable for option in ALL_OPTIONS]
    for name in sorted(environ):
        if name in ours or not name.startswith("DUO_") or len(name) <= SHORT_NAME:
            continue
        text = suggestion(name, ours)
        if text and environ[name]:
            raise UsageError(f"unknown variable {name!a}{text}")


def refuse_pasted_key(
    key: str | None, argv: Sequence[str], users: list[str], texts: Fields
) -> None:
    """Raise UsageError if a user or a path is the secret key: it must not be shown."""
    if not key:
        return
    if key in users:
        number = len(argv) - list(argv)[::-1].index(key)
        raise UsageError(f"argument {number} is the secret key, not a user")
    for option in ALL_OPTIONS:
        path = texts[option.field]
        if option.metavar == "FILE" and path and path.strip() == key:
            text = "this is the secret key, not the path of a file"
            raise UsageError(f"{LABELS[option.flag]}: {text}")


def convert(option: Option, value: Any) -> Any:
    """Return the value of a setting. Raises UsageError."""
    if not isinstance(value, str):
        return value  # none, or a switch or a count, as argparse gives it
    try:
        return option.convert(value.strip())
    except (ValueError, OSError) as error:
        raise UsageError(f"{LABELS[option.flag]}: {reason_of(error)}") from None


def find_proxy(host: Server) -> Server | None:
    """Return the proxy that HTTPS_PROXY names, if there is one. Raises UsageError."""
    url = urllib.request.getproxies().get("https", "").strip()
    if not url or urllib.request.proxy_bypass(f"{host.name}:{host.port}"):
        return None
    if "//" not in url:
        url = f"http://{url}"
    wrong = UsageError("HTTPS_PROXY: expected http://[USER:PASS@]HOST[:PORT]")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or 80
    except ValueError:  # its text may show the login
        raise wrong from None
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme != "http" or not parts.hostname or rest:
        raise wrong  # the rest may be a piece of a password
    headers = {}
    login, at, _ = parts.netloc.rpartition("@")
    if at:
        encoded = base64.b64encode(urllib.parse.unquote_to_bytes(os.fsencode(login)))
        headers["Proxy-Authorization"] = f"Basic {encoded.decode()}"
    return Server(parts.hostname, port, headers)


def open_journal(settings: Settings) -> Journal | None:
    """Return the journal, None if there is none to write. Raises UsageError."""
    path = settings.journal
    if not path:
        return None
    try:
        if not settings.dry_run:
            return Journal(path)
        check_journal(Path(path))
        return None
    except FileNotFoundError:
        text = f"{path}: its folder is missing"
    except (OSError, ValueError) as error:
        text = about_file(path, error)
    raise UsageError(f"{LABELS['--journal']}: {text}")


def check_journal(path: Path) -> None:
    """Raise OSError or ValueError if a run could not open its journal."""
    needed = os.R_OK | os.W_OK
    if not path.exists():
        path = path.absolute().parent  # where it would be made
        needed = os.X_OK | os.W_OK
        path.stat()
    elif not path.is_file():
        raise ValueError(NOT_REGULAR)
    if not os.access(path, needed):
        raise PermissionError("Permission denied")


# -------------------------------------------------------------------------------- main


def main(
    argv: Sequence[str] | None = None, clock: Callable[[], float] = time.time
) -> int:
    """Run and return the exit status. Raises SystemExit after --help, --version.

    `clock` gives the seconds since the epoch. The signal handlers are left as set.
    """
    if argv is None:
        argv = sys.argv[1:]
    stop = Stop()
    stop.take_signals()
    try:
        settings = read_settings(argv, os.environ)
        return run_and_report(settings, lambda: int(clock()), stop)
    except UsageError as error:
        text = printable(str(error), sys.stderr)
        write_to_stderr(f"duo_phone_cleanup: error: {text} (see --help)\n")
        return 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_and_report(settings: Settings, now: Clock, stop: Stop) -> int:
    """Carry out a run; return its exit status. Raises UsageError before it begins."""
    log = Log(settings.verbose, stop)
    report = Report(settings, now, log, open_journal(settings))
    duo = DuoAdmin(settings, log, stop)
    try:
        Run(settings, now, duo, report).execute()
    except Stopped:
        pass
    except OutputBroken as broken:
        report.output_broke(broken)
    duo.keep_none()
    return report.end(duo.requests)


def script() -> NoReturn:
    """Run as a process, which ends whatever its threads are still waiting for."""
    try:
        status = main()
    except SystemExit as end:  # of --help and --version
        status = int(end.code or 0)
        with suppress(AttributeError, OSError):  # it is closed, or nobody reads it
            sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    script()
