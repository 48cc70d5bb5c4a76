"""Scores from a file, and transcripts turned into classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# What may stand for a space in a vocabulary, by how common it is.
SPACES = (" ", "|", "▁", "<space>", "<sp>")
SCORE_NAMES = ("log_probs", "logits", "emissions", "scores")
LENGTH_NAMES = ("input_lengths", "lengths")


class AlignError(ValueError):
    """Something about the files or the transcript that the caller has to put right."""


class Transcript(NamedTuple):
    """A transcript as classes.

    Attributes:
        text: as it was given.
        classes: of its tokens, one after another.
        words: for each word its text, its first token and the token after its last; empty where there are no words.
    """

    text: str
    classes: list[int]
    words: list[tuple[str, int, int]]


def load_scores(path: Path) -> tuple[Tensor, Tensor]:
    """Scores (N, T, C) and lengths (N,) of a .npy, .npz or .pt file, which may hold (T, C)."""
    if not path.is_file():
        raise AlignError(f"{path}: no such file")
    if path.suffix == ".npy":
        found: object = np.load(path)
    elif path.suffix == ".npz":
        with np.load(path) as archive:
            found = dict(archive)
    elif path.suffix in (".pt", ".pth"):
        found = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise AlignError(f"{path}: must be .npy, .npz or .pt")

    lengths = None
    if isinstance(found, dict):
        lengths = next((found[name] for name in LENGTH_NAMES if name in found), None)
        arrays = {name: value for name, value in found.items() if name not in LENGTH_NAMES}
        name = next(iter(arrays)) if len(arrays) == 1 else next((name for name in SCORE_NAMES if name in arrays), None)
        if name is None:
            raise AlignError(f"{path}: must hold one array, or one named {' or '.join(SCORE_NAMES)}; has {[*arrays]}")
        found = arrays[name]
    scores = torch.as_tensor(found)
    if scores.ndim == 2:
        scores = scores[None]
    if scores.ndim != 3 or not scores.is_floating_point():
        raise AlignError(f"{path}: must hold floats (T, C) or (N, T, C); has {scores.dtype} {tuple(scores.shape)}")
    if lengths is None:
        lengths = [scores.shape[1]] * len(scores)
    return scores, torch.as_tensor(lengths, dtype=torch.int64).reshape(-1)


def load_vocabulary(path: Path) -> list[str]:
    """One token a line, in the order of the classes; an index behind a token, as some tools write, is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AlignError(f"{path}: {error.strerror}") from error
    if lines and all(line.rpartition(" ")[2] == str(index) and line != str(index) for index, line in enumerate(lines)):
        return [line.rpartition(" ")[0] for line in lines]
    return lines


def spell(text: str, vocabulary: Sequence[str], space: str | None = None) -> Transcript:
    """The classes of a text, taking at each place the longest token that fits; words are what spaces separate."""
    if space is None:
        space = next((token for token in SPACES if token in vocabulary), None)
    elif space not in vocabulary:
        raise AlignError(f"the token for a space, {space!r}, is not in the vocabulary")
    by_length = sorted({token for token in vocabulary if token}, key=lambda token: (-len(token), token))
    classes, words = [], []
    for word in text.split():
        if words and space is not None:
            classes.append(vocabulary.index(space))
        first, rest = len(classes), word
        while rest:
            token = next((token for token in by_length if rest.startswith(token)), None)
            if token is None:
                raise AlignError(f"no token of the vocabulary begins {rest!r}, in the word {word!r}")
            classes.append(vocabulary.index(token))
            rest = rest[len(token) :]
        words.append((word, first, len(classes)))
    return Transcript(text, classes, words)


def spell_ids(text: str) -> Transcript:
    """Classes written as numbers, separated by spaces or commas."""
    try:
        return Transcript(text, [int(number) for number in text.replace(",", " ").split()], [])
    except ValueError:
        raise AlignError(
            f"without a vocabulary the transcript must be class numbers, such as '5 3 8'; got {text!r}"
        ) from None
