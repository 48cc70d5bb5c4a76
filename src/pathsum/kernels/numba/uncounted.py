"""Compilation without counting references to arrays, for steps so short that the counting would be most of their time.

What is compiled so allocates nothing, returns no array and assigns no slice: numba says so where it does. Its caller,
Python or a kernel, keeps the arrays alive. The option is private to numba, and the same from 0.60 to 0.68.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pathsum.kernels.numba.compilation import COMPILE, keep

COMPILE_UNCOUNTED = COMPILE | {"_nrt": False}


def uncounted_kernel(function: Callable[..., Any]) -> Any:
    """As ``compilation.kernel``."""
    return keep(function, COMPILE_UNCOUNTED)
