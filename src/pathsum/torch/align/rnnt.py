"""The transducer's best walk."""

from __future__ import annotations

from torch import Tensor

from pathsum.options import RNNTType, TorchImpl
from pathsum.torch._inputs import PADDED, SINGLE, Integers
from pathsum.torch.paths.grid import RNNTAlignment
from pathsum.torch.paths.rnnt import grid_paths


def rnnt_align(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    rnnt_type: RNNTType = "regular",
    impl: TorchImpl = "auto",
) -> RNNTAlignment:
    """The most probable walk of a transducer that spells the target: the frame of every label.

    Args:
        logits: Output of the joiner (N, T, U+1, V), or (T, U+1, V) for one sample; with ``fused_log_softmax=False``
            log-probabilities.
        targets: Labels (N, U), or (sum of target_lengths,) one target after another.
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        rnnt_type: As in ``rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``frames`` (N, U), ``scores`` (N, U) and ``log_probs`` (N,), the scores float64 for float64 logits and float32
        for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: As in ``rnnt_loss``.

    Notes:
        Ties: every label is emitted in the earliest frame that the best score allows. A sample without frames, or
        whose every walk is impossible, has frames -1 and scores -inf.

        Where the joiner's blank and label log-probabilities are at hand as two planes (N, T, U+1), give
        ``torch.stack([blanks, labels], 3)`` with targets of ones, ``blank=0`` and ``fused_log_softmax=False``.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_align
        >>> probs = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [0.7, 0.3]]]])  # 2 frames, 1 label
        >>> frames, scores, log_probs = rnnt_align(probs.log(), [[1]], [2], [1], blank=0)
        >>> frames.tolist(), [round(p, 3) for p in log_probs.exp().tolist()]
        ([[1]], [0.504])
    """
    paths = grid_paths(
        "rnnt_align", logits, targets, logit_lengths, target_lengths, blank, layouts=(PADDED, SINGLE),
        fused_log_softmax=fused_log_softmax, rnnt_type=rnnt_type, impl=impl,
    )  # fmt: skip
    return paths.best()
