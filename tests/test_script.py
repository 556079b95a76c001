"""The script as a command, and what it says of itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import duo_client
import pytest

import duo_phone_cleanup
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


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "duo_phone_cleanup", "--version"]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    out = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert out.startswith(f"duo_phone_cleanup {duo_phone_cleanup.__version__}, ")


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


def functions() -> dict[str, ast.FunctionDef]:
    """Every function, by class and name, but those within others."""
    found = {}
    for each in TREE.body:
        if isinstance(each, ast.FunctionDef):
            found[each.name] = each
        if isinstance(each, ast.ClassDef):
            for method in each.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{each.name}.{method.name}"] = method
    return found


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of a function or method of one of these names."""
    found = []
    for each in ast.walk(tree):
        if isinstance(each, ast.Call):
            called = ast.unparse(each.func).rpartition(".")[2]
            if called in names:
                found.append(each)
    return found


# A write to Duo: the method of duo_client, and the one function that calls it.
WRITES = {"delete_phone": "Run.delete", "update_phone": "Run.rename"}
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


@pytest.mark.parametrize("name", WRITES)
def test_each_write_has_one_place(name: str) -> None:
    """Its deadline stands on the line above it, and the script's opening says where."""
    (call,) = calls(functions()[WRITES[name]], name)
    assert len(re.findall(rf"\b{name}\b", SOURCE)) == 2, "the opening, and the call"
    above = SOURCE.splitlines()[call.lineno - 2].strip()
    assert above == "self.duo.send_by = phone.read_sent + READ_VALID_SECONDS"
    opening = ast.get_docstring(TREE) or ""
    assert name in opening
    assert WRITES[name] in opening


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
    assert named & METHODS == ALLOWED
    for each in calls(TREE, "getattr"):
        assert isinstance(each.args[1], ast.Constant)
    assert texts.isdisjoint(METHODS)
    assert texts.isdisjoint({"DELETE", "PATCH", "POST", "PUT"})


def test_requests_begin_in_one_place() -> None:
    """duo_client's methods make them; api_call is used with "GET" alone."""
    (call,) = calls(TREE, "api_call")
    assert isinstance(call.args[0], ast.Constant)
    assert call.args[0].value == "GET"
    assert SOURCE.count(".api_call") == 1
    (sent,) = calls(TREE, "request")
    assert sent in calls(functions()["DuoAdmin._exchange"], "request")
    assert SOURCE.count("self._exchange") == 1, "by duo_client's transport"
    for other in ("urlopen", "putrequest", "sendall", "send"):
        assert calls(TREE, other) == []


def test_nothing_of_duo_client_is_overridden_but_its_transport() -> None:
    assert METHODS & {*vars(duo_phone_cleanup.DuoAdmin)} == {"_make_request"}


def test_verdict_and_run_end_early() -> None:
    """Within 480 lines, in the order of trust."""
    order = ["verdict", "Run", "DuoAdmin", "Report", "read_settings", "main"]
    places = {}
    for each in TREE.body:
        if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
            places[each.name] = each
    lines = [places[name].lineno for name in order]
    assert lines == sorted(lines)
    banners = {}
    for number, line in enumerate(SOURCE.splitlines(), 1):
        if line.startswith("# ----"):
            banners[line.strip("# -")] = number
    last = places["Run"].end_lineno
    assert last
    assert last < banners["the Duo client"] <= 481


def test_no_function_is_long() -> None:
    assert len(functions()) > 50
    for name, each in functions().items():
        assert each.end_lineno
        assert each.end_lineno - each.lineno < 45, name
