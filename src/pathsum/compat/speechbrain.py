"""SpeechBrain's ``Transducer`` and ``TransducerLoss``, on any device.

The peer's quirks that are kept: each loss is divided by its frames, its gradient is not; nor is the gradient of the
mean divided by N. So a step goes as far as one of the plain sum, whatever is reported. Where a label is the blank, its
column gets the gradient of the label's arc alone. ``corrected=True`` makes loss and gradient agree: the negative
log-likelihood, undivided, the mean over N, and both arcs. Not kept: the peer runs on CUDA alone, a thread for each u.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathsum.compat.conventions import Integers, checked, reduced, report, transducer_losses


@checked
def transducer_loss(
    log_probs: Tensor,
    labels: Integers,
    T: Integers,
    U: Integers,
    blank: int,
    reduction: str,
    *,
    corrected: bool = False,
    impl: str = "auto",
) -> Tensor:
    """What ``Transducer.apply`` computes.

    Args:
        log_probs: Log-probabilities (N, T, U+1, V).
        labels: Labels (N, U).
        T: Frames of each sample (N,).
        U: Labels of each sample (N,).
        blank: Index of the blank class.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        corrected: See the head of this module.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        The reduced loss.

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.speechbrain import transducer_loss
        >>> log_probs = torch.zeros(1, 2, 2, 2).log_softmax(-1).requires_grad_()
        >>> loss = transducer_loss(log_probs, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]), 0, "mean")
        >>> loss.backward()
        >>> round(loss.item(), 4), round(-log_probs.grad.sum().item(), 4)  # 1.3863 / 2 frames; 3 arcs a walk
        (0.6931, 3.0)
    """
    losses = transducer_losses(
        log_probs, labels, T, U, blank, fused_log_softmax=False, arcs="both" if corrected else "label", impl=impl
    )
    return _reported(losses, T, reduction, corrected)


def _reported(losses: Tensor, T: Integers, reduction: str, corrected: bool) -> Tensor:
    if not corrected:
        # What the mean will divide by N is N times as much.
        scale = len(losses) if reduction == "mean" else 1
        losses = report(losses / torch.as_tensor(T).to(losses), losses * scale)
    return reduced("Transducer", losses, reduction)


class Transducer:
    """``speechbrain.integrations.numba.transducer_loss.Transducer``: ``apply`` is ``transducer_loss``."""

    apply = staticmethod(transducer_loss)


class TransducerLoss(nn.Module):
    """``speechbrain.integrations.numba.transducer_loss.TransducerLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.speechbrain import TransducerLoss
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(TransducerLoss()(torch.zeros(1, 2, 2, 2), *integers).item(), 4)
        0.6931
    """

    @checked
    def __init__(self, blank: int = 0, reduction: str = "mean", *, corrected: bool = False) -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction
        self.corrected = corrected

    @checked
    def forward(self, logits: Tensor, labels: Integers, T: Integers, U: Integers) -> Tensor:
        # The log-softmax inside saves two copies of the logits.
        losses = transducer_losses(logits, labels, T, U, self.blank, arcs="both" if self.corrected else "label")
        return _reported(losses, T, self.reduction, self.corrected)


_NAMES = {"Transducer": Transducer, "TransducerLoss": TransducerLoss}
# The second is where the loss was before version 1.1.
PLACES = {
    "speechbrain.integrations.numba.transducer_loss": _NAMES,
    "speechbrain.nnet.loss.transducer_loss": _NAMES,
}
