"""``torchaudio.functional.rnnt_loss`` and ``forced_align``, ``torchaudio.transforms.RNNTLoss``.

The peer's quirks that are kept: the mean is over N, lengths not counted; the loss of half precision has its dtype;
``clamp`` acts before the upstream gradient; the blank may be among the labels of ``rnnt_loss``, where its column
lacks the label's share of the gradient but in the last frame; a target that does not fit stops ``forced_align``. Not
kept: the loss of an infeasible sample is infinity with gradient 0, where the peer has NaN or, without frames, what
was in memory; ``clamp`` bounds both sides on every device; T and U need not be reached, integers may be int64, scores
float64 and strided; ``forced_align`` takes any number of samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathsum import torch as pathsum_torch
from pathsum.compat.conventions import Integers, reduced, transducer_losses


def rnnt_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    corrected: bool = False,
    impl: str = "auto",
) -> Tensor:
    """``torchaudio.functional.rnnt_loss``.

    Args:
        logits: Joiner output (N, T, U+1, V); log-probabilities with ``fused_log_softmax=False``.
        targets: Labels (N, U), the blank allowed.
        logit_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank class; negative counts from the end.
        clamp: As in ``pathsum.torch.rnnt_loss``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        fused_log_softmax: Take the log-softmax inside.
        corrected: The loss of half precision is float32; a blank among the labels gets the gradients of both its arcs.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        The reduced loss, in the dtype of ``logits``.

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import rnnt_loss
        >>> logits = torch.zeros(1, 2, 2, 2)
        >>> round(rnnt_loss(logits, torch.tensor([[0]]), torch.tensor([2]), torch.tensor([1])).item(), 4)
        1.3863
    """
    losses = transducer_losses(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        clamp=clamp,
        fused_log_softmax=fused_log_softmax,
        arcs="both" if corrected else "blank",
        impl=impl,
    )
    return reduced("rnnt_loss", losses if corrected else losses.to(logits.dtype), reduction)


class RNNTLoss(nn.Module):
    """``torchaudio.transforms.RNNTLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import RNNTLoss
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(RNNTLoss(blank=0)(torch.zeros(1, 2, 2, 2), *integers).item(), 4)
        1.3863
    """

    def __init__(
        self, blank: int = -1, clamp: float = -1.0, reduction: str = "mean", fused_log_softmax: bool = True
    ) -> None:
        super().__init__()
        self.blank = blank
        self.clamp = clamp
        self.reduction = reduction
        self.fused_log_softmax = fused_log_softmax

    def forward(self, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers) -> Tensor:
        options = (self.blank, self.clamp, self.reduction, self.fused_log_softmax)
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, *options)


def forced_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    corrected: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``torchaudio.functional.forced_align``.

    Args:
        log_probs: Log-probabilities (N, T, C), any N.
        targets: Labels (N, L).
        input_lengths: Frames of each sample (N,); T where ``None``.
        target_lengths: Labels of each sample (N,); L where ``None``.
        blank: Index of the blank class.
        corrected: A target that does not fit has the path -1 instead of stopping the whole call.
        impl: As in ``pathsum.torch.forced_align``.

    Returns:
        Paths (N, T), the class of each frame, and scores (N, T), its log-probability.

    Raises:
        RuntimeError: A target does not fit in its frames.
        InvalidValueError: As in ``pathsum.torch.forced_align``.

    Notes:
        Where two paths score the same the peer may return one that is not the best: see ``pathsum.torch.forced_align``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import forced_align
        >>> probs = torch.tensor([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]])
        >>> forced_align(probs.log(), torch.tensor([[1, 2]]))[0].tolist()
        [[1, 0, 2]]
    """
    paths, scores = pathsum_torch.forced_align(log_probs, targets, input_lengths, target_lengths, blank, impl=impl)
    if not corrected:
        # A path of NaN scores is -1 too, but there is one.
        without = (paths == -1).all(1) & (scores == -torch.inf).any(1)
        if without.any():
            raise RuntimeError(f"targets length is too long for CTC, at sample {int(without.nonzero()[0])}")
    return paths, scores


PLACES = {
    "torchaudio.functional": {"rnnt_loss": rnnt_loss, "forced_align": forced_align},
    "torchaudio.transforms": {"RNNTLoss": RNNTLoss},
}
