"""Losses of a part of all paths less those of all: of two lattices, whose scores are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba.reduction import spread_apart, subtract
from pathsum.kernels.protocol import Call, Kernels
from pathsum.torch._operators import OperatorKernels, Reduction, gradients_of, is_plain, traced
from pathsum.torch._ops.addition import add

# Kernels, and what they are asked.
Asked = tuple[Kernels, Call]


def difference(own: Tensor, every: Tensor) -> Tensor:
    """Losses of a part of all paths less those of all, NaN where either is.

    Where the part has no path there may be none at all, and infinities must not meet.
    """
    infeasible = (own == torch.inf) & ~every.isnan()
    return torch.where(infeasible, torch.inf, own - torch.where(infeasible, 0.0, every))


def losses_apart(own: Asked, every: Asked, reduction: Reduction) -> Tensor:
    """``difference`` of what two kernels make of the same scores, reduced; differentiable twice."""
    scores = own[1].scores
    if traced(scores) or not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scores)):
        return reduction.of(difference(*(kernels.losses(call) for kernels, call in (own, every))))
    return _LossesApart.apply(own, every, reduction, *scores)


class _LossesApart(torch.autograd.Function):
    """The kernels called at once, as by ``_operators``: one node of the graph in place of a dozen."""

    @staticmethod
    def forward(ctx: Any, own: Asked, every: Asked, reduction: Reduction, *scores: Tensor) -> Tensor:
        ctx.asked, kept = [], []
        for kernels, call in (own, every):
            assert isinstance(kernels, OperatorKernels)
            lattice = kernels.sent(call.lattice, scores[0].device)
            ctx.asked.append((kernels, lattice, call.options))
            kept.append(kernels.kept(kernels.forward(Call(scores, lattice, call.options), True)))
        losses = _subtracted(kept[0][0], kept[1][0])
        ctx.save_for_backward(*scores, losses, *kept[0], *kept[1])
        ctx.reduction = reduction
        return reduction.of_plain(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[3:]
        tensors, count = ctx.saved_tensors, len(needed)
        scores, losses, saved = tensors[:count], tensors[count].detach(), tensors[count + 1 :]
        found = []
        for (kernels, *asked), weights in zip(
            ctx.asked, _weights(ctx.reduction.upstream(upstream, losses), losses), strict=True
        ):
            size = len(kernels.saved._fields)
            found.append(gradients_of(kernels, Call(scores, *asked), saved[:size], weights, needed))
            saved = saved[size:]
        return None, None, None, *(_added(*both) for both in zip(*found, strict=True))


def _subtracted(own: Tensor, every: Tensor) -> Tensor:
    if not own.is_cpu:
        # As ``difference`` in two operations: where there is no path at all the part has none.
        return own - every.nan_to_num(torch.nan, posinf=0.0, neginf=-torch.inf)
    losses = np.empty(len(own))
    subtract(own.numpy(), every.numpy(), losses)
    return torch.from_numpy(losses)


def _weights(upstream: Tensor, losses: Tensor) -> Sequence[Tensor]:
    """The upstream gradients of both losses, 0 where the part has no path."""
    if losses.is_cpu and is_plain(upstream):
        own, every = np.empty((2, len(losses)))
        spread_apart(upstream.numpy(), losses.numpy(), own, every)
        return torch.from_numpy(own), torch.from_numpy(every)
    own = upstream.masked_fill(losses == torch.inf, 0.0)
    return own, -own


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first
    # By the threads of the kernels, where it is worth it and no graph is asked for.
    if first.is_cpu and first.numel() >= _LARGE and is_plain(first):
        return add(first, second)
    return first + second


_LARGE = 2**16
