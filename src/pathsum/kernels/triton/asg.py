"""Both lattices of the auto segmentation criterion on the GPU, in the same launches.

A loss is that of a chain, the paths that stretch a target, less that of a dense lattice, all paths, of the same scores.
Alone each would take launches of its own for scores, sweeps, posteriors and gradients, one waiting for the other; here
the second axis of a launch says whose part a program has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton import chain
from pathsum.kernels.triton.chain_gradient import count_arcs_of_states, counts_of_cells
from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.dense import score_rows, solve_sample, weigh_rows, weigh_transitions
from pathsum.kernels.triton.dense_log import count_linear_and_lost, finish_sample


@kernel
def prepare(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, num_states, labels, num_columns: tl.int32, step_scores, extents,
    chain_programs: tl.int32, references, emits, lost, dense_programs: tl.int32, transitions, table, common, matrix,
    transposed, shift, status, table_programs: tl.int32, WORK: tl.constexpr, CHAIN_ROWS: tl.constexpr,
    CHAIN_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """Scores of the chain's states; the dense lattice's frames; the transitions of both."""
    program, part = tl.program_id(0), tl.program_id(1)
    if part == 0:
        if program < dense_programs:
            score_rows(
                scores, stride_n, stride_t, stride_c, program, num_samples, num_frames, num_classes, input_lengths,
                references, emits, lost, ROWS, BLOCK,
            )  # fmt: skip
    elif part == 1:
        if program < chain_programs:
            chain.score_tile(
                scores, stride_n, stride_t, stride_c, program, num_samples, num_frames, num_classes, input_lengths,
                num_states, labels, labels, num_columns, num_columns, None, None, None, step_scores, step_scores,
                extents, False, True, True, WORK, CHAIN_ROWS, CHAIN_BLOCK, 1,
            )  # fmt: skip
    elif program < table_programs:
        weigh_transitions(
            transitions, num_classes, program, table_programs, table, common, matrix, transposed, shift, status, TABLE
        )


@kernel
def solve(
    input_lengths, num_frames: tl.int32, num_classes: tl.int32, references, emits, matrix, transposed, shift, common,
    status, alpha, scales, beta, entering, losses, lost, step_scores, extents, num_states, skips, stays, steps, table,
    num_columns: tl.int32, start_state: tl.int32, num_final: tl.int32, chain_alpha, chain_beta, chain_losses,
    TO: tl.constexpr, FROM: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Alpha of both lattices of a sample, their losses, and, by two more programs of it, beta of both."""
    n, backwards = tl.program_id(0).to(tl.int64), tl.program_id(1) >= 2
    if tl.program_id(1) % 2 == 0:
        solve_sample(
            n, backwards, input_lengths, num_frames, num_classes, references, emits, matrix, transposed, shift, common,
            status, alpha, scales, beta, entering, losses, lost, True, TO, FROM, SINGLE,
        )  # fmt: skip
    else:
        chain.solve_sample(
            n, backwards, step_scores, step_scores, None, None, None, extents, input_lengths, num_states, skips, stays,
            steps, table, None, num_frames, num_columns, num_columns, start_state, num_final, chain_alpha, chain_beta,
            chain_losses, False, True, True, BLOCK, STRIPS, True,
        )  # fmt: skip


@kernel
def finish(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, parts: tl.int32, dense_programs: tl.int32,
    input_lengths, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, table, common, shift, references,
    alpha, scales, beta, entering, losses, lost, extended, step_scores, extents, num_states, skips, stays, steps,
    num_columns: tl.int32, start_state: tl.int32, chain_alpha, chain_beta, chain_losses, chain_programs: tl.int32, out,
    GRADIENT: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    CHAIN_ROWS: tl.constexpr, CHAIN_BLOCK: tl.constexpr,
):  # fmt: skip
    """Posteriors of both lattices where a GRADIENT is wanted, and the differences of their losses: inf where the target
    has no path, NaN where a sample is not defined.
    """
    program = tl.program_id(0)
    if tl.program_id(1) == 0:
        if program < dense_programs:
            n, part = (program // parts).to(tl.int64), program % parts
            finish_sample(
                scores, stride_n, stride_t, stride_c, n, part, input_lengths, num_frames, num_classes, table, common,
                shift, references, alpha, scales, beta, entering, losses, lost, extended, True, GRADIENT, TO, FROM,
                ROWS, BLOCK,
            )  # fmt: skip
            if part == 0:
                # The loss of a lost sample is this program's.
                barrier()
                own, every = tl.load(chain_losses + n), tl.load(losses + n)
                without = (own == float("inf")) & (every == every)
                tl.store(out + n, tl.where(without, own, own - tl.where(without, 0.0, every)))
    elif GRADIENT:
        if program < chain_programs:
            chain.posteriors_of_tile(
                program, step_scores, step_scores, extents, chain_losses, input_lengths, num_states, skips, stays,
                steps, table, chain_alpha, chain.in_words(chain_beta, True), num_samples, num_frames, num_columns,
                num_columns, start_state, True, True, CHAIN_ROWS, CHAIN_BLOCK, True, True,
            )  # fmt: skip


@triton.jit
def _write_row(
    grad_losses, losses, gamma, step, labels, input_lengths, num_states, row, num_frames, num_classes, num_columns, out,
    stride_n, stride_t, stride_c, STATES: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The gradient by a frame's scores: upstream * (gamma of each class less the posteriors of the states it has).

    Each class goes through all states, of which there are few beside the arcs of a frame.
    """
    n, t = row // num_frames, row % num_frames
    loss, upstream = tl.load(losses + n), tl.load(grad_losses + n).to(tl.float64)
    real = t < tl.load(input_lengths + n)
    possible = real & (loss < float("inf"))
    states = tl.where(possible, tl.load(num_states + n), 0)
    for first in range(0, num_classes, CLASSES):
        c = first + tl.arange(0, CLASSES)
        own = tl.zeros([STATES, CLASSES], tl.float64)
        for first_state in range(0, states, STATES):
            s = first_state + tl.arange(0, STATES)
            label = tl.load(labels + n * num_columns + s, mask=s < states, other=-1)
            posterior = tl.load(step + row * num_columns + s, mask=s < states, other=0.0).to(tl.float64)
            own += tl.where(label[:, None] == c[None, :], posterior[:, None], 0.0)
        every = tl.load(gamma + row * num_classes + c, mask=possible & (c < num_classes), other=0.0)
        gradient = tl.where(possible, upstream * (every - tl.sum(own, 0)), 0.0)
        gradient = tl.where(real & (loss != loss), float("nan"), gradient)
        places = out + n * stride_n + t * stride_t + c.to(tl.int64) * stride_c
        tl.store(places, gradient.to(out.dtype.element_ty), mask=c < num_classes)


@kernel
def write_gradient(
    grad_losses, losses, chain_losses, gamma, step, labels, input_lengths, num_states, num_rows: tl.int64,
    num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, num_columns: tl.int32, out, stride_n: tl.int64,
    stride_t: tl.int64, stride_c: tl.int64, extended, alpha, entering, enters, sources, weigh_programs: tl.int32,
    counts, strips: tl.int32, SCORES: tl.constexpr, STATES: tl.constexpr, CLASSES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, TIME: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """The gradient by SCORES, and what that by transitions is the sum of: rows of the dense lattice's, and counts of
    ``strips`` of each sample's states.
    """
    program, part = tl.program_id(0), tl.program_id(1)
    if not SCORES:
        part += 1
    if part == 0:
        if program < num_rows:
            _write_row(
                grad_losses, losses, gamma, step, labels, input_lengths, num_states, program.to(tl.int64), num_frames,
                num_classes, num_columns, out, stride_n, stride_t, stride_c, STATES, CLASSES,
            )  # fmt: skip
    elif part == 1:
        if program < weigh_programs:
            weigh_rows(
                grad_losses, losses, input_lengths, extended, program, num_frames, num_classes, num_rows, alpha,
                entering, enters, sources, 1.0, ROWS, BLOCK,
            )  # fmt: skip
    elif program < num_samples * strips:
        n, s = (program // strips).to(tl.int64), program % strips * STRIP + tl.arange(0, STRIP)
        count_arcs_of_states(
            grad_losses, chain_losses, input_lengths, num_states, step, 1.0, n, s, num_frames, num_columns, counts,
            TIME, STRIP,
        )  # fmt: skip


@kernel
def add_transition_gradient(
    grad_losses, input_lengths, losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, table,
    matrix, alpha, entering, extended, product, counts, num_states, stay, step, num_columns: tl.int32, out,
    TIME: tl.constexpr, ENTRIES: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """upstream * (expected number of arcs among all paths less that among the target's). A program has arcs into one
    state.
    """
    j, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * FROM + tl.arange(0, FROM)
    cells = j * num_classes + i
    total = count_linear_and_lost(
        grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, table, matrix, alpha, entering,
        extended, product, j, i, 1.0, TIME, FROM,
    )  # fmt: skip
    total += counts_of_cells(counts, num_states, stay, step, num_samples, num_columns, cells, ENTRIES, FROM)
    tl.store(out + cells, total.to(out.dtype.element_ty), mask=i < num_classes)
