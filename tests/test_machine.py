"""On an administrator's machine: behind a proxy, and installed in each way there is."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Tenant
from tests.support import SCRIPT, Run, clean_environment, process

ROOT = SCRIPT.parent
USER, PASSWORD = "proxy-user", "p@ss:wörd"
LOGIN = "proxy-user:p%40ss%3Aw%C3%B6rd"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real CONNECT proxy that wants a user and a password; its address."""
    port_file = tmp_path_factory.mktemp("proxy") / "port"
    options = ["--port=0", f"--port-file={port_file}", "--hostname=127.0.0.1"]
    options += [
        f"--basic-auth={USER}:{PASSWORD}",
        "--num-workers=1",
        "--num-acceptors=1",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "proxy", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (port_file.exists() and port_file.read_text().strip()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)  # it tells by nothing but this file
    yield f"127.0.0.1:{port_file.read_text().strip()}"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", ""])
def test_goes_through_a_proxy(
    tenant: Tenant, run: Run, proxy: str, scheme: str
) -> None:
    phone = tenant.add_phone("ann")
    result = run("-vv", HTTPS_PROXY=f"{scheme}{LOGIN}@{proxy}")
    assert result.status == 0
    assert tenant.phones[phone]["name"].isdigit()
    # Duo's name, not the proxy's, is what the certificate was checked for.
    assert tenant.server_names == ["localhost"]
    for secret in (PASSWORD, LOGIN, USER):
        assert secret not in result.err


def test_no_proxy_goes_past_the_proxy(tenant: Tenant, run: Run) -> None:
    tenant.add_user("ann")
    result = run(HTTPS_PROXY="http://127.0.0.1:1", NO_PROXY="localhost")
    assert result.status == 0
    assert len(tenant.requests) == 1


def test_a_proxy_that_refuses_is_named(
    tenant: Tenant, run: Run, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "PAUSE", 0.01)
    result = run(HTTPS_PROXY=f"http://{USER}:SECRET@{proxy}")
    assert result.status == 1
    hint = "check --host (DUO_HOST), the network and HTTPS_PROXY"
    assert f"no answer from the proxy {proxy}: " in result.err
    assert f"407 Proxy Authentication Required: {hint}\n" in result.err
    assert "SECRET" not in result.err
    assert tenant.requests == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://user:SECRET@127.0.0.1:1", id="TLS to the proxy"),
        pytest.param("socks5://user:SECRET@127.0.0.1:1", id="SOCKS"),
        pytest.param("http://user:SECRET@", id="no host"),
        pytest.param("http://user:SECRET@127.0.0.1:SECRET", id="no port"),
        pytest.param("http://user:SECRET@proxy..corp:3128", id="no host name"),
        pytest.param("http://user:SECRET@[::g]:3128", id="no address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(
    tenant: Tenant, run: Run, url: str
) -> None:
    result = run(HTTPS_PROXY=url)
    assert result.status == 2
    assert "HTTPS_PROXY: expected http://[USER:PASS@]HOST[:PORT] " in result.err
    assert "SECRET" not in result.err
    assert tenant.requests == []


def test_capitals_in_the_address_of_a_proxy(
    tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are fine: it is dialed, and where nobody listens, named."""
    monkeypatch.setattr(duo_phone_cleanup, "PAUSE", 0.01)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = run("--timeout", "5", HTTPS_PROXY=f"HTTP://[::FFFF:127.0.0.1]:{port}")
    assert result.status == 1
    dialed = f"the proxy ::FFFF:127.0.0.1:{port}"
    assert f"error: no answer from {dialed}: " in result.err
    assert tenant.requests == []


def test_the_script_names_what_it_needs_itself() -> None:
    block = re.search("^# /// script$(.*?)^# ///$", SCRIPT.read_text(), re.M | re.S)
    assert block
    needed = re.findall(r'^#     "(.*)",$', block[1], re.M)
    assert needed == (ROOT / "requirements.txt").read_text().split()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f'"{setup["options"]["python_requires"]}"' in block[1]


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "duo_phone_cleanup", "--version"]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    out = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert out == f"duo_phone_cleanup {duo_phone_cleanup.__version__}\n"


def test_runs_as_a_process(tenant: Tenant) -> None:
    phone = tenant.add_phone("ann")
    result = process(tenant)
    assert (result.status, result.out, result.err) == (0, "", "")
    assert abs(int(tenant.phones[phone]["name"]) - time.time()) < 60


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_nobody_reads_is_no_error(option: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(SCRIPT), option]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_machine_that_has_no_more_threads(tenant: Tenant) -> None:
    """One error line and the summary, as a run needs them."""
    phone = tenant.add_phone("ann")
    tenant.populate(900)
    program = (
        "import threading, duo_phone_cleanup\n"
        "threading.stack_size(1 << 46)\n"  # more than any address space has
        "duo_phone_cleanup.script()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(**tenant.environment(), PYTHONPATH=str(SCRIPT.parent)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    line, summary = result.stderr.splitlines()
    assert "error: this machine has no thread left" in line
    assert " nothing was read: 1 failed; 0 requests, " in summary
    assert tenant.phones[phone]["name"] == ""
    assert tenant.requests == []
