"""Dense lattices on the GPU, in float64 logarithms: the samples that ``dense`` has lost.

An exponential for each pair of states and frame, and no limit to how far apart scores may be.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.dense import greatest_of_frame, load_scores
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


@kernel
def solve(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_frames: tl.int32,
    num_classes: tl.int32, transitions, alpha, beta, entering, losses, in_common, common, lost, out, final, extended,
    RELATIVE: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """As ``dense.solve``, of the samples that are lost, which ``extended`` says.

    ``out``: the losses of all samples; those that were given stay as they are, for the other program reads them.
    ``final``: the same with what they have in common, unless RELATIVE.
    """
    n = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + n).to(tl.int32)
    row, start = n * num_frames, n * stride_n
    loss = tl.load(losses + n)
    is_lost = (tl.load(lost + n) != 0) & (loss == loss)
    if tl.program_id(1) == 1:
        if is_lost:
            for behind in range(frames):
                t = frames - 1 - behind
                barrier()
                greatest, _ = greatest_of_frame(scores, start + t * stride_t, stride_c, num_classes, FROM)
                for first in range(0, num_classes, TO):
                    j = first + tl.arange(0, TO)
                    leaving = tl.zeros([TO], tl.float64)
                    places = (row + t) * num_classes + j
                    if behind > 0:
                        leaving = _log_sum(
                            transitions, entering + (row + t + 1) * num_classes, j, num_classes, 1, num_classes, TO,
                            FROM,
                        )  # fmt: skip
                    x = load_scores(scores, start + t * stride_t, stride_c, j, num_classes) - reference_of(greatest)
                    tl.store(beta + places, leaving, mask=j < num_classes)
                    tl.store(entering + places, x + leaving, mask=j < num_classes)
    else:
        if is_lost:
            for t in range(frames):
                barrier()
                greatest, _ = greatest_of_frame(scores, start + t * stride_t, stride_c, num_classes, FROM)
                for first in range(0, num_classes, TO):
                    j = first + tl.arange(0, TO)
                    arriving = tl.zeros([TO], tl.float64)
                    if t > 0:
                        arriving = _log_sum(
                            transitions, alpha + (row + t - 1) * num_classes, j, num_classes, num_classes, 1, TO, FROM
                        )
                    x = load_scores(scores, start + t * stride_t, stride_c, j, num_classes) - reference_of(greatest)
                    tl.store(alpha + (row + t) * num_classes + j, x + arriving, mask=j < num_classes)
            barrier()
            loss = -_log_total(alpha + (row + frames - 1) * num_classes, num_classes, FROM)
        tl.store(out + n, loss)
        tl.store(extended + n, tl.load(lost + n) != 0)
        if RELATIVE:
            tl.store(final + n, loss)
        else:
            tl.store(final + n, loss - (tl.load(in_common + n) + tl.maximum(frames - 1, 0) * tl.load(common)))


@kernel
def combine(
    input_lengths, losses, num_frames: tl.int32, num_classes: tl.int32, alpha, beta, entering, lost,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As ``dense.combine``, but that alpha and ``entering`` stay logarithms, the latter less the sample's log-sum."""
    row = tl.program_id(0).to(tl.int64)
    n, t = row // num_frames, row % num_frames
    if tl.load(lost + n) != 0:
        loss = tl.load(losses + n)
        possible = (t < tl.load(input_lengths + n)) & (loss < float("inf"))
        shift = tl.where(possible, loss, 0.0)
        for first in range(0, num_classes, BLOCK):
            c = first + tl.arange(0, BLOCK)
            mask, places = c < tl.where(possible, num_classes, 0), row * num_classes + c
            before = tl.load(alpha + places, mask=mask, other=float("-inf"))
            after = tl.load(beta + places, mask=mask, other=float("-inf"))
            enters = tl.load(entering + places, mask=mask, other=float("-inf"))
            tl.store(beta + places, tl.exp(before + after + shift), mask=c < num_classes)
            tl.store(entering + places, enters + shift, mask=c < num_classes)
            tl.store(alpha + places, before, mask=c < num_classes)


@kernel
def add_transition_gradient(
    grad_losses, input_lengths, losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, transitions,
    matrix, alpha, entering, extended, product, out, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """-upstream * expected number of arcs from i to j: ``product`` times ``matrix``, and those of the samples that are
    lost; NaN where a sample with arcs is not defined.
    """
    j, i = tl.program_id(0) * TO + tl.arange(0, TO), tl.program_id(1) * FROM + tl.arange(0, FROM)
    mask = (j < num_classes)[:, None] & (i < num_classes)[None, :]
    places = j.to(tl.int64)[:, None] * num_classes + i[None, :]
    arcs = tl.load(transitions + places, mask=mask, other=float("-inf")).to(tl.float64)
    total = tl.load(product + places, mask=mask, other=0.0) * tl.load(matrix + places, mask=mask, other=0.0)
    for n in range(num_samples):
        upstream, loss = tl.load(grad_losses + n).to(tl.float64), tl.load(losses + n)
        frames = tl.load(input_lengths + n).to(tl.int32)
        if (loss != loss) & (frames > 1) & (upstream != 0):
            total += float("nan")
        if tl.load(extended + n) & (loss < float("inf")) & (upstream != 0):
            for t in range(1, frames):
                row = (tl.zeros([], tl.int64) + n) * num_frames + t
                enters = tl.load(entering + row * num_classes + j, mask=j < num_classes, other=float("-inf"))
                before = tl.load(alpha + (row - 1) * num_classes + i, mask=i < num_classes, other=float("-inf"))
                total -= upstream * tl.exp(arcs + enters[:, None] + before[None, :])
    tl.store(out + places, total.to(out.dtype.element_ty), mask=mask)
