"""Type checkers over the Python of README.md, docs/ and docstrings: ``python tests/typed_pages.py pyright`` (or mypy).

Each block is a file of its own, its lines numbered as on its page; so are the examples of a docstring. Many are
fragments, so names may be undefined; torch's own annotations say that a gradient may be missing, and matplotlib's hide
what the examples of ``pathsum.plots`` look at. What a page imports of others need not be installed. All else is an
error. The package is the one of the environment: run it where a wheel is installed, and it is that one.
"""

from __future__ import annotations

import ast
import doctest
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import PAGES, ROOT, blocks

CHECKERS = {
    "pyright": ["pyright", "--pythonpath", sys.executable],
    "mypy": [
        "mypy",
        "--python-executable",
        sys.executable,
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--disable-error-code=name-defined",
        "--disable-error-code=union-attr",
    ],
}

PYRIGHT = {
    "typeCheckingMode": "standard",
    "reportUndefinedVariable": "none",
    "reportOptionalMemberAccess": "none",
    "reportMissingImports": "warning",
    "reportPossiblyUnboundVariable": "none",
    "reportUnusedExpression": "none",
}


def write_blocks(folder: Path) -> list[Path]:
    """The blocks as files, each line numbered as on its page."""
    files = []
    for block in (block for page in PAGES for block in blocks(page)):
        files.append(folder / f"{block.name}.py")
        files[-1].write_text(block.code)
    return files


def write_examples(folder: Path) -> list[Path]:
    """The examples of the docstrings as files, named by module and object."""
    files = []
    sources = ROOT / "src" / "pathsum"
    for source in sorted(sources.rglob("*.py")):
        if source.name == "plots.py":
            continue
        place = "_".join(source.relative_to(sources).with_suffix("").parts)
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            code = [example.source for example in doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")]
            if code:
                name = place if isinstance(node, ast.Module) else f"{place}_{node.name}"
                files.append(folder / f"example_{name}.py")
                files[-1].write_text("".join(code))
    return files


def main(checker: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        pages, examples = write_blocks(Path(folder)), write_examples(Path(folder))
        (Path(folder) / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
        command = [sys.executable, "-m", *CHECKERS[checker]]
        print(f"{checker}: {len(pages)} blocks of README.md and docs/, {len(examples)} docstrings", flush=True)
        return subprocess.run([*command, *map(str, pages + examples)], cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
