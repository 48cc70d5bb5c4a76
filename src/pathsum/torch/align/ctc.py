"""CTC's and simplified CTC's best paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum import dispatch
from pathsum.kernels.protocol import ChainPath
from pathsum.lattice import ChainLattice
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._batch_first import pose_chain, real_frames
from pathsum.torch._inputs import Integers
from pathsum.torch.align._chain import best_path, labels_of


class Alignment(NamedTuple):
    """A path through the frames of each sample.

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame; 0 in padding, -inf in the frames of a sample that has no
            path and NaN in those of a sample with a NaN score, so that the sum over frames is the path's own score.
    """

    paths: Tensor
    scores: Tensor


def forced_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    impl: str = "auto",
) -> Alignment:
    """The most probable CTC path that spells the target: the class of every frame.

    Args:
        log_probs: Log-probabilities (N, T, C). float32, float64, bfloat16 or float16, any strides.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. int32 or int64, a tensor on any
            device or a list. Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths`` (N, T), in the integer dtype of ``targets`` where they are a tensor, and ``scores`` (N, T), in the
        dtype of ``log_probs``, differentiable with respect to them.

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
    """
    return _align("forced_align", pose_ctc, log_probs, targets, input_lengths, target_lengths, blank, impl)


def simple_ctc_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    impl: str = "auto",
) -> Alignment:
    """The most probable path of simplified CTC: each label on one frame of its own, blanks elsewhere.

    Args:
        log_probs: Log-probabilities (N, T, C).
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``paths`` and ``scores`` (N, T) as in ``forced_align``.

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
    """
    return _align("simple_ctc_align", pose_simple_ctc, log_probs, targets, input_lengths, target_lengths, blank, impl)


def _align(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int,
    impl: str,
) -> Alignment:
    lattice = pose_chain(function, pose, log_probs, targets, input_lengths, target_lengths, blank)
    found = best_path(log_probs, lattice, None, dispatch.select(function, log_probs.device.type, impl))
    dtype = targets.dtype if isinstance(targets, Tensor) else torch.int64
    return Alignment(labels_of(found.states, lattice).to(dtype), _frame_scores(log_probs, found, lattice))


def _frame_scores(scores: Tensor, found: ChainPath, lattice: ChainLattice) -> Tensor:
    """(N, T) score of each frame's class, or what stands for it, differentiable by the scores."""
    labels = labels_of(found.states, lattice)
    own = scores.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    instead = torch.where(real_frames(lattice.input_lengths, scores), found.log_probs[:, None].to(scores.dtype), 0)
    return torch.where(labels >= 0, own, instead)
