"""Sweeps over the frames of one sample through a graph, every number a float64 times a power of 2**256.

A state's mantissa lies in [2**-128, 2**128) or is 0, its exponent counts 2**256. The unit is coarse, so that the
numbers of a frame mostly have one exponent or two; then the frame is a *plain* one: its states are made plain floats
beside the highest exponent, which loses nothing as long as none is three units below, and summed as such.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba.compilation import COMPILE, COMPILE_IN_ORDER, kernel
from pathsum.kernels.numba.rows import borrow

UNIT, LEAST, MOST = 2.0**256, 2.0**-128, 2.0**128
_PER_UNIT = 2.0**-256
# The logs of those numbers, that of the unit in two parts: a product of the first with an exponent below 2**26 is
# exact.
_LOG_MOST = 88.72283911167300
LOG_UNIT = 177.44567822334600
_LOG_UNIT_HIGH, _LOG_UNIT_LOW = 177.44567680358887, 1.4197571320233115e-06
# The exponent of 0: below every other, and the sum of three of them still a number.
NOTHING = -(2**60)
_FURTHEST = 2.0**49


class Arcs(NamedTuple):
    """One graph of a lattice with its weights as mantissas and exponents; indices that never are below 0 are unsigned.

    ``plain`` is 1 where no weight has an exponent. ``ends`` are the start and the final scores.
    """

    in_offsets: np.ndarray
    in_sources: np.ndarray
    in_labels: np.ndarray
    in_arcs: np.ndarray
    in_mantissas: np.ndarray
    in_exponents: np.ndarray
    out_offsets: np.ndarray
    out_destinations: np.ndarray
    out_labels: np.ndarray
    out_mantissas: np.ndarray
    out_exponents: np.ndarray
    out_arcs: np.ndarray
    epsilon_offsets: np.ndarray
    epsilon_sources: np.ndarray
    epsilon_mantissas: np.ndarray
    epsilon_exponents: np.ndarray
    epsilon_arcs: np.ndarray
    end_mantissas: np.ndarray
    end_exponents: np.ndarray
    plain: int


class Rows(NamedTuple):
    """What a sweep works on: rows of mantissas, of exponents, of a frame's classes and states."""

    mantissas: np.ndarray
    exponents: np.ndarray
    emitted: np.ndarray
    emitted_exponents: np.ndarray
    plain: np.ndarray


def rows(num_states: int, num_classes: int) -> Rows:
    return Rows(
        np.empty((2, num_states)),
        np.empty((2, num_states), np.int64),
        np.empty(num_classes),
        np.empty(num_classes, np.int64),
        np.empty(num_states),
    )


@njit(forceinline=True, **COMPILE_IN_ORDER)
def exponential(score):
    """exp(score) as mantissa and exponent."""
    if -_LOG_MOST <= score < _LOG_MOST:
        return np.exp(score), np.int64(0)
    if score == -np.inf:
        return 0.0, np.int64(NOTHING)
    units = np.floor(score / _LOG_UNIT_HIGH + 0.5)
    units = min(max(units, -_FURTHEST), _FURTHEST)
    rest = (score - units * _LOG_UNIT_HIGH) - units * _LOG_UNIT_LOW
    return np.exp(min(max(rest, -_LOG_MOST), _LOG_MOST)), np.int64(units)


@kernel
def exponentials(scores, mantissas, exponents):
    """Of all of them; whether none has an exponent."""
    plain = 1
    for k in range(scores.size):
        mantissas[k], exponents[k] = exponential(scores[k])
        if exponents[k] != 0 and exponents[k] != NOTHING:
            plain = 0
    return plain


@njit(forceinline=True, **COMPILE)
def emit(scores, mantissas, exponents):
    plain = True
    for c in range(scores.size):
        mantissas[c], exponents[c] = exponential(scores[c])
        plain = plain and (exponents[c] == 0 or exponents[c] == NOTHING)
    return plain


@njit(forceinline=True, **COMPILE)
def normal(mantissa, exponent):
    """The same number with its mantissa in range, which a product of three has at most one unit to go to."""
    if mantissa < LEAST:
        return mantissa * UNIT, exponent - 1
    if mantissa >= MOST:
        return mantissa * _PER_UNIT, exponent + 1
    return mantissa, exponent


@njit(forceinline=True, **COMPILE)
def add(mantissa, exponent, more, more_exponent):
    """A sum of two; two units below is too little to count."""
    if more_exponent == exponent:
        return mantissa + more, exponent
    if more_exponent > exponent:
        return more + (mantissa * _PER_UNIT if more_exponent == exponent + 1 else 0.0), more_exponent
    return mantissa + (more * _PER_UNIT if more_exponent == exponent - 1 else 0.0), exponent


@njit(forceinline=True, **COMPILE)
def settled(mantissa, exponent):
    """A sum as it is kept."""
    if mantissa == 0:
        return 0.0, np.int64(NOTHING)
    while mantissa < LEAST:
        mantissa, exponent = mantissa * UNIT, exponent - 1
    while mantissa >= MOST:
        mantissa, exponent = mantissa * _PER_UNIT, exponent + 1
    return mantissa, exponent


@njit(forceinline=True, **COMPILE)
def _as_plain(mantissas, exponents, row):
    """Write the states as plain floats beside the highest exponent; whether none is too low for that."""
    top = np.int64(NOTHING)
    for s in range(exponents.size):
        top = max(top, exponents[s])
    plain = True
    for s in range(exponents.size):
        below = top - exponents[s]
        if below == 0:
            row[s] = mantissas[s]
        elif below == 1:
            row[s] = mantissas[s] * _PER_UNIT
        elif below == 2:
            row[s] = mantissas[s] * _PER_UNIT * _PER_UNIT
        else:
            row[s] = 0.0
            plain = plain and exponents[s] == NOTHING
    return plain, top


@njit(forceinline=True, **COMPILE)
def _relax(arcs, mantissas, exponents):
    """Add what epsilon arcs bring to each state, in order: those before it have theirs."""
    for s in range(mantissas.size):
        if arcs.epsilon_offsets[s] < arcs.epsilon_offsets[s + 1]:
            mantissa, exponent = mantissas[s], exponents[s]
            for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
                source = arcs.epsilon_sources[k]
                term, place = normal(
                    mantissas[source] * arcs.epsilon_mantissas[k], exponents[source] + arcs.epsilon_exponents[k]
                )
                if term != 0:
                    mantissa, exponent = add(mantissa, exponent, term, place)
            mantissas[s], exponents[s] = settled(mantissa, exponent)


@njit(forceinline=True, **COMPILE)
def _begin(arcs, mantissas, exponents):
    for s in range(mantissas.size):
        mantissas[s], exponents[s] = arcs.end_mantissas[s], arcs.end_exponents[s]
    _relax(arcs, mantissas, exponents)


@njit(**COMPILE)
def step(arcs, scores, work, before, before_exponents, after, after_exponents):
    """alpha of a frame from that of the one before, and the scores of the frame's classes."""
    emitted, emitted_exponents, row = work.emitted, work.emitted_exponents, work.plain
    plain = emit(scores, emitted, emitted_exponents) and arcs.plain == 1
    top = np.int64(0)
    if plain:
        plain, top = _as_plain(before, before_exponents, row)
    sources, labels, weights = arcs.in_sources, arcs.in_labels, arcs.in_mantissas
    for s in range(after.size):
        if plain:
            total = 0.0
            for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                total += row[sources[k]] * (weights[k] * emitted[labels[k]])
            after[s], after_exponents[s] = settled(total, top)
        else:
            total, place = 0.0, np.int64(NOTHING)
            for k in range(arcs.in_offsets[s], arcs.in_offsets[s + 1]):
                source, label = sources[k], labels[k]
                term, exponent = normal(
                    before[source] * (weights[k] * emitted[label]),
                    before_exponents[source] + arcs.in_exponents[k] + emitted_exponents[label],
                )
                if term != 0:
                    total, place = add(total, place, term, exponent)
            after[s], after_exponents[s] = settled(total, place)
    _relax(arcs, after, after_exponents)


@njit(forceinline=True, **COMPILE)
def _total(arcs, mantissas, exponents):
    """The sum over all final states."""
    num_states = mantissas.size
    total, place = 0.0, np.int64(NOTHING)
    for s in range(num_states):
        term, exponent = normal(
            mantissas[s] * arcs.end_mantissas[num_states + s], exponents[s] + arcs.end_exponents[num_states + s]
        )
        if term != 0:
            total, place = add(total, place, term, exponent)
    return settled(total, place)


@kernel
def sweep_forward(arcs, scores, work, every, alpha, alpha_exponents):
    """The sum over all paths; alpha of every so many frames, from the first on, into rows of ``alpha``.

    ``scores`` (T, K) are those of the graph's classes. ``every`` 0: none is kept.
    """
    # One after the other: the rows of a frame and of the next.
    rows, exponents = borrow(work.mantissas), borrow(work.exponents)
    _begin(arcs, rows[0], exponents[0])
    now = 0
    for t in range(scores.shape[0] + 1):
        if every > 0 and t % every == 0:
            alpha[t // every], alpha_exponents[t // every] = rows[now], exponents[now]
        if t < scores.shape[0]:
            step(arcs, scores[t], work, rows[now], exponents[now], rows[1 - now], exponents[1 - now])
            now = 1 - now
    return _total(arcs, rows[now], exponents[now])


@kernel
def sweep_again(arcs, scores, work, alpha, alpha_exponents):
    """Fill the rows of ``alpha`` behind the first."""
    for t in range(scores.shape[0]):
        step(arcs, scores[t], work, alpha[t], alpha_exponents[t], alpha[t + 1], alpha_exponents[t + 1])


@njit(forceinline=True, **COMPILE)
def scaled(mantissa, units):
    """A number as a plain float; one too great for that meets nothing but zeros."""
    while units > 0 and mantissa < 2.0**700:
        mantissa, units = mantissa * UNIT, units - 1
    while units < 0 and mantissa != 0:
        mantissa, units = mantissa * _PER_UNIT, units + 1
    return mantissa


@njit(forceinline=True, **COMPILE)
def _relax_back(arcs, mantissas, exponents):
    """Add to the states what epsilon arcs bring out of them, from the last on: those behind each have theirs."""
    for s in range(mantissas.size - 1, -1, -1):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source = arcs.epsilon_sources[k]
            term, place = normal(mantissas[s] * arcs.epsilon_mantissas[k], exponents[s] + arcs.epsilon_exponents[k])
            if term != 0:
                mantissas[source], exponents[source] = settled(*add(mantissas[source], exponents[source], term, place))


@kernel
def begin_back(arcs, mantissas, exponents):
    """beta behind the last frame."""
    num_states = mantissas.size
    for s in range(num_states):
        mantissas[s], exponents[s] = arcs.end_mantissas[num_states + s], arcs.end_exponents[num_states + s]
    _relax_back(arcs, mantissas, exponents)


@njit(**COMPILE)
def _step_back(
    arcs, scores, work, after, after_exponents, alpha, alpha_exponents, total, total_exponent, before, before_exponents,
    gamma, counts,
):  # fmt: skip
    """beta of a frame from that of the next, and the posteriors of the classes in between."""
    emitted, emitted_exponents, row = work.emitted, work.emitted_exponents, work.plain
    plain = emit(scores, emitted, emitted_exponents) and arcs.plain == 1
    top = np.int64(0)
    if plain:
        plain, top = _as_plain(after, after_exponents, row)
    # The scores have been read: their place takes the posteriors.
    gamma[:] = 0
    counted = counts.size > 0
    to, labels, weights = arcs.out_destinations, arcs.out_labels, arcs.out_mantissas
    for s in range(before.size):
        first, last = arcs.out_offsets[s], arcs.out_offsets[s + 1]
        reached, units = alpha[s] / total, alpha_exponents[s] - total_exponent
        if plain:
            reached = scaled(reached, units + top)
            sum_of_terms = 0.0
            for k in range(first, last):
                label = labels[k]
                term = row[to[k]] * (weights[k] * emitted[label])
                sum_of_terms += term
                gamma[label] += reached * term
            if counted and reached != 0:
                for k in range(first, last):
                    counts[arcs.out_arcs[k]] += reached * (row[to[k]] * (weights[k] * emitted[labels[k]]))
            before[s], before_exponents[s] = settled(sum_of_terms, top)
        else:
            sum_of_terms, place = 0.0, np.int64(NOTHING)
            for k in range(first, last):
                label = labels[k]
                term, exponent = normal(
                    after[to[k]] * (weights[k] * emitted[label]),
                    after_exponents[to[k]] + arcs.out_exponents[k] + emitted_exponents[label],
                )
                if term != 0:
                    sum_of_terms, place = add(sum_of_terms, place, term, exponent)
                    if reached != 0:
                        posterior = scaled(reached * term, units + exponent)
                        gamma[label] += posterior
                        if counted:
                            counts[arcs.out_arcs[k]] += posterior
            before[s], before_exponents[s] = settled(sum_of_terms, place)
    _relax_back(arcs, before, before_exponents)


@njit(**COMPILE)
def count_epsilons(arcs, alpha, alpha_exponents, beta, beta_exponents, total, total_exponent, counts):
    """Add the posteriors of the epsilon arcs of a frame."""
    for s in range(beta.size):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source = arcs.epsilon_sources[k]
            if alpha[source] != 0 and beta[s] != 0:
                counts[arcs.epsilon_arcs[k]] += scaled(
                    alpha[source] / total * arcs.epsilon_mantissas[k] * beta[s],
                    alpha_exponents[source] + arcs.epsilon_exponents[k] + beta_exponents[s] - total_exponent,
                )


@njit(**COMPILE)
def count_ends(arcs, first, inner, inner_exponents, total, total_exponent, counts):
    """Add the posteriors of the starts (``first`` 0) or of the ends (S), beside what the sweep has of each state."""
    num_states = inner.size
    behind = counts.size - 2 * num_states + first
    for s in range(num_states):
        if inner[s] != 0 and arcs.end_mantissas[first + s] != 0:
            counts[behind + s] += scaled(
                inner[s] / total * arcs.end_mantissas[first + s],
                inner_exponents[s] + arcs.end_exponents[first + s] - total_exponent,
            )


@kernel
def sweep_back(arcs, scores, work, begun, alpha, alpha_exponents, total, total_exponent, is_last, is_first, counts):
    """Turn ``scores`` (T, K) into the posteriors of the classes, from the last frame to the first.

    beta behind the last of these frames is in row ``begun`` of the work, and that before the first is left in the row
    that is returned. alpha has T + 1 rows. ``counts`` get what the paths take of each weight, or have no size.
    """
    rows, exponents = borrow(work.mantissas), borrow(work.exponents)
    num_frames, counted, now = scores.shape[0], counts.size > 0, begun
    if counted and is_last:
        inner, inner_exponents = alpha[num_frames], alpha_exponents[num_frames]
        count_ends(arcs, inner.size, inner, inner_exponents, total, total_exponent, counts)
        count_epsilons(arcs, inner, inner_exponents, rows[now], exponents[now], total, total_exponent, counts)
    for t in range(num_frames - 1, -1, -1):
        _step_back(
            arcs, scores[t], work, rows[now], exponents[now], alpha[t], alpha_exponents[t], total, total_exponent,
            rows[1 - now], exponents[1 - now], scores[t], counts,
        )  # fmt: skip
        now = 1 - now
        if counted:
            count_epsilons(arcs, alpha[t], alpha_exponents[t], rows[now], exponents[now], total, total_exponent, counts)
    if counted and is_first:
        count_ends(arcs, 0, rows[now], exponents[now], total, total_exponent, counts)
    return now
