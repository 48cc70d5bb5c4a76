"""Hessian-vector products of a lattice of graphs: how the posteriors move along a tangent of scores and weights.

The posterior of an arc moves by itself times the deviation of the mean tangent of the paths through it from that of
all. The means of what lies before a state and of what lies behind it are averages with non-negative weights, so that
nothing cancels in them; all that is summed is in extended range.
"""

from __future__ import annotations

import math

import numpy as np

from pathsum.kernels.numba import parallel, sparse, sparse_recursion
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.sparse_recursion import NOTHING, add, emit, normal, scaled, settled
from pathsum.kernels.protocol import SparseSaved
from pathsum.lattice import SparseLattice


def hvp(
    grad_losses: np.ndarray,
    tangents: np.ndarray,
    weight_tangents: np.ndarray,
    scores: np.ndarray,
    lattice: SparseLattice,
    weights: np.ndarray,
    saved: SparseSaved,
    out: np.ndarray,
    *,
    need_weights: bool,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (N,) of the losses, and the part by the weights (W,); that by the scores is written into ``out``.

    ``tangents`` are of the shape of the scores (N, T, C), ``weight_tangents`` (W,).
    """
    num_samples = len(lattice.input_lengths)
    slopes = np.zeros(num_samples)
    places = sparse.places_of(lattice)
    moves = np.zeros(places[-1])
    counted = sparse.weight_places(lattice)
    counts = np.zeros(counted[-1])
    graphs, memory = sparse.graphs_of(lattice, weights), parallel.Memory()

    def solve(sample: int) -> None:
        graph = graphs[lattice.graph_of_sample[sample]]
        taken = counts[counted[sample] : counted[sample + 1]] if need_weights else counts[:0]
        if math.isnan(saved.losses[sample]):
            slopes[sample], taken[:] = math.nan, math.nan
            return
        if saved.losses[sample] == math.inf:
            return
        arcs = graph.arcs
        rows, _ = sparse.read(scores, lattice, graph, sample)
        along = np.ascontiguousarray(tangents[sample, : len(rows)][:, graph.classes], np.float64)
        num_states = len(arcs.in_offsets) - 1
        before = memory.take((len(rows) + 1, num_states), np.float64)
        alpha, exponents = sparse.planes(memory, len(rows) + 1, num_states)
        work = sparse_recursion.rows(arcs, rows.shape[1])
        total, exponent = sparse_recursion.sweep_forward(arcs, rows, work, 1, alpha, exponents)
        own = moves[places[sample] : places[sample + 1]].reshape(rows.shape)
        slope = _moves(
            arcs, rows, work, along, np.ascontiguousarray(weight_tangents[graph.weights]), alpha, exponents,
            before, np.empty((2, num_states)), total, exponent, own, taken,
        )  # fmt: skip
        memory.give(alpha, exponents, before)
        slopes[sample] = -slope

    num_threads = parallel.worthwhile(num_threads, 4 * sparse.work_of(lattice, graphs))
    parallel.run(solve, [(int(n),) for n in sparse.in_order(lattice, graphs)], num_threads)
    sparse.spread(-grad_losses, saved.losses, lattice, moves, out)
    return slopes, sparse.weight_gradient(grad_losses, lattice, counts)


@part(**COMPILE)
def _relax_means(arcs, mantissas, exponents, means, weights_along):
    """Add what the paths over epsilon arcs bring to the mean tangent of each state."""
    for s in range(means.size):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source = arcs.epsilon_sources[k]
            if mantissas[source] != 0 and mantissas[s] != 0:
                part = scaled(
                    mantissas[source] / mantissas[s] * arcs.epsilon_mantissas[k],
                    exponents[source] + arcs.epsilon_exponents[k] - exponents[s],
                )
                means[s] += part * (means[source] + weights_along[arcs.epsilon_arcs[k]])


@part(**COMPILE)
def _relax_back(
    arcs, alpha, alpha_exponents, before, mantissas, exponents, behind, weights_along, slope, total, total_exponent,
    counts,
):  # fmt: skip
    """Add the epsilon arcs out of each state to beta and to its mean tangent, and move their own posteriors."""
    for s in range(mantissas.size - 1, -1, -1):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source = arcs.epsilon_sources[k]
            term, exponent = normal(mantissas[s] * arcs.epsilon_mantissas[k], exponents[s] + arcs.epsilon_exponents[k])
            if term == 0:
                continue
            own = behind[s] + weights_along[arcs.epsilon_arcs[k]]
            summed, place = add(mantissas[source], exponents[source], term, exponent)
            summed, place = settled(summed, place)
            part = scaled(term / summed, exponent - place)
            behind[source] += part * (own - behind[source])
            mantissas[source], exponents[source] = summed, place
            if counts.size > 0 and alpha[source] != 0:
                posterior = scaled(alpha[source] / total * term, alpha_exponents[source] + exponent - total_exponent)
                counts[arcs.epsilon_arcs[k]] += posterior * (before[source] + own - slope)


@kernel
def _moves(
    arcs, scores, work, along, weights_along, alpha, exponents, before, behind, total, total_exponent, moves, counts
):
    """The slope of the log-sum; into ``moves`` (T, K) how the posteriors of the classes move, and into ``counts``.

    ``before`` (T+1, S) takes the mean tangents of the paths into each state, ``behind`` (2, S) those out of it.
    """
    num_frames, num_states = scores.shape[0], alpha.shape[1]
    emitted, emitted_exponents = work.emitted, work.emitted_exponents
    starts, ends = weights_along.size - 2 * num_states, weights_along.size - num_states
    in_arcs, out_arcs = arcs.in_arcs, arcs.out_arcs

    for s in range(num_states):
        before[0, s] = 0.0
        if alpha[0, s] != 0:
            own = arcs.end_mantissas[s] / alpha[0, s]
            before[0, s] = scaled(own, arcs.end_exponents[s] - exponents[0, s]) * weights_along[starts + s]
    _relax_means(arcs, alpha[0], exponents[0], before[0], weights_along)
    for t in range(num_frames):
        emit(scores[t], emitted, emitted_exponents)
        for s in range(num_states):
            mean = 0.0
            if alpha[t + 1, s] != 0:
                for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                    source, label = arcs.in_sources[k], arcs.in_labels[k]
                    term, exponent = normal(
                        alpha[t, source] * (arcs.in_mantissas[k] * emitted[label]),
                        exponents[t, source] + arcs.in_exponents[k] + emitted_exponents[label],
                    )
                    if term != 0:
                        part = scaled(term / alpha[t + 1, s], exponent - exponents[t + 1, s])
                        mean += part * (before[t, source] + along[t, label] + weights_along[in_arcs[k]])
            before[t + 1, s] = mean
        _relax_means(arcs, alpha[t + 1], exponents[t + 1], before[t + 1], weights_along)

    slope = 0.0
    mantissas, beta_exponents = work.mantissas, work.exponents
    now = 0
    for s in range(num_states):
        mantissas[0, s], beta_exponents[0, s] = arcs.end_mantissas[num_states + s], arcs.end_exponents[num_states + s]
        behind[0, s] = weights_along[ends + s] if mantissas[0, s] != 0 else 0.0
        if mantissas[0, s] != 0 and alpha[num_frames, s] != 0:
            part = scaled(
                alpha[num_frames, s] / total * mantissas[0, s],
                exponents[num_frames, s] + beta_exponents[0, s] - total_exponent,
            )
            slope += part * (before[num_frames, s] + behind[0, s])
    if counts.size > 0:
        for s in range(num_states):
            if mantissas[0, s] != 0 and alpha[num_frames, s] != 0:
                part = scaled(
                    alpha[num_frames, s] / total * mantissas[0, s],
                    exponents[num_frames, s] + beta_exponents[0, s] - total_exponent,
                )
                counts[ends + s] += part * (before[num_frames, s] + behind[0, s] - slope)
    _relax_back(
        arcs, alpha[num_frames], exponents[num_frames], before[num_frames], mantissas[0], beta_exponents[0], behind[0],
        weights_along, slope, total, total_exponent, counts,
    )  # fmt: skip
    for t in range(num_frames - 1, -1, -1):
        emit(scores[t], emitted, emitted_exponents)
        moves[t] = 0
        after, after_exponents, mean_after = mantissas[now], beta_exponents[now], behind[now]
        now = 1 - now
        for s in range(num_states):
            first, last = arcs.out_offsets[s], arcs.out_offsets[s + 1]
            reached, units = alpha[t, s] / total, exponents[t, s] - total_exponent
            summed, place = 0.0, np.int64(NOTHING)
            for k in range(first, last):
                to, label = arcs.out_destinations[k], arcs.out_labels[k]
                term, exponent = normal(
                    after[to] * (arcs.out_mantissas[k] * emitted[label]),
                    after_exponents[to] + arcs.out_exponents[k] + emitted_exponents[label],
                )
                if term != 0:
                    summed, place = add(summed, place, term, exponent)
            summed, place = settled(summed, place)
            mean = 0.0
            for k in range(first, last):
                to, label = arcs.out_destinations[k], arcs.out_labels[k]
                term, exponent = normal(
                    after[to] * (arcs.out_mantissas[k] * emitted[label]),
                    after_exponents[to] + arcs.out_exponents[k] + emitted_exponents[label],
                )
                if term != 0:
                    own = along[t, label] + weights_along[out_arcs[k]] + mean_after[to]
                    mean += scaled(term / summed, exponent - place) * own
                    if reached != 0:
                        move = scaled(reached * term, units + exponent) * (before[t, s] + own - slope)
                        moves[t, label] += move
                        if counts.size > 0:
                            counts[out_arcs[k]] += move
            mantissas[now, s], beta_exponents[now, s], behind[now, s] = summed, place, mean
        _relax_back(
            arcs, alpha[t], exponents[t], before[t], mantissas[now], beta_exponents[now], behind[now], weights_along,
            slope, total, total_exponent, counts,
        )  # fmt: skip
    if counts.size > 0:
        for s in range(num_states):
            if mantissas[now, s] != 0 and arcs.end_mantissas[s] != 0:
                part = scaled(
                    arcs.end_mantissas[s] / total * mantissas[now, s],
                    arcs.end_exponents[s] + beta_exponents[now, s] - total_exponent,
                )
                counts[starts + s] += part * (weights_along[starts + s] + behind[now, s] - slope)
    return slope
