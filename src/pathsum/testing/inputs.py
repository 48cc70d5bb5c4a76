"""Random inputs of any size, from a seed: scores that look like scores, targets that repeat, ragged lengths."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ChainInputs(NamedTuple):
    """Inputs of a loss on a chain.

    Attributes:
        logits: (T, N, C) unnormalised scores, float64.
        targets: (N, S) labels, int64; -1 beyond a target's length.
        input_lengths: (N,) frames.
        target_lengths: (N,) labels.
    """

    logits: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray


class GridInputs(NamedTuple):
    """Inputs of a loss on a grid.

    Attributes:
        logits: (N, T, U+1, V) unnormalised scores, float64.
        targets: (N, U) labels, int64; -1 beyond a target's length.
        logit_lengths: (N,) frames.
        target_lengths: (N,) labels.
    """

    logits: np.ndarray
    targets: np.ndarray
    logit_lengths: np.ndarray
    target_lengths: np.ndarray


def chain_inputs(
    num_frames: int,
    num_samples: int,
    num_classes: int,
    num_labels: int,
    *,
    blank: int = 0,
    std: float = 1.0,
    repeats: float = 0.25,
    ragged: bool = True,
    seed: int = 0,
) -> ChainInputs:
    """Inputs for CTC and its relatives.

    Args:
        num_frames: Padded frames T.
        num_samples: Samples N.
        num_classes: Classes C, the blank among them.
        num_labels: Padded labels S.
        blank: Class that no target holds; negative counts from the end.
        std: Standard deviation of the logits.
        repeats: Probability that a label repeats the one before it.
        ragged: Draw the lengths from the upper half of their ranges; otherwise every sample fills the padded size.
        seed: Seed of the generator.

    Returns:
        The inputs, in NumPy arrays.
    """
    random = np.random.default_rng(seed)
    target_lengths = _lengths(random, num_samples, num_labels, ragged)
    return ChainInputs(
        logits=std * random.standard_normal((num_frames, num_samples, num_classes)),
        targets=_targets(random, target_lengths, num_labels, num_classes, blank, repeats),
        input_lengths=_lengths(random, num_samples, num_frames, ragged),
        target_lengths=target_lengths,
    )


def grid_inputs(
    num_samples: int,
    num_frames: int,
    num_labels: int,
    num_classes: int,
    *,
    blank: int = -1,
    std: float = 1.0,
    ragged: bool = True,
    seed: int = 0,
) -> GridInputs:
    """Inputs for RNN-T and its relatives.

    Args:
        num_samples: Samples N.
        num_frames: Padded frames T.
        num_labels: Padded labels U.
        num_classes: Classes V, the blank among them.
        blank: Class that no target holds; negative counts from the end.
        std: Standard deviation of the logits.
        ragged: Draw the lengths from the upper half of their ranges; otherwise every sample fills the padded size.
        seed: Seed of the generator.

    Returns:
        The inputs, in NumPy arrays.
    """
    random = np.random.default_rng(seed)
    target_lengths = _lengths(random, num_samples, num_labels, ragged)
    return GridInputs(
        logits=std * random.standard_normal((num_samples, num_frames, num_labels + 1, num_classes)),
        targets=_targets(random, target_lengths, num_labels, num_classes, blank, repeats=0.25),
        logit_lengths=_lengths(random, num_samples, num_frames, ragged),
        target_lengths=target_lengths,
    )


def concatenate_targets(targets: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
    """Padded targets (N, S) as one row, one target after another."""
    return targets[np.arange(targets.shape[1]) < np.asarray(target_lengths)[:, None]]


def pack_rows(padded: np.ndarray, logit_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
    """Rows (sum of T_n * (U_n + 1), V) of padded (N, T, U+1, V), the samples one after another."""
    return padded[_inside(padded.shape, logit_lengths, target_lengths)]


def unpack_rows(
    packed: np.ndarray, shape: tuple[int, ...], logit_lengths: np.ndarray, target_lengths: np.ndarray
) -> np.ndarray:
    """Packed rows put back into a padded shape (N, T, U+1, V), zeros elsewhere."""
    padded = np.zeros(shape, packed.dtype)
    padded[_inside(shape, logit_lengths, target_lengths)] = packed
    return padded


def _inside(shape: tuple[int, ...], logit_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
    frames = np.arange(shape[1]) < np.asarray(logit_lengths)[:, None]
    labels = np.arange(shape[2]) <= np.asarray(target_lengths)[:, None]
    return frames[:, :, None] & labels[:, None, :]


def _lengths(random: np.random.Generator, count: int, size: int, ragged: bool) -> np.ndarray:
    return random.integers((size + 1) // 2, size + 1, count) if ragged else np.full(count, size)


def _targets(
    random: np.random.Generator, lengths: np.ndarray, width: int, num_classes: int, blank: int, repeats: float
) -> np.ndarray:
    labels = np.delete(np.arange(num_classes), blank)
    targets = labels[random.integers(0, len(labels), (len(lengths), width))] if width else np.zeros((len(lengths), 0))
    targets = targets.astype(np.int64)
    repeated = random.random(targets.shape) < repeats
    for s in range(1, width):
        targets[repeated[:, s], s] = targets[repeated[:, s], s - 1]
    targets[np.arange(width) >= lengths[:, None]] = -1
    return targets
