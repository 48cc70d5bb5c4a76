"""ASG's best paths, along a target and among all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from pathsum.display import best_paths, shown
from pathsum.options import TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.paths.asg import both_paths, every_path
from pathsum.torch.paths.frames import BestPath


@shown(best_paths)
class ASGAlignment(NamedTuple):
    """The best path of each sample that stretches its target.

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame and of the transition to it, start and final scores
            included; 0 in padding, -inf or NaN where there is no path. The sum over frames is the path's score.
        positions: (N, T) which of the target's labels the frame belongs to, from 0; -1 as in ``paths``.
    """

    paths: Tensor
    scores: Tensor
    positions: Tensor


def asg_align(
    inputs: Tensor | np.ndarray,
    targets: Integers,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    *,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    batch_first: bool = True,
    impl: TorchImpl = "auto",
) -> ASGAlignment:
    """The best path of ASG that stretches the target: the label of every frame.

    Args:
        inputs: Unnormalised scores (N, T, C), or (T, C) for one sample.
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        batch_first: ``inputs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths``, ``scores`` and ``positions`` (N, T), or (T,) of one sample given as (T, C).

    Raises:
        InvalidValueError: As in ``asg_loss``.
        InvalidTypeError: As in ``asg_loss``.

    Notes:
        Note that the samples come first unless ``batch_first=False``, and not the frames as in ``asg_loss``. Ties:
        every label begins as early as the best score allows. A target longer than its input has no path, as has an
        empty one with an input that is not. Cost: as of ``forced_align``.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_align
        >>> inputs = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
        >>> asg_align(inputs, [[0, 1]], torch.zeros(2, 2)).paths.tolist()
        [[0, 0, 1]]
    """
    _, target = both_paths(
        "asg_align", inputs, targets, transitions, input_lengths, target_lengths, start_scores, final_scores,
        batch_first=batch_first, known=True, impl=impl,
    )  # fmt: skip
    found = target.best()
    return ASGAlignment(found.paths, found.scores, found.positions)


def asg_viterbi(
    inputs: Tensor | np.ndarray,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    *,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    batch_first: bool = True,
    impl: TorchImpl = "auto",
) -> BestPath:
    """The best path of ASG among all: decoding without a target, lexicon or language model.

    Args:
        inputs: Unnormalised scores (N, T, C), or (T, C) for one sample.
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        batch_first: ``inputs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths`` (N, T), and ``scores`` (N, T) of each class in its frame and of the transition to it; (T,) of one
        sample given as (T, C).

    Raises:
        InvalidValueError: (a ValueError) a length out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype or a device that is not accepted.

    Notes:
        Note that the samples come first unless ``batch_first=False``. ``token_spans(path, scores, blank=None)`` merges
        the runs. Of several best paths the one whose last class is the lowest, then the one before it, and so on. Cost:
        O(T*C*C) time and O(T*C) memory a sample.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_viterbi
        >>> inputs = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
        >>> asg_viterbi(inputs, torch.tensor([[0.0, -1.0], [-1.0, 0.0]])).paths.tolist()
        [[0, 0, 0]]
    """
    paths = every_path(
        "asg_viterbi",
        inputs,
        transitions,
        input_lengths,
        start_scores,
        final_scores,
        batch_first=batch_first,
        impl=impl,
    )
    return paths.best()
