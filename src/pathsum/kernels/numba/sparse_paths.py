"""Single paths through a lattice of graphs: the best, in order, and such as are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pathsum.kernels.numba import parallel, sparse, sparse_recursion
from pathsum.kernels.numba.compilation import exact_kernel, kernel
from pathsum.kernels.numba.merging import merge
from pathsum.kernels.numba.sparse_recursion import Arcs, emit, normal, scaled
from pathsum.kernels.protocol import SparsePath
from pathsum.lattice import SparseLattice


def k_best(
    scores: np.ndarray,
    lattice: SparseLattice,
    weights: np.ndarray,
    k: int,
    outputs: np.ndarray | None = None,
    *,
    num_threads: int,
) -> SparsePath:
    """The k best paths of each sample; ``scores`` (N, T, C) as in ``sparse``.

    ``outputs`` (W,), where given, are what the arcs of the weights write, below 0 nothing: of the paths that write the
    same string the best alone is listed.
    """

    def solve(graph: sparse.Weighted, rows: np.ndarray, sample: int, log_probs: np.ndarray, taken: np.ndarray) -> None:
        own, num_states = graph.arcs, len(graph.arcs.in_offsets) - 1
        used = weights[graph.weights]
        degrees = np.diff(own.in_offsets) + np.diff(own.epsilon_offsets)
        marks = np.zeros(len(used), np.uint64)
        if outputs is not None:
            marks[:] = np.maximum(outputs[graph.weights] + 1, 0)
        distinct = 0 if outputs is None else 2 * num_states + 1
        _list(
            own, rows, used[own.in_arcs], used[own.epsilon_arcs], used[len(used) - 2 * num_states :],
            marks[own.in_arcs], marks[own.epsilon_arcs], max(num_states, int(degrees.max(initial=0)) + 1),
            np.full((2 * num_states + 1, k), -np.inf), np.zeros((distinct, k), np.uint64),
            np.empty((len(rows) + 1, num_states, k), np.int64), log_probs, taken,
        )  # fmt: skip

    return _of_samples(solve, scores, lattice, weights, k, num_threads)


def sample_paths(
    scores: np.ndarray, lattice: SparseLattice, weights: np.ndarray, draws: np.ndarray, *, num_threads: int
) -> SparsePath:
    """Paths drawn by their posteriors; -1 in padding, and where there is no path.

    ``draws`` (N, K, T+1) lie in [0, 1): from a sample's first on they are made its choices from the end on.
    """

    memory = parallel.Memory()

    def solve(graph: sparse.Weighted, rows: np.ndarray, sample: int, log_probs: np.ndarray, taken: np.ndarray) -> None:
        own, num_states = graph.arcs, len(graph.arcs.in_offsets) - 1
        alpha, exponents = sparse.planes(memory, len(rows) + 1, num_states)
        work = sparse_recursion.rows(own, rows.shape[1])
        total, exponent = sparse_recursion.sweep_forward(own, rows, work, 1, alpha, exponents)
        if total > 0:
            used, drawn = weights[graph.weights], np.ascontiguousarray(draws[sample, :, : len(rows) + 1])
            _draw(
                own, rows, work, used[own.in_arcs], used[own.epsilon_arcs], used[len(used) - 2 * num_states :], alpha,
                exponents, total, exponent, drawn, log_probs, taken,
            )  # fmt: skip
        memory.give(alpha, exponents)

    return _of_samples(solve, scores, lattice, weights, draws.shape[1], num_threads)


def _of_samples(
    solve: Callable[..., None],
    scores: np.ndarray,
    lattice: SparseLattice,
    weights: np.ndarray,
    count: int,
    num_threads: int,
) -> SparsePath:
    """What solving each sample writes: log-scores (K,), and places (K, T) of the arcs among those by destination."""
    num_samples, num_frames, _ = scores.shape
    log_probs = np.full((num_samples, count), -np.inf)
    arcs, labels = np.full((2, num_samples, count, num_frames), -1, np.int64)
    graphs = sparse.graphs_of(lattice, weights)

    def solve_sample(sample: int) -> None:
        graph = graphs[lattice.graph_of_sample[sample]]
        rows, offset = sparse.read(scores, lattice, graph, sample)
        if not (graph.defined and offset < math.inf):
            log_probs[sample] = math.nan
            return
        taken = np.empty((count, len(rows)), np.int64)
        solve(graph, rows, sample, log_probs[sample], taken)
        found = log_probs[sample] > -math.inf
        log_probs[sample] += offset
        _tell(graph.arcs, graph.classes, taken[found], found, arcs[sample, :, : len(rows)], labels[sample])

    num_threads = parallel.worthwhile(num_threads, sparse.work_of(lattice, graphs))
    parallel.run(solve_sample, [(int(n),) for n in sparse.in_order(lattice, graphs)], num_threads)
    return SparsePath(log_probs, arcs, labels)


def _tell(
    own: Arcs, classes: np.ndarray, taken: np.ndarray, found: np.ndarray, arcs: np.ndarray, labels: np.ndarray
) -> None:
    """Numbers and classes of the arcs at these places."""
    arcs[found] = own.in_arcs[taken]
    labels[found, : arcs.shape[1]] = classes[own.in_labels[taken]]


@exact_kernel
def _list(
    arcs, scores, weights, epsilon_weights, ends, marks, epsilon_marks, width, lists, strings, back, log_probs, taken
):
    """The log-scores (K,) of the best paths; into ``taken`` (K, T) the places of their arcs.

    ``lists`` (2 * S + 1, K) are of the states before and after a frame, and one that holds the path without arcs.
    ``back`` (T+1, S, K) remembers for each state which of its ways into it a path took, and which of those there.
    """
    num_frames, num_states, size = scores.shape[0], back.shape[1], log_probs.size
    nodes, heads, own_marks = np.empty(width, np.int64), np.empty(width), np.empty(width, np.uint64)
    front, ranks, spelled = np.empty(width), np.empty(width, np.int64), np.empty(size, np.uint64)
    lists[2 * num_states, 0] = 0.0
    for t in range(num_frames + 1):
        now, then = t % 2 * num_states, (t + 1) % 2 * num_states
        for s in range(num_states):
            count = 0
            if t == 0:
                nodes[0], heads[0], own_marks[0], count = 2 * num_states, ends[s], 0, 1
            else:
                for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                    nodes[count] = then + arcs.in_sources[k]
                    heads[count] = weights[k] + scores[t - 1, arcs.in_labels[k]]
                    own_marks[count] = marks[k]
                    count += 1
            for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
                nodes[count] = now + arcs.epsilon_sources[k]
                heads[count] = epsilon_weights[k]
                own_marks[count] = epsilon_marks[k]
                count += 1
            merge(lists, nodes, heads, count, front, ranks, lists[now + s], back[t, s], strings, own_marks, spelled)
            if strings.size > 0:
                strings[now + s] = spelled

    now = num_frames % 2 * num_states
    for s in range(num_states):
        nodes[s], heads[s], own_marks[s] = now + s, ends[num_states + s], 0
    codes = np.empty(size, np.int64)
    merge(lists, nodes, heads, num_states, front, ranks, log_probs, codes, strings, own_marks, spelled)
    for r in range(size):
        if codes[r] >= 0:
            state, rank, t = codes[r] // size, codes[r] % size, num_frames
            while True:
                way, rank = back[t, state, rank] // size, back[t, state, rank] % size
                entering = arcs.in_offsets[state + 1] - arcs.in_offsets[state] if t > 0 else np.int64(1)
                if way >= entering:
                    state = np.int64(arcs.epsilon_sources[arcs.epsilon_offsets[state] + way - entering])
                elif t == 0:
                    break
                else:
                    t -= 1
                    place = arcs.in_offsets[state] + way
                    taken[r, t], state = place, np.int64(arcs.in_sources[place])


@kernel
def _draw(
    arcs, scores, work, weights, epsilon_weights, ends, alpha, exponents, total, total_exponent, draws, log_probs, taken
):
    """Places of the arcs of paths, from the end back: each as probable as its part of what is in its state.

    Log-scores and the ends' scores are for ``log_probs``, which take the sums along the paths.
    """
    num_frames, num_states = scores.shape[0], alpha.shape[1]
    emitted, emitted_exponents = work.emitted, work.emitted_exponents
    states = np.empty(draws.shape[0], np.int64)
    for d in range(draws.shape[0]):
        # What is left of a number once it has chosen is evenly spread again, and chooses behind an epsilon arc.
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
                    left /= part
                    break
                left -= part
        states[d], draws[d, num_frames], log_probs[d] = state, left, ends[num_states + state]
    for t in range(num_frames, -1, -1):
        if t > 0:
            emit(scores[t - 1], emitted, emitted_exponents)
        for d in range(draws.shape[0]):
            state, left, place = states[d], draws[d, t], np.int64(-1)
            while True:
                # Rounding may leave a little of a number behind the last way into a state, which takes it.
                whole, whole_exponent = alpha[t, state], exponents[t, state]
                found, epsilon, part = False, np.int64(-1), 1.0
                if t == 0:
                    part = scaled(arcs.end_mantissas[state] / whole, arcs.end_exponents[state] - whole_exponent)
                    found = left < part
                    left -= 0.0 if found else part
                else:
                    for k in range(arcs.in_offsets[state], arcs.in_offsets[state + 1]):
                        source, label = arcs.in_sources[k], arcs.in_labels[k]
                        term, exponent = normal(
                            alpha[t - 1, source] * (arcs.in_mantissas[k] * emitted[label]),
                            exponents[t - 1, source] + arcs.in_exponents[k] + emitted_exponents[label],
                        )
                        if term != 0:
                            place, part = np.int64(k), scaled(term / whole, exponent - whole_exponent)
                            found = left < part
                            if found:
                                break
                            left -= part
                if not found:
                    for k in range(arcs.epsilon_offsets[state], arcs.epsilon_offsets[state + 1]):
                        source = arcs.epsilon_sources[k]
                        if alpha[t, source] != 0 and arcs.epsilon_mantissas[k] != 0:
                            epsilon = np.int64(k)
                            part = scaled(
                                alpha[t, source] / whole * arcs.epsilon_mantissas[k],
                                exponents[t, source] + arcs.epsilon_exponents[k] - whole_exponent,
                            )
                            if left < part:
                                break
                            left -= part
                if epsilon < 0:
                    break
                log_probs[d] += epsilon_weights[epsilon]
                left, state = min(left / part, 1.0), np.int64(arcs.epsilon_sources[epsilon])
            if t == 0:
                log_probs[d] += ends[state]
            else:
                log_probs[d] += weights[place] + scores[t - 1, arcs.in_labels[place]]
                taken[d, t - 1], states[d] = place, np.int64(arcs.in_sources[place])
