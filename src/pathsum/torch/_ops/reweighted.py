"""Operators that change nothing, and stand where a gradient is re-weighted: copies, as an operator returns no input."""

from __future__ import annotations

from torch import Tensor

from pathsum.torch._ops.arrays import fake_like
from pathsum.torch._ops.registration import fake, operator


@operator(device="any")
def first_derivative_only(tensor: Tensor) -> Tensor:
    """The same values, whose gradient refuses to be differentiated."""
    return tensor.clone()


@fake(first_derivative_only)
def _(tensor):
    return fake_like(tensor)


@operator(device="any")
def reweighted(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of a tensor, which depends on the tensor whether or not its own graph says so."""
    return gradient.clone()


@fake(reweighted)
def _(gradient, tensor):
    return fake_like(gradient)
