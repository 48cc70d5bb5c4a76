"""CTC's and simplified CTC's best paths."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pathsum.options import Star, TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.paths.ctc import CTC, SIMPLE_CTC, chain_paths
from pathsum.torch.paths.frames import Alignment


def forced_align(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    star: Star | None = None,
    batch_first: bool = True,
    impl: TorchImpl = "auto",
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
    paths = chain_paths(
        "forced_align", CTC, log_probs, targets, input_lengths, target_lengths, blank, star=star,
        batch_first=batch_first, known=True, impl=impl,
    )  # fmt: skip
    return paths.best()


def simple_ctc_align(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    star: Star | None = None,
    batch_first: bool = True,
    impl: TorchImpl = "auto",
) -> Alignment:
    """The most probable path of simplified CTC: each label on one frame of its own, blanks elsewhere.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        star: What the label C stands for in targets, as in ``forced_align``: here one frame; ``None``: no such label.
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
    paths = chain_paths(
        "simple_ctc_align", SIMPLE_CTC, log_probs, targets, input_lengths, target_lengths, blank,
        star=star, batch_first=batch_first, known=True, impl=impl,
    )  # fmt: skip
    return paths.best()
