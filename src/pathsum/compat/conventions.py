"""Conventions that several peers share and ``pathsum.torch`` does not have, written with its public functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.compat import doors
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.options import REDUCTIONS
from pathsum.reductions import reduce
from pathsum.torch import rnnt_loss, rnnt_packed_loss

Integers = Tensor | Sequence[int]
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensor(function: str, argument: str, value: Any) -> Tensor:
    """A dense tensor whose values are in memory as they are; a NumPy array is made one."""
    if isinstance(value, np.ndarray):
        value = doors.array(function, argument, value, torch.as_tensor)
    if not is_dense(value):
        kind = "meta" if isinstance(value, Tensor) and value.is_meta else _layout(value)
        raise InvalidTypeError(function, argument, "be a dense tensor that has values", kind)
    return value.resolve_neg()


def _layout(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested:
        return "a nested tensor"
    return "a quantised tensor" if value.is_quantized else f"a {str(value.layout).removeprefix('torch.')} tensor"


_RULES = doors.RULES | {"Tensor": tensor}


def checked(function: doors.Function) -> doors.Function:
    """``doors.checked``, with a rule for tensors."""
    return doors.checked(function, _RULES)


def check_floats(function: str, argument: str, scores: Tensor, axes: str) -> None:
    """Scores must be floats of so many axes, and have a row at least where rows of classes are the last."""
    if not scores.is_floating_point() or scores.dtype.itemsize < 2:
        raise InvalidTypeError(function, argument, "have a float dtype", scores.dtype)
    of_classes = axes.endswith(("C)", "V)"))
    if scores.ndim != axes.count(",") + 1 or (of_classes and not (scores.shape[-1] and scores.shape[-2])):
        raise InvalidValueError(function, argument, f"have shape {axes}", f"shape {tuple(scores.shape)}")


def check_size(function: str, argument: str, value: Tensor, sizes: tuple[int | None, ...], axes: str) -> None:
    """A tensor must have its rank, and the sizes that are given."""
    shape = tuple(value.shape)
    if len(shape) != len(sizes) or any(size not in (None, own) for size, own in zip(sizes, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise InvalidValueError(function, argument, f"have shape {axes} = ({wanted})", f"shape {shape}")


def check_class(function: str, argument: str, index: int, num_classes: int) -> int:
    """The index of a class, counted from the end where negative, as one in [0, C)."""
    if not -num_classes <= index < num_classes:
        raise InvalidValueError(function, argument, f"lie in [-C, C) with C = {num_classes}", index)
    return index % num_classes


def report(value: Tensor, source: Tensor) -> Tensor:
    """``value`` with the gradient of ``source``, of the same shape; none where the source is not finite."""
    return torch.where(source.isfinite(), value.detach() + (source - source.detach()), value.detach())


def reduced(function: str, losses: Tensor, reduction: str, weights: Any = None) -> Tensor:
    """``pathsum.reductions.reduce``, its option checked."""
    if reduction not in REDUCTIONS:
        raise InvalidValueError(function, "reduction", f"be one of {', '.join(REDUCTIONS)}", repr(reduction))
    return reduce(losses, reduction, weights)


def as_one(losses: Tensor, reduction: str | None) -> Tensor:
    """The reductions of warp-transducer and its ports: sum and mean over N have shape (1,), all else is none."""
    return reduce(losses, reduction).unsqueeze(-1) if reduction in ("sum", "mean") else losses


def bounded(scores: Tensor, clamp: float) -> Tensor:
    """The scores, their gradient bounded to [-clamp, clamp] behind the upstream gradient; as they are at clamp <= 0."""
    if clamp <= 0 or not scores.requires_grad:
        return scores
    scores, clamp = scores.view_as(scores), _finite(clamp, scores)
    scores.register_hook(lambda gradient: gradient.clamp(-clamp, clamp))
    return scores


def _finite(clamp: float, beside: Tensor) -> float:
    """The bound, or the largest number of a dtype where that is less."""
    return min(clamp, torch.finfo(beside.dtype).max)


def blanks_among(targets: Integers, target_lengths: Integers, blank: int) -> Tensor | None:
    """Which entries of the targets, their padding left out, are the blank; ``None`` where these are no targets and
    lengths, which the loss then says.
    """
    given = [_as_integers(values) for values in (targets, target_lengths)]
    labels, lengths = given
    if labels is None or lengths is None or labels.ndim not in (1, 2):
        return None
    if labels.ndim < 2:
        return labels == blank
    if lengths.shape != labels.shape[:1]:
        return None
    within = torch.arange(labels.shape[1], device=labels.device) < lengths.to(labels.device)[:, None]
    return (labels == blank) & within


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor of the plain kind, its values in memory."""
    is_plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    return is_plain and not (value.is_meta or value.is_quantized)


def _as_integers(values: Any) -> Tensor | None:
    """A tensor of integers, ``None`` of what is none."""
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values)
        except (RuntimeError, TypeError, ValueError):
            return None
    return values if is_dense(values) and values.dtype in INTEGERS else None


def blanks_apart(log_probs: Tensor, targets: Integers, is_blank: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities with one column more, a copy of the blank's, and targets that name it where they are the blank.

    So a target may have the blank among its labels, and its paths and their scores are the same.
    """
    scores = torch.cat([log_probs, log_probs[..., blank : blank + 1]], -1)
    return scores, torch.as_tensor(targets).masked_fill(is_blank, log_probs.shape[-1])


def transducer_losses(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    *,
    fused_log_softmax: bool = True,
    clamp: float = -1,
    arcs: str = "both",
    **options: Any,
) -> Tensor:
    """Losses (N,) of padded (N, T, U+1, V) or packed (rows, V) logits, the blank allowed among the labels.

    Args:
        logits: As in ``rnnt_loss`` or ``rnnt_packed_loss``.
        targets: As in ``rnnt_loss``.
        logit_lengths: As in ``rnnt_loss``.
        target_lengths: As in ``rnnt_loss``.
        blank: As in ``rnnt_loss``.
        fused_log_softmax: As in ``rnnt_loss``.
        clamp: As in ``rnnt_loss``; where a label is the blank, of padded logits only.
        arcs: Where a label is the blank, whose gradients its column gets: ``"both"``; ``"label"``, the label's alone;
            ``"blank"``, the softmax's of both and else the blank's alone, but in the last frame. Padded logits only.
        options: Further options of ``rnnt_loss``.
    """
    loss: Callable[..., Tensor] = rnnt_loss if not is_dense(logits) or logits.ndim == 4 else rnnt_packed_loss
    num_classes = logits.shape[-1] if is_dense(logits) and logits.ndim else 0
    is_class = isinstance(blank, Integral) and -num_classes <= blank < num_classes
    column = int(blank) % num_classes if is_class else blank
    # What is wrong is passed on as it is: the loss says so.
    is_blank = blanks_among(targets, target_lengths, column) if is_class else None
    if is_blank is not None and is_blank.any():
        log_probs = logits.log_softmax(-1) if fused_log_softmax else logits
        scores, targets = blanks_apart(log_probs, targets, is_blank, column)
        if arcs != "both":
            if is_blank.ndim < 2:
                rule = "have shape (N, U) where the blank is among them"
                raise InvalidValueError("rnnt_loss", "targets", rule, f"shape {tuple(is_blank.shape)}")
            # The label u leaves the nodes (t, u); no label leaves those of the last u.
            doubled = torch.nn.functional.pad(is_blank, (0, logits.shape[2] - is_blank.shape[1]))[:, None, :, None]
            doubled = doubled.to(scores.device)
            if arcs == "label":
                is_column = torch.arange(scores.shape[-1], device=scores.device) == column
                scores = torch.where(doubled & is_column, scores.detach(), scores)
            else:
                frames = torch.arange(logits.shape[1], device=scores.device)[:, None, None]
                last = torch.as_tensor(logit_lengths, device=scores.device)[:, None, None, None] - 1
                own = logits[..., column, None]
                # Adds nothing to the copy, and takes from its gradient what goes to the logit itself.
                nothing = torch.where(doubled & (frames < last) & own.isfinite(), own.detach() - own, 0.0)
                scores = torch.cat([scores[..., :-1], scores[..., -1:] + nothing], -1)
        options |= {"fused_log_softmax": False}
    else:
        scores = logits
        options |= {"fused_log_softmax": fused_log_softmax, "clamp": clamp}
    lengths = logit_lengths, target_lengths
    losses = loss(scores, targets, *lengths, blank=column, reduction="none", **options)
    return losses if scores is logits or clamp <= 0 else _clamped(losses, logits, clamp)


def _clamped(losses: Tensor, logits: Tensor, clamp: float) -> Tensor:
    """Losses (N,) whose gradient by the logits (N, T, U+1, V) is clamped before the upstream gradient multiplies it."""
    if not losses.requires_grad:
        return losses
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    clamp = _finite(clamp, gradient)
    gradient = gradient.clamp(-clamp, clamp)
    # -inf, and whatever is in the padding, has the gradient 0.
    linear = torch.where(gradient == 0, 0.0, logits) * gradient
    return report(losses, linear.sum((1, 2, 3)).to(losses.dtype))
