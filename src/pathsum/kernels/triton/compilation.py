"""How kernels are compiled: once for each dtype, layout and block size, never for a value. And how threads wait."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

_SCALARS = ("tl.int32", "tl.int64", "tl.float64")


def kernel(function: Any, anywhere: Sequence[str] = ()) -> Any:
    """A kernel whose scalars, annotated with their types, are run-time numbers whatever their values.

    ``anywhere``: tensors of the caller's own, which may begin at any place in memory.
    """
    parameters = inspect.signature(function).parameters.values()
    scalars = [parameter.name for parameter in parameters if parameter.annotation in _SCALARS]
    return triton.jit(function, do_not_specialize=scalars, do_not_specialize_on_alignment=anywhere)


def float_of(size: int) -> Any:
    """Triton's type of floats of so many bytes."""
    return {4: tl.float32, 8: tl.float64}[size]


# Later versions of Triton give the barrier another name.
if hasattr(tl, "debug_barrier"):

    @triton.jit
    def barrier():
        """Threads of a program go on when all have come here, and see what the others have stored."""
        tl.debug_barrier()

else:

    @triton.jit
    def barrier():
        tl.barrier()
