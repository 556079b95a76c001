"""The picture in README.md: ``python -m tests.tools.picture > .github/terminal.svg``.

What a dry run and a run print on a real terminal, on the tenant of the demo. The
colors are not the program's: what it writes is in color here, and what it leaves alone
is dim.
"""

from __future__ import annotations

import html
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect

from tests.simulation.tenant import Tenant, cast

SCRIPT = Path(__file__).parents[2] / "duo_phone_cleanup.py"
COLUMNS = 76
SIZE, WIDTH, HEIGHT = 14.5, 8.75, 21  # of the text, of a character, of a line
MARGIN = 16

PLAIN, DIM, PROMPT = "#e6edf3", "#8b949e", "#7ee787"
COLORS = {"delete": "#ff7b72", "stamp": "#79c0ff"}
LEFT_ALONE = re.compile(r" (?:wait|keep): ")
WORDS = re.compile(r"\b(delete|stamp|\d+ waiting|\d+ kept)(?:d|ed)?\b")
TOGETHER = re.compile(r"(?<=\d) (?=[a-z])|(?<=all) ")
"""Spaces where no line is broken: "1 kept", "all users"."""


def screen(tenant: Tenant, *options: str) -> list[str]:
    """Run the program on a terminal; return the lines that are then on it."""
    os.environ.update(tenant.environment(), NO_PROXY="localhost", no_proxy="localhost")
    child = pexpect.spawn(
        sys.executable,
        [str(SCRIPT), *options],
        encoding="utf-8",
        dimensions=(24, COLUMNS),
    )
    output = child.read()
    child.close()
    if child.exitstatus:
        raise SystemExit(output)
    lines = [f"$ {' '.join([SCRIPT.stem, *options])}", *output.splitlines(), ""]
    wrap = textwrap.TextWrapper(
        COLUMNS, subsequent_indent="    ", break_on_hyphens=False
    ).wrap
    parts = [part for line in lines for part in wrap(TOGETHER.sub("~", line)) or [""]]
    return [part.replace("~", " ") for part in parts]


def colored(line: str) -> Iterator[tuple[int, str, str]]:
    """Yield the pieces of a line: where each begins, its color, its text."""
    base = DIM if LEFT_ALONE.search(line) else PLAIN
    base = PROMPT if line.startswith("$") else base
    begin = 0
    for match in () if base == PROMPT else WORDS.finditer(line):
        yield begin, base, line[begin : match.start()]
        yield match.start(), COLORS.get(match[1], DIM), match[0]
        begin = match.end()
    yield begin, base, line[begin:]


def drawing(lines: list[str]) -> str:
    """Draw lines of text in SVG, in whatever font there is, at a fixed width."""
    width = round(COLUMNS * WIDTH + 2 * MARGIN)
    height = len(lines) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-size="{SIZE}"'
        ' font-family="ui-monospace, Menlo, Consolas, monospace">',
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"'
        ' fill="#1b1f24" stroke="#444c56"/>',
    ]
    for number, line in enumerate(lines, 1):
        for begin, color, text in colored(line):
            if text.strip():
                begin += len(text) - len(text.lstrip())
                text = text.strip()
                parts.append(
                    f'<text x="{MARGIN + begin * WIDTH:g}"'
                    f' y="{number * HEIGHT + MARGIN // 2}"'
                    f' textLength="{len(text) * WIDTH:g}" fill="{color}"'
                    f' xml:space="preserve">{html.escape(text)}</text>'
                )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    with Tenant() as tenant:
        cast(tenant, time.time())
        print(drawing([*screen(tenant, "--dry-run"), *screen(tenant)][:-1]))
