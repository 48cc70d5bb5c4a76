"""Memory for gradients.

A fresh gradient of 300 MB costs its page faults, which are as much work as computing it. So the memory of those that
died last is kept for the next: as many buffers as were in use at once, a gradient's and that of its derivative at most,
given out where they fit within an eighth, and freed as soon as they do not. NumPy allocates them, because it asks for
huge pages, which torch does not.
"""

from __future__ import annotations

import math
import os
import threading
import weakref

import numpy as np
import torch

_KEPT_FROM = 2**22
_KEPT_BUFFERS = 2
_lock = threading.Lock()
_kept: list[np.ndarray] = []


def _renew_lock() -> None:
    # Another thread of the parent may have held it, and is not there to let it go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised contiguous tensor."""
    size = math.prod(shape) * dtype.itemsize
    if size < _KEPT_FROM:
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = _take(size)
    view = buffer[:size]
    # The tensor holds the view, and the view alone: when both are gone no one can see the buffer any more.
    weakref.finalize(view, _keep, buffer).atexit = False
    return torch.from_numpy(view).view(dtype).view(shape)


def _take(size: int) -> np.ndarray:
    global _kept
    with _lock:
        fitting = [buffer for buffer in _kept if size <= buffer.size <= size + size // 8]
        _kept = fitting[:-1]
    return fitting[-1] if fitting else np.empty(size, np.uint8)


def _keep(buffer: np.ndarray) -> None:
    # Not waited for: the finaliser may run in the middle of _take on this very thread.
    if _lock.acquire(blocking=False):
        try:
            _kept.append(buffer)
            del _kept[:-_KEPT_BUFFERS]
        finally:
            _lock.release()
