"""In place of a machine and a network: what surrounds a run that is on trial.

There is neither a network nor a thread: a request is answered as it is sent, and all
that the program sees of time and of its journals is the trial's. See steps.py.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import signal
import tempfile
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import duo_phone_cleanup
from tests.simulation.tenant import IKEY, SKEY, _Drop
from tests.simulation.year import Disk

ENVIRONMENT = {"DUO_HOST": "localhost", "DUO_IKEY": IKEY, "DUO_SKEY": SKEY}


def ignore(*_: object) -> None:
    """Do nothing."""


class Connection(http.client.HTTPConnection):
    """Both ends of a connection: a request is answered as soon as it is sent."""

    settimeout = setsockopt = ignore

    def __init__(self, stage: Stage, *address: Any, **_: Any) -> None:
        super().__init__(*address)
        self.stage = stage
        self.sent = b""
        self.answer = b""
        self.is_over = False

    def connect(self) -> None:
        self.stage.trial.step("connection", "begins")
        self.sock: Any = self

    def send(self, data: Any) -> None:
        if self.is_over:
            raise BrokenPipeError
        self.sent += data

    def getresponse(self) -> http.client.HTTPResponse:
        reader: Any = io.BytesIO(self.sent)
        tenant: Any = self.stage.trial.tenant
        self.sent = b""
        self.answer = b""
        self.is_over = True
        with contextlib.suppress(_Drop, OSError):
            self.is_over = not tenant._exchange(self, io.BufferedReader(reader), 1)
        return super().getresponse()

    def sendall(self, data: bytes) -> None:
        self.answer += data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self.answer)


class TriedDisk(Disk):
    """How the program writes its journals: each line is a step."""

    year: Any  # the trial

    def write(self, file: int, data: bytes) -> int:
        line = data.decode().strip()
        self.year.step(json.loads(line)["event"], "to the journal")
        self.year.running[-1].told.append(line)
        return super().write(file, data)


class Stage(contextlib.ExitStack):
    """What surrounds the program while it is on trial."""

    trial: Any = None

    def __enter__(self) -> Stage:
        self.directory = self.enter_context(tempfile.TemporaryDirectory())
        self.disk = TriedDisk(self.trial)
        self.calls: list[object] = []  # a run within another one has its own
        read = duo_phone_cleanup.read_settings
        # Nothing can happen while settings are read: the same ones are read once.
        once = functools.cache(lambda *argv: read(argv, ENVIRONMENT))
        clock = {
            **vars(time),
            "clock_gettime": lambda which: self.trial.clock_gettime(which),
            "sleep": lambda seconds: self.trial.sleep(seconds),
        }
        self.patch(
            duo_phone_cleanup,
            HTTPSConnection=functools.partial(Connection, self),
            os=self.disk.module(),
            random=SimpleNamespace(uniform=max),
            read_settings=lambda argv, _: once(*argv),
            select=SimpleNamespace(select=lambda read, *_: (read[0].is_over, [], [])),
            threading=SimpleNamespace(current_thread=lambda: self.calls[-1]),
            time=SimpleNamespace(**clock),
        )
        self.patch(
            duo_phone_cleanup.Call,
            start=lambda call: self.make(call),
            is_alive=lambda call: self.trial.clock.boot() < call.answered,
            join=lambda _, seconds: self.trial.sleep(seconds),
        )
        self.patch(
            signal,
            signal=lambda *handler: self.trial.take_signal(*handler),
            setitimer=ignore,
            pthread_sigmask=ignore,
        )
        return self

    def patch(self, what: Any, **names: Any) -> None:
        self.enter_context(mock.patch.multiple(what, **names))

    def make(self, call: Any) -> None:
        self.calls.append(call)
        call.run()
        self.calls.pop()
        self.trial.note_answer(call)
