"""Scores from a file, and transcripts turned into classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.errors import CommandError

# What may stand for a space in a vocabulary, by how common it is.
SPACES = (" ", "|", "▁", "<space>", "<sp>")
# What stands for whatever the vocabulary cannot spell; its class is the one behind all others.
STAR = "*"
SCORE_NAMES = ("log_probs", "logits", "emissions", "scores")
LENGTH_NAMES = ("input_lengths", "lengths")
SCORE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Characters that a message quotes at most of a file, a text or another library's message.
MAX_REASON = 120


class AlignError(CommandError):
    """Something about the files or the transcript that the caller has to put right."""


class Transcript(NamedTuple):
    """A transcript as classes.

    Attributes:
        text: as it was given.
        classes: of its tokens, one after another.
        words: for each word its text, its first token and the token after its last; empty where there are no words.
        unspelled: the words in which a star stands for something.
    """

    text: str
    classes: list[int]
    words: list[tuple[str, int, int]]
    unspelled: list[str]


def load_scores(path: Path) -> tuple[Tensor, Tensor]:
    """Scores (N, T, C) and lengths (N,) of a .npy, .npz or .pt file, which may hold (T, C).

    Raises:
        AlignError: the file is missing, damaged, of another kind, or holds something else.
    """
    if not path.exists():
        raise AlignError(f"{path}: no such file")
    if not path.is_file():
        raise AlignError(f"{path}: must be a file")
    read = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_torch, ".pth": _read_torch}.get(path.suffix.lower())
    if read is None:
        raise AlignError(f"{path}: must be .npy, .npz or .pt")
    try:
        found, lengths = read(path)
        scores = _as_scores(path, found)
        return scores, _as_lengths(path, lengths, scores)
    except (AlignError, OSError):
        raise
    except MemoryError as error:
        raise AlignError(f"{path}: is too large for the memory of this machine") from error
    # Whatever the bytes of a damaged or foreign file are taken for: the readers raise nearly every error there is.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AlignError(f"{path}: cannot be read as {path.suffix}: {reason[:MAX_REASON]}") from error


def _read_npy(path: Path) -> tuple[object, object]:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()
        raise AlignError(f"{path}: is an archive; its name must end in .npz")
    return found, None


def _read_npz(path: Path) -> tuple[object, object]:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise AlignError(f"{path}: is a single array; its name must end in .npy")
    with archive:
        return _pick(path, archive)


def _read_torch(path: Path) -> tuple[object, object]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    return _pick(path, found) if isinstance(found, Mapping) else (found, None)


def _pick(path: Path, found: Mapping[Any, object]) -> tuple[object, object]:
    """The scores and the lengths of a collection with names; of an archive nothing else is read."""
    arrays = [name for name in found if name not in LENGTH_NAMES]
    name = arrays[0] if len(arrays) == 1 else next((name for name in SCORE_NAMES if name in arrays), None)
    if name is None:
        raise AlignError(f"{path}: must hold one array, or one named {' or '.join(SCORE_NAMES)}; has {_short(arrays)}")
    lengths_name = next((name for name in LENGTH_NAMES if name in found), None)
    return found[name], None if lengths_name is None else found[lengths_name]


def _as_scores(path: Path, found: object) -> Tensor:
    if isinstance(found, np.ndarray):
        if found.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise AlignError(f"{path}: must hold floats (T, C) or (N, T, C); has {found.dtype} {found.shape}")
        found = torch.from_numpy(found.astype(found.dtype.newbyteorder("="), order="C"))
    if not isinstance(found, Tensor):
        raise AlignError(f"{path}: must hold an array of scores; has {type(found).__name__}")
    if found.layout != torch.strided or found.is_nested or found.is_meta:
        raise AlignError(f"{path}: must hold a dense tensor with values; has one that is sparse, nested or meta")
    if found.ndim not in (2, 3) or found.dtype not in SCORE_DTYPES:
        raise AlignError(f"{path}: must hold floats (T, C) or (N, T, C); has {found.dtype} {tuple(found.shape)}")
    if found.shape[-1] < 1:
        raise AlignError(f"{path}: must hold scores of at least one class; has shape {tuple(found.shape)}")
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
        raise AlignError(f"{path}: lengths must be whole numbers; got {_short(found)}") from error
    if lengths.dtype.kind not in "iuf" or not np.all(np.isfinite(lengths)) or np.any(lengths != np.floor(lengths)):
        raise AlignError(f"{path}: lengths must be whole numbers; got {_short(lengths.tolist())}")
    if lengths.size != count:
        raise AlignError(f"{path}: must have a length for each of its {count} samples; has {lengths.size}")
    if np.any((lengths < 0) | (lengths > num_frames)):
        raise AlignError(f"{path}: lengths must lie in [0, T] with T = {num_frames}; got {_short(lengths.tolist())}")
    return torch.from_numpy(lengths.astype(np.int64).reshape(-1))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by line feeds alone: other separators may be tokens."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise AlignError(f"{path}: must be text in UTF-8; {error.reason} at byte {error.start}") from error
    return lines[:-1] if lines[-1] == "" else lines


def load_vocabulary(path: Path) -> list[str]:
    """One token a line, in the order of the classes; an index behind a token, as some tools write, is left out."""
    lines = read_lines(path)
    if lines and all(line.rpartition(" ")[2] == str(index) and line != str(index) for index, line in enumerate(lines)):
        return [line.rpartition(" ")[0] for line in lines]
    return lines


def spell(text: str, vocabulary: Sequence[str], space: str | None = None) -> Transcript:
    """The classes of a text, taking at each place the longest token that fits; words are what spaces separate.

    A run of characters that no token begins is one star.
    """
    if space is None:
        space = next((token for token in SPACES if token in vocabulary), None)
    elif space not in vocabulary:
        raise AlignError(f"the token for a space, {space!r}, is not in the vocabulary")
    by_length = sorted({token for token in vocabulary if token}, key=lambda token: (-len(token), token))
    star = len(vocabulary)
    classes, words, unspelled = [], [], []
    for word in text.split():
        if words and space is not None:
            classes.append(vocabulary.index(space))
        first, rest = len(classes), word
        while rest:
            token = next((token for token in by_length if rest.startswith(token)), None)
            if token is not None:
                classes.append(vocabulary.index(token))
                rest = rest[len(token) :]
                continue
            if classes[first:][-1:] != [star]:
                classes.append(star)
            rest = rest[1:]
        if star in classes[first:]:
            unspelled.append(word)
        words.append((word, first, len(classes)))
    if words and all(star in classes[first:last] and last == first + 1 for _, first, last in words):
        raise AlignError(f"no token of the vocabulary begins any part of {_short(text)}")
    return Transcript(text, classes, words, unspelled)


def spell_ids(text: str) -> Transcript:
    """Classes written as numbers, separated by spaces or commas."""
    numbers = text.replace(",", " ").split()
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise AlignError(
            f"without a vocabulary the transcript must be class numbers, such as '5 3 8'; got {_short(text)}"
        )
    # Beyond 18 digits a number may not fit into 64 bits; of thousands Python makes none. forced_align checks the rest.
    huge = [number for number in numbers if len(number.lstrip("0")) > 18]
    if huge:
        raise AlignError(f"class numbers must be less than the number of classes; got {_short(huge[0])}")
    return Transcript(text, [int(number) for number in numbers], [], [])
