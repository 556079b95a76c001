"""The pages say what the program says and does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import duo_client
import pytest

import duo_phone_cleanup
from duo_phone_cleanup import ALL_OPTIONS, Event, Verdict
from tests.simulation.tenant import Tenant, cast
from tests.support import NOW, SET_UP, STUCK, Result, Run, usual, when

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "tests/README.md",
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CODE = BLOCKS + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README)


def first_cells(title: str) -> list[str]:
    """The code in the first column of the table under a heading."""
    section = README.partition(f"# {title}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    return [code for cell in cells for code in re.findall("`(.*?)`", cell)]


# Options


def test_the_usage_is_the_help(run: Run) -> None:
    """Word for word: where lines end differs between versions of Python."""
    usages = [block for block in BLOCKS if block.startswith("usage: ")]
    printed = run("--help", COLUMNS="80").out
    assert [usual(usage) for usage in usages] == [usual(printed)]


def test_every_command_line_is_understood() -> None:
    lines = []
    for code in CODE:
        lines += re.findall(r"duo_phone_cleanup((?: +[^\s|#&;)<>\"]+)+)", code)
    assert "--dry-run" in "".join(lines)
    for line in lines:
        with suppress(SystemExit):  # of --help and --version
            duo_phone_cleanup.read_words(shlex.split(line))


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_is_one(page: str) -> None:
    variables = {option.variable for option in ALL_OPTIONS}
    assert set(re.findall(r"\bDUO_[A-Z_]+\b", TEXTS[page])) <= variables


# Output and journal


def test_every_event_is_explained() -> None:
    events = [event.value for event in Event] + ["summary"]
    assert sorted(first_cells("Output and journal")) == sorted(events)


def test_every_field_is_named(run: Run, tenant: Tenant) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=STUCK)
    result = run("--json", "ann", "bob", "nobody")
    fields = {field for event in result.events for field in event}
    counts = {event.value for event in Event}
    for field in fields - counts:
        assert f"`{field}`" in README


def test_every_reason_is_explained() -> None:
    explained = first_cells("Why is this phone still there?")
    for verdict in set(Verdict) - {Verdict.UNTAG}:  # such a phone is not in limbo
        reason = re.sub("{[a-z]+}", "…", verdict.reason)
        assert f"{verdict.verb}: {reason}" in explained


def test_the_picture_shows_what_is_printed(run: Run, tenant: Tenant) -> None:
    cast(tenant, NOW)
    result = run("--dry-run", DUO_GRACE_PERIOD="20")
    picture = (ROOT / ".github/terminal.svg").read_text(encoding="utf-8")
    drawn = re.findall("<text .*>(.*)</text>", picture)
    for line in result.out.splitlines():
        without_seconds = line.rpartition(", 0.")[0] or line
        assert any(each.startswith(without_seconds) for each in drawn)


# Errors


def no_settings(run: Run, tenant: Tenant) -> Result:
    return run(DUO_HOST="", DUO_IKEY="", DUO_SKEY="")


def no_option(run: Run, tenant: Tenant) -> Result:
    return run("--json", "--nonsense")


def no_regular_file(run: Run, tenant: Tenant) -> Result:
    return run("--journal", "/dev/null")


def another_key(run: Run, tenant: Tenant) -> Result:
    return run("--skey", "another-key")


def too_many_requests(run: Run, tenant: Tenant) -> Result:
    tenant.fail("status", status=429, times=None)
    return run()


def unknown_authority(run: Run, tenant: Tenant) -> Result:
    return run("--ca-certs", duo_client.client.DEFAULT_CA_CERTS)


def another_server(run: Run, tenant: Tenant) -> Result:
    tenant.fail("junk", body=b"<html>Welcome</html>", times=None)
    return run()


def limit_exceeded(run: Run, tenant: Tenant) -> Result:
    tenant.add_phone("ann", "bob", name=STUCK)
    return run("--max-deletions", "1")


def no_answer_to_a_write(run: Run, tenant: Tenant) -> Result:
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("reset_before", method="DELETE")

    def finish() -> None:
        with tenant.lock:
            tenant.phones[phone].update(SET_UP)

    when(tenant, "DELETE", phone, finish)
    return run()


class Trouble(NamedTuple):
    """A message in the README's table of errors, and how to get it."""

    message: str
    provoke: Callable[[Run, Tenant], Result]


TROUBLES = (
    Trouble("missing: --host (DUO_HOST), …", no_settings),
    Trouble("argument 2 is not an option", no_option),
    Trouble("--journal (DUO_JOURNAL): …", no_regular_file),
    Trouble("Duo answers 401 …", another_key),
    Trouble("Duo answers 429 …", too_many_requests),
    Trouble("… is not trusted: …", unknown_authority),
    Trouble("… is not Duo's Admin API: …", another_server),
    Trouble("… due for deletion, none deleted: …", limit_exceeded),
    Trouble("… it may still be carried out", no_answer_to_a_write),
)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.message)
def test_every_error_is_printed_so(
    run: Run, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", 0)
    result = trouble.provoke(run, tenant)
    pieces = [re.escape(piece) for piece in trouble.message.split("…")]
    assert result.status != 0
    assert re.search("error: " + ".+".join(pieces), result.err)


def test_every_error_of_the_table_is_tried() -> None:
    assert first_cells("Errors") == [trouble.message for trouble in TROUBLES]


# The pages themselves


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub("[^a-z0-9_-]", "", t.lower().replace(" ", "-")) for t in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", TEXTS[page]):
        if link.startswith("https:"):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / page
        if path:
            target = target.parent / path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_changelog_begins_with_this_version() -> None:
    changelog = README.partition("## Changelog")[2]
    newest = re.findall(r"^\*\*([0-9.]+)\*\*", changelog, re.MULTILINE)[0]
    assert newest == duo_phone_cleanup.__version__


def test_every_file_of_the_tests_is_on_the_map() -> None:
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/*/*.py")]
    for file in files:
        if file.name != "__init__.py":
            assert f"`{file.relative_to(ROOT / 'tests')}`" in TEXTS["tests/README.md"]
