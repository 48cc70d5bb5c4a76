"""The Python blocks of README.md and docs/, for those who run them and those who check their types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A block, behind as many empty lines as its page has before it."""

    name: str
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
    return [
        Block(f"{name}_{number}", "\n" * text.count("\n", 0, found.start(1)) + found[1])
        for number, found in enumerate(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    ]
