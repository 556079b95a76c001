"""The picture in README.md: ``python -m tests.tools.picture > .github/terminal.svg``.

What a dry run and a run print on a real terminal, against the cast of the demo.
"""

from __future__ import annotations

import html
import os
import sys
import textwrap
import time
from pathlib import Path

import pexpect

from tests.tenant import Tenant, cast

SCRIPT = Path(__file__).parents[2] / "duo_phone_cleanup.py"
COLUMNS = 112
WIDTH, HEIGHT, MARGIN = 8, 20, 16  # of a character, of a line, round the text


def screen(tenant: Tenant, *options: str) -> list[str]:
    """Run the program on a terminal, give the lines that are then on it."""
    os.environ.update(tenant.environment(), NO_PROXY="localhost", no_proxy="localhost")
    child = pexpect.spawn(sys.executable, [str(SCRIPT), *options], encoding="utf-8")
    output = child.read()
    child.close()
    if child.exitstatus:
        raise SystemExit(output)
    lines = [f"$ {' '.join([SCRIPT.stem, *options])}", *output.splitlines(), ""]
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS) or [""]]


def drawing(lines: list[str]) -> str:
    """Draw lines of text in SVG, in whatever font there is, at a fixed width."""
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b1f24"/>',
    ]
    for number, line in enumerate(lines, 1):
        if line:
            fill = "#7ee787" if line.startswith("$") else "#e6edf3"
            parts.append(
                f'<text x="{MARGIN}" y="{number * HEIGHT + MARGIN // 2}"'
                f' textLength="{len(line) * WIDTH}" fill="{fill}"'
                f' xml:space="preserve">{html.escape(line)}</text>'
            )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    with Tenant() as tenant:
        cast(tenant, time.time())
        print(drawing([*screen(tenant, "--dry-run"), *screen(tenant)][:-1]))
