"""How kernels are compiled: without the GIL, with the flags that leave -inf and NaN alone, cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

from pathsum import numerics
from pathsum.numerics import FASTMATH

COMPILE = {"fastmath": FASTMATH, "nogil": True, "error_model": "numpy"}
# For sums whose terms cancel.
COMPILE_IN_ORDER = COMPILE | {"fastmath": FASTMATH - {"reassoc"}}
# For two sums of the same numbers to be the same wherever they are written.
COMPILE_EXACTLY = COMPILE | {"fastmath": False}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point of a lattice and keep the result for the next process."""
    return _keep(njit(cache=True, **COMPILE)(function))


def exact_kernel(function: Callable[..., Any]) -> Any:
    """As ``kernel``, every sum in the order it is written."""
    return _keep(njit(cache=True, **COMPILE_EXACTLY)(function))


def _keep(compiled: Any) -> Any:
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None:
        # numba takes a cached kernel for current while its own file is; what it inlines stands in other files.
        index._source_stamp = source_stamp()
    return compiled


@cache
def source_stamp() -> str:
    """A digest of every source that may be inlined into a kernel."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(numerics.__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
