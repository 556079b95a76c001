"""README.md says what the program says and does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from duo_phone_cleanup import EVENTS, HELP
from tests.conftest import HOUR, NOW, Run
from tests.tenant import Tenant, cast

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_usage_is_the_help_word_for_word() -> None:
    assert f"```text\n{HELP}```" in README


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
    tenant.add_phone("hal", name=str(NOW - HOUR), activated=True, platform="Apple iOS")
    assert run("--untag").status == 0
    writes = [each for each in tenant.requests if each.method != "GET"]
    assert {(each.method, *each.params) for each in writes} == {
        ("POST", "name"),
        ("DELETE",),
    }
    assert all(re.fullmatch("/admin/v1/phones/DP[A-Z0-9]+", w.path) for w in writes)
