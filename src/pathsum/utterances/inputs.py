"""Scores from a file, and transcripts turned into classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.errors import CommandError

# What may stand for a space in a vocabulary, by how common it is.
SPACES = (" ", "|", "▁", "<space>", "<sp>")
# What a word's first piece begins with, where words are cut into pieces and no token stands between them.
WORD_BEGIN = "▁"
# What stands for whatever the vocabulary cannot spell; its class is the one behind all others.
STAR = "*"
SCORE_NAMES = ("log_probs", "logits", "emissions", "scores")
LENGTH_NAMES = ("input_lengths", "lengths")
SCORE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Characters that a message quotes at most of a file, a text or another library's message.
MAX_REASON = 120

# Files of more bytes than this are mapped into memory.
MAPPED = 1 << 26


class UtteranceError(CommandError):
    """Something about files, texts or scores that the caller has to put right."""


class Word(NamedTuple):
    """A word and which tokens of an utterance spell it: the first, and the one after the last."""

    text: str
    first: int
    end: int


class Transcript(NamedTuple):
    """A transcript as classes.

    Attributes:
        text: as it was given.
        classes: of its tokens, one after another.
        words: with their tokens; empty where there are no words.
        unspelled: the words in which a star stands for something.
    """

    text: str
    classes: list[int]
    words: list[Word]
    unspelled: list[str]


class Vocabulary:
    """The tokens of the classes, which spell texts.

    Attributes:
        tokens: of each class, in order.
        separator: class of the token between words; ``None`` where there is none.
        pieces: words are cut into pieces, of which the first begins with "▁".
    """

    def __init__(self, tokens: Sequence[str], space: str | None = None):
        self.tokens = list(tokens)
        self._classes: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            self._classes.setdefault(token, number)
        self.pieces = space is None and any(token[:1] == WORD_BEGIN and token[1:] for token in self.tokens)
        if space is not None and space not in self._classes:
            raise UtteranceError(f"the token for a space, {space!r}, is not in the vocabulary")
        if space is None and not self.pieces:
            space = next((token for token in SPACES if token in self._classes), None)
        self.separator = None if space is None else self._classes[space]
        self._longest = max(map(len, self.tokens), default=0)

    def check(self, num_classes: int) -> None:
        """Raise where there is not a token for each class."""
        if len(self.tokens) != num_classes:
            raise UtteranceError(
                f"the vocabulary must have a token for each of the {num_classes} classes; has {len(self.tokens)}"
            )

    def spell(self, text: str) -> Transcript:
        """The classes of a text, taking at each place the longest token that fits; words are what spaces separate.

        A run of characters that no token begins is one star.
        """
        star = len(self.tokens)
        classes: list[int] = []
        words: list[Word] = []
        unspelled: list[str] = []
        for word in text.split():
            if words and self.separator is not None:
                classes.append(self.separator)
            first = len(classes)
            classes += self._spell_word(WORD_BEGIN + word if self.pieces else word, star)
            if star in classes[first:]:
                unspelled.append(word)
            words.append(Word(word, first, len(classes)))
        if words and all(classes[first:end] == [star] for _, first, end in words):
            raise UtteranceError(f"no token of the vocabulary begins any part of {shortened(text)}")
        return Transcript(text, classes, words, unspelled)

    def _spell_word(self, word: str, star: int) -> list[int]:
        classes: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                if word[at:end] in self._classes:
                    classes.append(self._classes[word[at:end]])
                    at = end
                    break
            else:
                if classes[-1:] != [star]:
                    classes.append(star)
                at += 1
        return classes


class Reading(NamedTuple):
    """How scores and texts are read.

    Attributes:
        vocabulary: what the classes stand for; ``None``: class numbers.
        blank: class of the blank; negative counts from the end.
        frame_seconds: how long a frame lasts, in [1e-6, 1e6].
        logits: the scores are logits.
    """

    vocabulary: Vocabulary | None = None
    blank: int = 0
    frame_seconds: float = 0.02
    logits: bool = False

    def log_probs(self, scores: Tensor) -> Tensor:
        return scores.log_softmax(-1) if self.logits else scores

    def blank_of(self, num_classes: int) -> int:
        """The blank's class; one that is out of range is returned as it is, for the function that checks it."""
        return self.blank % num_classes if -num_classes <= self.blank < num_classes else self.blank

    def nothing(self, num_classes: int = 1) -> tuple[Tensor, Tensor]:
        """Scores (1, 1, C) that tell no class from another, and their length; C as few as there may be."""
        fewest = max(num_classes, self.blank + 1, -self.blank)
        num_classes = fewest if self.vocabulary is None else len(self.vocabulary.tokens)
        return torch.zeros(1, 1, num_classes), torch.ones(1, dtype=torch.int64)

    def tokens(self, num_classes: int) -> list[str]:
        """What each class is called."""
        if self.vocabulary is None:
            return [*map(str, range(num_classes))]
        self.vocabulary.check(num_classes)
        return self.vocabulary.tokens


def load_scores(path: Path) -> tuple[Tensor, Tensor]:
    """Scores (N, T, C) and lengths (N,) of a .npy, .npz or .pt file, which may hold (T, C).

    Raises:
        UtteranceError: the file is missing, damaged, of another kind, or holds something else.
    """
    if not path.exists():
        raise UtteranceError(f"{path}: no such file")
    if not path.is_file():
        raise UtteranceError(f"{path}: must be a file")
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise UtteranceError(f"{path}: must be .npy, .npz or .pt")
    try:
        found, lengths = read(path)
        scores = _as_scores(path, found)
        return scores, _as_lengths(path, lengths, scores)
    except (UtteranceError, OSError):
        raise
    except MemoryError as error:
        raise UtteranceError(f"{path}: is too large for the memory of this machine") from error
    # Whatever the bytes of a damaged or foreign file are taken for: the readers raise nearly every error there is.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UtteranceError(f"{path}: cannot be read as {path.suffix}: {reason[:MAX_REASON]}") from error


def _read_npy(path: Path) -> tuple[object, object]:
    # What is mapped is read where it is needed, and again where memory is short. Nothing here writes to it.
    mapped = path.stat().st_size > MAPPED
    found = np.load(path, allow_pickle=False, mmap_mode="c" if mapped else None)
    if not isinstance(found, np.ndarray):
        found.close()
        raise UtteranceError(f"{path}: is an archive; its name must end in .npz")
    return found, None


def _read_npz(path: Path) -> tuple[object, object]:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise UtteranceError(f"{path}: is a single array; its name must end in .npy")
    with archive:
        return _pick(path, archive)


def _read_torch(path: Path) -> tuple[object, object]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    return _pick(path, found) if isinstance(found, Mapping) else (found, None)


_READERS: dict[str, Callable[[Path], tuple[object, object]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
SUFFIXES = tuple(_READERS)


def _pick(path: Path, found: Mapping[Any, object]) -> tuple[object, object]:
    """The scores and the lengths of a collection with names; of an archive nothing else is read."""
    arrays = [name for name in found if name not in LENGTH_NAMES]
    name = arrays[0] if len(arrays) == 1 else next((name for name in SCORE_NAMES if name in arrays), None)
    if name is None:
        raise UtteranceError(
            f"{path}: must hold one array, or one named {' or '.join(SCORE_NAMES)}; has {shortened(arrays)}"
        )
    lengths_name = next((name for name in LENGTH_NAMES if name in found), None)
    return found[name], None if lengths_name is None else found[lengths_name]


def _as_scores(path: Path, found: object) -> Tensor:
    if isinstance(found, np.ndarray):
        if found.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise UtteranceError(f"{path}: must hold floats (T, C) or (N, T, C); has {found.dtype} {found.shape}")
        found = torch.from_numpy(found.astype(found.dtype.newbyteorder("="), order="C", copy=False))
    if not isinstance(found, Tensor):
        raise UtteranceError(f"{path}: must hold an array of scores; has {type(found).__name__}")
    if found.layout != torch.strided or found.is_nested or found.is_meta:
        raise UtteranceError(f"{path}: must hold a dense tensor with values; has one that is sparse, nested or meta")
    if found.ndim not in (2, 3) or found.dtype not in SCORE_DTYPES:
        raise UtteranceError(f"{path}: must hold floats (T, C) or (N, T, C); has {found.dtype} {tuple(found.shape)}")
    if found.shape[-1] < 1:
        raise UtteranceError(f"{path}: must hold scores of at least one class; has shape {tuple(found.shape)}")
    return found.detach()[None] if found.ndim == 2 else found.detach()


def _as_lengths(path: Path, found: object, scores: Tensor) -> Tensor:
    count, num_frames = scores.shape[:2]
    if found is None:
        return torch.full((count,), num_frames)
    if isinstance(found, Tensor):
        found = found.detach().tolist()
    try:
        lengths = np.asarray(found)
    except ValueError as error:
        raise UtteranceError(f"{path}: lengths must be whole numbers; got {shortened(found)}") from error
    if lengths.dtype.kind not in "iuf" or not np.all(np.isfinite(lengths)) or np.any(lengths != np.floor(lengths)):
        raise UtteranceError(f"{path}: lengths must be whole numbers; got {shortened(lengths.tolist())}")
    if lengths.size != count:
        raise UtteranceError(f"{path}: must have a length for each of its {count} samples; has {lengths.size}")
    if np.any((lengths < 0) | (lengths > num_frames)):
        raise UtteranceError(
            f"{path}: lengths must lie in [0, T] with T = {num_frames}; got {shortened(lengths.tolist())}"
        )
    return torch.from_numpy(lengths.astype(np.int64).reshape(-1))


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by line feeds alone: other separators may be tokens."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UtteranceError(f"{path}: must be text in UTF-8; {error.reason} at byte {error.start}") from error
    return lines[:-1] if lines[-1] == "" else lines


def load_reading(
    vocabulary: str | None, tokens: str | None, space: str | None, blank: int, frame_seconds: float, logits: bool
) -> Reading:
    """How a command reads scores and texts.

    Args:
        vocabulary: Path of a file with one token a line, in the order of the classes; an index behind a token, as some
            tools write, is left out.
        tokens: The vocabulary as a text, a character for each class.
        space: The token that stands between words; by default the first of the usual ones that is in the vocabulary.
        blank: As ``Reading`` has it.
        frame_seconds: As ``Reading`` has it.
        logits: As ``Reading`` has it.
    """
    if not 1e-6 <= frame_seconds <= 1e6:
        raise UtteranceError(f"frame_seconds must lie in [1e-06, 1e+06]; got {frame_seconds}")
    if vocabulary is None:
        return Reading(None if tokens is None else Vocabulary(tokens, space), blank, frame_seconds, logits)
    lines = read_lines(Path(vocabulary))
    if lines and all(line.rpartition(" ")[2] == str(index) and line != str(index) for index, line in enumerate(lines)):
        lines = [line.rpartition(" ")[0] for line in lines]
    return Reading(Vocabulary(lines, space), blank, frame_seconds, logits)


def spell_ids(text: str) -> Transcript:
    """Classes written as numbers, separated by spaces or commas."""
    numbers = text.replace(",", " ").split()
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise UtteranceError(
            f"without a vocabulary the transcript must be class numbers, such as '5 3 8'; got {shortened(text)}"
        )
    # Beyond 18 digits a number may not fit into 64 bits; of thousands Python makes none. forced_align checks the rest.
    huge = [number for number in numbers if len(number.lstrip("0")) > 18]
    if huge:
        raise UtteranceError(f"class numbers must be less than the number of classes; got {shortened(huge[0])}")
    return Transcript(text, [int(number) for number in numbers], [], [])
