"""The operators on grids whose scores a joiner makes.

Planes have a word for each node (t, u) that there may be at most, N*T*(U+1); the real ones come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.triton import joint
from pathsum.torch._launch.common import bucket, empties, even, in_rows, launch, programs
from pathsum.torch._launch.grid import solve_packed

_NODES = 256
# Chunks that the rows which count are gone through in: each costs a few launches, whether it has any or not.
_CHUNKS = 64
_LEAST_CHUNK = 256


def joint_forward(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The blank's posteriors have the log of each row's softmax sum behind them."""
    operands = in_rows(encoder, predictor, weight, bias)
    logit_lengths, target_lengths, targets, row_offsets = in_rows(logit_lengths, target_lengths, targets, row_offsets)
    num_samples, num_frames, size = encoder.shape
    width, num_rows = predictor.shape[1], num_samples * num_frames * predictor.shape[1]
    empty = empties(weight)
    kept, label_plane = empty(2 * even(num_rows)), empty(num_rows)
    blank_plane, log_sums = _parted(kept, num_rows)
    undefined = torch.zeros(num_samples, dtype=torch.int32, device=weight.device)
    tile = _tile(weight, activation)
    launch(
        joint.score_rows, (programs(num_rows, tile["ROWS"]),), weight,
        *operands, target_lengths, targets, row_offsets, num_samples, num_frames, width, targets.shape[1], size,
        len(weight), blank, log_sums, blank_plane, label_plane, undefined, **tile,
    )  # fmt: skip
    lengths = (logit_lengths, target_lengths, row_offsets)
    losses = solve_packed((blank_plane, label_plane), undefined, lengths, width, need_gradient)
    return (losses, kept, label_plane) if need_gradient else (losses, empty(0), empty(0))


def joint_backward(
    grad_losses: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    losses: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands = in_rows(encoder, predictor, weight, bias)
    logit_lengths, target_lengths, targets, row_offsets, grad_losses = in_rows(
        logit_lengths, target_lengths, targets, row_offsets, grad_losses
    )
    num_samples, num_frames, size = encoder.shape
    width, num_rows, num_classes = predictor.shape[1], len(label_posteriors), len(weight)
    blank_posteriors, log_sums = _parted(blank_posteriors, num_rows)
    empty, device = empties(weight), weight.device

    mass = blank_posteriors + (1.0 + fastemit_lambda) * label_posteriors
    alive = _alive_rows(grad_losses, losses, mass, logit_lengths, target_lengths, row_offsets, gate)
    through = alive.cumsum(0, dtype=torch.int64)
    before = through - alive
    listed = empty(num_rows, dtype=torch.int64)
    count = through[-1:].clone() if num_rows else torch.zeros(1, dtype=torch.int64, device=device)
    launch(
        joint.list_rows, (programs(num_rows, _NODES),), weight,
        alive, before, num_rows, listed, ROWS=_NODES,
    )  # fmt: skip

    chunk = max(_LEAST_CHUNK, tile_memory // ((num_classes + size) * 4), programs(num_rows, _CHUNKS))
    chunk = max(1, min(chunk, num_rows))
    grad_logits = empty(chunk, num_classes, dtype=weight.dtype)
    grad_hidden = empty(chunk, size, dtype=torch.float32)
    gradients = [torch.zeros_like(operand, dtype=torch.float32) for operand in operands]
    tile = _tile(weight, activation)
    rows, classes, units = programs(chunk, tile["ROWS"]), programs(num_classes, tile["BLOCK"]), _UNITS_OUT
    for first in range(0, num_rows, chunk):
        here = (listed, count, first, chunk)
        launch(
            joint.differentiate_logits, (rows, classes), weight,
            grad_losses, losses, *operands, target_lengths, targets, row_offsets, num_samples, num_frames, width,
            targets.shape[1], size, num_classes, blank, log_sums, blank_posteriors, label_posteriors, fastemit_lambda,
            clamp, *here, grad_logits, **tile,
        )  # fmt: skip
        launch(
            joint.differentiate_hidden, (rows, programs(size, units)), weight,
            *operands[:3], target_lengths, row_offsets, num_samples, num_frames, width, size, num_classes, *here,
            grad_logits, grad_hidden, **tile | {"BLOCK": 32, "UNITS": units},
        )  # fmt: skip
        launch(
            joint.add_weight_gradient, (classes, programs(size, units)), weight,
            *operands[:2], target_lengths, row_offsets, num_samples, num_frames, width, size, num_classes, *here,
            grad_logits, *gradients[2:], **tile | {"ROWS": 32, "UNITS": units},
        )  # fmt: skip
        launch(
            joint.add_operand_gradients, (num_samples * (num_frames + width), programs(size, 128)), weight,
            logit_lengths, target_lengths, row_offsets, num_frames, width, size, alive, before, *here[1:], grad_hidden,
            *gradients[:2], UNITS=128, num_warps=1,
        )  # fmt: skip
    first, second, third, fourth = (gradient.to(weight.dtype) for gradient in gradients)
    return first, second, third, fourth


def _parted(kept: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    return kept[:num_rows], kept[len(kept) // 2 :][:num_rows]


# Hidden units that a program of a product that makes gradients holds.
_UNITS_OUT = 64


def _tile(weight: Tensor, activation: str) -> dict[str, Any]:
    """Rows, classes and hidden units of a block of logits; float32 products as torch is set to make its own."""
    exact = weight.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {
        "ACTIVATION": activation,
        "PRECISION": "ieee" if exact else "tf32",
        "ROWS": 64,
        "BLOCK": bucket(len(weight), 16, 64),
        "UNITS": 32,
        "num_warps": 8,
    }


def _alive_rows(
    grad_losses: Tensor,
    losses: Tensor,
    mass: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    gate: float | None,
) -> Tensor:
    """The rows (int32, 0 or 1) whose gradient is computed.

    A node is left out where its mass is at most gate / max(T, U+1): what any frame, or any label position, then loses
    is at most ``gate``, by default half an eps of float32, in which gradients are added.
    """
    gate = torch.finfo(torch.float32).eps / 2 if gate is None else gate
    row = torch.arange(len(mass), device=mass.device)
    sample = torch.searchsorted(row_offsets[1:], row, right=True).clamp(max=len(losses) - 1)
    longest = torch.maximum(logit_lengths, target_lengths + 1)
    counts = (grad_losses != 0) & (losses != torch.inf)
    # Of an undefined sample every row is.
    threshold = torch.where(losses.isnan(), -torch.inf, gate / longest.clamp(min=1))
    alive = counts[sample] & ((mass > threshold[sample]) | losses.isnan()[sample]) & (row < row_offsets[-1])
    return alive.to(torch.int32)
