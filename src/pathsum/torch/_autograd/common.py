"""What the lattices' autograd functions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.lattice import ArcLattice, GridLattice


def grid_tensors(lattice: GridLattice | ArcLattice) -> list[Tensor]:
    arrays = (lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)
    return [as_tensor(array) for array in arrays]


def as_tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def keep_losses_only(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Backward is of the losses; for the other outputs it shall not be given planes of zeros, filled for nothing."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def defined(grad_losses: Tensor | None, losses: Tensor) -> Tensor:
    """Zeros where nothing depends on the losses."""
    return torch.zeros_like(losses) if grad_losses is None else grad_losses


def time_major(scores: Tensor) -> bool:
    # The gradient is written in the order of the caller's memory, so that what comes before reads it in order.
    return scores.stride(1) > scores.stride(0)


class Gradient(torch.autograd.Function):
    """A gradient, whose own derivative the kernels do not have."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(
            "the kernels have first derivatives only; impl='reference' is differentiable to any order"
        )
