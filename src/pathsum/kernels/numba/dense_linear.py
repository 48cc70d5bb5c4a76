"""Dense lattices in plain floats: every frame is one product with the matrix of transitions.

Each row of alpha and of beta is a vector times a power of two of its own. Small entries of a row are then lost, which
is sound for a sample in two cases:

* The transitions spread over at most ``SPREAD_BITS``, none of them -inf. A path through one state of a frame can be
  bent through another at the price of two transitions, so that what lies ``CUT_BITS`` below the greatest of its row
  has a posterior below 2**(SPREAD_BITS - CUT_BITS), whatever the scores, and may be cut off.
* The finite transitions spread no further, and no possible state of any row lies more than ``WATCH_BITS`` below the
  greatest. (Past a transition of -inf, a state far below the others may be all that is left.)

Four samples read the matrix together. A sample's sums are formed in the same order whatever its neighbours and the
number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, COMPILE_EXACTLY, exact_kernel, kernel
from pathsum.kernels.numba.extended import exp, normalise, shift
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    Strided,
    copy_row,
    greatest,
    less_both,
    load_row,
    unit_of,
    work_dtype,
)
from pathsum.kernels.numba.views import bits, borrow, from_bits
from pathsum.kernels.protocol import DenseSaved
from pathsum.numerics import LN_2

GROUP = 4
# Rows are padded to whole vectors: the inner loop has no remainder.
LANES = 16
# No product of a transition and a state leaves the normal floats: SPREAD_BITS + CUT_BITS is 126, or 1022.
SPREAD_BITS = {np.float32: 42, np.float64: 340}
CUT_BITS = {np.float32: 84, np.float64: 682}
WATCH_BITS = {np.float32: 60, np.float64: 500}
# Frames whose products are added in the work dtype before the sum goes on in float64.
BLOCK = 256
# A frame's sum of alpha * beta that is further below 1 has lost digits.
MASS_BITS = {np.float32: 120, np.float64: 1000}
# The same in the states' own numbers: what is cut off and what is watched for, and what has lost digits.
LIMITS = {work: (work(2.0 ** -CUT_BITS[work]), work(2.0 ** -WATCH_BITS[work])) for work in CUT_BITS}
TINY = {work: work(2.0**-bits) for work, bits in MASS_BITS.items()}


class Matrix(NamedTuple):
    """exp(transition - shift of its destination), padded with zeros; exact and by source it is transposed.

    The scores get the shifts in every frame but the first. Most arcs stay in their state, and one rounding repeated
    in every frame would add up. So staying is kept apart from the sum over the other states, the diagonals of
    ``by_source`` and ``by_destination`` being zero, and the shifts make it exactly 1 where they can. ``exact`` is all
    of it, in float64.
    """

    exact: np.ndarray
    by_source: np.ndarray
    by_destination: np.ndarray
    stays: np.ndarray
    shifts: np.ndarray
    defined: bool
    narrow: bool
    complete: bool


class Rows(NamedTuple):
    """exp(scores + shifts - maximum) of each frame, padded with zeros; steep where a possible class has become 0.

    The scores are those of the frame less its greatest where that is huge.
    """

    weights: np.ndarray
    maxima: np.ndarray
    steep: np.ndarray


def exponential(transitions: np.ndarray, work: type) -> Matrix:
    """The matrix of (C, C) transitions, [destination, source], and what can be said of them."""
    num_classes = len(transitions)
    size = -(-num_classes // LANES) * LANES
    shifted, shifts = np.empty((num_classes, num_classes)), np.empty(num_classes)
    told = _shift_transitions(transitions, SPREAD_BITS[work] * LN_2, shifted, shifts)
    exact = np.zeros((size, size))
    exact[:num_classes, :num_classes] = np.exp(shifted).T
    by_source, by_destination = np.zeros((size, size), work), np.zeros((size, size), work)
    stays = np.zeros(size, work)
    _place_both_ways(exact, by_source, by_destination, stays)
    return Matrix(exact, by_source, by_destination, stays, shifts, *told)


def exponentiate(scores: Strided, num_classes: int, offsets: np.ndarray, shifts: np.ndarray, num_threads: int) -> Rows:
    """Weights of all frames; the maximum is NaN where a score is NaN or +inf."""
    num_frames = int(offsets[-1])
    work = work_dtype(scores.flat)
    weights = np.empty((num_frames, -(-num_classes // LANES) * LANES), work)
    maxima, steep = np.empty(num_frames), np.empty(num_frames, np.bool_)

    def fill(first: int, last: int) -> None:
        _exponentiate(
            scores.flat, *scores.strides, scores.encoding, num_classes, first, last, offsets, shifts, weights, maxima,
            steep,
        )  # fmt: skip

    parallel.run(fill, parallel.split_evenly(num_frames, num_threads), num_threads)
    return Rows(weights, maxima, steep)


def solve(
    rows: Rows,
    matrix: Matrix,
    num_classes: int,
    offsets: np.ndarray,
    samples: np.ndarray,
    need_gradient: bool,
    num_threads: int,
) -> DenseSaved:
    """Solve the samples of a mask; ``extended`` are those of all that are not sound. The weights are overwritten where
    need_gradient.
    """
    num_samples = len(samples)
    num_frames, width = rows.weights.shape
    work = rows.weights.dtype.type
    # The last block of the transitions' gradient may read up to three rows past the last frame.
    shape = (num_frames + GROUP, width) if need_gradient else (0, width)
    alpha, beta = np.empty(shape, work), np.empty(shape, work)
    exponents = np.empty(num_frames)
    last_sums = np.zeros(num_samples)
    lost = np.zeros((2, num_samples), np.bool_)
    limits = LIMITS[work]

    def advance(group: np.ndarray, backwards: bool) -> None:
        if backwards:
            _beta(
                matrix.by_destination, matrix.stays, rows.weights, group, offsets, num_classes, *limits, beta, lost[1]
            )
        else:
            _alpha(
                matrix.exact, matrix.by_source, rows.weights, group, offsets, num_classes, *limits, need_gradient,
                alpha, exponents, last_sums, lost[0],
            )  # fmt: skip

    order = _longest_first(samples, offsets)
    groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
    directions = (True, False) if need_gradient else (False,)
    parallel.run(advance, [(group, way) for group in groups for way in directions], num_threads)

    losses, possible = np.empty(num_samples), np.empty(num_samples, np.bool_)
    _finish(samples, offsets, last_sums, rows.maxima, exponents, rows.steep, losses, possible, lost[0])

    if need_gradient:
        alpha[num_frames:] = 0

        def combine(first: int, last: int) -> None:
            _combine(first, last, offsets, possible, exponents, TINY[work], alpha, beta, rows.weights, lost[1])

        parallel.run(combine, parallel.split_evenly(num_frames, num_threads), num_threads)
    unsound = ~samples if matrix.complete else ~samples | lost.any(0)
    return DenseSaved(losses, unsound, beta, alpha, rows.weights if need_gradient else alpha)


def add_transition_gradient(
    upstream: np.ndarray,
    samples: np.ndarray,
    saved: DenseSaved,
    matrix: Matrix,
    offsets: np.ndarray,
    num_threads: int,
    out: np.ndarray,
) -> None:
    """Add expected counts (C, C) of the transitions, those of some samples times their upstream, as one product over
    all frames.
    """
    gradient = np.zeros(matrix.by_destination.shape)

    def add(first: int, last: int) -> None:
        _add_products(
            upstream, samples, offsets, saved.entering, saved.alpha, first, last, matrix.by_destination, matrix.stays,
            gradient,
        )  # fmt: skip

    groups = parallel.split_evenly(len(gradient) // GROUP, num_threads)
    parallel.run(add, [(GROUP * first, GROUP * last) for first, last in groups], num_threads)
    _add_corner(gradient, out)


@kernel
def _add_corner(padded, out):
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += padded[i, j]


@kernel
def _shift_transitions(transitions, limit, shifted, shifts):
    """Transitions less the shift of their destination; whether none is NaN or +inf, how far the finite ones spread is
    below the limit, and all are finite.
    """
    size = shifts.size
    defined, complete, stays_finite, greatest_finite = True, True, True, -np.inf
    for j in range(size):
        shifts[j] = transitions[j, j]
        stays_finite = stays_finite and abs(shifts[j]) < np.inf
        for i in range(size):
            score = transitions[j, i]
            defined = defined and score < np.inf
            complete = complete and abs(score) < np.inf
            if abs(score) < np.inf:
                greatest_finite = max(greatest_finite, score)
    if not stays_finite or not _spread_below(transitions, shifts, limit):
        shifts[:] = greatest_finite if greatest_finite > -np.inf else 0.0
    for j in range(size):
        for i in range(size):
            shifted[j, i] = transitions[j, i] - shifts[j]
    return defined, _spread_below(transitions, shifts, limit), complete


@part(**COMPILE)
def _spread_below(transitions, shifts, limit):
    most, least = 0.0, 0.0
    for j in range(shifts.size):
        for i in range(shifts.size):
            if abs(transitions[j, i]) < np.inf:
                shifted = transitions[j, i] - shifts[j]
                most, least = max(most, shifted), min(least, shifted)
    return most - least <= limit


@kernel
def _place_both_ways(weights, by_source, by_destination, stays):
    """A matrix by its columns and by its rows, its diagonal apart."""
    for i in range(weights.shape[0]):
        stays[i] = weights[i, i]
        for j in range(weights.shape[1]):
            if i != j:
                by_destination[j, i] = by_source[i, j] = weights[i, j]


@exact_kernel
def _finish(samples, offsets, last_sums, maxima, exponents, steep, losses, possible, lost):
    """The losses of the samples of a mask, NaN of others; whether they have a path, and a frame of theirs is steep."""
    for n in range(samples.size):
        first, last = offsets[n], offsets[n + 1]
        losses[n] = 0.0 if samples[n] else np.nan
        if samples[n] and first < last:
            scores, powers = pairwise_sum(maxima[first:last]), pairwise_sum(exponents[first:last])
            losses[n] = -(math.log(last_sums[n]) + scores + powers * LN_2) if last_sums[n] > 0 else np.inf
            for frame in range(first, last):
                lost[n] |= steep[frame]
        possible[n] = losses[n] < np.inf


def _longest_first(samples: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The samples of a mask that have frames."""
    if len(samples) == 1:
        return np.zeros(int(samples[0] and offsets[1] > 0), np.int64)
    lengths = offsets[1:] - offsets[:-1]
    order = np.flatnonzero(samples & (lengths > 0))
    return order[np.argsort(-lengths[order], kind="stable")]


@part(**COMPILE_EXACTLY)
def pairwise_sum(values):
    """A sum by halves, whose rounding does not grow with the number of terms."""
    if values.size <= 128:
        total, whole = 0.0, values.size // 8 * 8
        if whole > 0:
            sums = values[:8].copy()
            for first in range(8, whole, 8):
                for i in range(8):
                    sums[i] += values[first + i]
            total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
        for i in range(whole, values.size):
            total += values[i]
        return total
    half = values.size // 2 // 8 * 8
    return pairwise_sum(values[:half]) + pairwise_sum(values[half:])


@kernel
def _exponentiate(
    flat, stride_n, stride_t, stride_c, encoding, num_classes, first, last, offsets, shifts, weights, maxima, steep
):  # fmt: skip
    flat, weights = borrow(flat), borrow(weights)
    scratch = np.empty(num_classes, weights.dtype)
    shifted = np.empty(weights.shape[1])
    # No shift of the first frame, and those of all others.
    shift_rows = np.zeros((2, weights.shape[1]))
    for c in range(num_classes):
        shift_rows[1, c] = -shifts[c]
    n = np.searchsorted(offsets, first, side="right") - 1
    for frame in range(first, last):
        while frame >= offsets[n + 1]:
            n += 1
        t = frame - offsets[n]
        row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
        own_shifts = borrow(shift_rows)[min(t, 1)]
        # Over the padding too, with a mask: a rest would be gone through one element at a time.
        size = row.size
        taken_off = np.float64(unit_of(greatest(row))[0])
        for c in range(shifted.size):
            score = np.float64(row[c]) if c < size else -np.inf
            shifted[c] = less_both(score, taken_off, own_shifts[c])
        largest = greatest(borrow(shifted))
        maxima[frame] = largest
        reference = largest if largest > -np.inf else 0.0
        out = weights[frame]
        lost = 0
        for c in range(shifted.size):
            weight = weights.dtype.type(exp(shifted[c] - reference))
            out[c] = weight
            lost += 1 if weight == 0 and shifted[c] > -np.inf else 0
        steep[frame] = lost > 0


@part(**COMPILE)
def multiply(matrix, states, out):
    """out[n] = sum over k of states[n, k] * matrix[k], for the four rows n: each row of the matrix is read once."""
    # Arrays made here do not alias others, which lets the loop vectorise.
    sums = np.zeros((GROUP, matrix.shape[1]), matrix.dtype)
    sum_0, sum_1, sum_2, sum_3 = sums[0], sums[1], sums[2], sums[3]
    for k in range(0, matrix.shape[0], 4):
        row_0, row_1, row_2, row_3 = matrix[k], matrix[k + 1], matrix[k + 2], matrix[k + 3]
        a0, a1, a2, a3 = states[0, k], states[0, k + 1], states[0, k + 2], states[0, k + 3]
        b0, b1, b2, b3 = states[1, k], states[1, k + 1], states[1, k + 2], states[1, k + 3]
        c0, c1, c2, c3 = states[2, k], states[2, k + 1], states[2, k + 2], states[2, k + 3]
        d0, d1, d2, d3 = states[3, k], states[3, k + 1], states[3, k + 2], states[3, k + 3]
        for j in range(matrix.shape[1]):
            m0, m1, m2, m3 = row_0[j], row_1[j], row_2[j], row_3[j]
            sum_0[j] += m0 * a0 + m1 * a1 + m2 * a2 + m3 * a3
            sum_1[j] += m0 * b0 + m1 * b1 + m2 * b2 + m3 * b3
            sum_2[j] += m0 * c0 + m1 * c1 + m2 * c2 + m3 * c3
            sum_3[j] += m0 * d0 + m1 * d1 + m2 * d2 + m3 * d3
    for n in range(GROUP):
        copy_row(sums[n], out[n])


@part(**COMPILE)
def send(matrix, stays, states, out):
    """The mass that the four rows of states send along the arcs of one frame."""
    multiply(matrix, states, out)
    for slot in range(GROUP):
        row, state = out[slot], states[slot]
        for c in range(stays.size):
            row[c] += stays[c] * state[c]


@part(**COMPILE)
def _weigh(arriving, weights, cut, watch, state):
    """state = arriving * weights, scaled to a greatest entry in [1, 2); the scale's exponent, that entry, and whether
    one that is possible has come too close to the end of the range.
    """
    number = arriving.dtype.type
    arriving, weights, state = borrow(arriving), borrow(weights), borrow(state)
    arriving_bits, weight_bits, state_bits = bits(arriving), bits(weights), bits(state)
    none, no_weight, unbounded = state_bits.dtype.type(0), weight_bits.dtype.type(0), bits(number(np.inf))
    for c in range(state.size):
        state[c] = arriving[c] * weights[c]
    # The bits of a non-negative float are in its order, and integers compare a vector at a time.
    largest_bits, least_bits = none, unbounded
    for c in range(state.size):
        mass = state_bits[c]
        largest_bits = mass if mass > largest_bits else largest_bits
        possible = mass if (arriving_bits[c] > none) & (weight_bits[c] > no_weight) else unbounded
        least_bits = possible if possible < least_bits else least_bits
    largest, least = from_bits(largest_bits), from_bits(least_bits)
    _, exponent = normalise(largest, 0)
    if largest_bits > none:
        scale = shift(number(1), -exponent)
        greatest_mass = largest * scale
        for c in range(state.size):
            mass = state[c] * scale
            state[c] = mass if mass > cut else number(0)
    else:
        exponent, greatest_mass = 0, largest
    return exponent, greatest_mass, least < watch * largest or largest < watch


@part(**COMPILE)
def _place_of(mass, state):
    """The first place of a mass, else the last place."""
    last = state.size - 1
    place = last
    for c in range(state.size):
        own = c if state[c] == mass else last
        place = own if own < place else place
    return place


@part(**COMPILE)
def _add_exactly(exact, stays, state, greatest, arrived, arriving):
    """What has arrived from the other states, and what stays and what the greatest state sends, both in float64."""
    mass, row = state[greatest], exact[greatest]
    of_greatest = arrived[greatest] + stays[greatest] * mass
    for c in range(arriving.size):
        arriving[c] = arrived[c] + stays[c] * state[c] + row[c] * mass
    # Of its row this is the diagonal, which is what stays.
    arriving[greatest] = of_greatest


@kernel
def _alpha(
    exact, matrix, weights, group, offsets, num_classes, cut, watch, keep, alpha, exponents, last_sums, lost
):  # fmt: skip
    """The mass that arrives in each state of each frame, for the samples of a group, the longest first.

    A loss of a model that is sure is the little by which the sum over all paths exceeds that over the target's, so that
    nearly all the mass is in one state and stays there. That is summed in float64, and the rest in the work dtype.
    """
    exact, matrix, weights, alpha = borrow(exact), borrow(matrix), borrow(weights), borrow(alpha)
    size = weights.shape[1]
    stays = np.empty(size)
    for c in range(size):
        stays[c] = exact[c, c]
    states, arriving = np.zeros((GROUP, size)), np.zeros((GROUP, size))
    others, arrived = np.zeros((GROUP, size), weights.dtype), np.zeros((GROUP, size), weights.dtype)
    greatest_places = np.zeros(GROUP, np.int64)
    for slot in range(GROUP):
        for c in range(num_classes):
            arriving[slot, c] = 1
    for t in range(offsets[group[0] + 1] - offsets[group[0]]):
        if t > 0:
            multiply(matrix, borrow(others), borrow(arrived))
        for slot in range(group.size):
            n = group[slot]
            frame = offsets[n] + t
            if frame < offsets[n + 1]:
                state, rounded = borrow(states)[slot], borrow(others)[slot]
                into, place = borrow(arriving)[slot], greatest_places[slot]
                if t > 0:
                    _add_exactly(exact, stays, state, place, borrow(arrived)[slot], into)
                exponent, mass, near_end = _weigh(into, weights[frame], cut, watch, state)
                exponents[frame] = exponent
                lost[n] |= near_end
                for c in range(size):
                    rounded[c] = state[c]
                if keep:
                    copy_row(rounded, alpha[frame])
                place = _place_of(mass, state)
                greatest_places[slot], rounded[place] = place, 0
                if frame == offsets[n + 1] - 1:
                    for c in range(num_classes):
                        last_sums[n] += state[c]


@kernel
def _beta(matrix, stays, weights, group, offsets, num_classes, cut, watch, beta, lost):
    """The mass that leaves each state of each frame."""
    matrix, stays, weights, beta = borrow(matrix), borrow(stays), borrow(weights), borrow(beta)
    states = np.zeros((GROUP, weights.shape[1]), weights.dtype)
    leaving = np.zeros((GROUP, weights.shape[1]), weights.dtype)
    for t in range(offsets[group[0] + 1] - offsets[group[0]] - 1, -1, -1):
        for slot in range(group.size):
            n = group[slot]
            frame = offsets[n] + t
            if frame < offsets[n + 1]:
                if frame == offsets[n + 1] - 1:
                    for c in range(num_classes):
                        leaving[slot, c] = 1
                copy_row(leaving[slot], beta[frame])
                _, _, near_end = _weigh(leaving[slot], weights[frame], cut, watch, states[slot])
                lost[n] |= near_end
        if t > 0:
            send(matrix, stays, borrow(states), borrow(leaving))


@kernel
def _combine(first, last, offsets, possible, exponents, tiny, alpha, beta, weights, lost):
    """Frames [first, last): beta becomes the posterior of each state, gamma, and the weights become what entering a
    state is worth, so that entering[t, j] * matrix[j, i] * alpha[t-1, i] is the posterior of the arc from i to j.

    A frame's posteriors sum to 1: dividing by their own sum keeps what alpha and beta have in common out of them.
    """
    number = alpha.dtype.type
    n = np.searchsorted(offsets, first, side="right") - 1
    for frame in range(first, last):
        while frame >= offsets[n + 1]:
            n += 1
        mass, leaving, entering = alpha[frame], beta[frame], weights[frame]
        total = number(0)
        if possible[n]:
            for c in range(mass.size):
                total += mass[c] * leaving[c]
        if total < tiny:
            lost[n] = possible[n]
            for c in range(mass.size):
                mass[c], leaving[c], entering[c] = 0, 0, 0
            continue
        share = number(1) / total
        scale = number(math.ldexp(1.0, -int(exponents[frame])))
        for c in range(mass.size):
            entering[c] = entering[c] * (leaving[c] * share) * scale
            leaving[c] = mass[c] * leaving[c] * share


@kernel
def _add_products(
    upstream, samples, offsets, entering, alpha, first, last, by_destination, stays, gradient
):  # fmt: skip
    """Destinations [first, last), four at a time: gradient[j, i] = matrix * upstream * sum over t of entering * alpha
    before.
    """
    for destination in range(first, last, GROUP):
        _add_four(upstream, samples, offsets, entering, alpha, destination, gradient)
    for j in range(first, last):
        for i in range(gradient.shape[1]):
            gradient[j, i] *= by_destination[j, i] + (stays[j] if i == j else stays.dtype.type(0))


@part(**COMPILE)
def _add_four(upstream, samples, offsets, entering, alpha, first, gradient):
    number = alpha.dtype.type
    states = np.empty((GROUP, BLOCK), alpha.dtype)
    sums = np.empty((GROUP, alpha.shape[1]), alpha.dtype)
    for n in samples:
        weight = number(upstream[n])
        for start in range(offsets[n], offsets[n + 1] - 1, BLOCK):
            count = min(BLOCK, offsets[n + 1] - 1 - start)
            padded = -(-count // 4) * 4
            for frame in range(padded):
                for slot in range(GROUP):
                    here = frame < count
                    states[slot, frame] = weight * entering[start + frame + 1, first + slot] if here else number(0)
            multiply(alpha[start : start + padded], states, sums)
            for slot in range(GROUP):
                for i in range(sums.shape[1]):
                    gradient[first + slot, i] += sums[slot, i]
