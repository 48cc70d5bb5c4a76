"""Alpha and beta of chains in extended range, a sample at a time: its loss, and the posteriors of its arcs.

Alpha and the loss are in float64 for scores of any dtype; what is kept of alpha, beta and the posteriors are in the
dtype of the scores where its exponents reach.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import normalise, shift, split, split_tail
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import INFINITY_32, MAGNITUDE_32, unit_of
from pathsum.kernels.numba.views import bits, borrow, from_bits
from pathsum.numerics import LN_2, LOG2_E, MAX_EXPONENT_32, ZERO_EXPONENT_32, ZERO_EXPONENT_64

_i32 = np.int32


class NumberPair(NamedTuple):
    """Dtypes of the extended-range numbers that are kept of alpha, and of the exponents while it is computed, beside
    float64 mantissas; and the exponent of zero.
    """

    mantissa: type
    exponent: type
    running_exponent: type
    zero: float


NARROW = NumberPair(np.float32, np.int32, np.int64, ZERO_EXPONENT_32)
WIDE = NumberPair(np.float64, np.float64, np.float64, ZERO_EXPONENT_64)

# Columns in front of the first state: the virtual state, and one more so that a skip into state 0 reads a zero.
FRONT = 2
# States computed at once.
STATES = 16


class Running(NamedTuple):
    """How far the samples have come, in float64.

    Attributes:
        mass, exponents: (N, FRONT + S') alpha after the frames so far, in extended range.
        log_sums, powers: (N,) log of the product of the rows' sums so far: log_sum + power * ln 2; NaN where a score is
            not defined.
        reaches: (N,) a bound on the size of the log-score of any path so far.
    """

    mass: np.ndarray
    exponents: np.ndarray
    log_sums: np.ndarray
    powers: np.ndarray
    reaches: np.ndarray


def start(num_samples: int, width: int, start_state: int, pairs: tuple[NumberPair, ...]) -> Running:
    """Before the first frame, with samples to be held by these pairs."""
    size = FRONT + -(-width // STATES) * STATES
    mass, exponents = np.zeros((num_samples, size)), np.zeros((num_samples, size))
    log_sums, powers, reaches = np.zeros(num_samples), np.zeros(num_samples), np.empty(num_samples)
    _begin(FRONT + start_state, 0.0 if pairs[0] is NARROW else np.inf, mass, reaches)
    return Running(mass, exponents, log_sums, powers, reaches)


@kernel
def _begin(state, reach, mass, reaches):
    for n in range(reaches.size):
        mass[n, state], reaches[n] = 1.0, reach


def pairs_for(stays: tuple[np.ndarray, np.ndarray] | None, dtype: type) -> tuple[NumberPair, ...]:
    """The extended-range pairs to hold the samples of a batch, one after another: what is beyond the first one's reach
    is left to the next.
    """
    # The rounding of a transition's factor, met again in every frame, would add up in the narrow pair.
    return (NARROW, WIDE) if stays is None and dtype == np.float32 else (WIDE,)


@part(**COMPILE)
def is_held(n, step_scores, stay_scores, shared_labels, alpha, reaches):
    """Whether a sample is for alpha's pair to hold: for the narrow one where that reaches all paths, else the other.

    To the reach that a sample has had so far the narrow pair adds that of these frames.
    """
    if alpha.itemsize == 8:
        return reaches[n] * LOG2_E >= MAX_EXPONENT_32
    reach = _reach(step_scores)
    if not shared_labels:
        reach = max(reach, _reach(stay_scores))
    reaches[n] += reach
    return reaches[n] * LOG2_E < MAX_EXPONENT_32


@part(**COMPILE)
def _reach(scores):
    """The sum over frames of the largest finite score, and of a choice."""
    total = 0.0
    for t in range(scores.shape[0]):
        # The bits of a non-negative float are in its order, and integers compare a vector at a time.
        row_bits = bits(scores[t])
        largest = _i32(0)
        for s in range(row_bits.size):
            word = _i32(row_bits[s] & MAGNITUDE_32)
            word = word if word < INFINITY_32 else _i32(0)
            largest = word if word > largest else largest
        total += np.float64(from_bits(largest)) + 2.0
    return total


@part(inline="always", **COMPILE)
def solve_samples(
    samples, frame_offsets, step_scores, stay_scores, stays, maxima, log_sums, num_states, skips, num_final,
    shared_labels, logits, need_gradient, alpha, exponents, zero, running_mass, running_exponents, running_log_sums,
    running_powers, reaches,
):  # fmt: skip
    """Those of some samples that alpha's pair holds, over some frames, one after another over the same room for alpha.

    With ``need_gradient`` the frames are all there are, and where there is a path their scores are overwritten by the
    posteriors of their arcs. How many samples are left.
    """
    left = 0
    for n in samples:
        first, last = frame_offsets[n], frame_offsets[n + 1]
        if not is_held(n, step_scores[first:last], stay_scores[first:last], shared_labels, alpha, reaches):
            left += 1 if alpha.itemsize == 4 else 0
            continue
        for t in range(first, last):
            if maxima[t] != maxima[t]:
                running_log_sums[n] = np.nan
            else:
                running_log_sums[n] += log_sums[t]
                running_powers[n] += unit_of(maxima[t])[1]
        if running_log_sums[n] == running_log_sums[n]:
            _solve_sample(
                step_scores[first:last], stay_scores[first:last], of_sample(stays, n), num_states[n], skips[n],
                num_final, shared_labels, logits, need_gradient, alpha, exponents, zero, running_mass[n],
                running_exponents[n],
            )  # fmt: skip
    return left


@part(inline="always", **COMPILE)
def _solve_sample(
    step_scores, stay_scores, stays, num_states, skips, num_final, shared_labels, logits, need_gradient, alpha,
    alpha_exponents, zero, running_mass, running_exponents,
):  # fmt: skip
    step_scores, stay_scores, skips = borrow(step_scores), borrow(stay_scores), borrow(skips)
    alpha, alpha_exponents = borrow(alpha), borrow(alpha_exponents)
    fill_alpha(
        step_scores, stay_scores, stays, num_states, skips, shared_labels, logits, need_gradient, alpha,
        alpha_exponents, zero, running_mass, running_exponents,
    )  # fmt: skip
    if need_gradient and _sum_of_final(running_mass, running_exponents, num_states, num_final)[0] > 0:
        _write_posteriors(
            step_scores, stay_scores, stays, num_states, skips, num_final, shared_labels,
            alpha_exponents.dtype.type(zero), alpha, alpha_exponents,
        )  # fmt: skip


@part(**COMPILE)
def _sum_of_final(mass, exponents, num_states, num_final):
    """The sum over the states in which a path may end, in extended range."""
    first_final = FRONT + max(num_states - num_final, -1)
    exponent = ZERO_EXPONENT_64
    for s in range(first_final, FRONT + num_states):
        exponent = max(exponent, exponents[s])
    total = 0.0
    for s in range(first_final, FRONT + num_states):
        total += shift(mass[s], exponents[s] - exponent)
    return total, exponent


@part(**COMPILE)
def finish(mass, exponents, log_sums, powers, num_states, num_final, logits, losses):
    """The losses (N,) after the last frame; of logits, whose paths share a probability of 1, at least 0."""
    for n in range(losses.size):
        total, exponent = _sum_of_final(mass[n], exponents[n], num_states[n], num_final)
        # Whole numbers first: what is left of them is small where the loss is.
        loss = (powers[n] - exponent) * LN_2 + (log_sums[n] - np.log(total)) if total > 0 else np.inf
        if logits and loss < 0.0:
            loss = 0.0
        losses[n] = loss if log_sums[n] == log_sums[n] else np.nan


@part(forceinline=True, **COMPILE)
def fill_alpha(
    step_scores, stay_scores, stays, num_states, skips, shared_labels, logits, keep, alpha, exponents, zero,
    running_mass, running_exponents,
):  # fmt: skip
    """Alpha of one sample, from before the first of some frames to after the last, which is left in the running one.

    Where ``keep`` alpha has a row for each frame, row 0 that before the first. The recursion itself is in float64: a
    loss is the difference of two logarithms, and in float32 the rounding of many frames alike would be all of it.
    """
    # Whole blocks leave the compiler no rest to go through one state at a time; past the states all is zero.
    size = -(-num_states // STATES) * STATES
    mass, mass_exponents = np.zeros(FRONT + size), np.full(FRONT + size, zero)
    entered, entered_exponents = np.zeros(size), np.full(size, zero)
    staying, staying_exponents = np.zeros(size), np.full(size, zero)
    weights, weight_exponents = np.zeros(size), np.full(size, zero)
    skipping = np.zeros(size, np.int64)
    for s in range(num_states):
        skipping[s] = 1 if skips[s] else 0
    for s in range(FRONT + num_states):
        if running_mass[s] > 0:
            mass[s], mass_exponents[s] = running_mass[s], running_exponents[s]
    if keep:
        _keep(mass, mass_exponents, alpha[0], exponents[0], num_states)
    for t in range(step_scores.shape[0]):
        split_row(step_scores[t], num_states, logits, weights, weight_exponents)
        _enter(
            mass, mass_exponents, weights, weight_exponents, stays, skipping, shared_labels, zero, entered,
            entered_exponents, staying, staying_exponents,
        )  # fmt: skip
        if not shared_labels:
            split_row(stay_scores[t], num_states, logits, weights, weight_exponents)
            here, here_exponents = stay_in(mass[FRONT:], mass_exponents[FRONT:], stays, staying, staying_exponents)
            for s in range(size):
                stay_exponent = here_exponents[s] + weight_exponents[s]
                largest = stay_exponent if stay_exponent > entered_exponents[s] else entered_exponents[s]
                arriving = shift(here[s] * weights[s], stay_exponent - largest)
                arriving += shift(entered[s], entered_exponents[s] - largest)
                entered[s], entered_exponents[s] = normalise(arriving, largest)
        here, here_exponents = mass[FRONT:], mass_exponents[FRONT:]
        for s in range(size):
            here[s], here_exponents[s] = entered[s], entered_exponents[s]
        # A path is in the virtual state before the first frame alone.
        for s in range(FRONT):
            mass[s], mass_exponents[s] = 0.0, zero
        if keep:
            _keep(mass, mass_exponents, alpha[t + 1], exponents[t + 1], num_states)
    for s in range(FRONT + num_states):
        running_mass[s], running_exponents[s] = mass[s], mass_exponents[s]


@part(forceinline=True, **COMPILE)
def _keep(mass, mass_exponents, kept, kept_exponents, num_states):
    for s in range(FRONT + num_states):
        kept[s] = mass[s]
        kept_exponents[s] = mass_exponents[s]


def _split_row_32(scores, num_states, logits, weights, exponents):
    for first in range(0, weights.size, STATES):
        own, mantissas, powers = scores[first:], weights[first:], exponents[first:]
        size = num_states - first
        for s in range(STATES):
            score = own[s] if s < size else np.float32(-np.inf)
            if logits:
                # Rounded, as the sum of the row's exponentials has it.
                mantissa, power = split(score)
                mantissas[s] = mantissa
            else:
                tail, power = split_tail(score)
                mantissas[s] = 1.0 + np.float64(tail)
            powers[s] = power


@part(**COMPILE)
def _split_row_64(scores, num_states, weights, exponents):
    for s in range(weights.size):
        weights[s], exponents[s] = split(np.float64(scores[s]) if s < num_states else -np.inf)


def split_row(scores, num_states, logits, weights, exponents):
    """exp(score) of the states of a frame in extended range, 0 past them."""
    if scores.dtype == np.float32 and exponents.dtype == np.int64:
        _split_row_32(scores, num_states, logits, weights, exponents)
    else:
        _split_row_64(scores, num_states, weights, exponents)


@overload(split_row, jit_options=COMPILE)
def _compile_split_row(scores, num_states, logits, weights, exponents):
    if scores.dtype == types.float32 and exponents.dtype == types.int64:
        return _split_row_32
    return lambda scores, num_states, logits, weights, exponents: _split_row_64(scores, num_states, weights, exponents)


@part(forceinline=True, **COMPILE)
def _enter(
    mass, exponents, weights, weight_exponents, stays, skipping, shared_labels, zero, entered, entered_exponents,
    staying, staying_exponents,
):  # fmt: skip
    """One frame forward: the mass that arrives in each state by the arcs that share its label."""
    # Arrays of the caller's own and shifted views let the loop vectorise: no aliasing, no negative index.
    one_before, one_before_exponents = mass[FRONT - 1 :], exponents[FRONT - 1 :]
    here, here_exponents = stay_in(mass[FRONT:], exponents[FRONT:], stays, staying, staying_exponents)
    for s in range(entered.size):
        # The mantissa has to go as well: where nothing else arrives, the exponent of zero is the largest.
        skip_mass, skip_exponent = (mass[s], exponents[s]) if skipping[s] > 0 else (0.0, zero)
        step_exponent = one_before_exponents[s]
        largest = step_exponent if step_exponent > skip_exponent else skip_exponent
        if shared_labels:
            largest = here_exponents[s] if here_exponents[s] > largest else largest
        arriving = shift(one_before[s], step_exponent - largest) + shift(skip_mass, skip_exponent - largest)
        if shared_labels:
            arriving += shift(here[s], here_exponents[s] - largest)
        entered[s], entered_exponents[s] = normalise(arriving * weights[s], largest + weight_exponents[s])


@part(forceinline=True, **COMPILE)
def of_sample(stays, n):
    """The factors of a sample's staying arcs; decided here, ``None`` is known to the compiler in all that follows."""
    if stays is None:
        return None
    mantissas, exponents = stays
    return borrow(mantissas)[n], borrow(exponents)[n]


@part(forceinline=True, **COMPILE)
def stay_in(mass, exponents, stays, staying, staying_exponents):
    """What each state's mass is worth to the arc that stays: itself, or times a factor in ``staying``."""
    if stays is None:
        return mass, exponents
    factors, factor_exponents = stays
    # What is staying past the factors is nothing already.
    for s in range(min(staying.size, factors.size)):
        staying[s] = mass[s] * factors[s]
        staying_exponents[s] = exponents[s] + factor_exponents[s]
    return staying, staying_exponents


@part(forceinline=True, **COMPILE)
def _write_posteriors(
    step_scores, stay_scores, stays, num_states, skips, num_final, shared_labels, zero, alpha, alpha_exponents
):  # fmt: skip
    """Beta from the last frame back, turning each frame's scores into the posteriors of the arcs that emitted them.

    The posteriors of a frame sum to 1, so dividing by their own sum keeps what alpha and beta have in common, and its
    rounding, out of them.
    """
    beta = np.zeros(num_states + FRONT, alpha.dtype)
    beta_exponents = np.full(num_states + FRONT, zero, alpha_exponents.dtype)
    stepped = np.zeros(num_states + FRONT, alpha.dtype)
    stepped_exponents = np.full(num_states + FRONT, zero, alpha_exponents.dtype)
    stayed = np.zeros(num_states, alpha.dtype)
    stayed_exponents = np.full(num_states, zero, alpha_exponents.dtype)
    mass = np.empty(num_states, alpha.dtype)
    mass_exponents = np.empty(num_states, alpha_exponents.dtype)
    skips_after = np.zeros(num_states, np.bool_)
    for s in range(num_states - 2):
        skips_after[s] = skips[s + 2]
    for s in range(max(num_states - num_final, 0), num_states):
        beta[s] = 1
        beta_exponents[s] = 0

    nothing = alpha.dtype.type(0)
    for t in range(step_scores.shape[0] - 1, -1, -1):
        step_row, stay_row = step_scores[t], stay_scores[t]
        # A loop over two widths of float has the vectors of the wider one fall apart.
        for s in range(num_states):
            mass[s] = step_row[s]
        for s in range(num_states):
            weight, weight_exponent = split(mass[s])
            stepped[s] = beta[s] * weight
            stepped_exponents[s] = beta_exponents[s] + weight_exponent
        if shared_labels:
            here, here_exponents = alpha[t + 1, FRONT:], alpha_exponents[t + 1, FRONT:]
            for s in range(num_states):
                mass[s] = here[s] * beta[s]
                mass_exponents[s] = here_exponents[s] + beta_exponents[s]
            largest = _largest(mass_exponents, zero)
            total = _sum(mass, mass_exponents, largest)
            _store(mass, total, step_row)
        else:
            staying, staying_exponents = stay_in(beta, beta_exponents, stays, stayed, stayed_exponents)
            for s in range(num_states):
                weight, weight_exponent = split(alpha.dtype.type(stay_row[s]))
                stayed[s] = staying[s] * weight
                stayed_exponents[s] = staying_exponents[s] + weight_exponent
            _write_arc_posteriors(
                alpha[t], alpha_exponents[t], skips, zero, stepped, stepped_exponents, stayed, stayed_exponents, mass,
                mass_exponents, step_row, stay_row,
            )  # fmt: skip

        one_after, one_after_exponents = stepped[1:], stepped_exponents[1:]
        two_after, two_after_exponents = stepped[2:], stepped_exponents[2:]
        if shared_labels:
            staying, staying_exponents = stay_in(stepped, stepped_exponents, stays, stayed, stayed_exponents)
        else:
            staying, staying_exponents = stayed, stayed_exponents
        for s in range(num_states):
            stay_mass, stay_exponent = staying[s], staying_exponents[s]
            step_exponent = one_after_exponents[s]
            skip_mass, skip_exponent = (two_after[s], two_after_exponents[s]) if skips_after[s] else (nothing, zero)
            largest = stay_exponent if stay_exponent > step_exponent else step_exponent
            largest = skip_exponent if skip_exponent > largest else largest
            leaving = shift(stay_mass, stay_exponent - largest) + shift(one_after[s], step_exponent - largest)
            leaving += shift(skip_mass, skip_exponent - largest)
            beta[s], beta_exponents[s] = normalise(leaving, largest)


@part(forceinline=True, **COMPILE)
def _write_arc_posteriors(
    alpha, alpha_exponents, skips, zero, stepped, stepped_exponents, stayed, stayed_exponents, mass, mass_exponents,
    step_row, stay_row,
):  # fmt: skip
    """Posteriors of the staying and of the entering arcs apart, where they emit different classes."""
    one_before, one_before_exponents = alpha[FRONT - 1 :], alpha_exponents[FRONT - 1 :]
    here, here_exponents = alpha[FRONT:], alpha_exponents[FRONT:]
    stay_mass = np.empty_like(mass)
    stay_mass_exponents = np.empty_like(mass_exponents)
    nothing = mass.dtype.type(0)
    for s in range(mass.size):
        skip_mass, skip_exponent = (alpha[s], alpha_exponents[s]) if skips[s] else (nothing, zero)
        largest = one_before_exponents[s] if one_before_exponents[s] > skip_exponent else skip_exponent
        arriving = shift(one_before[s], one_before_exponents[s] - largest) + shift(skip_mass, skip_exponent - largest)
        mass[s], mass_exponents[s] = normalise(arriving * stepped[s], largest + stepped_exponents[s])
        stay_mass[s], stay_mass_exponents[s] = normalise(here[s] * stayed[s], here_exponents[s] + stayed_exponents[s])
    step_largest, stay_largest = _largest(mass_exponents, zero), _largest(stay_mass_exponents, zero)
    largest = step_largest if step_largest > stay_largest else stay_largest
    total = _sum(mass, mass_exponents, largest) + _sum(stay_mass, stay_mass_exponents, largest)
    _store(mass, total, step_row)
    _store(stay_mass, total, stay_row)


@part(forceinline=True, **COMPILE)
def _largest(exponents, zero):
    largest = zero
    for s in range(exponents.size):
        largest = exponents[s] if exponents[s] > largest else largest
    return largest


@part(forceinline=True, **COMPILE)
def _sum(mass, exponents, largest):
    """The sum in units of 2**largest; ``mass`` is left in the same units."""
    total = mass.dtype.type(0)
    for s in range(mass.size):
        plain = shift(mass[s], exponents[s] - largest)
        mass[s] = plain
        total += plain
    return total


@part(forceinline=True, **COMPILE)
def _store(mass, total, row):
    scale = mass.dtype.type(1) / total
    for s in range(mass.size):
        row[s] = mass[s] * scale
