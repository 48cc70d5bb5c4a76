"""Operators from a joiner's operands to planes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import joint, joint_scores
from pathsum.kernels.numba.row_scores import Wanted
from pathsum.torch._ops.arcs import as_arcs
from pathsum.torch._ops.arrays import fake_like
from pathsum.torch._ops.joint import as_joiner, gradients_as_tensors, matmul_of
from pathsum.torch._ops.registration import fake, operator


@operator
def joint_scores_forward(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    activation: str,
    tile_memory: int,
    clamp: float,
    gate: float | None,
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows), and zeros (N,) that stand for the samples."""
    joiner = as_joiner(encoder, predictor, weight, bias, activation)
    planes = joint_scores.forward(
        joiner,
        as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames),
        Wanted(np.array(classes), lone, True),
        matmul_of(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(planes), torch.zeros(len(logit_lengths), dtype=torch.float64)


@fake(joint_scores_forward)
def _(encoder, predictor, weight, bias, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames,
      classes, *_):  # fmt: skip
    rows = torch.library.get_ctx().new_dynamic_size()
    planes = weight.new_empty((len(classes), rows), dtype=torch.float64)
    return planes, weight.new_empty(logit_lengths.shape[0], dtype=torch.float64)


@operator
def joint_scores_backward(
    grad_planes: Tensor,
    upstream: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    activation: str,
    tile_memory: int,
    clamp: float,
    gate: float | None,
    planes: Tensor,
    samples: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to encoder, predictor, weight and bias."""
    joiner = as_joiner(encoder, predictor, weight, bias, activation)
    gradients = joint_scores.backward(
        grad_planes.detach().contiguous().numpy(),
        upstream.detach().contiguous().numpy(),
        joiner,
        as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames),
        Wanted(np.array(classes), lone, True),
        matmul_of(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        clamp=clamp,
        gate=gate,
        num_threads=torch.get_num_threads(),
    )
    return gradients_as_tensors(gradients, weight.dtype)


@fake(joint_scores_backward)
def _(grad_planes, upstream, encoder, predictor, weight, bias, *_):
    return tuple(map(fake_like, (encoder, predictor, weight, bias)))
