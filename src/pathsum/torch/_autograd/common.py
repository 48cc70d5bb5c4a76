"""What the lattices' autograd functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from pathsum.errors import NotDifferentiableError
from pathsum.lattice import ArcLattice, GridLattice


def grid_tensors(lattice: GridLattice | ArcLattice) -> list[Tensor]:
    arrays = (lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)
    return [torch.from_numpy(array) for array in arrays]


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def keep_losses_only(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Backward is of the losses; for the other outputs it shall not be given planes of zeros, filled for nothing."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def keep_needed(ctx: Any, needed: Sequence[bool], output: tuple[Tensor, ...]) -> None:
    """Backward is of the gradients that were needed; where one of them goes nowhere it shall be given ``None``."""
    ctx.mark_non_differentiable(*[gradient for gradient, need in zip(output, needed, strict=True) if not need])
    ctx.set_materialize_grads(False)


def only(needed: Sequence[bool], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


def defined(grad_losses: Tensor | None, losses: Tensor) -> Tensor:
    """Zeros where nothing depends on the losses."""
    return torch.zeros_like(losses) if grad_losses is None else grad_losses


def constants(saved: Sequence[Tensor]) -> list[Tensor]:
    """What forward has kept, as inputs of a gradient that knows by itself how they depend on the scores.

    The losses' graph, left on, would have the engine run the whole backward once more, on nothing.
    """
    return [tensor.detach() for tensor in saved]


def time_major(scores: Tensor) -> bool:
    # The gradient is written in the order of the caller's memory, so that what comes before reads it in order.
    return scores.stride(1) > scores.stride(0)


def refuse_graph(reason: str) -> None:
    """Raise where a backward that is running has been asked for a graph of itself (``create_graph=True``).

    Not under ``torch.func``, whose transforms always ask, nor while compiling: there, differentiating again raises.
    """
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return
    if torch.is_grad_enabled():
        raise NotDifferentiableError(reason)


REWEIGHTED = (
    "the gradient of a loss with fastemit_lambda or clamp is re-weighted: it is not the gradient of anything, and has "
    "no second derivative; leave both out where create_graph=True is needed"
)


def first_derivative_only(*tensors: Tensor, reason: str = REWEIGHTED) -> tuple[Tensor, ...]:
    """The same tensors, whose gradients refuse to be differentiated."""
    return tuple(_FirstDerivativeOnly.apply(tensor, reason) for tensor in tensors)


class _FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(tensor: Tensor, reason: str) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensor, ctx.reason = inputs
        ctx.save_for_backward(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        refuse_graph(ctx.reason)
        # Also of the tensor, on which a gradient that was clamped does not depend by its own graph.
        return _LastDerivative.apply(gradient, *ctx.saved_tensors, ctx.reason), None


class _LastDerivative(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, tensor: Tensor, reason: str) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.reason = inputs

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(ctx.reason)


class Gradient(torch.autograd.Function):
    """A gradient, whose own derivative the numba kernels do not have."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(
            "impl='numba' has first derivatives only; impl='reference' is differentiable to any order"
        )


class HessianProduct(torch.autograd.Function):
    """A Hessian-vector product, whose own derivative the numba kernels do not have."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(
            "impl='numba' has two derivatives; impl='reference' is differentiable to any order"
        )
