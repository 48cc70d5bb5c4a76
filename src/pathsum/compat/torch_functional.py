"""``torch.nn.functional.ctc_loss`` and ``torch.nn.CTCLoss``.

The peer's quirks that are kept: the gradient by ``log_probs`` is that by the logits behind them; the blank may be among
the labels. Not kept: where no labelling fits, the peer's gradient is NaN and here 0; where the last label is the blank,
the peer's gradient in the last frame lacks a share; labels out of range read foreign memory there and raise here; the
peer knows no half precision, and no second derivative, which here ``corrected=True`` has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathsum.compat.conventions import Integers, blanks_among, blanks_apart, reduced, report
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.problems.ctc import pose_ctc
from pathsum.torch.ctc import pose_chain


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    corrected: bool = False,
    impl: str = "auto",
) -> Tensor:
    """``torch.nn.functional.ctc_loss``.

    Args:
        log_probs: Log-probabilities (T, N, C) or (T, C).
        targets: Labels (N, S) or (sum of target_lengths,), the blank allowed.
        input_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank class.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each loss divided by its target length (at least 1), then the
            mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        corrected: The true gradient by ``log_probs``, which saves a pass over them and can be differentiated. After a
            ``log_softmax`` both give the same.
        impl: As in ``pathsum.torch.ctc_loss``.

    Returns:
        The reduced loss.

    Raises:
        RuntimeError: Lengths, labels, a dtype that ``pathsum.torch.ctc_loss`` refuses too.
        InvalidValueError: Another reduction, a ``ValueError`` as in the peer.

    Notes:
        The gradient by ``log_probs[t, n, c]`` is ``exp(log_probs[t, n, c])`` minus the posterior of class c, 0 in
        padding.

    Example:
        >>> import torch
        >>> from pathsum.compat.torch_functional import ctc_loss
        >>> log_probs = torch.zeros(3, 1, 2).log_softmax(2).requires_grad_()
        >>> ctc_loss(log_probs, torch.tensor([[1]]), [3], [1], reduction="sum").backward()
        >>> log_probs.grad.sum().abs().item() < 1e-6  # as the logits' gradient does, it sums to 0
        True
    """
    scores, labels = log_probs, targets
    is_blank = blanks_among(targets, target_lengths, blank)
    apart = bool(is_blank.any())
    if apart:
        scores, labels = blanks_apart(log_probs, targets, is_blank, blank)
    try:
        posed = pose_chain(
            "ctc_loss", pose_ctc, scores, labels, input_lengths, target_lengths, blank, "none", False, impl,
            check="async",
        )  # fmt: skip
    except (InvalidTypeError, InvalidValueError) as error:
        raise RuntimeError(str(error)) from error
    # The kernels know the columns of their scores, one too many where the blank's has a copy; the reference knows none.
    by_logits = not (corrected or apart or posed.impl == "reference")
    losses = posed.reduce(posed.solve(posed.scores, logits=False, by_logits=by_logits), "none")
    losses = losses.to(torch.promote_types(scores.dtype, torch.float32))
    if not (corrected or by_logits) and torch.is_grad_enabled():
        losses = report(losses, losses + _mass(log_probs, input_lengths))
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0.0, losses)
    return reduced(
        "ctc_loss", losses, reduction, torch.as_tensor(target_lengths).clamp(min=1).to(losses).view_as(losses)
    )


def _mass(log_probs: Tensor, input_lengths: Integers) -> Tensor:
    """The probabilities of all classes, summed over the frames of each sample: its gradient is the probabilities."""
    lengths = torch.as_tensor(input_lengths, device=log_probs.device).view(log_probs.shape[1:-1])
    frames = torch.arange(len(log_probs), device=log_probs.device).view(-1, *[1] * lengths.ndim)
    return log_probs.masked_fill((frames >= lengths)[..., None], -torch.inf).exp().sum((0, -1))


class CTCLoss(nn.CTCLoss):
    """``torch.nn.CTCLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torch_functional import CTCLoss
        >>> log_probs, target = torch.zeros(3, 1, 2).log_softmax(2), torch.tensor([[1]])
        >>> round(CTCLoss(reduction="sum")(log_probs, target, [3], [1]).item(), 4)
        0.2877
    """

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Integers, target_lengths: Integers) -> Tensor:
        options = {"blank": self.blank, "reduction": self.reduction, "zero_infinity": self.zero_infinity}
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, **options)


# torch.nn.CTCLoss calls the function by this place.
PLACES = {"torch.nn.functional": {"ctc_loss": ctc_loss}}
