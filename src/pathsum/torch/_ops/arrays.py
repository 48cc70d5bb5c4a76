"""Tensors as the kernels take them, and what the kernels keep as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid
from pathsum.kernels.numba.rows import BFLOAT16, FLOAT16, NATIVE
from pathsum.kernels.protocol import Saved
from pathsum.lattice import ArcLattice, GridLattice
from pathsum.torch import _memory

_ENCODINGS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def as_array(tensor: Tensor) -> tuple[np.ndarray, int]:
    """The memory of a tensor as NumPy sees it; half precision as its bits."""
    encoding = _ENCODINGS.get(tensor.dtype, NATIVE)
    tensor = tensor.detach()
    return (tensor if encoding == NATIVE else tensor.view(torch.uint16)).numpy(), encoding


def as_tensor(array: Any) -> Any:
    """A lattice's array as a tensor, which it is already where its values were unknown when it was posed."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def empty_like(tensor: Tensor) -> Tensor:
    """Contiguous memory for a gradient."""
    return _memory.empty(tensor.shape, tensor.dtype)


def time_major(scores: Tensor) -> bool:
    """Whether a gradient (N, T, C) is laid out as (T, N, C): in the order of the caller's memory, so that what comes
    before reads it in order.
    """
    return scores.stride(1) > scores.stride(0)


def empty_gradient(scores: Tensor) -> Tensor:
    """Memory for a gradient (N, T, C)."""
    return empty_like(scores.transpose(0, 1)).transpose(0, 1) if time_major(scores) else empty_like(scores)


def as_tangent(tangent: Tensor | None, scores: Tensor) -> tuple[np.ndarray, int]:
    """A tangent of the scores as ``as_array`` gives them; zeros where there is none."""
    return as_array(scores.new_zeros(1).expand(scores.shape) if tangent is None else tangent)


def work_dtype(scores: Tensor) -> torch.dtype:
    """The dtype of softmax statistics, and of losses: never below float32."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def as_table(transitions: Tensor, scores: Tensor) -> np.ndarray:
    """Transitions as the kernels take them: contiguous, in the dtype of arithmetic."""
    return transitions.detach().to(work_dtype(scores)).contiguous().numpy()


def as_tensors(saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, second = saved.posteriors
    losses, maxima, sums, first, second = map(torch.from_numpy, (saved.losses, saved.maxima, saved.sums, first, second))
    return losses, maxima, sums, first, second


def as_saved(losses: Tensor, maxima: Tensor, sums: Tensor, first: Tensor, second: Tensor) -> Saved:
    return Saved(losses.numpy(), maxima.numpy(), sums.numpy(), (first.numpy(), second.numpy()))


def as_rows(scores: Tensor, lattice: GridLattice | ArcLattice) -> grid.GridRows:
    array, encoding = as_array(scores)
    return grid.padded_rows(array, encoding) if array.ndim == 4 else grid.packed_rows(array, encoding, lattice)


def as_grid(
    logit_lengths: Tensor, target_lengths: Tensor, targets: Tensor, row_offsets: Tensor, blank: int
) -> GridLattice:
    return GridLattice(
        logit_lengths=logit_lengths.numpy(),
        target_lengths=target_lengths.numpy(),
        targets=targets.numpy(),
        blank=blank,
        row_offsets=row_offsets.numpy(),
    )


def row_scales(grad_losses: Tensor, losses: Tensor, row_offsets: Tensor, num_rows: int) -> np.ndarray:
    """Minus the upstream gradient of each row's sample; 0 where no path or no sample is, NaN where the loss is."""
    # By NumPy: for planes this small waking the threads that torch would is most of the time.
    scale = np.where(np.isposinf(losses.numpy()), 0.0, -grad_losses.detach().numpy())
    rows = np.repeat(np.where(np.isnan(losses.numpy()), np.nan, scale), np.diff(row_offsets.numpy()))
    return rows if len(rows) == num_rows else np.pad(rows, (0, num_rows - len(rows)))


def fake_results(scores: Tensor, num_samples: int, *, axes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a forward returns whose posteriors have so many axes."""
    # Only backward reads what follows the losses; its sizes depend on the lengths' values.
    context = torch.library.get_ctx()
    work = work_dtype(scores)
    losses = scores.new_empty(num_samples, dtype=torch.float64)
    maxima, sums = (scores.new_empty(context.new_dynamic_size(), dtype=work) for _ in range(2))
    first, second = (scores.new_empty([context.new_dynamic_size() for _ in range(axes)], dtype=work) for _ in range(2))
    return losses, maxima, sums, first, second


def fake_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def fake_gradient(scores: Tensor) -> Tensor:
    if time_major(scores):
        return torch.empty_like(scores.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)
    return torch.empty_like(scores, memory_format=torch.contiguous_format)
