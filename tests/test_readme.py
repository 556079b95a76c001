"""README.md says what the program says and does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from duo_phone_cleanup import EVENTS
from tests.simulation.tenant import Tenant, cast
from tests.support import NOW, SCRIPT, SET_UP, STUCK, Run, usual, writes

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SOURCE = SCRIPT.read_text(encoding="utf-8")
LINES = len(SOURCE.splitlines())
TREE = ast.parse(SOURCE)


def test_the_usage_is_the_help(run: Run) -> None:
    """Word for word: where lines end differs between versions of Python."""
    blocks = re.findall(r"^```\w*\n(usage: .*?)^```", README, re.DOTALL | re.MULTILINE)
    assert [*map(usual, blocks)] == [usual(run("--help").out)]


@pytest.mark.parametrize("event", [*EVENTS, "summary"])
def test_every_event_is_explained(event: str) -> None:
    explained = re.findall(r"^\|([^|]*)\|", README, re.MULTILINE)
    assert any(f"`{event}`" in cell for cell in explained)


def test_links_within_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)", README, re.MULTILINE)
    anchors = [re.sub("[^a-z0-9_-]", "", t.lower().replace(" ", "-")) for t in titles]
    links = re.findall(r"\]\(#([^)]*)\)", README)
    assert links
    assert set(links) <= set(anchors)


def test_nothing_is_changed_but_a_phones_name_and_nothing_deleted_but_a_phone(
    tenant: Tenant, run: Run
) -> None:
    cast(tenant, NOW)
    tenant.add_phone("hal", name=STUCK, **SET_UP)
    assert run("--untag").status == 0
    assert {(each.method, *each.params) for each in writes(tenant)} == {
        ("POST", "name"),
        ("DELETE",),
    }
    for request in writes(tenant):
        assert re.fullmatch("/admin/v1/phones/DP[A-Z0-9]+", request.path)


# What the script says of itself


def functions() -> dict[str, ast.FunctionDef]:
    """Every function, by class and name, but those within others."""
    bodies = [("", TREE.body)]
    classes = [each for each in TREE.body if isinstance(each, ast.ClassDef)]
    bodies += [(f"{each.name}.", each.body) for each in classes]
    return {
        prefix + each.name: each
        for prefix, body in bodies
        for each in body
        if isinstance(each, ast.FunctionDef)
    }


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of a function or method of one of these names."""
    return [
        each
        for each in ast.walk(tree)
        if isinstance(each, ast.Call)
        and (getattr(each.func, "attr", None) or getattr(each.func, "id", "")) in names
    ]


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
    duo = {
        each.func.attr
        for each in ast.walk(TREE)
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and isinstance(each.func.value, ast.Attribute)
        and each.func.value.attr == "duo"
    }
    wrappers = {"list_users", "persist", "explain", "has_fresh_read", "go_on"}
    assert duo == {"get_phone_by_id", "delete_phone", "update_phone", *wrappers}
    assert wrappers <= {each.rpartition(".")[2] for each in functions()}


def test_no_function_is_long() -> None:
    assert len(functions()) > 50
    long = {
        name: lines
        for name, each in functions().items()
        if (lines := (each.end_lineno or 0) - each.lineno + 1) > 50
    }
    assert long == {}


def test_the_script_is_short() -> None:
    assert LINES <= 1080
