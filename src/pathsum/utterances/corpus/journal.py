"""The file of results: a line an utterance, whole lines alone, whatever has ended the runs before."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathsum.files import replacing

from ..inputs import UtteranceError, shortened
from .manifest import Entry

# How a line begins, and how that of a failure goes on behind the id.
_ID, _ERROR = '{"id": ', ', "error": '


def line_of(entry: Entry, document: dict[str, Any]) -> bytes:
    """The line of a result. The id stands in front, so that it is found without reading what follows."""
    document = {"id": entry.id} | document
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # as in some names of files
        return json.dumps(document, allow_nan=False).encode() + b"\n"


class Journal:
    """The results that are there, and a place for more.

    Attributes:
        done: ids of the utterances that had a line when the file was opened.
        lines: how many there are now.
        failed: how many of them are failures.
        first_failure: one of them, its id and the reason; ``None`` where there is none.
    """

    def __init__(self, path: Path):
        """Reads the file, which is made if missing, and cuts off a torn last line."""
        self.done: set[str] = set()
        self.lines = self.failed = 0
        self.first_failure: str | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        with open(path, "rb") as file:
            end = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    os.truncate(path, end)
                    break
                end += len(line)
                self.done.add(self._count(f"{path}, line {number}", line))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def add(self, lines: bytes) -> None:
        """Write one line or more."""
        for line in lines.split(b"\n")[:-1]:
            self._count("a new line", line)
        while lines:
            lines = lines[os.write(self._file, lines) :]

    def _count(self, place: str, line: bytes) -> str:
        name, is_failure = _read(place, line)
        self.lines += 1
        self.failed += is_failure
        if is_failure and self.first_failure is None:
            self.first_failure = f"{name}: {json.loads(line)['error']}"
        return name


def drop_failures(path: Path) -> None:
    """Write the file anew without its failures."""
    with replacing(path.parent) as beside, open(path, "rb") as file, open(beside / path.name, "wb") as kept:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and not _read(f"{path}, line {number}", line)[1]:
                kept.write(line)


def _read(place: str, line: bytes) -> tuple[str, bool]:
    """The id of a line, and whether it is a failure."""
    try:
        text = line.decode()
        if not text.startswith(_ID):
            raise ValueError(f"it does not begin with {_ID}")
        name, end = _DECODER.raw_decode(text, len(_ID))
    except ValueError as error:
        raise UtteranceError(f"{place}: must be a result; {error}") from error
    return name, text.startswith(_ERROR, end)


_DECODER = json.JSONDecoder()


@contextmanager
def claimed(path: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Nobody else writes results that belong to these settings while the block runs, and nobody ever of others.

    Args:
        path: A file with the settings, made if missing.
        settings: What all runs that write to one file have to agree in.

    Raises:
        UtteranceError: (a ValueError) another run is at work, or one of other settings has been.
    """
    with open(path, "a+b") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                # Of this kind the workers, which are forked, have no share: it ends with this process.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UtteranceError(f"{path.parent}: another run is writing there") from error
        file.seek(0)
        before = file.read()
        now = (json.dumps(settings, indent=1) + "\n").encode()
        if not before:
            file.write(now)
            file.flush()
        elif before != now:
            raise UtteranceError(
                f"{path.parent}: {_difference(before, settings)}; choose another folder, or the same options"
            )
        yield


def _difference(before: bytes, settings: dict[str, Any]) -> str:
    try:
        begun = json.loads(before)
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        return "its settings cannot be read"
    for name in [*settings, *begun]:
        if begun.get(name) != settings.get(name):
            old, new = (shortened(of.get(name)) for of in (begun, settings))
            return f"its results were begun with {name} {old}, not {new}"
    return "its results were begun with other options"
