"""What the sweeps of ``dense`` leave made into posteriors, and in float64 logarithms the samples that are lost.

An exponential for each pair of states and frame, and no limit to how far apart scores may be. One program does all of
such a sample, of which there are few.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.dense import LOST, combine, greatest_of_frame, in_common, load_scores
from pathsum.kernels.triton.extended import reference_of


@triton.jit
def _log_sum(transitions, vector, to, num_classes, stride_to, stride_from, TO: tl.constexpr, FROM: tl.constexpr):
    """log of the sum over i of exp(transitions[to, i] + vector[i])"""
    largest, total = tl.full([TO], float("-inf"), tl.float64), tl.zeros([TO], tl.float64)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        mask = (to < num_classes)[:, None] & (i < num_classes)[None, :]
        places = transitions + to.to(tl.int64)[:, None] * stride_to + i.to(tl.int64)[None, :] * stride_from
        x = tl.load(places, mask=mask, other=float("-inf")).to(tl.float64)
        x += tl.load(vector + i, mask=i < num_classes, other=float("-inf"))[None, :]
        greater = tl.maximum(largest, tl.max(x, 1))
        reference = tl.where(greater > float("-inf"), greater, 0.0)
        total = total * tl.exp(largest - reference) + tl.sum(tl.exp(x - reference[:, None]), 1)
        largest = greater
    return tl.where(total > 0, largest + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def _log_total(vector, num_classes, FROM: tl.constexpr):
    """log of the sum over i of exp(vector[i])"""
    largest, total = tl.full([FROM], float("-inf"), tl.float64), tl.zeros([FROM], tl.float64)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        largest = tl.maximum(largest, tl.load(vector + i, mask=i < num_classes, other=float("-inf")))
    greatest = tl.max(largest, 0)
    reference = tl.where(greatest > float("-inf"), greatest, 0.0)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        total += tl.exp(tl.load(vector + i, mask=i < num_classes, other=float("-inf")) - reference)
    mass = tl.sum(total, 0)
    return tl.where(mass > 0, reference + tl.log(tl.where(mass > 0, mass, 1.0)), float("-inf"))


@triton.jit
def _alpha(
    scores, start, stride_t, stride_c, row, frames, num_classes, transitions, alpha, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """Logarithms of the mass that arrives in each state of each frame, less what is huge of the frames' scores."""
    for t in range(frames):
        barrier()
        greatest, _ = greatest_of_frame(scores, start + t * stride_t, stride_c, num_classes, FROM)
        for first in range(0, num_classes, TO):
            j = first + tl.arange(0, TO)
            arriving = tl.zeros([TO], tl.float64)
            if t > 0:
                before = alpha + (row + t - 1) * num_classes
                arriving = _log_sum(transitions, before, j, num_classes, num_classes, 1, TO, FROM)
            x = load_scores(scores, start + t * stride_t, stride_c, j, num_classes) - reference_of(greatest)
            tl.store(alpha + (row + t) * num_classes + j, x + arriving, mask=j < num_classes)
    barrier()


@triton.jit
def _beta(
    scores, start, stride_t, stride_c, row, frames, num_classes, transitions, beta, entering, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """Logarithms of the mass that leaves each state of each frame, and, ``entering``, of that times its own score."""
    for behind in range(frames):
        t = frames - 1 - behind
        barrier()
        greatest, _ = greatest_of_frame(scores, start + t * stride_t, stride_c, num_classes, FROM)
        for first in range(0, num_classes, TO):
            j = first + tl.arange(0, TO)
            leaving = tl.zeros([TO], tl.float64)
            places = (row + t) * num_classes + j
            if behind > 0:
                after = entering + (row + t + 1) * num_classes
                leaving = _log_sum(transitions, after, j, num_classes, 1, num_classes, TO, FROM)
            x = load_scores(scores, start + t * stride_t, stride_c, j, num_classes) - reference_of(greatest)
            tl.store(beta + places, leaving, mask=j < num_classes)
            tl.store(entering + places, x + leaving, mask=j < num_classes)
    barrier()


@triton.jit
def _combine(
    row, num_frames, frames, num_classes, loss, alpha, beta, entering, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As ``dense.combine``, but that alpha and ``entering`` stay logarithms, the latter less the sample's log-sum."""
    shift = tl.where(loss < float("inf"), loss, 0.0)
    for first_frame in range(0, num_frames, ROWS):
        t = first_frame + tl.arange(0, ROWS)
        possible = t < tl.where(loss < float("inf"), frames, 0)
        for first in range(0, num_classes, BLOCK):
            c = first + tl.arange(0, BLOCK)
            places = (row + t)[:, None] * num_classes + c[None, :]
            mask = possible[:, None] & (c < num_classes)[None, :]
            kept = (t < num_frames)[:, None] & (c < num_classes)[None, :]
            before = tl.load(alpha + places, mask=mask, other=float("-inf"))
            after = tl.load(beta + places, mask=mask, other=float("-inf"))
            enters = tl.load(entering + places, mask=mask, other=float("-inf"))
            tl.store(beta + places, tl.exp(before + after + shift), mask=kept)
            tl.store(entering + places, enters + shift, mask=kept)
            tl.store(alpha + places, before, mask=kept)


@triton.jit
def finish_sample(
    scores, stride_n, stride_t, stride_c, n, part, input_lengths, num_frames, num_classes, transitions, common, shift,
    references, alpha, scales, beta, entering, losses, lost, extended, RELATIVE: tl.constexpr, GRADIENT: tl.constexpr,
    TO: tl.constexpr, FROM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``ROWS`` frames of a sample; of a lost one all by its first program."""
    status = tl.load(lost + n)
    if part == 0:
        tl.store(extended + n, status == LOST)
    if status == LOST:
        if part == 0:
            frames = tl.load(input_lengths + n).to(tl.int32)
            row, start = n * num_frames, n * stride_n
            _alpha(scores, start, stride_t, stride_c, row, frames, num_classes, transitions, alpha, TO, FROM)
            loss = -_log_total(alpha + (row + frames - 1) * num_classes, num_classes, FROM)
            if GRADIENT:
                _beta(
                    scores, start, stride_t, stride_c, row, frames, num_classes, transitions, beta, entering, TO, FROM
                )
                _combine(row, num_frames, frames, num_classes, loss, alpha, beta, entering, ROWS, BLOCK)
            if not RELATIVE:
                _, huge = in_common(references, tl.load(shift), row, frames, FROM)
                loss -= huge + (frames - 1) * tl.load(common)
            tl.store(losses + n, loss)
    elif GRADIENT:
        t = part * ROWS + tl.arange(0, ROWS)
        combine(n, t, input_lengths, losses, num_frames, num_classes, alpha, scales, beta, entering, ROWS, BLOCK)


@kernel
def finish(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, parts: tl.int32, input_lengths,
    num_frames: tl.int32, num_classes: tl.int32, transitions, common, shift, references, alpha, scales, beta, entering,
    losses, lost, extended, RELATIVE: tl.constexpr, GRADIENT: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Posteriors of ``parts`` of each sample where a GRADIENT is wanted, and all of the samples that are lost."""
    program = tl.program_id(0)
    finish_sample(
        scores, stride_n, stride_t, stride_c, (program // parts).to(tl.int64), program % parts, input_lengths,
        num_frames, num_classes, transitions, common, shift, references, alpha, scales, beta, entering, losses, lost,
        extended, RELATIVE, GRADIENT, TO, FROM, ROWS, BLOCK,
    )  # fmt: skip


@triton.jit
def count_linear_and_lost(
    grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, transitions, matrix, alpha, entering,
    extended, product, j, i, FACTOR: tl.constexpr, TIME: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """FACTOR * upstream * expected number of arcs from states ``i`` to ``j``: ``product`` times ``matrix``, and those
    of the samples that are lost; NaN where a sample with arcs is not defined.
    """
    mask, places = i < num_classes, j * num_classes + i
    arcs = tl.load(transitions + places, mask=mask, other=float("-inf"))
    total = tl.load(product + places, mask=mask, other=0.0) * tl.load(matrix + places, mask=mask, other=0.0)
    counts = tl.zeros([TIME, FROM], tl.float64)
    for n in range(num_samples):
        upstream, loss = tl.load(grad_losses + n).to(tl.float64), tl.load(losses + n)
        frames = tl.load(input_lengths + n).to(tl.int32)
        if (loss != loss) & (frames > 1) & (upstream != 0):
            total += float("nan")
        if tl.load(extended + n) & (loss < float("inf")) & (upstream != 0):
            for first in range(1, frames, TIME):
                t = first + tl.arange(0, TIME)
                rows = ((tl.zeros([], tl.int64) + n) * num_frames + t) * num_classes
                enters = tl.load(entering + rows + j, mask=t < frames, other=float("-inf"))[:, None]
                within = (t < frames)[:, None] & mask[None, :]
                before = tl.load(alpha + (rows - num_classes)[:, None] + i[None, :], mask=within, other=float("-inf"))
                counts += FACTOR * upstream * tl.exp(arcs[None, :] + enters + before)
    return total + tl.sum(counts, 0)


@kernel
def add_transition_gradient(
    grad_losses, input_lengths, losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, transitions,
    matrix, alpha, entering, extended, product, out, TIME: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """-upstream * expected number of arcs between two states. A program has arcs into one of them."""
    j, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * FROM + tl.arange(0, FROM)
    total = count_linear_and_lost(
        grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, transitions, matrix, alpha, entering,
        extended, product, j, i, -1.0, TIME, FROM,
    )  # fmt: skip
    tl.store(out + j * num_classes + i, total.to(out.dtype.element_ty), mask=i < num_classes)
