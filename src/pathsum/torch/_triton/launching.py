"""What every launch needs: the device, memory, block sizes, and where rows are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.triton import plan
from pathsum.kernels.triton.compilation import float_of
from pathsum.kernels.triton.plan import Tiles


def launch(kernel: Any, grid: tuple[int, ...], beside: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of a tensor, in its current stream; a grid of no programs is not run."""
    if 0 in grid:
        return
    with torch.cuda.device(beside.device) if beside.is_cuda else contextlib.nullcontext():
        kernel[grid](*arguments, **constants)


def even(size: int) -> int:
    """A number of words, rounded up so that what lies behind them begins at a multiple of 16 bytes too.

    Kernels are compiled for that property of a pointer: if it came and went with a length, a new length would compile.
    """
    return size + size % 2


def scan() -> dict[str, int]:
    """Options of kernels that scan rows: one wavefront on ROCm, where scans over several may be wrong.

    https://github.com/ROCm/triton/issues/947
    """
    return {"num_warps": 1} if torch.version.hip else {}


def warps(block: int) -> int:
    """Warps of a program whose lanes wait for each other: about one lane an element."""
    return plan.warps(block, 64 if torch.version.hip else 32)


def work_dtype(scores: Tensor) -> torch.dtype:
    """The dtype of softmax statistics, and of losses: never below float32."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def in_triton(dtype: torch.dtype) -> Any:
    return float_of(dtype.itemsize)


def aligned(*tensors: Tensor) -> int:
    """How many elements are moved at a time: 16 bytes where every row of classes is made of such pieces, else 1."""
    size = 16 // tensors[0].dtype.itemsize
    steps = [step for tensor in tensors for step in (*tensor.stride()[:-1], tensor.shape[-1])]
    in_pieces = all(tensor.stride(-1) == 1 for tensor in tensors) and all(step % size == 0 for step in steps)
    return size if in_pieces else 1


def layout(*tensors: Tensor) -> dict[str, Any]:
    """How classes are moved: ``ALIGNED`` elements at a time where they lie side by side, 16 bytes, else one.

    ``RAGGED``: rows begin anywhere in such a piece, in the same place of it in every tensor.
    """
    size = 16 // tensors[0].dtype.itemsize
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in tensors):
        return {"ALIGNED": 1, "RAGGED": False}
    if aligned(*tensors) == size:
        return {"ALIGNED": size, "RAGGED": False}
    phases = {tuple(step % size for step in tensor.stride()[:-1]) for tensor in tensors}
    return {"ALIGNED": size if len(phases) == 1 else 1, "RAGGED": True}


def tiles(num_classes: int, work: torch.dtype) -> Tiles:
    return plan.tiles(num_classes, work.itemsize)


def row_tiles(num_classes: int, work: torch.dtype) -> Tiles:
    return plan.row_tiles(num_classes, work.itemsize)


def in_rows(*tensors: Tensor | None) -> list[Any]:
    """Integers as kernels read them, contiguous; posing may leave them strided."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def sent(device: torch.device, *integers: Tensor) -> list[Tensor]:
    """Integers on a device, contiguous; from pinned memory the copy waits in its queue, and nobody waits for it."""
    from_host = device.type == "cuda"
    return [
        (tensor.pin_memory() if from_host and tensor.device.type == "cpu" else tensor)
        .to(device, non_blocking=True)
        .contiguous()
        for tensor in integers
    ]


def in_memory(integers: Tensor) -> bool:
    """Whether a look at them waits for no device."""
    return integers.device.type == "cpu"


def empty_gradient(scores: Tensor) -> Tensor:
    """Memory for a gradient (N, T, C), in the order of the scores' own, so that what comes before reads it in order."""
    time_major = scores.stride(1) > scores.stride(0)
    order = (1, 0, 2) if time_major else (0, 1, 2)
    return torch.empty([scores.shape[i] for i in order], dtype=scores.dtype, device=scores.device).permute(order)


def written(device: torch.device, dtype: torch.dtype, *numbers: float) -> Tensor:
    """Numbers, written on the device: a copy from here would have to outlive a graph that is captured."""
    return torch.cat([torch.full((1,), number, dtype=dtype, device=device) for number in numbers])


def flags(beside: Tensor, *sizes: int) -> list[Tensor]:
    """Rows of zeros (size,) in int32, made at once; each begins at a multiple of 16 bytes, see ``even``."""
    size = plan.programs(max(sizes), 4) * 4
    rows = torch.zeros(len(sizes), size, dtype=torch.int32, device=beside.device)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]


def nowhere(beside: Tensor, *shape: int) -> Tensor:
    """Places of paths that do not exist."""
    return torch.full(shape, -1, dtype=torch.int64, device=beside.device)


Empty = Callable[..., Tensor]


def empties(beside: Tensor) -> Empty:
    """``torch.empty`` on the device of a tensor."""

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=beside.device)

    return empty
