"""FastEmit and clamp re-weight a gradient, and torch's CTC exchanges it: what comes of it is not the gradient of
anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.kernels.protocol import REWEIGHTED
from pathsum.torch._autograd.operators import differentiates, recall, refuse_graph, save
from pathsum.torch._ops.reweighted import first_derivative_only, reweighted


@differentiates(first_derivative_only)
class _FirstDerivativeOnly:
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor]:
        if not torch.is_grad_enabled():
            return (gradient,)
        refuse_graph(REWEIGHTED)
        # Also of the tensor, on which a gradient that was clamped does not depend by its own graph.
        return (reweighted(gradient, *recall(ctx)),)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise NotDifferentiableError(REWEIGHTED)


@differentiates(reweighted)
class _Reweighted:
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(REWEIGHTED)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> Tensor:
        raise NotDifferentiableError(REWEIGHTED)
