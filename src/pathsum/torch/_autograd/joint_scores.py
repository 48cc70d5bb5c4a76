"""A joiner's planes under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import ArcLattice
from pathsum.torch._autograd.common import Gradient, defined, grid_tensors
from pathsum.torch._ops.joint_scores import joint_scores_backward, joint_scores_forward
from pathsum.torch.joiner import Joiner


def joint_scores(
    joiner: Joiner, lattice: ArcLattice, classes: tuple[int, ...], *, lone: int, logits: bool, clamp: float
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows) of the log-softmax of a joiner's logits, and zeros (N,) that stand for the samples.

    The upstream gradient of each loss must come back through the latter, as it must for ``row_scores`` with a clamp.
    """
    assert logits, "a joiner makes logits"
    tensors = [*grid_tensors(lattice), *map(torch.from_numpy, (lattice.first_frames, lattice.last_frames))]
    options = (list(classes), lone, joiner.activation, int(joiner.tile_memory), clamp, joiner.gate)
    return _JointScores.apply(*joiner.operands, *tensors, *options)


class _JointScores(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return joint_scores_forward(*inputs[:-2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:10], *output)
        ctx.options = inputs[10:]

    @staticmethod
    def backward(ctx: Any, grad_planes: Tensor | None, upstream: Tensor | None) -> tuple[Any, ...]:
        *tensors, planes, samples = ctx.saved_tensors
        grad_planes, upstream = defined(grad_planes, planes), defined(upstream, samples)
        return *_JointScoresGradient.apply(grad_planes, upstream, *tensors, *ctx.options), *[None] * 12


class _JointScoresGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return joint_scores_backward(*inputs)
