"""examples/tutorial.ipynb, made of docs/tutorial.md: ``python docs/tools/notebook.py``.

The page's Python blocks are the cells of code. Pictures are left out, which the cells draw; links lose their places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def notebook(page: str) -> str:
    cells = []
    # At odd places stand the blocks, between them prose.
    for number, text in enumerate(re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)):
        kind = "code" if number % 2 else "markdown"
        if kind == "markdown":
            text = re.sub(r"^!\[.*?\]\(.*?\)\n", "", text, flags=re.MULTILINE)
            text = re.sub(r"\[([^\]]*)\]\((?!http)[^)]*\)", r"*\1*", text)
        if not text.strip():
            continue
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        cells.append(cell | {"source": text.strip().splitlines(keepends=True)})
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (ROOT / "examples" / "tutorial.ipynb").write_text(notebook((ROOT / "docs" / "tutorial.md").read_text()))
