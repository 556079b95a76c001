"""The pages say what the program says and does."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
    """The code in the first column of the table whose column has this title."""
    rows = README.partition(f"\n| {title} |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (.*?) \|", rows, re.MULTILINE)
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
    misspelled = {"DUO_DRYRUN"}
    named = set(re.findall(r"\bDUO_[A-Z_]+\b", TEXTS[page]))
    assert named <= variables | misspelled


# What a run does and tells


def test_every_event_is_explained() -> None:
    events = [event.value.json for event in Event] + ["summary"]
    explained = [code for code in first_cells("event") if code != "reason"]
    assert sorted(explained) == sorted(events)


def test_every_field_is_named(run: Run, tenant: Tenant) -> None:
    tenant.add_phone("ann")
    phone = tenant.add_phone("bob", name=STUCK)
    tenant.add_phone("cleo", name=STUCK)
    when(tenant, "GET", phone, lambda: tenant.move_phone(phone, "dan"), count=2)
    result = run("--json", "ann", "bob", "cleo", "nobody")
    fields = {field for event in result.events for field in event}
    for field in fields - {event.value.json for event in Event}:
        assert f"`{field}`" in README


def test_every_reason_is_explained() -> None:
    reasons = {
        f"{verdict.verb}: {re.sub('{[a-z]+}', '…', verdict.reason)}"
        for verdict in set(Verdict) - {Verdict.UNTAG}  # such a phone is not in limbo
    }
    assert set(first_cells("it shows")) == reasons
    changes = re.findall('return "(.+)"', inspect.getsource(duo_phone_cleanup.Run))
    assert sorted(first_cells("reason")) == sorted(changes)


def test_the_picture_shows_what_is_printed(run: Run, tenant: Tenant) -> None:
    cast(tenant, NOW)
    result = run("--dry-run", DUO_GRACE_PERIOD="20")
    picture = (ROOT / ".github/terminal.svg").read_text(encoding="utf-8")
    drawn = re.findall("<text .*>(.*)</text>", picture)
    differs = r"(?<=localhost:)\d+|\d+\.\d s$"  # the port, the seconds
    lines = {re.sub(differs, "", line) for line in drawn}
    assert {re.sub(differs, "", line) for line in result.out.splitlines()} <= lines


# Errors


def too_many_requests(run: Run, tenant: Tenant) -> Result:
    tenant.fail("status", status=429, times=None)
    return run()


def unknown_authority(run: Run, tenant: Tenant) -> Result:
    return run("--ca-certs", duo_client.client.DEFAULT_CA_CERTS)


def limit_exceeded(run: Run, tenant: Tenant) -> Result:
    tenant.add_phone("ann", "bob", name=STUCK)
    return run("--max-deletions", "1")


def no_answer_to_a_write(run: Run, tenant: Tenant) -> Result:
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.fail("reset_before", method="DELETE")
    when(tenant, "DELETE", phone, lambda: tenant.phones[phone].update(SET_UP))
    return run()


TROUBLES = {
    "Duo answers 429 …": too_many_requests,
    "… is not trusted: …": unknown_authority,
    "… due for deletion, none deleted: …": limit_exceeded,
    "… it may still be carried out": no_answer_to_a_write,
}


def test_every_error_is_tried() -> None:
    assert first_cells("message") == [*TROUBLES]


@pytest.mark.parametrize("message", TROUBLES)
def test_every_error_is_printed_so(
    run: Run, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(duo_phone_cleanup, "MAX_WAIT_429_SECONDS", 0)
    provoke: Callable[[Run, Tenant], Result] = TROUBLES[message]
    result = provoke(run, tenant)
    pieces = [re.escape(piece) for piece in message.split("…")]
    assert result.status == 1
    assert re.search("error: .*" + ".+".join(pieces), result.err)


# The pages themselves


def test_the_readme_takes_one_sitting() -> None:
    visible = re.sub("<details>.*?</details>", "", README, flags=re.DOTALL)
    assert len(visible.split()) <= 2500


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
    changelog = README.partition("# Changelog")[2]
    newest = re.findall(r"^\*\*([0-9.]+)\*\*", changelog, re.MULTILINE)[0]
    assert newest == duo_phone_cleanup.__version__


def test_every_file_of_the_tests_is_on_the_map() -> None:
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/*/*.py")]
    for file in files:
        if file.name != "__init__.py":
            assert f"`{file.relative_to(ROOT / 'tests')}`" in TEXTS["tests/README.md"]
