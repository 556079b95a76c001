#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#     "duo_client>=5.5,<6",
#     "python-dateutil>=2.9,<5",
# ]
# ///
"""Delete the phones that users left half set up in Duo, so that they can start over.

The first run to see a limbo phone stamps it: the seconds since the epoch become its
name. A later run deletes it once that tag is older than the grace period. The tag is
all the state there is, and it is in Duo: a run may be killed, repeated or overlap
another one.

This file reads from top to bottom in the order of a run: tags and the verdict, the
Duo client, the walk, acting on a phone, reporting, the command line (HELP says what
all of this is for), main.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import enum
import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TextIO, TypeVar

import dateutil  # its modules load on first use, for which most runs have none
import duo_client

__version__ = "1.0.0"

# A phone or user as Duo gives it: any field may be missing, null or of another type.
Record = dict[str, Any]
T = TypeVar("T")


# ---------------------------------------------------------------- tags and the verdict


class Verdict(enum.Enum):
    """What a phone's record alone says to do with it: the verb, the event when done."""

    STAMP = "stamp", "stamped"
    DELETE = "delete", "deleted"
    UNTAG = "untag", "untagged"
    NAMED = "leave alone", "named"
    WAIT = "wait", "waiting"

    def __init__(self, verb: str, done: str) -> None:
        self.verb, self.done = verb, done


WRITES = (Verdict.STAMP, Verdict.DELETE, Verdict.UNTAG)


def is_limbo(phone: Record) -> bool:
    """Tell whether somebody began to set this phone up and has not finished."""
    platform = phone.get("platform")
    generic = isinstance(platform, str) and platform.lower() == "generic smartphone"
    return generic and not phone.get("activated")


def read_tag(phone: Record) -> int | None:
    """Return the phone's tag in seconds since the epoch, None if its name is no tag.

    Not with int(): it takes " 12 ", "+12", "1_000" and the digits of other scripts.
    """
    name = phone.get("name")
    if not isinstance(name, str) or not re.fullmatch("[1-9][0-9]{9}", name):
        return None
    digits = re.sub("[^0-9]", "", str(phone.get("number")))
    return None if digits.endswith(name) else int(name)


def read_last_seen(phone: Record) -> float | None:
    """Return when the phone was last in use, in seconds since the epoch; None if never.

    Raises ValueError or OverflowError if that cannot be read.
    """
    value = phone.get("last_seen")
    if value is None or value == "":
        return None
    if type(value) is int:
        return value
    if not isinstance(value, str):
        raise ValueError("neither ISO 8601 nor an integer")
    # With its "T", since isoparse() takes any character between date and time.
    seen = dateutil.parser.isoparser("T").isoparse(value)
    return (seen if seen.tzinfo else seen.replace(tzinfo=timezone.utc)).timestamp()


def verdict(phone: Record, now: int, grace_period: int) -> Verdict | None:
    """Say what to do with a phone; None if it is none of this program's business.

    `now` is in seconds since the epoch, `grace_period` in minutes. The first rule
    that fits decides.
    """
    name, tag = phone.get("name"), read_tag(phone)
    if not is_limbo(phone):
        return None if tag is None else Verdict.UNTAG
    if name is None or (isinstance(name, str) and not name.strip()):
        return Verdict.STAMP
    if tag is None:
        return Verdict.NAMED
    if tag > now:
        return Verdict.WAIT
    try:
        last_seen = read_last_seen(phone)
    except (ValueError, OverflowError):
        return Verdict.WAIT
    if last_seen is not None and last_seen > tag:
        return Verdict.STAMP  # in use since: the tag is from an earlier life
    return Verdict.DELETE if now - tag >= grace_period * 60 else Verdict.WAIT


# ---------------------------------------------------------------------- the Duo client

PAGE = 300  # users a page: the most that Duo gives (Admin API, Retrieve Users)
PAGES_AHEAD = 4  # pages asked for and not yet consumed
NAMES = 100  # user names in one look-up: the most that Duo takes (username_list)
TRIES = 3  # in all, at a step whose failure may pass
PAUSE = 1.0  # seconds at most before the second try; later pauses grow
PATIENCE = 180  # seconds of 429 before giving up; Duo counts requests by the minute
PHONE_ID = re.compile("[A-Za-z0-9_-]+")  # in a path, where ../ would lead elsewhere
NOT_FOUND = 40401  # Duo's code for an id that it does not know

HINTS = {  # what the reader can do about an answer, by Duo's code or by HTTP status
    40102: "check --ikey (DUO_IKEY), and that --host (DUO_HOST) belongs to it",
    40103: "check --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE)",
    40104: "check this machine's clock",
    40105: "check this machine's clock",
    401: "check --ikey (DUO_IKEY), --skey (DUO_SKEY) and --host (DUO_HOST)",
    403: "give the Admin API application the permissions Grant resource - Read and"
    " Grant resource - Write, and see its Networks for API Access",
    404: "check --host (DUO_HOST)",
    429: "see what else uses up this tenant's rate limit",
}


class Failure(Exception):
    """Why something could not be done, in one line.

    `passing`: another try may go well. `fatal`: the run ends, not just this phone.
    """

    def __init__(
        self, text: str, status: int = 0, passing: bool = False, fatal: bool = False
    ) -> None:
        super().__init__(text)
        self.status, self.passing, self.fatal = status, passing, fatal


# What duo_client and http.client raise: RuntimeError for an answer that is an error,
# ValueError for one that is no text, RecursionError (a RuntimeError) for one too deep.
ERRORS = (OSError, http.client.HTTPException, RuntimeError, ValueError, Failure)


def duo_code(error: Exception) -> int:
    """Return the code in Duo's error body, 0 if there is none."""
    data = getattr(error, "data", None)
    code = data.get("code") if isinstance(data, dict) else None
    return code if isinstance(code, int) else 0


def explain(error: Exception) -> Failure:
    """Turn one of ERRORS into a Failure that says what can be done about it."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        text = f"the certificate of --host (DUO_HOST) fails: {why}: is it the right"
        hint = " host? Where the network inspects TLS, see --ca-certs (DUO_CA_CERTS)"
        return Failure(text + hint, fatal=True)
    if isinstance(error, OSError):  # nobody answered, not even with an error
        text = f"no answer from Duo: {error.strerror or error}"
        if isinstance(error, socket.timeout):
            text += ": check the network, or see --timeout (DUO_TIMEOUT)"
        elif "Tunnel" in text:
            text += ": check HTTPS_PROXY"
        else:
            text += ": check --host (DUO_HOST), the network, and any HTTPS_PROXY"
        return Failure(text, passing=True, fatal=True)
    status = getattr(error, "status", 200)
    if status == 200:  # cut short, not HTTP, not JSON, or not as documented
        what = error if isinstance(error, http.client.HTTPException) else "not its JSON"
        text = shorten(f"what answers is not Duo's Admin API: {what}", 200)
        return Failure(f"{text}: {HINTS[404]}", passing=True)
    text = shorten(re.sub("^Received", "Duo answers", str(error)), 200)
    hint = HINTS.get(duo_code(error)) or HINTS.get(status, "")
    fatal = status in (401, 403, 429)
    return Failure(f"{text}: {hint}" if hint else text, status, status >= 500, fatal)


class DuoAdmin(duo_client.Admin):
    """The Admin API over kept connections, each wait for the network limited."""

    def __init__(self, settings: Settings, report: Report) -> None:
        host, port = settings.host
        super().__init__(
            settings.ikey, settings.skey, host, port=port, timeout=settings.timeout
        )
        if settings.proxy:
            self.set_proxy(*settings.proxy)
        self._MAX_BACKOFF_WAIT_SECS = 0  # no 429 loop in duo_client: see persist
        self._tls, self._report = settings.tls, report
        self._idle: list[http.client.HTTPSConnection] = []
        self._gate = threading.RLock()  # see persist
        self._pause_ends = 0.0  # monotonic
        self._given_up: Failure | None = None  # by one thread, so by all
        self._closed = False

    def _connect(self) -> http.client.HTTPSConnection:
        self._report.request()
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        duo = self.host, self.port or http.client.HTTPS_PORT
        proxy = (self.proxy_host, self.proxy_port) if self.proxy_host else None
        # Not duo_client's class: it sends a proxy's name as the TLS server name, and
        # without TCP_NODELAY each POST on a kept connection takes 40 ms longer.
        connection = http.client.HTTPSConnection(
            *(proxy or duo), timeout=self.timeout, context=self._tls
        )
        if proxy:
            connection.set_tunnel(*duo, headers=self.proxy_headers)
        return connection

    def _disconnect(self, connection: http.client.HTTPSConnection) -> None:
        self._idle.append(connection)
        if self._closed:  # a page that nobody waits for any more
            self._drop_idle()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._drop_idle()

    def _attempt_single_request(
        self, connection: Any, method: str, uri: str, body: Any, headers: Any
    ) -> Any:
        began, outcome = time.monotonic(), "failed"
        try:
            answer = super()._attempt_single_request(
                connection, method, uri, body, headers
            )
            outcome = answer[0].status
            return answer
        except BaseException:
            connection.close()
            self._drop_idle()  # where one connection broke, others are likely to be
            raise
        finally:
            passed = time.monotonic() - began
            self._report.log(f"{method} {uri}: {outcome} after {passed:.2f} s", 2)

    def persist(self, step: Callable[..., T], *about: Any) -> T:
        """Carry out a step, again after a failure that may pass; return its result.

        A step reads before it writes, so that no write is repeated without a fresh
        read. A pause is for all threads that are about to send. A 429 is waited out by
        one thread, which then tries first; the others wait at the gate, and those that
        were refused as well go on one by one. Raises Failure.
        """
        with self._gate:
            pass
        failures, refused = 0, 0.0
        with contextlib.ExitStack() as turn:
            while True:
                time.sleep(max(0.0, self._pause_ends - time.monotonic()))
                if self._given_up:
                    raise self._given_up
                try:
                    return step(*about)
                except ERRORS as error:
                    failure, now = explain(error), time.monotonic()
                if failure.status == 429:
                    refused = refused or now
                    waited = now - refused
                    pause, again = PAUSE + waited / 10, waited < PATIENCE
                else:
                    failures += 1
                    pause = failures * PAUSE
                    again = failure.passing and failures < TRIES
                if not again:
                    if failure.fatal:
                        self._given_up = failure
                    raise failure
                self._report.log(f"{failure}; trying again", 2)
                ends = now + pause * random.uniform(0.7, 1)
                self._pause_ends = max(self._pause_ends, ends)
                if refused:
                    turn.enter_context(self._gate)

    def pages(self, **criteria: str) -> Iterator[tuple[list[Any], int]]:
        """Yield each page of the user listing, with the number of all users, or 0.

        Each page names the offset of the next. Until it does, pages are asked for on
        the guess that all are as long as this one; where one then is not named, its
        users are dropped. Raises Failure.
        """

        def fetch(offset: int) -> tuple[list[Any], Record]:
            params = {"limit": str(PAGE), "offset": str(offset), **criteria}
            answer = self.api_call("GET", "/admin/v1/users", params)
            users, metadata = self.parse_json_response_and_metadata(*answer)
            if not isinstance(users, list) or not isinstance(metadata, dict):
                raise Failure("Duo's answer is not a page of users", passing=True)
            return users, metadata

        offset: int | None = 0
        asked = {0: Task(self.persist, fetch, 0)}
        while offset is not None:
            users, metadata = asked.pop(offset).result()
            following = metadata.get("next_offset")
            total = metadata.get("total_objects")
            length = total if isinstance(total, int) else 0
            if following is not None:
                if not isinstance(following, int) or following <= offset:
                    raise Failure("Duo's listing of users does not go on: next_offset")
                asked = {at: page for at, page in asked.items() if at >= following}
                ahead = range(following, max(length, following + 1), following - offset)
                for at in ahead[:PAGES_AHEAD]:
                    if at not in asked and len(asked) < PAGES_AHEAD:
                        asked[at] = Task(self.persist, fetch, at)
            yield users, length
            offset = following


class Task(Generic[T]):
    """A call in a daemon thread.

    Not an executor's: the end of the process would wait for it. `done` is no queue: a
    signal may make SimpleQueue.get() forget its time-out (seen in Python 3.11).
    """

    def __init__(self, function: Callable[..., T], *about: Any) -> None:
        self.error: BaseException | None = None
        self.done = threading.Event()
        try:
            call = (function, *about)
            threading.Thread(target=self.run, args=call, daemon=True).start()
        except RuntimeError:  # the machine has no thread left
            self.run(function, *about)

    def run(self, function: Callable[..., T], *about: Any) -> None:
        """Make the call."""
        try:
            self.value = function(*about)
        except BaseException as error:
            self.error = error
        self.done.set()

    def result(self) -> T:
        """Wait for the end of the call; return its result, or raise its error."""
        self.done.wait()
        if self.error:
            raise self.error
        return self.value


# ---------------------------------------------------------------------------- the walk


class Found:
    """A phone with a verdict: its record as last read, and the names of its users."""

    def __init__(self, phone_id: str, record: Record, verdict: Verdict) -> None:
        self.phone_id, self.record, self.verdict = phone_id, record, verdict
        self.users: list[str] = []
        self.sent: list[object] = []  # see Run.step

    def __str__(self) -> str:
        return f"phone {self.phone_id} of {', '.join(self.users)} ({self.number})"

    @property
    def number(self) -> str:
        """The number as a person reads it: a phone without one is a tablet."""
        return str(self.record.get("number") or "tablet")


def user_name(user: Record) -> str:
    """Return the name to show for a user."""
    return str(user.get("username") or user.get("user_id") or "a user without a name")


def all_names(user: Record) -> set[str]:
    """Return every name that Duo finds a user by, in one case: it compares without."""
    aliases = user.get("aliases")
    names = [*aliases.values()] if isinstance(aliases, dict) else []
    names += [user.get("username"), *(user.get(f"alias{n}") for n in range(1, 9))]
    return {str(name).casefold() for name in names if name}


class Run:
    """One execution: walk, plan, act."""

    def __init__(self, settings: Settings, report: Report, duo: DuoAdmin) -> None:
        self.settings, self.report, self.duo = settings, report, duo

    def __call__(self) -> None:
        """Carry the run out. Raises OutputError."""
        try:
            found = self.walk()
        except Failure as failure:
            self.report.fail(str(failure))
            return
        deletions = sum(phone.verdict is Verdict.DELETE for phone in found)
        limit = self.settings.max_deletions
        if limit is not None and deletions > limit:
            self.report.fail(
                f"phones to delete: {deletions}, more than --max-deletions"
                f" (DUO_MAX_DELETIONS) {limit}, so none is deleted: look at them with"
                " --dry-run, then run once by hand with --max-deletions none"
            )
            if not self.settings.dry_run:
                found = [each for each in found if each.verdict is not Verdict.DELETE]
        self.act(found)
        self.report.table()

    def walk(self) -> list[Found]:
        """Look at all users, or at the named ones, and return phones with a verdict."""
        found: dict[str, Found] = {}
        names = [*{name.casefold(): name for name in self.settings.users}.values()]
        known: set[str] = set()
        lookups: list[dict[str, str]] = [
            {"username_list": json.dumps(names[start : start + NAMES])}
            for start in range(0, len(names), NAMES)
        ]
        for criteria in lookups or [{}]:
            for users, length in self.duo.pages(**criteria):
                for user in users:
                    if not isinstance(user, dict):
                        raise Failure("Duo's listing has a user that is no object")
                    if names:
                        known |= all_names(user)
                    self.look_at(user, found)
                self.report.progress(length)
        for name in names:
            if name.casefold() not in known:
                self.report.event("unknown_user", user=name)
        self.report.limbo = sum(is_limbo(phone.record) for phone in found.values())
        return [*found.values()]

    def look_at(self, user: Record, found: dict[str, Found]) -> None:
        """Add the phones of one user that have a verdict to those found."""
        phones, name = user.get("phones") or [], user_name(user)
        if not isinstance(phones, list):
            raise Failure(f"Duo's listing has phones of user {name} that are no list")
        self.report.users_seen += 1
        self.report.phones_seen += len(phones)
        for record in phones:
            if not isinstance(record, dict):
                self.report.fail(f"user {name} has a phone that is no object")
                continue
            says = self.judge(record, self.report.now())
            if not says:
                continue
            phone_id = record.get("phone_id")
            if not isinstance(phone_id, str) or not PHONE_ID.fullmatch(phone_id):
                self.report.fail(f"user {name} has a phone without a usable phone_id")
                continue
            phone = found.setdefault(phone_id, Found(phone_id, record, says))
            self.report.phones_seen -= bool(phone.users)  # another user has it too
            if name not in phone.users:
                phone.users.append(name)

    def judge(self, record: Record, now: int) -> Verdict | None:
        """Return the verdict on a record; None also for UNTAG without --untag."""
        says = verdict(record, now, self.settings.grace_period)
        return None if says is Verdict.UNTAG and not self.settings.untag else says

    # ------------------------------------------------------------- acting on a phone

    def act(self, found: list[Found]) -> None:
        """Carry out the verdicts in the order of the walk, ask first, or only tell."""
        rehearsing, names = self.settings.dry_run, self.settings.users
        asking, number = not self.settings.force and not rehearsing, 0
        total = sum(phone.verdict in WRITES for phone in found)
        for phone in found:
            writing = phone.verdict in WRITES
            number += writing
            outcome = ""
            try:
                # The phone itself names all its users; a look-up by name may not.
                if (asking and writing) or (rehearsing and names):
                    outcome = self.duo.persist(self.step, phone, False)
                if not outcome and not writing:
                    outcome = phone.verdict.done
                if not outcome and rehearsing:
                    outcome = f"would_{phone.verdict.verb}"
                if not outcome and asking:
                    question = self.report.question(phone, self.report.now())
                    answer = self.report.ask(f"{number} of {total}: {question}")
                    if answer == "q":
                        return
                    asking = answer != "a"
                    outcome = "declined" if answer == "n" else ""
                if not outcome:
                    outcome = self.duo.persist(self.step, phone, True)
                self.report.event(outcome, phone)
            except Failure as failure:
                self.report.fail(str(failure), phone)
                if failure.fatal:
                    return

    def step(self, phone: Found, write: bool) -> str:
        """Read a phone again and carry its verdict out if that still stands.

        Returns the event that tells what became of it; "" if `write` is false and the
        verdict stands. What earlier tries sent is in `phone.sent`: where that is found
        done, only the answer was lost.
        """
        earlier = [*phone.sent]
        try:
            record = self.duo.get_phone_by_id(phone.phone_id)
            now = self.report.now()
            # An answer that got mixed up must not vouch for another phone.
            if not isinstance(record, dict) or record.get("phone_id") != phone.phone_id:
                raise Failure("Duo's answer is not a phone of this id", passing=True)
            old_tag, phone.record = read_tag(phone.record), record
            users = record.get("users")
            if isinstance(users, list):
                names = [user_name(user) for user in users if isinstance(user, dict)]
                phone.users = names or phone.users
            if (record.get("name") or "") in earlier:
                return phone.verdict.done
            if self.judge(record, now) is not phone.verdict:
                return "changed"
            if phone.verdict is Verdict.DELETE and read_tag(record) != old_tag:
                return "changed"
            if not write:
                return ""
            if phone.verdict is Verdict.DELETE:
                self.report.event("deleting", phone)
                phone.sent.append(Verdict.DELETE)
                self.duo.delete_phone(phone.phone_id)
            else:
                name = str(now) if phone.verdict is Verdict.STAMP else ""
                phone.sent.append(name)
                self.duo.update_phone(phone.phone_id, name=name)
                phone.record = {**record, "name": name}
        except RuntimeError as error:
            if duo_code(error) != NOT_FOUND:
                raise
            return "deleted" if Verdict.DELETE in earlier else "gone"
        return phone.verdict.done


# -------------------------------------------------------------------------- reporting

REHEARSED = ("waiting", "named", "would_stamp", "would_delete", "would_untag")
LOUD = ("failed", "unknown_user")  # events that make the exit status 1
EVENTS = {  # with the level of the log that tells each: see Report.log
    **dict.fromkeys(LOUD, 0),
    **dict.fromkeys(("stamped", "deleted", "untagged"), 1),
    **dict.fromkeys(("declined", "changed", "gone"), 1),
    **dict.fromkeys(("deleting", *REHEARSED), 2),
}


class OutputError(Exception):
    """Standard output cannot be written."""


class Stopped(Exception):
    """A signal has come, or the run is over: nothing more is done or waited for."""


def shorten(text: str, width: int) -> str:
    """Cut a text to one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def escape(text: str, stream: TextIO | None) -> str:
    """Write as escapes what does not print, and what the stream's encoding lacks."""
    text = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )
    encoding = getattr(stream, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def utc(seconds: float) -> datetime:
    """Return an aware UTC time for seconds since the epoch."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def iso(seconds: float) -> str:
    """Return seconds since the epoch in ISO 8601, UTC."""
    return utc(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(since: int, now: int) -> str:
    """Say how far two times, in seconds since the epoch, are apart: "3 days"."""
    passed = dateutil.relativedelta.relativedelta(
        utc(max(since, now)), utc(min(since, now))
    )
    for unit in ("years", "months", "days", "hours", "minutes", "seconds"):
        number = getattr(passed, unit)
        if number:
            return f"{number} {unit if number > 1 else unit[:-1]}"
    return "0 seconds"


class Report:
    """Counts what happens and tells it: on stderr, and on stdout what was asked for.

    `status` is the exit status so far. Once one of `signals` has come, no thread sends
    another request; once the end has been told, none tells anything more.
    """

    def __init__(
        self, settings: Settings, clock: Callable[[], float], signals: Sequence[int]
    ) -> None:
        self.settings, self.clock, self.signals = settings, clock, signals
        self.began = time.monotonic()
        self.counts = dict.fromkeys(EVENTS, 0)
        self.users_seen = self.phones_seen = self.limbo = self.requests = 0
        self.status = 0
        self.ended = False
        self.rehearsed: list[Found] = []  # in a dry run, the rows of its table
        self.terminal = bool(sys.stderr and sys.stderr.isatty())
        self.before = ""  # what to write to stderr before anything else
        self.lock = threading.RLock()

    def now(self) -> int:
        """Return the time in seconds since the epoch."""
        return int(self.clock())

    def request(self) -> None:
        """Count a request that is about to be sent. Raises Stopped."""
        with self.lock:
            if self.signals or self.ended:
                raise Stopped
            self.requests += 1

    def show(self, text: str, end: str = "\n", before: str = "") -> bool:
        """Write to stderr; tell if that worked.

        `before` goes in front of what is written next, unless Enter has ended the line.
        """
        with self.lock:
            if self.ended:
                return False
            text, self.before = self.before + escape(text, sys.stderr) + end, before
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except (AttributeError, OSError, ValueError):  # none, broken, closed
                return False
        return True

    def log(self, text: str, level: int = 0) -> None:
        """Write a line to the log: at level 1 with -v or a terminal, at 2 with -vv."""
        if level <= max(self.settings.verbose, self.terminal):
            self.show(time.strftime("%Y-%m-%d %H:%M:%S ") + text)

    def event(self, event: str, phone: Found | None = None, **details: Any) -> None:
        """Count an event and tell it, to the journal first.

        Raises OutputError, and Stopped where there is a journal.
        """
        about: Record = {}
        if phone:
            tag = read_tag(phone.record)
            about["phone_id"] = phone.phone_id
            about["number"] = phone.record.get("number")
            about["users"] = phone.users
            about["tagged"] = None if tag is None else iso(tag)
            if event in ("deleting", "would_delete"):
                about["record"] = phone.record
            if event in REHEARSED:
                self.rehearsed.append(phone)
        verbose = self.settings.verbose or self.settings.dry_run
        told = [event.replace("_", " "), phone, *details.values()]
        with self.lock:
            self.counts[event] += 1
            if verbose or event not in ("waiting", "named"):
                self.journal(event, **about, **details)
            self.log(": ".join(str(each) for each in told if each), EVENTS[event])
            if event in LOUD:
                self.status = 1

    def fail(self, error: str, phone: Found | None = None) -> None:
        """Tell what went wrong, with one phone or without. Raises OutputError."""
        self.event("failed", phone, error=error)

    def journal(self, event: str, **details: Any) -> None:
        """Write a JSON line if they were asked for. Raises OutputError."""
        if self.settings.json:
            line = {"event": event, "time": iso(self.now()), **details}
            self.write(json.dumps(line))

    def write(self, line: str) -> None:
        """Write a line to stdout, now. Raises OutputError, once, and Stopped."""
        with self.lock:
            if self.ended:
                raise Stopped
            if self.before:
                self.show("", "")
            try:
                if not sys.stdout:
                    raise OSError("it is closed")
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            except (OSError, ValueError) as error:
                # Nothing more goes there: what is left to tell, the log tells.
                self.settings = self.settings._replace(json=False, dry_run=False)
                why = f"standard output cannot be written: {error}"
                raise OutputError(why) from error

    def progress(self, length: int) -> None:
        """Show on a terminal how far a walk of more than a second has come."""
        if self.terminal and time.monotonic() - self.began > 1:
            of = f" of {length}" if length else ""
            text = f"{self.users_seen}{of} users"
            self.show(text, "", "\r" + " " * len(text) + "\r")

    def ask(self, question: str) -> str:
        """Ask on stderr and return y, n, a or q; the end of the input is a failed q."""
        while True:
            answer = ""
            if self.show(f"{question} [y/n/a/q] ", "", "\n"):
                # No standard input, a lost terminal, a closed file:
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    answer = sys.stdin.buffer.readline().decode(errors="replace")
                    self.before = ""
                    if not (sys.stdin.isatty() and answer.endswith("\n")):
                        self.show(shorten(answer, 40))  # Enter has not ended the line
            if not answer:
                self.fail("no answer, the input has ended: nothing more is written")
                return "q"
            answer = answer.strip().lower()
            if answer == "q":
                self.log("stopped at the prompt: nothing more is written")
            if answer in ("y", "yes", "n", "no", "a", "q"):
                return answer[0]
            self.log("y: yes, n: no, a: yes to all that are left, q: stop here")

    def reason(self, phone: Found, now: int) -> str:
        """Say why a phone has its verdict."""
        tag = read_tag(phone.record)
        if phone.verdict is Verdict.NAMED:
            return f"named {shorten(repr(phone.record.get('name')), 40)}"
        if tag is None:
            return "not tagged yet"
        if phone.verdict is not Verdict.WAIT:
            since = {Verdict.UNTAG: ", set up since", Verdict.STAMP: ", in use since"}
            ago = f"tagged {age(tag, now)} {'ago' if tag <= now else 'ahead'}"
            return ago + since.get(phone.verdict, "")
        if tag > now:
            return "its tag is in the future"
        try:
            read_last_seen(phone.record)
        except (ValueError, OverflowError):
            return "its last_seen is unreadable"
        end = tag + self.settings.grace_period * 60
        return f"{age(now, max(now, end))} left"  # it may be due since the walk

    def question(self, phone: Found, now: int) -> str:
        """Ask what to do with a phone, with all that one needs to know to answer."""
        becomes = {Verdict.STAMP: str(now), Verdict.UNTAG: "blank"}.get(phone.verdict)
        write = f" (its name becomes {becomes})" if becomes else ""
        return f"{phone.verdict.verb} {phone}, {self.reason(phone, now)}{write}?"

    def table(self) -> None:
        """Tell what a run would do, if that was asked for. Raises OutputError."""
        if not self.settings.dry_run or self.settings.json:
            return
        now = self.now()
        rows = [["USERS", "NUMBER", "PHONE ID", "FIRST SEEN", "AGE", "A RUN WOULD"]]
        for phone in self.rehearsed:
            tag = read_tag(phone.record)
            first_seen = utc(tag).astimezone().strftime("%Y-%m-%d %H:%M") if tag else ""
            row = [", ".join(phone.users), phone.number, phone.phone_id, first_seen]
            row.append(age(tag, now) if tag and tag <= now else "")
            row.append(f"{phone.verdict.verb}: {self.reason(phone, now)}")
            rows.append([escape(shorten(cell, 60), sys.stdout) for cell in row])
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows if self.rehearsed else [["No limbo phones."]]:
            cells = (cell.ljust(width) for cell, width in zip(row, widths))
            self.write("  ".join(cells).rstrip())

    def end(self) -> int:
        """Tell the summary and return the exit status."""
        with self.lock:
            if self.signals:
                number = self.signals[0]
                self.stop(f"stopped by {signal.Signals(number).name}", 128 + number)
            try:
                self.summarise()
            except OutputError as error:
                self.stop(str(error))
                self.summarise()
            self.ended = True
            return self.status

    def stop(self, why: str, status: int = 1) -> None:
        """Say why the run ends here, with what exit status."""
        self.log(why)
        self.status = max(self.status, status)

    def summarise(self) -> None:
        """Say in one line what the run saw and did. Raises OutputError, once."""
        facts = {
            "users_seen": self.users_seen,
            "phones_seen": self.phones_seen,
            "limbo": self.limbo,
            **self.counts,
            "requests": self.requests,
            "seconds": round(time.monotonic() - self.began, 1),
            "exit_status": self.status,
        }
        self.journal("summary", **facts)
        words = {"named": "left alone", "limbo": "in limbo"}
        text = ", ".join(
            f"{words.get(fact, fact).replace('_', ' ')} {number}"
            for fact, number in facts.items()
            if self.counts.get(fact, 1) and fact != "deleting"
        )
        if self.settings.dry_run and not self.settings.json:
            self.write(text)
            return
        # A run that failed before it saw anything has said all there is to say.
        loud = self.status > 1 or (self.status and self.users_seen)
        self.log(text, 0 if loud else 1)


# ------------------------------------------------------------------- the command line

HELP = """\
usage: duo_phone_cleanup [options] [user ...]

Delete the phones that users left half set up in Duo, so that they can start over.

A user who stops before a new phone is activated leaves a limbo phone behind: a
"Generic Smartphone", not activated, with which nobody can log in. The first run to
see it stamps it: the time becomes its name. A later run deletes it once that tag is
older than the grace period. A phone that a person has named is left alone for ever.

  user                  look only at these users' phones, by user name or alias

the Admin API application
  Whoever has its secret key can change or delete anybody's second factor. Treat the
  key like a password: keep it where this job alone can read it, send it to nobody.

  -H, --host HOST       API hostname, HOST or HOST:PORT            [DUO_HOST]
  -i, --ikey IKEY       integration key                            [DUO_IKEY]
  -s, --skey SKEY       secret key; others see it in ps            [DUO_SKEY]
      --skey-file FILE  read the secret key from a file            [DUO_SKEY_FILE]

what a run does
  -n, --dry-run         show what a run would do, write nothing    [DUO_DRY_RUN]
      --no-force        ask before each write: y or n, a for a yes [DUO_FORCE]
                        to all that are left, q to stop here
  -g, --grace-period MINUTES
                        how long a tagged phone may stay, 10       [DUO_GRACE_PERIOD]
                        unless given; Duo's own set-up seems to
                        time out after about 17 minutes
      --max-deletions N delete none if there are more than N to    [DUO_MAX_DELETIONS]
                        delete; "none", or not given: no limit
      --untag           make a phone's name blank again if it was  [DUO_UNTAG]
                        set up after it was stamped

output and network
  -v, --verbose         say what is done; -vv: every step          [DUO_VERBOSE]
      --json            a JSON object per line on standard output  [DUO_JSON]
      --timeout SECONDS for each wait for the network, 30 unless   [DUO_TIMEOUT]
                        given
      --ca-certs FILE   CA certificates to trust instead of those  [DUO_CA_CERTS]
                        that come with duo_client, for networks
                        that inspect TLS
  -h, --help, --version

Each option is also an environment variable, in brackets. An option beats any variable;
an empty variable counts as not given; DUO_FORCE=no is --no-force, and so on, and
DUO_VERBOSE a number. Each switch has its opposite: -f, --force, --no-dry-run,
--no-json, --no-untag.
HTTPS_PROXY and NO_PROXY are honoured.

examples
  duo_phone_cleanup --dry-run                    show what a run would do
  duo_phone_cleanup --no-force ann bob           ask about the phones of two users
  duo_phone_cleanup -g 20 --max-deletions 50     clean up the tenant, from cron

exit status
  0  all well, nothing to do, or declined at the prompt
  1  something failed, or a limit or an unknown user stopped part of it
  2  the command line or a variable is wrong
  129, 130, 143  stopped by SIGHUP, SIGINT or SIGTERM
"""


class UsageError(Exception):
    """What is wrong with the command line or the environment: names, never values."""


class Settings(NamedTuple):
    """What was asked for on the command line and in the environment."""

    skey: str
    skey_exposed: bool  # others can read the file it is in
    ikey: str
    host: tuple[str, int | None]
    grace_period: int
    force: bool
    dry_run: bool
    max_deletions: int | None
    untag: bool
    json: bool
    timeout: float
    tls: ssl.SSLContext
    proxy: tuple[str, int, Mapping[str, str]] | None
    verbose: int
    users: list[str]


def matching(
    pattern: str, expected: str, convert: Callable[[str], Any] = str
) -> Callable[[str], Any]:
    """Return a converter from text that fits a pattern; else it raises ValueError."""

    def converter(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
            raise ValueError(f"expected {expected}")
        return convert(text)

    return converter


TRUE = ("y", "yes", "t", "true", "on", "1")
FALSE = ("n", "no", "f", "false", "off", "0")
to_switch = matching("|".join(TRUE + FALSE), "yes or no", lambda x: x.lower() in TRUE)
to_key = matching("[!-~]+", "a key as Duo shows it, one word of ASCII")
to_number = matching("[0-9]{1,9}", "a whole number, 0 or more", int)
to_limit = matching(
    "none|[0-9]{1,9}",
    "a whole number, 0 or more, or none",
    lambda text: int(text) if text.isdigit() else None,
)
to_seconds = matching(
    r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?", "seconds, more than 0", float
)


def to_host(text: str) -> tuple[str, int | None]:
    """Return host, and port if any, of HOST[:PORT] or a URL. Raises ValueError."""
    name = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    pattern = rf"(?:https?://)?({name}(?:\.{name})*)(?::([0-9]{{1,5}}))?(?:/.*)?"
    match = re.fullmatch(pattern, text.lower())
    if not match or not 0 < int(match[4] or 443) < 65536:
        raise ValueError("expected HOST[:PORT], such as api-12345678.duosecurity.com")
    return match[1], int(match[4]) if match[4] else None


def read_key(path: str) -> tuple[str, bool]:
    """Return the key in a file, and whether others can read that. Raises ValueError."""
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            exposed = os.fstat(file.fileno()).st_mode & stat.S_IROTH
            return to_key(file.read(1000).strip()), bool(exposed)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


def to_tls(path: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the CAs in a file. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies, always
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise ValueError(f"no CA certificates there: {error.strerror}") from None
    return context


def find_proxy(
    host: str, port: int | None
) -> tuple[str, int, Mapping[str, str]] | None:
    """Return host, port and headers of the environment's proxy. Raises ValueError."""
    url = urllib.request.getproxies().get("https")
    if not url or urllib.request.proxy_bypass(f"{host}:{port or 443}"):
        return None
    pattern = (
        r"(?:http://)?(?:([^/]+)@)?([^][/@:\s]+|\[[0-9a-f:.]+])(?::([0-9]{1,5}))?/?"
    )
    match = re.fullmatch(pattern, url)
    if not match or not 0 < int(match[3] or 80) < 65536:
        raise ValueError("expected http://[USER:PASSWORD@]HOST[:PORT]")
    login = match[1] or ""
    basic = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
    headers = {"Proxy-Authorization": f"Basic {basic}"} if login else {}
    return match[2].strip("[]"), int(match[3] or 80), headers


OPTIONS: dict[str, tuple[str, Callable[[str], Any], Any]] = {
    # name: short form, from text to value, value when not given
    "skey": ("-s", to_key, None),
    "skey_file": ("", read_key, None),
    "ikey": ("-i", to_key, None),
    "host": ("-H", to_host, None),
    "grace_period": ("-g", to_number, 10),
    "force": ("-f", to_switch, True),
    "dry_run": ("-n", to_switch, False),
    "max_deletions": ("", to_limit, None),
    "untag": ("", to_switch, False),
    "json": ("", to_switch, False),
    "timeout": ("", to_seconds, 30.0),
    "ca_certs": ("", to_tls, None),
    "verbose": ("-v", to_number, 0),
}


def label(name: str) -> str:
    """Return what a person knows a setting by: "--skey (DUO_SKEY)"."""
    return f"--{name.replace('_', '-')} (DUO_{name.upper()})"


class Parser(argparse.ArgumentParser):
    """The parser of the command line: what is not given there is None."""

    def __init__(self) -> None:
        super().__init__("duo_phone_cleanup", allow_abbrev=False, exit_on_error=False)
        for name, (short, convert, _) in OPTIONS.items():
            flags = [flag for flag in (short, label(name).split()[0]) if flag]
            action: Any = "count" if name == "verbose" else "store"
            if convert is to_switch:
                action = argparse.BooleanOptionalAction
            self.add_argument(*flags, action=action)
        version = f"%(prog)s {__version__}"
        self.add_argument("--version", action="version", version=version)

    def format_help(self) -> str:
        """Return the help as it is written above."""
        return HELP

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(AttributeError, OSError):  # as from Python 3.12 on
            super()._print_message(message, file)


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options and the users of a command line.

    Raises UsageError; SystemExit after --help and --version.
    """
    arguments = [*argv, "--"]
    end = arguments.index("--")
    try:
        namespace, users = Parser().parse_known_args(arguments[:end])
    except argparse.ArgumentError as error:  # its message may repeat the value
        option = re.findall("--[a-z-]+", str(error.argument_name))[0]
        name = option[2:].replace("-", "_")
        wrong = "expected a value" if "expected" in error.message else "takes no value"
        which = label(name) if name in OPTIONS else option
        raise UsageError(f"{which}: {wrong}") from None
    unknown = [each for each in users if each.startswith("-")]
    # Nor -skey for --skey, of which argparse makes -s key and a user.
    single = {label(name).split()[0][1:] for name in OPTIONS}
    unknown += [each for each in arguments[:end] if each.partition("=")[0] in single]
    if unknown:  # not by its name: it may be a mistyped --skey=...
        place = [*argv, unknown[0]].index(unknown[0]) + 1
        which = f"argument {place}" if place <= len(argv) else "an argument"
        raise UsageError(f"{which} (not shown: it may be a key) is no option")
    users += arguments[end + 1 : -1]
    if "" in users:
        raise UsageError("user: expected a name, got an empty one")
    return vars(namespace), users


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings from the command line and the environment.

    Raises UsageError; SystemExit after --help and --version.
    """
    options, users = parse(argv)
    if options["skey"] is not None or options["skey_file"] is not None:
        environ = {**environ, "DUO_SKEY": "", "DUO_SKEY_FILE": ""}
    values: dict[str, Any] = {"users": users}
    for name, (_, convert, default) in OPTIONS.items():
        given = options[name]
        if given is None:
            given = environ.get(f"DUO_{name.upper()}") or None
        try:
            values[name] = convert(given.strip()) if isinstance(given, str) else given
        except ValueError as error:
            raise UsageError(f"{label(name)}: {error}") from None
        if given is None:
            values[name] = default
    if values["skey"] and values["skey_file"]:
        raise UsageError(f"give {label('skey')} or {label('skey_file')}, not both")
    key, exposed = values.pop("skey_file") or (values["skey"], False)
    values.update(skey=key, skey_exposed=exposed)
    needed = {name: label(name) for name in ("host", "ikey", "skey")}
    needed["skey"] += f" or {label('skey_file')}"
    missing = [text for name, text in needed.items() if not values[name]]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    try:
        values["proxy"] = find_proxy(*values["host"])
    except ValueError as error:
        raise UsageError(f"the variable HTTPS_PROXY: {error}") from None
    ca_certs = values.pop("ca_certs")
    values["tls"] = ca_certs or to_tls(duo_client.client.DEFAULT_CA_CERTS)
    return Settings(**values)


# -------------------------------------------------------------------------------- main

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def execute(settings: Settings, report: Report) -> None:
    """Carry out a run, up to its summary. Raises Stopped."""
    if settings.skey_exposed:
        report.log(f"warning: others can read the file of {label('skey_file')}")
    with contextlib.closing(DuoAdmin(settings, report)) as duo:
        try:
            Run(settings, report, duo)()
        except OutputError as error:
            report.stop(str(error))


def supervise(argv: Sequence[str], clock: Callable[[], float]) -> int:
    """Do what main() does, but do not restore the signal handlers.

    The work is done in other threads. So no signal hits code that is not made for it,
    and none has to wait for a silent server or for a reader of the output.
    """
    signals: list[int] = []
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(each, lambda number, _: signals.append(number))

    def wait_for(patience: int, function: Callable[..., T], *about: Any) -> T:
        """Call a function; `patience`: tenths of a second at most after a signal."""
        task = Task(function, *about)
        while patience:
            if task.done.wait(0.1):
                return task.result()
            patience -= bool(signals)
        raise Stopped

    try:
        settings = wait_for(1, read_settings, argv, os.environ)
        report = Report(settings, clock, signals)
        with contextlib.suppress(Stopped):
            wait_for(3, execute, settings, report)  # so that an answer is not lost
        return wait_for(4, report.end)
    except UsageError as error:
        with contextlib.suppress(AttributeError, OSError):
            sys.stderr.write(f"duo_phone_cleanup: error: {error} (see --help)\n")
        return 2
    except Stopped:
        return 128 + signals[0]


def main(
    argv: Sequence[str] | None = None, clock: Callable[[], float] = time.time
) -> int:
    """Run the program and return its exit status.

    `clock` gives seconds since the epoch. Raises SystemExit after --help and --version.
    """
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        return supervise(sys.argv[1:] if argv is None else argv, clock)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def script() -> NoReturn:
    """Run as a process, which ends whatever its threads are still waiting for."""
    try:
        status = supervise(sys.argv[1:], time.time)
    except SystemExit:  # after --help and --version
        status = 0
        with contextlib.suppress(AttributeError, OSError):
            sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    script()
