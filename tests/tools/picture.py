"""The picture in README.md: ``python -m tests.tools.picture > .github/terminal.svg``.

It shows what a dry run and a run print on a real terminal, on the tenant of the demo,
character for character. The program prints no colors: only what is typed has one here.
"""

from __future__ import annotations

import html
import os
import sys
import time
from pathlib import Path

import pexpect

from tests.simulation.tenant import Tenant, cast

SCRIPT = Path(__file__).parents[2] / "duo_phone_cleanup.py"
COLUMNS = 120  # of the terminal: enough that no line is broken
SIZE = 14.5  # of the text
WIDTH = 8.75  # of a character
HEIGHT = 21  # of a line
MARGIN = 16
BACKGROUND = "#1b1f24"
BORDER = "#444c56"
TYPED = "#7ee787"
PRINTED = "#e6edf3"


def screen(tenant: Tenant, *options: str) -> list[str]:
    """Run the program on a terminal; return the lines that are then on it."""
    os.environ.update(tenant.environment(), NO_PROXY="localhost", no_proxy="localhost")
    os.environ["DUO_GRACE_PERIOD"] = "20"  # as in the README's settings file
    child = pexpect.spawn(
        sys.executable,
        [str(SCRIPT), *options],
        encoding="utf-8",
        dimensions=(24, COLUMNS),
    )
    printed = child.read().splitlines()
    child.close()
    if child.exitstatus:
        raise SystemExit("\n".join(printed))
    if max(map(len, printed)) > COLUMNS:
        raise SystemExit(f"a line has more than {COLUMNS} columns")
    return [f"$ {' '.join([SCRIPT.stem, *options])}", *printed]


def drawing(lines: list[str]) -> str:
    """Draw lines of text in SVG, in whatever font there is, at a fixed width."""
    width = round(max(map(len, lines)) * WIDTH + 2 * MARGIN)
    height = len(lines) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-size="{SIZE}"'
        ' font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace">',
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"'
        f' fill="{BACKGROUND}" stroke="{BORDER}"/>',
    ]
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        color = PRINTED
        if line.startswith("$ "):
            color = TYPED
        parts.append(
            f'<text x="{MARGIN}" y="{number * HEIGHT + MARGIN // 2}"'
            f' textLength="{len(line) * WIDTH:g}" fill="{color}"'
            f' xml:space="preserve">{html.escape(line)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def main() -> None:
    with Tenant() as tenant:
        cast(tenant, time.time())
        print(drawing([*screen(tenant, "--dry-run"), "", *screen(tenant)]))


if __name__ == "__main__":
    main()
