"""Grids with arcs of several kinds on the GPU: planes of the arcs' scores in, losses and posteriors out.

Planes are (K, stride) in float64, the nodes packed at their beginning; ``ARCS`` has the (frames, labels) that each kind
goes on, and ``TERMS`` what its score is the sum of: plane, labels, plane, ..., each plane's so many labels on, of the
first none. As in ``grid`` two programs a sample go over anti-diagonals, in strips; but arcs come from several diagonals
back, so that masses are read from the plane that keeps them, which costs a barrier a diagonal. A grid of Graves' two
arcs goes through ``grid``.

``SKIPS``: how many frames before the end it is that the last frames may be left out to, -1 where none may.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import add, log, pack, plain, split, unpack
from pathsum.kernels.triton.rows import locate

NOTHING = tl.constexpr(float("-inf"))


@kernel
def mark_undefined(
    planes, stride: tl.int64, logit_lengths, target_lengths, row_offsets, num_samples: tl.int32, undefined,
    NUM_KINDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """undefined[n] = 1 where a score of the sample is NaN or +inf."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, _, _, _, _, real = locate(rows, stride, logit_lengths, target_lengths, row_offsets, num_samples, 1, 0, True)
    wrong = rows < 0
    for k in tl.static_range(NUM_KINDS):
        wrong = wrong | ~(tl.load(planes + k * stride + rows, mask=real, other=0.0) < float("inf"))
    # The same integer whoever comes first.
    tl.atomic_max(undefined + n, tl.full([ROWS], 1, tl.int32), mask=real & wrong, sem="relaxed")


@triton.jit
def _arc_score(planes, stride, node, leaves, u, labels, K: tl.constexpr, TERMS: tl.constexpr):
    """The score of an arc of one kind out of each node, of its terms; -inf where none leaves."""
    score = tl.load(planes + TERMS[K][0] * stride + node, mask=leaves, other=NOTHING)
    for i in tl.static_range(2, len(TERMS[K]), 2):
        term = planes + TERMS[K][i] * stride + node + TERMS[K][i + 1]
        # One label on is the next node; behind the last label there is none, and no arc that asks for it.
        score += tl.load(term, mask=leaves & (u + TERMS[K][i + 1] <= labels), other=NOTHING)
    return score


@triton.jit
def _number(word, where):
    """The extended-range number of a score's exponential, 0 elsewhere."""
    return split(tl.where(where, word, NOTHING))


@triton.jit
def _alpha(
    planes, stride, alpha, origin, frames, labels, skip_score, ARCS: tl.constexpr, TERMS: tl.constexpr,
    LABEL_ENDS: tl.constexpr, SKIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a plane of packed masses; that of all paths, and its logarithm."""
    lanes, width = tl.arange(0, BLOCK), (labels + 1).to(tl.int64)
    total, log_total = tl.zeros([], tl.float64) + NOTHING, tl.zeros([], tl.float64) + NOTHING
    for strip in range(0, labels + 1, BLOCK):
        u = strip + lanes
        skipped, skipped_exponent = unpack(tl.full([BLOCK], NOTHING, tl.float64))
        # The end is a node as well, behind the last frame.
        for d in range(strip, frames + 1 + tl.minimum(strip + BLOCK - 1, labels)):
            # What other threads have stored of earlier diagonals.
            barrier()
            t = d - u
            inside = (t >= 0) & (t < frames) & (u <= labels)
            is_end = (t == frames) & (u == labels)
            node = origin + t * width + u
            mantissa, exponent = _number(tl.zeros([BLOCK], tl.float64), (t == 0) & (u == 0))
            for k in tl.static_range(len(ARCS)):
                arrives = (inside | is_end) if LABEL_ENDS or ARCS[k][1] == 0 else inside
                arrives = arrives & (t >= ARCS[k][0]) & (t - ARCS[k][0] < frames) & (u >= ARCS[k][1])
                source = node - ARCS[k][0] * width - ARCS[k][1]
                other, other_exponent = unpack(tl.load(alpha + source, mask=arrives, other=NOTHING))
                score = _arc_score(planes, stride, source, arrives, u - ARCS[k][1], labels, k, TERMS)
                weight, weight_exponent = split(score)
                mantissa, exponent = add(mantissa, exponent, other * weight, other_exponent + weight_exponent)
            if SKIPS >= 0:
                skip, skip_exponent = _number(tl.zeros([BLOCK], tl.float64) + skip_score, inside & (u == 0) & (t > 0))
                mantissa, exponent = add(mantissa, exponent, skip, skip_exponent)
                lands = (u == labels) & (t == frames - SKIPS)
                mantissa, exponent = add(
                    mantissa, exponent, tl.where(lands, skipped, 0.0), tl.where(lands, skipped_exponent, exponent)
                )
                leaves = inside & (u == labels) & (t < frames - 1)
                skip, skip_exponent = _number(tl.zeros([BLOCK], tl.float64) + skip_score, leaves)
                skipped, skipped_exponent = add(skipped, skipped_exponent, mantissa * skip, exponent + skip_exponent)
            word = pack(mantissa, exponent)
            tl.store(alpha + node, word, mask=inside)
            total = tl.maximum(total, tl.max(tl.where(is_end, word, NOTHING), 0))
            log_total = tl.maximum(log_total, tl.max(tl.where(is_end, log(mantissa, exponent), NOTHING), 0))
    return total, log_total


@triton.jit
def _onwards(beta, node, width, t, u, frames, labels, leaves, FRAMES: tl.constexpr, LABELS: tl.constexpr, LABEL_ENDS):
    """Words of the mass behind an arc out of each node: its destination's, 1 at the end, 0 where there is none."""
    lands = leaves & (t + FRAMES < frames) & (u + LABELS <= labels)
    word = tl.load(beta + node + FRAMES * width + LABELS, mask=lands, other=NOTHING)
    ends = leaves & (t + FRAMES == frames) & (u + LABELS == labels)
    if LABEL_ENDS or LABELS == 0:
        word = tl.where(ends, 0.0, word)
    return word


@triton.jit
def _beta(
    planes, stride, beta, origin, frames, labels, skip_score, ARCS: tl.constexpr, TERMS: tl.constexpr,
    LABEL_ENDS: tl.constexpr, SKIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a plane of the masses that leave each node; what the first frames' skips bring is not among it."""
    lanes, width = tl.arange(0, BLOCK), (labels + 1).to(tl.int64)
    for strip in range(0, labels + 1, BLOCK):
        u = labels - strip - lanes
        # What a skip of the last frames leads to: the end, or the last node.
        rest = tl.full([BLOCK], 0.0 if SKIPS == 0 else NOTHING, tl.float64)
        for d in range(strip, frames + tl.minimum(strip + BLOCK - 1, labels)):
            barrier()
            t = frames - 1 - (d - strip - lanes)
            inside = (t >= 0) & (t < frames) & (u >= 0)
            node = origin + t * width + u
            mantissa, exponent = unpack(tl.full([BLOCK], NOTHING, tl.float64))
            for k in tl.static_range(len(ARCS)):
                word = _onwards(beta, node, width, t, u, frames, labels, inside, ARCS[k][0], ARCS[k][1], LABEL_ENDS)
                other, other_exponent = unpack(word)
                weight, weight_exponent = split(_arc_score(planes, stride, node, inside, u, labels, k, TERMS))
                mantissa, exponent = add(mantissa, exponent, other * weight, other_exponent + weight_exponent)
            if SKIPS >= 0:
                leaves = inside & (u == labels) & (t < frames - 1)
                skip, skip_exponent = _number(tl.zeros([BLOCK], tl.float64) + skip_score, leaves)
                other, other_exponent = unpack(rest)
                mantissa, exponent = add(mantissa, exponent, other * skip, other_exponent + skip_exponent)
            word = pack(mantissa, exponent)
            if SKIPS == 1:
                rest = tl.where((u == labels) & (t == frames - 1), word, rest)
            tl.store(beta + node, word, mask=inside)


@kernel
def solve(
    planes, stride: tl.int64, logit_lengths, target_lengths, row_offsets, undefined, skip_score: tl.float64,
    at_least: tl.float64, alpha, beta, losses, totals, ARCS: tl.constexpr, TERMS: tl.constexpr,
    LABEL_ENDS: tl.constexpr, SKIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta. No loss is below ``at_least``."""
    n = tl.program_id(0)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    origin = tl.load(row_offsets + n)
    is_defined = (tl.load(undefined + n) == 0) & (frames >= 0)
    if tl.program_id(1) == 1:
        if is_defined & (frames > 0):
            _beta(planes, stride, beta, origin, frames, labels, skip_score, ARCS, TERMS, LABEL_ENDS, SKIPS, BLOCK)
    else:
        loss = tl.where(is_defined, float("inf"), float("nan")).to(tl.float64)
        if is_defined & (frames > 0):
            total, log_total = _alpha(
                planes, stride, alpha, origin, frames, labels, skip_score, ARCS, TERMS, LABEL_ENDS, SKIPS, BLOCK
            )
            tl.store(totals + n, total)
            loss = -log_total
        tl.store(losses + n, tl.where(loss < at_least, at_least, loss))


@triton.jit
def _posterior(
    planes, stride, alpha, beta, node, t, u, frames, labels, possible, total, total_exponent, K: tl.constexpr,
    ARCS: tl.constexpr, TERMS: tl.constexpr, LABEL_ENDS: tl.constexpr,
):  # fmt: skip
    """The share of the paths that leave each node by an arc of one kind."""
    before, before_exponent = unpack(tl.load(alpha + node, mask=possible, other=NOTHING))
    before, before_exponent = before / total, before_exponent - total_exponent
    word = _onwards(beta, node, labels + 1, t, u, frames, labels, possible, ARCS[K][0], ARCS[K][1], LABEL_ENDS)
    after, after_exponent = unpack(word)
    weight, weight_exponent = split(_arc_score(planes, stride, node, possible, u, labels, K, TERMS))
    return plain(before * weight * after, before_exponent + weight_exponent + after_exponent)


@triton.jit
def _located(rows, stride, losses, logit_lengths, target_lengths, row_offsets, num_samples):
    """Of each node sample, place and lengths, whether paths may go through it, and NaN where a loss is, 0 elsewhere."""
    n, t, u, frames, labels, real = locate(
        rows, stride, logit_lengths, target_lengths, row_offsets, num_samples, 1, 0, True
    )
    loss = tl.load(losses + n)
    elsewhere = tl.where(real & (loss != loss), float("nan"), 0.0).to(tl.float64)
    return n, t, u, frames, labels, real & (loss < float("inf")), elsewhere


@kernel
def find_posteriors(
    planes, alpha, beta, losses, totals, stride: tl.int64, logit_lengths, target_lengths, row_offsets,
    num_samples: tl.int32, skip_score: tl.float64, posteriors, skips, ARCS: tl.constexpr, TERMS: tl.constexpr,
    LABEL_ENDS: tl.constexpr, SKIPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Posteriors of the arcs out of each node, and of the skips (2, stride) into and out of it; NaN where undefined."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, possible, elsewhere = _located(
        rows, stride, losses, logit_lengths, target_lengths, row_offsets, num_samples
    )
    total, total_exponent = unpack(tl.load(totals + n, mask=possible, other=0.0))
    for k in tl.static_range(len(ARCS)):
        posterior = _posterior(
            planes, stride, alpha, beta, rows, t, u, frames, labels, possible, total, total_exponent, k, ARCS, TERMS,
            LABEL_ENDS,
        )  # fmt: skip
        tl.store(posteriors + k * stride + rows, posterior + elsewhere, mask=rows < stride)
    if SKIPS >= 0:
        before, before_exponent = unpack(tl.load(alpha + rows, mask=possible, other=NOTHING))
        before, before_exponent = before / total, before_exponent - total_exponent
        skip, skip_exponent = split(tl.zeros([ROWS], tl.float64) + skip_score)
        entered = possible & (u == 0) & (t > 0)
        after, after_exponent = unpack(tl.load(beta + rows, mask=entered, other=NOTHING))
        posterior = plain(skip * after / total, skip_exponent + after_exponent - total_exponent)
        tl.store(skips + rows, posterior, mask=rows < stride)
        leaves = possible & (u == labels) & (t < frames - 1)
        word = tl.zeros([ROWS], tl.float64)
        if SKIPS == 1:
            last = rows + (frames - 1 - t) * (labels + 1)
            word = tl.load(beta + last, mask=leaves, other=NOTHING)
        after, after_exponent = unpack(tl.where(leaves, word, NOTHING))
        posterior = plain(before * skip * after, before_exponent + skip_exponent + after_exponent)
        tl.store(skips + stride + rows, posterior, mask=rows < stride)


@kernel
def differentiate(
    planes, alpha, beta, losses, totals, upstream, fastemit_lambda: tl.float64, stride: tl.int64, logit_lengths,
    target_lengths, row_offsets, num_samples: tl.int32, out, ARCS: tl.constexpr, TERMS: tl.constexpr,
    READ: tl.constexpr, NUM_PLANES: tl.constexpr, LABEL_ENDS: tl.constexpr, SOLVED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the losses by the planes that the arcs' scores were read from, ``READ`` the terms of these: minus
    the posteriors, those of labels 1 + lambda times, times ``upstream`` where that is given. NaN where undefined.

    ``SOLVED``: the planes hold posteriors of the arcs.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, possible, elsewhere = _located(
        rows, stride, losses, logit_lengths, target_lengths, row_offsets, num_samples
    )
    total, total_exponent = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.int64)
    if not SOLVED:
        total, total_exponent = unpack(tl.load(totals + n, mask=possible, other=0.0))
    weight = tl.zeros([ROWS], tl.float64) - 1.0
    if upstream is not None:
        weight = -tl.load(upstream + n, mask=possible, other=0.0).to(tl.float64)
    for p in tl.static_range(NUM_PLANES):
        gradient = tl.zeros([ROWS], tl.float64)
        for k in tl.static_range(len(ARCS)):
            for i in tl.static_range(0, len(READ[k]), 2):
                if READ[k][i] == p:
                    # A score is of the arc out of its own node, or of the node so many labels before.
                    back = READ[k][i + 1]
                    leaves = possible & (u >= back)
                    if SOLVED:
                        own = tl.load(planes + k * stride + rows - back, mask=leaves, other=0.0)
                    else:
                        own = _posterior(
                            planes, stride, alpha, beta, rows - back, t, u - back, frames, labels, leaves, total,
                            total_exponent, k, ARCS, TERMS, LABEL_ENDS,
                        )  # fmt: skip
                    gradient += own * (1.0 + fastemit_lambda if ARCS[k][1] else 1.0)
        tl.store(out + p * stride + rows, tl.where(possible, weight * gradient, 0.0) + elsewhere, mask=rows < stride)


@kernel
def expect(
    planes, alpha, beta, losses, totals, stride: tl.int64, logit_lengths, target_lengths, row_offsets,
    num_samples: tl.int32, costs, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_k: tl.int64,
    posteriors, arc_costs, expected, ARCS: tl.constexpr, TERMS: tl.constexpr, LABEL_ENDS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Posteriors of the arcs out of each node, what these cost, 0 where they are on no path, and the node's share in
    the expected sum of ``costs`` (N, T, U+1, K), or without any of minus the scores.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, possible, elsewhere = _located(
        rows, stride, losses, logit_lengths, target_lengths, row_offsets, num_samples
    )
    total, total_exponent = unpack(tl.load(totals + n, mask=possible, other=0.0))
    starts = n.to(tl.int64) * stride_n + t.to(tl.int64) * stride_t + u.to(tl.int64) * stride_u
    share = tl.zeros([ROWS], tl.float64)
    for k in tl.static_range(len(ARCS)):
        posterior = _posterior(
            planes, stride, alpha, beta, rows, t, u, frames, labels, possible, total, total_exponent, k, ARCS, TERMS,
            LABEL_ENDS,
        )  # fmt: skip
        taken = possible & (posterior > 0)
        if costs is None:
            cost = -_arc_score(planes, stride, rows, taken, u, labels, k, TERMS)
        else:
            cost = tl.load(costs + starts + k * stride_k, mask=taken, other=0.0).to(tl.float64)
        cost = tl.where(taken, cost, 0.0)
        share += posterior * cost
        tl.store(posteriors + k * stride + rows, posterior + elsewhere, mask=rows < stride)
        tl.store(arc_costs + k * stride + rows, cost, mask=rows < stride)
    tl.store(expected + rows, share, mask=rows < stride)


@kernel
def write_cost_gradient(
    grad_values, posteriors, stride: tl.int64, num_rows: tl.int64, logit_lengths, target_lengths, row_offsets,
    num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, out, KINDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """upstream * posterior of each arc, (rows, K) of padded rows."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, False
    )
    upstream, nodes = tl.load(grad_values + n), tl.load(row_offsets + n) + t * (labels + 1) + u
    for k in tl.static_range(KINDS):
        gradient = upstream * tl.load(posteriors + k * stride + nodes, mask=real, other=0.0)
        tl.store(out + rows * KINDS + k, gradient.to(out.dtype.element_ty), mask=rows < num_rows)
