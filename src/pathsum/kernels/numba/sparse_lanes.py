"""Several samples through one graph at once: an arc is read once for all of them, and worked on side by side.

Numbers are float64 beside an exponent a frame and sample, in units of 2**256. That is exact as long as the states of a
frame, the scores and the weights are near enough to one another; a sample where they are not is said to be out of
reach, and is for ``sparse``, where each state has an exponent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.sparse_recursion import Arcs
from pathsum.kernels.numba.uncounted import COMPILE_UNCOUNTED, uncounted_kernel
from pathsum.numerics import LN_2

# As many samples as a cache line has numbers.
LANES = 8
_BITS = 256
UNIT, LEAST, MOST = 2.0**_BITS, 2.0**-128, 2.0**128
LOG_UNIT = _BITS * LN_2
# What a product of a state, a score and a weight may be made of, so that none is too small for a float64.
LEAST_STATE, LEAST_WEIGHT, LEAST_SCORE = 2.0**-628, 2.0**-144, -200.0
MOST_WEIGHT, _MOST_SCALE, _MOST_STATE = 2.0**144, 2.0**500, 2.0**900


class Solved(NamedTuple):
    """Losses (L,), whether each sample was in reach, and posteriors (T, K, L) where they were asked for."""

    losses: np.ndarray
    reached: np.ndarray
    gamma: np.ndarray


def in_reach(arcs: Arcs) -> bool:
    """Whether the weights of a graph are."""
    return all(
        bool(((own == 0) | ((own >= LEAST_WEIGHT) & (own <= MOST_WEIGHT) & (exponents == 0))).all())
        for own, exponents in (
            (arcs.in_mantissas, arcs.in_exponents),
            (arcs.epsilon_mantissas, arcs.epsilon_exponents),
            (arcs.end_mantissas, arcs.end_exponents),
        )
    )


def memory_of(num_frames: int, num_states: int, num_classes: int) -> int:
    """Bytes that the states and the scores of all frames take."""
    return 8 * LANES * (num_frames + 1) * (num_states + num_classes)


def solve(arcs: Arcs, rows: list[np.ndarray], *, need_gradient: bool) -> Solved:
    """The losses of at most LANES samples, of scores (T, K) less the greatest of each frame."""
    lengths = np.zeros(LANES, np.int64)
    lengths[: len(rows)] = [len(own) for own in rows]
    num_frames, num_states = int(lengths.max()), len(arcs.in_offsets) - 1
    emitted = np.zeros((num_frames, rows[0].shape[1] if rows else 0, LANES))
    reached = np.ones(LANES, bool)
    for lane, own in enumerate(rows):
        reached[lane] = not ((own < LEAST_SCORE) & (own > -np.inf)).any()
        np.exp(own, out=emitted[: len(own), :, lane])
    totals, exponents = np.zeros(LANES), np.zeros(LANES, np.int64)
    kept = num_frames + 1 if need_gradient else 2
    alpha, alpha_exponents = np.empty((kept, num_states, LANES)), np.empty((num_frames + 1, LANES), np.int64)
    work = np.empty((3, LANES))
    _forward(arcs, emitted, lengths, alpha, alpha_exponents, totals, exponents, reached, work)
    if need_gradient:
        memory = np.empty((2, num_states, LANES)), np.empty((emitted.shape[1], LANES)), np.zeros(LANES, np.int64)
        _backward(arcs, emitted, lengths, alpha, alpha_exponents, totals, exponents, reached, work, *memory)
    losses = [-(math.log(total) + units * LOG_UNIT) if total > 0 else math.inf
              for total, units in zip(totals.tolist(), exponents.tolist(), strict=True)]  # fmt: skip
    return Solved(np.array(losses), reached, emitted)


@part(**COMPILE_UNCOUNTED)
def _normalise(states, exponents, reached, work):
    """Bring the states (S, L) of a frame near 1, and see whether the least of each sample is in reach."""
    highest, lowest, factors = work
    for lane in range(LANES):
        highest[lane], lowest[lane], factors[lane] = 0.0, np.inf, 1.0
    for s in range(len(states)):
        for lane in range(LANES):
            value = states[s, lane]
            highest[lane] = max(highest[lane], value)
            lowest[lane] = min(lowest[lane], value if value > 0.0 else np.inf)
    changed = False
    for lane in range(LANES):
        if not (highest[lane] == 0.0 or LEAST_STATE <= highest[lane] <= _MOST_STATE):
            # Given up, and empty from here on.
            reached[lane], factors[lane], highest[lane] = False, 0.0, 0.0
        while 0.0 < highest[lane] * factors[lane] < LEAST:
            factors[lane] *= UNIT
            exponents[lane] -= 1
        while highest[lane] * factors[lane] >= MOST:
            factors[lane] /= UNIT
            exponents[lane] += 1
        changed = changed or factors[lane] != 1.0
        reached[lane] = reached[lane] and lowest[lane] * factors[lane] >= LEAST_STATE
    if changed:
        for s in range(len(states)):
            for lane in range(LANES):
                states[s, lane] = states[s, lane] * factors[lane] if factors[lane] > 0.0 else 0.0


@part(**COMPILE_UNCOUNTED)
def _relax(arcs, states):
    for s in range(len(states)):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source, weight = arcs.epsilon_sources[k], arcs.epsilon_mantissas[k]
            for lane in range(LANES):
                states[s, lane] += states[source, lane] * weight


@part(**COMPILE_UNCOUNTED)
def _relax_back(arcs, states):
    for s in range(len(states) - 1, -1, -1):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source, weight = arcs.epsilon_sources[k], arcs.epsilon_mantissas[k]
            for lane in range(LANES):
                states[source, lane] += states[s, lane] * weight


@uncounted_kernel
def _forward(arcs, emitted, lengths, alpha, exponents, totals, total_exponents, reached, work):
    """Sums over all paths; alpha of every frame where there is room for them, with an exponent a frame."""
    num_frames, num_states = len(emitted), alpha.shape[1]
    sources, labels, weights = arcs.in_sources, arcs.in_labels, arcs.in_mantissas
    for t in range(num_frames + 1):
        states = alpha[t % len(alpha)]
        if t == 0:
            exponents[0] = 0
            for s in range(num_states):
                states[s] = arcs.end_mantissas[s]
        else:
            before, scores = alpha[(t - 1) % len(alpha)], emitted[t - 1]
            for lane in range(LANES):
                exponents[t, lane] = exponents[t - 1, lane]
            for s in range(num_states):
                own = states[s]
                own[:] = 0.0
                for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                    source, label, weight = sources[k], labels[k], weights[k]
                    for lane in range(LANES):
                        own[lane] += before[source, lane] * (weight * scores[label, lane])
        _relax(arcs, states)
        _normalise(states, exponents[t], reached, work)
        for lane in range(LANES):
            if lengths[lane] == t:
                total_exponents[lane] = exponents[t, lane]
                for s in range(num_states):
                    totals[lane] += states[s, lane] * arcs.end_mantissas[num_states + s]
        if not reached.any():
            return


@uncounted_kernel
def _backward(
    arcs, emitted, lengths, alpha, exponents, totals, total_exponents, reached, work, beta, gamma, beta_exponents
):
    """Turn ``emitted`` into the posteriors of the classes, from the last frame to the first."""
    num_frames, num_states = len(emitted), alpha.shape[1]
    to, labels, weights = arcs.out_destinations, arcs.out_labels, arcs.out_mantissas
    scales, shares = work[0], work[1]
    for t in range(num_frames, -1, -1):
        if not reached.any():
            return
        states, after = beta[t % 2], beta[(t + 1) % 2]
        states[:] = 0.0
        if t < num_frames:
            scores = emitted[t]
            for lane in range(LANES):
                scales[lane] = 0.0
                if t < lengths[lane] and totals[lane] > 0.0 and reached[lane]:
                    units = exponents[t, lane] + beta_exponents[lane] - total_exponents[lane]
                    scales[lane] = math.ldexp(1.0 / totals[lane], _BITS * min(max(units, -8), 8))
                    reached[lane] = scales[lane] <= _MOST_SCALE
            gamma[:] = 0.0
            for s in range(num_states):
                own = states[s]
                for lane in range(LANES):
                    shares[lane] = alpha[t, s, lane] * scales[lane]
                # Two loops, each of which writes to one array: so they vectorise.
                for k in range(arcs.out_offsets[s], arcs.out_offsets[s + 1]):
                    following, label, weight = to[k], labels[k], weights[k]
                    for lane in range(LANES):
                        own[lane] += after[following, lane] * (weight * scores[label, lane])
                for k in range(arcs.out_offsets[s], arcs.out_offsets[s + 1]):
                    following, label, weight = to[k], labels[k], weights[k]
                    for lane in range(LANES):
                        gamma[label, lane] += after[following, lane] * (weight * shares[lane])
            scores *= gamma
        for lane in range(LANES):
            if lengths[lane] == t:
                beta_exponents[lane] = 0
                for s in range(num_states):
                    states[s, lane] = arcs.end_mantissas[num_states + s]
        _relax_back(arcs, states)
        _normalise(states, beta_exponents, reached, work)
