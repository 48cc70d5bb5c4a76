"""Integers that are on the device of the scores: bounded there, not looked at from here.

A check of their values would wait for the device. In its place the kernel that poses them brings every length and label
into its range, so that nothing is read out of bounds. A sample where that changed something gets lengths of -1, by
which the other kernels know that its loss is NaN. Shapes and dtypes are checked as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.protocol import Kernels
from pathsum.lattice import BEYOND, GridLattice
from pathsum.options import CHECKS, Check
from pathsum.torch.joiner import Joiner


def unread_on(
    function: str, check: Check, kernels: Kernels, scores: Tensor | Joiner, *integers: Any
) -> torch.device | None:
    """The device that integers stay on, not looked at; None where they are checked as everywhere."""
    _checks.check_option(function, "check", check, CHECKS)
    on_device = any(isinstance(value, Tensor) and value.device.type != "cpu" for value in integers)
    return scores.device if check == "async" and kernels.reads_on_device and on_device else None


class Unread(NamedTuple):
    """The integers of a batch on a device, whose shapes and dtypes alone are checked.

    Attributes:
        targets: (N, S), or one target after another.
        input_lengths, target_lengths: (N,)
        width: Labels that the posed targets have room for, at least 1.
        most_frames, most_labels: What the lengths must not exceed.
        num_classes, blank: What labels must be below, and must not be; -1 of no blank.
        num_rows: Of packed rows how many the samples must have together, else ``None``.
        others: Further classes that labels must not be.
    """

    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    width: int
    most_frames: int
    most_labels: int
    num_classes: int
    blank: int
    num_rows: int | None
    others: tuple[int, ...] = ()


def unread_batch(
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
    others: Sequence[int] = (),
) -> Unread:
    """What ``_checks.check_batch`` can say of integers without a look at their values."""
    targets = _integers(function, "targets", targets, (1, 2), device)
    lengths = _integers(function, lengths_name, input_lengths, (1,), device)
    labels = _integers(function, "target_lengths", target_lengths, (1,), device)
    count = len(lengths) if num_samples is None else num_samples
    for name, given in ((lengths_name, lengths), ("target_lengths", labels)):
        if len(given) != count:
            raise InvalidValueError(function, name, f"have one entry a sample, N = {count}", f"{len(given)} entries")
    if targets.ndim == 2 and len(targets) != count:
        raise InvalidValueError(function, "targets", f"have one row a sample, N = {count}", f"{len(targets)} rows")

    most_frames = (num_frames if num_rows is None else num_rows) or 0
    width = targets.shape[-1]
    most_labels = width if max_labels is None else min(width, max_labels)
    if targets.ndim == 1:
        # As many labels as frames and one more do not fit, nor do more of them.
        width = min(width, most_frames + 1 if max_labels is None else max_labels)
    return Unread(
        targets, lengths, labels, max(width, 1), most_frames, most_labels, num_classes,
        -1 if blank is None else blank, num_rows, tuple(others),
    )  # fmt: skip


def unread_alignment(function: str, alignment: Tensor, grid: GridLattice, device: torch.device) -> Tensor:
    """What ``_checks.check_alignment`` can say of frames (N, U) or (sum of labels,) that stay on a device; padded.

    Near a frame that no sample has no label is emitted.
    """
    frames, (num_samples, width) = _integers(function, "alignment", alignment, (1, 2), device), grid.targets.shape
    frames = frames.clamp(-BEYOND, BEYOND)
    if frames.ndim == 2:
        if len(frames) != num_samples:
            rule = f"have a row a sample, N = {num_samples}, with a frame for each of its labels"
            raise InvalidValueError(function, "alignment", rule, f"shape {tuple(frames.shape)}")
        return frames if frames.shape[1] == width else torch.nn.functional.pad(frames, (0, width - frames.shape[1]))
    labels = grid.target_lengths.clamp(min=0)
    places = (labels.cumsum(0) - labels)[:, None] + torch.arange(width, device=device)
    return torch.nn.functional.pad(frames, (0, 1))[places.clamp(max=len(frames))]


def posed(pose: Callable[..., Any], batch: _checks.Batch | Unread, last: int) -> Any:
    """What a function of ``problems`` poses, of a batch and the last of its arguments."""
    if isinstance(batch, Unread):
        # Triton is imported where its kernels are to run.
        return import_module("pathsum.torch._triton.posing").posed(pose, batch, last)
    return pose(*batch, last)


def special_kind(tensor: Tensor) -> str | None:
    """What a tensor is whose elements are not all there, each at its place in memory; ``None`` of a dense one."""
    if tensor.is_nested:
        return "nested tensor"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.').lstrip('_')} tensor"
    if tensor.is_quantized:
        return "quantised tensor"
    return "masked tensor" if type(tensor).__name__ == "MaskedTensor" else None


def valueless_kind(tensor: Tensor) -> str | None:
    """What a tensor is that has a shape and no values: a meta or a fake tensor; ``None`` of others."""
    if type(tensor).__name__ == "FakeTensor":
        return "fake tensor"
    return "meta tensor" if tensor.is_meta else None


def check_integer_dtype(function: str, argument: str, tensor: Tensor) -> None:
    kind = special_kind(tensor)
    if kind is not None:
        raise InvalidTypeError(function, argument, "be a dense tensor of integers", f"a {kind}")
    if tensor.numel() == 0 and tensor.is_floating_point():
        return  # an empty tensor has no dtype of its own
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise InvalidTypeError(function, argument, "have an integer dtype", str(tensor.dtype).removeprefix("torch."))


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
    return tensor.detach().to(device, torch.int64, non_blocking=True).contiguous()
