"""Sweeps over the frames of one sample through a graph, every number a float64 times a power of 2**512.

A state's mantissa lies in [2**-256, 2**256) or is 0, its exponent counts 2**512. The unit is coarse, so that a state
mostly has the exponent that it had a frame before. Each arc's weight is kept as a plain *factor* for those exponents of
its two states, so that a sum over arcs is one of plain floats. It is right where it comes out in range: what was too
small for a float does not count beside it. Where it does not, the sum is done again with exponents, and where a state
has another exponent then, the factors of its arcs are made anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE_IN_ORDER
from pathsum.kernels.numba.extended import exp
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.uncounted import COMPILE_UNCOUNTED, uncounted_kernel

_UNIT, _LEAST, _MOST = 2.0**512, 2.0**-256, 2.0**256
_PER_UNIT = 2.0**-512
# A sum of factors' products may lie so far out of range and lack nothing that counts.
_LEAST_SUM, _MOST_SUM = 2.0**-384, 2.0**640
# The logs of those numbers, that of the unit in two parts: a product of the first with an exponent below 2**26 is
# exact.
_LOG_MOST = 177.44567822334600
LOG_UNIT = 354.89135644669200
_LOG_UNIT_HIGH, _LOG_UNIT_LOW = 354.89135360717773, 2.839514264046623e-06
# The exponent of 0: below every other, and the sum of three of them still a number.
NOTHING = -(2**60)
_FURTHEST = 2.0**49
# Scores above are plain floats, and normal ones.
_LEAST_PLAIN = -600.0
# So many frames have their scores made plain at once.
_BLOCK = 16
# A posterior below is none: float32 has no smaller number but subnormal ones.
_LEAST_POSTERIOR = 2.0**-128


class Arcs(NamedTuple):
    """One graph of a lattice with its weights as mantissas and exponents; indices that never are below 0 are unsigned.

    ``out_places`` say where the arcs by destination have those by source, ``in_places`` the other way round. ``ends``
    are the start and the final scores.
    """

    in_offsets: np.ndarray
    in_sources: np.ndarray
    in_labels: np.ndarray
    in_arcs: np.ndarray
    in_mantissas: np.ndarray
    in_exponents: np.ndarray
    out_places: np.ndarray
    out_offsets: np.ndarray
    out_destinations: np.ndarray
    out_labels: np.ndarray
    out_mantissas: np.ndarray
    out_exponents: np.ndarray
    out_arcs: np.ndarray
    in_places: np.ndarray
    epsilon_offsets: np.ndarray
    epsilon_sources: np.ndarray
    epsilon_mantissas: np.ndarray
    epsilon_exponents: np.ndarray
    epsilon_arcs: np.ndarray
    end_mantissas: np.ndarray
    end_exponents: np.ndarray


class Side(NamedTuple):
    """The arcs by one of their ends; ``others`` are the states at the other end."""

    offsets: np.ndarray
    others: np.ndarray
    labels: np.ndarray
    mantissas: np.ndarray
    exponents: np.ndarray
    places: np.ndarray


class Rows(NamedTuple):
    """What a sweep works on: rows of mantissas, of exponents, of a frame's classes; and what ``_sum`` needs.

    A frame's classes come as mantissas with exponents, and for factors as plain floats (``plain``).
    """

    mantissas: np.ndarray
    exponents: np.ndarray
    emitted: np.ndarray
    emitted_exponents: np.ndarray
    plain: np.ndarray
    gamma: np.ndarray
    factors: np.ndarray
    terms: np.ndarray
    changed: np.ndarray


def rows(arcs: Arcs, num_classes: int) -> Rows:
    num_states = len(arcs.in_offsets) - 1
    return Rows(
        np.empty((2, num_states)),
        np.empty((2, num_states), np.int64),
        np.empty(num_classes),
        np.empty(num_classes, np.int64),
        np.empty((_BLOCK, num_classes)),
        np.empty(num_classes),
        np.empty(len(arcs.in_sources)),
        np.empty(len(arcs.in_sources)),
        np.empty(num_states, np.int64),
    )


@part(forceinline=True, **COMPILE_IN_ORDER)
def exponential(score):
    """exp(score) as mantissa and exponent."""
    if -_LOG_MOST <= score < _LOG_MOST:
        return np.exp(score), np.int64(0)
    if score == -np.inf:
        return 0.0, np.int64(NOTHING)
    units = np.floor(score / LOG_UNIT + 0.5)
    units = min(max(units, -_FURTHEST), _FURTHEST)
    rest = (score - units * _LOG_UNIT_HIGH) - units * _LOG_UNIT_LOW
    return np.exp(min(max(rest, -_LOG_MOST), _LOG_MOST)), np.int64(units)


@uncounted_kernel
def exponentials(scores, mantissas, exponents):
    """Of all of them."""
    for k in range(scores.size):
        mantissas[k], exponents[k] = exponential(scores[k])


@part(forceinline=True, **COMPILE_UNCOUNTED)
def emit(scores, mantissas, exponents):
    for c in range(scores.size):
        mantissas[c], exponents[c] = exponential(scores[c])


@part(**COMPILE_UNCOUNTED)
def _emit_plain(scores, emitted):
    """exp(score) of a block of frames, as no number where that is too small for a plain float."""
    # At once, since a frame has too few classes to be worked on by vectors.
    flat, out = scores.reshape(-1), emitted.reshape(-1)
    for c in range(flat.size):
        score = flat[c]
        out[c] = exp(score) if score > _LEAST_PLAIN or score == -np.inf else np.nan


@part(forceinline=True, **COMPILE_UNCOUNTED)
def normal(mantissa, exponent):
    """The same number with its mantissa in range, which a product of three has at most one unit to go to."""
    if mantissa < _LEAST:
        return mantissa * _UNIT, exponent - 1
    if mantissa >= _MOST:
        return mantissa * _PER_UNIT, exponent + 1
    return mantissa, exponent


@part(forceinline=True, **COMPILE_UNCOUNTED)
def add(mantissa, exponent, more, more_exponent):
    """A sum of two; two units below is too little to count."""
    if more_exponent == exponent:
        return mantissa + more, exponent
    if more_exponent > exponent:
        return more + (mantissa * _PER_UNIT if more_exponent == exponent + 1 else 0.0), more_exponent
    return mantissa + (more * _PER_UNIT if more_exponent == exponent - 1 else 0.0), exponent


@part(forceinline=True, **COMPILE_UNCOUNTED)
def settled(mantissa, exponent):
    """A sum as it is kept."""
    if mantissa == 0:
        return 0.0, np.int64(NOTHING)
    while mantissa < _LEAST:
        mantissa, exponent = mantissa * _UNIT, exponent - 1
    while mantissa >= _MOST:
        mantissa, exponent = mantissa * _PER_UNIT, exponent + 1
    return mantissa, exponent


@part(forceinline=True, **COMPILE_UNCOUNTED)
def scaled(mantissa, units):
    """A number as a plain float; one too great for that meets nothing but zeros."""
    while units > 0 and mantissa < 2.0**700:
        mantissa, units = mantissa * _UNIT, units - 1
    while units < 0 and mantissa != 0:
        mantissa, units = mantissa * _PER_UNIT, units + 1
    return mantissa


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _factor(weight, weight_exponent, source_exponent, exponent):
    """A weight between states of these exponents. Infinite, and so of no use, where it is too great for a float."""
    if weight == 0 or source_exponent == NOTHING:
        return 0.0
    units = source_exponent + weight_exponent - exponent
    if units == 0:
        return weight
    if units == -1:
        return weight * _PER_UNIT
    # A term two units below is too small to count, one two units above too large for a float.
    return 0.0 if units < 0 else (weight * _UNIT if units == 1 else np.inf)


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _sides(arcs):
    """The arcs by destination and by source."""
    return Side(
        arcs.in_offsets.view(np.uint64), arcs.in_sources, arcs.in_labels,
        arcs.in_mantissas, arcs.in_exponents, arcs.out_places,
    ), Side(
        arcs.out_offsets.view(np.uint64), arcs.out_destinations, arcs.out_labels,
        arcs.out_mantissas, arcs.out_exponents, arcs.in_places,
    )  # fmt: skip


@part(**COMPILE_UNCOUNTED)
def _make_factors(side, s, exponents, factors):
    """Factors of the arcs from others to a state, in the direction of a sweep."""
    for k in range(side.offsets[s], side.offsets[s + 1]):
        factors[k] = _factor(side.mantissas[k], side.exponents[k], exponents[side.others[k]], exponents[s])


@part(**COMPILE_UNCOUNTED)
def _make_all_factors(side, exponents, factors):
    for s in range(exponents.size):
        _make_factors(side, s, exponents, factors)


@part(**COMPILE_UNCOUNTED)
def _adjust(side, opposite, changed, exponents, factors):
    """Make the factors anew of all arcs at states that have another exponent than a frame before."""
    for s in changed:
        _make_factors(side, s, exponents, factors)
        for k in range(opposite.offsets[s], opposite.offsets[s + 1]):
            factors[opposite.places[k]] = _factor(
                opposite.mantissas[k], opposite.exponents[k], exponents[s], exponents[opposite.others[k]]
            )


@part(**COMPILE_UNCOUNTED)
def _different(exponents, others, changed):
    """The states whose two exponents are, into ``changed``; their number."""
    count = 0
    for s in range(exponents.size):
        if exponents[s] != others[s]:
            changed[count] = s
            count += 1
    return count


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _term(side, k, scores, emitted, before, before_exponents):
    """What an arc brings to its state, as mantissa and exponent."""
    label, other = side.labels[k], side.others[k]
    mantissa, exponent = emitted[label], np.int64(0)
    if not mantissa >= _LEAST:
        mantissa, exponent = exponential(scores[label])
    return normal(
        before[other] * (side.mantissas[k] * mantissa), before_exponents[other] + side.exponents[k] + exponent
    )


@part(**COMPILE_UNCOUNTED)
def _sum_with_exponents(side, s, scores, emitted, before, before_exponents, terms):
    """The sum over the arcs to a state; ``terms`` are plain floats beside its exponent."""
    first, last = side.offsets[s], side.offsets[s + 1]
    total, place = 0.0, np.int64(NOTHING)
    for k in range(first, last):
        term, exponent = _term(side, k, scores, emitted, before, before_exponents)
        if term != 0:
            total, place = add(total, place, term, exponent)
    total, place = settled(total, place)
    for k in range(first, last):
        term, exponent = _term(side, k, scores, emitted, before, before_exponents)
        terms[k - first] = scaled(term, exponent - place) if term != 0 else 0.0
    return total, place


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _in_range(total, side, s, scores, emitted, before, before_exponents, place, terms):
    """A sum of factors' products as it is kept, and the unit of its terms."""
    if _LEAST_SUM <= total < _LEAST:
        return total * _UNIT, place - 1, _UNIT
    if _MOST <= total < _MOST_SUM:
        return total * _PER_UNIT, place + 1, _PER_UNIT
    total, place = _sum_with_exponents(side, s, scores, emitted, before, before_exponents, terms)
    return total, place, 1.0


@part(forceinline=True, **COMPILE_UNCOUNTED)
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


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _begin(arcs, mantissas, exponents):
    for s in range(mantissas.size):
        mantissas[s], exponents[s] = arcs.end_mantissas[s], arcs.end_exponents[s]
    _relax(arcs, mantissas, exponents)


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _step(arcs, side, opposite, scores, emitted, work, before, before_exponents, after, after_exponents):
    """alpha of a frame from that of the one before, and the scores of the frame's classes."""
    offsets, sources, labels, factors = side.offsets, side.others, side.labels, work.factors
    changed, count = work.changed, 0
    last = np.uint64(0)
    for s in range(after.size):
        first, last = last, offsets[s + 1]
        total, place = 0.0, before_exponents[s]
        for k in range(first, last):
            total += before[sources[k]] * (factors[k] * emitted[labels[k]])
        if not (_LEAST <= total < _MOST or (total == 0 and place == NOTHING)):
            total, place, _ = _in_range(total, side, s, scores, emitted, before, before_exponents, place, work.terms)
            changed[count] = s
            count += 1
        after[s], after_exponents[s] = total, place
    if arcs.epsilon_sources.size > 0:
        _relax(arcs, after, after_exponents)
        count = _different(before_exponents, after_exponents, changed)
    _adjust(side, opposite, changed[:count], after_exponents, factors)


@part(forceinline=True, **COMPILE_UNCOUNTED)
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


@uncounted_kernel
def sweep_forward(arcs, scores, work, every, alpha, alpha_exponents):
    """The sum over all paths; alpha of every so many frames, from the first on, into rows of ``alpha``.

    ``scores`` (T, K) are those of the graph's classes. ``every`` 0: none is kept.
    """
    # One after the other: the rows of a frame and of the next.
    (into, out), rows, exponents, emitted = _sides(arcs), work.mantissas, work.exponents, work.plain
    _begin(arcs, rows[0], exponents[0])
    _make_all_factors(into, exponents[0], work.factors)
    now = 0
    for t in range(scores.shape[0] + 1):
        if every > 0 and t % every == 0:
            for s in range(rows.shape[1]):
                alpha[t // every, s], alpha_exponents[t // every, s] = rows[now, s], exponents[now, s]
        if t < scores.shape[0]:
            if t % _BLOCK == 0:
                _emit_plain(scores[t : t + _BLOCK], emitted)
            _step(
                arcs, into, out, scores[t], emitted[t % _BLOCK], work, rows[now], exponents[now], rows[1 - now],
                exponents[1 - now],
            )  # fmt: skip
            now = 1 - now
    return _total(arcs, rows[now], exponents[now])


@uncounted_kernel
def sweep_again(arcs, scores, work, alpha, alpha_exponents):
    """Fill the rows of ``alpha`` behind the first."""
    (into, out), emitted = _sides(arcs), work.plain
    _make_all_factors(into, alpha_exponents[0], work.factors)
    for t in range(scores.shape[0]):
        if t % _BLOCK == 0:
            _emit_plain(scores[t : t + _BLOCK], emitted)
        _step(
            arcs, into, out, scores[t], emitted[t % _BLOCK], work, alpha[t], alpha_exponents[t], alpha[t + 1],
            alpha_exponents[t + 1],
        )  # fmt: skip


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _relax_back(arcs, mantissas, exponents):
    """Add to the states what epsilon arcs bring out of them, from the last on: those behind each have theirs."""
    for s in range(mantissas.size - 1, -1, -1):
        for k in range(arcs.epsilon_offsets[s], arcs.epsilon_offsets[s + 1]):
            source = arcs.epsilon_sources[k]
            term, place = normal(mantissas[s] * arcs.epsilon_mantissas[k], exponents[s] + arcs.epsilon_exponents[k])
            if term != 0:
                mantissas[source], exponents[source] = settled(*add(mantissas[source], exponents[source], term, place))


@uncounted_kernel
def begin_back(arcs, mantissas, exponents):
    """beta behind the last frame."""
    num_states = mantissas.size
    for s in range(num_states):
        mantissas[s], exponents[s] = arcs.end_mantissas[num_states + s], arcs.end_exponents[num_states + s]
    _relax_back(arcs, mantissas, exponents)


@part(forceinline=True, **COMPILE_UNCOUNTED)
def _step_back(
    arcs, side, opposite, scores, emitted, work, after, after_exponents, alpha, alpha_exponents, total, total_exponent,
    before, before_exponents, counts,
):  # fmt: skip
    """beta of a frame from that of the next; the posteriors of the classes between take the place of their scores."""
    factors, terms, gamma = work.factors, work.terms, work.gamma
    offsets, to, labels = side.offsets, side.others, side.labels
    counted, share_of_one, changed, count = counts.size > 0, 1.0 / total, work.changed, 0
    for c in range(gamma.size):
        gamma[c] = 0.0
    last = np.uint64(0)
    for s in range(before.size):
        first, last = last, offsets[s + 1]
        mass, place, unit = 0.0, after_exponents[s], 1.0
        for k in range(first, last):
            term = after[to[k]] * (factors[k] * emitted[labels[k]])
            terms[k - first] = term
            mass += term
        if not (_LEAST <= mass < _MOST or (mass == 0 and place == NOTHING)):
            mass, place, unit = _in_range(mass, side, s, scores, emitted, after, after_exponents, place, terms)
            changed[count] = s
            count += 1
        before[s], before_exponents[s] = mass, place
        units = alpha_exponents[s] + place - total_exponent
        # Two units below, and below the least posterior, whatever the mantissas are.
        if units > -2:
            share = scaled(alpha[s] * share_of_one, units)
            if share * mass > _LEAST_POSTERIOR:
                share *= unit
                for k in range(first, last):
                    gamma[labels[k]] += share * terms[k - first]
                if counted:
                    for k in range(first, last):
                        counts[arcs.out_arcs[k]] += share * terms[k - first]
    for c in range(gamma.size):
        scores[c] = gamma[c]
    if arcs.epsilon_sources.size > 0:
        _relax_back(arcs, before, before_exponents)
        count = _different(before_exponents, after_exponents, changed)
    _adjust(side, opposite, changed[:count], before_exponents, factors)


@part(**COMPILE_UNCOUNTED)
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


@part(**COMPILE_UNCOUNTED)
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


@uncounted_kernel
def sweep_back(arcs, scores, work, begun, alpha, alpha_exponents, total, total_exponent, is_last, is_first, counts):
    """Turn ``scores`` (T, K) into the posteriors of the classes, from the last frame to the first.

    beta behind the last of these frames is in row ``begun`` of the work, and that before the first is left in the row
    that is returned. alpha has T + 1 rows. ``counts`` get what the paths take of each weight, or have no size.
    """
    (into, out), rows, exponents, emitted = _sides(arcs), work.mantissas, work.exponents, work.plain
    num_frames, counted, now = scores.shape[0], counts.size > 0, begun
    _make_all_factors(out, exponents[now], work.factors)
    if counted and is_last:
        inner, inner_exponents = alpha[num_frames], alpha_exponents[num_frames]
        count_ends(arcs, inner.size, inner, inner_exponents, total, total_exponent, counts)
        count_epsilons(arcs, inner, inner_exponents, rows[now], exponents[now], total, total_exponent, counts)
    for t in range(num_frames - 1, -1, -1):
        if t == num_frames - 1 or (t + 1) % _BLOCK == 0:
            _emit_plain(scores[t // _BLOCK * _BLOCK : t + 1], emitted)
        _step_back(
            arcs, out, into, scores[t], emitted[t % _BLOCK], work, rows[now], exponents[now], alpha[t],
            alpha_exponents[t], total, total_exponent, rows[1 - now], exponents[1 - now], counts,
        )  # fmt: skip
        now = 1 - now
        if counted:
            count_epsilons(arcs, alpha[t], alpha_exponents[t], rows[now], exponents[now], total, total_exponent, counts)
    if counted and is_first:
        count_ends(arcs, 0, rows[now], exponents[now], total, total_exponent, counts)
    return now
