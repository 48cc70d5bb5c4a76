"""Tensors as the kernels take them, what the kernels keep as tensors, and memory for gradients.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.kernels.numba import grid, joint
from pathsum.kernels.numba.rows import BFLOAT16, FLOAT16, NATIVE, Strided
from pathsum.kernels.protocol import Call
from pathsum.lattice import ArcLattice, GridLattice

_ENCODINGS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def memory_of(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor without a graph, as an array."""
    try:
        return tensor.numpy()
    except RuntimeError as error:
        rule = "impl='numba' reads memory, which a tensor of this kind has not"
        raise ImplementationError(f"{rule}: {type(tensor).__name__}") from error


def as_strided(tensor: Tensor) -> Strided:
    """The memory of a tensor from its first element to its last, half precision as its bits; where its elements are."""
    encoding, strides = _ENCODINGS.get(tensor.dtype, NATIVE), tensor.stride()
    tensor = tensor.detach() if encoding == NATIVE else tensor.detach().view(torch.uint16)
    if tensor.is_contiguous():
        return Strided(memory_of(tensor).reshape(-1), strides, encoding)
    extent = 0 if 0 in tensor.shape else 1 + sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
    return Strided(memory_of(tensor.as_strided((extent,), (1,))), strides, encoding)


def as_frames(tensor: Tensor, frames_first: bool) -> Strided:
    """The same with axes (N, T, C), of a tensor with these or (T, N, C)."""
    rows = as_strided(tensor)
    if not frames_first:
        return rows
    of_frames, of_samples, of_classes = rows.strides
    return Strided(rows.flat, (of_samples, of_frames, of_classes), rows.encoding)


def num_frames_of(call: Call) -> int:
    """T of scores (N, T, C), or (T, N, C)."""
    return call.scores[0].shape[0 if call.options.frames_first else 1]


def as_tensor(array: Any) -> Any:
    """A lattice's array as a tensor, which it is already where its values were unknown when it was posed."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def empty_like(tensor: Tensor) -> Tensor:
    """Contiguous memory for a gradient."""
    if tensor.nbytes < _KEPT_FROM:
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty(tensor.shape, tensor.dtype)


def time_major(scores: Tensor) -> bool:
    """Whether a gradient is laid out with its first two axes changed: in the order of the caller's memory, so that what
    comes before reads it in order.
    """
    return scores.stride(1) > scores.stride(0)


def empty_gradient(scores: Tensor) -> Tensor:
    """Memory for a gradient (N, T, C), or (T, N, C)."""
    if not time_major(scores):
        return empty_like(scores)
    num_samples, num_frames, num_classes = scores.shape
    if scores.nbytes < _KEPT_FROM:
        return scores.new_empty_strided(scores.shape, (num_classes, num_samples * num_classes, 1))
    return empty((num_frames, num_samples, num_classes), scores.dtype).transpose(0, 1)


def as_tangent(tangent: Tensor | None, scores: Tensor, frames_first: bool = False) -> Strided:
    """A tangent of the scores as ``as_frames`` gives them; zeros where there is none."""
    return as_frames(scores.new_zeros(1).expand(scores.shape) if tangent is None else tangent, frames_first)


def work_dtype(scores: Any) -> torch.dtype:
    """The dtype of softmax statistics, and of losses: float64 for float64 scores, and float32 for all others."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def as_table(transitions: Tensor, scores: Tensor) -> np.ndarray:
    """Transitions as the kernels take them: contiguous, in the dtype of arithmetic."""
    table, dtype = transitions.detach(), work_dtype(scores)
    return (table if table.dtype == dtype else table.to(dtype)).contiguous().numpy()


def as_gradient(array: np.ndarray, like: Tensor) -> Tensor:
    """A gradient in float64 as a tensor in the dtype of what it is the gradient by."""
    gradient = torch.from_numpy(array if like.dtype == torch.float64 else array.astype(np.float32))
    return gradient if gradient.dtype == like.dtype else gradient.to(like.dtype)


def as_rows(lattice: GridLattice | ArcLattice, *scores: Tensor | None) -> list[Any]:
    """Where the rows of each are, laid out as logits are, padded or packed; ``None`` of ``None``."""
    memory = [None if tensor is None else as_strided(tensor) for tensor in scores]
    return [
        own if own is None or tensor is None
        else grid.padded_rows(own, tensor.shape) if tensor.ndim == 4
        else grid.packed_rows(own, lattice)
        for own, tensor in zip(memory, scores, strict=True)
    ]  # fmt: skip


def as_joiner(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor, activation: str) -> joint.Joiner:
    """The operands as contiguous arrays of the dtype of arithmetic: themselves where they can be."""
    dtype = work_dtype(weight)
    operands = [operand.detach().to(dtype).contiguous().numpy() for operand in (encoder, predictor, weight, bias)]
    return joint.Joiner(operands[0], operands[1], operands[2], operands[3], joint.ACTIVATIONS[activation])


def gradients_as_tensors(gradients: joint.Joiner, dtype: torch.dtype) -> list[Tensor]:
    """Those of encoder, predictor, weight and bias in the operands' dtype."""
    return [torch.from_numpy(gradient).to(dtype) for gradient in gradients[:4]]


def fake_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def fake_gradient(scores: Tensor) -> Tensor:
    if time_major(scores):
        return torch.empty_like(scores.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


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
