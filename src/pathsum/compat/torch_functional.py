"""``torch.nn.functional.ctc_loss`` and ``torch.nn.CTCLoss``.

The peer's quirks that are kept: the gradient by ``log_probs`` is that by the logits behind them; the blank may be among
the labels; labels of any dtype are made integers, fractions cut off; lengths are of any integer dtype and of any shape
with N entries; the ``grad_fn`` of unreduced losses may be called with their gradient and returns that by ``log_probs``,
NaN where no labelling fits, as code that looks for such samples (ESPnet's ``builtin2``) expects of it. Not kept: where
no labelling fits, the peer's gradient is NaN in a backward pass too, and here 0; where the last label is the blank,
the peer's gradient in the last frame lacks a share; labels out of range read foreign memory there and raise here; the
peer knows no half precision, and no second derivative, which here ``corrected=True`` has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pathsum.compat.conventions import Integers, blanks_among, blanks_apart, checked, reduced, report, tensor
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.torch.paths.ctc import CTC, chain_paths


@checked
def ctc_loss(
    log_probs: Tensor,
    targets: Integers,
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
        targets: Labels (N, S) or (sum of target_lengths,) of any dtype, the blank allowed.
        input_lengths: Frames of each sample, N integers.
        target_lengths: Labels of each sample, N integers.
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
    targets = _integers("targets", targets).to(torch.int64)
    input_lengths, target_lengths = _lengths("input_lengths", input_lengths), _lengths("target_lengths", target_lengths)
    scores, labels = log_probs, targets
    num_classes = log_probs.shape[-1] if log_probs.ndim else 0
    is_class = -num_classes <= blank < num_classes
    is_blank = blanks_among(targets, target_lengths, blank) if is_class else None
    apart = is_blank is not None and bool(is_blank.any())
    if is_blank is not None and apart:
        scores, labels = blanks_apart(log_probs, targets, is_blank, blank)
    try:
        paths = chain_paths(
            "ctc_loss", CTC, scores, labels, input_lengths, target_lengths, blank, batch_first=False, check="async",
            impl=impl,
        )  # fmt: skip
    except (InvalidTypeError, InvalidValueError) as error:
        raise RuntimeError(str(error)) from error
    # The kernels know the columns of their scores, one too many where the blank's has a copy; the reference knows none.
    paths.by_logits = paths.kernels.own_derivatives and not (corrected or apart)
    losses = paths.loss("none").to(torch.promote_types(scores.dtype, torch.float32))
    if not (corrected or paths.by_logits) and torch.is_grad_enabled():
        losses = report(losses, losses + _mass(log_probs, input_lengths))
    traced = torch.compiler.is_compiling()
    if reduction == "none" and log_probs.ndim == 3 and losses.requires_grad and not (corrected or traced):
        losses = _Unreduced.apply(losses, (losses, log_probs))
        type(losses.grad_fn).__call__ = _called_by_hand
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0.0, losses)
    return reduced("ctc_loss", losses, reduction, target_lengths.clamp(min=1).to(losses).view_as(losses))


def _integers(argument: str, values: Any) -> Tensor:
    """Numbers of any dtype as a tensor."""
    try:
        return tensor("ctc_loss", argument, values if isinstance(values, np.ndarray) else torch.as_tensor(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise RuntimeError(f"ctc_loss: {argument} must be a tensor of integers; got {values!r}") from error


def _lengths(argument: str, lengths: Integers) -> Tensor:
    """Lengths of an integer dtype as int64 (N,); all else is refused where the others are checked."""
    lengths = _integers(argument, lengths).reshape(-1)
    is_integer = not (lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex())
    return lengths.to(torch.int64) if is_integer else lengths


class _Unreduced(torch.autograd.Function):
    """Losses (N,) as they are, on a node of their own, which holds what ``_called_by_hand`` needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(losses: Tensor, held: tuple[Tensor, Tensor]) -> Tensor:
        return losses.view_as(losses)

    @staticmethod
    def setup_context(node: Any, inputs: tuple[Tensor, tuple[Tensor, Tensor]], output: Tensor) -> None:
        node.held = inputs[1]

    @staticmethod
    def backward(node: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def jvp(node: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


def _called_by_hand(node: Any, gradient: Tensor) -> Tensor:
    """What the peer's node returns where it is called outside of a backward pass: the gradient by the scores.

    A backward pass calls the node's ``apply`` instead, and gets 0 where no labelling fits.
    """
    losses, log_probs = node.held
    (by_scores,) = torch.autograd.grad(losses, log_probs, gradient, retain_graph=True)
    return by_scores.masked_fill((losses == torch.inf)[:, None], torch.nan)


def _mass(log_probs: Tensor, input_lengths: Tensor) -> Tensor:
    """The probabilities of all classes, summed over the frames of each sample: its gradient is the probabilities."""
    lengths = input_lengths.to(log_probs.device).view(log_probs.shape[1:-1])
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
