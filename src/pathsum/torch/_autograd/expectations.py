"""Entropies and expected costs of paths by kernels that have them, under autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, Kernels
from pathsum.torch._operators import OperatorKernels, is_plain, traced


def expects(kernels: Kernels, *tensors: Tensor | None) -> bool:
    """Whether ``expectation`` may be asked of kernels about these."""
    return isinstance(kernels, OperatorKernels) and kernels.expects and not traced(tensors)


def listed_posteriors(kernels: Any, call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """Posteriors of nodes and of two kinds of arcs as a caller gets them, of kernels that have them so."""
    return kernels.list_posteriors(call) if expects(kernels, *call.scores) else None


def expectation(
    kernels: Any, call: Call, costs: Tensor | None, composed: Callable[[Sequence[Tensor | None], Tensor | None], Tensor]
) -> Tensor:
    """(N,) in float64, the expected costs of each sample's paths, or without costs their entropies; 0 where there is no
    path.

    ``composed`` makes the same of scores and costs by operations that are differentiable once more, which a gradient
    that is to have a graph takes.
    """
    call = call._replace(lattice=kernels.sent(call.lattice, call.scores[0].device))
    return _Expectation.apply(kernels, call.lattice, call.options, composed, costs, *call.scores)


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Any, lattice: Any, options: Any, composed: Any, costs: Tensor | None, *scores: Tensor | None
    ) -> Tensor:
        values, kept = kernels.expect(Call(scores, lattice, options), costs)
        ctx.save_for_backward(costs, *scores, *kept)
        ctx.asked, ctx.composed, ctx.count = (kernels, lattice, options), composed, len(scores)
        # What rounding has left of an entropy below 0 is 0, and has a gradient still.
        return values if costs is not None else values.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        costs, *rest = ctx.saved_tensors
        scores, kept, (kernels, lattice, options) = tuple(rest[: ctx.count]), rest[ctx.count :], ctx.asked
        needed = ctx.needs_input_grad[4:]
        if is_plain(upstream):
            of_costs, *found = kernels.expect_gradients(Call(scores, lattice, options), costs, kept, upstream, needed)
            return None, None, None, None, of_costs, *found
        wanted = [tensor for tensor, need in zip((costs, *scores), needed, strict=True) if need]
        made = iter(torch.autograd.grad(ctx.composed(scores, costs), wanted, upstream, create_graph=True))
        return None, None, None, None, *(next(made) if need else None for need in needed)
