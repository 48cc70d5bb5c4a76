"""The compiled kernels of lattices of graphs as a foreign function."""

from __future__ import annotations

from dataclasses import fields

import jax
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import num_threads
from pathsum.kernels.numba import sparse
from pathsum.kernels.protocol import SparseOptions
from pathsum.lattice import Array, SparseLattice

_NARROW = ("in_sources", "in_labels", "in_arcs", "out_destinations", "out_labels", "out_arcs", "epsilon_sources",
           "epsilon_arcs", "epsilon_levels")  # fmt: skip


def forward(
    scores: Array, weights: Array, lattice: SparseLattice, *, by_weights: bool, need_gradient: bool
) -> list[Array]:
    """Losses (N,) of scores (N, T, C) and weights (W,), and the gradients of each, (N, T, C) and (N, W).

    The latter is 0 where derivatives by the weights are not asked for.
    """
    num_samples = scores.shape[0]
    results = [jax.ShapeDtypeStruct((num_samples,), weights.dtype)]
    if need_gradient:
        results.append(jax.ShapeDtypeStruct(scores.shape, scores.dtype))
        results.append(jax.ShapeDtypeStruct((num_samples, len(weights)), weights.dtype))
    arrays = (getattr(lattice, field.name) for field in fields(SparseLattice))
    return ffi.call("sparse", results, "sequential", scores, weights, *arrays, by_weights=by_weights)


def _run(arguments: list[np.ndarray], results: list[np.ndarray], options: dict[str, float]) -> None:
    scores, weights, *arrays = arguments
    names = [field.name for field in fields(SparseLattice)]
    lattice = SparseLattice(**{
        name: array.astype(np.int32 if name in _NARROW else np.int64)
        for name, array in zip(names, arrays, strict=True)
    })  # fmt: skip
    asked = SparseOptions(by_weights=bool(options["by_weights"]))
    # Half precision is not one of NumPy's own.
    numbers = scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float32)
    saved = sparse.forward(
        numbers, lattice, weights.astype(np.float64), asked, need_gradient=len(results) > 1, num_threads=num_threads()
    )
    results[0][:] = saved.losses
    if len(results) > 1:
        found = np.empty(numbers.shape, numbers.dtype)
        sparse.write_gradient(np.ones(len(saved.losses)), lattice, saved, found)
        results[1][:] = found
        results[2][:] = 0
        if asked.by_weights:
            for row, graph, counts in zip(
                results[2], lattice.graph_of_sample, sparse.counts_of(lattice, saved.counts), strict=True
            ):
                row[slice(*lattice.weight_offsets[graph : graph + 2])] = -counts


ffi.register("sparse", _run, "by_weights")
