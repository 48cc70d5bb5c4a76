"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside the files of ``folder``, which is made if missing; what is written there replaces them.

    The files are renamed into place when the block ends. Where the block or a check raises, ``folder`` keeps what it
    had.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pathsum-", dir=folder) as name:
        beside = Path(name)
        yield beside
        written = sorted(beside.iterdir())
        for file in written:
            if (folder / file.name).is_dir():
                raise IsADirectoryError(f"{folder / file.name} is a folder")
        for file in written:
            os.replace(file, folder / file.name)


def check_folder(folder: str | Path) -> None:
    """Make a folder if missing, and raise where it will not take files: before the work, not after it."""
    with replacing(folder):
        pass


def write_text(path: Path, text: str) -> None:
    """UTF-8 with one kind of line end on every system; what cannot be encoded, as in some file names, is escaped."""
    path.write_bytes(text.encode("utf-8", errors="backslashreplace"))
