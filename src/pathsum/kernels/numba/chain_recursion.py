"""Alpha and beta of chains in extended range, a sample at a time: its loss, and the posteriors of its arcs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.rows import INFINITY_32, MAGNITUDE_32, borrow
from pathsum.numerics import LOG2_E, MAX_EXPONENT_32, ZERO_EXPONENT_32, ZERO_EXPONENT_64

_i32 = np.int32

# Logits up to this size are exponentiated as they are.
_ORDINARY = 1024


class NumberPair(NamedTuple):
    """Dtypes of an extended-range number, and the exponent of its zero."""

    mantissa: type
    exponent: type
    zero: float


NARROW = NumberPair(np.float32, np.int32, ZERO_EXPONENT_32)
WIDE = NumberPair(np.float64, np.float64, ZERO_EXPONENT_64)

# Columns in front of the first state: the virtual state, and one more so that a skip into state 0 reads a zero.
FRONT = 2


def in_range(
    samples: np.ndarray,
    step_scores: np.ndarray,
    stay_scores: np.ndarray,
    stays: tuple[np.ndarray, np.ndarray] | None,
    shared_labels: bool,
    frame_offsets: np.ndarray,
) -> list[tuple[NumberPair, np.ndarray]]:
    """Which of the samples each extended-range pair is to hold."""
    # The rounding of a transition's factor, met again in every frame, would add up in the narrow pair.
    reaches = np.full(len(samples), 0.0 if stays is None else np.inf)
    if stays is None and step_scores.dtype == np.float32:
        _measure_reaches(step_scores, stay_scores, shared_labels, frame_offsets, samples, reaches)
    pairs = [_number_pair(reach, step_scores.dtype) for reach in reaches]
    return [(pair, samples[[own is pair for own in pairs]]) for pair in (NARROW, WIDE)]


def _number_pair(reach: float, dtype: np.dtype) -> NumberPair:
    """The extended-range pair whose exponents hold every path of a sample."""
    return NARROW if dtype == np.float32 and reach * LOG2_E < MAX_EXPONENT_32 else WIDE


def split_all(log_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mantissas and exponents of float64 log-scores."""
    mantissas, exponents = np.empty_like(log_scores), np.empty_like(log_scores)
    _fill_split(log_scores.ravel(), mantissas.ravel(), exponents.ravel())
    return mantissas, exponents


@kernel
def _fill_split(log_scores, mantissas, exponents):
    for i in range(log_scores.size):
        mantissas[i], exponents[i] = split(log_scores[i])


@kernel
def _measure_reaches(step_scores, stay_scores, shared_labels, frame_offsets, samples, reaches):
    """For each sample a bound on the size of the log-score of any path."""
    for i in range(samples.size):
        first, last = frame_offsets[samples[i]], frame_offsets[samples[i] + 1]
        reaches[i] = _reach(step_scores[first:last])
        if not shared_labels:
            reaches[i] = max(reaches[i], _reach(stay_scores[first:last]))


@njit(**COMPILE)
def _reach(scores):
    """The sum over frames of the largest finite score, and of a choice."""
    total = 0.0
    for t in range(scores.shape[0]):
        # The bits of a non-negative float are in its order, and integers compare a vector at a time.
        row_bits = scores[t].view(np.int32)
        largest = _i32(0)
        for s in range(row_bits.size):
            bits = _i32(row_bits[s] & MAGNITUDE_32)
            bits = bits if bits < INFINITY_32 else _i32(0)
            largest = bits if bits > largest else largest
        total += np.float64(_i32(largest).view(np.float32)) + 2.0
    return total


@njit(forceinline=True, **COMPILE)
def reference(maximum, zero):
    """What the logits of a row are taken less before they are exponentiated.

    Nothing, where they are of ordinary size: a score 50 below its row's maximum would lose 2e-6 to the subtraction, and
    extended range needs none. Huge ones are, lest the sum of a thousand of them drown the loss.
    """
    size = abs(maximum)
    return maximum if size > _ORDINARY and size < np.inf else zero


@kernel
def solve_samples(
    samples, frame_offsets, step_scores, stay_scores, stays, maxima, sums, num_states, skips, start_state, num_final,
    shared_labels, need_gradient, alpha, exponents, zero, losses,
):  # fmt: skip
    """The losses of some samples, one after another over the same room for alpha; NaN where a score is not defined."""
    for n in samples:
        first, last = frame_offsets[n], frame_offsets[n + 1]
        losses[n] = 0.0
        for t in range(first, last):
            if maxima[t] != maxima[t]:
                losses[n] = np.nan
        if losses[n] == 0.0:
            losses[n] = _solve_sample(
                step_scores[first:last], stay_scores[first:last], of_sample(stays, n), maxima[first:last],
                sums[first:last] if sums.size > 0 else sums, num_states[n], skips[n], start_state, num_final,
                shared_labels, need_gradient, alpha, exponents, zero,
            )  # fmt: skip


@njit(**COMPILE)
def _solve_sample(
    step_scores, stay_scores, stays, maxima, sums, num_states, skips, start_state, num_final, shared_labels,
    need_gradient, alpha, alpha_exponents, zero,
):  # fmt: skip
    """The loss of one sample; with ``need_gradient`` its scores are overwritten by the posteriors of their arcs."""
    step_scores, stay_scores, skips = borrow(step_scores), borrow(stay_scores), borrow(skips)
    alpha, alpha_exponents = borrow(alpha), borrow(alpha_exponents)
    row = fill_alpha(
        step_scores, stay_scores, stays, num_states, skips, start_state, shared_labels, need_gradient, alpha,
        alpha_exponents, zero,
    )  # fmt: skip
    first_final = FRONT + max(num_states - num_final, -1)
    exponent = zero
    for s in range(first_final, FRONT + num_states):
        exponent = max(exponent, alpha_exponents[row, s])
    total = 0.0
    for s in range(first_final, FRONT + num_states):
        total += shift(alpha[row, s], alpha_exponents[row, s] - exponent)
    loss = -log(total, exponent)
    for t in range(sums.size):
        if sums[t] > 0:
            loss += np.log(np.float64(sums[t])) + np.float64(maxima[t] - reference(maxima[t], maxima.dtype.type(0)))
    if need_gradient and loss < np.inf:
        _write_posteriors(
            step_scores, stay_scores, stays, num_states, skips, num_final, shared_labels, zero, alpha, alpha_exponents,
        )  # fmt: skip
    return loss


@njit(forceinline=True, **COMPILE)
def fill_alpha(
    step_scores, stay_scores, stays, num_states, skips, start_state, shared_labels, keep, alpha, exponents, zero
):  # fmt: skip
    """Alpha of one sample, and the row in which that of its last frame is.

    Where ``keep`` there is a row for each frame, else two rows in turn; row 0 is before the first frame.
    """
    entered = np.empty(num_states, alpha.dtype)
    entered_exponents = np.empty(num_states, exponents.dtype)
    staying = np.empty(num_states, alpha.dtype)
    staying_exponents = np.empty(num_states, exponents.dtype)
    alpha[0] = 0
    exponents[0] = zero
    alpha[0, FRONT + start_state] = 1
    exponents[0, FRONT + start_state] = 0
    row = 0
    for t in range(step_scores.shape[0]):
        following = t + 1 if keep else 1 - row
        _enter(
            alpha[row], exponents[row], stay_scores[t], step_scores[t], stays, skips, shared_labels, zero,
            entered, entered_exponents, staying, staying_exponents,
        )  # fmt: skip
        here, here_exponents = alpha[following, FRONT:], exponents[following, FRONT:]
        for s in range(num_states):
            here[s], here_exponents[s] = entered[s], entered_exponents[s]
        for s in range(FRONT):
            alpha[following, s] = 0
            exponents[following, s] = zero
        row = following
    return row


@njit(forceinline=True, **COMPILE)
def _enter(
    alpha, exponents, stay_scores, step_scores, stays, skips, shared_labels, zero, entered, entered_exponents, staying,
    staying_exponents,
):  # fmt: skip
    """One frame forward: the mass that arrives in each state."""
    # Arrays of the caller's own and shifted views let the loops vectorise: no aliasing, no negative index.
    one_before, one_before_exponents = alpha[FRONT - 1 :], exponents[FRONT - 1 :]
    here, here_exponents = stay_in(alpha[FRONT:], exponents[FRONT:], stays, staying, staying_exponents)
    nothing = alpha.dtype.type(0)
    for s in range(entered.size):
        # The mantissa has to go as well: where nothing else arrives, the exponent of zero is the largest.
        skip_mass, skip_exponent = (alpha[s], exponents[s]) if skips[s] else (nothing, zero)
        step_exponent = one_before_exponents[s]
        largest = step_exponent if step_exponent > skip_exponent else skip_exponent
        if shared_labels:
            largest = here_exponents[s] if here_exponents[s] > largest else largest
        arriving = shift(one_before[s], step_exponent - largest) + shift(skip_mass, skip_exponent - largest)
        if shared_labels:
            arriving += shift(here[s], here_exponents[s] - largest)
        weight, weight_exponent = split(alpha.dtype.type(step_scores[s]))
        entered[s], entered_exponents[s] = normalise(arriving * weight, largest + weight_exponent)
    if not shared_labels:
        for s in range(entered.size):
            weight, weight_exponent = split(alpha.dtype.type(stay_scores[s]))
            stay_exponent = here_exponents[s] + weight_exponent
            largest = stay_exponent if stay_exponent > entered_exponents[s] else entered_exponents[s]
            arriving = shift(here[s] * weight, stay_exponent - largest)
            arriving += shift(entered[s], entered_exponents[s] - largest)
            entered[s], entered_exponents[s] = normalise(arriving, largest)


@njit(forceinline=True, **COMPILE)
def of_sample(stays, n):
    """The factors of a sample's staying arcs; decided here, ``None`` is known to the compiler in all that follows."""
    if stays is None:
        return None
    mantissas, exponents = stays
    return borrow(mantissas)[n], borrow(exponents)[n]


@njit(forceinline=True, **COMPILE)
def stay_in(mass, exponents, stays, staying, staying_exponents):
    """What each state's mass is worth to the arc that stays: itself, or times a factor in ``staying``."""
    if stays is None:
        return mass, exponents
    factors, factor_exponents = stays
    for s in range(staying.size):
        staying[s] = mass[s] * factors[s]
        staying_exponents[s] = exponents[s] + factor_exponents[s]
    return staying, staying_exponents


@njit(forceinline=True, **COMPILE)
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


@njit(forceinline=True, **COMPILE)
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


@njit(forceinline=True, **COMPILE)
def _largest(exponents, zero):
    largest = zero
    for s in range(exponents.size):
        largest = exponents[s] if exponents[s] > largest else largest
    return largest


@njit(forceinline=True, **COMPILE)
def _sum(mass, exponents, largest):
    """The sum in units of 2**largest; ``mass`` is left in the same units."""
    total = mass.dtype.type(0)
    for s in range(mass.size):
        plain = shift(mass[s], exponents[s] - largest)
        mass[s] = plain
        total += plain
    return total


@njit(forceinline=True, **COMPILE)
def _store(mass, total, row):
    scale = mass.dtype.type(1) / total
    for s in range(mass.size):
        row[s] = mass[s] * scale
