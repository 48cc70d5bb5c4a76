"""ASG's best paths, along a target and among all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, ChainOptions
from pathsum.lattice import DenseLattice
from pathsum.problems.asg import pose_asg
from pathsum.torch._batch_first import ASGCall, check_asg, check_asg_target, of_samples, real_frames
from pathsum.torch._inputs import Integers
from pathsum.torch._operators import kernels_of
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch.align._chain import labels_of
from pathsum.torch.align.ctc import BestPath, path_dtype


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
    impl: str = "auto",
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
    function = "asg_align"
    call = check_asg(function, inputs, transitions, input_lengths, start_scores, final_scores, batch_first, impl)
    lattice = pose_asg(*check_asg_target(function, call, targets, target_lengths), call.scores.shape[2])[1]
    asked = Call((call.scores.detach(), call.transitions.detach()), lattice, ChainOptions())
    found = kernels_of(call.impl, "chain").best(asked)
    paths = labels_of(found.states, lattice)
    scores = _with_transitions(call, paths, found.log_probs)
    return ASGAlignment(*of_samples(call.batched, paths.to(path_dtype(targets)), scores, found.states))


def asg_viterbi(
    inputs: Tensor | np.ndarray,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    *,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    batch_first: bool = True,
    impl: str = "auto",
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
    call = check_asg("asg_viterbi", inputs, transitions, input_lengths, start_scores, final_scores, batch_first, impl)
    scores = call.scores
    lattice = DenseLattice(input_lengths=call.lengths, num_states=scores.shape[2])
    asked = Call((scores.detach(), call.transitions.detach()), lattice)
    log_probs, paths = kernels_of(call.impl, "dense").best(asked)
    return BestPath(*of_samples(call.batched, paths, _with_transitions(call, paths, log_probs)))


def _with_transitions(call: ASGCall, paths: Tensor, log_probs: Tensor) -> Tensor:
    """(N, T) score of each frame's class and of the transition to it, differentiable by both."""
    scores = call.scores
    labels = paths.clamp(min=0)
    own = scores.to(work_dtype(scores)).gather(2, labels[:, :, None])[:, :, 0]
    moves = call.transitions.to(own.dtype)[labels[:, 1:], labels[:, :-1]]
    moves = torch.cat([torch.zeros_like(own[:, :1]), moves], 1)
    instead = torch.where(real_frames(call.lengths, scores), log_probs[:, None].to(own.dtype), 0)
    return torch.where(paths >= 0, own + moves, instead)
