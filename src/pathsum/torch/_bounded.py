"""Integers that are on the device of the scores: bounded there, not looked at from here.

A check of their values would wait for the device. In its place every length and label is brought into its range, so
that nothing is read out of bounds, and the samples where that changed something are marked: their losses become NaN.
Shapes and dtypes are checked as everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError

CHECKS = ("async", "sync")


def stay_unread(integers: tuple[Any, ...], scores: Tensor, check: str) -> bool:
    """Whether integers shall not be looked at: some are on a device where that means to wait."""
    on_device = [isinstance(value, Tensor) and value.device.type != "cpu" for value in integers]
    return check == "async" and scores.device.type == "cuda" and any(on_device)


def bounded_batch(
    function: str,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    *,
    device: torch.device,
    lengths_name: str,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    blank: int | None,
    num_rows: int | None = None,
) -> tuple[_checks.Batch, Tensor]:
    """As ``_checks.check_batch``, on the device; and whether each sample (N,) broke a rule.

    ``num_rows``: how many rows T*(U+1) packed samples must have together; else all of them are marked.
    """
    targets = _integers(function, "targets", targets, (1, 2), device)
    lengths = _integers(function, lengths_name, input_lengths, (1,), device)
    labels = _integers(function, "target_lengths", target_lengths, (1,), device)
    count = len(lengths) if num_samples is None else num_samples
    for name, given in ((lengths_name, lengths), ("target_lengths", labels)):
        if len(given) != count:
            raise InvalidValueError(function, name, f"have one entry a sample, N = {count}", f"{len(given)} entries")
    if targets.ndim == 2 and len(targets) != count:
        raise InvalidValueError(function, "targets", f"have one row a sample, N = {count}", f"{len(targets)} rows")

    frames_bound = num_frames if num_rows is None else num_rows
    undefined = (lengths < 0) | (labels < 0)
    lengths, undefined = _bounded(lengths, frames_bound, undefined)
    labels, undefined = _bounded(labels, max_labels, undefined)
    if targets.ndim == 1:
        undefined |= labels.sum() != len(targets)
        # More labels than frames do not fit into a chain, nor do so many; so many rows no packed sample has.
        width = min(len(targets), (num_frames or num_rows or 0) + 1 if max_labels is None else max_labels)
        first = labels.cumsum(0) - labels
        position = first[:, None] + torch.arange(max(width, 1), device=device)
        padded = torch.cat([targets, targets.new_zeros(1)])[position.clamp(max=len(targets))]
        labels = labels.clamp(max=width)
    else:
        width = targets.shape[1]
        labels, undefined = _bounded(labels, width, undefined)
        padded = targets if width else targets.new_zeros(count, 1)
    if num_rows is not None:
        # Which of them is wrong cannot be told.
        undefined |= (lengths * (labels + 1)).sum() != num_rows
        lengths = torch.where(undefined, 0, lengths)
    used = torch.arange(padded.shape[1], device=device) < labels[:, None]
    wrong = used & ((padded < 0) | (padded >= num_classes))
    if blank is not None:
        wrong |= used & (padded == blank)
    return _checks.Batch(torch.where(wrong, 0, padded), lengths, labels), undefined | wrong.any(1)


def _bounded(values: Tensor, most: int | None, undefined: Tensor) -> tuple[Tensor, Tensor]:
    bounded = values.clamp(0, most)
    return bounded, undefined | (bounded != values)


def _integers(function: str, argument: str, value: Any, ranks: tuple[int, ...], device: torch.device) -> Tensor:
    tensor = torch.as_tensor(value)
    if tensor.numel() == 0 and tensor.is_floating_point():
        tensor = tensor.long()  # an empty list has no dtype of its own
    if tensor.dtype not in (torch.int32, torch.int64):
        raise InvalidTypeError(
            function, argument, "have dtype int32 or int64", str(tensor.dtype).removeprefix("torch.")
        )
    if tensor.ndim not in ranks:
        rule = f"have rank {' or '.join(map(str, ranks))}"
        raise InvalidValueError(function, argument, rule, f"shape {tuple(tensor.shape)}")
    if tensor.device.type == "cpu" and device.type == "cuda":
        # From pinned memory the copy waits in the device's queue, and nobody here waits for it.
        tensor = tensor.detach().pin_memory()
    # A copy: backward must not see the caller change its lengths.
    return tensor.detach().to(device, torch.int64, non_blocking=True, copy=True)
