"""Type checkers over the Python blocks of README.md and docs/: ``python tests/typed_pages.py pyright`` (or ``mypy``).

Each block is a file of its own, its lines numbered as on its page. Many are fragments, so names may be undefined; and
torch's own annotations say that a gradient may be missing. What a page imports of others need not be installed. All
else is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import PAGES, blocks

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
}


def write_blocks(folder: Path) -> list[Path]:
    """The blocks as files, each line numbered as on its page."""
    files = []
    for block in (block for page in PAGES for block in blocks(page)):
        files.append(folder / f"{block.name}.py")
        files[-1].write_text(block.code)
    return files


def main(checker: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        files = write_blocks(Path(folder))
        (Path(folder) / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
        command = [sys.executable, "-m", *CHECKERS[checker]]
        print(f"{checker}: {len(files)} blocks of README.md and docs/", flush=True)
        return subprocess.run([*command, *map(str, files)], cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
