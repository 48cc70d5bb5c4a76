"""Chains on the CPU.

Three passes, each parallel: rows (softmax statistics, scores gathered by state), samples (alpha, then beta with the
posteriors, in extended range), and in backward rows again (the gradient written once). Planes over frames hold the
frames of the samples one after another.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.chain_recursion import FRONT, finish, pairs_for, solve_samples, start
from pathsum.kernels.numba.compilation import COMPILE, COMPILE_EXACTLY, exact_kernel, kernel
from pathsum.kernels.numba.extended import split
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    Strided,
    common_of,
    greatest,
    less_common,
    load_row,
    softmax_row,
    softmax_statistics,
    store_row,
    take_off,
    target_row,
    unit_of,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import ChainSaved
from pathsum.lattice import ChainLattice

# Elements of a plane of scores that is not kept.
_STRIP = 2**20
# More frames than there are.
_ALL = 2**62

# Parts of the work: scores are read, samples solved, losses made. One thread does them in one call; where several do,
# each part is waited for.
GATHER, SOLVE, FINISH = 1, 2, 4


def forward(
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    transitions: np.ndarray | None = None,
    *,
    logits: bool,
    need_gradient: bool,
    num_threads: int,
    relative: bool = False,
) -> ChainSaved:
    """Losses of a batch and, where asked, the arc posteriors. ``scores`` has axes (N, T, C).

    ``transitions`` (C, C) are given where the lattice has arcs with a score that is the same in all frames; only then
    losses are ``relative``, as in ``dense``.
    """
    in_common = 0.0 if transitions is None or relative else common_of(transitions)
    relative = relative and transitions is not None
    transitions = None if transitions is None else less_common(transitions)
    work = work_dtype(scores.flat)
    num_samples = len(lattice.input_lengths)
    frame_offsets = np.empty(num_samples + 1, np.int64)
    longest, width, num_frames = _lay_out(lattice.input_lengths, lattice.num_states, 0, _ALL, frame_offsets)
    num_threads = parallel.worthwhile(num_threads, num_frames * (width + num_classes // 8))
    # Nobody reads the planes of a loss without a gradient again: they are made for some frames at a time.
    strip = longest if need_gradient else max(_STRIP // (max(num_samples, 1) * width), 1)

    stays = stay_factors(transitions, lattice)
    pairs = pairs_for(stays, work)
    running = start(num_samples, width, lattice.start_state, pairs)
    # One thread's room is used once.
    memory = parallel.Memory() if num_threads > 1 else None
    # Strided, as posing may leave it, the mask would keep the loops over states from vectorising.
    skips = np.ascontiguousarray(lattice.skips)
    losses = np.empty(num_samples)
    every = np.arange(num_samples)

    for first_frame in range(0, max(longest, 1), max(strip, 1)):
        most = longest
        if strip < longest:
            most, _, num_frames = _lay_out(
                lattice.input_lengths, lattice.num_states, first_frame, strip, frame_offsets
            )  # fmt: skip
        maxima = np.empty(num_frames, work)
        sums = np.empty(num_frames if logits else 0, work)
        log_sums = np.empty(num_frames)
        step_scores = np.empty((num_frames, width), work)
        stay_scores = step_scores if lattice.shared_labels else np.empty((num_frames, width), work)
        planes = maxima, sums, log_sums, stay_scores, step_scores

        def advance(
            parts: int, first: int, last: int, samples: np.ndarray, rows: int, first_frame=first_frame, planes=planes
        ) -> None:  # fmt: skip
            for pair in pairs:
                take, shape = np.empty if memory is None else memory.take, (rows, FRONT + width)
                alpha, exponents = take(shape, pair.mantissa), take(shape, pair.exponent)
                left = _advance(
                    parts, first, last, samples, scores.flat, *scores.strides, scores.encoding,
                    np.empty(num_classes, work), first_frame, frame_offsets, lattice.num_states, lattice.stay_labels,
                    lattice.step_labels, lattice.shared_labels, logits, relative, *planes, stays, skips,
                    lattice.num_final, need_gradient, alpha, exponents, pair.running_exponent(pair.zero), *running,
                    losses,
                )  # fmt: skip
                if memory is not None:
                    memory.give(alpha, exponents)
                if not left:
                    break
                parts &= ~GATHER

        positions, rows = num_samples * most, longest + 1 if need_gradient else 0
        if num_threads == 1:
            advance(GATHER | SOLVE | FINISH, 0, positions, every, rows)
            continue
        ranges = parallel.split_evenly(positions, num_threads)
        parallel.run(advance, [(GATHER, *bounds, every[:0], 0) for bounds in ranges], num_threads)
        # Dealt out in order of falling cost, so that the shares are about equal.
        order, shares = np.argsort(-lattice.input_lengths * lattice.num_states, kind="stable"), 4 * num_threads
        own = [order[share::shares] for share in range(min(num_samples, shares))]
        parallel.run(advance, [(SOLVE, 0, 0, part, _rows_of(part, lattice, rows)) for part in own], num_threads)
        advance(FINISH, 0, 0, every[:0], 0)

    if transitions is not None:
        _take_off_steps(
            transitions, lattice.step_transitions, lattice.num_states, lattice.input_lengths, in_common, losses
        )
    empty = np.empty((0, 0), work)
    if not need_gradient:
        return ChainSaved(losses, np.empty(0, work), np.empty(0, work), empty, empty)
    stay = empty if lattice.shared_labels else stay_scores
    return ChainSaved(losses, maxima if logits else maxima[:0], sums, stay, step_scores)


def _rows_of(samples: np.ndarray, lattice: ChainLattice, rows: int) -> int:
    """Rows of alpha for some samples, where alpha is kept."""
    return min(rows, int(lattice.input_lengths[samples].max()) + 1)


def backward(
    grad_losses: np.ndarray,
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    saved: ChainSaved,
    out: Strided,
    num_frames: int,
    *,
    logits: bool,
    num_threads: int,
) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out`` with axes (N, T, C)."""
    stay, step = saved.stay, saved.step
    work = work_dtype(scores.flat)

    def write(first: int, last: int) -> None:
        _write_gradient(
            grad_losses, scores.flat, *scores.strides, scores.encoding, np.empty((2, num_classes), work), num_frames,
            first, last, lattice.input_lengths, lattice.num_states, lattice.stay_labels, lattice.step_labels,
            lattice.shared_labels, logits, saved.losses, saved.maxima, saved.sums, stay, step, out.flat, *out.strides,
        )  # fmt: skip

    rows = len(lattice.input_lengths) * num_frames
    num_threads = parallel.worthwhile(num_threads, rows * (num_classes // 4 + step.shape[1]))
    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)


def transition_gradient(
    grad_losses: np.ndarray, num_classes: int, lattice: ChainLattice, saved: ChainSaved
) -> np.ndarray:
    """The gradient with respect to the transitions, (C, C) in float64: minus the expected counts of their arcs."""
    gradient = np.zeros((num_classes, num_classes))
    _subtract_arcs(
        grad_losses, saved.losses, lattice.num_states, lattice.step_transitions, lattice.stay_transitions,
        count_visits(lattice, saved), gradient,
    )  # fmt: skip
    return gradient


def count_visits(lattice: ChainLattice, saved: ChainSaved) -> np.ndarray:
    """(N, S') the sum over frames of the posteriors of each state."""
    visits = np.zeros((len(saved.losses), lattice.step_labels.shape[1]))
    _add_frames(saved.step, offsets_of(lattice), lattice.num_states, visits)
    return visits


def subtract_by_transition(
    grad_losses: np.ndarray,
    lattice: ChainLattice,
    losses: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """gradient (C, C) -= the sum of grad_losses * counts (N, S') over the states of each transition."""
    _subtract_counts(grad_losses, losses, lattice.num_states, indices, counts, gradient)


def stay_factors(transitions: np.ndarray | None, lattice: ChainLattice) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, S') what staying in a state costs beside the frame's score, in extended range."""
    if transitions is None:
        return None
    mantissas, exponents = np.empty(lattice.stay_transitions.shape), np.empty(lattice.stay_transitions.shape)
    _split_transitions(transitions, lattice.stay_transitions, lattice.num_states, mantissas, exponents)
    return mantissas, exponents


def of_states(transitions: np.ndarray, indices: np.ndarray, num_states: np.ndarray) -> np.ndarray:
    """(N, S') the transition of each state's arc in float64, 0 where it has none."""
    scores = np.zeros(indices.shape)
    _read_transitions(transitions, indices, num_states, scores)
    return scores


def offsets_of(lattice: ChainLattice) -> np.ndarray:
    offsets = np.empty(len(lattice.input_lengths) + 1, np.int64)
    _lay_out(lattice.input_lengths, lattice.num_states, 0, _ALL, offsets)
    return offsets


@part(**COMPILE)
def _score_of(transitions, index):
    """0 where there is no transition."""
    row, column = divmod(index, len(transitions))
    return transitions[row, column] if index >= 0 else 0.0


@kernel
def _read_transitions(transitions, indices, num_states, scores):
    for n in range(indices.shape[0]):
        for s in range(num_states[n]):
            scores[n, s] = _score_of(transitions, indices[n, s])


@kernel
def _split_transitions(transitions, indices, num_states, mantissas, exponents):
    for n in range(indices.shape[0]):
        for s in range(indices.shape[1]):
            score = _score_of(transitions, indices[n, s]) if s < num_states[n] else 0.0
            mantissas[n, s], exponents[n, s] = split(score)


@exact_kernel
def _take_off_steps(transitions, indices, num_states, lengths, in_common, losses):
    """All paths have the same steps. One of +inf makes NaN of an infinite loss."""
    for n in range(losses.size):
        steps = 0.0
        for s in range(num_states[n]):
            steps += _score_of(transitions, indices[n, s])
        losses[n] = losses[n] - steps - max(lengths[n] - 1, 0) * in_common


@exact_kernel
def _subtract_arcs(grad_losses, losses, num_states, steps, stays, visits, gradient):
    """A state is entered in one of the frames that see it, and stayed in in the others."""
    counts = np.ones(visits.shape)
    _subtract_sums(grad_losses, losses, num_states, steps, counts, gradient)
    for n in range(visits.shape[0]):
        for s in range(visits.shape[1]):
            counts[n, s] = visits[n, s] - 1.0
    _subtract_sums(grad_losses, losses, num_states, stays, counts, gradient)


@exact_kernel
def _subtract_counts(grad_losses, losses, num_states, indices, counts, gradient):
    _subtract_sums(grad_losses, losses, num_states, indices, counts, gradient)


@part(**COMPILE_EXACTLY)
def _subtract_sums(grad_losses, losses, num_states, indices, counts, gradient):
    sums = np.zeros(gradient.size)
    for n in range(losses.size):
        if losses[n] != np.inf and grad_losses[n] != 0:
            upstream = grad_losses[n] if losses[n] == losses[n] else np.nan
            for s in range(num_states[n]):
                if indices[n, s] >= 0:
                    sums[indices[n, s]] += upstream * counts[n, s]
    size = len(gradient)
    for i in range(sums.size):
        gradient[i // size, i % size] -= sums[i]


@kernel
def _add_frames(posteriors, frame_offsets, num_states, visits):
    for n in range(visits.shape[0]):
        total = np.zeros(num_states[n])
        for t in range(frame_offsets[n], frame_offsets[n + 1]):
            for s in range(total.size):
                total[s] += posteriors[t, s]
        visits[n, : total.size] = total


@part(forceinline=True, **COMPILE)
def in_memory_order(position, num_samples, num_frames, stride_n, stride_t):
    """Sample and frame of a position, neighbouring positions being neighbours in memory."""
    if stride_t > stride_n:
        return position % num_samples, position // num_samples
    return position // num_frames, position % num_frames


@part(forceinline=True, **COMPILE)
def longest_of(frame_offsets):
    """The most frames of a sample. (numba's ``diff`` takes as long to compile as a recursion.)"""
    longest = np.int64(0)
    for n in range(frame_offsets.size - 1):
        longest = max(longest, frame_offsets[n + 1] - frame_offsets[n])
    return longest


@kernel
def _lay_out(lengths, num_states, first_frame, strip, frame_offsets):
    """Where each sample's frames of a strip begin, one sample after another; the most of a sample, the most states, and
    all frames.
    """
    longest, widest = np.int64(0), np.int64(1)
    frame_offsets[0] = 0
    for n in range(lengths.size):
        length = min(max(lengths[n] - first_frame, 0), strip)
        longest, widest = max(longest, length), max(widest, num_states[n])
        frame_offsets[n + 1] = frame_offsets[n] + length
    return longest, widest, frame_offsets[-1]


@kernel
def _advance(
    parts, first, last, samples, flat, stride_n, stride_t, stride_c, encoding, scratch, first_frame, frame_offsets,
    num_states, stay_labels, step_labels, shared_labels, logits, relative, maxima, sums, log_sums, stay_scores,
    step_scores, stays, skips, num_final, need_gradient, alpha, exponents, zero, running_mass, running_exponents,
    running_log_sums, running_powers, reaches, losses,
):  # fmt: skip
    """Some parts of the work, one after another: positions [first, last) read, samples solved, losses made.

    How many samples are left to a pair of wider numbers, without whom there are no losses.
    """
    left = 0
    if parts & GATHER and first < last:
        _gather_scores(
            flat, stride_n, stride_t, stride_c, encoding, scratch, first, last, first_frame, frame_offsets, num_states,
            stay_labels, step_labels, shared_labels, logits, relative, maxima, sums, log_sums, stay_scores, step_scores,
        )  # fmt: skip
    if parts & SOLVE:
        left = solve_samples(
            samples, frame_offsets, step_scores, stay_scores, stays, maxima, log_sums, num_states, skips, num_final,
            shared_labels, logits, need_gradient, alpha, exponents, zero, running_mass, running_exponents,
            running_log_sums, running_powers, reaches,
        )  # fmt: skip
    if parts & FINISH and left == 0:
        finish(running_mass, running_exponents, running_log_sums, running_powers, num_states, num_final, logits, losses)
    return left


@part(**COMPILE)
def _gather_scores(
    flat, stride_n, stride_t, stride_c, encoding, scratch, first, last, first_frame, frame_offsets, num_states,
    stay_labels, step_labels, shared_labels, logits, relative, maxima, sums, log_sums, stay_scores, step_scores,
):  # fmt: skip
    """Positions [first, last) of the padded batch: softmax statistics, and scores of each state's arcs less what the
    row's are taken off.
    """
    flat, scratch = borrow(flat), borrow(scratch)
    stay_labels, step_labels = borrow(stay_labels), borrow(step_labels)
    stay_scores, step_scores = borrow(stay_scores), borrow(step_scores)
    num_samples = num_states.size
    longest = longest_of(frame_offsets)
    for position in range(first, last):
        n, t = in_memory_order(position, num_samples, longest, stride_n, stride_t)
        frame = frame_offsets[n] + t
        if frame >= frame_offsets[n + 1]:
            continue
        row = load_row(flat, n * stride_n + (first_frame + t) * stride_t, stride_c, encoding, scratch)
        step, stay = step_scores[frame], stay_scores[frame]
        _gather_row(row, step_labels[n], num_states[n], step)
        if not shared_labels:
            _gather_row(row, stay_labels[n], num_states[n], stay)
        if logits:
            maxima[frame], total = softmax_statistics(row)
            sums[frame] = total
            # The part that is not of whole powers of two and what is taken off, which are counted apart.
            log_sums[frame] = np.log(total) if total > 0 else 0.0
            common = maxima[frame]
        else:
            largest = greatest_of(step, stay, shared_labels)
            # Of logits the softmax has seen to it that all are defined.
            maxima[frame] = 0 if largest == largest else np.nan
            common = greatest(row) if relative else largest
            log_sums[frame] = 0.0 if relative else -np.float64(unit_of(common)[0])
        take_off(step, common)
        if not shared_labels:
            take_off(stay, common)


@part(forceinline=True, **COMPILE)
def _gather_row(row, labels, num_states, out):
    for s in range(num_states):
        out[s] = row[labels[s]]
    for s in range(num_states, out.size):
        out[s] = -np.inf


@part(forceinline=True, **COMPILE)
def greatest_of(step, stay, shared_labels):
    """The greatest score of a frame's arcs, NaN where one is NaN or +inf."""
    largest = greatest(step)
    if not shared_labels:
        other = greatest(stay)
        largest = largest if largest >= other or largest != largest else other
    return largest


@kernel
def _write_gradient(
    grad_losses, flat, stride_n, stride_t, stride_c, encoding, scratch, padded_frames, first, last, lengths,
    num_states, stay_labels, step_labels, shared_labels, logits, losses, maxima, sums, stay, step, out, out_stride_n,
    out_stride_t, out_stride_c,
):  # fmt: skip
    """Rows [first, last) of the padded batch: grad_loss * (softmax - posterior of each class), or 0."""
    flat, out, scratch = borrow(flat), borrow(out), borrow(scratch)
    one = step.dtype.type(1)
    frame_offsets = np.zeros(lengths.size + 1, np.int64)
    for n in range(lengths.size):
        frame_offsets[n + 1] = frame_offsets[n] + lengths[n]
    for position in range(first, last):
        n, t = in_memory_order(position, losses.size, padded_frames, out_stride_n, out_stride_t)
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
            subtract_by_class(upstream, step[frame], step_labels[n], num_states[n], row)
            if not shared_labels:
                subtract_by_class(upstream, stay[frame], stay_labels[n], num_states[n], row)
        store_row(out, start, out_stride_c, encoding, row)


@part(forceinline=True, **COMPILE)
def subtract_by_class(upstream, plane, labels, num_states, row):
    """row -= upstream * the sum over the states of each class."""
    # The class of the first state, CTC's blank, is every other state's: summed apart, its additions need not wait for
    # each other to reach memory.
    common, total = labels[0], plane.dtype.type(0)
    for s in range(num_states):
        if labels[s] == common:
            total += plane[s]
        else:
            row[labels[s]] -= upstream * plane[s]
    row[common] -= upstream * total
