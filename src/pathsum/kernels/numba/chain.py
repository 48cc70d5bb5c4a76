"""Chains on the CPU.

Three passes, each parallel: rows (softmax statistics, scores gathered by state), samples (alpha, then beta with the
posteriors, in extended range), and in backward rows again (the gradient written once). Planes over frames hold the
frames of the samples one after another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.rows import (
    INFINITY_32,
    MAGNITUDE_32,
    Strided,
    borrow,
    load_row,
    softmax_row,
    softmax_statistics,
    store_row,
    target_row,
    work_dtype,
)
from pathsum.kernels.protocol import Saved
from pathsum.lattice import ChainLattice
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


def forward(
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    transitions: np.ndarray | None = None,
    *,
    logits: bool,
    need_gradient: bool,
    num_threads: int,
) -> Saved:
    """Losses of a batch and, where asked, the arc posteriors. ``scores`` has axes (N, T, C).

    ``transitions`` (C, C) are given where the lattice has arcs with a score that is the same in all frames.
    """
    work = work_dtype(scores.flat)
    num_samples = len(lattice.input_lengths)
    frame_offsets = _frame_offsets(lattice)
    num_frames = int(frame_offsets[-1])
    width = max(1, int(lattice.num_states.max(initial=1)))
    num_threads = parallel.worthwhile(num_threads, num_frames * (width + num_classes // 8))

    maxima = np.empty(num_frames, work)
    sums = np.empty(num_frames if logits else 0, work)
    step_scores = np.empty((num_frames, width), work)
    stay_scores = step_scores if lattice.shared_labels else np.empty((num_frames, width), work)

    def gather(first: int, last: int) -> None:
        _gather_scores(
            scores.flat, *scores.strides, scores.encoding, np.empty(num_classes, work), first, last, frame_offsets,
            lattice.num_states, lattice.stay_labels, lattice.step_labels, lattice.shared_labels, logits,
            maxima, sums, stay_scores, step_scores,
        )  # fmt: skip

    positions = num_samples * int(lattice.input_lengths.max(initial=0))
    parallel.run(gather, parallel.split_evenly(positions, num_threads), num_threads)

    stays = None
    if transitions is not None:
        stays = _split_all(_of_states(transitions, lattice.stay_transitions, lattice.num_states))
    losses = np.empty(num_samples, np.float64)
    memory = parallel.Memory()
    # Strided, as posing may leave it, the mask would keep the loops over states from vectorising.
    skips = np.ascontiguousarray(lattice.skips)

    def solve(samples: np.ndarray) -> None:
        # The rounding of a transition's factor, met again in every frame, would add up in the narrow pair.
        reaches = np.full(len(samples), 0.0 if stays is None else np.inf)
        if stays is None and step_scores.dtype == np.float32:
            _measure_reaches(step_scores, stay_scores, lattice.shared_labels, frame_offsets, samples, reaches)
        for pair in (NARROW, WIDE):
            chosen = samples[[_number_pair(reach, step_scores.dtype) is pair for reach in reaches]]
            rows = int(lattice.input_lengths[chosen].max(initial=0)) + 1 if need_gradient else 2
            alpha = memory.take((rows, FRONT + width), pair.mantissa)
            exponents = memory.take((rows, FRONT + width), pair.exponent)
            if len(chosen):
                _solve_samples(
                    chosen, frame_offsets, step_scores, stay_scores, stays, maxima, sums, lattice.num_states, skips,
                    lattice.start_state, lattice.num_final, lattice.shared_labels, need_gradient, alpha, exponents,
                    pair.exponent(pair.zero), losses,
                )  # fmt: skip
            memory.give(alpha, exponents)

    # Dealt out in order of falling cost, so that the shares are about equal.
    order = np.argsort(-lattice.input_lengths * lattice.num_states, kind="stable")
    shares = min(num_samples, 4 * num_threads if num_threads > 1 else 1)
    parallel.run(solve, [(order[share::shares],) for share in range(shares)], num_threads)
    if transitions is not None:
        # All paths have the same steps. One of +inf makes NaN of an infinite loss.
        with np.errstate(invalid="ignore"):
            losses -= _of_states(transitions, lattice.step_transitions, lattice.num_states).sum(1)
    none = np.empty((0, 0), work)
    posteriors = (none if lattice.shared_labels else stay_scores, step_scores) if need_gradient else (none, none)
    return Saved(losses, maxima if logits else maxima[:0], sums, posteriors)


def backward(
    grad_losses: np.ndarray,
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    saved: Saved,
    out: Strided,
    num_frames: int,
    *,
    logits: bool,
    num_threads: int,
) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out`` with axes (N, T, C)."""
    frame_offsets = _frame_offsets(lattice)
    stay, step = saved.posteriors
    work = work_dtype(scores.flat)

    def write(first: int, last: int) -> None:
        _write_gradient(
            grad_losses, scores.flat, *scores.strides, scores.encoding, np.empty((2, num_classes), work), num_frames,
            first, last, frame_offsets, lattice.num_states, lattice.stay_labels, lattice.step_labels,
            lattice.shared_labels, logits, saved.losses, saved.maxima, saved.sums, stay, step, out.flat, *out.strides,
        )  # fmt: skip

    rows = len(lattice.input_lengths) * num_frames
    num_threads = parallel.worthwhile(num_threads, rows * (num_classes // 4 + step.shape[1]))
    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)


def transition_gradient(grad_losses: np.ndarray, num_classes: int, lattice: ChainLattice, saved: Saved) -> np.ndarray:
    """The gradient with respect to the transitions, (C, C) in float64: minus the expected counts of their arcs."""
    visits = np.zeros((len(saved.losses), saved.posteriors[1].shape[1]))
    _count_visits(saved.posteriors[1], _frame_offsets(lattice), visits)
    possible = np.flatnonzero((saved.losses != np.inf) & (grad_losses != 0))
    upstream = np.where(saved.losses == saved.losses, grad_losses, np.nan)[possible, None]

    gradient = np.zeros(num_classes * num_classes)
    # A state is entered in one of the frames that see it, and stayed in in the others.
    entries = np.ones_like(visits)
    for indices, counts in ((lattice.stay_transitions, visits - entries), (lattice.step_transitions, entries)):
        taken = _has_transition(indices, lattice.num_states)[possible, : visits.shape[1]]
        indices = indices[possible, : visits.shape[1]][taken]
        gradient -= np.bincount(indices, (upstream * counts[possible])[taken], gradient.size)
    return gradient.reshape(num_classes, num_classes)


def _of_states(transitions: np.ndarray, indices: np.ndarray, num_states: np.ndarray) -> np.ndarray:
    """(N, S') the transition of each state's arc in float64, 0 where it has none."""
    return np.where(_has_transition(indices, num_states), transitions.ravel()[indices].astype(np.float64), 0.0)


def _has_transition(indices: np.ndarray, num_states: np.ndarray) -> np.ndarray:
    return (indices >= 0) & (np.arange(indices.shape[1]) < num_states[:, None])


def _frame_offsets(lattice: ChainLattice) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lattice.input_lengths)])


def _number_pair(reach: float, dtype: np.dtype) -> NumberPair:
    """The extended-range pair whose exponents hold every path of a sample."""
    return NARROW if dtype == np.float32 and reach * LOG2_E < MAX_EXPONENT_32 else WIDE


def _split_all(log_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


@kernel
def _count_visits(posteriors, frame_offsets, visits):
    """For each sample the expected number of frames in each state."""
    for n in range(visits.shape[0]):
        total = np.zeros(visits.shape[1])
        for t in range(frame_offsets[n], frame_offsets[n + 1]):
            for s in range(total.size):
                total[s] += posteriors[t, s]
        visits[n] = total


@njit(forceinline=True, **COMPILE)
def _reference(maximum, zero):
    """What the logits of a row are taken less before they are exponentiated.

    Nothing, where they are of ordinary size: a score 50 below its row's maximum would lose 2e-6 to the subtraction, and
    extended range needs none. Huge ones are, lest the sum of a thousand of them drown the loss.
    """
    size = abs(maximum)
    return maximum if size > _ORDINARY and size < np.inf else zero


@njit(forceinline=True, **COMPILE)
def _in_memory_order(position, num_samples, num_frames, stride_n, stride_t):
    """Sample and frame of a position, neighbouring positions being neighbours in memory."""
    if stride_t > stride_n:
        return position % num_samples, position // num_samples
    return position // num_frames, position % num_frames


@kernel
def _gather_scores(
    flat, stride_n, stride_t, stride_c, encoding, scratch, first, last, frame_offsets, num_states, stay_labels,
    step_labels, shared_labels, logits, maxima, sums, stay_scores, step_scores,
):  # fmt: skip
    """Positions [first, last) of the padded batch: softmax statistics, scores of each state's arcs less the maximum."""
    flat, scratch = borrow(flat), borrow(scratch)
    stay_labels, step_labels = borrow(stay_labels), borrow(step_labels)
    stay_scores, step_scores = borrow(stay_scores), borrow(step_scores)
    num_samples = num_states.size
    longest = np.diff(frame_offsets).max()
    for position in range(first, last):
        n, t = _in_memory_order(position, num_samples, longest, stride_n, stride_t)
        frame = frame_offsets[n] + t
        if frame >= frame_offsets[n + 1]:
            continue
        row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
        maximum = row.dtype.type(0)
        if logits:
            maximum, sums[frame] = softmax_statistics(row)
        reference = _reference(maximum, row.dtype.type(0))
        _gather_row(row, step_labels[n], num_states[n], reference, step_scores[frame])
        if not shared_labels:
            _gather_row(row, stay_labels[n], num_states[n], reference, stay_scores[frame])
        defined = logits or _all_defined(step_scores[frame])
        if not (logits or shared_labels):
            defined = defined and _all_defined(stay_scores[frame])
        maxima[frame] = maximum if defined else np.nan


@njit(forceinline=True, **COMPILE)
def _gather_row(row, labels, num_states, reference, out):
    for s in range(num_states):
        out[s] = row[labels[s]] - reference
    for s in range(num_states, out.size):
        out[s] = -np.inf


@njit(forceinline=True, **COMPILE)
def _all_defined(scores):
    """Whether no score is NaN or +inf; of logits the softmax has seen to that."""
    defined = True
    for s in range(scores.size):
        defined = defined and scores[s] < np.inf
    return defined


@kernel
def _solve_samples(
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
                step_scores[first:last], stay_scores[first:last], _of_sample(stays, n), maxima[first:last],
                sums[first:last] if sums.size > 0 else sums, num_states[n], skips[n], start_state, num_final,
                shared_labels, need_gradient, alpha, exponents, zero,
            )  # fmt: skip


@njit(**COMPILE)
def _solve_sample(
    step_scores, stay_scores, stays, maxima, sums, num_states, skips, start_state, num_final, shared_labels,
    need_gradient, alpha, alpha_exponents, zero,
):  # fmt: skip
    """The loss of one sample; with ``need_gradient`` its scores are overwritten by the posteriors of their arcs.

    ``alpha`` has one row a frame with ``need_gradient``, else two rows in turn; row 0 is before the first
    frame.
    """
    step_scores, stay_scores, skips = borrow(step_scores), borrow(stay_scores), borrow(skips)
    alpha, alpha_exponents = borrow(alpha), borrow(alpha_exponents)
    entered = np.empty(num_states, alpha.dtype)
    entered_exponents = np.empty(num_states, alpha_exponents.dtype)
    staying = np.empty(num_states, alpha.dtype)
    staying_exponents = np.empty(num_states, alpha_exponents.dtype)
    alpha[0] = 0
    alpha_exponents[0] = zero
    alpha[0, FRONT + start_state] = 1
    alpha_exponents[0, FRONT + start_state] = 0
    row = 0
    for t in range(step_scores.shape[0]):
        following = t + 1 if need_gradient else 1 - row
        _enter(
            alpha[row], alpha_exponents[row], stay_scores[t], step_scores[t], stays, skips, shared_labels, zero,
            entered, entered_exponents, staying, staying_exponents,
        )  # fmt: skip
        here, here_exponents = alpha[following, FRONT:], alpha_exponents[following, FRONT:]
        for s in range(num_states):
            here[s], here_exponents[s] = entered[s], entered_exponents[s]
        for s in range(FRONT):
            alpha[following, s] = 0
            alpha_exponents[following, s] = zero
        row = following

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
            loss += np.log(np.float64(sums[t])) + np.float64(maxima[t] - _reference(maxima[t], maxima.dtype.type(0)))
    if need_gradient and loss < np.inf:
        _write_posteriors(
            step_scores, stay_scores, stays, num_states, skips, num_final, shared_labels, zero, alpha, alpha_exponents,
        )  # fmt: skip
    return loss


@njit(forceinline=True, **COMPILE)
def _enter(
    alpha, exponents, stay_scores, step_scores, stays, skips, shared_labels, zero, entered, entered_exponents, staying,
    staying_exponents,
):  # fmt: skip
    """One frame forward: the mass that arrives in each state."""
    # Arrays of the caller's own and shifted views let the loops vectorise: no aliasing, no negative index.
    one_before, one_before_exponents = alpha[FRONT - 1 :], exponents[FRONT - 1 :]
    here, here_exponents = _stay(alpha[FRONT:], exponents[FRONT:], stays, staying, staying_exponents)
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
def _of_sample(stays, n):
    """The factors of a sample's staying arcs; decided here, ``None`` is known to the compiler in all that follows."""
    if stays is None:
        return None
    mantissas, exponents = stays
    return borrow(mantissas)[n], borrow(exponents)[n]


@njit(forceinline=True, **COMPILE)
def _stay(mass, exponents, stays, staying, staying_exponents):
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
            staying, staying_exponents = _stay(beta, beta_exponents, stays, stayed, stayed_exponents)
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
            staying, staying_exponents = _stay(stepped, stepped_exponents, stays, stayed, stayed_exponents)
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


@kernel
def _write_gradient(
    grad_losses, flat, stride_n, stride_t, stride_c, encoding, scratch, padded_frames, first, last, frame_offsets,
    num_states, stay_labels, step_labels, shared_labels, logits, losses, maxima, sums, stay, step, out, out_stride_n,
    out_stride_t, out_stride_c,
):  # fmt: skip
    """Rows [first, last) of the padded batch: grad_loss * (softmax - posterior of each class), or 0."""
    flat, out, scratch = borrow(flat), borrow(out), borrow(scratch)
    one = step.dtype.type(1)
    for position in range(first, last):
        n, t = _in_memory_order(position, losses.size, padded_frames, out_stride_n, out_stride_t)
        start = n * out_stride_n + t * out_stride_t
        frame = frame_offsets[n] + t
        row = target_row(out, start, out_stride_c, scratch[1])
        if frame >= frame_offsets[n + 1] or losses[n] == np.inf:
            row[:] = 0
        elif losses[n] != losses[n]:
            row[:] = np.nan
        else:
            upstream = step.dtype.type(grad_losses[n])
            if logits:
                scores = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch[0])
                softmax_row(scores, maxima[frame], upstream * (one / sums[frame]), row)
            else:
                row[:] = 0
            # The class of the first state, CTC's blank, is every other state's: summed apart, its additions need not
            # wait for each other to reach memory.
            common, posterior = step_labels[n, 0], step.dtype.type(0)
            for s in range(num_states[n]):
                if step_labels[n, s] == common:
                    posterior += step[frame, s]
                else:
                    row[step_labels[n, s]] -= upstream * step[frame, s]
            row[common] -= upstream * posterior
            if not shared_labels:
                for s in range(num_states[n]):
                    row[stay_labels[n, s]] -= upstream * stay[frame, s]
        store_row(out, start, out_stride_c, encoding, row)
