"""Columns of a linear layer's log-softmax on the CPU: products of torch's, and kernels for what is between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import linear, parallel
from pathsum.torch._linear import Layer, LinearOperators, Tile


class Linear(LinearOperators):
    name, device = "linear", "CPU"

    def read_tile(
        self, layer: Layer, tile: Tile, logits: Tensor, maxima: Tensor, sums: Tensor, columns: Tensor
    ) -> None:
        of_rows = [array[tile.rows].numpy() for array in (layer.samples, maxima, sums, columns)]
        _by_rows(linear.read_rows, logits, tile, layer, *of_rows)

    def normalise(self, columns: Tensor, maxima: Tensor, sums: Tensor) -> None:
        linear.normalise_columns(columns.numpy(), maxima.numpy(), sums.numpy())

    def differentiate(
        self, layer: Layer, tile: Tile, logits: Tensor, maxima: Tensor, scales: Tensor, of_columns: Tensor
    ) -> None:
        of_rows = [array[tile.rows].numpy() for array in (layer.samples, maxima, scales, of_columns)]
        _by_rows(linear.differentiate_rows, logits, tile, layer, *of_rows)


def _by_rows(function: Callable[..., None], logits: Tensor, tile: Tile, layer: Layer, *of_rows: np.ndarray) -> None:
    """Call a kernel for shares of a tile's rows."""
    tiled, classes = logits.numpy(), layer.columns.numpy()
    threads = parallel.worthwhile(torch.get_num_threads(), tiled.size)

    def share(first: int, last: int) -> None:
        function(tiled, first, last, tile.classes.start, classes, *of_rows)

    parallel.run(share, parallel.split_evenly(len(tiled), threads), threads)
