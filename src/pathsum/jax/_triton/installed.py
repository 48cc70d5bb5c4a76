"""Whether this process can make programs that call the Triton kernels."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import jax

from pathsum.errors import InvalidValueError

# The devices, as 90 for 9.0, that programs are compiled for where none is here to be asked.
CAPABILITY = "PATHSUM_CUDA_CAPABILITY"


@cache
def missing() -> str | None:
    """What programs lack to call the Triton kernels; ``None`` if nothing. Looked for once: a call asks it each time."""
    if importlib.util.find_spec("jax_triton") is None:
        return "jax-triton is not installed"
    if capability() is None:
        return f"there is no CUDA device, nor does {CAPABILITY} say what to compile for"
    return None


def capability() -> int | None:
    """Of the devices that programs are compiled for, as 90 for 9.0."""
    asked = os.environ.get(CAPABILITY)
    if asked:
        if not asked.isdecimal():
            raise InvalidValueError("pathsum.jax", CAPABILITY, "be digits, as 90", repr(asked))
        return int(asked)
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return None
    return int(devices[0].compute_capability.replace(".", ""))
