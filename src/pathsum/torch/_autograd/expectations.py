"""Entropies and expected costs of paths by kernels that have them, under autograd."""

from __future__ import annotations

from collections.abc import Callable
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
    kernels: Any, call: Call, costs: Tensor | None, composed: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """(N,) in float64, the expected costs of each sample's paths, or without costs their entropies; 0 where there is no
    path.

    ``composed`` makes the same of scores and costs by operations that are differentiable once more, which a gradient
    that is to have a graph takes.
    """
    (scores, *_) = call.scores
    call = call._replace(lattice=kernels.sent(call.lattice, scores.device))
    return _Expectation.apply(kernels, call, composed, scores, costs)


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, call: Call, composed: Any, scores: Tensor, costs: Tensor | None) -> Tensor:
        values, kept = kernels.expect(call._replace(scores=(scores, *call.scores[1:])), costs)
        ctx.save_for_backward(scores, costs, *kept)
        ctx.asked, ctx.composed = (kernels, call.lattice, call.options, call.scores[1:]), composed
        # What rounding has left of an entropy below 0 is 0, and has a gradient still.
        return values if costs is not None else values.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        scores, costs, *kept = ctx.saved_tensors
        needed, (kernels, lattice, options, others) = ctx.needs_input_grad[3:], ctx.asked
        if is_plain(upstream):
            call = Call((scores, *others), lattice, options)
            return None, None, None, *kernels.expect_gradients(call, costs, kept, upstream, needed)
        wanted = [tensor for tensor, need in zip((scores, costs), needed, strict=True) if need]
        found = iter(torch.autograd.grad(ctx.composed(scores, costs), wanted, upstream, create_graph=True))
        return None, None, None, *(next(found) if need else None for need in needed)
