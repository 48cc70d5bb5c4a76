"""The joiner fused with the loss, on a GPU: the regular transducer, in float32 and below.

Planes have a word for each node (t, u) that there may be at most, N*T*(U+1); the real ones come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, JointSaved
from pathsum.kernels.triton import joint
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import JointOperators
from pathsum.torch._triton.grid import solve_packed
from pathsum.torch._triton.launching import bucket, empties, even, in_rows, launch, programs

_NODES = 256
# Chunks that the rows which count are gone through in: each costs a few launches, whether it has any or not.
_CHUNKS = 64
_LEAST_CHUNK = 256
# Hidden units that a program of a product that makes gradients holds.
_UNITS_OUT = 64


class Joint(JointOperators):
    name = "triton_joint"
    once_only = "impl='triton' has first derivatives only; impl='reference' is differentiable to any order"
    reads_on_device = True

    def fuses(self, dtype: torch.dtype, *, regular: bool) -> bool:
        return regular and dtype != torch.float64

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> JointSaved:
        """The blank's posteriors have the log of each row's softmax sum behind them."""
        operands = in_rows(*call.scores)
        encoder, predictor, weight, _ = operands
        logit_lengths, target_lengths, targets, row_offsets = _integers(call)
        num_samples, num_frames, size = encoder.shape
        width, num_rows = predictor.shape[1], num_samples * num_frames * predictor.shape[1]
        empty = empties(weight)
        kept, label_plane = empty(2 * even(num_rows)), empty(num_rows)
        blank_plane, log_sums = _parted(kept, num_rows)
        undefined = torch.zeros(num_samples, dtype=torch.int32, device=weight.device)
        tile = _tile(weight, call.options.activation)
        launch(
            joint.score_rows, (programs(num_rows, tile["ROWS"]),), weight,
            *operands, target_lengths, targets, row_offsets, num_samples, num_frames, width, targets.shape[1], size,
            len(weight), call.lattice.blank, log_sums, blank_plane, label_plane, undefined, **tile,
        )  # fmt: skip
        lengths = (logit_lengths, target_lengths, row_offsets)
        losses = solve_packed((blank_plane, label_plane), undefined, lengths, width, need_gradient)
        return JointSaved(losses, kept, label_plane) if need_gradient else JointSaved(losses, empty(0), empty(0))

    def backward(self, call: Call, saved: JointSaved, upstream: Tensor, needed: Sequence[bool]) -> Sequence[Tensor]:
        operands, upstream = in_rows(*call.scores), upstream.contiguous()
        encoder, predictor, weight, _ = operands
        logit_lengths, target_lengths, targets, row_offsets = _integers(call)
        losses, options = saved.losses, call.options
        num_samples, num_frames, size = encoder.shape
        width, num_rows, num_classes = predictor.shape[1], len(saved.label), len(weight)
        blank_posteriors, log_sums = _parted(saved.blank, num_rows)
        empty, device = empties(weight), weight.device

        mass = blank_posteriors + (1.0 + options.fastemit_lambda) * saved.label
        alive = _alive_rows(upstream, losses, mass, (logit_lengths, target_lengths, row_offsets), options.gate)
        through = alive.cumsum(0, dtype=torch.int64)
        before = through - alive
        listed = empty(num_rows, dtype=torch.int64)
        count = through[-1:].clone() if num_rows else torch.zeros(1, dtype=torch.int64, device=device)
        launch(
            joint.list_rows, (programs(num_rows, _NODES),), weight,
            alive, before, num_rows, listed, ROWS=_NODES,
        )  # fmt: skip

        chunk = max(_LEAST_CHUNK, options.tile_memory // ((num_classes + size) * 4), programs(num_rows, _CHUNKS))
        chunk = max(1, min(chunk, num_rows))
        grad_logits = empty(chunk, num_classes, dtype=weight.dtype)
        grad_hidden = empty(chunk, size, dtype=torch.float32)
        gradients = [torch.zeros_like(operand, dtype=torch.float32) for operand in operands]
        tile = _tile(weight, options.activation)
        rows, classes, units = programs(chunk, tile["ROWS"]), programs(num_classes, tile["BLOCK"]), _UNITS_OUT
        for first in range(0, num_rows, chunk):
            here = (listed, count, first, chunk)
            launch(
                joint.differentiate_logits, (rows, classes), weight,
                upstream, losses, *operands, target_lengths, targets, row_offsets, num_samples, num_frames, width,
                targets.shape[1], size, num_classes, call.lattice.blank, log_sums, blank_posteriors, saved.label,
                options.fastemit_lambda, options.clamp, *here, grad_logits, **tile,
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
                logit_lengths, target_lengths, row_offsets, num_frames, width, size, alive, before, *here[1:],
                grad_hidden, *gradients[:2], UNITS=128, num_warps=1,
            )  # fmt: skip
        return [gradient.to(weight.dtype) for gradient in gradients]


def _integers(call: Call) -> list[Tensor]:
    own = call.lattice
    return in_rows(own.logit_lengths, own.target_lengths, own.targets, own.row_offsets)


def _parted(kept: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    return kept[:num_rows], kept[len(kept) // 2 :][:num_rows]


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
    upstream: Tensor, losses: Tensor, mass: Tensor, lengths: tuple[Tensor, Tensor, Tensor], gate: float | None
) -> Tensor:
    """The rows (int32, 0 or 1) whose gradient is computed; ``lengths``: frames, labels, and first rows.

    A node is left out where its mass is at most gate / max(T, U+1): what any frame, or any label position, then loses
    is at most ``gate``, by default half an eps of float32, in which gradients are added.
    """
    logit_lengths, target_lengths, row_offsets = lengths
    gate = torch.finfo(torch.float32).eps / 2 if gate is None else gate
    row = torch.arange(len(mass), device=mass.device)
    sample = torch.searchsorted(row_offsets[1:], row, right=True).clamp(max=len(losses) - 1)
    longest = torch.maximum(logit_lengths, target_lengths + 1)
    counts = (upstream != 0) & (losses != torch.inf)
    # Of an undefined sample every row is.
    threshold = torch.where(losses.isnan(), -torch.inf, gate / longest.clamp(min=1))
    alive = counts[sample] & ((mass > threshold[sample]) | losses.isnan()[sample]) & (row < row_offsets[-1])
    return alive.to(torch.int32)
