"""Losses of a part of all paths less those of all: of two lattices, whose scores are the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import dispatch
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
    """``difference`` of what two kernels make of the same scores, reduced; differentiable twice.

    ``own`` is asked of a chain, ``every`` of a dense lattice; what all paths have in common is in neither.
    """
    scores = own[1].scores
    if traced(scores):
        return reduction.of(difference(*(kernels.losses(call) for kernels, call in (own, every))))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scores):
        return _LossesApart.apply(own, every, reduction, *scores)
    at_once = _at_once(own[0])
    if at_once is not None:
        assert isinstance(own[0], OperatorKernels)
        lattice = own[0].sent(own[1].lattice, scores[0].device)
        return reduction.of_plain(at_once.forward(Call(scores, lattice, own[1].options), False).losses)
    return reduction.of(difference(*(kernels.losses(call) for kernels, call in (own, every))))


def _at_once(kernels: Any) -> Any:
    """What solves both lattices at once, where the implementation has such kernels."""
    return dispatch.kernels_of(kernels.impl, "apart") if (kernels.impl, "apart") in dispatch.TABLE else None


class _LossesApart(torch.autograd.Function):
    """The kernels called at once, as by ``_operators``: one node of the graph in place of a dozen."""

    @staticmethod
    def forward(ctx: Any, own: Any, every: Any, reduction: Reduction, *scores: Tensor) -> Tensor:
        ctx.asked, kept, others, at_once = [], [], (), _at_once(own[0])
        for kernels, call in (own, every):
            lattice = kernels.sent(call.lattice, scores[0].device)
            ctx.asked.append((kernels, lattice, call.options))
            if at_once is None:
                kept.append(kernels.kept(kernels.forward(Call(scores, lattice, call.options), True)))
        if at_once is None:
            losses = _subtracted(kept[0][0], kept[1][0])
        else:
            losses, *kept, table, matrix = at_once.forward(Call(scores, *ctx.asked[0][1:]), True)
            others = (table, matrix)
        ctx.reduction = reduction
        ctx.save_for_backward(*scores, losses, *kept[0], *kept[1], *others)
        return reduction.of_plain(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[3:]
        tensors, count = ctx.saved_tensors, len(needed)
        scores, losses, saved = tensors[:count], tensors[count].detach(), tensors[count + 1 :]
        upstream, at_once = ctx.reduction.upstream(upstream, losses), _at_once(ctx.asked[0][0])
        if at_once is not None and is_plain(upstream):
            call, kept = Call(scores, *ctx.asked[0][1:]), iter(saved)
            parts = [kernels.saved(*islice(kept, len(kernels.saved._fields))) for kernels, *_ in ctx.asked]
            return None, None, None, *at_once.backward(call, (losses, *parts, *kept), upstream, needed)
        found = []
        for (kernels, *asked), weights in zip(ctx.asked, _weights(upstream, losses), strict=True):
            size = len(kernels.saved._fields)
            found.append(gradients_of(kernels, Call(scores, *asked), saved[:size], weights, needed))
            saved = saved[size:]
        return None, None, None, *(_added(*both) for both in zip(*found, strict=True))


def _subtracted(own: Tensor, every: Tensor) -> Tensor:
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
