"""What the public functions do to their arguments alike, and to the losses at last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.lattice import GridLattice
from pathsum.problems.rnnt import pose_rnnt
from pathsum.torch._bounded import CHECKS, bounded_batch, stay_unread
from pathsum.torch.joiner import ACTIVATIONS, Joiner

Integers = Tensor | Sequence[int]

# The layouts of a transducer's logits.
PADDED, PACKED = "(N, T, U+1, V)", "(rows, V)"


def dtype_of(scores: Any) -> str:
    return str(scores.dtype).removeprefix("torch.") if isinstance(scores, Tensor) else type(scores).__name__


def shape_of(scores: Any) -> tuple[int, ...]:
    return tuple(scores.shape) if isinstance(scores, Tensor) else ()


def as_integers(function: str, argument: str, value: Any) -> np.ndarray:
    """A tensor, array or list of integers as an array, its memory shared where it can be."""
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int32, torch.int64):
            raise InvalidTypeError(function, argument, "have dtype int32 or int64", dtype_of(value))
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InvalidValueError(function, argument, "be a rectangular array of integers", value) from error


def listed(length: Any) -> Any:
    """The length of one sample as lengths (1,); lengths (N,) as they are."""
    if isinstance(length, Tensor):
        return length.reshape(1) if length.ndim == 0 else length
    return np.atleast_1d(length)


def check_table(function: str, argument: str, table: Any, scores: Tensor, axes: str) -> None:
    expected = (scores.shape[2],) * (axes.count("C"))
    _checks.check_table(function, argument, dtype_of(table), shape_of(table), axes, expected, dtype_of(scores))
    _checks.check_device(function, argument, str(table.device), str(scores.device))


def check_joiner(function: str, joiner: Joiner) -> None:
    operands = joiner.operands
    names = ("encoder_out", "predictor_out", "weight", "bias")
    for name, operand, axes in zip(names, operands, ("(N, T, H)", "(N, U+1, H)", "(V, H)", "(V)"), strict=True):
        _checks.check_scores(function, name, dtype_of(operand), shape_of(operand), (axes,))
        if operand.dtype != joiner.dtype or operand.device != joiner.device:
            rule = f"have encoder_out's dtype and device, {dtype_of(joiner.encoder_out)} on {joiner.device}"
            raise InvalidTypeError(function, name, rule, f"{dtype_of(operand)} on {operand.device}")
    num_samples, _, size = joiner.encoder_out.shape
    check_shape(function, "predictor_out", operands[1], (num_samples, None, size), "(N, U+1, H)")
    check_shape(function, "weight", operands[2], (None, size), "(V, H)")
    check_shape(function, "bias", operands[3], (len(operands[2]),), "(V)")
    _checks.check_option(function, "activation", joiner.activation, tuple(ACTIVATIONS))
    if joiner.gate is not None:
        _checks.check_number(function, "gate", joiner.gate, minimum=0.0)
    _checks.check_number(function, "tile_memory", joiner.tile_memory, minimum=1.0)


def check_shape(function: str, argument: str, tensor: Tensor, sizes: tuple[int | None, ...], axes: str) -> None:
    """The sizes that are given must be the tensor's."""
    if any(size is not None and size != actual for size, actual in zip(sizes, tensor.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise InvalidValueError(function, argument, f"have shape {axes} = ({wanted})", f"shape {tuple(tensor.shape)}")


def batch_of(
    function: str,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    scores: Tensor,
    check: str,
    *,
    rows_of: str = "logits",
    num_rows: int | None = None,
    **sizes: Any,
) -> tuple[_checks.Batch, Tensor | None]:
    """The integers of a call, their values checked; or, where those are on the scores' device and ``check`` is
    ``"async"``, bounded there, and whether each sample broke a rule.
    """
    _checks.check_option(function, "check", check, CHECKS)
    if stay_unread((targets, input_lengths, target_lengths), scores, check):
        return bounded_batch(
            function, targets, input_lengths, target_lengths, device=scores.device, num_rows=num_rows, **sizes
        )
    batch = _checks.check_batch(
        function,
        as_integers(function, "targets", targets),
        as_integers(function, sizes["lengths_name"], input_lengths),
        as_integers(function, "target_lengths", target_lengths),
        **sizes,
    )
    if num_rows is not None:
        rows = int((batch.input_lengths * (batch.target_lengths + 1)).sum())
        _checks.check_packed_rows(function, num_rows, rows, rows_of)
    return batch, None


def pose_grid(
    function: str,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    *,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
) -> GridLattice:
    blank = _checks.check_blank(function, blank, num_classes)
    batch = _checks.check_batch(
        function,
        as_integers(function, "targets", targets),
        as_integers(function, "logit_lengths", logit_lengths),
        as_integers(function, "target_lengths", target_lengths),
        lengths_name="logit_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank,
    )
    return pose_rnnt(*batch, blank)


def pose_logits(
    function: str,
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    *,
    argument: str = "logits",
    layouts: tuple[str, ...] = (PADDED, PACKED),
) -> GridLattice:
    """The grid of logits in one of the layouts, all checked."""
    return pose_unread_logits(
        function, logits, targets, logit_lengths, target_lengths, blank, "sync", argument=argument, layouts=layouts
    )[0]


def pose_unread_logits(
    function: str,
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    check: str,
    *,
    argument: str = "logits",
    layouts: tuple[str, ...],
) -> tuple[GridLattice, Tensor | None]:
    """The grid of logits; where ``batch_of`` does not look at the integers, also which samples broke a rule."""
    _checks.check_scores(function, argument, dtype_of(logits), shape_of(logits), layouts)
    padded = logits.ndim == 4
    if padded and logits.shape[2] < 1:
        raise InvalidValueError(function, argument, f"have shape {PADDED}", f"shape {tuple(logits.shape)}")
    blank = _checks.check_blank(function, blank, logits.shape[-1])
    batch, undefined = batch_of(
        function,
        targets,
        logit_lengths,
        target_lengths,
        logits,
        check,
        rows_of=argument,
        lengths_name="logit_lengths",
        num_samples=logits.shape[0] if padded else None,
        num_frames=logits.shape[1] if padded else None,
        max_labels=logits.shape[2] - 1 if padded else None,
        num_classes=logits.shape[-1],
        blank=blank,
        num_rows=None if padded else logits.shape[0],
    )
    return pose_rnnt(*batch, blank), undefined


def on_device(lattice: Any, device: torch.device) -> Any:
    """The lattice with its arrays as tensors of a device, those that are one array still one."""
    moved: dict[int, Any] = {}
    for value in vars(lattice).values():
        if id(value) not in moved:
            moved[id(value)] = _sent(value, device) if isinstance(value, np.ndarray) else value
    return type(lattice)(**{name: moved[id(value)] for name, value in vars(lattice).items()})


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    # From pinned memory the copy waits in the device's queue, and nobody here waits for it.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def finish(losses: Tensor, scores: Tensor | Joiner, zero_infinity: bool, undefined: Tensor | None = None) -> Tensor:
    """Losses in the dtype of the result, infeasible ones as asked for, NaN where a sample is not defined."""
    if undefined is not None:
        # A product, so that the gradient of these samples is NaN too.
        losses = losses * torch.where(undefined, torch.nan, 1.0)
    losses = losses.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    return torch.where(losses == torch.inf, 0.0, losses) if zero_infinity else losses
