"""Posteriors as the forward kernels leave them, in padded arrays: 0 in padding and where no path exists."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from pathsum.kernels.numba import chain, dense, grid
from pathsum.kernels.numba.rows import Strided
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice


def chain_posteriors(
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    transitions: np.ndarray | None = None,
    *,
    num_frames: int,
    logits: bool,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses (N,), and posteriors of the arcs that stay in and of those that enter each state, (N, T, S') each."""
    # Labels of their own, even if equal, have the kernel tell the arcs apart.
    lattice = replace(lattice, shared_labels=False)
    saved = chain.forward(
        scores, num_classes, lattice, transitions, logits=logits, need_gradient=True, num_threads=num_threads
    )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lattice.input_lengths)])
    width = lattice.step_labels.shape[1]
    padded = []
    for plane in saved.posteriors:
        padded.append(np.zeros((len(saved.losses), num_frames, width), plane.dtype))
        for n, (first, last) in enumerate(pairwise(offsets)):
            if saved.losses[n] < np.inf:
                states = int(lattice.num_states[n])
                padded[-1][n, : last - first, :states] = plane[first:last, :states]
    return saved.losses, padded[0], padded[1]


def grid_posteriors(
    rows: grid.GridRows,
    num_classes: int,
    lattice: GridLattice,
    *,
    num_frames: int,
    num_labels: int,
    logits: bool,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses (N,), and posteriors of the blank and of the label arcs out of each node, (N, T, U+1) each."""
    saved = grid.forward(rows, num_classes, lattice, logits=logits, need_gradient=True, num_threads=num_threads)
    padded = []
    for plane in saved.posteriors:
        padded.append(np.zeros((len(saved.losses), num_frames, num_labels + 1), plane.dtype))
        for n, (first, last) in enumerate(pairwise(lattice.row_offsets)):
            if saved.losses[n] < np.inf:
                shape = (int(lattice.logit_lengths[n]), int(lattice.target_lengths[n]) + 1)
                padded[-1][n, : shape[0], : shape[1]] = plane[first:last].reshape(shape)
    return saved.losses, padded[0], padded[1]


def dense_posteriors(
    scores: Strided,
    num_classes: int,
    lattice: DenseLattice,
    transitions: np.ndarray,
    *,
    num_frames: int,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses (N,), posteriors of each state in each frame (N, T, C), and how often each arc is expected (C, C).

    Arcs are counted over all frames of all samples but those of NaN.
    """
    saved = dense.forward(scores, num_classes, lattice, transitions, need_gradient=True, num_threads=num_threads)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lattice.input_lengths)])
    padded = np.zeros((len(saved.losses), num_frames, num_classes), saved.gamma.dtype)
    for n, (first, last) in enumerate(pairwise(offsets)):
        if saved.losses[n] < np.inf:
            padded[n, : last - first] = saved.gamma[first:last, :num_classes]
    counted = -1.0 * ~np.isnan(saved.losses)
    counts = dense.transition_gradient(
        counted, scores, num_classes, lattice, transitions, saved, num_threads=num_threads
    )
    return saved.losses, padded, counts
