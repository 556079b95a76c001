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

import pytest

import duo_phone_cleanup
from tests.simulation.tenant import Tenant
from tests.support import SCRIPT, clean_environment, process

ROOT = SCRIPT.parent
SOURCE = SCRIPT.read_text(encoding="utf-8")
LINES = len(SOURCE.splitlines())
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
    assert out == f"duo_phone_cleanup {duo_phone_cleanup.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_nobody_reads_is_no_error(option: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(SCRIPT), option]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
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


@pytest.mark.parametrize("name", ["delete_phone", "update_phone"])
def test_each_write_has_one_place(name: str) -> None:
    """Within the first two fifths of the script, and its opening says where."""
    (call,) = calls(functions()["Run.carry_out"], name)
    assert len(re.findall(rf"\b{name}\b", SOURCE)) == 2, "the opening, and the call"
    assert call.lineno <= LINES * 2 / 5
    opening = ast.get_docstring(TREE) or ""
    assert "Run.carry_out" in opening
    assert name in opening


def test_nothing_else_can_write() -> None:
    """duo_client has many methods that do."""
    for call in calls(TREE, "api_call", "json_api_call", "json_paging_api_call"):
        assert isinstance(call.args[0], ast.Constant)
        assert call.args[0].value == "GET"
    called = [ast.unparse(x.func) for x in ast.walk(TREE) if isinstance(x, ast.Call)]
    duo = {name.rpartition(".")[2] for name in called if ".duo." in name}
    wrappers = {"list_users", "persist", "explain", "has_fresh_read", "go_on"}
    assert duo == {"get_phone_by_id", "delete_phone", "update_phone", *wrappers}
    assert wrappers <= {each.rpartition(".")[2] for each in functions()}


def test_no_function_is_long() -> None:
    assert len(functions()) > 50
    for name, each in functions().items():
        assert each.end_lineno
        assert each.end_lineno - each.lineno < 50, name


def test_the_script_is_short() -> None:
    assert LINES <= 1080
