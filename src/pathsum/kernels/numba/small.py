"""Small batches solved in one call of compiled code, by the kernels that larger ones are solved by.

What Python does between the kernels takes longer than they do where a batch is small: memory is taken here, and the
kernels are called one after another. A batch that pays for a second thread is declined.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import chain, grid, posing
from pathsum.kernels.numba.addresses import by_address
from pathsum.kernels.numba.chain import FINISH, GATHER, SOLVE
from pathsum.kernels.numba.chain_recursion import FRONT, STATES
from pathsum.kernels.numba.compilation import kernel
from pathsum.numerics import ZERO_EXPONENT_32

# Work that ``parallel.worthwhile`` gives to more than one thread, and scores that are as much at least.
FOR_THREADS = 300_000
MOST_SCORES = 4 * FOR_THREADS

_fill_ctc = by_address(
    posing._fill_ctc, "b1(i8[:,::1], i8[::1], i8[::1], i8, i8, i8, i8, i8[::1], i8[:,::1], b1[:,::1])"
)
_fill_simple_ctc = by_address(posing._fill_simple_ctc, "b1(i8[:,::1], i8[::1], i8[::1], i8, i8, i8, i8, i8[:,::1])")
_lay_out = by_address(chain._lay_out, "UniTuple(i8, 3)(i8[::1], i8[::1], i8, i8, i8[::1])")
_advance = by_address(
    chain._advance,
    "i8(i8, i8, i8, i8[::1], f4[::1], i8, i8, i8, i8, f4[::1], i8, i8[::1], i8[::1], i8[:,::1], i8[:,::1], b1, b1,"
    "b1, f4[::1], f4[::1], f8[::1], f4[:,::1], f4[:,::1], none, b1[:,::1], i8, b1, f4[:,::1], i4[:,::1],"
    "i8, f8[:,::1], f8[:,::1], f8[::1], f8[::1], f8[::1], f8[::1])",
)
_write_chain_gradient = by_address(
    chain._write_gradient,
    "void(f8[::1], f4[::1], i8, i8, i8, i8, f4[:,::1], i8, i8, i8, i8[::1], i8[::1], i8[:,::1], i8[:,::1], b1, b1,"
    "f8[::1], f4[::1], f4[::1], f4[:,::1], f4[:,::1], f4[::1], i8, i8, i8)",
)


@kernel
def _solve_chains(
    flat, num_frames, num_classes, targets, lengths, target_lengths, repeats, blank, logits,
    losses, gradient,
):  # fmt: skip
    """CTC (``repeats`` merged) or simplified CTC of scores (N, T, C): losses (N,), and gradients unless of size 0.

    False where the batch is not for this.
    """
    num_samples, num_labels = targets.shape
    width = 2 * num_labels + 1 if repeats else num_labels + 1
    if num_samples * num_frames * (width + num_classes // 4) >= FOR_THREADS:
        return False
    step_labels, stay_labels = np.empty((num_samples, width), np.int64), np.empty((num_samples, width), np.int64)
    skips, num_states = np.empty((num_samples, width), np.bool_), np.empty(num_samples, np.int64)
    samples, offsets = np.empty(num_samples, np.int64), np.empty(num_samples + 1, np.int64)
    for n in range(num_samples):
        samples[n], num_states[n] = n, target_lengths[n] + 1
        for s in range(width):
            step_labels[n, s], stay_labels[n, s], skips[n, s] = blank, blank, False
    if repeats:
        stay_labels = step_labels
        in_range = _fill_ctc(
            targets, lengths, target_lengths, num_frames, posing.NO_BOUND, num_classes, blank, num_states, step_labels,
            skips,
        )  # fmt: skip
    else:
        in_range = _fill_simple_ctc(
            targets, lengths, target_lengths, num_frames, posing.NO_BOUND, num_classes, blank, step_labels
        )  # fmt: skip
    if not in_range:
        return False

    longest, width, own_frames = _lay_out(lengths, num_states, 0, chain._ALL, offsets)
    maxima, sums = np.empty(own_frames, np.float32), np.empty(own_frames if logits else 0, np.float32)
    steps = np.empty((own_frames, width), np.float32)
    stays = steps if repeats else np.empty((own_frames, width), np.float32)
    columns = FRONT + -(-width // STATES) * STATES
    mass, exponents = np.empty((num_samples, columns)), np.empty((num_samples, columns))
    # What runs beside the mass, the upstream gradients, and the losses.
    running = np.empty((5, num_samples))
    first_state = FRONT - 1 if repeats else FRONT
    for n in range(num_samples):
        for s in range(columns):
            mass[n, s], exponents[n, s] = 1.0 if s == first_state else 0.0, 0.0
        running[0, n], running[1, n], running[2, n], running[3, n] = 0.0, 0.0, 0.0, 1.0
    need_gradient = gradient.size > 0
    num_final, rows = 2 if repeats else 1, longest + 1 if need_gradient else 0
    scratch = np.empty((2, num_classes), np.float32)
    left = _advance(
        GATHER | SOLVE | FINISH, 0, num_samples * longest, samples, flat, num_frames * num_classes, num_classes, 1, 0,
        scratch[0], 0, offsets, num_states, stay_labels, step_labels, repeats, logits, False, maxima, sums,
        np.empty(own_frames), stays, steps, None, skips, num_final, need_gradient,
        np.empty((rows, FRONT + width), np.float32), np.empty((rows, FRONT + width), np.int32),
        np.int64(ZERO_EXPONENT_32), mass, exponents,
        running[0], running[1], running[2], running[4],
    )  # fmt: skip
    if left > 0:
        return False
    for n in range(num_samples):
        losses[n] = running[4, n]
    if need_gradient:
        _write_chain_gradient(
            running[3], flat, num_frames * num_classes, num_classes, 1, 0, scratch, num_frames, 0,
            num_samples * num_frames, lengths, num_states, stay_labels, step_labels, repeats, logits, running[4],
            maxima, sums, stays, steps, gradient, num_frames * num_classes, num_classes, 1,
        )  # fmt: skip
    return True


solve_chains = by_address(
    _solve_chains, "b1(f4[::1], i8, i8, i8[:,::1], i8[::1], i8[::1], b1, i8, b1, f4[::1], f4[::1])",
    _fill_ctc, _fill_simple_ctc, _lay_out, _advance, _write_chain_gradient,
)  # fmt: skip


_fill_rnnt = by_address(posing._fill_rnnt, "b1(i8[:,::1], i8[::1], i8[::1], i8, i8, i8, i8, i8[:,::1], i8[::1])")
_gather_nodes = by_address(
    grid._gather_scores,
    "void(i8, i8, i8, i8, f4[::1], i8[::1], i8[::1], i8, i8, i8, f4[::1], i8[::1], i8[::1], i8[::1], i8[:,::1], i8, b1,"
    "f4[::1], f4[::1], f8[::1], f8[::1])",
)
_solve_nodes = by_address(
    grid._solve_samples, "void(i8, i8, f8[::1], f8[::1], f4[::1], i8[::1], i8[::1], b1, f8, f8[::1])"
)
_write_grid_gradient = by_address(
    grid._write_gradient,
    "void(i8, i8, i8, i8, f8[::1], f4[::1], i8[::1], i8[::1], i8, i8, i8, f4[:,::1], i8[::1], i8[::1], i8[::1],"
    "i8[:,::1], i8, b1, f8, f8, f8[::1], f4[::1], f4[::1], f8[::1], f8[::1], f4[::1], i8[::1], i8[::1], i8, i8,"
    "i8[::1], i8[::1])",
)


@kernel
def _solve_grids(
    flat, num_frames, num_rows, num_classes, targets, lengths, target_lengths, blank, logits, fastemit_lambda, clamp,
    losses, gradient,
):  # fmt: skip
    """RNN-T of scores (N, T, U+1, V): losses (N,), and their gradients unless of size 0.

    False where the batch is not for this.
    """
    num_samples = lengths.size
    if num_samples * num_frames * num_rows * max(8 + num_classes // 8, num_classes // 4) >= FOR_THREADS:
        return False
    labels, row_offsets = np.empty(targets.shape, np.int64), np.empty(num_samples + 1, np.int64)
    if not _fill_rnnt(
        targets, lengths, target_lengths, num_frames, num_rows - 1, num_classes, blank, labels, row_offsets
    ):  # fmt: skip
        return False
    places, running = np.empty((4, num_samples), np.int64), np.empty((2, num_samples))
    for n in range(num_samples):
        places[0, n], places[1, n] = n * num_frames * num_rows * num_classes, num_rows * num_classes
        places[2, n], places[3, n] = num_frames, num_rows
        running[0, n] = 1.0
    num_nodes = row_offsets[num_samples]
    scratch, statistics = np.empty((2, num_classes), np.float32), np.empty((2, num_nodes), np.float32)
    arcs = np.empty((2, num_nodes))
    _gather_nodes(
        0, num_samples, 0, grid.ALL, flat, places[0], places[1], num_classes, 1, 0, scratch[0], row_offsets, lengths,
        target_lengths, labels, blank, logits, statistics[0], statistics[1], arcs[0], arcs[1],
    )  # fmt: skip
    need_gradient, at_least = gradient.size > 0, 0.0 if logits else -np.inf
    _solve_nodes(
        0, num_samples, arcs[0], arcs[1], statistics[0], row_offsets, target_lengths, need_gradient, at_least,
        running[1],
    )  # fmt: skip
    for n in range(num_samples):
        losses[n] = running[1, n]
    if need_gradient:
        _write_grid_gradient(
            0, num_samples, 0, grid.ALL, running[0], flat, places[0], places[1], num_classes, 1, 0, scratch,
            row_offsets, lengths, target_lengths, labels, blank, logits, fastemit_lambda, clamp, running[1],
            statistics[0], statistics[1], arcs[0], arcs[1], gradient, places[0], places[1], num_classes, 1, places[2],
            places[3],
        )  # fmt: skip
    return True


solve_grids = by_address(
    _solve_grids, "b1(f4[::1], i8, i8, i8, i8[:,::1], i8[::1], i8[::1], i8, b1, f8, f8, f4[::1], f4[::1])",
    _fill_rnnt, _gather_nodes, _solve_nodes, _write_grid_gradient,
)  # fmt: skip
