"""CTC's log-probability of several hypotheses a sample, on the CPU.

The hypotheses of a sample read one plane of probabilities: of the classes that any of them has, each once, made in one
pass over the rows. The recursions run over it in plain float64, with a power of two for all states of a frame, which is
several times faster than an exponent for each state. What a state loses there by underflow is bounded by what alpha and
beta come to together in each frame; where that bound says nothing, the chain's kernels in extended range do it again.
Backward writes the gradient once: every row, of all its hypotheses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba import chain, parallel
from pathsum.kernels.numba.chain import in_memory_order, longest_of
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import scaled_exp
from pathsum.kernels.numba.rows import (
    CONFIDENT,
    Strided,
    borrow,
    inexactness,
    less_both,
    load_row,
    log_total,
    softmax_row,
    softmax_statistics,
    store_row,
    strided,
    target_row,
    work_dtype,
)
from pathsum.numerics import LN_2
from pathsum.problems.ctc import pose_ctc

# The mass of a frame is brought back within 2**±256 whenever it has left that, and is then above 2**-512. So what
# underflows was below 2**-766. It would have met at most the frame's beta, or alpha: where alpha times beta comes to
# more than 2**-680 of those, no digit is lost in any number of frames and states.
_UNIT = 2.0**256
_LEAST_MASS = 2.0**-512
_LEAST_SHARE = 2.0**-680
# States computed at once.
_STATES = 8


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
        posteriors: (K, sum of T, S+1 or a few more) of the blank and of each label; of no size where not asked for,
            undefined of a hypothesis that is impossible.
    """

    log_probs: np.ndarray
    maxima: np.ndarray
    sums: np.ndarray
    posteriors: np.ndarray


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
    num_samples, size, width = tokens.shape
    frame_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(input_lengths)])
    num_frames, longest = int(frame_offsets[-1]), int(input_lengths.max(initial=0))
    num_threads = parallel.worthwhile(num_threads, num_frames * (size * width + num_classes // 8))
    maxima, sums = np.empty(num_frames if logits else 0, work), np.empty(num_frames if logits else 0, work)
    plane, log_units = np.zeros((num_frames, int(columns.sizes.max(initial=1)))), np.empty(num_frames)

    def read(first: int, last: int) -> None:
        _read_rows(
            scores.flat, *scores.strides, scores.encoding, np.empty(num_classes, work), first, last, frame_offsets,
            columns.classes, columns.sizes, logits, maxima, sums, log_units, plane,
        )  # fmt: skip

    parallel.run(read, parallel.split_evenly(num_samples * longest, num_threads), num_threads)

    log_probs = np.full((num_samples, size), -np.inf)
    failed = np.zeros((num_samples, size), np.bool_)
    # Whole blocks leave the compiler no rest to go through one state at a time; past the states all is zero.
    padded = -(-(width + 1) // _STATES) * _STATES
    posteriors = np.empty((size, num_frames, padded) if need_gradient else (1, 0, padded), work)
    memory = parallel.Memory()

    def solve(first: int, last: int) -> None:
        alpha, totals = memory.take((longest, 3, padded), np.float64), memory.take((longest,), np.float64)
        _solve(
            first, last, frame_offsets, plane, log_units, tokens, columns.places, lengths, need_gradient, alpha, totals,
            log_probs, failed, posteriors,
        )  # fmt: skip
        memory.give(alpha, totals)

    parallel.run(solve, parallel.split_evenly(num_samples * size, num_threads), num_threads)

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
            states = saved.step[:, : 2 * lengths[n, k] + 1]
            posteriors[k, first:last, 0] = states[:, ::2].sum(1)
            posteriors[k, first:last, 1 : lengths[n, k] + 1] = states[:, 1::2]
    return HypothesesSaved(log_probs, maxima, sums, posteriors)


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
            saved.posteriors, out.flat, *out.strides,
        )  # fmt: skip

    rows = len(input_lengths) * num_frames
    num_threads = parallel.worthwhile(num_threads, rows * (num_classes // 4 + tokens.shape[1] * tokens.shape[2]))
    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)


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


@njit(forceinline=True, **COMPILE)
def _write_scores(row, classes, logits, maximum, total, out):
    """Log-probabilities in float64 of some classes of a row; the greatest, NaN where one is NaN or +inf."""
    log_sum, taken_off = log_total(maximum, total) if logits else (0.0, 0.0)
    largest = -np.inf
    for u in range(classes.size):
        out[u] = less_both(row[classes[u]], taken_off, log_sum)
        largest = out[u] if out[u] > largest or out[u] != out[u] else largest
    return largest if largest < np.inf else np.nan


@kernel
def _read_scores(flat, n, stride_n, stride_t, stride_c, encoding, scratch, classes, logits, maxima, sums, own):
    flat, scratch = borrow(flat), borrow(scratch)
    for t in range(own.shape[0]):
        row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
        maximum, total = (maxima[t], np.float64(sums[t])) if logits else (scratch.dtype.type(0), 1.0)
        _write_scores(row, classes, logits, maximum, total, own[t])


@kernel
def _read_rows(
    flat, stride_n, stride_t, stride_c, encoding, scratch, first, last, frame_offsets, classes, sizes, logits, maxima,
    sums, log_units, plane,
):  # fmt: skip
    """Positions [first, last) of the padded batch: softmax statistics, and the classes' probabilities in units of the
    greatest, whose logarithm is NaN where they are not defined.
    """
    flat, scratch, classes, plane = borrow(flat), borrow(scratch), borrow(classes), borrow(plane)
    longest = longest_of(frame_offsets)
    for position in range(first, last):
        n, t = in_memory_order(position, sizes.size, longest, stride_n, stride_t)
        frame = frame_offsets[n] + t
        if frame >= frame_offsets[n + 1]:
            continue
        row, own = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch), classes[n, : sizes[n]]
        maximum, total = scratch.dtype.type(0), 1.0
        if logits:
            maximum, total = softmax_statistics(row)
            if 0 < total < CONFIDENT:
                # Of the classes on paths; what the other terms lack is small beside what they cost each path.
                for u in range(own.size):
                    total += inexactness(row[own[u]], maximum)
            maxima[frame], sums[frame] = maximum, total
        scores = plane[frame]
        largest = _write_scores(row, own, logits, maximum, total, scores)
        largest = largest if maximum == maximum else np.nan
        log_units[frame] = largest if largest != -np.inf else 0.0
        for u in range(own.size):
            scores[u] = scaled_exp(scores[u] - log_units[frame], 0)


@kernel
def _solve(
    first, last, frame_offsets, plane, log_units, tokens, places, lengths, need_gradient, alpha, totals, log_probs,
    failed, posteriors,
):  # fmt: skip
    """Hypotheses [first, last) of all samples'. ``failed`` where plain numbers do not reach."""
    plane, alpha, posteriors = borrow(plane), borrow(alpha), borrow(posteriors)
    size = lengths.shape[1]
    skips = np.zeros(alpha.shape[2] + 1)
    for position in range(first, last):
        n, k = position // size, position % size
        first_frame, last_frame = frame_offsets[n], frame_offsets[n + 1]
        num_frames, num_labels = last_frame - first_frame, lengths[n, k]
        log_prob, needed = 0.0, num_labels
        for t in range(first_frame, last_frame):
            log_prob += log_units[t]
        skips[:] = 0.0
        for i in range(1, num_labels):
            repeats = tokens[n, k, i] == tokens[n, k, i - 1]
            skips[i + 1] = 0.0 if repeats else 1.0
            needed += 1 if repeats else 0
        if log_prob != log_prob:
            log_probs[n, k] = np.nan
        elif num_frames == 0 or needed > num_frames:
            log_probs[n, k] = 0.0 if num_labels == 0 and num_frames == 0 else -np.inf
        else:
            own = plane[first_frame:last_frame]
            total, power = _fill_alpha(own, places[n, k, :num_labels], skips, alpha, totals)
            log_probs[n, k] = log_prob + np.log(total) + power * LN_2
            target = posteriors[k if need_gradient else 0, first_frame:last_frame]
            failed[n, k] = not total > 0 or not _fill_posteriors(
                own, num_labels, skips, alpha, totals, need_gradient, target
            )


@njit(**COMPILE)
def _fill_alpha(plane, places, skips, alpha, totals):
    """Alpha (T, 3, S+1) of the labels, none in column 0, and of the blanks after them, the first before all; then the
    labels' probabilities. The totals of alpha's frames.

    The sum over the final states, in units of 2**power; 0 where digits were lost.
    """
    num_labels, width = places.size, alpha.shape[2]
    # Arrays of the caller's own and shifted views let the loops vectorise: no aliasing, no negative index.
    labels, blanks = np.zeros(width + 1), np.zeros(width + 1)
    next_labels, next_blanks, own = np.zeros(width), np.zeros(width), np.zeros(width)
    label_before, label_here = labels[:-1], labels[1:]
    blank_before, blank_here = blanks[:-1], blanks[1:]
    power = 0.0
    for t in range(plane.shape[0]):
        row = plane[t]
        kept_labels, kept_blanks, kept_own = alpha[t, 0], alpha[t, 1], alpha[t, 2]
        for i in range(num_labels):
            own[i + 1] = row[places[i]]
        for i in range(width):
            kept_own[i] = own[i]
        if t == 0:
            next_labels[1] = own[1] if num_labels > 0 else 0.0
            next_blanks[0] = row[0]
        else:
            blank = row[0]
            for i in range(width):
                next_labels[i] = (label_here[i] + blank_before[i] + skips[i] * label_before[i]) * own[i]
                next_blanks[i] = (blank_here[i] + label_here[i]) * blank
        total = 0.0
        for i in range(width):
            total += next_labels[i] + next_blanks[i]
        if not total > _LEAST_MASS:
            return 0.0, power
        if not 1.0 / _UNIT <= total <= _UNIT:
            factor = _UNIT if total < 1.0 else 1.0 / _UNIT
            power += -256.0 if total < 1.0 else 256.0
            total *= factor
            for i in range(width):
                next_labels[i] *= factor
                next_blanks[i] *= factor
        totals[t] = total
        for i in range(width):
            mass = next_labels[i]
            label_here[i] = mass
            kept_labels[i] = mass
        for i in range(width):
            mass = next_blanks[i]
            blank_here[i] = mass
            kept_blanks[i] = mass
    return blank_here[num_labels] + (label_here[num_labels] if num_labels > 0 else 0.0), power


@njit(**COMPILE)
def _fill_posteriors(plane, num_labels, skips, alpha, totals, need_gradient, posteriors):
    """Beta from the last frame back, and whether no digit of it or of alpha was lost."""
    width = alpha.shape[2]
    labels, blanks = np.zeros(width), np.zeros(width)
    stepped, blanked, mass = np.zeros(width + 1), np.zeros(width), np.zeros(width)
    after, skips_after = stepped[1:], skips[1:]
    labels[num_labels] = 1.0 if num_labels > 0 else 0.0
    blanks[num_labels] = 1.0
    beta_total = 1.0 + labels[num_labels]
    for t in range(plane.shape[0] - 1, -1, -1):
        alpha_labels, alpha_blanks, own = alpha[t, 0], alpha[t, 1], alpha[t, 2]
        if not beta_total > _LEAST_MASS:
            return False
        if not 1.0 / _UNIT <= beta_total <= _UNIT:
            factor = _UNIT if beta_total < 1.0 else 1.0 / _UNIT
            beta_total *= factor
            for i in range(width):
                labels[i] *= factor
                blanks[i] *= factor
        blank, label_mass, blank_mass = plane[t, 0], 0.0, 0.0
        for i in range(width):
            mass[i] = alpha_labels[i] * labels[i]
            label_mass += mass[i]
            stepped[i] = labels[i] * own[i]
        for i in range(width):
            blank_mass += alpha_blanks[i] * blanks[i]
            blanked[i] = blanks[i] * blank
        total = label_mass + blank_mass
        if not total > _LEAST_SHARE * (totals[t] + beta_total):
            return False
        if need_gradient:
            target, scale = posteriors[t], 1.0 / total
            for i in range(width):
                target[i] = mass[i] * scale
            target[0] = blank_mass * scale
        beta_total = 0.0
        for i in range(width):
            labels[i] = stepped[i] + blanked[i] + skips_after[i] * after[i]
            blanks[i] = blanked[i] + after[i]
            beta_total += labels[i] + blanks[i]
    return True


@kernel
def _write_gradient(
    weights, totals, flat, stride_n, stride_t, stride_c, encoding, scratch, padded_frames, first, last, frame_offsets,
    tokens, lengths, blank, logits, maxima, sums, posteriors, out, out_stride_n, out_stride_t, out_stride_c,
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
            of_blank = number(0)
            for k in range(size):
                weight = number(weights[n, k])
                if weight != 0:
                    own, labels = posteriors[k, frame], tokens[n, k]
                    of_blank += weight * own[0]
                    for i in range(lengths[n, k]):
                        row[labels[i]] += weight * own[i + 1]
            row[blank] += of_blank
        store_row(out, start, out_stride_c, encoding, row)
