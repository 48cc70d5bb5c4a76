"""Lattices of graphs on the CPU: a sample at a time, from its scores to the posteriors of its classes.

``scores`` (N, T, C) are float32 or float64, of any strides. The sweeps are ``sparse_recursion``'s, in float64; those of
samples that share a graph are ``sparse_lanes``', where these are in reach of plain floats. What they remember of the
frames is given back when a sample is done, so that only the posteriors are kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import parallel, sparse_lanes, sparse_recursion
from pathsum.kernels.numba.sparse_recursion import LOG_UNIT, Arcs
from pathsum.kernels.protocol import SparseOptions, SparseSaved
from pathsum.lattice import SparseLattice

# Fewer samples of a graph than this take less time one by one.
_FEWEST = 4


def forward(
    scores: np.ndarray,
    lattice: SparseLattice,
    weights: np.ndarray,
    options: SparseOptions,
    *,
    need_gradient: bool,
    num_threads: int,
) -> SparseSaved:
    """Losses of a batch, -log of the sum over all paths, and where asked the posteriors of classes and weights."""
    num_samples = len(lattice.input_lengths)
    losses = np.empty(num_samples)
    places = places_of(lattice)
    gamma = np.zeros(places[-1] if need_gradient else 0, scores.dtype)
    wanted = need_gradient and options.by_weights
    counted = weight_places(lattice)
    counts = np.zeros(counted[-1] if wanted else 0)
    graphs = graphs_of(lattice, weights)
    num_threads = parallel.worthwhile(num_threads, work_of(lattice, graphs))
    share, memory = options.memory // max(1, min(num_threads, num_samples)), parallel.Memory()

    def solve(sample: int) -> None:
        graph = graphs[lattice.graph_of_sample[sample]]
        rows, offset = read(scores, lattice, graph, sample)
        own = gamma[places[sample] : places[sample + 1]].reshape(rows.shape) if need_gradient else None
        taken = counts[counted[sample] : counted[sample + 1]] if wanted else counts[:0]
        if not (graph.defined and offset < math.inf):
            losses[sample] = math.nan
            if own is not None:
                own[:] = math.nan
            taken[:] = math.nan
            return
        losses[sample] = solve_rows(graph.arcs, rows, own, taken, share, memory) - offset

    def solve_together(samples: list[int]) -> None:
        graph = graphs[lattice.graph_of_sample[samples[0]]]
        read_of = [read(scores, lattice, graph, n) for n in samples]
        defined = [place for place, (_, offset) in enumerate(read_of) if offset < math.inf]
        found = sparse_lanes.solve(graph.arcs, [read_of[n][0] for n in defined], need_gradient=need_gradient)
        alone = set(samples)
        for lane, place in enumerate(defined):
            sample, (rows, offset) = samples[place], read_of[place]
            if found.reached[lane]:
                alone.remove(sample)
                losses[sample] = found.losses[lane] - offset
                if need_gradient:
                    own = gamma[places[sample] : places[sample + 1]].reshape(rows.shape)
                    own[:] = found.gamma[: len(own), :, lane]
        for sample in alone:
            solve(sample)

    def solve_group(samples: list[int]) -> None:
        if len(samples) == 1:
            solve(samples[0])
        else:
            solve_together(samples)

    parallel.run(solve_group, [(group,) for group in _groups(lattice, graphs, share, wanted)], num_threads)
    return SparseSaved(losses, gamma, counts)


def _groups(lattice: SparseLattice, graphs: list[Weighted], memory: int, counted: bool) -> list[list[int]]:
    """Samples that are solved together, as many as there are lanes, of one graph; and then such as are alone."""
    alone: list[list[int]] = []
    together: list[list[int]] = []
    of_graph: dict[int, list[int]] = {}
    for sample in in_order(lattice, graphs).tolist():
        of_graph.setdefault(int(lattice.graph_of_sample[sample]), []).append(sample)
    for number, samples in of_graph.items():
        arcs, longest = graphs[number].arcs, int(lattice.input_lengths[samples[0]])
        sizes = (longest, len(arcs.in_offsets) - 1, len(graphs[number].classes))
        fits = not counted and graphs[number].defined and sparse_lanes.memory_of(*sizes) <= memory
        if len(samples) < _FEWEST or not (fits and sparse_lanes.in_reach(arcs)):
            alone += [[sample] for sample in samples]
            continue
        for first in range(0, len(samples), sparse_lanes.LANES):
            group = samples[first : first + sparse_lanes.LANES]
            if len(group) < _FEWEST:
                alone += [[sample] for sample in group]
            else:
                together.append(group)
    return together + alone


def solve_rows(
    arcs: Arcs, rows: np.ndarray, gamma: np.ndarray | None, counts: np.ndarray, share: int, memory: parallel.Memory
) -> float:
    """The loss of one sample, and the posteriors where there is room for them, in place of the scores.

    ``share`` is how many bytes of the memory the states may take.
    """
    num_frames, num_states = len(rows), len(arcs.in_offsets) - 1
    work = sparse_recursion.rows(arcs, rows.shape[1])
    every = 0 if gamma is None else stride(num_frames, num_states, share)
    alpha, exponents = planes(memory, (num_frames // every + 1) if every else 0, num_states)
    total, exponent = sparse_recursion.sweep_forward(arcs, rows, work, every, alpha, exponents)
    if total > 0 and gamma is not None:
        sparse_recursion.begin_back(arcs, work.mantissas[0], work.exponents[0])
        length, now = max(num_frames if every == 1 else every, 1), 0
        pieces = range(0, max(num_frames, 1), length)
        between, kept = work, (alpha, exponents)
        if every > 1:
            between = sparse_recursion.rows(arcs, rows.shape[1])
            kept = planes(memory, length + 1, num_states)
        for first in reversed(pieces):
            piece = rows[first : first + length]
            if every > 1:
                kept[0][0], kept[1][0] = alpha[first // every], exponents[first // every]
                sparse_recursion.sweep_again(arcs, piece, between, *kept)
            ends = first == pieces[-1], first == 0
            now = sparse_recursion.sweep_back(arcs, piece, work, now, *kept, total, exponent, *ends, counts)
        gamma[:] = rows
        memory.give(*(kept if every > 1 else ()))
    memory.give(alpha, exponents)
    return -(math.log(total) + exponent * LOG_UNIT) if total > 0 else math.inf


def stride(num_frames: int, num_states: int, memory: int) -> int:
    """1 where the states of all frames fit, else how many frames apart those are that are kept."""
    bytes_of_frame = 16 * max(num_states, 1)
    return 1 if (num_frames + 1) * bytes_of_frame <= memory else max(math.isqrt(num_frames), 2)


def planes(memory: parallel.Memory, num_rows: int, num_states: int) -> tuple[np.ndarray, np.ndarray]:
    shape = num_rows, num_states
    return memory.take(shape, np.float64), memory.take(shape, np.int64)


def write_gradient(grad_losses: np.ndarray, lattice: SparseLattice, saved: SparseSaved, out: np.ndarray) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out`` (N, T, C)."""
    spread(-grad_losses, saved.losses, lattice, saved.gamma, out)


def spread(factors: np.ndarray, losses: np.ndarray, lattice: SparseLattice, gamma: np.ndarray, out: np.ndarray) -> None:
    """Numbers of the classes of each graph times a factor a sample, as numbers of all classes (N, T, C).

    NaN in the frames of a sample whose loss is; 0 where there is no path.
    """
    places = places_of(lattice)
    out[:] = 0
    for n, (length, graph) in enumerate(zip(lattice.input_lengths.tolist(), lattice.graph_of_sample, strict=True)):
        classes = lattice.classes[lattice.class_offsets[graph] : lattice.class_offsets[graph + 1]]
        if losses[n] != losses[n]:
            out[n, :length] = np.nan
        elif losses[n] < np.inf:
            own = gamma[places[n] : places[n + 1]].reshape(length, len(classes))
            if len(classes) == out.shape[2]:
                np.multiply(own, factors[n], out=out[n, :length])
            else:
                out[n, :length, classes] = own.T * factors[n]


def weight_gradient(grad_losses: np.ndarray, lattice: SparseLattice, counts: np.ndarray) -> np.ndarray:
    """The gradient with respect to the weights (W,), in float64: minus how often they are expected."""
    gradient = np.zeros(int(lattice.weight_offsets[-1]))
    # One after the other, and not a product: the same for any number of threads of another library's.
    for upstream, graph, own in zip(grad_losses, lattice.graph_of_sample, counts_of(lattice, counts), strict=True):
        if upstream != 0:
            gradient[slice(*lattice.weight_offsets[graph : graph + 2])] -= upstream * own
    return gradient


def counts_of(lattice: SparseLattice, counts: np.ndarray) -> list[np.ndarray]:
    """What is counted of the weights of each sample's graph."""
    return np.split(counts, weight_places(lattice)[1:-1]) if len(lattice.graph_of_sample) else []


class Weighted(NamedTuple):
    """One graph of a lattice with its weights.

    Attributes:
        arcs: as kernels take them.
        classes: (K,) the classes that it emits.
        weights: where its weights are among all.
        defined: whether none of those that count is NaN or +inf.
    """

    arcs: Arcs
    classes: np.ndarray
    weights: slice
    defined: bool


def graphs_of(lattice: SparseLattice, weights: np.ndarray) -> list[Weighted]:
    """The graphs of a lattice, one by one."""
    return [_weighted(lattice, graph, weights) for graph in range(len(lattice.state_offsets) - 1)]


def _weighted(lattice: SparseLattice, graph: int, weights: np.ndarray) -> Weighted:
    states, classes, own = (
        slice(int(offsets[graph]), int(offsets[graph + 1]))
        for offsets in (lattice.state_offsets, lattice.class_offsets, lattice.weight_offsets)
    )
    used = weights[own]
    ends = len(used) - 2 * (states.stop - states.start)
    mantissas, exponents = np.empty(len(used)), np.empty(len(used), np.int64)
    sparse_recursion.exponentials(used, mantissas, exponents)

    def arcs_at(all_offsets: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        offsets = all_offsets[states.start : states.stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return offsets - first, *(array[first:last].view(np.uint32) for array in arrays)

    in_offsets, in_sources, in_labels, in_arcs = arcs_at(
        lattice.in_offsets, lattice.in_sources, lattice.in_labels, lattice.in_arcs
    )
    out_offsets, out_destinations, out_labels, out_arcs = arcs_at(
        lattice.out_offsets, lattice.out_destinations, lattice.out_labels, lattice.out_arcs
    )
    epsilon_offsets, epsilon_sources, epsilon_arcs = arcs_at(
        lattice.epsilon_offsets, lattice.epsilon_sources, lattice.epsilon_arcs
    )
    place, order = np.empty(len(used), np.int64), np.arange(len(in_arcs))
    place[in_arcs] = order
    in_places = place[out_arcs]
    place[out_arcs] = order
    out_places = place[in_arcs]
    arcs = Arcs(
        in_offsets, in_sources, in_labels, in_arcs, mantissas[in_arcs], exponents[in_arcs], out_places,
        out_offsets, out_destinations, out_labels, mantissas[out_arcs], exponents[out_arcs], out_arcs, in_places,
        epsilon_offsets, epsilon_sources, mantissas[epsilon_arcs], exponents[epsilon_arcs], epsilon_arcs,
        mantissas[ends:], exponents[ends:],
    )  # fmt: skip
    # Weights of arcs that no path takes may be what they want.
    defined = bool((used < np.inf).all()) or all(
        bool((part < np.inf).all()) for part in (used[in_arcs], used[epsilon_arcs], used[ends:])
    )
    return Weighted(arcs, lattice.classes[classes], own, defined)


def read(scores: np.ndarray, lattice: SparseLattice, graph: Weighted, sample: int) -> tuple[np.ndarray, float]:
    """Scores (T, K) of the classes of a sample's graph, less the greatest of each frame; and the sum of those.

    NaN in place of the sum, where one of them is NaN or +inf.
    """
    own = scores[sample, : int(lattice.input_lengths[sample])]
    rows = own.astype(np.float64) if len(graph.classes) == scores.shape[2] else own[:, graph.classes].astype(np.float64)
    if rows.shape[1] == 0:
        return rows, 0.0
    greatest = rows.max(1)
    if not (greatest < np.inf).all():
        return rows, math.nan
    greatest[greatest == -np.inf] = 0.0
    rows -= greatest[:, None]
    return np.ascontiguousarray(rows), math.fsum(greatest)


def places_of(lattice: SparseLattice) -> np.ndarray:
    """(N+1,) where the posteriors of each sample begin."""
    widths = np.diff(lattice.class_offsets)[lattice.graph_of_sample]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lattice.input_lengths * widths)])


def weight_places(lattice: SparseLattice) -> np.ndarray:
    """(N+1,) where what is counted of the weights of each sample begins."""
    sizes = np.diff(lattice.weight_offsets)[lattice.graph_of_sample]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def in_order(lattice: SparseLattice, graphs: list[Weighted]) -> np.ndarray:
    """The samples, those with the most work first."""
    return np.argsort(-_work(lattice, graphs), kind="stable")


def work_of(lattice: SparseLattice, graphs: list[Weighted]) -> int:
    return int(_work(lattice, graphs).sum())


def _work(lattice: SparseLattice, graphs: list[Weighted]) -> np.ndarray:
    sizes = np.array([len(graph.arcs.in_sources) + len(graph.arcs.in_offsets) for graph in graphs], np.int64)
    return lattice.input_lengths * sizes[lattice.graph_of_sample]
