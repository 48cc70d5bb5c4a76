"""``warp_rnnt.rnnt_loss`` (1ytic), on any device.

The peer's quirks that are kept: it takes log-probabilities and returns the losses unreduced by default; ``gather`` only
saves memory, and here there is nothing to save; FastEmit multiplies gradients, not the loss; packed input is computed
in float32. Not kept: where its two passes disagree the peer averages them, prints a warning and drops the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pathsum.compat.conventions import Integers, checked, reduced, transducer_losses


@checked
def rnnt_loss(
    log_probs: Tensor,
    labels: Integers,
    frames_lengths: Integers,
    labels_lengths: Integers,
    average_frames: bool = False,
    reduction: Literal["none", "mean", "sum"] | None = "none",
    blank: int = 0,
    gather: bool = False,
    fastemit_lambda: float = 0.0,
    compact: bool = False,
    *,
    impl: str = "auto",
) -> Tensor:
    """``warp_rnnt.rnnt_loss``.

    Args:
        log_probs: Log-probabilities (N, T, U+1, V); with ``compact`` (sum of T_n*(U_n+1), V).
        labels: Labels (N, U); with ``compact`` (sum of U_n,).
        frames_lengths: Frames of each sample (N,).
        labels_lengths: Labels of each sample (N,).
        average_frames: Divide each loss by its frames.
        reduction: ``"none"`` or ``None``, ``"sum"`` or ``"mean"``.
        blank: Index of the blank class.
        gather: Ignored: it changes no number.
        fastemit_lambda: As in ``pathsum.torch.rnnt_loss``.
        compact: The input is packed.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        The reduced loss.

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.warp_rnnt import rnnt_loss
        >>> log_probs = torch.zeros(1, 2, 2, 2).log_softmax(-1)
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> [round(x, 4) for x in rnnt_loss(log_probs, torch.tensor([[1]]), *lengths, average_frames=True).tolist()]
        [0.6931]
    """
    losses = transducer_losses(
        log_probs.float() if compact else log_probs,
        labels,
        frames_lengths,
        labels_lengths,
        blank,
        fused_log_softmax=False,
        fastemit_lambda=fastemit_lambda,
        impl=impl,
    )
    if average_frames:
        losses = losses / torch.as_tensor(frames_lengths).to(losses)
    return reduced("rnnt_loss", losses, reduction or "none")


PLACES = {"warp_rnnt": {"rnnt_loss": rnnt_loss}}
