"""The best path of a chain on the CPU, in memory that grows with the square root of its frames times its states.

Forward in plain max-plus float64, keeping the scores of all states before every so many frames only. Then from the
last stretch of frames to the first: the stretch is solved again from what was kept, for the few states from which the
path can have come, and the path traced through it by comparing the scores before each frame. No back-pointers.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.chain_recursion import FRONT
from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import Strided, copy_row, load_row, work_dtype
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import ChainPath
from pathsum.lattice import ChainLattice


def best_path(
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    transitions: np.ndarray | None = None,
    *,
    num_frames: int,
    num_threads: int,
) -> ChainPath:
    """The best path of each sample. ``scores`` has axes (N, T, C), T being ``num_frames``."""
    num_samples = len(lattice.input_lengths)
    states = np.full((num_samples, num_frames), -1, np.int64)
    log_probs = np.empty(num_samples)
    constants = np.zeros(1) if transitions is None else transitions.ravel().astype(np.float64)
    shared_scores = lattice.shared_labels and lattice.stay_transitions is None

    def solve(sample: int) -> None:
        count, length = int(lattice.num_states[sample]), int(lattice.input_lengths[sample])
        stay, step = (labels[sample, :count] for labels in (lattice.stay_labels, lattice.step_labels))
        classes, positions = np.unique(np.stack([stay, step]), return_inverse=True)
        # Unsigned, as no index is then tried for counting from the end, which costs a third of the time.
        stay_positions, step_positions = positions.reshape(2, count).astype(np.uint32)
        skips = np.ascontiguousarray(lattice.skips[sample, :count])
        reach = 2 if skips.any() else 1
        stretch = _stretch(length, count, reach)
        log_probs[sample] = _solve_sample(
            scores.flat, sample * scores.strides[0], scores.strides[1], scores.strides[2], scores.encoding,
            np.empty(num_classes, work_dtype(scores.flat)), classes, stay_positions, step_positions,
            _constants(constants, lattice.stay_transitions, sample, count),
            _constants(constants, lattice.step_transitions, sample, count),
            skips, reach, shared_scores, lattice.start_state, lattice.num_final, stretch,
            states[sample, :length],
        )  # fmt: skip

    costs = lattice.input_lengths * lattice.num_states
    num_threads = parallel.worthwhile(num_threads, int(costs.sum()))
    parallel.run(solve, [(int(n),) for n in np.argsort(-costs, kind="stable")], num_threads)
    return ChainPath(log_probs, states)


def _stretch(num_frames: int, num_states: int, reach: int) -> int:
    """Frames from one set of kept scores to the next, so that what is kept and what is solved again are small."""
    balanced = (num_frames * num_states / (2 * reach)) ** (1 / 3)
    return max(1, min(num_frames, round(balanced)))


def _constants(table: np.ndarray, indices: np.ndarray | None, sample: int, count: int) -> np.ndarray:
    if indices is None:
        return np.zeros(count)
    indices = indices[sample, :count]
    return np.where(indices >= 0, table[indices], 0.0)


@exact_kernel
def _solve_sample(
    flat, start, stride_t, stride_c, encoding, scratch, classes, stay_positions, step_positions, stay_constants,
    step_constants, skips, reach, shared_scores, start_state, num_final, stretch, states,
):  # fmt: skip
    """The log-score of the best path, whose states are written; they are left alone where there is none."""
    flat, scratch, skips = borrow(flat), borrow(scratch), borrow(skips)
    num_frames, num_states = states.size, skips.size
    for s in range(num_states):
        if not (stay_constants[s] < np.inf and step_constants[s] < np.inf):
            return np.nan

    alpha = np.full(FRONT + num_states, -np.inf)
    alpha[FRONT + start_state] = 0.0
    first_final = max(num_states - num_final, -1)
    num_kept = (num_frames + stretch - 1) // stretch
    kept = np.empty((num_kept, alpha.size))
    emitted, entered = np.empty(classes.size), np.empty(num_states)
    for t in range(num_frames):
        if t % stretch == 0:
            copy_row(alpha, kept[t // stretch])
        if not _load_emitted(flat, start + t * stride_t, stride_c, encoding, scratch, classes, emitted):
            return np.nan
        # States before the first are too far from the end, those from last on too far from the start.
        first = max(first_final - reach * (num_frames - 1 - t), 0)
        last = min(start_state + reach * (t + 1) + 1, num_states)
        _advance(
            alpha, emitted, stay_positions, step_positions, stay_constants, step_constants, skips, shared_scores, first,
            last, entered,
        )  # fmt: skip

    state = first_final
    for s in range(first_final + 1, num_states):
        state = s if alpha[FRONT + s] > alpha[FRONT + state] else state
    log_prob = alpha[FRONT + state]
    if log_prob == -np.inf:
        return log_prob

    before = np.empty((stretch, FRONT + reach * stretch + 1))
    for k in range(num_kept - 1, -1, -1):
        begin, end = k * stretch, min((k + 1) * stretch, num_frames)
        lowest = max(state - reach * (end - begin), 0)
        copy_row(kept[k], alpha)
        for t in range(begin, end):
            copy_row(alpha[lowest : FRONT + state + 1], before[t - begin])
            _load_emitted(flat, start + t * stride_t, stride_c, encoding, scratch, classes, emitted)
            first = max(state - reach * (end - 1 - t), 0)
            last = min(start_state + reach * (t + 1) + 1, state + 1)
            _advance(
                alpha, emitted, stay_positions, step_positions, stay_constants, step_constants, skips, shared_scores,
                first, last, entered,
            )  # fmt: skip
        for t in range(end - 1, begin - 1, -1):
            states[t] = state
            here = before[t - begin, state - lowest :]
            stayed, stepped = here[FRONT], here[FRONT - 1]
            skipped = here[0] if skips[state] else -np.inf
            if not shared_scores:
                row = load_row(flat, start + t * stride_t, stride_c, encoding, scratch)
                stay_score = np.float64(row[classes[stay_positions[state]]]) + stay_constants[state]
                step_score = np.float64(row[classes[step_positions[state]]]) + step_constants[state]
                stayed, stepped, skipped = stayed + stay_score, stepped + step_score, skipped + step_score
            if stayed >= stepped and stayed >= skipped:
                continue
            state -= 1 if stepped >= skipped else 2
    return log_prob


@part(**COMPILE_EXACTLY)
def _load_emitted(flat, start, stride_c, encoding, scratch, classes, emitted):
    """The frame's scores of the classes that occur; whether all of them are numbers below +inf."""
    row = load_row(flat, start, stride_c, encoding, scratch)
    defined = True
    for k in range(classes.size):
        emitted[k] = row[classes[k]]
        defined = defined and emitted[k] < np.inf
    return defined


@part(**COMPILE_EXACTLY)
def _advance(
    alpha, emitted, stay_positions, step_positions, stay_constants, step_constants, skips, shared_scores, first, last,
    entered,
):  # fmt: skip
    """One frame forward for the states [first, last), in place; the others keep what they had."""
    # Views that start at the first state, each loop writing to memory of its own: so it vectorises.
    count = max(last - first, 0)
    two_before, one_before, here = alpha[first:], alpha[first + FRONT - 1 :], alpha[first + FRONT :]
    step_positions, skips, entered = step_positions[first:], skips[first:], entered[first:]
    if shared_scores:
        for s in range(count):
            skipped = two_before[s] if skips[s] else -np.inf
            best = one_before[s] if one_before[s] > here[s] else here[s]
            best = skipped if skipped > best else best
            entered[s] = best + emitted[step_positions[s]]
    else:
        stay_positions, stay_constants = stay_positions[first:], stay_constants[first:]
        step_constants = step_constants[first:]
        for s in range(count):
            skipped = two_before[s] if skips[s] else -np.inf
            best = skipped if skipped > one_before[s] else one_before[s]
            stepped = best + (emitted[step_positions[s]] + step_constants[s])
            stayed = here[s] + (emitted[stay_positions[s]] + stay_constants[s])
            entered[s] = stepped if stepped > stayed else stayed
    for s in range(count):
        here[s] = entered[s]
    alpha[:FRONT] = -np.inf
