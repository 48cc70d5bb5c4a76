"""The columns of scores that some hypotheses of a sample read, under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.torch._ops.arrays import work_dtype


def columns_of(scores: Tensor, columns: Tensor, lengths: Tensor, logits: bool) -> Tensor:
    """Log-probabilities (N*K, T, W) of the classes (N, K, W) that each of K hypotheses reads, of scores (N, T, C).

    Their gradient is written once, where torch would hold one for every hypothesis; padding is not read.
    """
    return _Columns.apply(scores, columns.to(scores.device), lengths.to(scores.device), logits)


class _Columns(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, columns: Tensor, lengths: Tensor, logits: bool) -> Tensor:
        num_samples, num_frames, _ = scores.shape
        _, size, width = columns.shape
        read = scores.gather(2, _index(columns, num_frames)).to(work_dtype(scores))
        if logits:
            largest, log_sum = _normalisers(scores, lengths)
            read = (read - largest) - log_sum
        return (
            read.view(num_samples, num_frames, size, width).movedim(2, 1).reshape(num_samples * size, num_frames, width)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.logits = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        scores, columns, lengths = ctx.saved_tensors
        num_samples, num_frames, num_classes = scores.shape
        spread = gradient.view(num_samples, columns.shape[1], num_frames, columns.shape[2]).movedim(1, 2)
        spread = spread.reshape(num_samples, num_frames, columns.shape[1] * columns.shape[2])
        if ctx.logits:
            largest, log_sum = _normalisers(scores, lengths)
            shares = ((scores.to(gradient.dtype) - largest) - log_sum).exp()
            written = torch.where(_real(scores, lengths), -shares * spread.sum(2, keepdim=True), 0.0)
        else:
            written = gradient.new_zeros(num_samples, num_frames, num_classes)
        return written.scatter_add(2, _index(columns, num_frames), spread).to(scores.dtype), None, None, None


def _index(columns: Tensor, num_frames: int) -> Tensor:
    """(N, T, K*W) the classes, the same in every frame."""
    return columns.flatten(1)[:, None].expand(-1, num_frames, -1)


def _real(scores: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(scores.shape[1], device=scores.device) < lengths[:, None])[:, :, None]


def _normalisers(scores: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum (N, T, 1) of each row, and the log of the sum of the exponentials less it; 0 of nothing but -inf."""
    rows = torch.where(_real(scores, lengths), scores.to(work_dtype(scores)), 0.0)
    largest = rows.detach().amax(2, keepdim=True).clamp(min=torch.finfo(rows.dtype).min)
    sums = (rows - largest).exp().sum(2, keepdim=True)
    return largest, torch.where(sums == 0, 1.0, sums).log()
