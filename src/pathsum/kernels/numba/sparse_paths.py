"""Single paths through a lattice of graphs: the best one, and such as are drawn."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pathsum.kernels.numba import parallel, sparse, sparse_recursion
from pathsum.kernels.numba.compilation import COMPILE, exact_kernel, kernel
from pathsum.kernels.numba.sparse_recursion import emit, normal, scaled
from pathsum.kernels.protocol import SparsePath
from pathsum.lattice import SparseLattice


def best_path(scores: np.ndarray, lattice: SparseLattice, weights: np.ndarray, *, num_threads: int) -> SparsePath:
    """The best path of each sample; ``scores`` (N, T, C) as in ``sparse``."""
    num_samples, num_frames, _ = scores.shape
    log_probs = np.empty(num_samples)
    arcs, labels = np.full((2, num_samples, num_frames), -1, np.int64)
    graphs = sparse.graphs_of(lattice, weights)

    def solve(sample: int) -> None:
        graph = graphs[lattice.graph_of_sample[sample]]
        rows, offset = sparse.read(scores, lattice, graph, sample)
        if not (graph.defined and offset < math.inf):
            log_probs[sample] = math.nan
            return
        own, num_states = graph.arcs, len(graph.arcs.in_offsets) - 1
        used = weights[graph.weights]
        taken = np.full(len(rows), -1, np.int64)
        found = _best(
            own, rows, used[own.in_arcs], used[own.epsilon_arcs], used[len(used) - 2 * num_states :],
            np.empty((2, num_states)), np.empty((len(rows) + 1, num_states), np.int32), taken,
        )  # fmt: skip
        log_probs[sample] = found + offset
        _tell(graph, taken, arcs[sample], labels[sample])

    num_threads = parallel.worthwhile(num_threads, sparse.work_of(lattice, graphs))
    parallel.run(solve, [(int(n),) for n in sparse.in_order(lattice, graphs)], num_threads)
    return SparsePath(log_probs, arcs, labels)


def sample_paths(
    scores: np.ndarray, lattice: SparseLattice, weights: np.ndarray, draws: np.ndarray, *, num_threads: int
) -> np.ndarray:
    """Arcs (K, N, T) of paths drawn by their posteriors; -1 in padding, and where there is no path.

    ``draws`` (K, N, T+1) lie in [0, 1): from a sample's first on they are made its choices from the end on.
    """
    num_samples, num_frames, _ = scores.shape
    arcs = np.full((len(draws), num_samples, num_frames), -1, np.int64)
    graphs = sparse.graphs_of(lattice, weights)

    def solve(sample: int) -> None:
        graph = graphs[lattice.graph_of_sample[sample]]
        rows, offset = sparse.read(scores, lattice, graph, sample)
        own, num_states = graph.arcs, len(graph.arcs.in_offsets) - 1
        if not (graph.defined and offset < math.inf):
            return
        alpha, exponents = sparse.planes(len(rows) + 1, num_states)
        work = sparse_recursion.rows(num_states, rows.shape[1])
        total, exponent = sparse_recursion.sweep_forward(own, rows, work, 1, alpha, exponents)
        if total > 0:
            drawn = np.ascontiguousarray(draws[:, sample, : len(rows) + 1])
            taken = np.empty((len(draws), len(rows)), np.int64)
            _draw(own, rows, work, alpha, exponents, total, exponent, drawn, taken)
            arcs[:, sample, : len(rows)] = own.in_arcs[taken]

    num_threads = parallel.worthwhile(num_threads, sparse.work_of(lattice, graphs))
    parallel.run(solve, [(int(n),) for n in sparse.in_order(lattice, graphs)], num_threads)
    return arcs


def _tell(graph: sparse.Weighted, taken: np.ndarray, arcs: np.ndarray, labels: np.ndarray) -> None:
    """Numbers and classes of the arcs at these places."""
    if len(taken) and taken[0] >= 0:
        arcs[: len(taken)] = graph.arcs.in_arcs[taken]
        labels[: len(taken)] = graph.classes[graph.arcs.in_labels[taken]]


@exact_kernel
def _best(arcs, scores, weights, epsilon_weights, ends, alpha, back, taken):
    """The log-score of the best path; into ``taken`` (T,) the place of each frame's arc among those by destination.

    ``back`` remembers for each state the place of the arc that it was entered by, of an epsilon arc -2 less its place.
    """
    num_frames, num_states = scores.shape[0], alpha.shape[1]
    for s in range(num_states):
        alpha[0, s], back[0, s] = ends[s], -1
    _relax_best(arcs, epsilon_weights, alpha[0], back[0])
    for t in range(num_frames):
        old, new = alpha[t % 2], alpha[(t + 1) % 2]
        for s in range(num_states):
            best, place = -np.inf, -1
            for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                candidate = old[arcs.in_sources[k]] + weights[k] + scores[t, arcs.in_labels[k]]
                if candidate > best:
                    best, place = candidate, k
            new[s], back[t + 1, s] = best, place
        _relax_best(arcs, epsilon_weights, new, back[t + 1])

    last, best, state = alpha[num_frames % 2], -np.inf, -1
    for s in range(num_states):
        if last[s] + ends[num_states + s] > best:
            best, state = last[s] + ends[num_states + s], s
    if state < 0:
        return best
    t = num_frames
    while t > 0 or back[t, state] < -1:
        place = back[t, state]
        if place < -1:
            state = np.int64(arcs.epsilon_sources[-2 - place])
        else:
            t -= 1
            taken[t] = place
            state = np.int64(arcs.in_sources[place])
    return best


@njit(**COMPILE)
def _relax_best(arcs, weights, alpha, back):
    for s in range(alpha.size):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            candidate = alpha[arcs.epsilon_sources[k]] + weights[k]
            if candidate > alpha[s]:
                alpha[s], back[s] = candidate, -2 - k


@kernel
def _draw(arcs, scores, work, alpha, exponents, total, total_exponent, draws, taken):
    """Places of the arcs of paths, from the end back: each as probable as its part of what is in its state."""
    num_frames, num_states = scores.shape[0], alpha.shape[1]
    emitted, emitted_exponents = work.emitted, work.emitted_exponents
    states = np.empty(draws.shape[0], np.int64)
    for d in range(draws.shape[0]):
        # What is left of a number once it has chosen is evenly spread again, and chooses the epsilon arcs.
        left, state = draws[d, num_frames], -1
        for s in range(num_states):
            if alpha[num_frames, s] != 0 and arcs.end_mantissas[num_states + s] != 0:
                state, part = (
                    s,
                    scaled(
                        alpha[num_frames, s] / total * arcs.end_mantissas[num_states + s],
                        exponents[num_frames, s] + arcs.end_exponents[num_states + s] - total_exponent,
                    ),
                )
                if left < part:
                    draws[d, num_frames] = left / part
                    break
                left -= part
        states[d] = state
    for t in range(num_frames, -1, -1):
        if t > 0:
            emit(scores[t - 1], emitted, emitted_exponents)
        for d in range(draws.shape[0]):
            state, left = states[d], draws[d, t]
            while True:
                whole, place = alpha[t, state], exponents[t, state]
                moved = False
                for k in range(arcs.epsilon_offsets[state], arcs.epsilon_offsets[state + 1]):
                    source = arcs.epsilon_sources[k]
                    if alpha[t, source] != 0 and arcs.epsilon_mantissas[k] != 0:
                        part = scaled(
                            alpha[t, source] / whole * arcs.epsilon_mantissas[k],
                            exponents[t, source] + arcs.epsilon_exponents[k] - place,
                        )
                        if left < part:
                            left, state, moved = left / part, np.int64(source), True
                            break
                        left -= part
                if not moved:
                    break
            if t == 0:
                continue
            # Rounding may leave a little of a number behind the last arc, which takes it.
            for k in range(arcs.in_offsets[state], arcs.in_offsets[state + 1]):
                source, label = arcs.in_sources[k], arcs.in_labels[k]
                term, exponent = normal(
                    alpha[t - 1, source] * (arcs.in_mantissas[k] * emitted[label]),
                    exponents[t - 1, source] + arcs.in_exponents[k] + emitted_exponents[label],
                )
                if term != 0:
                    taken[d, t - 1], states[d] = k, np.int64(source)
                    part = scaled(term / alpha[t, state], exponent - exponents[t, state])
                    if left < part:
                        break
                    left -= part
