"""The sum of two gradients of the same scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import parallel
from pathsum.torch._ops.arrays import empty_like
from pathsum.torch._ops.registration import fake, operator


@operator
def add(first: Tensor, second: Tensor) -> Tensor:
    """first + second, laid out in memory as the first.

    By the threads of the kernels: torch's spin on after their work, and the kernels that follow find a core taken.
    """
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    arrays = [tensor.detach().permute(order) for tensor in (first, second)]
    total = empty_like(arrays[0])
    inputs, out = [array.numpy() for array in arrays], total.numpy()

    def add_rows(start: int, stop: int) -> None:
        np.add(inputs[0][start:stop], inputs[1][start:stop], out=out[start:stop])

    num_threads = parallel.worthwhile(torch.get_num_threads(), first.numel() // 4)
    parallel.run(add_rows, parallel.split_evenly(len(out), num_threads), num_threads)
    return total.permute([order.index(axis) for axis in range(first.ndim)])


@fake(add)
def _(first, second):
    return torch.empty_like(first)
