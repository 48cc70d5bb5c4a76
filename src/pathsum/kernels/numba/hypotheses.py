"""CTC's log-probability of several hypotheses a sample, on the CPU.

The hypotheses of a sample read one plane of probabilities: of the classes that any of them has, each once, made in one
pass over the rows. The recursions run over it in plain float64, the states of several hypotheses side by side, with a
power of two for all states of a hypothesis, which is several times faster than an exponent for each state. What a state
loses there by underflow is bounded by the masses of alpha and beta; where that bound says nothing, the chain's kernels
in extended range do it again.
Backward writes the gradient once: every row, of all its hypotheses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import chain, parallel
from pathsum.kernels.numba.chain import in_memory_order, longest_of
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import scaled_exp
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    CONFIDENT,
    Strided,
    greatest,
    less_both,
    load_row,
    log_total,
    softmax_row,
    softmax_statistics,
    store_row,
    strided,
    target_row,
    unit_of,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.numerics import LN_2
from pathsum.problems.ctc import pose_ctc

# Every few frames alpha is divided by the power of two that brings a hypothesis's mass to about 1, and beta too, so
# that alpha times beta sums to 1 in every frame. What underflows is below 2**-1022 in alpha, which beta's mass may make
# 2**-200 of a posterior at most, and in beta, which alpha's mass leaves as small: no digit is lost in any number of
# frames and states. In between, a frame multiplies a mass by 5 at most.
_FRAMES = 8
_LEAST_MASS = 2.0**-900
_GREATEST_MASS = 2.0**800
# States computed at once, and in front of those of a frame.
_STATES = _FRONT = 8
# States in a loop over those of several hypotheses.
_LOOP = 256


class Columns(NamedTuple):
    """The classes that the hypotheses of a sample read.

    Attributes:
        classes: (N, W) the classes of the sample, the blank first, each once; those past ``sizes`` are not used.
        sizes: (N,) how many there are.
        places: (N, K, S) where the class of each label of a hypothesis is among them; 0 past its length.
    """

    classes: np.ndarray
    sizes: np.ndarray
    places: np.ndarray


class HypothesesSaved(NamedTuple):
    """What forward keeps.

    Attributes:
        log_probs: (N, K) of each hypothesis; -inf where it does not fit, NaN where a score is NaN or +inf.
        maxima, sums: Softmax statistics of the rows; of no size where scores are log-probabilities.
        posteriors: (sum of T, W) of the labels of all hypotheses, those of the blank being what is left; of no size
            where not asked for, undefined of a hypothesis that is impossible.
        offsets: (N, K) where the labels of a hypothesis begin among them.
    """

    log_probs: np.ndarray
    maxima: np.ndarray
    sums: np.ndarray
    posteriors: np.ndarray
    offsets: np.ndarray


def columns_of(tokens: np.ndarray, lengths: np.ndarray, blank: int, num_classes: int) -> Columns:
    """Of hypotheses (N, K, S) with lengths (N, K)."""
    num_samples, size, width = tokens.shape
    classes = np.empty((num_samples, min(size * width + 1, num_classes)), np.int64)
    sizes, places = np.empty(num_samples, np.int64), np.zeros(tokens.shape, np.uint32)
    _number_classes(tokens, lengths, blank, np.full(num_classes, -1), classes, sizes, places)
    return Columns(classes, sizes, places)


def forward(
    scores: Strided,
    num_classes: int,
    input_lengths: np.ndarray,
    tokens: np.ndarray,
    lengths: np.ndarray,
    columns: Columns,
    *,
    logits: bool,
    need_gradient: bool,
    num_threads: int,
) -> HypothesesSaved:
    """Log-probabilities of hypotheses (N, K, S) with lengths (N, K), given scores (N, T, C)."""
    work = work_dtype(scores.flat)
    num_samples, size, _ = tokens.shape
    frame_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(input_lengths)])
    num_frames, longest = int(frame_offsets[-1]), int(input_lengths.max(initial=0))
    num_threads = parallel.worthwhile(num_threads, num_frames * (size * tokens.shape[2] + num_classes // 8))
    maxima, sums = np.empty(num_frames if logits else 0, work), np.empty(num_frames if logits else 0, work)
    # Whole blocks leave the compiler no rest to go through one number at a time; past the classes all is zero.
    plane = np.empty((num_frames, _in_blocks(int(columns.sizes.max(initial=0)) + 1)))
    log_units = np.empty(num_frames)

    def read(first: int, last: int) -> None:
        _read_rows(
            scores.flat, *scores.strides, scores.encoding, np.empty(num_classes, work), np.empty(plane.shape[1], work),
            first, last, frame_offsets, columns.classes, columns.sizes, logits, maxima, sums, log_units, plane,
        )  # fmt: skip

    parallel.run(read, parallel.split_evenly(num_samples * longest, num_threads), num_threads)

    log_probs = np.full((num_samples, size), -np.inf)
    failed = np.zeros((num_samples, size), np.bool_)
    # The states of several hypotheses are one row: a loop over so few of one alone would be beginnings and ends.
    strides = lengths.max(1, initial=0) + 1
    longest_stride = int(strides.max(initial=1))
    at_once = min(max(_LOOP // longest_stride, 1), max(size, 1))
    groups, width = -(-size // at_once), _in_blocks(at_once * longest_stride)
    order = np.arange(size)
    offsets = order // at_once * width + order % at_once * strides[:, None] + 1
    posteriors = np.empty((num_frames, groups * width) if need_gradient else (0, width), work)
    memory = parallel.Memory()

    def solve(first: int, last: int) -> None:
        alpha = memory.take((longest, 2, _FRONT + width), np.float64)
        _solve(
            first, last, at_once, frame_offsets, plane, log_units, tokens, columns.places, lengths, strides, alpha,
            need_gradient, log_probs, failed, posteriors,
        )  # fmt: skip
        memory.give(alpha)

    parallel.run(solve, parallel.split_evenly(num_samples * groups, num_threads), num_threads)

    for n, k in zip(*failed.nonzero(), strict=True):
        first, last = frame_offsets[n], frame_offsets[n + 1]
        rows = slice(first, last) if logits else slice(0)
        own = _own_scores(
            scores, n, last - first, num_classes, columns.classes[n, : columns.sizes[n]], logits, maxima[rows],
            sums[rows],
        )  # fmt: skip
        labels = (
            columns.places[n, k, : lengths[n, k]][None].astype(np.int64)
            if lengths[n, k]
            else np.zeros((1, 1), np.int64)
        )
        lattice = pose_ctc(labels, np.array([last - first]), lengths[n, k : k + 1], 0)
        saved = chain.forward(
            strided(own[None]), own.shape[1], lattice, logits=False, need_gradient=need_gradient, num_threads=1
        )
        log_probs[n, k] = -saved.losses[0]
        if need_gradient and np.isfinite(saved.losses[0]):
            own = slice(offsets[n, k], offsets[n, k] + lengths[n, k])
            posteriors[first:last, own] = saved.step[:, 1 : 2 * lengths[n, k] : 2]
    return HypothesesSaved(log_probs, maxima, sums, posteriors, offsets)


def backward(
    grad_log_probs: np.ndarray,
    scores: Strided,
    num_classes: int,
    input_lengths: np.ndarray,
    tokens: np.ndarray,
    lengths: np.ndarray,
    blank: int,
    saved: HypothesesSaved,
    out: Strided,
    num_frames: int,
    *,
    logits: bool,
    num_threads: int,
) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out`` with axes (N, T, C)."""
    work = work_dtype(scores.flat)
    frame_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(input_lengths)])
    # Unsigned, an index needs no look whether it counts from the end. Past the lengths anything may stand.
    tokens = tokens.astype(np.uint32)
    weights = np.where(saved.log_probs == -np.inf, 0.0, grad_log_probs)
    weights = np.where(np.isnan(saved.log_probs), np.nan, weights)
    totals = weights.sum(1)
    # Shares that sum to 1 leave rounding alone of the part that all hypotheses have in common.
    bound = np.finfo(np.float64).eps * weights.shape[1] * np.abs(weights).sum(1)
    totals = np.where(np.abs(totals) <= bound, 0.0, totals)

    def write(first: int, last: int) -> None:
        _write_gradient(
            weights, totals, scores.flat, *scores.strides, scores.encoding, np.empty((2, num_classes), work),
            num_frames, first, last, frame_offsets, tokens, lengths, blank, logits, saved.maxima, saved.sums,
            saved.posteriors, saved.offsets, out.flat, *out.strides,
        )  # fmt: skip

    rows = len(input_lengths) * num_frames
    num_threads = parallel.worthwhile(num_threads, rows * (num_classes // 4 + tokens.shape[1] * tokens.shape[2]))
    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)


def _in_blocks(size: int) -> int:
    return -(-size // _STATES) * _STATES


def _own_scores(
    scores: Strided, n: int, num_frames: int, num_classes: int, classes: np.ndarray, logits: bool, maxima: np.ndarray,
    sums: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """(T, W) log-probabilities in float64 of some classes of a sample."""
    own = np.empty((num_frames, len(classes)))
    row = np.empty(num_classes, work_dtype(scores.flat))
    _read_scores(scores.flat, n, *scores.strides, scores.encoding, row, classes, logits, maxima, sums, own)
    return own


@kernel
def _number_classes(tokens, lengths, blank, numbers, classes, sizes, places):
    """``numbers`` (C,) are -1 before and after."""
    num_samples, size, _ = tokens.shape
    for n in range(num_samples):
        classes[n, 0], numbers[blank], count = blank, 0, 1
        for k in range(size):
            for i in range(lengths[n, k]):
                c = tokens[n, k, i]
                if numbers[c] < 0:
                    classes[n, count], numbers[c] = c, count
                    count += 1
                places[n, k, i] = numbers[c]
        sizes[n] = count
        for u in range(count):
            numbers[classes[n, u]] = -1


@kernel
def _read_scores(flat, n, stride_n, stride_t, stride_c, encoding, scratch, classes, logits, maxima, sums, own):
    """Log-probabilities in float64 of some classes of a sample."""
    flat, scratch = borrow(flat), borrow(scratch)
    for t in range(own.shape[0]):
        row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
        log_sum, taken_off = log_total(maxima[t], np.float64(sums[t])) if logits else (0.0, 0.0)
        for u in range(classes.size):
            own[t, u] = less_both(row[classes[u]], taken_off, log_sum)


@kernel
def _read_rows(
    flat, stride_n, stride_t, stride_c, encoding, scratch, own, first, last, frame_offsets, classes, sizes, logits,
    maxima, sums, log_units, plane,
):  # fmt: skip
    """Positions [first, last) of the padded batch: softmax statistics, and the classes' probabilities in units of about
    the greatest, whose logarithm is NaN where they are not defined.
    """
    flat, scratch, classes, plane = borrow(flat), borrow(scratch), borrow(classes), borrow(plane)
    longest = longest_of(frame_offsets)
    for position in range(first, last):
        n, t = in_memory_order(position, sizes.size, longest, stride_n, stride_t)
        frame = frame_offsets[n] + t
        if frame >= frame_offsets[n + 1]:
            continue
        row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
        maximum, total = scratch.dtype.type(0), 1.0
        if logits:
            maximum, total = softmax_statistics(row)
        for u in range(sizes[n]):
            own[u] = row[classes[n, u]]
        for u in range(sizes[n], own.size):
            own[u] = -np.inf
        largest, probabilities = greatest(own), plane[frame]
        taken_off, power = unit_of(largest)
        for u in range(own.size):
            probabilities[u] = scaled_exp(np.float64(own[u]) - np.float64(taken_off), np.int64(power))
        log_unit = 0.0
        if logits:
            row_taken_off, row_power = unit_of(maximum)
            apart, powers_apart = np.float64(taken_off) - np.float64(row_taken_off), np.int64(power - row_power)
            # Float64 scores have no digits to add.
            if own.itemsize == 4 and 0 < total < CONFIDENT:
                # Of the classes on paths; what the other terms lack is small beside what they cost each path.
                exact, rounded = 0.0, 0.0
                for u in range(own.size):
                    exact += probabilities[u]
                for u in range(own.size):
                    rounded += np.float64(scaled_exp(own[u] - row_taken_off, row_power))
                total += exact * scaled_exp(apart, -powers_apart) - rounded
            maxima[frame], sums[frame] = maximum, total
            log_unit = powers_apart * LN_2 - np.log(total) + apart if total > 0 else 0.0
        else:
            log_unit = power * LN_2 + taken_off
        log_units[frame] = np.nan if largest != largest or maximum != maximum else log_unit


@kernel
def _solve(
    first, last, at_once, frame_offsets, plane, log_units, tokens, places, lengths, strides, alpha, need_gradient,
    log_probs, failed, posteriors,
):  # fmt: skip
    """Groups [first, last) of the samples' hypotheses. ``failed`` where plain numbers do not reach."""
    plane, alpha, posteriors = borrow(plane), borrow(alpha), borrow(posteriors)
    size, width = lengths.shape[1], alpha.shape[2] - _FRONT
    groups = -(-size // at_once)
    # The class of each state, of a column without probability where it has none.
    columns, skips = np.empty(width, np.uint32), np.zeros(width + 1)
    masses, powers = np.empty(at_once), np.empty((at_once, alpha.shape[0] // _FRAMES + 1), np.int64)
    for position in range(first, last):
        n, group = position // groups, position % groups
        first_frame, last_frame = frame_offsets[n], frame_offsets[n + 1]
        num_frames, stride, log_prob = last_frame - first_frame, strides[n], 0.0
        first_own = group * at_once
        count = min(at_once, size - first_own)
        for t in range(first_frame, last_frame):
            log_prob += log_units[t]
        for i in range(width):
            columns[i], skips[i] = plane.shape[1] - 1, 0.0
        for j in range(count):
            k, start = first_own + j, j * stride
            num_labels = lengths[n, k]
            needed = num_labels
            for i in range(num_labels):
                repeats = i > 0 and tokens[n, k, i] == tokens[n, k, i - 1]
                skips[start + i + 1] = 0.0 if repeats or i == 0 else 1.0
                columns[start + i + 1] = places[n, k, i]
                needed += 1 if repeats else 0
            masses[j] = 0.0
            if log_prob != log_prob:
                log_probs[n, k] = np.nan
            elif num_frames == 0 or needed > num_frames:
                log_probs[n, k] = 0.0 if num_labels == 0 and num_frames == 0 else -np.inf
            else:
                masses[j], failed[n, k] = 1.0, True
        own_plane, own_width = plane[first_frame:last_frame], -(-count * stride // _STATES) * _STATES
        own_lengths = lengths[n, first_own : first_own + count]
        _fill_alpha(own_plane, columns[:own_width], skips, stride, own_lengths, alpha, powers, masses)
        for j in range(count):
            if masses[j] > 0:
                total = 0.0
                for block in range(num_frames // _FRAMES + 1):
                    total += powers[j, block]
                log_probs[n, first_own + j] = log_prob + np.log(masses[j]) + total * LN_2
        target = posteriors[first_frame:last_frame] if need_gradient else posteriors
        _fill_posteriors(
            own_plane, own_width, skips, stride, own_lengths, alpha, powers, masses, need_gradient,
            target[:, group * width :],
        )  # fmt: skip
        for j in range(count):
            if masses[j] > 0:
                failed[n, first_own + j] = False


@part(**COMPILE)
def _fill_alpha(plane, columns, skips, stride, lengths, alpha, powers, masses):
    """Alpha (T, 2, W) of the labels, none in a hypothesis's first column, and the labels' probabilities.

    ``masses`` become the sums over the final states, in units of two to the sum of a hypothesis's ``powers``; 0 where
    digits were lost.
    """
    width = columns.size
    # Of the blanks after each label, the first before all. Shifted views let the loops vectorise: no negative index.
    blanks = np.zeros(_FRONT + width)
    blank_here, blank_before = blanks[_FRONT:], blanks[_FRONT - 1 :]
    powers[:] = 0
    for t in range(plane.shape[0]):
        row, labels, own = plane[t], alpha[t, 0], alpha[t, 1]
        for i in range(width):
            own[i] = row[columns[i]]
        blank, next_labels = row[0], labels[_FRONT:]
        labels[_FRONT - 1] = 0.0
        if t == 0:
            for i in range(width):
                next_labels[i] = 0.0
            for j in range(lengths.size):
                if masses[j] > 0:
                    blank_here[j * stride] = blank
                    if lengths[j] > 0:
                        next_labels[j * stride + 1] = own[j * stride + 1]
            continue
        label_here, label_before = alpha[t - 1, 0, _FRONT:], alpha[t - 1, 0, _FRONT - 1 :]
        for i in range(width):
            next_labels[i] = (label_here[i] + blank_before[i] + skips[i] * label_before[i]) * own[i]
        for i in range(width):
            blank_here[i] = (blank_here[i] + label_here[i]) * blank
        if t % _FRAMES == 0:
            for j in range(lengths.size):
                own_labels, own_blanks = next_labels[j * stride :], blank_here[j * stride :]
                total = 0.0
                for i in range(lengths[j] + 1):
                    total += own_labels[i] + own_blanks[i]
                if total > _LEAST_MASS:
                    power = np.int64(np.floor(np.log2(total)))
                    powers[j, t // _FRAMES] = power
                    factor = math.ldexp(1.0, int(-power))
                else:
                    masses[j], factor = 0.0, 0.0
                for i in range(lengths[j] + 1):
                    own_labels[i] *= factor
                for i in range(lengths[j] + 1):
                    own_blanks[i] *= factor
    last = plane.shape[0] - 1
    for j in range(lengths.size):
        if masses[j] > 0:
            final = j * stride + lengths[j]
            mass = blank_here[final] + alpha[last, 0, _FRONT + final]
            masses[j] = mass if mass > _LEAST_MASS else 0.0


@part(**COMPILE)
def _fill_posteriors(plane, width, skips, stride, lengths, alpha, powers, masses, need_gradient, posteriors):
    """Beta from the last frame back, over the mass; the mass is 0 after it where a digit of it or of alpha was lost."""
    labels, blanks = np.zeros(width), np.zeros(width)
    for j in range(lengths.size):
        if masses[j] > 0:
            final = j * stride + lengths[j]
            labels[final] = 1.0 / masses[j] if lengths[j] > 0 else 0.0
            blanks[final] = 1.0 / masses[j]
    # What is read at the next state is not what was just written there: a vector over two of those would wait for both.
    stepped = np.zeros(width + 1)
    after, skips_after = stepped[1:], skips[1:]
    for t in range(plane.shape[0] - 1, -1, -1):
        blank, alpha_labels, own = plane[t, 0], alpha[t, 0, _FRONT:], alpha[t, 1]
        if need_gradient:
            target = posteriors[t]
            for i in range(width):
                target[i] = alpha_labels[i] * labels[i]
        for i in range(width):
            stepped[i] = labels[i] * own[i]
        for i in range(width):
            blanked = blanks[i] * blank
            labels[i] = stepped[i] + blanked + skips_after[i] * after[i]
            blanks[i] = blanked + after[i]
        if t % _FRAMES == 0:
            for j in range(lengths.size):
                own_labels, own_blanks = labels[j * stride :], blanks[j * stride :]
                factor, total = math.ldexp(1.0, int(-powers[j, t // _FRAMES])), 0.0
                for i in range(lengths[j] + 1):
                    total += own_labels[i] + own_blanks[i]
                if not total * factor < _GREATEST_MASS:
                    masses[j] = 0.0
                factor = factor if masses[j] > 0 else 0.0
                for i in range(lengths[j] + 1):
                    own_labels[i] = own_labels[i] * factor if factor > 0 else 0.0
                for i in range(lengths[j] + 1):
                    own_blanks[i] = own_blanks[i] * factor if factor > 0 else 0.0


@kernel
def _write_gradient(
    weights, totals, flat, stride_n, stride_t, stride_c, encoding, scratch, padded_frames, first, last, frame_offsets,
    tokens, lengths, blank, logits, maxima, sums, posteriors, offsets, out, out_stride_n, out_stride_t, out_stride_c,
):  # fmt: skip
    """Rows [first, last) of the padded batch: the sum of weight * (posterior of each class - softmax)."""
    flat, out, scratch = borrow(flat), borrow(out), borrow(scratch)
    posteriors, tokens = borrow(posteriors), borrow(tokens)
    number = scratch.dtype.type
    num_samples, size = weights.shape
    for position in range(first, last):
        n, t = in_memory_order(position, num_samples, padded_frames, out_stride_n, out_stride_t)
        start = n * out_stride_n + t * out_stride_t
        frame = frame_offsets[n] + t
        row = target_row(out, start, out_stride_c, scratch[1])
        if frame >= frame_offsets[n + 1]:
            row[:] = 0
        elif totals[n] != totals[n]:
            row[:] = np.nan
        else:
            if logits and totals[n] != 0:
                scores = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch[0])
                softmax_row(scores, maxima[frame], number(-totals[n] / sums[frame]), row)
            else:
                row[:] = 0
            of_blank, own_row = number(0), posteriors[frame]
            for k in range(size):
                weight = number(weights[n, k])
                if weight != 0:
                    own, labels = own_row[offsets[n, k] :], tokens[n, k]
                    left = number(1)
                    for i in range(lengths[n, k]):
                        left -= own[i]
                    of_blank += weight * left
                    for i in range(lengths[n, k]):
                        row[labels[i]] += weight * own[i]
            row[blank] += of_blank
        store_row(out, start, out_stride_c, encoding, row)
