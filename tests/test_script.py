"""The script as a command, and what it says of itself."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from typing import Any

import duo_client
import pytest

from duo_phone_cleanup import DuoAdmin, Run
from tests.simulation.tenant import Tenant
from tests.support import SCRIPT, clean_environment, process

ROOT = SCRIPT.parent
SOURCE = SCRIPT.read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)

# As a command


def test_runs_as_a_process(tenant: Tenant) -> None:
    phone = tenant.add_phone("ann")
    result = process(tenant)
    assert (result.status, result.out, result.err) == (0, "", "")
    assert abs(int(tenant.phones[phone]["name"]) - time.time()) < 60


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("where", ["a pipe", "/dev/full"])
def test_help_that_nobody_reads_is_no_error(option: str, where: str) -> None:
    if where == "a pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(where, os.O_WRONLY)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), option],
        env=clean_environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_script_names_what_it_needs_itself() -> None:
    block = re.search("^# /// script$(.*?)^# ///$", SCRIPT.read_text(), re.M | re.S)
    assert block
    needed = re.findall(r'^#     "(.*)",$', block[1], re.M)
    assert needed == (ROOT / "requirements.txt").read_text().split()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f'"{setup["options"]["python_requires"]}"' in block[1]


# Its shape

# The writes to Duo: methods of duo_client, and the lines that call them.
WRITES = {
    "delete_phone": "self.duo.delete_phone(phone.phone_id)",
    "update_phone": "self.duo.update_phone(phone.phone_id, name=phone.new_name)",
}
ALLOWED = {
    *WRITES,
    "api_call",  # with "GET" only
    "get_phone_by_id",
    "parse_json_response_and_metadata",
    "set_proxy",
}
METHODS = {
    name
    for name in dir(duo_client.Admin)
    if callable(getattr(duo_client.Admin, name)) and not hasattr(object, name)
}


def lines_of(function: Any) -> list[str]:
    """The lines of a function, without their indents."""
    return [line.strip() for line in inspect.getsource(function).splitlines()]


@pytest.mark.parametrize("name", WRITES)
def test_each_write_has_one_place(name: str) -> None:
    """Its deadline stands on the line above it, and the script's opening says where."""
    lines = lines_of(Run.write)
    above = lines[lines.index(WRITES[name]) - 1]
    assert above == "self.duo.send_by = phone.read_sent + READ_VALID_SECONDS"
    assert len(re.findall(rf"\b{name}\b", SOURCE)) == 2, "the opening, and the call"
    opening = ast.get_docstring(TREE) or ""
    assert name in opening
    assert "Run.write" in opening


def test_nothing_else_can_write() -> None:
    """duo_client has many methods that do: nothing but these is named anywhere."""
    assert {"delete_user", "json_api_call", "update_phone"} <= METHODS
    named = set()
    texts = set()
    for each in ast.walk(TREE):
        if isinstance(each, ast.Attribute):
            named.add(each.attr)
        if isinstance(each, ast.Name):
            named.add(each.id)
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            texts.add(each.value)
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "getattr":
            assert isinstance(each.args[1], ast.Constant)
    assert named & METHODS == ALLOWED
    assert texts.isdisjoint(METHODS)
    assert texts.isdisjoint({"DELETE", "PATCH", "POST", "PUT"})


def test_requests_begin_in_one_place() -> None:
    """duo_client's methods make them; api_call is used with "GET" alone."""
    assert SOURCE.count(".api_call") == SOURCE.count('.api_call("GET", ') == 1
    transport = inspect.getsource(DuoAdmin._make_request)
    assert SOURCE.count("self._exchange") == transport.count("self._exchange")
    assert SOURCE.count(".request(") == 1
    for other in ("urlopen", "putrequest", "sendall", "send"):
        assert f".{other}(" not in SOURCE


def test_nothing_comes_between_the_deadline_and_the_request() -> None:
    lines = lines_of(DuoAdmin._exchange)
    look = lines.index("if call.sent > call.send_by:")
    assert lines[look - 1] == "call.sent = boot_seconds()"
    assert lines[look + 1 : look + 5] == [
        "call.sent = NEVER",
        "keep = True",
        "raise TooLate(TOO_LATE)",
        "connection.request(method, uri, body, headers)",
    ]


def test_nothing_of_duo_client_is_overridden_but_its_transport() -> None:
    assert METHODS & {*vars(DuoAdmin)} == {"_make_request"}


def test_verdict_words_and_run_end_early() -> None:
    """Within 470 lines, in the order of trust."""
    order = ["verdict", "Failure", "Run", "DuoAdmin", "Report", "read_settings", "main"]
    places = {}
    for each in TREE.body:
        if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
            places[each.name] = each
    lines = [places[name].lineno for name in order]
    assert lines == sorted(lines)
    end = places["Run"].end_lineno
    assert end
    assert end <= 470


def test_no_function_is_long() -> None:
    for each in ast.walk(TREE):
        if isinstance(each, ast.FunctionDef):
            assert each.end_lineno
            assert each.end_lineno - each.lineno < 40, each.name
