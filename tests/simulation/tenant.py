"""A simulated Duo tenant: the Duo Admin API on localhost, over real HTTPS.

It answers as Duo's documentation says: signed requests, page limits, error bodies.
It can also be slow and fail in chosen ways, so that a program can be tried against
everything that a network and other people may do to it::

    with Tenant() as tenant:
        phone_id = tenant.add_phone("ann")  # its set-up was begun, not finished
        tenant.fail("reset_after", method="DELETE")  # the answer will be lost
        subprocess.run([...], env={**os.environ, **tenant.environment()})
        assert tenant.phone(phone_id) is None

The records can be read and changed at any time, under ``tenant.lock``. ``python -m
tests.simulation.tenant`` runs a tenant by itself, to try things out by hand.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import email.utils
import functools
import hashlib
import hmac
import http.client
import itertools
import json
import random
import re
import select
import signal
import socket
import ssl
import string
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any, Callable, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import trustme

IKEY = "DIWJ8X6AEYOR5OMC6TQ1"
SKEY = "Zh5eGmUq9zpfQnyUIu5OL9iWoMMv5ZNmk3zLJ4Ep"
MISSING: Any = object()
"""As the value of a record's field: leave the field out."""

Record = dict[str, Any]

# Duo's error codes begin with the HTTP status that they are sent with.
ERRORS = {
    40002: "Invalid request parameters",
    40101: "Missing request credentials",
    40102: "Invalid integration key in request credentials",
    40103: "Invalid signature in request credentials",
    40104: "Missing request timestamp",
    40105: "Bad request timestamp",
    40301: "Access forbidden",
    40401: "Resource not found",
    40501: "Method not allowed",
    42901: "Too Many Requests",
}
FAULTS: dict[str, tuple[str, ...]] = {
    "status": ("status", "code", "message", "message_detail", "body"),
    "reset_before": (),
    "reset_after": (),
    "close_before": (),
    "truncate": ("length",),
    "hang": (),
    "answer": ("response", "metadata", "body"),
    "close_after": (),
    "connection_close": (),
    "ignore_names": (),
    "end_early": (),
    "endless": ("page",),
    "interim": (),
    "answer_twice": (),
}
"""The kinds of fault, each with the options it takes; see `Tenant.fail`."""

MODIFIABLE = ("name", "number", "extension", "type", "platform")
MAX_LIMIT = 300
MAX_NAMES = 100
MAX_SKEW_SECONDS = 300
HANDSHAKE_SECONDS = 10
HANG_UP_CHECK_SECONDS = 0.02
THREAD_ENDS_SECONDS = 0.3
HOUR = 3600
DAY = 24 * HOUR

PHONES_OWNED = (0, 1, 2, 0, 1)
"""How many phones each of five ordinary users in a row has."""
LOGGED_IN_AGO = (HOUR, None, DAY, 90 * DAY)
"""When each of four ordinary users in a row last logged in; None: never."""


@dataclass
class Request:
    """A request as it arrived, and what became of it."""

    method: str
    path: str
    """As it was sent: still quoted, without the query."""
    query: list[tuple[str, str]]
    headers: Message
    body: bytes
    params: Record
    """The query, or the JSON object in the body."""
    connection: int
    sequence: int = 0
    """1 for the first request of all."""
    time: float = field(default_factory=time.monotonic)
    status: int | None = None
    """None until it is answered."""


@dataclass
class Fault:
    """Something that goes wrong with chosen requests. Made by `Tenant.fail`."""

    kind: str
    method: str | None
    path: str | None
    times: int | None
    """How many more times it happens; None: for ever. Set it to 0 to end the fault."""
    after: int
    """How many more matching requests pass before it begins."""
    how: dict[str, Any]
    hits: int = 0
    """How many times it has happened."""
    held: threading.Event = field(default_factory=threading.Event)
    """Set when a request hangs."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set it to let go the requests that hang, and those to come."""


@dataclass
class _Answer:
    """An answer about to be sent."""

    document: Any = None
    status: int = 200
    rows: int = 0
    body: bytes | None = None
    """Sent in place of the document."""
    truncated: bool = False
    length: int | None = None
    """What its Content-Length says, if not the truth."""
    twice: bool = False
    announce_close: bool = False
    close: bool = False


class _Refusal(Exception):
    """The request is answered with one of Duo's errors."""

    def __init__(self, code: int, detail: str | None = None) -> None:
        super().__init__(code, detail)
        self.answer = _failure(code // 100, code, message_detail=detail)


class _Drop(Exception):
    """The connection is given up without an answer."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class Tenant:
    """The tenant, and the server that answers for it while the context is open."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives the times that it writes into records by itself."""
        self.users: dict[str, Record] = {}
        """By id, in the order of the listing. ``phones`` is a list of phone ids, which
        become records in an answer; any other value is answered as it is."""
        self.phones: dict[str, Record] = {}
        """By id. ``users`` is a list of user ids, as above."""
        self.lock = threading.RLock()
        """Held while a request is carried out on the records."""
        self.permissions = {"read", "write"}
        self.gone_status = 200
        """Of the answer to a DELETE of a phone that is already gone: 200 or 404. An id
        that no phone ever had is answered 404 in any case."""
        self.last_offset_null = False
        """Whether ``next_offset`` is null on the last page, instead of left out."""
        self.look_up_counts_all = False
        """Whether ``total_objects`` of a look-up by names counts all users."""
        self.requests: list[Request] = []
        self.connections = 0
        """How many there have been, without those that were refused."""
        self.refusals = 0
        """How many connections will be refused."""

        self._clock = clock
        self._random = random.Random(0)
        self._user_ids: dict[str, str] = {}
        self._phone_ids: set[str] = set()  # of the deleted ones, too
        self._numbers = itertools.count()
        self._faults: list[Fault] = []
        self._delays = {"connection": 0.0, "request": 0.0, "row": 0.0}
        self._before: list[Callable[[Request], None]] = []
        self._after: list[Callable[[Request], None]] = []
        # Guards everything about the traffic; `lock` guards the records alone, so that
        # a test that holds it still sees requests arrive.
        self._traffic = threading.Condition()
        self._sockets: set[ssl.SSLSocket] = set()  # also those that have ended
        self._busy: set[ssl.SSLSocket] = set()  # on which a request is under way
        # Held until an answer is sent, and its connection is no longer busy. A client
        # that does not read its answer lets all others wait.
        self._sending = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()

    # Starting and stopping

    def __enter__(self) -> Tenant:
        self._directory = tempfile.TemporaryDirectory()
        authority, certificate = _certificate("localhost")
        self.ca_certs = Path(self._directory.name, "ca.pem")
        authority.cert_pem.write_to_path(str(self.ca_certs))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host = f"localhost:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        # A last connection wakes the acceptor; closing its socket would not.
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname(), timeout=1).close()
        self._acceptor.join()
        self._listener.close()
        with self._traffic:
            sockets = list(self._sockets)
            threads = list(self._threads)
        for sock in sockets:
            _shut_down(sock)
        for thread in threads:
            thread.join(THREAD_ENDS_SECONDS)  # a hook may wait for ever
        self._directory.cleanup()

    def environment(self) -> dict[str, str]:
        """The settings of a program that is to use this tenant."""
        return {
            "DUO_HOST": self.host,
            "DUO_IKEY": IKEY,
            "DUO_SKEY": SKEY,
            "DUO_CA_CERTS": str(self.ca_certs),
        }

    # The records

    def add_user(
        self, username: str, *, aliases: Iterable[str] = (), **fields: Any
    ) -> str:
        """Add a user without phones; give its id. `fields` override the record's."""
        by_number = {f"alias{n}": alias for n, alias in enumerate(aliases, 1)}
        with self.lock:
            user_id = self._new_id("DU")
            record: Record = {
                "alias1": by_number.get("alias1"),
                "alias2": by_number.get("alias2"),
                "alias3": by_number.get("alias3"),
                "alias4": by_number.get("alias4"),
                "aliases": by_number,
                "created": int(self._clock()),
                "desktoptokens": [],
                "email": f"{username}@example.com",
                "enable_auto_prompt": True,
                "firstname": username.title(),
                "groups": [],
                "last_directory_sync": None,
                "last_login": None,
                "lastname": "Example",
                "lockout_reason": None,
                "notes": "",
                "phones": [],
                "realname": f"{username.title()} Example",
                "status": "active",
                "tokens": [],
                "u2ftokens": [],
                "user_id": user_id,
                "username": username,
                "webauthncredentials": [],
            }
            self.users[user_id] = _without_missing({**record, **fields})
            self._user_ids[username.casefold()] = user_id
        return user_id

    def add_phone(self, *usernames: str, **fields: Any) -> str:
        """Add a phone whose set-up was begun and not finished; give its id.

        It belongs to the users named, who are added if there are none of that name.
        `fields` override the record's.
        """
        with self.lock:
            phone_id = fields.get("phone_id")
            if not isinstance(phone_id, str):
                phone_id = self._new_id("DP")
            self._phone_ids.add(phone_id)
            owners = [self._user_id(name) for name in usernames]
            record = {
                "activated": False,
                "capabilities": ["sms"],
                "encrypted": "",
                "extension": "",
                "fingerprint": "",
                "last_seen": "",
                "model": "Unknown",
                "name": "",
                "number": f"+1555{next(self._numbers):07}",
                "phone_id": phone_id,
                "platform": "Generic Smartphone",
                "postdelay": "",
                "predelay": "",
                "screenlock": "",
                "sms_passcodes_sent": False,
                "tampered": "",
                "type": "Mobile",
                "users": owners,
            }
            self.phones[phone_id] = _without_missing({**record, **fields})
            for owner in owners:
                self._give(owner, phone_id)
        return phone_id

    def move_phone(self, phone_id: str, *usernames: str) -> None:
        """Take the phone from the users who have it and give it to the ones named."""
        with self.lock:
            for owner in self.phones[phone_id]["users"]:
                self.users[owner]["phones"].remove(phone_id)
            owners = [self._user_id(name) for name in usernames]
            self.phones[phone_id]["users"] = owners
            for owner in owners:
                self._give(owner, phone_id)

    def change_user(self, username: str, **fields: Any) -> None:
        """Change these fields of a user's record, as when somebody logs in."""
        with self.lock:
            user_id = self._user_id(username)
            record = self.users[user_id]
            self.users[user_id] = _without_missing({**record, **fields})

    def populate(self, count: int) -> None:
        """Add `count` ordinary users, with up to two phones each, all set up."""
        now = int(self._clock())
        seen = _duo_time(now - DAY)
        phones = [
            _set_up("Apple iOS", "Apple iPhone 15", seen, name="iPhone"),
            _set_up("Google Android", "Google Pixel 8", seen),
            _set_up("Apple iOS", "Apple iPad Pro", MISSING, number="", name="iPad"),
            _set_up("Google Android", "Samsung Galaxy S23", None, name=None),
            {"platform": "Unknown", "type": "Landline", "capabilities": ["phone"]},
            _set_up("Apple iOS", MISSING, seen, name=MISSING, tampered=MISSING),
            _set_up("Windows Phone", None, "", encrypted=MISSING, number=None),
        ]
        nothing_yet: list[Record] = [{}, {}, {"phones": None}, {"phones": MISSING}]
        chosen = itertools.cycle(phones)
        with self.lock:
            for number in range(len(self.users), len(self.users) + count):
                username = f"user{number:06}"
                owned = PHONES_OWNED[number % len(PHONES_OWNED)]
                fields: Record = {}
                if owned == 0:
                    fields = nothing_yet[number % len(nothing_yet)]
                last_login = None
                ago = LOGGED_IN_AGO[number % len(LOGGED_IN_AGO)]
                if ago is not None:
                    last_login = now - ago
                self.add_user(username, last_login=last_login, **fields)
                for _ in range(owned):
                    self.add_phone(username, **next(chosen))

    def phone(self, phone_id: str) -> Record | None:
        """A copy of the phone's record, None if it has been deleted."""
        with self.lock:
            return copy.deepcopy(self.phones.get(phone_id))

    def _new_id(self, prefix: str) -> str:
        characters = string.ascii_uppercase + string.digits
        return prefix + "".join(self._random.choices(characters, k=18))

    def _user_id(self, username: str) -> str:
        """The id of the user of this name, who is added if there is none."""
        user_id = self._user_ids.get(username.casefold())
        if user_id in self.users:
            return user_id
        return self.add_user(username)

    def _give(self, user_id: str, phone_id: str) -> None:
        user = self.users[user_id]
        if not isinstance(user.get("phones"), list):
            user["phones"] = []
        user["phones"].append(phone_id)

    # What can be made to happen

    def fail(
        self,
        kind: str,
        *,
        method: str | None = None,
        path: str | None = None,
        times: int | None = 1,
        after: int = 0,
        **how: Any,
    ) -> Fault:
        """Let requests go wrong that have this method and a path matching this regex.

        The first `after` of them pass, then `times` fail (None: all of them). Of
        several faults that fit a request, the one added first happens. The kinds:

        status: answer with an error, the work not done. `status` (503), and Duo's
            `code`, `message`, `message_detail`; or, for all that, `body`.
        reset_before, reset_after: reset the connection before or after the work.
        close_before: close the connection in good order, the work not done.
        truncate: do the work, send half of the answer, whose Content-Length may say
            any `length`.
        hang: say nothing, the work not done, until the fault is `released` or the
            client goes away.
        answer: do the work, answer with another `response`, `metadata` (MISSING:
            none) or, for all that, `body`.
        close_after: answer, then close the connection without having said so.
        connection_close: answer, say that the connection will close, close it.
        ignore_names: list the users as if ``username_list`` had not been sent.
        end_early: leave ``next_offset`` out of a listing, as if it were the last page.
        endless: name a next page on each page of a listing, also past its end. `page`
            says what is on it: "empty" (nothing), or "same" (always the first page).
        interim: do the work, and send an interim answer before the true one. `slow`
            puts a pause between the two.
        answer_twice: answer, and send the same at once again.
        """
        unknown = set(how).difference(FAULTS[kind])
        if unknown:
            raise TypeError(f"A {kind!r} fault has no option {sorted(unknown)}")
        fault = Fault(kind, method, path, times, after, how)
        with self._traffic:
            self._faults.append(fault)
        return fault

    def slow(
        self, *, connection: float = 0, request: float = 0, row: float = 0
    ) -> None:
        """Take so many seconds for each connection, request and row of a listing."""
        self._delays = {"connection": connection, "request": request, "row": row}

    def refuse(self, times: int) -> None:
        """Reset the next `times` connections as TLS begins.

        Those that there are live on; see `close_idle`.
        """
        with self._traffic:
            self.refusals = times

    def close_idle(self) -> None:
        """Close the connections on which no request is under way, without a word.

        One that has just been opened is among them. It may be called by a hook, whose
        own connection is not idle.
        """
        # The client of an answer that is just being sent may have it by now.
        with self._sending, self._traffic:
            for sock in self._sockets - self._busy:
                _shut_down(sock)

    def on_request(self, hook: Callable[[Request], None]) -> None:
        """Call this for each request with valid credentials, before it is looked at.

        A hook, also one of `after_request`, may raise `_Refusal`: that is the answer.
        """
        self._before.append(hook)

    def after_request(self, hook: Callable[[Request], None]) -> None:
        """Call this for each request whose work is done, before its answer is sent."""
        self._after.append(hook)

    def wait_for(
        self,
        count: int = 1,
        *,
        method: str | None = None,
        path: str | None = None,
        timeout: float = 30,
    ) -> None:
        """Wait for the count-th such request since the start, answered or not."""

        def has_come() -> bool:
            return sum(_matches(each, method, path) for each in self.requests) >= count

        with self._traffic:
            if not self._traffic.wait_for(has_come, timeout):
                raise TimeoutError(f"It has not come in {timeout} s")

    # Connections

    def _accept(self) -> None:
        """Give each connection a thread of its own, which also does its handshake."""
        while True:
            raw, _ = self._listener.accept()
            if self._stopping.is_set():
                raw.close()
                return
            with self._traffic:
                is_refused = self.refusals > 0
                if is_refused:
                    self.refusals -= 1
            if is_refused:
                _reset_as_tls_begins(raw)
                continue
            thread = threading.Thread(target=self._serve, args=(raw,), daemon=True)
            with self._traffic:
                self._threads.add(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        """Answer the requests of one connection until one side has had enough."""
        # A client may be killed at any moment: then, errors are in order.
        with contextlib.suppress(OSError), raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.settimeout(HANDSHAKE_SECONDS)
            sock = self._context.wrap_socket(
                raw, server_side=True, do_handshake_on_connect=False
            )
            with sock:
                self._converse(sock)

    def _converse(self, sock: ssl.SSLSocket) -> None:
        with self._traffic:
            self._sockets.add(sock)
        try:
            self._pause(self._delays["connection"])
            sock.do_handshake()
            sock.settimeout(None)
            with self._traffic:
                self.connections += 1
                connection = self.connections
            with sock.makefile("rb") as reader:
                while self._exchange(sock, reader, connection):
                    pass
        except _Drop as drop:
            if drop.reset:
                _reset_on_close(sock)

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stopping.wait(seconds)
        if self._stopping.is_set():
            raise _Drop

    # One request

    def _exchange(self, sock: ssl.SSLSocket, reader: Any, connection: int) -> bool:
        """Read a request, answer it; say whether the connection lives on."""
        request = self._read(reader, connection)
        if request is None:
            return False
        with self._traffic:
            self._busy.add(sock)
            self.requests.append(request)
            request.sequence = len(self.requests)
            self._traffic.notify_all()
        try:
            self._authenticate(request)
            answer = self._carry_out(request, sock)
        except _Refusal as refusal:
            answer = refusal.answer
        self._pause(self._delays["request"] + answer.rows * self._delays["row"])
        self._send(sock, request, answer)
        return not answer.close

    def _read(self, reader: Any, connection: int) -> Request | None:
        """Read a request; None if there is none, as when the client has hung up."""
        try:
            method, target, _version = reader.readline(65537).decode("latin-1").split()
            headers = http.client.parse_headers(reader)
            body = reader.read(int(headers.get("Content-Length", 0)))
            url = urlsplit(target)
        except (ValueError, http.client.HTTPException):
            return None
        query = parse_qsl(url.query, keep_blank_values=True)
        params: Record = dict(query)
        if body:
            params = json.loads(body)
        return Request(method, url.path, query, headers, body, params, connection)

    def _authenticate(self, request: Request) -> None:
        """Check the request's signature, version 5 of Duo's scheme."""
        _, _, credentials = request.headers.get("Authorization", "").partition(" ")
        ikey, _, signature = base64.b64decode(credentials).partition(b":")
        if not signature:
            raise _Refusal(40101)
        if ikey != IKEY.encode():
            raise _Refusal(40102)
        parsed = email.utils.parsedate_tz(request.headers.get("Date", ""))
        if parsed is None:
            raise _Refusal(40104)
        expected = _signature(request)
        if not hmac.compare_digest(signature, expected.encode()):
            raise _Refusal(40103)
        # By the real time, whatever the clock says that gives the records theirs.
        skew = abs(email.utils.mktime_tz(parsed) - time.time())
        if skew > MAX_SKEW_SECONDS:
            raise _Refusal(40105)

    def _carry_out(self, request: Request, sock: ssl.SSLSocket) -> _Answer:
        """Do what is asked, unless or until something is to go wrong."""
        for hook in self._before:
            hook(request)
        fault = self._fault_for(request)
        if fault is not None:
            answer = self._fail_before(fault, sock)
            if answer is not None:
                return answer
        try:
            with self.lock:
                answer = self._work(_as_understood(request, fault))
        except _Refusal as refusal:
            answer = refusal.answer
        for hook in self._after:
            hook(request)
        if fault is not None:
            self._fail_after(fault, request, sock, answer)
        return answer

    def _send(self, sock: ssl.SSLSocket, request: Request, answer: _Answer) -> None:
        body = _body(answer)
        head = _head(answer, answer.length or len(body))
        if answer.truncated:
            body = body[: len(body) // 2]
        # Before it is sent: a test looks at it as soon as its client has the answer.
        request.status = answer.status
        with self._sending:
            if answer.twice:
                _send_twice(sock, head + body)
            else:
                sock.sendall(head + body)
            self._busy.discard(sock)

    # What goes wrong

    def _fault_for(self, request: Request) -> Fault | None:
        chosen = None
        with self._traffic:
            for fault in self._faults:
                if not _matches(request, fault.method, fault.path):
                    continue
                if fault.after:
                    fault.after -= 1
                elif chosen is None and fault.times != 0:
                    chosen = fault
            if chosen is not None:
                chosen.hits += 1
                if chosen.times is not None:
                    chosen.times -= 1
        return chosen

    def _fail_before(self, fault: Fault, sock: ssl.SSLSocket) -> _Answer | None:
        """What goes wrong before the work; an answer that is given instead of it."""
        if fault.kind == "reset_before":
            raise _Drop(reset=True)
        if fault.kind == "close_before":
            raise _Drop
        if fault.kind == "status":
            return _failure(**fault.how)
        if fault.kind == "hang":
            self._hang(fault, sock)
        return None

    def _fail_after(
        self, fault: Fault, request: Request, sock: ssl.SSLSocket, answer: _Answer
    ) -> None:
        """What goes wrong after the work; it may change the answer."""
        kind = fault.kind
        if kind == "reset_after":
            raise _Drop(reset=True)
        if kind == "interim":
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        if kind == "answer_twice":
            answer.twice = True
        if kind == "endless":
            _name_a_next_page(answer, request.params, fault.how.get("page", "empty"))
        if kind == "answer":
            _answer_otherwise(answer, fault.how)
        if kind == "end_early":
            answer.document.get("metadata", {}).pop("next_offset", None)
        if kind == "truncate":
            answer.truncated = True
            answer.length = fault.how.get("length")
        if kind == "connection_close":
            answer.announce_close = True
        if kind in ("truncate", "connection_close", "close_after"):
            answer.close = True

    def _hang(self, fault: Fault, sock: ssl.SSLSocket) -> None:
        """Wait for the fault to be released, or for the client to go away."""
        fault.held.set()
        while not fault.released.wait(HANG_UP_CHECK_SECONDS):
            if self._stopping.is_set() or _has_left(sock):
                raise _Drop

    # The API

    def _work(self, request: Request) -> _Answer:
        parts = re.fullmatch(r"/admin/v1/(users|phones/([^/]+))", request.path)
        if parts is None:
            raise _Refusal(40401)
        phone_id = unquote(parts[2] or "")
        self._check_method(request.method, phone_id)
        if not phone_id:
            return self._listing(request.params)
        if phone_id not in self.phones:
            return self._gone(request.method, phone_id)
        if request.method == "DELETE":
            del self.phones[phone_id]
            return _success("")
        if request.method == "POST":
            _modify(self.phones[phone_id], request.params)
        return _success(self._expanded(self.phones[phone_id]))

    def _check_method(self, method: str, phone_id: str) -> None:
        permission = "read"
        if method != "GET":
            permission = "write"
            if not phone_id or method not in ("POST", "DELETE"):
                raise _Refusal(40501)
        if permission not in self.permissions:
            raise _Refusal(40301)

    def _gone(self, method: str, phone_id: str) -> _Answer:
        """The answer about what there is not, or not any more."""
        deleted_again = method == "DELETE" and phone_id in self._phone_ids
        if deleted_again and self.gone_status == HTTPStatus.OK:
            return _success("")
        raise _Refusal(40401)

    def _listing(self, params: Record) -> _Answer:
        limit = _number(params, "limit", 100, 1, MAX_LIMIT)
        offset = _number(params, "offset", 0, 0, sys.maxsize - limit)
        names = _names(params)
        if names is not None:
            return self._look_up(names)
        rows = itertools.islice(self.users.values(), offset, offset + limit)
        page = [self._expanded(user) for user in rows]
        metadata: Record = {"total_objects": len(self.users)}
        if offset + limit < len(self.users):
            metadata["next_offset"] = offset + limit
        elif self.last_offset_null:
            metadata["next_offset"] = None
        return _success(page, metadata, rows=len(page))

    def _look_up(self, names: set[str]) -> _Answer:
        """The users of these names, all on one page, whatever page was asked for."""
        found = []
        for user in self.users.values():
            if names.intersection(_names_of(user)):
                found.append(self._expanded(user))
        total = len(found)
        if self.look_up_counts_all:
            total = len(self.users)
        metadata: Record = {"total_objects": total}
        if self.last_offset_null:
            metadata["next_offset"] = None
        return _success(found, metadata, rows=len(found))

    def _expanded(self, record: Record) -> Record:
        """The record as it is sent: with its phones or users in place of their ids."""
        expanded = dict(record)
        if isinstance(record.get("phones"), list):
            expanded["phones"] = list(self._inner(record["phones"], self.phones))
        if isinstance(record.get("users"), list):
            expanded["users"] = list(self._inner(record["users"], self.users))
        return expanded

    def _inner(self, values: list[Any], records: dict[str, Record]) -> Iterator[Any]:
        """The records with these ids that there are, and whatever is no id as it is."""
        for value in values:
            if not isinstance(value, str):
                yield value
            elif value in records:
                yield _as_inner(records[value])


def cast(tenant: Tenant, now: float) -> None:
    """Add somebody in each of the situations that the program is about."""

    def ago(seconds: float) -> int:
        return int(now - seconds)

    tenant.add_phone("ann")  # has just begun
    tenant.add_phone("bob", name=str(ago(HOUR)))  # stuck for an hour
    tenant.add_phone("cleo", name=str(ago(240)))  # may still finish
    tenant.add_phone("dan", name="Dan's spare")  # a person named this one
    iphone = _set_up(
        "Apple iOS", "Apple iPhone 15", _duo_time(ago(1800)), name="iPhone"
    )
    tenant.add_phone("eve", **iphone)
    tenant.add_phone("fay", "gus", name=str(ago(2 * HOUR)))  # one phone for two
    # Ann, bob and gus have never logged in: they are stuck. The others have, by text
    # or with another device; fay does so every day.
    tenant.change_user("cleo", last_login=ago(30 * DAY))
    tenant.change_user("dan", last_login=ago(DAY))
    tenant.change_user("eve", last_login=ago(1800))
    tenant.change_user("fay", last_login=ago(2 * HOUR))


def _duo_time(seconds: float) -> str:
    """As Duo writes a time: UTC, but it does not say so."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _set_up(platform: str, model: Any, last_seen: Any, **fields: Any) -> Record:
    """What differs in the record of a phone that has been activated."""
    return {
        "activated": True,
        "capabilities": ["auto", "push", "sms", "phone", "mobile_otp"],
        "encrypted": "Encrypted",
        "fingerprint": "Configured",
        "last_seen": last_seen,
        "model": model,
        "platform": platform,
        "screenlock": "Locked",
        "tampered": "Not tampered",
        **fields,
    }


def _as_inner(record: Record) -> Record:
    """A phone within its user's record, or a user within a phone's: it has neither."""
    return {k: v for k, v in record.items() if k not in ("phones", "users")}


def _without_missing(record: Record) -> Record:
    return {name: value for name, value in record.items() if value is not MISSING}


def _matches(request: Request, method: str | None, path: str | None) -> bool:
    if method is not None and method != request.method:
        return False
    return path is None or re.search(path, request.path) is not None


def _as_understood(request: Request, fault: Fault | None) -> Request:
    """The request as it is carried out: a fault may overlook a part of it."""
    overlooked: tuple[str, ...] = ()
    if fault is None:
        return request
    if fault.kind == "ignore_names":
        overlooked = ("username_list",)
    if fault.kind == "endless" and fault.how.get("page") == "same":
        overlooked = ("offset",)
    params = {k: v for k, v in request.params.items() if k not in overlooked}
    return replace(request, params=params)


def _has_left(sock: ssl.SSLSocket) -> bool:
    """A client that waits for its answer has nothing to say, except goodbye."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable)


def _shut_down(sock: ssl.SSLSocket) -> None:
    """End a connection, whatever its thread is waiting for."""
    # Not by SSLSocket's own method, which takes the TLS layer off as well.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reset_on_close(sock: socket.socket) -> None:
    """Not lingering at all makes of the close that follows a reset."""
    linger = struct.pack("ii", 1, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _reset_as_tls_begins(sock: socket.socket) -> None:
    """Reset a connection, but not before its client has begun to use it.

    Before Python 3.13, a client loses the socket that is reset before TLS: it stays
    open until it is collected as garbage.
    """
    with contextlib.suppress(OSError), sock:
        sock.settimeout(HANDSHAKE_SECONDS)
        sock.recv(1)
        _reset_on_close(sock)


def _signature(request: Request) -> str:
    """What the request is to be signed with."""
    host = request.headers.get("Host", "").partition(":")[0].lower()
    pairs = sorted(
        (quote(name, "~"), quote(value, "~")) for name, value in request.query
    )
    lines = [
        request.headers.get("Date", ""),
        request.method,
        host,
        request.path,
        "&".join(f"{name}={value}" for name, value in pairs),
        hashlib.sha512(request.body).hexdigest(),
        # Headers named X-Duo-... are signed as well, but the Admin API has none.
        hashlib.sha512().hexdigest(),
    ]
    return hmac.new(SKEY.encode(), "\n".join(lines).encode(), "sha512").hexdigest()


def _body(answer: _Answer) -> bytes:
    if answer.body is not None:
        return answer.body
    return json.dumps(answer.document, separators=(",", ":")).encode()


def _head(answer: _Answer, length: int) -> bytes:
    """The lines above a body of this length."""
    phrase = http.client.responses.get(answer.status, "")
    lines = [
        f"HTTP/1.1 {answer.status} {phrase}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    if answer.announce_close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def _send_twice(sock: ssl.SSLSocket, data: bytes) -> None:
    """Let it arrive twice at the same time, but not be read together."""
    # Each sendall makes a TLS record of its own; the cork keeps both in one packet.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(data)
    sock.sendall(data)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def _name_a_next_page(answer: _Answer, params: Record, page: str) -> None:
    if "metadata" not in answer.document:
        return  # no listing
    if page == "empty":
        answer.document["response"] = []
    limit = int(params.get("limit", 100))
    offset = int(params.get("offset", 0))
    answer.document["metadata"]["next_offset"] = offset + limit


def _answer_otherwise(answer: _Answer, how: Record) -> None:
    """Put another document in place of the answer's."""
    metadata = how.get("metadata", answer.document.get("metadata", MISSING))
    answer.document = _success(how.get("response"), metadata).document
    answer.status = 200
    answer.body = how.get("body")


def _modify(record: Record, changes: Record) -> None:
    for name in MODIFIABLE:
        if name in changes:
            record[name] = changes[name]


def _success(response: Any, metadata: Any = MISSING, *, rows: int = 0) -> _Answer:
    document = {"stat": "OK", "response": response, "metadata": metadata}
    return _Answer(_without_missing(document), rows=rows)


def _failure(
    status: int = 503,
    code: Any = None,
    message: str | None = None,
    message_detail: str | None = None,
    body: bytes | None = None,
) -> _Answer:
    if code is None:
        code = status * 100 + 1
    if message is None:
        message = ERRORS.get(code, HTTPStatus(status).phrase)
    document = {"stat": "FAIL", "code": code, "message": message}
    if message_detail is not None:
        document["message_detail"] = message_detail
    return _Answer(document, status, body=body)


def _number(params: Record, name: str, default: int, least: int, most: int) -> int:
    text = params.get(name, str(default))
    if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise _Refusal(40002, name)
    return int(text)


def _names(params: Record) -> set[str] | None:
    """The names that the listing is reduced to, if it is."""
    if "username_list" not in params:
        return None
    names = json.loads(params["username_list"])
    if not 1 <= len(names) <= MAX_NAMES:
        raise _Refusal(40002, "username_list")
    return {name.casefold() for name in names}


def _names_of(user: Record) -> Iterator[str]:
    """What a user is found by."""
    names = [user.get("username")]
    names += (user.get("aliases") or {}).values()
    for name in names:
        if isinstance(name, str):
            yield name.casefold()


@functools.cache
def _certificate(host: str) -> tuple[trustme.CA, trustme.LeafCert]:
    """An authority and its certificate for a host, made once in a process."""
    authority = trustme.CA()
    return authority, authority.issue_cert(host)


def main() -> NoReturn:
    """Run a tenant until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.tenant",
        description="Run a simulated Duo tenant on localhost until interrupted.",
    )
    parser.add_argument("--users", type=int, default=0, help="ordinary users to add")
    options = parser.parse_args()
    # Make, for one, ends what it started with SIGTERM: clean up then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Tenant() as tenant:
        cast(tenant, time.time())
        tenant.populate(options.users)
        for name, value in tenant.environment().items():
            print(f"export {name}={value}", flush=True)
        print("Serving until interrupted (Ctrl-C).", file=sys.stderr)
        threading.Event().wait()
    sys.exit(0)


if __name__ == "__main__":
    main()
