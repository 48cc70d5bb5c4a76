"""How kernels are compiled: once for each dtype, layout and block size, never for a value."""

from __future__ import annotations

import inspect
from typing import Any

import triton

_SCALARS = ("tl.int32", "tl.int64", "tl.float64")


def kernel(function: Any) -> Any:
    """A kernel whose scalars, annotated with their types, are run-time numbers whatever their values."""
    parameters = inspect.signature(function).parameters.values()
    scalars = [parameter.name for parameter in parameters if parameter.annotation in _SCALARS]
    return triton.jit(function, do_not_specialize=scalars)
