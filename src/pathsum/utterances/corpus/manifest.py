"""Which utterances there are: a file with a JSON object a line, or a folder of scores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from ..inputs import SUFFIXES, UtteranceError, load_scores, shortened


class Entry(NamedTuple):
    """An utterance of a corpus.

    Attributes:
        id: Its name, which no other has.
        scores: Path of its scores.
        text: Its transcript; ``None`` where the manifest has none.
    """

    id: str
    scores: str
    text: str | None

    def load_scores(self) -> tuple[Tensor, Tensor]:
        """Scores (1, T, C) and length (1,)."""
        found = load_scores(Path(self.scores))
        if len(found[0]) != 1:
            raise UtteranceError(f"{self.scores}: must hold one utterance; has {len(found[0])} samples")
        return found


def is_corpus(path: str) -> bool:
    return Path(path).suffix.lower() == ".jsonl" or Path(path).is_dir()


def check(path: Path) -> int:
    """How many utterances there are.

    Raises:
        UtteranceError: (a ValueError) a line that is no utterance, or an id that has come before.
    """
    places: dict[str, str] = {}
    for place, entry in _placed(path):
        before = places.setdefault(entry.id, place)
        if before is not place:
            raise UtteranceError(f"{place}: id must be of one utterance; {shortened(entry.id)} is at {before} too")
    if not places:
        raise UtteranceError(f"{path}: has no utterances")
    return len(places)


def entries(path: Path) -> Iterator[Entry]:
    """The utterances, in order, one after another as they are asked for."""
    return (entry for _, entry in _placed(path))


def _placed(path: Path) -> Iterator[tuple[str, Entry]]:
    return _of_folder(path) if path.is_dir() else _of_lines(path)


def _of_lines(path: Path) -> Iterator[tuple[str, Entry]]:
    folder = str(path.parent)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, _entry(place, line, folder)


def _entry(place: str, line: bytes, folder: str) -> Entry:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UtteranceError(f"{place}: must be a JSON object; {error}") from error

    def fail(rule: str, got: object) -> NoReturn:
        raise UtteranceError(f"{place}: must {rule}; got {shortened(got)}")

    if not isinstance(found, dict):
        fail("be a JSON object", found)
    scores, text = found.get("scores"), found.get("text")
    name = found.get("id", scores)
    if not isinstance(scores, str) or not scores or "\0" in scores:
        fail('have "scores", the path of a file', scores)
    if not isinstance(name, str) or not name:
        fail('have a text for "id"', name)
    if text is not None and not isinstance(text, str):
        fail('have a text for "text"', text)
    return Entry(name, os.path.join(folder, scores), text)


def _of_folder(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Files of scores in order, those of folders below too; a text stands beside each in a file of its name."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                yield str(path), Entry(path.relative_to(folder).with_suffix("").as_posix(), str(path), None)
