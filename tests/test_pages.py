"""Every Python block of README.md and docs/ runs as it stands, after those before it on its page."""

import importlib.util
import json
import re

import pytest

from pages import PAGES, ROOT, blocks

# What the recipes are for, and the tests do without. Where it is installed, its blocks run too.
OTHERS = ("flax", "kaldifst", "lightning", "optax", "pynini", "torchaudio", "transformers")


def missing(code):
    """The packages of others that a block imports and that are not here."""
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE))
    return {name for name in imported & set(OTHERS) if importlib.util.find_spec(name) is None}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "page"}
    for block in blocks(page):
        if missing(block.code):
            continue
        # In a file, for what looks for its own source, such as tf.function.
        (tmp_path / f"{block.name}.py").write_text(block.code)
        exec(compile(block.code, f"{tmp_path / block.name}.py", "exec"), names)
    assert not re.search(r"\bnan\b", capsys.readouterr().out)


def test_the_notebook_is_that_of_the_tutorial(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "tools")
    made = importlib.import_module("notebook").notebook((ROOT / "docs" / "tutorial.md").read_text())
    assert (ROOT / "examples" / "tutorial.ipynb").read_text() == made, "run: python docs/tools/notebook.py"
    code = ["".join(cell["source"]) + "\n" for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert code == [block.code.lstrip("\n") for block in blocks(ROOT / "docs" / "tutorial.md")]
