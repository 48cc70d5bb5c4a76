"""XLA's memory as the kernels take it, and what they are told beside it."""

from __future__ import annotations

import math
import os

import jax.numpy as jnp
import numpy as np

from pathsum.kernels.numba.rows import BFLOAT16, FLOAT16, NATIVE

_ENCODINGS = {np.dtype(jnp.bfloat16): BFLOAT16, np.dtype(np.float16): FLOAT16}


def encoded(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The array and its encoding; half precision as its bits."""
    encoding = _ENCODINGS.get(array.dtype, NATIVE)
    return (array if encoding == NATIVE else array.view(np.uint16)), encoding


def in_one_batch(array: np.ndarray, rank: int) -> np.ndarray:
    """The array with as many axes as a batch has, those that vmap has put in front merged into the first."""
    if array.ndim == rank:
        return array
    own = array.ndim - rank + 1
    return array.reshape(math.prod(array.shape[:own]), *array.shape[own:])


def num_threads() -> int:
    """``PATHSUM_NUM_THREADS``, or else the processors this process may run on."""
    asked = os.environ.get("PATHSUM_NUM_THREADS")
    if asked:
        return max(1, int(asked))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
