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
a "Generic Smartphone" that is not activated. The user can neither log in nor
enroll again. The first run to see it stamps it: the seconds since the epoch
become its name, the tag. A later run deletes it once that tag is older than
the grace period. A phone that a person has named is kept forever. Nothing is
stored but the tags, in Duo: a run may be killed, repeated or overlap another.

The only writes to Duo are in Run.carry_out: delete_phone, and update_phone with a name.
verdict() decides on each from the phone's own record, asked for at most two seconds
before. The file is in the order of trust: verdict, run, client, report, CLI, main.
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
import signal
import ssl
import sys
import termios
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import closing, suppress
from datetime import timezone
from functools import partial
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import dateutil  # its modules load on first use, for which most runs have none
import duo_client

__version__ = "1.1.0"

# A phone or user as Duo gives it: any field may be missing, null or of another type.
Record = dict[str, Any]
Clock = Callable[[], float]  # gives seconds since the epoch
Settings = argparse.Namespace  # an attribute for each option: see OPTIONS
S = TypeVar("S")
T = TypeVar("T")


# ------------------------------------------------------------------------- the verdict


class Verdict(enum.Enum):
    """What a phone's record says to do with it: the verb, the event, the reason."""

    UNTAG = "untag", "untagged", "set up since it was tagged"
    STAMP = "stamp", "stamped", "not tagged yet"
    NAMED = "keep", "named", "named {name}"
    FUTURE = "wait", "waiting", "its tag is in the future"
    UNREADABLE = "wait", "waiting", "its last_seen cannot be read"
    STAMP_AGAIN = "stamp", "stamped", "in use since it was tagged"
    DELETE = "delete", "deleted", "grace period over"
    WAIT = "wait", "waiting", "{left} left"

    def __init__(self, verb: str, done: str, reason: str) -> None:
        self.verb, self.done, self.reason = verb, done, reason
        self.writes = verb in ("untag", "stamp", "delete")


def is_limbo(phone: Record) -> bool:
    """Tell whether somebody began to set this phone up and has not finished."""
    generic = str(phone.get("platform")).lower() == "generic smartphone"
    return generic and not phone.get("activated")


def read_tag(phone: Record) -> int | None:
    """Return the tag in seconds since the epoch, None if the phone's name is no tag."""
    # Not with int(): it takes " 12 ", "+12", "1_000" and the digits of other scripts.
    name = phone.get("name")
    if not isinstance(name, str) or not re.fullmatch("[1-9][0-9]{9}", name):
        return None
    digits = re.sub("[^0-9]", "", str(phone.get("number")))
    return None if digits.endswith(name) else int(name)


def read_last_seen(phone: Record) -> float | None:
    """Return its last use in epoch seconds, or None. Raises Value- or OverflowError."""
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
    """Return the first rule that fits a phone; None: none of this program's business.

    `now` is in seconds since the epoch, `grace_period` in minutes.
    """
    name, tag = phone.get("name"), read_tag(phone)
    if not is_limbo(phone):
        return None if tag is None else Verdict.UNTAG
    if name is None or (isinstance(name, str) and not name.strip()):
        return Verdict.STAMP
    if tag is None:
        return Verdict.NAMED
    if tag > now:
        return Verdict.FUTURE
    try:
        last_seen = read_last_seen(phone)
    except (ValueError, OverflowError):
        return Verdict.UNREADABLE
    if last_seen is not None and last_seen > tag:
        return Verdict.STAMP_AGAIN  # the tag is from an earlier life
    return Verdict.DELETE if now - tag >= grace_period * 60 else Verdict.WAIT


# ------------------------------------------------------------- the run: walk, plan, act

NAMES = 100  # user names in one look-up: the most that Duo takes (username_list)
PHONE_ID = re.compile("[A-Za-z0-9_-]+")  # in a path, where ../ would lead elsewhere
SILENT = 4  # phones in a row without an answer that end the run


class Phone:
    """A phone with a verdict, and the names of the users who share it."""

    def __init__(self, phone_id: str, record: Record, verdict: Verdict) -> None:
        self.phone_id, self.record, self.verdict = phone_id, record, verdict
        self.number = str(record.get("number") or "without number")  # a tablet
        self.users: list[str] = []
        self.read_at = 0  # when it was read again, in seconds since the epoch
        # Names written to it without an answer, None for a deletion: perhaps done.
        self.unanswered: list[str | None] = []

    def __str__(self) -> str:
        return f"{', '.join(self.users)}'s phone {self.number}"


class Run:
    """One execution: walk, plan, act."""

    def __init__(self, settings: Settings, report: Report, duo: DuoAdmin) -> None:
        self.settings, self.report, self.duo = settings, report, duo
        self.asking = not settings.force and not settings.dry_run

    def __call__(self) -> None:
        """Carry the run out, and tell what ends it early. Raises Stopped."""
        grace, limit = self.settings.grace_period, self.settings.max_deletions
        scope = f"{self.duo.host}: grace period {count(grace, 'minute')}, "
        scope += f"deletion limit {'none' if limit is None else limit}"
        self.report.put(scope)
        try:
            plan = self.plan(self.walk())
            if self.asking and any(phone.verdict.writes for phone in plan):
                self.report.show(scope)
            self.act(plan)
            if self.settings.dry_run:
                self.table(plan)
        except Failure as failure:
            self.report.fail(str(failure))

    def walk(self) -> list[Phone]:
        """Return the phones with a verdict, each once, in the order of the listing."""
        found: dict[str, Phone] = {}
        pages = self.named_users() if self.settings.users else self.duo.list_users()
        for users, total in pages:
            for user in users:
                self.look_at(user, found)
            self.report.progress(total)
        return [*found.values()]

    def named_users(self) -> Iterator[tuple[list[Record], int]]:
        """Yield the users who bear a name asked for; tell which names nobody bears."""
        asked = [*dict.fromkeys(self.settings.users)]
        wanted, known = {name.casefold() for name in asked}, set[str]()
        for start in range(0, len(asked), NAMES):
            names = json.dumps(asked[start : start + NAMES])
            page = partial(self.duo.get_page, 0, username_list=names)
            users, _ = self.duo.persist(page)
            # A server that ignores the question must not widen the run.
            users = [user for user in users if all_names(user) & wanted]
            known.update(*map(all_names, users))
            yield users, len(asked)
        for name in asked:
            if name.casefold() not in known:
                self.report.event("unknown_user", user=name)

    def look_at(self, user: Record, found: dict[str, Phone]) -> None:
        """Add the phones of one user that have a verdict to those found."""
        phones, name = user.get("phones") or [], user_name(user)
        if not are_objects(phones):
            raise Failure(LISTING, f"Duo gives user {name} phones that are no records")
        self.report.counts["users_seen"] += 1
        self.report.counts["phones_seen"] += len(phones)
        for record in phones:
            says = verdict(record, self.report.now(), self.settings.grace_period)
            if not says or (says is Verdict.UNTAG and not self.settings.untag):
                continue
            phone_id = record.get("phone_id")
            if not isinstance(phone_id, str) or not PHONE_ID.fullmatch(phone_id):
                self.report.fail(f"user {name} has a phone without a usable phone_id")
                continue
            if phone_id in found:  # another user has it too
                self.report.counts["phones_seen"] -= 1
            else:
                found[phone_id] = Phone(phone_id, record, says)
                self.report.counts["limbo"] += is_limbo(record)
            if name not in found[phone_id].users:
                found[phone_id].users.append(name)

    def plan(self, found: list[Phone]) -> list[Phone]:
        """Leave all deletions out if there are more than --max-deletions of them."""
        rest = [phone for phone in found if phone.verdict is not Verdict.DELETE]
        due, limit = len(found) - len(rest), self.settings.max_deletions
        if limit is None or due <= limit:
            return found
        text = f"{count(due, 'phone')} due for deletion, none deleted: "
        text += f"{label('--max-deletions')} is {limit}"
        if limit == 0:
            self.report.log(text, 1)
            return rest
        look = "" if self.settings.dry_run else "Look at them with --dry-run. "
        way = f"{look}If they are right, run once by hand with --max-deletions none"
        self.report.fail(f"{text}. {way}")
        return found if self.settings.dry_run else rest  # so that one can look at them

    def act(self, plan: list[Phone]) -> None:
        """Deal with one phone after the other. Raises Failure."""
        # Where nothing is asked, the next phone is read while this one is written.
        writes = sum(phone.verdict.writes for phone in plan)
        number = silent = 0
        for phone, look in ahead(self.look_again, plan, 0 if self.asking else 1):
            self.duo.go_on()
            number += phone.verdict.writes
            try:
                outcome = result(look)
                if self.asking and not outcome:
                    outcome = self.ask(phone, number, writes)
                outcome = outcome or self.duo.persist(self.carry_out, phone)
            except Failure as failure:
                if failure.cause == GONE:
                    outcome = "deleted" if None in phone.unanswered else "gone"
                else:
                    self.report.fail(str(failure), phone)
                    if failure.cause in FATAL:
                        return
                    silent = silent + 1 if failure.cause == NO_ANSWER else 0
                    if silent == SILENT:
                        text = "phones in a row without an answer: the run ends"
                        raise Failure(NO_ANSWER, f"{SILENT} {text}") from None
                    continue
            silent = 0 if phone.verdict.writes else silent  # else nobody was asked
            self.report.event(outcome, phone)

    def look_again(self, phone: Phone) -> str:
        """Return what becomes of a phone, "" if it is to be written now."""
        if not phone.verdict.writes:
            return phone.verdict.done
        if self.settings.dry_run:
            return f"would_{phone.verdict.verb}"
        return self.duo.persist(self.recheck, phone)

    def recheck(self, phone: Phone) -> str:
        """Read a phone again; return what became of it, "" if its verdict stands."""
        phone.read_at = 0  # until it is known what the answer says
        record = self.duo.get_phone_by_id(phone.phone_id)
        now = self.report.now()
        # An answer that got mixed up must not vouch for another phone.
        if not isinstance(record, dict) or record.get("phone_id") != phone.phone_id:
            raise Failure(BROKEN, "Duo's answer is not a phone of this id")
        old_tag, phone.record, phone.read_at = read_tag(phone.record), record, now
        if are_objects(record.get("users")):
            phone.users = [*map(user_name, record["users"])] or phone.users
        if (record.get("name") or "") in phone.unanswered:
            return phone.verdict.done  # only the answer was lost
        says = verdict(record, now, self.settings.grace_period)
        same_tag = says is not Verdict.DELETE or read_tag(record) == old_tag
        return "" if says is phone.verdict and same_tag else "changed"

    def carry_out(self, phone: Phone) -> str:
        """Write what a phone's verdict says, on a fresh read; return its outcome."""
        if not phone.read_at or not self.duo.has_fresh_read(phone.phone_id):
            outcome = self.recheck(phone)
            if outcome:
                return outcome
        deleting = phone.verdict is Verdict.DELETE
        name = "" if phone.verdict is Verdict.UNTAG else str(phone.read_at)
        try:
            if deleting:
                self.report.event("deleting", phone)
                self.duo.delete_phone(phone.phone_id)  # not sent if that broke
            else:
                self.duo.update_phone(phone.phone_id, name=name)
                phone.record = {**phone.record, "name": name}
        except ERRORS as error:
            if self.duo.explain(error).cause in PASSING:  # perhaps done, tried again
                phone.unanswered.append(None if deleting else name)
            raise
        return phone.verdict.done

    def ask(self, phone: Phone, number: int, total: int) -> str:
        """Ask about a phone; return what became of it, "" for a yes. Raises Stopped."""
        now = self.report.now()
        ago, reason = self.reason(phone, now)
        facts = [f"tagged {ago} ago"] if ago else []
        if phone.verdict is not Verdict.DELETE:
            name = "blank" if phone.verdict is Verdict.UNTAG else now
            facts += [reason, f"its name becomes {name}"]
        about = f"{phone.verdict.verb} {phone} ({', '.join([*facts, phone.phone_id])})"
        while True:
            answer = self.report.ask(f"{number} of {total}: {about}? [y/n/a/q] ")
            if not answer:
                self.report.fail("the input has ended: nothing more is written")
                raise Stopped
            answer = answer.strip().lower()
            if answer == "q":
                raise Stopped
            if answer in ("n", "no"):
                return "declined"
            if answer in ("y", "yes", "a"):
                self.asking = answer != "a"
                return self.duo.persist(self.recheck, phone)
            self.report.show("y: yes, n: no, a: yes to all that are left, q: stop here")

    def reason(self, phone: Phone, now: int) -> tuple[str, str]:
        """Say how long ago a phone was tagged, if it was, and the verdict's reason."""
        name, tag = shorten(repr(phone.record.get("name")), 40), read_tag(phone.record)
        ago = "" if tag is None or tag > now else span(now - tag)
        left = max(0, (tag or now) + self.settings.grace_period * 60 - now)
        return ago, phone.verdict.reason.format(name=name, left=span(left))

    def table(self, plan: list[Phone]) -> None:
        """Print what a run would do, phone by phone."""
        now, verbose = self.report.now(), bool(self.settings.verbose)
        rows = [["USERS", "NUMBER", "AGE", "A RUN WOULD", "PHONE ID" * verbose]]
        for phone in plan:
            if verbose or phone.verdict is not Verdict.NAMED:
                ago, reason = self.reason(phone, now)
                row = [", ".join(phone.users), phone.number, ago]
                row += [f"{phone.verdict.verb}: {reason}", phone.phone_id * verbose]
                rows.append([escape(shorten(cell, 50), sys.stdout) for cell in row])
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows if rows[1:] else []:
            self.report.put("  ".join(map(str.ljust, row, widths)).rstrip())


# ---------------------------------------------------------------------- the Duo client

PAGE = 300  # users a page: the most that Duo gives (Admin API, Retrieve Users)
PAGES_AHEAD = 3  # asked for while one is waited for
FRESH = 2.0  # seconds in which the read of a phone vouches for a write
TRIES = 3  # in all, of a step that fails in passing
PAUSE = 1.0  # seconds at most before the second try; later pauses grow
PATIENCE = 180  # seconds of 429 before giving up; Duo counts requests by the minute
EXCHANGE = 10  # time-outs that a whole exchange may take
IDLE = 50  # seconds; Duo closes a connection that is idle for about 60

# The cause of a Failure is an HTTP status, or one of these.
NO_ANSWER, BROKEN, STALE = "no answer", "broken answer", "stale read"
CERTIFICATE, LISTING, THREADS, USAGE = "certificate", "listing", "threads", "usage"
GONE = 40401  # Duo's code for an id that it does not know
PASSING = (NO_ANSWER, BROKEN, STALE, 408, *range(500, 600))  # another try may go well
FATAL = (CERTIFICATE, THREADS, 401, 403, 429)  # they end the run

HINTS: dict[int | str, str] = {  # what the reader can do
    401: "check --ikey (DUO_IKEY), --skey (DUO_SKEY) or --skey-file (DUO_SKEY_FILE),"
    " --host (DUO_HOST) and this machine's clock",
    403: "give the Admin API application the permissions Grant resource - Read and"
    " Grant resource - Write, and see its Networks for API Access",
    429: "see what else uses up this tenant's rate limit",
    NO_ANSWER: "check --host (DUO_HOST), the network and HTTPS_PROXY",
    **dict.fromkeys((404, BROKEN), "check --host (DUO_HOST)"),
    CERTIFICATE: "is --host (DUO_HOST) right? Or see --ca-certs (DUO_CA_CERTS)",
}

# What duo_client and http.client raise: RuntimeError for an answer that is an error,
# ValueError for one that is no text, RecursionError (a RuntimeError) for one too deep.
ERRORS = (OSError, HTTPException, RuntimeError, ValueError)


class Stopped(Exception):
    """Nothing more is done: after a signal, "q", a broken output, or the end."""


class Failure(Exception):
    """Why something could not be done, and what to do about it, in one line."""

    def __init__(self, cause: int | str, text: str) -> None:
        super().__init__(": ".join(filter(None, (text, HINTS.get(cause)))))
        self.cause = cause


def are_objects(value: Any) -> bool:
    """Tell whether a value from Duo is a list of records."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def user_name(user: Record) -> str:
    """Return the name to show for a user."""
    return str(user.get("username") or user.get("user_id") or "a user without a name")


def all_names(user: Record) -> set[str]:
    """Return every name that Duo finds a user by, in one case: it compares without."""
    aliases = user.get("aliases")
    names = [*aliases.values()] if isinstance(aliases, dict) else []
    names += [user.get("username"), *(user.get(f"alias{n}") for n in range(1, 9))]
    return {str(name).casefold() for name in names if name}


def start(function: Callable[..., T], *about: Any) -> futures.Future[T]:
    """Call a function in a daemon thread, for which the exit does not wait."""
    future: futures.Future[T] = futures.Future()

    def call() -> None:
        # The main thread takes the signals: what another one takes, it may not notice.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGALRM))
        try:
            future.set_result(function(*about))
        except BaseException as error:
            # Without the frames, one of which may hold a socket open.
            future.set_exception(error.with_traceback(None))

    try:
        threading.Thread(target=call, daemon=True).start()
    except RuntimeError:
        raise Failure(THREADS, "this machine has no thread left") from None
    return future


def result(call: futures.Future[T], ends: float = float("inf")) -> T:
    """Wait for a call, in slices: a signal just before a wait is not seen in it."""
    while not futures.wait([call], 0.1).done:
        if time.monotonic() > ends:
            raise TimeoutError("no whole answer in ten time-outs")
    return call.result()


def ahead(
    function: Callable[[S], T], items: Iterable[S], width: int
) -> Iterator[tuple[S, futures.Future[T]]]:
    """Start calls; yield each item with its call when `width` more are started."""
    started: list[tuple[S, futures.Future[T]]] = []
    for item in items:
        started.append((item, start(function, item)))
        if len(started) > width:
            yield started.pop(0)
    yield from started


class DuoAdmin(duo_client.Admin):
    """The Admin API over kept connections, where every wait ends."""

    def __init__(self, settings: Settings, report: Report) -> None:
        host, port = settings.host
        super().__init__(settings.ikey, settings.skey, host, port=port)
        self.timeout, self.dialed = settings.timeout, f"{host}:{port}"
        if settings.proxy:
            self.set_proxy(*settings.proxy)
            self.dialed = f"the proxy {self.proxy_host}:{self.proxy_port}"
        self.tls, self._report = settings.ca_certs, report
        self._reads: dict[str, float] = {}  # by path, until when it vouches (monotonic)
        self._pause_ends, self._reusing, self._lock = 0.0, True, threading.Lock()
        self._idle: list[tuple[HTTPSConnection, float]] = []  # since when (monotonic)

    def go_on(self) -> None:
        """Raise Stopped if nothing more is to be done."""
        if self._report.signals or self._report.broken or self._report.ended:
            raise Stopped

    def has_fresh_read(self, phone_id: str) -> bool:
        """Tell whether a write to a phone may still be sent on its last read."""
        return time.monotonic() <= self._reads.get(f"/admin/v1/phones/{phone_id}", 0.0)

    def _make_request(self, method: str, uri: str, body: Any, headers: Any) -> Any:
        """All of duo_client's transport: an exchange. A read vouches for one write."""
        self.go_on()
        path, ends = uri.partition("?")[0], time.monotonic() + EXCHANGE * self.timeout
        latest = ends if method == "GET" else min(ends, self._reads.pop(path, 0.0))
        exchange = start(self._exchange, latest, method, uri, body, headers)
        response, data, sent = result(exchange, ends)
        if method == "GET":
            self._reads[path] = sent + FRESH
        elif (method, response.status) == ("DELETE", 204):  # as good as a 200
            response.status, data = 200, b'{"stat": "OK", "response": ""}'
        return response, data

    def _exchange(self, latest: float, method: str, uri: str, *rest: Any) -> Any:
        """Send a request by `latest`; return its answer and when it was sent."""
        connection, late, answered = self._connection(method), False, False
        try:
            if connection.sock is None:
                connection.connect()
            sent = time.monotonic()
            self.go_on()
            if sent > latest:  # kept for the next write: else a slow one never serves
                self.close()
                late = True
                raise Failure(STALE, f"no write within {FRESH:g} s of a read")
            self._report.requests.append(method)
            connection.request(method, uri, *rest)
            response = connection.getresponse()
            data, answered = response.read(), True
        finally:
            with self._lock:
                if late or (answered and self._reusing):
                    self._idle.append((connection, time.monotonic()))
                else:
                    connection.close()
        took = time.monotonic() - sent
        self._report.log(f"{method} {uri}: {response.status} after {took:.2f} s", 2)
        return response, data, sent

    def _connection(self, method: str) -> HTTPSConnection:
        with self._lock:
            while self._idle and (self._reusing or method != "GET"):
                connection, since = self._idle.pop()
                if time.monotonic() < since + IDLE:
                    return connection
                connection.close()
        # Not duo_client's class: it sends a proxy's name as the TLS server name, and
        # without TCP_NODELAY each POST on a kept connection takes 40 ms longer.
        host, port = self.proxy_host or self.host, self.proxy_port or self.port
        connection = HTTPSConnection(host, port, timeout=self.timeout, context=self.tls)
        if self.proxy_host:
            connection.set_tunnel(self.host, self.port, self.proxy_headers)
        return connection

    def close(self) -> None:
        """Close the connections that are kept, and keep none from now on."""
        with self._lock:
            self._reusing = False
            while self._idle:
                self._idle.pop()[0].close()

    def persist(self, step: Callable[..., T], *about: Any) -> T:
        """Carry out a step, again if it fails in passing. Raises Failure, Stopped."""
        # A step reads before it writes: no write is repeated without a fresh read.
        tries, began = 0, time.monotonic()
        while True:
            time.sleep(max(0.0, self._pause_ends - time.monotonic()))
            try:
                return step(*about)
            except (*ERRORS, Failure) as error:
                failure, now = self.explain(error), time.monotonic()
            self._report.log(f"this try: {failure}", 2)
            jitter, waited = random.uniform(0.7, 1), now - began
            if failure.cause == 429 and waited < PATIENCE:  # no try: all threads wait
                pause_ends = now + (2 * PAUSE + waited / 10) * jitter
                self._pause_ends = max(self._pause_ends, pause_ends)
            elif failure.cause in PASSING and tries < TRIES - 1:
                tries += 1
                if failure.cause != STALE:  # a server may close each without a word
                    self.close()
                time.sleep(tries * PAUSE * jitter)
            else:
                raise failure

    def explain(self, error: Exception) -> Failure:
        """Turn an error into a Failure that says what can be done about it."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failure(CERTIFICATE, f"{self.host} is not trusted: {plain(error)}")
        if isinstance(error, OSError):  # nobody answered, not even with an error
            return Failure(NO_ANSWER, f"no answer from {self.dialed}: {plain(error)}")
        cause, data = getattr(error, "status", 200), getattr(error, "data", None)
        text, body = str(error), data if isinstance(data, dict) else {}
        code = body["code"] if isinstance(body.get("code"), int) else 0
        if cause == 200 and body.get("stat") == "FAIL":
            cause, text = code // 100, f"Received {body.get('message')}"
        elif cause == 200:  # cut short, not HTTP, not JSON, or not as documented
            what = error if isinstance(error, HTTPException) else "no JSON"
            cause, text = BROKEN, f"{self.dialed} is not Duo's Admin API: {what}"
        cause = GONE if code == GONE else cause
        return Failure(cause, shorten(re.sub("^Received", "Duo answers", text), 200))

    def list_users(self) -> Iterator[tuple[list[Record], int]]:
        """Yield each page of the user listing, and the number of all users, or 0."""
        # Pages are asked for ahead, guessing that all are as long as the last.
        get = partial(self.persist, self.get_page)
        offset, length, total = 0, PAGE, 0
        while True:
            offsets = range(offset, max(total, offset + 1), length)
            for guess, page in ahead(get, offsets, PAGES_AHEAD):
                if guess != offset:
                    break  # Duo goes on elsewhere
                users, metadata = result(page)
                number, following = map(metadata.get, ("total_objects", "next_offset"))
                total = number if type(number) is int else 0
                yield users, total
                if following is None:
                    if offset + len(users) < total:
                        raise Failure(LISTING, "Duo's listing ends before its total")
                    return
                if type(following) is not int or following <= offset:
                    raise Failure(LISTING, "Duo's listing does not go on: next_offset")
                offset, length = following, following - offset

    def get_page(self, offset: int, **names: str) -> tuple[list[Record], Record]:
        """Return a page of users and its metadata. Raises Failure."""
        params = {"limit": str(PAGE), "offset": str(offset), **names}
        answer = self.api_call("GET", "/admin/v1/users", params)
        users, metadata = self.parse_json_response_and_metadata(*answer)
        if not are_objects(users) or not isinstance(metadata, dict):
            raise Failure(BROKEN, "Duo's answer is not a page of users")
        return users, metadata


# ------------------------------------------------------------------- what is reported

EVENTS = {  # with the level of the log that tells each: see Report.log
    **dict.fromkeys(("stamped", "deleted", "untagged"), 1),
    **dict.fromkeys(("would_stamp", "would_delete", "would_untag"), 2),
    **dict.fromkeys(("declined", "changed", "gone"), 1),
    **dict.fromkeys(("deleting", "waiting", "named"), 2),
    **dict.fromkeys(("failed", "unknown_user"), 0),  # they make the exit status 1
}


def shorten(text: str, width: int) -> str:
    """Cut a text to one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def escape(text: str, stream: TextIO | None) -> str:
    """Write as escapes what does not print, and what the stream's encoding lacks."""
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    encoding = getattr(stream, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def tell(text: str) -> bool:
    """Write to stderr; return whether that worked."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # none, broken, closed
        return False
    return True


def plain(error: Exception) -> str:
    """Return what an error says, without OpenSSL's noise."""
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"^\[[A-Z0-9: _]*] |^_ssl\.c:\d+: |\.? \(_ssl\.c:\d+\)$", "", text)


def count(number: int, what: str) -> str:
    """Say how many of something there are: "1 user", "2 users"."""
    return f"{number} {what}{'s' * (number != 1)}"


def iso(seconds: int) -> str:
    """Return seconds since the epoch in ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def span(seconds: int) -> str:
    """Return a length of time in its largest unit: "25 minutes", "3 days"."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return count(seconds // length, unit)
    return count(seconds, "second")


def to_journal(path: str) -> Callable[[str], None]:
    """Open a file for its owner; return what writes JSON lines. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_DSYNC, 0o600)

    def write(line: str) -> None:
        size, data = os.fstat(file).st_size, f"{line}\n".encode()
        if size and os.pread(file, 1, size - 1) != b"\n":  # a full disk tore the last
            data = b"\n" + data
        while data:
            data = data[os.write(file, data) :]

    return write


class Report:
    """Counts what happens and tells it: on stderr, on stdout and in the journal."""

    def __init__(self, settings: Settings, clock: Clock, signals: list[int]) -> None:
        self.settings, self.signals = settings, signals
        self.now: Callable[[], int] = lambda: int(clock())  # since the epoch
        self.began = time.monotonic()
        self.counts = dict.fromkeys(("users_seen", "phones_seen", "limbo", *EVENTS), 0)
        self.requests: list[str] = []  # methods; a list, since threads add to it
        self.terminal = bool(sys.stderr and sys.stderr.isatty())
        self.status, self.then = 0, ""  # `then` ends or clears the line stderr is on
        self.lock, self.broken, self.ended = threading.RLock(), False, False
        # Where JSON lines go, or else the table of a dry run.
        self.outputs: dict[str, Callable[[str], None]] = {}
        self.tabular = settings.dry_run and not settings.json
        if settings.json or settings.dry_run:
            self.outputs["standard output"] = self.write
        if settings.journal and not settings.dry_run:
            self.outputs[label("--journal")] = settings.journal

    def show(self, text: str, end: str = "\n", then: str = "") -> bool:
        """Write to stderr, and `then` before whatever is next; tell if that worked."""
        with self.lock:
            if self.ended:
                return False
            text, self.then = self.then + escape(text, sys.stderr) + end, then
            return tell(text)

    def log(self, text: str, level: int = 0) -> None:
        """Write a line to the log: at level 1 with -v or a terminal, at 2 with -vv."""
        if level <= max(self.settings.verbose, self.terminal):
            self.show(time.strftime("%Y-%m-%d %H:%M:%S ") + text)

    def progress(self, total: int) -> None:
        """Show on a terminal how far a walk of over a second has come."""
        if self.terminal and time.monotonic() - self.began > 1:
            text = f"{self.counts['users_seen']}{f' of {total}' if total else ''} users"
            self.show(text, "", "\r" + " " * len(text) + "\r")

    def ask(self, question: str) -> str:
        """Show a question on stderr; return the line that answers it, "" for none."""
        # What was typed before the question is no answer. (What is in a pipe is.)
        with suppress(TypeError, OSError, ValueError, termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        answer = ""
        if self.show(question, "", "\n"):
            with suppress(AttributeError, OSError, ValueError):  # none, lost, closed
                answer = sys.stdin.buffer.readline().decode(errors="replace")
                self.then = ""
                if not (sys.stdin.isatty() and answer.endswith("\n")):
                    self.show(shorten(answer, 40))  # Enter has not ended the line
        return answer

    def event(self, event: str, phone: Phone | None = None, **details: Any) -> None:
        """Count an event and tell it."""
        self.counts[event] += 1
        self.status = self.status or int(EVENTS[event] == 0)
        names = {"failed": "error", "unknown_user": "error: no such user in Duo"}
        told = [names.get(event, event.replace("_", " "))]
        line: Record = {"event": event, "time": iso(self.now())}
        if phone:
            told.append(f"{phone} ({phone.phone_id})")
            tag = read_tag(phone.record)
            line.update(phone_id=phone.phone_id, number=phone.record.get("number"))
            line.update(users=phone.users, tagged=tag and iso(tag))
            if event in ("deleting", "would_delete"):
                line["record"] = phone.record
        self.log(": ".join([*told, *details.values()]), EVENTS[event])
        verbose = self.settings.verbose or self.settings.dry_run
        if verbose or event not in ("waiting", "named"):
            self.put({**line, **details})

    def fail(self, error: str, phone: Phone | None = None) -> None:
        """Tell what went wrong, with one phone or in all."""
        self.event("failed", phone, error=error)

    def put(self, line: str | Record) -> None:
        """Write text of a dry run, or JSON. What breaks here stops the run."""
        if isinstance(line, str) != self.tabular:
            return
        text = escape(line, sys.stdout) if isinstance(line, str) else json.dumps(line)
        troubles = []
        for name, write in [*self.outputs.items()]:
            try:
                write(text)
            except (OSError, ValueError) as error:
                del self.outputs[name]
                troubles.append(f"{name} cannot be written: {error}")
        for trouble in troubles:  # now that the other output has the line, too
            self.broken = True
            self.fail(trouble)

    def write(self, line: str) -> None:
        """Write a line to standard output, now. Raises OSError and ValueError."""
        self.show("", "")  # clears a progress line
        if not sys.stdout:
            raise OSError("it is closed")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def end(self) -> int:
        """Tell the summary and return the exit status."""
        if self.signals:
            self.log(f"error: stopped by {signal.Signals(self.signals[0]).name}")
            self.status = 128 + self.signals[0]
        outputs = None
        while outputs != [*self.outputs]:  # again without one that broke just now
            outputs, (facts, text) = [*self.outputs], self.summary()
            self.put(facts)
            self.put(text)
        with self.lock:  # so that nothing comes after it
            if not (self.tabular and self.outputs):
                self.log(text, 0 if self.status else 1)
            self.ended = True
        return self.status

    def summary(self) -> tuple[Record, str]:
        """Return what the run saw and did, as a JSON line and as a sentence."""
        requests, seconds = len(self.requests), round(time.monotonic() - self.began, 1)
        facts: Record = {"event": "summary", "time": iso(self.now()), **self.counts}
        facts.update(requests=requests, seconds=seconds, exit_status=self.status)
        names = {"named": "kept", "unknown_user": "unknown"}
        users, phones, limbo = [*self.counts.values()][:3]
        text = f"{count(users, 'user')}, {count(phones, 'phone')}, {limbo} in limbo"
        text = text if users or not self.status else "nothing was read"
        for event in EVENTS:
            if self.counts[event] and event != "deleting":
                name = names.get(event, event.replace("would_", "to "))
                text += f"{', ' if ':' in text else ': '}{self.counts[event]} {name}"
        status = f"; exit status {self.status}" if self.status else ""
        return facts, f"{text}; {count(requests, 'request')}, {seconds} s{status}"


# -------------------------------------------------------------------- the command line

EPILOG = """\
Options override variables; an empty variable counts as unset. In a variable, a
switch is yes or no (DUO_FORCE=no). HTTPS_PROXY and NO_PROXY are honored.

Exit status: 0 all well or declined; 1 something failed, or a limit or unknown
user stopped part of it; 2 usage; 129, 130, 143 SIGHUP, SIGINT, SIGTERM.
"""


def fit(pattern: str, expected: str, convert: Callable[[str], Any], text: str) -> Any:
    """Return what a text that fits a pattern is converted to. Raises ValueError."""
    if not re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
        raise ValueError(f"expected {expected}")
    return convert(text)


YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
to_switch = partial(fit, "|".join(YES + NO), "yes or no", lambda x: x.lower() in YES)
to_key = partial(fit, "[!-~]+", "a key as Duo shows it, one word of ASCII", str)
to_number = partial(fit, r"\d{1,9}", "a whole number, 0 or more", int)
to_limit = partial(
    fit, r"none|\d{1,9}", "a number or none", lambda x: None if x.isalpha() else int(x)
)
to_seconds = partial(fit, r"(?=.*[1-9])\d{1,6}(\.\d{1,6})?", "seconds over 0", float)


def to_host(text: str) -> tuple[str, int]:
    """Return the host and port of HOST[:PORT] or a URL. Raises ValueError."""
    name = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    pattern = rf"(?:https?://)?({name}(?:\.{name})*)(?::([0-9]{{1,5}}))?(?:/.*)?"
    match = re.fullmatch(pattern, text.lower())
    if not match or not 0 < int(match[4] or 443) < 65536:
        raise ValueError("expected HOST[:PORT], such as api-12345678.duosecurity.com")
    return match[1], int(match[4] or 443)


def to_key_of_file(path: str) -> str:
    """Return the key in a file; warn if others can read it. Raises OSError."""
    with Path(path).open(encoding="ascii", errors="replace") as file:
        if os.fstat(file.fileno()).st_mode & 0o004:
            tell("warning: others can read the file of --skey-file (DUO_SKEY_FILE)\n")
        return str(to_key(file.read(1000).strip()))


def to_tls(path: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the CAs in a file. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies, always
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(path)
    return context


# By group: flags and metavar (a switch has none), converter, default, help. Each is a
# variable, too (DUO_GRACE_PERIOD). The default is text, as a variable is.
# fmt: off
OPTIONS: dict[str, list[tuple[str, Callable[[str], Any], str, str]]] = {
    "the Admin API application (its secret key can delete anybody's second factor)": [
        ("-H --host HOST", to_host, "", "API hostname, HOST or HOST:PORT"),
        ("-i --ikey IKEY", to_key, "", "integration key"),
        ("-s --skey SKEY", to_key, "", "secret key; others can see it in ps"),
        ("--skey-file FILE", to_key_of_file, "", "read the secret key from a file"),
    ],
    "what a run does": [
        ("-n --dry-run", to_switch, "no", "show what a run would do, write nothing"),
        ("-f --force", to_switch, "yes", "--no-force: ask before each write"),
        ("-g --grace-period MINUTES", to_number, "10",
         "minutes a tagged phone may stay; Duo's setup seems to end after about 17"),
        ("--max-deletions N", to_limit, "100",
         "delete none if more than N phones are due; none: no limit, 0: only tag"),
        ("--untag", to_switch, "no", "blank the name of a phone set up since its tag"),
    ],
    "output": [
        ("-v --verbose", to_number, "0", "show what is done; -vv: every step"),
        ("--json", to_switch, "no", "write JSON lines to standard output"),
        ("--journal FILE", to_journal, "", "append the JSON lines to a file"),
    ],
    "network": [
        ("--timeout SECONDS", to_seconds, "30", "limit of each wait for the network"),
        ("--ca-certs FILE", to_tls, duo_client.client.DEFAULT_CA_CERTS,
         "CA certificates to trust instead, for networks that inspect TLS"),
    ],
}
# fmt: on


def variable(option: str) -> str:
    """Return the environment variable that sets an option."""
    return f"DUO_{option[2:].replace('-', '_').upper()}"


def label(option: str) -> str:
    """Return what a person knows a setting by: "--skey (DUO_SKEY)"."""
    return f"{option} ({variable(option)})"


def make_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return a parser that leaves out what is not given, and all flags it knows."""
    parser = argparse.ArgumentParser(
        prog="duo_phone_cleanup",
        usage="%(prog)s [options] [user ...]",
        description=(__doc__ or "").partition("\n\nThe only")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        exit_on_error=False,
    )
    flags = ["-h", "--help", "--version"]
    parser.add_argument_group("user ...", "names or aliases of the users to look at")
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title)
        for names, convert, default, text in rows:
            *short, option = re.findall("--?[a-zA-Z-]+", names)
            how: Record = {"metavar": names.split()[-1]}
            if convert is to_switch:
                how = {"action": argparse.BooleanOptionalAction}
            elif option == "--verbose":
                how = {"action": "count"}
            text += f" (default: {default})" if default.isalnum() else ""
            how["help"] = f"{text} [{variable(option)}]"
            flags += group.add_argument(*short, option, **how).option_strings
    group = parser.add_argument_group("this program")
    group.add_argument("-h", "--help", action="help", help="show this help")
    group.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser, flags


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings. Raises Failure; SystemExit after --help, --version."""
    (parser, flags), words = make_parser(), [*argv, "--"]
    end = words.index("--")
    for place, word in enumerate(words[:end], 1):
        # argparse makes -s of -skey, shows what may be a key, and fails at -n=.
        flag, known = word.partition("=")[0], word[:1] != "-"
        if flag.startswith("--"):
            known = flag in flags
        elif re.fullmatch("-[fhnv]*([giHs].*|[fhnv])", word, re.DOTALL):
            known = not difflib.get_close_matches(f"-{flag}", flags, 1, 0.82)
        if not known:
            near = difflib.get_close_matches(flag, flags, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise Failure(USAGE, f"argument {place} is not an option{hint}")
    try:
        settings, users = parser.parse_known_args(words[:end])
    except argparse.ArgumentError as error:  # whose message may show a key
        option = re.findall("--[a-z-]+", error.argument_name or "")[0]
        wrong = "expected a value" if "expected" in error.message else "takes no value"
        raise Failure(USAGE, f"{label(option)}: {wrong}") from None
    settings.users, given = users + words[end + 1 : -1], vars(settings)
    if "skey" in given or "skey_file" in given:
        environ = {**environ, "DUO_SKEY": "", "DUO_SKEY_FILE": ""}
    ours = []
    for names, convert, default, _ in [r for rows in OPTIONS.values() for r in rows]:
        option = re.findall("--[a-z-]+", names)[0]
        name = option[2:].replace("-", "_")
        ours.append(variable(option))
        value = given.get(name, environ.get(ours[-1]) or default or None)
        try:
            given[name] = convert(value.strip()) if isinstance(value, str) else value
        except (ValueError, OSError) as error:
            raise Failure(USAGE, f"{label(option)}: {plain(error)}") from None
    for name in sorted({*environ}.difference(ours)):
        if name.startswith("DUO_") and len(name) > 9:  # DUO_AKEY is Duo Web's
            for meant in difflib.get_close_matches(name, ours, 1, 0.85):
                tell(f"warning: unknown variable {name!a}: did you mean {meant}?\n")
    if settings.skey and settings.skey_file:
        raise Failure(USAGE, f"{label('--skey')} or {label('--skey-file')}, not both")
    settings.skey = settings.skey or settings.skey_file
    missing = [f"--{name}" for name in ("host", "ikey", "skey") if not given[name]]
    if missing:
        raise Failure(USAGE, f"missing: {', '.join(map(label, missing))}")
    settings.proxy = find_proxy(*settings.host)
    return settings


def find_proxy(host: str, port: int) -> tuple[str, int, Record] | None:
    """Return host, port and headers of the environment's proxy. Raises Failure."""
    url = urllib.request.getproxies().get("https")
    if not url or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    name = r"[\w-]{1,63}(?:\.[\w-]{1,63})*|\[[0-9a-f:.]+]"
    pattern = rf"(?:http://)?(?:([^/]+)@)?({name})(?::([0-9]{{1,5}}))?/?"
    match = re.fullmatch(pattern, url, re.IGNORECASE | re.ASCII)
    if not match or not 0 < int(match[3] or 80) < 65536:
        raise Failure(USAGE, "HTTPS_PROXY: expected http://[USER:PASS@]HOST[:PORT]")
    login = urllib.parse.unquote_to_bytes(os.fsencode(match[1] or ""))
    basic = f"Basic {base64.b64encode(login).decode()}"
    headers = {"Proxy-Authorization": basic} if login else {}
    return match[2].strip("[]"), int(match[3] or 80), headers


# -------------------------------------------------------------------------------- main

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
ANSWER = 0.3  # seconds after a signal in which a write may still be answered
TELL = 0.4  # seconds after that in which the end may be told


def main(argv: Sequence[str] | None = None, clock: Clock = time.time) -> int:
    """Run, return the exit status, leave the signal handlers. Raises SystemExit."""
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        if signals and number == signal.SIGALRM:
            raise Stopped  # whatever is stuck is broken off
        if not signals:
            signal.setitimer(signal.ITIMER_REAL, ANSWER, TELL)
        signals.append(number)

    signal.signal(signal.SIGALRM, note)
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(each, note)
    try:
        try:
            settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        except Failure as error:
            tell(f"duo_phone_cleanup: error: {error} (see --help)\n")
            return 2
        report = Report(settings, clock, signals)
        with suppress(Stopped), closing(DuoAdmin(settings, report)) as duo:
            with suppress(Stopped):  # the outer one: for an alarm while it closes
                Run(settings, report, duo)()
            if signals:
                signal.setitimer(signal.ITIMER_REAL, TELL, TELL)
        return report.end()
    except Stopped:  # while the settings were read, or the end was told
        return 128 + signals[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def script() -> NoReturn:
    """Run as a process, which ends whatever its threads are still waiting for."""
    try:
        status = main()
    except (SystemExit, BrokenPipeError) as end:  # of --help and --version
        status = getattr(end, "code", 0)
        with suppress(AttributeError, OSError):
            sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    script()
