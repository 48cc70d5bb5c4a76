"""Grids on the GPU.

Forward is three kernels: rows (softmax statistics and the two score planes), the recursion, and the posteriors;
backward is one, rows again. Planes hold one word for each row of the scores, padded or packed as they are. Scores,
alpha and beta are float64 or its extended range for every input: beside the logits they are little.

The recursion is one launch: a program for alpha and one for beta of every sample. A program goes over anti-diagonals
t + u = d with a lane for each label position, so that what a node needs of the frame before is in its own lane's
registers, and what it needs of the label before is one lane away. A frame at a time, with a scan over u, would take
fewer steps but each of log2(U) exchanges, every one of which costs what a step along a diagonal costs: the scan can
win only where U is several times T. Grids wider than ``BLOCK`` are done in strips of it, a strip's left edge being read
back from the plane that the strip before it has written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import add, log, normalise, pack, plain, split, unpack
from pathsum.kernels.triton.rows import (
    columns_of,
    edge_columns,
    from_whole,
    in_pieces,
    locate,
    softmax_statistics,
    whole_pieces,
)


@triton.jit
def starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED: tl.constexpr):
    """Where the rows of scores begin; ``stride_u`` is that of the rows where they are packed."""
    if PACKED:
        return rows * stride_u
    else:
        return n * stride_n + t * stride_t + u * stride_u


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64, num_rows: tl.int64,
    logit_lengths, target_lengths, targets, row_offsets, num_samples: tl.int32, num_frames: tl.int32,
    num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, blank: tl.int32, maxima, sums, blank_scores,
    label_scores, undefined, LOGITS: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Softmax statistics and the log-probabilities of the arcs out of each node; samples with an undefined score."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    has_label = real & (u < labels)
    label = tl.load(targets + n * targets_width + u, mask=has_label, other=0).to(tl.int64)
    blank_score = tl.load(scores + starts + blank.to(tl.int64) * stride_v, mask=real, other=float("-inf"))
    label_score = tl.load(scores + starts + label * stride_v, mask=has_label, other=float("-inf"))
    blank_score, label_score = blank_score.to(tl.float64), label_score.to(tl.float64)
    defined = (blank_score < float("inf")) & (label_score < float("inf"))
    if LOGITS:
        maximum, total = softmax_statistics(
            scores, starts, stride_v, num_classes, real, WORK, BLOCK, ALIGNED, RAGGED=RAGGED
        )
        tl.store(maxima + rows, maximum, mask=real)
        tl.store(sums + rows, total, mask=real)
        defined = total == total
        # A row of nothing but -inf has no maximum to subtract; its scores stay -inf.
        reference = tl.where(maximum > float("-inf"), maximum, 0.0).to(tl.float64)
        log_sum = tl.log(tl.where(total > 0, total, 1.0))
        # The reference first: beside a huge one the logarithm would be lost.
        blank_score, label_score = blank_score - reference - log_sum, label_score - reference - log_sum
    tl.store(blank_scores + rows, blank_score, mask=real)
    tl.store(label_scores + rows, label_score, mask=real)
    # The same integer whoever comes first.
    tl.atomic_max(undefined + n, tl.full(n.shape, 1, tl.int32), mask=real & ~defined, sem="relaxed")


@triton.jit
def origin_and_width(n, frames, labels, row_offsets, num_frames, num_labels, PACKED: tl.constexpr):
    """The node (0, 0) of a sample, and how many nodes a frame has."""
    if PACKED:
        return tl.load(row_offsets + n), (labels + 1).to(tl.int64)
    else:
        return n.to(tl.int64) * num_frames * (num_labels + 1), (num_labels + 1).to(tl.int64)


@triton.jit
def _arc_scores(
    blank_scores, label_scores, corner, width, frames, labels, t, u, BACKWARDS: tl.constexpr
):  # fmt: skip
    """Scores of the two arcs that bring mass to each node; -inf where there is none, 0 where a path starts.

    They are kept where an arc leaves: at the node itself if the mass goes back, else at the one before.
    """
    inside = (t >= 0) & (t < frames) & (u <= labels)
    first = (t == 0) & (u == 0)
    if BACKWARDS:
        node = corner - t * width - u
        blank = tl.load(blank_scores + node, mask=inside & ((t > 0) | first), other=float("-inf"))
        label = tl.load(label_scores + node, mask=inside & (u > 0), other=float("-inf"))
    else:
        node = corner + t * width + u
        blank = tl.load(blank_scores + node - width, mask=inside & (t > 0), other=float("-inf"))
        blank = tl.where(first, 0.0, blank)
        label = tl.load(label_scores + node - 1, mask=inside & (u > 0), other=float("-inf"))
    return blank, label


@triton.jit
def _sweep(
    blank_scores, label_scores, mass, origin, width, frames, labels, BLOCK: tl.constexpr, BACKWARDS: tl.constexpr
):  # fmt: skip
    """Fill a plane of packed masses, alpha or with BACKWARDS beta; the mass and exponent of all paths.

    Beta is alpha of the grid turned around: t and u count from the corner where it starts.
    """
    lanes = tl.arange(0, BLOCK)
    corner = origin + ((frames - 1) * width + labels if BACKWARDS else 0)
    mantissa, exponent = unpack(tl.full([BLOCK], float("-inf"), tl.float64))
    for strip in range(0, labels + 1, BLOCK):
        # What an earlier strip has stored other threads read.
        barrier()
        u = strip + lanes
        word = tl.full([BLOCK], float("-inf"), tl.float64)
        mantissa, exponent = unpack(word)
        blank, label = _arc_scores(blank_scores, label_scores, corner, width, frames, labels, strip - u, u, BACKWARDS)
        for d in range(strip, frames + tl.minimum(strip + BLOCK - 1, labels)):
            # A diagonal ahead, so that no step waits for memory.
            blank_ahead, label_ahead = _arc_scores(
                blank_scores, label_scores, corner, width, frames, labels, d + 1 - u, u, BACKWARDS
            )
            t = d - u
            inside = (t >= 0) & (t < frames) & (u <= labels)
            node = corner - t * width - u if BACKWARDS else corner + t * width + u
            # The lane before, and for the first lane the strip before.
            beside = tl.gather(word, tl.maximum(lanes - 1, 0), 0)
            at_edge = inside & (lanes == 0) & (u > 0)
            edge = tl.load(mass + (node + 1 if BACKWARDS else node - 1), mask=at_edge, other=float("-inf"))
            other, other_exponent = unpack(tl.where(lanes == 0, edge, beside))

            weight, weight_exponent = split(blank)
            label_weight, label_exponent = split(label)
            first = (t == 0) & (u == 0)
            mantissa, exponent = tl.where(first, 1.0, mantissa), tl.where(first, 0, exponent)
            mantissa, exponent = add(
                mantissa * weight, exponent + weight_exponent, other * label_weight, other_exponent + label_exponent
            )
            word = pack(mantissa, exponent)
            tl.store(mass + node, word, mask=inside)
            blank, label = blank_ahead, label_ahead
    return mantissa, exponent


@kernel
def solve(
    blank_scores, label_scores, logit_lengths, target_lengths, row_offsets, num_frames: tl.int32, num_labels: tl.int32,
    undefined, at_least: tl.float64, alpha, beta, losses, totals, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta. No loss is below ``at_least``."""
    n = tl.program_id(0)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    origin, width = origin_and_width(n, frames, labels, row_offsets, num_frames, num_labels, PACKED)
    is_defined = (tl.load(undefined + n) == 0) & (frames >= 0)
    if tl.program_id(1) == 1:
        if is_defined & (frames > 0):
            _sweep(blank_scores, label_scores, beta, origin, width, frames, labels, BLOCK, True)
    else:
        loss = tl.where(is_defined, float("inf"), float("nan")).to(tl.float64)
        if is_defined & (frames > 0):
            mantissa, exponent = _sweep(blank_scores, label_scores, alpha, origin, width, frames, labels, BLOCK, False)
            final = tl.load(blank_scores + origin + (frames - 1) * width + labels)
            weight, weight_exponent = split(tl.full([BLOCK], 0.0, tl.float64) + final)
            mantissa, exponent = normalise(mantissa * weight, exponent + weight_exponent)
            is_last = tl.arange(0, BLOCK) == labels % BLOCK
            tl.store(totals + n, tl.max(tl.where(is_last, pack(mantissa, exponent), float("-inf")), 0))
            loss = -tl.max(tl.where(is_last, log(mantissa, exponent), float("-inf")), 0)
        tl.store(losses + n, tl.where(loss < at_least, at_least, loss))


@triton.jit
def _posteriors(
    blank_scores, label_scores, alpha, beta, losses, totals, num_rows, logit_lengths, target_lengths, row_offsets,
    num_samples, num_frames, num_labels, PACKED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows, their samples and nodes, whether they are nodes; scores and posteriors of their two arcs, which are 0 where
    there is no path and in padding.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    loss = tl.load(losses + n)
    possible = real & (loss < float("inf"))
    nothing = float("-inf")
    width = labels + 1 if PACKED else num_labels + 1
    before, before_exponent = unpack(tl.load(alpha + rows, mask=possible, other=nothing))
    total, total_exponent = unpack(tl.load(totals + n, mask=possible, other=0.0))
    ends = possible & (t == frames - 1) & (u == labels)
    # Behind the last frame all mass is at the end.
    after = tl.load(beta + rows + width, mask=possible & (t < frames - 1), other=nothing)
    after, after_exponent = unpack(tl.where(ends, 0.0, after))
    blank_score = tl.load(blank_scores + rows, mask=possible, other=nothing)
    weight, weight_exponent = split(blank_score)
    before = before / total
    before_exponent = before_exponent - total_exponent
    blank = plain(before * weight * after, before_exponent + weight_exponent + after_exponent)

    after, after_exponent = unpack(tl.load(beta + rows + 1, mask=possible & (u < labels), other=nothing))
    label_score = tl.load(label_scores + rows, mask=possible, other=nothing)
    weight, weight_exponent = split(label_score)
    label = plain(before * weight * after, before_exponent + weight_exponent + after_exponent)
    return rows, n, t, u, real, loss, blank_score, label_score, blank, label


@kernel
def find_posteriors(
    blank_scores, label_scores, alpha, beta, losses, totals, num_rows: tl.int64, logit_lengths, target_lengths,
    row_offsets, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write the posteriors of the arcs over their scores; 0 where there is no path and in padding."""
    rows, _, _, _, _, _, _, _, blank, label = _posteriors(
        blank_scores, label_scores, alpha, beta, losses, totals, num_rows, logit_lengths, target_lengths, row_offsets,
        num_samples, num_frames, num_labels, PACKED, ROWS,
    )  # fmt: skip
    tl.store(blank_scores + rows, blank, mask=rows < num_rows)
    tl.store(label_scores + rows, label, mask=rows < num_rows)


@kernel
def list_posteriors(
    blank_scores, label_scores, alpha, beta, losses, totals, num_rows: tl.int64, logit_lengths, target_lengths,
    row_offsets, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, nodes, blanks, labels,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Posteriors of the nodes and arcs of padded rows as a caller gets them: NaN where a sample is not defined."""
    rows, _, _, _, real, loss, _, _, blank, label = _posteriors(
        blank_scores, label_scores, alpha, beta, losses, totals, num_rows, logit_lengths, target_lengths, row_offsets,
        num_samples, num_frames, num_labels, False, ROWS,
    )  # fmt: skip
    undefined, within = real & (loss != loss), rows < num_rows
    blank = tl.where(undefined, float("nan"), blank).to(nodes.dtype.element_ty)
    label = tl.where(undefined, float("nan"), label).to(nodes.dtype.element_ty)
    tl.store(blanks + rows, blank, mask=within)
    tl.store(labels + rows, label, mask=within)
    tl.store(nodes + rows, blank + label, mask=within)


@triton.jit
def _expected(posterior, cost):
    """What an arc adds to an expectation, and its cost, 0 where it is on no path."""
    cost = tl.where(posterior > 0, cost, 0.0)
    return posterior * cost, cost


@kernel
def expect(
    blank_scores, label_scores, alpha, beta, losses, totals, num_rows: tl.int64, logit_lengths, target_lengths,
    row_offsets, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, costs, stride_n: tl.int64,
    stride_t: tl.int64, stride_u: tl.int64, stride_k: tl.int64, blank_costs, label_costs, expected, ROWS: tl.constexpr,
):  # fmt: skip
    """Of padded rows as ``find_posteriors``, what their arcs cost, 0 where they are on no path, and each node's share
    in the expected sum of ``costs`` (N, T, U+1, 2): a sample's shares add up to it, to NaN if it is not defined.

    Without ``costs`` they are minus the scores, and the sum, of the loss too, is the entropy of the paths.
    """
    rows, n, t, u, _, loss, blank_score, label_score, blank, label = _posteriors(
        blank_scores, label_scores, alpha, beta, losses, totals, num_rows, logit_lengths, target_lengths, row_offsets,
        num_samples, num_frames, num_labels, False, ROWS,
    )  # fmt: skip
    within, first = rows < num_rows, (t == 0) & (u == 0)
    others = tl.where(first & (loss != loss), loss, 0.0)
    if costs is None:
        blank_cost, label_cost = -blank_score, -label_score
        others = tl.where(first & (loss != float("inf")), -loss, 0.0)
    else:
        places = costs + n.to(tl.int64) * stride_n + t.to(tl.int64) * stride_t + u.to(tl.int64) * stride_u
        blank_cost = tl.load(places, mask=within & (blank > 0), other=0.0).to(tl.float64)
        label_cost = tl.load(places + stride_k, mask=within & (label > 0), other=0.0).to(tl.float64)
    of_blank, blank_cost = _expected(blank, blank_cost)
    of_label, label_cost = _expected(label, label_cost)
    tl.store(blank_costs + rows, blank_cost, mask=within)
    tl.store(label_costs + rows, label_cost, mask=within)
    tl.store(expected + rows, others + of_blank + of_label, mask=within)
    tl.store(blank_scores + rows, blank, mask=within)
    tl.store(label_scores + rows, label, mask=within)


@triton.jit
def _write_block(
    places, out, v, written, within, alive, possible, undefined, scale, maximum, blank, label, blank_posterior,
    label_posterior, upstream, clamp, LOGITS: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The gradient of classes ``v`` of rows."""
    gradient = tl.zeros((alive[:, None] & within).shape, WORK)
    if LOGITS:
        # A row without a posterior is not read.
        x = tl.load(places, mask=alive[:, None] & within, other=float("-inf")).to(WORK)
        gradient = scale[:, None] * tl.exp(x - maximum[:, None])
    gradient -= tl.where(v == blank, blank_posterior[:, None], 0.0)
    gradient -= tl.where(v == label[:, None], label_posterior[:, None], 0.0)
    if clamp > 0:
        bound = (tl.zeros([1, 1], tl.float64) + clamp).to(WORK)
        gradient = tl.minimum(tl.maximum(gradient, -bound), bound)
    gradient = tl.where(possible[:, None], upstream[:, None] * gradient, 0.0)
    gradient = tl.where(undefined[:, None], float("nan"), gradient)
    tl.store(out, gradient.to(out.dtype.element_ty), mask=written[:, None] & within)


@kernel
def write_gradient(
    grad_losses, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64,
    num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, num_samples: tl.int32,
    num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, blank: tl.int32,
    losses, maxima, sums, blank_posteriors, label_posteriors, fastemit_lambda: tl.float64, clamp: tl.float64, out,
    out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64, out_stride_v: tl.int64,
    LOGITS: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """upstream * clamp(occupancy * softmax - posterior of each class), padding included; out may be the scores."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
    if RAGGED or ALIGNED > 1:
        stride_v, out_stride_v = 1, 1
    loss = tl.load(losses + n)
    undefined = real & (loss != loss)
    possible = real & (loss < float("inf"))
    upstream = tl.load(grad_losses + n).to(WORK)
    blank_posterior = tl.load(blank_posteriors + rows, mask=possible, other=0.0)
    label_posterior = tl.load(label_posteriors + rows, mask=possible, other=0.0) * (1.0 + fastemit_lambda)
    label = tl.load(targets + n * targets_width + u, mask=possible & (u < labels), other=-1)
    occupancy = (blank_posterior + label_posterior).to(WORK)
    blank_posterior, label_posterior = blank_posterior.to(WORK), label_posterior.to(WORK)
    # Negative where posteriors are given that move.
    alive = possible & (occupancy != 0)
    scale = tl.zeros([ROWS], WORK)
    maximum = tl.zeros([ROWS], WORK)
    if LOGITS:
        total = tl.load(sums + rows, mask=alive, other=1.0)
        maximum = tl.load(maxima + rows, mask=alive, other=0.0)
        scale = tl.where(total > 0, occupancy / total, 0.0)
        # Of a row of nothing but -inf there is no softmax.
        alive = alive & (total > 0)
        maximum = tl.where(alive, maximum, 0.0)
    written = rows < num_rows
    head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
    origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
    out_origins = from_whole(out_starts, ALIGNED, RAGGED)[:, None]
    for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
        v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
        _write_block(
            scores + origins + place * stride_v, out + out_origins + place * out_stride_v, v, written, within, alive,
            possible, undefined, scale, maximum, blank, label, blank_posterior, label_posterior, upstream, clamp,
            LOGITS, WORK,
        )  # fmt: skip
    if RAGGED and ALIGNED > 1:
        v, within = edge_columns(head, body, num_classes, ALIGNED)
        _write_block(
            scores + starts[:, None] + v, out + out_starts[:, None] + v, v, written, within, alive, possible,
            undefined, scale, maximum, blank, label, blank_posterior, label_posterior, upstream, clamp, LOGITS, WORK,
        )  # fmt: skip


@kernel
def write_cost_gradient(
    grad_values, losses, blank_posteriors, label_posteriors, num_rows: tl.int64, logit_lengths, target_lengths,
    row_offsets, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, out, ROWS: tl.constexpr,
):  # fmt: skip
    """upstream * posterior of each arc of padded rows, (rows, 2); NaN where a sample is not defined."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, _, _, _, _, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, False
    )
    loss, upstream, within = tl.load(losses + n), tl.load(grad_values + n), rows < num_rows
    undefined = real & (loss != loss)
    for k in tl.static_range(2):
        posteriors = blank_posteriors if k == 0 else label_posteriors
        gradient = upstream * tl.load(posteriors + rows, mask=within, other=0.0)
        gradient = tl.where(undefined, float("nan"), gradient)
        tl.store(out + 2 * rows + k, gradient.to(out.dtype.element_ty), mask=within)
