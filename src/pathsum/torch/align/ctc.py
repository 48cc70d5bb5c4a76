"""CTC's and simplified CTC's best paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import dispatch
from pathsum.kernels.protocol import Call, ChainOptions, ChainPath
from pathsum.lattice import ChainLattice
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._batch_first import check_chain, of_samples, real_frames
from pathsum.torch._inputs import Integers
from pathsum.torch._operators import kernels_of
from pathsum.torch.align._chain import labels_of


class BestPath(NamedTuple):
    """A path through the frames of each sample. Without the axis N for one sample given as (T, C).

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame; 0 in padding, -inf in the frames of a sample that has no
            path and NaN in those of a sample with a NaN score, so that the sum over frames is the path's own score.
    """

    paths: Tensor
    scores: Tensor


class Alignment(BestPath):
    """The best path of each sample that spells its target: a pair of paths and scores, as torchaudio's, and positions.

    Attributes:
        paths, scores: (N, T) as in ``BestPath``: what the pair unpacks to.
        positions: (N, T) which of the target's labels the frame belongs to, from 0; -1 in the frames of blanks, in
            padding, and in all frames of a sample that has no path. ``token_spans`` tells equal neighbours apart by it.
    """

    positions: Tensor

    def __new__(cls, paths: Tensor, scores: Tensor, positions: Tensor) -> Alignment:
        pair = super().__new__(cls, paths, scores)
        pair.positions = positions
        return pair

    def __getnewargs__(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.paths, self.scores, self.positions


def forced_align(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    star: str | None = None,
    batch_first: bool = True,
    impl: str = "auto",
) -> Alignment:
    """The most probable CTC path that spells the target: the class of every frame.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample. float32, float64, bfloat16 or float16, a
            tensor of any strides or a NumPy array.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. Any integer dtype, a tensor on
            any device, an array or a list. Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        star: What the label C, one more than there are classes, stands for in targets: something that has no class of
            its own. ``"any"``: any classes, the blank included, in as many frames as are best; its score is 0 in every
            frame. ``"label"``: any class but the blank; its score is the log-sum of theirs. ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths`` (N, T), in the dtype of ``targets`` where they are an int32 tensor, else int64, and ``scores`` (N, T),
        in the dtype of ``log_probs`` (with a star never half precision), differentiable with respect to them. The pair
        has an attribute ``positions`` (N, T), int64: see ``Alignment``. Of one sample given as (T, C) all are (T,).

    Raises:
        InvalidValueError: (a ValueError) a label out of range or equal to the blank, a length out of range, shapes
            that do not match; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Signature and results are torchaudio's, for any number of samples of any lengths. Two differences. A target
        that does not fit in its frames, or fits only at -inf, is no error: its path is -1 and its scores -inf, the
        other samples are untouched. And where several paths are best, torchaudio may return one that is not: below.

        Ties: of the two states in which a path may end, the last label and the blank behind it, the label. Then,
        going back from the end, the path stays in its state rather than having stepped from the one before, and
        stepped rather than skipped over a blank. This is torchaudio's rule but for one case: where the step and the
        skip are equal and better than to stay, torchaudio 2.11 stays, and its path is not a best one.

        Cost: O(T*L) time in float64 and O((T*L)^(2/3)) memory: no back-pointers are kept, but the scores of all
        states every so many frames, from which each stretch of frames is solved again around the path.
        Deterministic for any number of threads.

    Example:
        >>> import torch
        >>> from pathsum.torch import forced_align
        >>> probs = torch.tensor([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]])
        >>> paths, scores = forced_align(probs.log(), [[1, 2]])
        >>> paths.tolist(), round(scores.sum().exp().item(), 3)
        ([[1, 0, 2]], 0.336)
        >>> forced_align(probs[0].log(), [1, 3], star="any").positions.tolist()  # the star, 3, takes what is left
        [0, 1, 1]
    """
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    return _align("forced_align", pose_ctc, arguments, _positions_in_ctc, star, impl)


def simple_ctc_align(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    batch_first: bool = True,
    impl: str = "auto",
) -> Alignment:
    """The most probable path of simplified CTC: each label on one frame of its own, blanks elsewhere.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths`` and ``scores`` (N, T), and the attribute ``positions`` (N, T), as in ``forced_align``.

    Raises:
        InvalidValueError: As in ``forced_align``.
        InvalidTypeError: As in ``forced_align``.

    Notes:
        Ties, cost and the treatment of targets that do not fit are those of ``forced_align``: every label is emitted
        as early as the best score allows.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_align
        >>> probs = torch.tensor([[[0.1, 0.9], [0.3, 0.7], [0.8, 0.2]]])
        >>> simple_ctc_align(probs.log(), [[1, 1]]).paths.tolist()
        [[1, 1, 0]]
        >>> simple_ctc_align(probs.log(), [[1, 1]]).positions.tolist()
        [[0, 1, -1]]
    """
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    return _align("simple_ctc_align", pose_simple_ctc, arguments, _positions_in_simple_ctc, None, impl)


def _align(
    function: str,
    pose: Callable[..., ChainLattice],
    arguments: tuple[Any, Integers, Integers | int | None, Integers | int | None, int, bool],
    positions_of: Callable[[Tensor], Tensor],
    star: str | None,
    impl: str,
) -> Alignment:
    scores, lattice, batched = check_chain(function, pose, *arguments, star=star)
    kernels = kernels_of(dispatch.select(function, scores.device.type, impl), "chain")
    found = kernels.best(Call((scores.detach(), None), lattice, ChainOptions()))
    paths = labels_of(found.states, lattice).to(path_dtype(arguments[1]))
    positions = torch.where(found.states < 0, -1, positions_of(found.states))
    return Alignment(*of_samples(batched, paths, _frame_scores(scores, found, lattice), positions))


def _positions_in_ctc(states: Tensor) -> Tensor:
    """The labels' states are the odd ones."""
    return torch.where(states % 2 == 1, states // 2, -1)


def _positions_in_simple_ctc(states: Tensor) -> Tensor:
    """States count the labels so far: a frame belongs to one where it makes the count greater."""
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    return torch.where(states != before, states - 1, -1)


def path_dtype(targets: Integers) -> torch.dtype:
    """That of the targets where it is int32; int64 for all others, in which -1 and a star may not exist."""
    return torch.int32 if isinstance(targets, Tensor) and targets.dtype == torch.int32 else torch.int64


def _frame_scores(scores: Tensor, found: ChainPath, lattice: ChainLattice) -> Tensor:
    """(N, T) score of each frame's class, or what stands for it, differentiable by the scores."""
    labels = labels_of(found.states, lattice)
    own = scores.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    instead = torch.where(real_frames(lattice.input_lengths, scores), found.log_probs[:, None].to(scores.dtype), 0)
    return torch.where(labels >= 0, own, instead)
