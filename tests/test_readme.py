"""README.md says what the program says and does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from duo_phone_cleanup import EVENTS
from tests.support import Run, usual

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
