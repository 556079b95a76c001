"""An outage of the network: the kernel keeps what a run has sent, and tries again."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.simulation.tenant import Tenant
from tests.support import SET_UP, STUCK, Run, write_methods

fcntl = pytest.importorskip("fcntl")

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

OUTAGE_SECONDS = 2.5
AFTERWARDS_SECONDS = 1.5
"""In which the kernel would try again: it does so after 0.2, 0.6, 1.4 and 3 s."""


def set_link(flags: int) -> None:
    """Take the only link of this network up, by IFF_UP, or down, by 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags))


@pytest.fixture
def _own_network() -> Iterator[None]:
    """Have a network of one's own, which nobody else loses when it is taken down."""
    if not sys.platform.startswith("linux"):
        pytest.skip("there are no network namespaces here")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(before)
        pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    set_link(IFF_UP)
    yield
    assert libc.setns(before, CLONE_NEWNET) == 0
    os.close(before)


@pytest.fixture
def tenant(_own_network: None) -> Iterator[Tenant]:
    """A tenant in that network."""
    with Tenant() as tenant:
        yield tenant


class Outage(io.StringIO):
    """A standard output: the link is down for a while from the first deletion on.

    That is announced there just before it is sent. The user activates the phone
    meanwhile, as from another network.
    """

    def __init__(self, tenant: Tenant, phone: str) -> None:
        super().__init__()
        self.tenant = tenant
        self.phone = phone
        self.began = 0.0
        self.end = threading.Timer(OUTAGE_SECONDS, set_link, [IFF_UP])

    def write(self, text: str) -> int:
        """Take a line of the journal."""
        if '"deleting"' in text and not self.began:
            set_link(0)
            self.began = time.monotonic()
            self.end.start()
            with self.tenant.lock:
                self.tenant.phones[self.phone].update(SET_UP)
        return super().write(text)


def test_a_deletion_is_not_delivered_when_an_outage_is_over(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then, the phone is in use. The run says that it may have been deleted."""
    phone = tenant.add_phone("ann", name=STUCK)
    outage = Outage(tenant, phone)
    monkeypatch.setattr(sys, "stdout", outage)
    result = run("--json")
    outage.end.join()
    over = outage.began + OUTAGE_SECONDS + AFTERWARDS_SECONDS
    time.sleep(max(0, over - time.monotonic()))
    assert write_methods(tenant) == []
    assert tenant.phone(phone)
    assert result.status == 1
    assert (
        "a write was sent and not confirmed: it may still be carried out" in result.err
    )
