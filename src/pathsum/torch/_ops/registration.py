"""Functions as ``torch.ops.pathsum.<name>``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.torch._private import compiler_is_loaded

LIBRARY = torch.library.Library("pathsum", "DEF")


def operator(function: Callable[..., Any] | None = None, *, device: str = "CPU") -> Any:
    """Register a function as an operator on the CPU, or on ``"any"`` device; ``vmap`` calls it once for each slice.

    By the plain registration: ``torch.library.custom_op`` imports the compiler at the first call, a second of it.
    """
    if function is None:
        return lambda function: operator(function, device=device)
    schema = function.__name__ + torch.library.infer_schema(function, mutates_args=())
    return _define(schema, function, device)


def define(schema: str, function: Callable[..., Any], sketch: Callable[..., Any], device: str) -> Any:
    """An operator by its schema, with what it returns where only shapes are known."""
    registered = _define(schema, function, device)
    torch.library.register_fake(registered.default.name(), sketch, lib=LIBRARY)
    return registered


def _define(schema: str, function: Callable[..., Any], device: str) -> Any:
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, uncompiled(function), "CompositeExplicitAutograd" if device == "any" else device)
    registered = getattr(torch.ops.pathsum, name)

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _one_by_one(registered, info.batch_size, in_dims, inputs)

    torch.library.register_vmap(registered.default.name(), one_by_one, lib=LIBRARY)
    return registered


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, into which ``torch.compile`` does not look; it is asked for only where it has been imported.

    Between two graphs an operator is called as any Python is, and its kernels are nothing that could be traced.
    """
    disabled = None

    @functools.wraps(function)
    def call(*inputs: Any) -> Any:
        nonlocal disabled
        if disabled is None and compiler_is_loaded():
            disabled = torch.compiler.disable(function, reason="a kernel of pathsum")
        return (disabled or function)(*inputs)

    return call


def fake(registered: Any) -> Callable[..., Any]:
    """Register what an operator returns where only shapes are known."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.library.register_fake(registered.default.name(), function, lib=LIBRARY)

    return register


def _one_by_one(registered: Any, size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    outputs = [
        registered(*(x.select(dim, b) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims, strict=True)))
        for b in range(size)
    ]
    if isinstance(outputs[0], Tensor):
        return _stack(registered, outputs), 0
    stacked = tuple(_stack(registered, column) for column in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)


def _stack(registered: Any, slices: Any) -> Tensor:
    if any(isinstance(length, torch.SymInt) for length in slices[0].shape):
        raise ImplementationError(
            f"{registered}: vmap inside torch.compile or torch.export needs sizes that only the lengths' values tell; "
            "call vmap outside, or give the samples along the batch axis"
        )
    # Slices of other lengths keep other sizes; each is read by its own lengths, and what is behind them is not.
    shape = [max(sizes) for sizes in zip(*(x.shape for x in slices), strict=True)]
    return torch.stack([_padded(x, shape) for x in slices])


def _padded(tensor: Tensor, shape: list[int]) -> Tensor:
    if list(tensor.shape) == shape:
        return tensor
    padded = tensor.new_zeros(shape)
    padded[tuple(map(slice, tensor.shape))] = tensor
    return padded
