"""Operators that check integers: what traces a graph knows the shapes of its tensors, not the values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.torch._ops.registration import fake, operator


@operator(device="any")
def check_batch(
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    function: str,
    lengths_name: str,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    blank: int | None,
    big_blanks: Sequence[int],
    num_rows: int | None,
    scores: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (N, S), S >= 1, and both lengths (N,), checked, as int64 on the CPU."""
    batch = _checks.check_batch(
        function,
        *(tensor.cpu().numpy() for tensor in (targets, input_lengths, target_lengths)),
        lengths_name=lengths_name,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank,
        big_blanks=big_blanks,
        num_rows=num_rows,
        scores=scores,
    )
    targets, input_lengths, target_lengths = map(torch.from_numpy, batch)
    return targets, input_lengths, target_lengths


@fake(check_batch)
def _(targets, input_lengths, *_):
    count = input_lengths.shape[0]
    # Concatenated targets are as wide as the longest, which is a value.
    width = torch.library.get_ctx().new_dynamic_size(min=1) if targets.ndim == 1 else max(targets.shape[1], 1)
    padded = torch.empty((count, width), dtype=torch.int64, device="cpu")
    return padded, padded.new_empty(count), padded.new_empty(count)


@operator(device="any")
def check_alignment(
    alignment: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, function: str
) -> Tensor:
    """A frame for each label, in the shape of the padded targets, checked, as int64 on the CPU."""
    integers = (tensor.cpu().numpy() for tensor in (alignment, targets, input_lengths, target_lengths))
    return torch.from_numpy(_checks.check_alignment(function, *integers))


@fake(check_alignment)
def _(alignment, targets, input_lengths, target_lengths, function):
    return torch.empty_like(targets)
