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

The only writes to Duo are delete_phone, in Run.delete, and update_phone with a new
name, in Run.rename. No other line calls them, and the line above each call sets the
time by which it has to be sent: two seconds after the phone's last read was sent.
DuoAdmin._exchange refuses a write without such a time, or after it. Nothing is written
unless verdict() wants it twice: by the record of the walk, and by the one just read.
The phone's users, the deletion limit (100 users by default), a prompt or a dry run
can only prevent it. The grace period is 10 minutes by default.

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
import shutil
import signal
import socket
import ssl
import stat
import struct
import sys
import termios
import threading
import time
import unicodedata
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timezone
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TextIO, TypeVar

import dateutil  # its parser loads on first use: most runs need none
import duo_client

__version__ = "1.2.0"

# A phone or user as Duo gives it: any field may be missing, null or of another type.
Record = dict[str, Any]
T = TypeVar("T")


# ------------------------------------------------------------------------- the verdict


class Verdict(enum.Enum):
    """What a phone's record alone says to do with it, and why (for Report.reason)."""

    UNTAG = "untag", "set up since its tag"
    STAMP = "stamp", "not tagged yet"
    NAMED = "keep", "named {name}"
    FUTURE = "wait", "tag in the future"
    UNREADABLE = "wait", "last_seen unreadable"
    STAMP_AGAIN = "stamp", "in use since its tag"
    DELETE = "delete", "grace period over"
    WAIT = "wait", "{left} left"

    def __init__(self, verb: str, reason: str) -> None:
        self.verb = verb
        self.reason = reason

    @property
    def writes(self) -> bool:
        """Whether it leads to a write."""
        return self.verb in ("untag", "stamp", "delete")


def is_limbo(record: Record) -> bool:
    """Tell whether a phone is in limbo: a "Generic Smartphone", not activated."""
    platform = str(record.get("platform")).lower()
    return platform == "generic smartphone" and not record.get("activated")


def read_tag(record: Record) -> int | None:
    """Return the tag in seconds since the epoch, None if the phone's name is no tag."""
    name = record.get("name")
    # Not by int(): it takes " 12 ", "+12", "1_000" and the digits of other scripts.
    if not isinstance(name, str) or not re.fullmatch("[1-9][0-9]{9}", name):
        return None
    digits_of_number = re.sub("[^0-9]", "", str(record.get("number")))
    if digits_of_number.endswith(name):
        return None
    return int(name)


def read_last_seen(record: Record) -> float | None:
    """Return when Duo Mobile last contacted Duo, in seconds since the epoch.

    None if Duo does not say. Raises ValueError or OverflowError for what is no time.
    """
    last_seen = record.get("last_seen")
    if last_seen is None or last_seen == "":
        return None
    if type(last_seen) is int:
        return last_seen
    if not isinstance(last_seen, str):
        raise ValueError("neither ISO 8601 nor an integer")
    # "T": isoparse() takes any character between date and time.
    seen = dateutil.parser.isoparser("T").isoparse(last_seen)
    if seen.tzinfo is None:
        seen = seen.replace(tzinfo=timezone.utc)
    return seen.timestamp()


def verdict(record: Record, now: int, grace_period: int) -> Verdict | None:
    """Return the first rule that fits a phone; None: none of this program's business.

    `now` is in seconds since the epoch, `grace_period` in minutes.
    """
    tag = read_tag(record)
    if not is_limbo(record):
        # Ten digits in the future are no tag of ours: a phone number reads so.
        if tag is None or tag > now:
            return None
        return Verdict.UNTAG
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


# ------------------------------------------------------------- the run: walk, plan, act

READ_VALID_SECONDS = 2  # at most, from sending a phone's read to sending its write
MAX_FAILED_IN_A_ROW = 4  # phones; then Duo or the network is the trouble
PHONE_ID = re.compile("[A-Za-z0-9_-]+")  # it becomes part of a path
NEVER = float("-inf")


class Event(enum.Enum):
    """What a run reports. The values are an interface: the JSON lines have them."""

    STAMPED = "stamped"
    DELETING = "deleting"
    DELETED = "deleted"
    UNTAGGED = "untagged"
    WOULD_STAMP = "would_stamp"
    WOULD_DELETE = "would_delete"
    WOULD_UNTAG = "would_untag"
    DECLINED = "declined"
    CHANGED = "changed"
    GONE = "gone"
    WAITING = "waiting"
    NAMED = "named"
    FAILED = "failed"
    UNKNOWN_USER = "unknown_user"


# What has become of a phone when the verb of its verdict is done; and in a dry run.
DONE = {
    "stamp": Event.STAMPED,
    "delete": Event.DELETED,
    "untag": Event.UNTAGGED,
    "wait": Event.WAITING,
    "keep": Event.NAMED,
}
DONE_IN_A_DRY_RUN = {
    **DONE,
    "stamp": Event.WOULD_STAMP,
    "delete": Event.WOULD_DELETE,
    "untag": Event.WOULD_UNTAG,
}


class Phone:
    """A phone with a verdict, the users who share it, and what was sent to Duo."""

    def __init__(self, phone_id: str, record: Record, verdict: Verdict) -> None:
        self.phone_id = phone_id
        self.verdict = verdict
        self.record = record  # as last read
        self.tag = read_tag(record)  # the name that it has now, if that is a tag
        self.users: list[User] = []
        self.read_sent = NEVER  # when its last read was sent, by boot_seconds()
        self.tag_to_write = 0  # when that read was answered (seconds since the epoch)
        # Writes that were sent, and that Duo neither confirmed nor refused.
        self.deletion_unconfirmed = False
        self.names_unconfirmed: list[str] = []

    def is_unconfirmed(self) -> bool:
        """Tell whether a write to it may have been carried out, or still may be."""
        return self.deletion_unconfirmed or bool(self.names_unconfirmed)


class Run:
    """One execution: walk the users and their phones, plan, act."""

    def __init__(self, settings: Settings, duo: DuoAdmin, report: Report) -> None:
        self.settings = settings
        self.duo = duo
        self.report = report
        self.now = report.now  # gives seconds since the epoch
        self.asking = not settings.force and not settings.dry_run
        self.writes_planned = 0
        self.writes_begun = 0

    def execute(self) -> None:
        """Walk, plan and act. Raises Stopped, OutputBroken."""
        try:
            self.report.begin()
            plan = self.plan(self.walk())
            self.act(plan)
            if self.settings.dry_run:
                self.report.table(plan)
        except Failure as failure:
            self.report.fail(str(failure))

    # Walk

    def walk(self) -> list[Phone]:
        """Return the phones with a verdict, each once, in the order of the listing."""
        found: dict[str, Phone] = {}
        if self.settings.users:
            pages = self.look_up_users()
        else:
            pages = self.duo.list_users()
        for page in pages:
            for user in page.users:
                self.look_at(user, found)
            self.report.walked(page.total)
        if self.settings.users:
            for phone in found.values():
                self.find_sharers(phone)
        return list(found.values())

    def look_up_users(self) -> Iterator[Page]:
        """Yield the users who bear an asked name; report the names nobody bears."""
        asked = list(dict.fromkeys(self.settings.users))
        wanted = {name.casefold() for name in asked}
        known: set[str] = set()
        for first in range(0, len(asked), NAMES_A_LOOK_UP):
            names = asked[first : first + NAMES_A_LOOK_UP]
            page = self.duo.retry(self.duo.find_users, names)
            # A server that ignores the question must not widen the run.
            users = [user for user in page.users if names_of(user) & wanted]
            for user in users:
                known |= names_of(user)
            yield Page(users, len(asked), None)
        for name in asked:
            if name.casefold() not in known:
                self.report.event(Event.UNKNOWN_USER, user=name)

    def look_at(self, user: Record, found: dict[str, Phone]) -> None:
        """Add the phones of one user that have a verdict to those found."""
        phones = user.get("phones") or []
        if not is_list_of_records(phones):
            text = f"Duo gives user {shown_name(user)} phones that are no records"
            raise Failure(Kind.LASTING, text)
        self.report.tally.saw_user(phones)
        for record in phones:
            decided = verdict(record, self.now(), self.settings.grace_period)
            if decided is None:
                continue
            if decided is Verdict.UNTAG and not self.settings.untag:
                continue
            phone_id = record.get("phone_id")
            if not isinstance(phone_id, str) or not PHONE_ID.fullmatch(phone_id):
                text = f"user {shown_name(user)} has a phone without a usable phone_id"
                self.report.fail(text)
                continue
            if phone_id not in found:
                found[phone_id] = Phone(phone_id, record, decided)
                if is_limbo(record):
                    self.report.tally.limbo += 1
            sharer = make_user(user)
            if sharer not in found[phone_id].users:
                found[phone_id].users.append(sharer)

    def find_sharers(self, phone: Phone) -> None:
        """Add the users who share a phone and were not named: they are affected too."""
        try:
            record = self.duo.retry(self.duo.read_phone, phone.phone_id)
        except Failure as failure:
            if failure.kind is not Kind.GONE:
                raise
        else:
            known = {user.name for user in phone.users}
            phone.users += [user for user in users_of(record) if user.name not in known]

    # Plan

    def plan(self, found: list[Phone]) -> list[Phone]:
        """Leave the deletions out if too many users would lose a phone."""
        due = [phone for phone in found if phone.verdict is Verdict.DELETE]
        users = {user.name for phone in due for user in phone.users}
        limit = self.settings.max_deletions
        if limit is None or len(users) <= limit:
            return found
        self.report.limit_exceeded(len(due), len(users), limit)
        if self.settings.dry_run:
            return found  # to be looked at
        return [phone for phone in found if phone.verdict is not Verdict.DELETE]

    # Act

    def act(self, plan: list[Phone]) -> None:
        """Deal with the phones one by one. Raises Failure, Stopped, OutputBroken."""
        self.writes_planned = len([phone for phone in plan if phone.verdict.writes])
        if self.asking and self.writes_planned:
            self.report.begin_asking()
        failed_in_a_row = 0
        for phone, reading in ahead(self.start_reading, plan, 1):
            self.duo.stop.check()
            try:
                event = self.deal_with(phone, reading)
            except Failure as failure:
                self.report.fail(str(failure), phone)
                if failure.kind in (Kind.ENDS_RUN, Kind.RATE_LIMIT):
                    return
                if failure.kind in IN_PASSING:
                    failed_in_a_row += 1
                else:
                    failed_in_a_row = 0
                if failed_in_a_row == MAX_FAILED_IN_A_ROW:
                    text = f"{failed_in_a_row} phones in a row failed, so the run ends"
                    raise Failure(Kind.ENDS_RUN, f"{text}: {failure}") from None
                continue
            if phone.verdict.writes:
                failed_in_a_row = 0
            self.report.event(event, phone)

    def start_reading(self, phone: Phone) -> Call[Event | None] | None:
        """Begin to read a phone again while the one before it is written."""
        if self.asking or self.settings.dry_run or not phone.verdict.writes:
            return None
        return start(self.duo.retry, self.read_again, phone)

    def deal_with(self, phone: Phone, reading: Call[Event | None] | None) -> Event:
        """Read a phone again, ask about it and write; return what became of it."""
        if self.settings.dry_run:
            return DONE_IN_A_DRY_RUN[phone.verdict.verb]
        if not phone.verdict.writes:
            return DONE[phone.verdict.verb]
        self.writes_begun += 1
        self.report.progress(f"{self.writes_begun} of {self.writes_planned}")
        try:
            if reading is None:
                event = self.duo.retry(self.read_again, phone)
            else:
                event = wait_for(reading)
            if event is None and self.asking:
                event = self.ask(phone)
            if event is None:
                event = self.duo.retry(self.write, phone)
            return event
        except Failure as failure:
            if failure.kind is Kind.GONE:
                if phone.deletion_unconfirmed:
                    return Event.DELETED  # by us: only the answer was lost
                return Event.GONE
            if phone.is_unconfirmed():
                raise Failure(failure.kind, f"{failure}; {UNCONFIRMED}") from None
            raise
        except (Stopped, OutputBroken):
            if phone.is_unconfirmed():
                self.report.fail(UNCONFIRMED, phone)
            raise

    def ask(self, phone: Phone) -> Event | None:
        """Ask about a phone; return what became of it, None for a yes."""
        answer = self.report.ask(phone, self.writes_begun, self.writes_planned)
        phone.read_sent = NEVER  # however fast the answer came, it is read once more
        if answer is Answer.NO:
            return Event.DECLINED
        if answer is Answer.QUIT:
            raise Stopped
        if answer is Answer.YES_TO_ALL:
            self.asking = False
        return None

    def read_again(self, phone: Phone) -> Event | None:
        """Read a phone again; return what became of it, None if its verdict stands."""
        self.duo.make_ready()  # so that no handshake comes between read and write
        sent = boot_seconds()
        record = self.duo.read_phone(phone.phone_id)
        now = self.now()
        if (record.get("name") or "") in phone.names_unconfirmed:
            phone.tag = read_tag(record)
            return DONE[phone.verdict.verb]  # only the answer was lost
        stands = self.still_stands(phone, record, now)
        phone.tag = read_tag(record)
        phone.record = record
        phone.users = users_of(record) or phone.users
        if stands:
            phone.read_sent = sent
            phone.tag_to_write = now
            return None
        if phone.is_unconfirmed():
            raise Failure(Kind.LASTING, "it has changed in the meantime")
        return Event.CHANGED

    def still_stands(self, phone: Phone, record: Record, now: int) -> bool:
        """Tell whether what is planned for a phone is right by its new record, too."""
        if verdict(record, now, self.settings.grace_period) is not phone.verdict:
            return False
        if phone.verdict is Verdict.DELETE and read_tag(record) != phone.tag:
            return False  # another run stamped it afresh
        before = {user.name for user in phone.users}
        return before <= {user.name for user in users_of(record)}

    def write(self, phone: Phone) -> Event:
        """Do what a phone's verdict says, on a fresh read; return what became of it."""
        if boot_seconds() > phone.read_sent + READ_VALID_SECONDS:
            event = self.read_again(phone)
            if event is not None:
                return event
        try:
            if phone.verdict is Verdict.DELETE:
                return self.delete(phone)
            if phone.verdict is Verdict.UNTAG:
                return self.rename(phone, "")
            return self.rename(phone, str(phone.tag_to_write))
        finally:
            phone.read_sent = NEVER  # a read vouches for one try only

    def delete(self, phone: Phone) -> Event:
        """Delete a phone just read. Raises OutputBroken, and what rename() does."""
        # Its record comes first: where that cannot be written, nothing is deleted.
        self.report.event(Event.DELETING, phone)
        try:
            self.duo.send_by = phone.read_sent + READ_VALID_SECONDS
            self.duo.delete_phone(phone.phone_id)
        except (*ERRORS, Stopped) as error:  # after a Failure, nothing was sent
            if self.duo.may_be_done(error):
                phone.deletion_unconfirmed = True
            raise
        return Event.DELETED

    def rename(self, phone: Phone, name: str) -> Event:
        """Name a phone just read. Raises ERRORS, Failure, Stopped."""
        try:
            self.duo.send_by = phone.read_sent + READ_VALID_SECONDS
            self.duo.update_phone(phone.phone_id, name=name)
        except (*ERRORS, Stopped) as error:  # after a Failure, nothing was sent
            if self.duo.may_be_done(error):
                phone.names_unconfirmed.append(name)
            raise
        phone.tag = read_tag({**phone.record, "name": name})
        return DONE[phone.verdict.verb]


# ---------------------------------------------------------------------- the Duo client

NAMES_A_LOOK_UP = 100  # the most that Duo takes (Admin API, username_list)
USERS_A_PAGE = 300  # the most that Duo gives (Admin API, Retrieve Users)
PAGES_AHEAD = 3  # asked for while one is waited for
CONNECTIONS_READY = 3  # for a write under way, and the next phone's read and write
DELIVERY_MILLISECONDS = 2000  # after which the kernel gives up a write on its way
MAX_IDLE_SECONDS = 50  # Duo closes a connection that is idle for about 60
MAX_TRIES = 3  # in all, of a step that fails in passing
# Before the second try, at most; twice that before the third, and after a first 429.
RETRY_PAUSE_SECONDS = 1.0
MAX_WAIT_429_SECONDS = 180  # Duo counts requests by the minute
EXCHANGE_TIME_OUTS = 10  # time-outs that a whole exchange may take
SLICE_SECONDS = 0.1  # in which waits are cut: see wait_for()

# What duo_client and http.client raise: RuntimeError for an answer that is an error,
# ValueError for one that is no text, RecursionError (a RuntimeError) for one too deep.
ERRORS = (OSError, HTTPException, RuntimeError, ValueError)


class Kind(enum.Enum):
    """What follows from a failure."""

    TRANSIENT = "it fails in passing: another try may go well"
    TOO_LATE = "no time was left for a write: its phone has to be read again"
    RATE_LIMIT = "Duo refuses requests for a while"
    GONE = "Duo does not know this phone: somebody has deleted it"
    ENDS_RUN = "nothing else would go well either"
    LASTING = "it would fail again, but the next phone may go well"


IN_PASSING = (Kind.TRANSIENT, Kind.TOO_LATE)


class Failure(Exception):
    """Why something could not be done, and what to do about it, in one line."""

    def __init__(self, kind: Kind, text: str, hint: str = "") -> None:
        if hint:
            text = f"{text}: {hint}"
        super().__init__(text)
        self.kind = kind


class Stopped(Exception):
    """Nothing more is done: after a signal, at "q", or because the run is over."""


TOO_LATE_TEXT = (
    f"more than {READ_VALID_SECONDS} s passed after the phone was read: Duo, the"
    " network or this machine is too slow to write safely"
)
NO_NEXT_PAGE = "Duo's user listing does not go on: next_offset"
UNCONFIRMED = "a write was sent and not confirmed: it may still be carried out"
CHECK_HOST = "check --host (DUO_HOST) and HTTPS_PROXY"
CHECK_CLOCK = "set this machine's clock"
SERVER_TROUBLE = (
    "Duo has trouble, or a proxy: see status.duo.com; a later run tries again"
)
# What to do, by Duo's error code or else by the HTTP status.
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


class Stop:
    """Whether the run has to end: by a signal, or because it is over."""

    def __init__(self) -> None:
        self.signal: int | None = None  # the first that came
        self.run_is_over = False

    def check(self) -> None:
        """Raise Stopped if nothing more is to be done."""
        if self.signal is not None or self.run_is_over:
            raise Stopped

    def sleep_until(self, end: float) -> None:
        """Sleep until a time by boot_seconds(). Raises Stopped."""
        while True:
            self.check()
            left = end - boot_seconds()
            if left <= 0:
                return
            time.sleep(min(left, SLICE_SECONDS))


def boot_seconds() -> float:
    """Return the time by a clock that nobody sets, in seconds.

    On Linux it goes on while the machine sleeps, which time.monotonic() does not.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Call(threading.Thread, Generic[T]):
    """A call in a daemon thread, for which the program's end does not wait."""

    def __init__(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.arguments = arguments
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


def start(function: Callable[..., T], *arguments: Any) -> Call[T]:
    """Begin to call a function in a thread."""
    call = Call(function, arguments)
    try:
        call.start()
    except RuntimeError:
        raise Failure(Kind.ENDS_RUN, "this machine has no thread left") from None
    return call


def wait_for(call: Call[T], seconds: float = float("inf")) -> T:
    """Return the result of a call. Raises what it raises, and TimeoutError."""
    end = boot_seconds() + seconds
    while call.is_alive():
        if boot_seconds() > end:
            raise TimeoutError("no whole answer in time")
        # In slices: a signal that comes just before a wait does not interrupt it.
        call.join(SLICE_SECONDS)
    if call.error is not None:
        raise call.error
    return call.value


def ahead(
    start_call: Callable[[T], Any], items: Iterable[T], width: int
) -> Iterator[tuple[T, Any]]:
    """Yield each item and its call, once the next `width` calls have begun, too."""
    started: list[tuple[T, Any]] = []
    for item in items:
        started.append((item, start_call(item)))
        if len(started) > width:
            yield started.pop(0)
    yield from started


class User(NamedTuple):
    """A user who has a phone."""

    name: str
    last_login: int | None  # seconds since the epoch; None: never


class Page(NamedTuple):
    """A page of a user listing, or the answer to a look-up of names."""

    users: list[Record]
    total: int  # users on all pages; 0 if Duo does not say
    next_offset: int | None  # None: it is the last page


def is_list_of_records(value: Any) -> bool:
    """Tell whether a value from Duo is a list of records."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def shown_name(user: Record) -> str:
    """Return the name to show for a user."""
    return str(user.get("username") or user.get("user_id") or "a user without a name")


def make_user(user: Record) -> User:
    """Return what is kept of a user's record."""
    last_login = user.get("last_login")
    if type(last_login) is not int:
        last_login = None
    return User(shown_name(user), last_login)


def users_of(record: Record) -> list[User]:
    """Return the users of a phone that read_phone() has read."""
    return [make_user(user) for user in record["users"]]


def names_of(user: Record) -> set[str]:
    """Return the names and aliases of a user in one case: Duo's look-up ignores it."""
    names = [user.get("username")]
    aliases = user.get("aliases")
    if isinstance(aliases, dict):
        names.extend(aliases.values())
    for number in range(1, 9):
        names.append(user.get(f"alias{number}"))
    return {str(name).casefold() for name in names if name}


class DuoAdmin(duo_client.Admin):
    """The Admin API over connections that are kept, with an end to every wait.

    _make_request is all that it overrides: duo_client's whole transport.
    """

    def __init__(self, settings: Settings, log: Log, tally: Tally, stop: Stop) -> None:
        host, port = settings.host
        super().__init__(settings.ikey, settings.skey, host, port=port)
        self.timeout = settings.timeout
        self.dialed = f"{host}:{port}"
        if settings.proxy:
            proxy = settings.proxy
            self.set_proxy(proxy.name, proxy.port, proxy.headers)
            self.dialed = f"the proxy {proxy.name}:{proxy.port}"
        self.tls = settings.ca_certs
        self.log = log
        self.tally = tally
        self.stop = stop
        # By when the next write has to be sent, by boot_seconds(). It holds for one.
        self.send_by = NEVER
        self.write_sent = False  # whether the last write was given to the network
        self._rate_limit_ends = 0.0  # by boot_seconds()
        self._reuse = True  # whether connections are kept for another request
        # Connections that wait for a request, and since when, by boot_seconds().
        self._idle: list[tuple[HTTPSConnection, float]] = []
        self._lock = threading.RLock()  # for the list
        self._connecting = threading.Lock()  # for make_ready()

    # Requests

    def _make_request(self, method: str, uri: str, body: Any, headers: Any) -> Any:
        """Send a request; return its answer and the answer's body.

        Raises ERRORS, Failure, Stopped.
        """
        send_by = float("inf")
        if method != "GET":
            # With a tiny --timeout, the wait for the answer may end before send_by.
            given_up = boot_seconds() + EXCHANGE_TIME_OUTS * self.timeout
            send_by = min(self.send_by, given_up)
            self.send_by = NEVER
            self.write_sent = False
        self.stop.check()
        return self._limited(self._exchange, send_by, method, uri, body, headers)

    def _limited(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that uses the network, which may drip; give up in the end."""
        return wait_for(start(function, *arguments), EXCHANGE_TIME_OUTS * self.timeout)

    def _exchange(self, send_by: float, method: str, uri: str, *rest: Any) -> Any:
        """Send one request and read its whole answer."""
        connection = self._take_connection()
        keep = False
        try:
            self._set_up_socket(connection.sock, method)
            self.stop.check()
            sent = boot_seconds()
            if sent > send_by:
                keep = True
                raise Failure(Kind.TOO_LATE, TOO_LATE_TEXT)
            if method != "GET":
                self.write_sent = True
            self.tally.count_request()
            connection.request(method, uri, *rest)
            response = connection.getresponse()
            data = response.read()
            # The true answer to a request comes after one with a status under 200.
            keep = self._reuse and response.status >= 200
        finally:
            self._put_back(connection, keep)
        took = boot_seconds() - sent
        self.log.write(
            f"{method} {uri}: {response.status} after {took:.2f} s", EVERY_STEP
        )
        return response, data

    def may_be_done(self, error: Exception) -> bool:
        """Tell whether the write that ended so may be carried out all the same.

        It is not if Duo refused it, or if it was never sent.
        """
        body = getattr(error, "data", None)
        refused = isinstance(body, dict) and body.get("stat") == "FAIL"
        if refused and self.explain(error).kind is not Kind.TRANSIENT:
            return False
        return self.write_sent

    # Connections

    def make_ready(self) -> None:
        """Connect beforehand, so that no handshake comes between read and write."""
        with self._connecting:
            self._close_unusable()
            while len(self._idle) < CONNECTIONS_READY:
                self.stop.check()
                self._limited(self._add_connection)

    def _add_connection(self) -> None:
        self._put_back(self._dial(), True)

    def _dial(self) -> HTTPSConnection:
        # Not duo_client's class: it sends a proxy's name as the TLS server name. It
        # also lacks TCP_NODELAY: a POST on a kept connection takes 40 ms longer.
        if self.proxy_host:
            dialed = self.proxy_host, self.proxy_port
        else:
            dialed = self.host, self.port
        connection = HTTPSConnection(*dialed, timeout=self.timeout, context=self.tls)
        if self.proxy_host:
            connection.set_tunnel(self.host, self.port, self.proxy_headers)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_connection(self) -> HTTPSConnection:
        """Return a connection that is ready for a request."""
        with self._lock:  # so that each is looked at before it is taken
            self._close_unusable()
            if self._idle:
                connection, _ = self._idle.pop()
                return connection
        return self._dial()

    def _put_back(self, connection: HTTPSConnection, keep: bool) -> None:
        """Keep a connection for another request, or close it."""
        with self._lock:
            over = self.stop.run_is_over
            if keep and not over and connection.sock is not None:
                self._idle.append((connection, boot_seconds()))
            else:
                connection.close()

    def _close_unusable(self) -> None:
        """Close the connections that wait too long, or on which something came."""
        with self._lock:
            usable = []
            for connection, since in self._idle:
                if boot_seconds() < since + MAX_IDLE_SECONDS and is_silent(connection):
                    usable.append((connection, since))
                else:
                    connection.close()
            self._idle = usable

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

    def stop_reusing(self) -> None:
        """Close the connections that are kept, and use each only once from now on."""
        with self._lock:
            self._reuse = False
            for connection, _ in self._idle:
                connection.close()
            self._idle = []

    # Trying again

    def retry(self, step: Callable[..., T], *arguments: Any) -> T:
        """Carry out a step, again if it fails in passing.

        Raises Failure, Stopped, and OutputBroken where the step does.
        A step reads before it writes: no write is repeated without a fresh read.
        """
        number = 1
        while True:
            try:
                return self.wait_out_rate_limit(step, *arguments)
            except Failure as failure:
                if failure.kind not in IN_PASSING or number == MAX_TRIES:
                    raise
                if failure.kind is Kind.TRANSIENT:
                    # A server may close each connection without saying so.
                    self.stop_reusing()
                    pause = number * RETRY_PAUSE_SECONDS * random.uniform(0.7, 1)
                    self.stop.sleep_until(boot_seconds() + pause)
            number += 1

    def wait_out_rate_limit(self, step: Callable[..., T], *arguments: Any) -> T:
        """Carry out a step, again while Duo answers 429. Raises as retry()."""
        began = boot_seconds()
        while True:
            self.stop.sleep_until(self._rate_limit_ends)
            try:
                return step(*arguments)
            except (*ERRORS, Failure) as error:
                failure = self.explain(error)
            waited = boot_seconds() - began
            self.log.write(f"this try failed: {failure}", EVERY_STEP)
            if failure.kind is not Kind.RATE_LIMIT or waited > MAX_WAIT_429_SECONDS:
                raise failure
            # Longer each time, and all threads wait until then.
            pause = (2 * RETRY_PAUSE_SECONDS + waited / 10) * random.uniform(0.7, 1)
            ends = max(self._rate_limit_ends, boot_seconds() + pause)
            self._rate_limit_ends = ends
            self.log.progress(f"Duo's rate limit: waiting for {pause:.0f} s")

    # Errors

    def explain(self, error: Exception) -> Failure:
        """Turn an error into a Failure that says what can be done about it."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"{self.host} is not trusted: {reason_of(error)}"
            hint = "is --host (DUO_HOST) right? Or see --ca-certs (DUO_CA_CERTS)"
            return Failure(Kind.ENDS_RUN, text, hint)
        if isinstance(error, OSError):
            text = f"no answer from {self.dialed}: {reason_of(error)}"
            hint = "check --host (DUO_HOST), the network and HTTPS_PROXY"
            return Failure(Kind.TRANSIENT, text, hint)
        # An error without a status is, as with 200, of an answer that cannot be read.
        status = getattr(error, "status", 200)
        body = getattr(error, "data", None)
        if isinstance(body, dict) and body.get("stat") == "FAIL":
            return explain_refusal(status, body)
        if status == 200:
            return self.explain_nonsense(error)
        # A proxy's, for example.
        said = f"{status} {getattr(error, 'reason', '')}"
        text = f"{self.dialed} answers {shorten(said, 100)}, and not as Duo does"
        hint = CHECK_HOST
        if status == 429 or status >= 500:
            hint = SERVER_TROUBLE
        return Failure(kind_of(status), text, hint)

    def explain_nonsense(self, error: Exception) -> Failure:
        """Return the Failure of an answer that is cut short, no HTTP or no JSON."""
        what = "no JSON"
        if isinstance(error, HTTPException):
            what = shorten(str(error), 200)
        if self.tally.users_seen:
            return Failure(Kind.TRANSIENT, f"Duo's answer cannot be read: {what}")
        text = f"{self.dialed} is not Duo's Admin API: {what}"
        return Failure(Kind.TRANSIENT, text, CHECK_HOST)

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
            for guess, call in ahead(self.start_page, guesses, PAGES_AHEAD):
                if guess != offset:
                    break  # Duo goes on elsewhere
                page = wait_for(call)
                yield page
                if page.next_offset is None:
                    return
                total = page.total
                length = page.next_offset - offset
                offset = page.next_offset

    def start_page(self, offset: int) -> Call[Page]:
        """Begin to ask for a page of the user listing."""
        return start(self.retry, self.get_page, offset)

    def get_page(self, offset: int) -> Page:
        """Return a page of the user listing. Raises Failure, and ERRORS."""
        limits = {"limit": str(USERS_A_PAGE), "offset": str(offset)}
        page = self._ask_for_users(limits)
        if page.next_offset is None:
            if offset + len(page.users) < page.total:
                raise Failure(Kind.LASTING, "Duo's user listing ends before its total")
            return page
        if page.next_offset <= offset or not page.users:
            raise Failure(Kind.LASTING, NO_NEXT_PAGE)
        if 0 < page.total < page.next_offset:
            raise Failure(Kind.LASTING, "Duo's user listing goes on after its total")
        return page

    def find_users(self, names: list[str]) -> Page:
        """Return the users who bear these names. Raises Failure, and ERRORS."""
        # Not by duo_client's get_users_by_names, which follows next_offset for ever.
        return self._ask_for_users({"username_list": json.dumps(names)})

    def _ask_for_users(self, params: dict[str, str]) -> Page:
        answer = self.api_call("GET", "/admin/v1/users", params)
        users, metadata = self.parse_json_response_and_metadata(*answer)
        if not is_list_of_records(users) or not isinstance(metadata, dict):
            text = "Duo's answer is not a page of users"
            raise Failure(Kind.TRANSIENT, text, CHECK_HOST)
        total = metadata.get("total_objects")
        if type(total) is not int:
            total = 0
        next_offset = metadata.get("next_offset")
        if next_offset is not None and type(next_offset) is not int:
            raise Failure(Kind.LASTING, NO_NEXT_PAGE)
        return Page(users, total, next_offset)

    def read_phone(self, phone_id: str) -> Record:
        """Return the record of a phone, with its users. Raises Failure, and ERRORS."""
        record = self.get_phone_by_id(phone_id)
        # An answer that got mixed up must not vouch for another phone.
        if not isinstance(record, dict) or record.get("phone_id") != phone_id:
            raise Failure(
                Kind.TRANSIENT, "Duo's answer is not the record of this phone"
            )
        if not is_list_of_records(record.get("users")):
            raise Failure(Kind.TRANSIENT, "Duo does not say whose phone this is")
        return record


def is_silent(connection: HTTPSConnection) -> bool:
    """Tell whether an idle connection is open and has nothing to read."""
    sock = connection.sock
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1)
    except ssl.SSLWantReadError:
        return True  # what belongs to TLS alone, such as a session ticket, is read
    except OSError:
        return False
    finally:
        sock.settimeout(timeout)
    return False


def kind_of(status: int) -> Kind:
    """Return what follows from an HTTP status that is no success."""
    if status == 429:
        return Kind.RATE_LIMIT
    if status == 408 or status >= 500:
        return Kind.TRANSIENT
    if status in (401, 403):
        return Kind.ENDS_RUN
    return Kind.LASTING


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
    kind = kind_of(status)
    if code == 40401:
        kind = Kind.GONE
    hint = HINTS.get(code) or HINTS.get(status, "")
    if status >= 500:
        hint = SERVER_TROUBLE
    return Failure(kind, shorten(text, 200), hint)


# ------------------------------------------------------------------- what is reported

# The verbosity from which the log shows a line. A terminal counts as -v.
ALWAYS, WHAT_IS_DONE, EVERY_STEP = 0, 1, 2
PROGRESS_AFTER_SECONDS = 1  # a short run needs none
SETUP_MINUTES = 17  # after which Duo's own setup seems to time out (observed)
TABLE_COLUMNS = 80  # where there is no terminal to ask
LEAST_COLUMNS_OF_USERS = 9


class Words(NamedTuple):
    """How an event is reported to people."""

    level: int
    log: str
    summary: str  # after its number; "": the summary leaves it out


WORDS = {
    Event.STAMPED: Words(WHAT_IS_DONE, "stamped", "stamped"),
    Event.DELETING: Words(EVERY_STEP, "deleting", ""),
    Event.DELETED: Words(WHAT_IS_DONE, "deleted", "deleted"),
    Event.UNTAGGED: Words(WHAT_IS_DONE, "untagged", "untagged"),
    Event.WOULD_STAMP: Words(EVERY_STEP, "would stamp", "to stamp"),
    Event.WOULD_DELETE: Words(EVERY_STEP, "would delete", "to delete"),
    Event.WOULD_UNTAG: Words(EVERY_STEP, "would untag", "to untag"),
    Event.DECLINED: Words(WHAT_IS_DONE, "declined", "declined"),
    Event.CHANGED: Words(WHAT_IS_DONE, "changed", "changed"),
    Event.GONE: Words(WHAT_IS_DONE, "gone", "gone"),
    Event.WAITING: Words(EVERY_STEP, "waiting", "waiting"),
    Event.NAMED: Words(EVERY_STEP, "named", "kept"),
    Event.FAILED: Words(ALWAYS, "error", "failed"),
    Event.UNKNOWN_USER: Words(ALWAYS, "error: no such user in Duo", "unknown"),
}
# These make the exit status 1.
FAILURES = (Event.FAILED, Event.UNKNOWN_USER)
# There are so many of these that JSON lines have them only with -v, or in a dry run.
FREQUENT = (Event.WAITING, Event.NAMED)
# These carry the phone's whole record, so that they can be made good by hand.
WITH_RECORD = (Event.DELETING, Event.WOULD_DELETE, Event.UNTAGGED)


def describe(phone: Phone) -> str:
    """Return what people know a phone by."""
    names = ", ".join(user.name for user in phone.users)
    number = phone.record.get("number")
    if number:
        return f"phone {number} of {names}"
    return f"tablet of {names}"


class OutputBroken(Exception):
    """Standard output or the journal cannot be written: nothing more is done."""


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


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    wide = [each for each in text if unicodedata.east_asian_width(each) in "WF"]
    return len(text) + len(wide)


def shorten(text: str, width: int) -> str:
    """Cut a text to one line of at most so many columns."""
    text = " ".join(text.split())
    if columns(text) <= width:
        return text
    text = text[: max(0, width - 3)]  # a character takes at least one column
    while text and columns(text) > width - 3:
        text = text[:-1]
    return text + "..."


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
    if seconds >= 86400:
        return count(seconds // 86400, "day")
    if seconds >= 3600:
        return count(seconds // 3600, "hour")
    if seconds >= 60:
        return count(seconds // 60, "minute")
    return count(max(0, seconds), "second")


def last_login_of(phone: Phone) -> int | None:
    """Return when one of its users last logged in, in seconds since the epoch."""
    logins = [user.last_login for user in phone.users if user.last_login is not None]
    return max(logins, default=None)


class Log:
    """Standard error: dated lines, questions, and how far a long run has come."""

    def __init__(self, verbose: int) -> None:
        self.terminal = bool(sys.stderr and sys.stderr.isatty())
        self.level = verbose
        if self.terminal:
            self.level = max(verbose, WHAT_IS_DONE)
        self.began = boot_seconds()
        self.clear = ""  # what ends or clears the line that the cursor is on
        self.closed = False
        self.lock = threading.RLock()

    def write(self, text: str, level: int = ALWAYS) -> None:
        """Write a line with its date, if the verbosity is at least `level`."""
        if level <= self.level:
            self.show(time.strftime("%Y-%m-%d %H:%M:%S ") + text)

    def show(self, text: str, end: str = "\n", clear: str = "") -> bool:
        """Write a text; return whether that worked."""
        with self.lock:
            if self.closed:
                return False
            text = self.clear + printable(text, sys.stderr) + end
            self.clear = clear
            return write_to_stderr(text)

    def progress(self, text: str) -> None:
        """Show on a terminal how far a run has come, until something else is shown."""
        if self.terminal and boot_seconds() - self.began > PROGRESS_AFTER_SECONDS:
            self.show(text, "", "\r" + " " * columns(text) + "\r")

    def ask(self, question: str) -> str:
        """Show a question; return the line that answers it, "" if there is none."""
        # What was typed before the question is no answer. (What is in a pipe is.)
        with suppress(TypeError, OSError, ValueError, termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        if not self.show(question, "", "\n"):
            return ""
        try:
            answer = sys.stdin.buffer.readline().decode(errors="replace")
        except (AttributeError, OSError, ValueError):  # none, lost, closed
            return ""
        self.clear = ""
        if not (sys.stdin.isatty() and answer.endswith("\n")):
            # (A line typed on a terminal is on the screen already.)
            self.show(shorten(answer, 40))
        return answer

    def close(self) -> None:
        """Show nothing more, whatever threads may still write."""
        with self.lock:
            self.closed = True


class Journal:
    """A file of JSON lines. If it is new, only its owner can read it."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError, ValueError."""
        # Opened for reading, too, to see how its last line ends.
        self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        mode = os.fstat(self.file).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("expected a regular file (--json serves a pipe)")
        warn_if_others_can_read(mode, "--journal")
        # A new file is found again after a crash only if its folder is on the disk.
        with suppress(OSError):  # not every folder can be read, or synced
            folder = os.open(Path(path).absolute().parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def write(self, line: str) -> None:
        """Append a line. Raises OSError."""
        data = f"{line}\n".encode()
        size = os.fstat(self.file).st_size
        if size and os.pread(self.file, 1, size - 1) != b"\n":
            data = b"\n" + data  # a full disk tore the last line
        while data:
            data = data[os.write(self.file, data) :]


class Outputs:
    """Where results go: text or JSON lines on standard output, and the journal."""

    def __init__(self, settings: Settings, log: Log, journal: Journal | None) -> None:
        self.log = log
        self.journal = journal
        self.has_text = settings.dry_run and not settings.json
        self.has_json = settings.json

    def write_text(self, text: str) -> None:
        """Write a line of a dry run's text. Raises OutputBroken."""
        if self.has_text:
            self._write_to_stdout(printable(text, sys.stdout))

    def write_json(self, facts: dict[str, Any], *, to_disk: bool = False) -> None:
        """Write a JSON line to all that have them. Raises OutputBroken."""
        line = json.dumps(facts)
        try:
            if self.has_json:
                self._write_to_stdout(line)
        finally:  # even if standard output is broken
            if self.journal:
                self._write_to_journal(self.journal, line, to_disk)

    def _write_to_journal(self, journal: Journal, line: str, to_disk: bool) -> None:
        try:
            journal.write(line)
            if to_disk:
                os.fsync(journal.file)
        except OSError as error:
            self.journal = None
            text = f"{label('--journal')} cannot be written: {reason_of(error)}"
            raise OutputBroken(text) from None

    def _write_to_stdout(self, line: str) -> None:
        if self.log.clear:  # a progress line
            self.log.show("", "")
        try:
            if sys.stdout is None:
                raise OSError("it is closed")
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            self.has_text = False
            self.has_json = False
            text = f"standard output cannot be written: {reason_of(error)}"
            if isinstance(error, BrokenPipeError):
                text = "the reader of standard output has gone"
            raise OutputBroken(text) from None


class Tally:
    """Counts what a run sees and does."""

    def __init__(self) -> None:
        self.began = boot_seconds()
        self.users_seen = 0
        self.phones_seen: set[str] = set()  # their ids: a shared phone counts once
        self.limbo = 0
        self.events = dict.fromkeys(Event, 0)
        self.requests = 0
        self.lock = threading.Lock()  # since threads count requests, too
        self.pages = 0
        # Phones that are due and stay, since too many users would lose one.
        self.due_and_left = 0
        # Failures that have a sentence of their own, and are no number in the summary.
        self.not_in_summary = 0
        self.status = 0

    def saw_user(self, phones: list[Record]) -> None:
        """Count a user and the user's phones."""
        self.users_seen += 1
        self.phones_seen.update(str(record.get("phone_id")) for record in phones)

    def count_event(self, event: Event) -> None:
        """Count an event, and remember whether it makes the exit status 1."""
        self.events[event] += 1
        if event in FAILURES and not self.status:
            self.status = 1

    def count_request(self) -> None:
        """Count a request that is sent. Threads call it."""
        with self.lock:
            self.requests += 1

    def seconds(self) -> float:
        """Return how long the run has taken."""
        return round(boot_seconds() - self.began, 1)

    def facts(self) -> dict[str, Any]:
        """Return the fields of the JSON summary."""
        facts: dict[str, Any] = {
            "users_seen": self.users_seen,
            "phones_seen": len(self.phones_seen),
            "limbo": self.limbo,
        }
        for event, number in self.events.items():
            facts[event.value] = number
        facts["requests"] = self.requests
        facts["seconds"] = self.seconds()
        facts["exit_status"] = self.status
        return facts

    def sentence(self) -> str:
        """Return the summary as people read it."""
        seen = "nothing was read"
        if self.pages:
            users = count(self.users_seen, "user")
            phones = count(len(self.phones_seen), "phone")
            seen = f"{users}, {phones}, {self.limbo} in limbo"
        parts = []
        for event, words in WORDS.items():
            number = self.events[event]
            if event is Event.FAILED:
                number -= self.not_in_summary
            if event is Event.WOULD_DELETE and self.due_and_left:
                number = 0
            if number and words.summary:
                parts.append(f"{number} {words.summary}")
        if self.due_and_left:
            parts.append(f"{self.due_and_left} due, none deleted")
        if parts:
            seen += ": " + ", ".join(parts)
        text = f"{seen}; {count(self.requests, 'request')}, {self.seconds()} s"
        if self.status:
            text += f"; exit status {self.status}"
        return text


class Answer(enum.Enum):
    """The answer to a prompt."""

    YES = "yes"
    NO = "no"
    YES_TO_ALL = "yes to all that are left"
    QUIT = "stop here"


ANSWERS = {
    "y": Answer.YES,
    "yes": Answer.YES,
    "n": Answer.NO,
    "no": Answer.NO,
    "a": Answer.YES_TO_ALL,
    "q": Answer.QUIT,
}


class Report:
    """Puts into words what happens, for the log, the outputs and the tally."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        log: Log,
        outputs: Outputs,
        tally: Tally,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.log = log
        self.outputs = outputs
        self.tally = tally
        self.limit_text = ""  # of a limit that was exceeded

    def now(self) -> int:
        """Return the time in seconds since the epoch."""
        return int(self.clock())

    # Before

    def scope(self) -> list[str]:
        """Return what a dry run and the prompts begin with."""
        minutes = self.settings.grace_period
        limit = "none"
        if self.settings.max_deletions is not None:
            limit = count(self.settings.max_deletions, "user")
        grace = f"grace period {count(minutes, 'minute')}"
        lines = [f"{self.settings.host.name}: {grace}, deletion limit {limit}"]
        if minutes < SETUP_MINUTES:
            text = f"Duo's own setup seems to take up to {SETUP_MINUTES} minutes"
            lines.append(f"{text}: a user may still be at it")
        return lines

    def begin(self) -> None:
        """Show what a dry run is about. Raises OutputBroken."""
        for line in self.scope():
            self.outputs.write_text(line)

    def begin_asking(self) -> None:
        """Show what the prompts are about."""
        for line in self.scope():
            self.log.show(line)

    # Meanwhile

    def walked(self, total: int) -> None:
        """Show how far the walk has come: a page more."""
        self.tally.pages += 1
        text = count(self.tally.users_seen, "user")
        if total:
            text = f"{self.tally.users_seen} of {count(total, 'user')}"
        self.log.progress(text)

    def progress(self, text: str) -> None:
        """Show how far the writes have come."""
        self.log.progress(text)

    def event(self, event: Event, phone: Phone | None = None, **details: str) -> None:
        """Report an event, and the phone it is about. Raises OutputBroken."""
        self.tally.count_event(event)
        has_all = self.settings.verbose or self.settings.dry_run
        try:
            if has_all or event not in FREQUENT:
                facts = {**self.facts(event, phone), **details}
                self.outputs.write_json(facts, to_disk=event is Event.DELETING)
        except OutputBroken:
            self.log_event(event, phone, details)
            raise
        # The log comes second: it may be stuck, until a signal ends the run.
        self.log_event(event, phone, details)

    def log_event(
        self, event: Event, phone: Phone | None, details: dict[str, str]
    ) -> None:
        """Write the line of an event to the log."""
        words = WORDS[event]
        parts = [words.log]
        if phone:
            parts.append(f"{describe(phone)} ({phone.phone_id})")
        parts.extend(details.values())
        self.log.write(": ".join(parts), words.level)

    def fail(self, error: str, phone: Phone | None = None) -> None:
        """Report what went wrong, with one phone or in all. Raises OutputBroken."""
        self.event(Event.FAILED, phone, error=error)

    def output_broke(self, broken: OutputBroken) -> None:
        """Report that an output cannot be written, where that can be read."""
        self.tally.not_in_summary += 1
        with suppress(OutputBroken):  # the other one, too
            self.fail(str(broken))

    def facts(self, event: Event, phone: Phone | None) -> dict[str, Any]:
        """Return the fields that an event has in the JSON lines."""
        facts: dict[str, Any] = {"event": event.value, "time": iso(self.now())}
        if phone:
            facts["phone_id"] = phone.phone_id
            facts["number"] = phone.record.get("number")
            facts["users"] = [user.name for user in phone.users]
            facts["tagged"] = iso(phone.tag)
            facts["last_login"] = iso(last_login_of(phone))
            if event in WITH_RECORD:
                facts["record"] = phone.record
        return facts

    def limit_exceeded(self, due: int, users: int, limit: int) -> None:
        """Report that nothing is deleted: a failure, unless the limit is 0."""
        self.tally.due_and_left = due
        text = f"{count(due, 'phone')} due for deletion, none deleted: "
        option = label("--max-deletions")
        if limit == 0:
            self.log.write(f"{text}{option} is 0", WHAT_IS_DONE)
            return
        text += f"{count(users, 'user')} would lose one, and {option} is {limit}. "
        if not self.settings.dry_run:
            text += "Look at them with --dry-run. "
        text += "If they are right, run once by hand with --max-deletions none"
        self.limit_text = text  # shown last, where the eye is
        self.tally.count_event(Event.FAILED)
        self.tally.not_in_summary += 1
        self.outputs.write_json({**self.facts(Event.FAILED, None), "error": text})

    # Prompts

    def ask(self, phone: Phone, number: int, total: int) -> Answer:
        """Ask whether to write to a phone. QUIT, and a failure, if nobody answers."""
        question = f"{number} of {total}: {self.question(phone)}? [y/n/a/q] "
        while True:
            answer = self.log.ask(question)
            if not answer:
                text = "no answer to a prompt, so nothing more is written"
                hint = "where nobody can answer, leave out --no-force (DUO_FORCE=no)"
                self.fail(f"{text}: {hint}")
                return Answer.QUIT
            known = ANSWERS.get(answer.strip().lower())
            if known:
                return known
            meanings = [f"{key}: {ANSWERS[key].value}" for key in "ynaq"]
            self.log.show(", ".join(meanings))

    def question(self, phone: Phone) -> str:
        """Say what is to be done to a phone, and what tells whether that is right."""
        facts = []
        age = self.tagged_ago(phone)
        if age:
            facts.append(f"tagged {age} ago")
        facts.append(f"last login {self.login_ago(phone)}")
        if phone.verdict.verb == "stamp":
            facts.append(f"{phone.verdict.reason}, its name becomes a tag")
        if phone.verdict is Verdict.UNTAG:
            facts.append(f"{phone.verdict.reason}, its name becomes blank")
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

    def reason(self, phone: Phone) -> str:
        """Say why a phone has its verdict."""
        name = shorten(repr(phone.record.get("name")), 40)
        left = self.settings.grace_period * 60
        if phone.tag is not None:
            left += phone.tag - self.now()
        return phone.verdict.reason.format(name=name, left=duration(left))

    # The table of a dry run

    def table(self, plan: list[Phone]) -> None:
        """Write what a run would do, a row for each phone. Raises OutputBroken."""
        shown = [phone for phone in plan if self.is_shown(phone)]
        if not shown:
            return
        head = ["USERS", "NUMBER", "TAGGED", "LAST LOGIN", "A RUN WOULD"]
        if self.settings.verbose:
            head.append("PHONE ID")
        rows = [head] + [self.row(phone) for phone in shown]
        widths = [max(map(columns, column)) for column in zip(*rows)]
        # The users have the columns that the others leave.
        terminal = shutil.get_terminal_size((TABLE_COLUMNS, 24)).columns
        terminal = terminal or TABLE_COLUMNS  # Python 3.9: 0 if it is not known
        left = terminal - sum(width + 2 for width in widths[1:])
        widths[0] = min(widths[0], max(left, LEAST_COLUMNS_OF_USERS))
        for row, phone in zip(rows[1:], shown):
            row[0] = cut_users(row[0], len(phone.users), widths[0])
        for row in rows:
            padded = [pad(cell, width) for cell, width in zip(row, widths)]
            self.outputs.write_text("  ".join(padded).rstrip())

    def is_shown(self, phone: Phone) -> bool:
        """Tell whether the table has a row for a phone."""
        return phone.verdict is not Verdict.NAMED or bool(self.settings.verbose)

    def row(self, phone: Phone) -> list[str]:
        """Return what the table says of a phone, escaped."""
        what = f"{phone.verdict.verb}: {self.reason(phone)}"
        if phone.verdict is Verdict.DELETE and self.tally.due_and_left:
            what = "leave: due, over the limit"
        cells = [
            ", ".join(user.name for user in phone.users),
            shorten(str(phone.record.get("number") or ""), 20),
            self.tagged_ago(phone),
            self.login_ago(phone),
            what,
        ]
        if self.settings.verbose:
            cells.append(phone.phone_id)
        return [printable(cell, sys.stdout) for cell in cells]

    # The end

    def end(self, stopped_by: int | None) -> int:
        """Report the summary; return the exit status."""
        if stopped_by is not None:
            self.tally.status = 128 + stopped_by
        try:
            self.summarize()
        finally:  # even if nobody reads standard output, and a signal ends that
            with suppress(Stopped):  # the same for standard error
                self.log_end(stopped_by)
        return self.tally.status

    def log_end(self, stopped_by: int | None) -> None:
        """Write the last lines of the log."""
        if stopped_by is not None:
            self.log.write(f"error: stopped by {signal.Signals(stopped_by).name}")
        # The summary is in the log unless it stands below a dry run's table.
        if not self.outputs.has_text:
            level = WHAT_IS_DONE
            if self.tally.status:
                level = ALWAYS
            self.log.write(self.tally.sentence(), level)
        if self.limit_text:
            self.log.write(f"error: {self.limit_text}")
        self.log.close()

    def summarize(self) -> None:
        """Write the summary to the outputs."""
        head = {"event": "summary", "time": iso(self.now())}
        try:
            self.outputs.write_json({**head, **self.tally.facts()})
            self.outputs.write_text(self.tally.sentence())
        except OutputBroken as broken:
            self.output_broke(broken)
            self.summarize()  # again for the other output: the status has changed


def cut_users(names: str, number: int, width: int) -> str:
    """Cut a list of users to so many columns, and then say how many there are."""
    if columns(names) <= width or number == 1:
        return shorten(names, width)
    how_many = f" ({number})"
    return shorten(names, width - len(how_many)) + how_many


def pad(text: str, width: int) -> str:
    """Fill a text with blanks to so many columns."""
    return text + " " * (width - columns(text))


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
SHORT_NAME = 9  # DUO_ and five letters: DUO_AKEY is Duo Web's, no misspelled DUO_SKEY
YES = ("y", "yes", "t", "true", "on", "1")
NO = ("n", "no", "f", "false", "off", "0")


class UsageError(Exception):
    """The settings are wrong. The text says what to change.

    It shows no value but the path of a file: any other may be a key.
    """


class Address(NamedTuple):
    """Where a server is."""

    name: str
    port: int


class Proxy(NamedTuple):
    """The proxy to go through, and the headers that it wants."""

    name: str
    port: int
    headers: dict[str, str]


class Settings(NamedTuple):
    """What a run goes by: a field for each option, and more."""

    host: Address
    ikey: str
    skey: str
    skey_file: str  # the key that was in it
    dry_run: bool
    force: bool
    grace_period: int  # minutes
    max_deletions: int | None  # users; None: no limit
    untag: bool
    verbose: int
    json: bool
    journal: str  # a path; "": none
    timeout: float  # seconds
    ca_certs: ssl.SSLContext  # which trusts these alone
    users: list[str]
    proxy: Proxy | None


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


def to_minutes(text: str) -> int:
    """Return minutes. Raises ValueError."""
    return int(checked(text, r"\d{1,9}", "whole minutes, 0 or more"))


def to_limit(text: str) -> int | None:
    """Return a number of users, None for no limit. Raises ValueError."""
    expected = "a whole number of users, 0 or more, or none"
    if checked(text, r"none|\d{1,9}", expected).lower() == "none":
        return None
    return int(text)


def to_level(text: str) -> int:
    """Return a verbosity. Raises ValueError."""
    return int(checked(text, r"\d{1,9}", "a whole number, 0 or more"))


def to_seconds(text: str) -> float:
    """Return seconds. Raises ValueError."""
    seconds = float(checked(text, r"\d{1,6}(\.\d{1,6})?", "seconds, more than 0"))
    if not seconds:
        raise ValueError("expected seconds, more than 0")
    return seconds


def to_address(text: str) -> Address:
    """Return the host and port of HOST[:PORT] or of a URL. Raises ValueError."""
    part = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    # Without a dot, it may be a key that was pasted here.
    name = rf"localhost|{part}(?:\.{part})+"
    match = re.fullmatch(
        rf"(?:https?://)?(?P<name>{name})(?::(?P<port>[0-9]{{1,5}}))?(?:/.*)?",
        text.lower(),
    )
    if match:
        port = int(match["port"] or 443)
        if 0 < port < 65536:
            return Address(match["name"], port)
    raise ValueError("expected HOST[:PORT], such as api-12345678.duosecurity.com")


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
    if not text:
        raise ValueError("expected the path of a file")
    return text


class Option(NamedTuple):
    """A setting: an option of the command line, and an environment variable."""

    flag: str
    short: str  # "": none
    metavar: str  # "": it takes no value
    convert: Callable[[str], Any]  # raises ValueError or OSError
    default: str  # a text, as a variable is; "": none
    help: str

    @property
    def field(self) -> str:
        """Its name in Settings."""
        return self.flag[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"DUO_{self.field.upper()}"


CREDENTIALS = (
    Option("--host", "-H", "HOST", to_address, "", "API hostname, HOST or HOST:PORT"),
    Option("--ikey", "-i", "IKEY", to_key, "", "integration key"),
    Option("--skey", "-s", "SKEY", to_key, "", "secret key; others can see it in ps"),
    Option(
        "--skey-file", "", "FILE", to_key_of_file, "", "read the secret key from a file"
    ),
)
BEHAVIOR = (
    Option(
        "--dry-run",
        "-n",
        "",
        to_switch,
        "no",
        "show what a run would do, write nothing",
    ),
    Option(
        "--force",
        "-f",
        "",
        to_switch,
        "yes",
        "do not ask; --no-force: ask before each write",
    ),
    Option(
        "--grace-period",
        "-g",
        "MINUTES",
        to_minutes,
        "10",
        "minutes that a tagged phone may stay; Duo's own setup seems to time out after"
        f" about {SETUP_MINUTES}",
    ),
    Option(
        "--max-deletions",
        "",
        "N",
        to_limit,
        "100",
        "delete nothing if more than N users would lose a phone; none: no limit,"
        " 0: only stamp",
    ),
    Option(
        "--untag",
        "",
        "",
        to_switch,
        "no",
        "make the name of a phone blank again that was set up after it was tagged",
    ),
)
OUTPUT = (
    Option("--verbose", "-v", "", to_level, "0", "show what is done; -vv: every step"),
    Option("--json", "", "", to_switch, "no", "write JSON lines to standard output"),
    Option("--journal", "", "FILE", to_path, "", "append the JSON lines to a file"),
)
NETWORK = (
    Option(
        "--timeout",
        "",
        "SECONDS",
        to_seconds,
        "30",
        "seconds to wait for each step of the network",
    ),
    Option(
        "--ca-certs",
        "",
        "FILE",
        to_tls_context,
        duo_client.client.DEFAULT_CA_CERTS,
        "CA certificates to trust instead, for networks that inspect TLS",
    ),
)
OPTIONS = {
    "the Admin API application (its secret key can delete anybody's second factor)": (
        CREDENTIALS
    ),
    "what a run does": BEHAVIOR,
    "output": OUTPUT,
    "network": NETWORK,
}
ALL_OPTIONS = CREDENTIALS + BEHAVIOR + OUTPUT + NETWORK


def label(flag: str) -> str:
    """Return what a person knows a setting by: "--skey (DUO_SKEY)"."""
    for option in ALL_OPTIONS:
        if option.flag == flag:
            return f"{flag} ({option.variable})"
    return flag


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
        write_to_stderr(f"warning: others can read the file of {label(flag)}\n")


def make_parser() -> argparse.ArgumentParser:
    """Return a parser of options that leaves out what is not given."""
    parser = argparse.ArgumentParser(
        prog="duo_phone_cleanup",
        usage="%(prog)s [options] [user ...]",
        description=(__doc__ or "").partition("\n\nThe only writes")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
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
    if option.default.isalnum():  # the path of --ca-certs is too long
        text += f" (default: {option.default})"
    text += f" [{option.variable}]"
    if option.convert is to_switch:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    elif option.convert is to_level:
        group.add_argument(*flags, action="count", help=text)
    else:
        group.add_argument(*flags, metavar=option.metavar, help=text)


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings. Raises UsageError; SystemExit after --help, --version."""
    given, users = read_words(argv)
    texts = add_variables(given, environ)
    warn_of_misspelled_variables(environ)
    values = {option.field: convert(option, texts) for option in ALL_OPTIONS}
    if values["skey"] and values["skey_file"]:
        text = f"{label('--skey')} or {label('--skey-file')}, not both"
        raise UsageError(text)
    values["skey"] = values["skey"] or values["skey_file"]
    missing = [name for name in ("host", "ikey", "skey") if not values[name]]
    if missing:
        names = ", ".join(label(f"--{name}") for name in missing)
        text = f"missing: {names}. To load a file of variables: set -a; . FILE"
        raise UsageError(text)
    return Settings(**values, users=users, proxy=find_proxy(values["host"]))


def read_words(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the texts of the options given, by field, and the users.

    Raises UsageError; SystemExit after --help, --version.
    """
    words = list(argv)
    users_only = []
    if "--" in words:
        end = words.index("--")
        users_only = words[end + 1 :]
        words = words[:end]
    for word in words:
        if is_long_name_with_one_dash(word):
            raise unknown_option(words, word)
    try:
        known, others = make_parser().parse_known_args(words)
    except argparse.ArgumentError as error:  # its message may show a key
        flag = re.findall("--[a-z-]+", error.argument_name or "")[0]
        if "expected" in error.message:
            raise UsageError(f"{label(flag)}: expected a value") from None
        raise UsageError(f"{label(flag)}: takes no value") from None
    for word in others:
        if word.startswith("-"):
            raise unknown_option(words, word)
    # A switch is True or False here, and the verbosity is a number: as text, both are
    # what their variables may be.
    given = {field: str(value) for field, value in vars(known).items()}
    return given, others + users_only


def is_long_name_with_one_dash(word: str) -> bool:
    """Tell whether a word is like -skey, which argparse takes for -s with "key".

    A value joined to its letter is refused, too, if it looks like a word (-Hlocalhost).
    """
    name, equals, _ = word.partition("=")
    switches = [option.short[1:] for option in ALL_OPTIONS if not option.metavar]
    if re.fullmatch(f"-([A-Za-z]|[h{''.join(switches)}]+)", name):
        return bool(equals)
    return re.fullmatch("-[A-Za-z][a-z_-]+", name) is not None


def unknown_option(words: list[str], word: str) -> UsageError:
    """Return the error of a word that is no option, and not shown: it may be a key."""
    text = "an argument is not an option"  # of -vX, argparse may give back -X
    for number, each in enumerate(words, 1):
        if each == word:
            text = f"argument {number} is not an option"
    name = word.partition("=")[0]
    if not name.startswith("--"):
        name = f"-{name}"
    meant = find_meant(name)
    if meant:
        text += f": did you mean {meant}?"
    return UsageError(text)


def find_meant(name: str) -> str:
    """Return the option that a mistyped one begins like or is nearly the same as."""
    flags = ["--help", "--version"]
    for option in ALL_OPTIONS:
        flags.append(option.flag)
        if option.convert is to_switch:
            flags.append(option.flag.replace("--", "--no-", 1))
    for flag in flags:
        if flag.startswith(name) and len(name) > len("--"):
            return flag
    near = difflib.get_close_matches(name, flags, 1, MISSPELLED)
    return "".join(near)


def add_variables(given: dict[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the text of every setting that has one: an option beats any variable."""
    texts = dict(given)
    for option in ALL_OPTIONS:
        # The key has two options: either of them beats both variables.
        of_key = option.field in ("skey", "skey_file")
        if of_key and ("skey" in given or "skey_file" in given):
            continue
        text = environ.get(option.variable) or option.default
        if text and option.field not in given:
            texts[option.field] = text
    return texts


def convert(option: Option, texts: dict[str, str]) -> Any:
    """Return the value of a setting, "" if it has none. Raises UsageError."""
    if option.field not in texts:
        return ""
    try:
        return option.convert(texts[option.field].strip())
    except (ValueError, OSError) as error:
        raise UsageError(f"{label(option.flag)}: {reason_of(error)}") from None


def warn_of_misspelled_variables(environ: Mapping[str, str]) -> None:
    """Warn of variables that are nearly ours. Others belong to other programs."""
    ours = [option.variable for option in ALL_OPTIONS]
    for name in sorted(environ):
        if name in ours or not name.startswith("DUO_") or len(name) <= SHORT_NAME:
            continue
        for meant in difflib.get_close_matches(name, ours, 1, MISSPELLED):
            text = f"warning: unknown variable {name!a}: did you mean {meant}?\n"
            write_to_stderr(text)


def find_proxy(host: Address) -> Proxy | None:
    """Return the proxy that HTTPS_PROXY names, if there is one. Raises UsageError."""
    url = urllib.request.getproxies().get("https")
    if not url or urllib.request.proxy_bypass(f"{host.name}:{host.port}"):
        return None
    name = r"[\w-]{1,63}(?:\.[\w-]{1,63})*|\[[0-9a-f:.]+]"
    match = re.fullmatch(
        rf"(?:http://)?(?:(?P<login>[^/]+)@)?(?P<name>{name})(?::(?P<port>\d{{1,5}}))?/?",
        url,
        re.IGNORECASE | re.ASCII,
    )
    wrong = UsageError("HTTPS_PROXY: expected http://[USER:PASS@]HOST[:PORT]")
    if not match:
        raise wrong
    port = int(match["port"] or 80)
    if not 0 < port < 65536:
        raise wrong
    headers = {}
    if match["login"]:
        login = urllib.parse.unquote_to_bytes(os.fsencode(match["login"]))
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    return Proxy(match["name"].strip("[]"), port, headers)


def open_journal(settings: Settings) -> Journal | None:
    """Return the journal, None if there is none to write. Raises UsageError."""
    if settings.dry_run or not settings.journal:
        return None
    try:
        return Journal(settings.journal)
    except (OSError, ValueError) as error:
        text = f"{label('--journal')}: {about_file(settings.journal, error)}"
        raise UsageError(text) from None


# -------------------------------------------------------------------------------- main

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
ANSWER_SECONDS = 0.3  # after a signal, in which a write may still be answered
END_SECONDS = 0.4  # after that, in which the end may be reported; then half of it


def take_signals(stop: Stop) -> None:
    """Let signals end the run, when a write was answered or a moment has passed."""

    def note(number: int, _: object) -> None:
        if stop.signal is None:
            stop.signal = number
            signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS, END_SECONDS)
        elif number == signal.SIGALRM:
            raise Stopped  # whatever is stuck is broken off

    for number in SIGNALS:
        ignored = signal.getsignal(number) is signal.SIG_IGN  # as nohup sets it
        if not ignored or number == signal.SIGALRM:
            signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent may block them


def main(
    argv: Sequence[str] | None = None, clock: Callable[[], float] = time.time
) -> int:
    """Run and return the exit status. Raises SystemExit after --help, --version.

    `clock` gives the seconds since the epoch. The signal handlers are left as set.
    """
    if argv is None:
        argv = sys.argv[1:]
    stop = Stop()
    take_signals(stop)
    try:
        return read_and_run(argv, clock, stop)
    except Stopped:  # while the settings were read, or the end was reported
        return 128 + (stop.signal or 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_and_run(argv: Sequence[str], clock: Callable[[], float], stop: Stop) -> int:
    """Read the settings and run by them; return the exit status. Raises Stopped."""
    try:
        settings = read_settings(argv, os.environ)
        journal = open_journal(settings)
    except UsageError as error:
        text = printable(str(error), sys.stderr)
        write_to_stderr(f"duo_phone_cleanup: error: {text} (see --help)\n")
        return 2
    return run_and_report(settings, journal, clock, stop)


def run_and_report(
    settings: Settings,
    journal: Journal | None,
    clock: Callable[[], float],
    stop: Stop,
) -> int:
    """Carry out a run and report it; return the exit status. Raises Stopped."""
    log = Log(settings.verbose)
    tally = Tally()
    report = Report(settings, clock, log, Outputs(settings, log, journal), tally)
    duo = DuoAdmin(settings, log, tally, stop)
    with suppress(Stopped):
        try:
            Run(settings, duo, report).execute()
        except OutputBroken as broken:
            report.output_broke(broken)
    if stop.signal is not None:  # the end has a time of its own
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS, END_SECONDS / 2)
    stop.run_is_over = True
    duo.stop_reusing()
    return report.end(stop.signal)


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
