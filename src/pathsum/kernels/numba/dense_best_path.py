"""The best path of a dense lattice on the CPU: max-plus over all pairs of states, frame by frame, and a trace back."""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import Strided, load_row, work_dtype
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import DensePath
from pathsum.lattice import DenseLattice


def best_path(
    scores: Strided,
    num_classes: int,
    lattice: DenseLattice,
    transitions: np.ndarray,
    *,
    num_frames: int,
    num_threads: int,
) -> DensePath:
    """The best path of each sample. ``scores`` has axes (N, T, C), T being ``num_frames``."""
    lengths = lattice.input_lengths
    states = np.full((len(lengths), num_frames), -1, np.int64)
    log_probs = np.empty(len(lengths))
    from_to = np.ascontiguousarray(transitions.T, np.float64)
    defined = bool((from_to < np.inf).all())
    memory = parallel.Memory()

    def solve(sample: int) -> None:
        length = int(lengths[sample])
        if length > 1 and not defined:
            log_probs[sample] = np.nan
            return
        alpha = memory.take((length, num_classes), np.float64)
        log_probs[sample] = _solve_sample(
            scores.flat, sample * scores.strides[0], scores.strides[1], scores.strides[2], scores.encoding,
            np.empty(num_classes, work_dtype(scores.flat)), from_to, alpha, states[sample, :length],
        )  # fmt: skip
        memory.give(alpha)

    num_threads = parallel.worthwhile(num_threads, int(lengths.sum()) * num_classes**2)
    parallel.run(solve, [(int(n),) for n in np.argsort(-lengths, kind="stable")], num_threads)
    return DensePath(log_probs, states)


@exact_kernel
def _solve_sample(flat, start, stride_t, stride_c, encoding, scratch, from_to, alpha, states):
    """The log-score of the best path, whose states are written; they are left alone where there is none."""
    flat, scratch, from_to, alpha = borrow(flat), borrow(scratch), borrow(from_to), borrow(alpha)
    num_classes = scratch.size
    best = np.zeros(num_classes)
    for t in range(states.size):
        if t > 0:
            # By source: a maximum within a row of sources would not vectorise, one for each target does.
            best[:] = -np.inf
            for i in range(num_classes):
                _raise_to(best, alpha[t - 1, i], from_to[i])
        row = load_row(flat, start + t * stride_t, stride_c, encoding, scratch)
        defined = True
        for j in range(num_classes):
            defined = defined and row[j] < np.inf
            alpha[t, j] = best[j] + np.float64(row[j])
        if not defined:
            return np.nan
    if states.size == 0:
        return 0.0

    final = alpha[states.size - 1]
    state = 0
    for j in range(1, num_classes):
        state = j if final[j] > final[state] else state
    log_prob = final[state]
    if log_prob == -np.inf:
        return log_prob
    states[states.size - 1] = state
    for t in range(states.size - 2, -1, -1):
        before = alpha[t]
        source = 0
        for i in range(1, num_classes):
            source = i if before[i] + from_to[i, state] > before[source] + from_to[source, state] else source
        state = source
        states[t] = state
    return log_prob


@part(forceinline=True, **COMPILE_EXACTLY)
def _raise_to(best, score, row):
    for j in range(best.size):
        candidate = score + row[j]
        best[j] = candidate if candidate > best[j] else best[j]
