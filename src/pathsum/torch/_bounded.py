"""Integers that are on the device of the scores: bounded there, not looked at from here.

A check of their values would wait for the device. In its place every length and label is brought into its range, so
that nothing is read out of bounds. A sample where that changed something gets lengths of -1, by which the kernels know
that its loss is NaN. Shapes and dtypes are checked as everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.protocol import Kernels
from pathsum.options import CHECKS, Check


def unread_on(function: str, check: Check, kernels: Kernels, scores: Tensor, *integers: Any) -> torch.device | None:
    """The device that integers stay on, not looked at; None where they are checked as everywhere."""
    _checks.check_option(function, "check", check, CHECKS)
    on_device = any(isinstance(value, Tensor) and value.device.type != "cpu" for value in integers)
    return scores.device if check == "async" and kernels.reads_on_device and on_device else None


def bounded_batch(
    function: str,
    lengths_name: str,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    device: torch.device,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    blank: int | None,
    num_rows: int | None,
) -> _checks.Batch:
    """As ``_checks.check_batch``, on the device."""
    targets = _integers(function, "targets", targets, (1, 2), device)
    lengths = _integers(function, lengths_name, input_lengths, (1,), device)
    labels = _integers(function, "target_lengths", target_lengths, (1,), device)
    count = len(lengths) if num_samples is None else num_samples
    for name, given in ((lengths_name, lengths), ("target_lengths", labels)):
        if len(given) != count:
            raise InvalidValueError(function, name, f"have one entry a sample, N = {count}", f"{len(given)} entries")
    if targets.ndim == 2 and len(targets) != count:
        raise InvalidValueError(function, "targets", f"have one row a sample, N = {count}", f"{len(targets)} rows")

    most_frames = num_frames if num_rows is None else num_rows
    lengths, undefined = _bounded(lengths, most_frames, torch.zeros_like(lengths, dtype=torch.bool))
    labels, undefined = _bounded(labels, max_labels, undefined)
    # Before anything is added or multiplied: what wraps is out of bounds and looks as if it were not.
    labels, undefined = _bounded(labels, targets.shape[-1], undefined)
    if targets.ndim == 1:
        undefined = undefined | (labels.sum() != len(targets))
        # As many labels as frames and one more do not fit, nor do more of them.
        width = min(len(targets), (most_frames or 0) + 1 if max_labels is None else max_labels)
        position = (labels.cumsum(0) - labels)[:, None] + torch.arange(max(width, 1), device=device)
        padded = torch.cat([targets, targets.new_zeros(1)])[position.clamp(max=len(targets))]
        labels = labels.clamp(max=width)
    else:
        padded = targets if targets.shape[1] else targets.new_zeros(count, 1)
    used = torch.arange(padded.shape[1], device=device) < labels[:, None]
    wrong = used & ((padded < 0) | (padded >= num_classes))
    if blank is not None:
        wrong = wrong | (used & (padded == blank))
    undefined = undefined | wrong.any(1)
    if num_rows is not None:
        # Which of the samples is wrong cannot be told, and an undefined one has no rows by which the others are found.
        undefined = (undefined | ((lengths * (labels + 1)).sum() != num_rows)).any().expand(count)
    lengths, labels = (torch.where(undefined, -1, values) for values in (lengths, labels))
    return _checks.Batch(torch.where(wrong, 0, padded), lengths, labels)


def special_kind(tensor: Tensor) -> str | None:
    """What a tensor is whose elements are not all there, each at its place in memory; ``None`` of a dense one."""
    if tensor.is_nested:
        return "nested tensor"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.').lstrip('_')} tensor"
    if tensor.is_quantized:
        return "quantised tensor"
    return "masked tensor" if type(tensor).__name__ == "MaskedTensor" else None


def check_integer_dtype(function: str, argument: str, tensor: Tensor) -> None:
    kind = special_kind(tensor)
    if kind is not None:
        raise InvalidTypeError(function, argument, "be a dense tensor of integers", f"a {kind}")
    if tensor.numel() == 0 and tensor.is_floating_point():
        return  # an empty tensor has no dtype of its own
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise InvalidTypeError(function, argument, "have an integer dtype", str(tensor.dtype).removeprefix("torch."))


def _bounded(values: Tensor, most: int | None, undefined: Tensor) -> tuple[Tensor, Tensor]:
    bounded = values.clamp(0, most)
    return bounded, undefined | (bounded != values)


def _integers(function: str, argument: str, tensor: Tensor, ranks: tuple[int, ...], device: torch.device) -> Tensor:
    if tensor.numel() == 0 and tensor.is_floating_point():
        tensor = tensor.long()  # an empty list has no dtype of its own
    check_integer_dtype(function, argument, tensor)
    if tensor.ndim not in ranks:
        rule = f"have rank {' or '.join(map(str, ranks))}"
        raise InvalidValueError(function, argument, rule, f"shape {tuple(tensor.shape)}")
    if tensor.device.type == "cpu" and device.type == "cuda":
        # From pinned memory the copy waits in the device's queue, and nobody here waits for it.
        tensor = tensor.detach().pin_memory()
    # A copy: backward must not see the caller change its lengths.
    return tensor.detach().to(device, torch.int64, non_blocking=True, copy=True)
