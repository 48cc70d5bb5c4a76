"""Second derivatives of grids on the GPU.

Along a tangent of the scores an arc costs v[class] - <softmax, v>, and its posterior moves by itself times

    mean cost before its source + cost + mean cost after its destination - mean cost

of the paths through it, means that are weighted by posteriors: no exponents are needed and, in float64, no digits lost.

Four kernels: rows (what arcs cost), two sweeps over the nodes by two programs a sample at the same time, by
anti-diagonals as in ``grid``, how the posteriors move, and rows again, where the product is written once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.grid import origin_and_width, starts_of
from pathsum.kernels.triton.rows import (
    columns_of,
    edge_columns,
    from_whole,
    in_pieces,
    locate,
    softmax_mean,
    whole_pieces,
)


@kernel
def gather_tangents(
    tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_u: tl.int64,
    tangent_stride_v: tl.int64, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64,
    num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, num_samples: tl.int32,
    num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, blank: tl.int32,
    maxima, sums, blank_posteriors, label_posteriors, means, blank_costs, label_costs, LOGITS: tl.constexpr,
    PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """What the two arcs out of each node cost, and of each row the mean tangent under its softmax."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    # What no path passes has no part in the product, and may have no softmax.
    occupancy = tl.load(blank_posteriors + rows, mask=real, other=0.0)
    occupancy += tl.load(label_posteriors + rows, mask=real, other=0.0)
    alive = real & (occupancy > 0)
    moved = starts_of(n, t, u, rows, tangent_stride_n, tangent_stride_t, tangent_stride_u, PACKED)
    has_label = alive & (u < labels)
    label = tl.load(targets + n * targets_width + u, mask=has_label, other=0).to(tl.int64)
    blank_cost = tl.load(tangent + moved + blank.to(tl.int64) * tangent_stride_v, mask=alive, other=0.0).to(tl.float64)
    label_cost = tl.load(tangent + moved + label * tangent_stride_v, mask=has_label, other=0.0).to(tl.float64)
    if LOGITS:
        starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
        maximum = tl.load(maxima + rows, mask=alive, other=0.0)
        mean = softmax_mean(
            scores, starts, stride_v, tangent, moved, tangent_stride_v, num_classes, maximum, alive, WORK, BLOCK,
            ALIGNED, RAGGED=RAGGED,
        ) / tl.load(sums + rows, mask=alive, other=1.0)  # fmt: skip
        tl.store(means + rows, mean, mask=real)
        blank_cost -= mean
        label_cost = tl.where(has_label, label_cost - mean, 0.0)
    tl.store(blank_costs + rows, blank_cost, mask=real)
    tl.store(label_costs + rows, label_cost, mask=real)


@triton.jit
def _arcs(
    blank_posteriors, label_posteriors, blank_costs, label_costs, corner, width, frames, labels, t, u,
    BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Shares of the two arcs that bring a mean to each node, 0 where there is none, and what they cost themselves.

    They are kept where an arc leaves: at the node itself if the mean goes back, else at the one before.
    """
    inside = (t >= 0) & (t < frames) & (u <= labels)
    if BACKWARDS:
        by_blank = corner - t * width - u
        by_label, has_blank, has_label = by_blank, inside, inside
    else:
        by_blank = corner + (t - 1) * width + u
        by_label, has_blank, has_label = by_blank + width - 1, inside & (t > 0), inside & (u > 0)
    blank = tl.load(blank_posteriors + by_blank, mask=has_blank, other=0.0)
    label = tl.load(label_posteriors + by_label, mask=has_label, other=0.0)
    mass = blank + label
    share = 1.0 / tl.where(mass > 0, mass, 1.0)
    blank_cost = tl.load(blank_costs + by_blank, mask=has_blank, other=0.0)
    label_cost = tl.load(label_costs + by_label, mask=has_label, other=0.0)
    return blank * share, label * share, blank_cost, label_cost


@triton.jit
def _sweep(
    blank_posteriors, label_posteriors, blank_costs, label_costs, means, origin, width, frames, labels,
    BLOCK: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Fill a plane of mean costs, of the paths up to each node or with BACKWARDS from it on; those of the last strip.

    Nodes are gone through as by ``grid.solve``.
    """
    lanes = tl.arange(0, BLOCK)
    corner = origin + ((frames - 1) * width + labels if BACKWARDS else 0)
    mean = tl.zeros([BLOCK], tl.float64)
    for strip in range(0, labels + 1, BLOCK):
        # What an earlier strip has stored other threads read.
        barrier()
        u = strip + lanes
        mean = tl.zeros([BLOCK], tl.float64)
        blank, label, blank_cost, label_cost = _arcs(
            blank_posteriors, label_posteriors, blank_costs, label_costs, corner, width, frames, labels, strip - u, u,
            BACKWARDS,
        )  # fmt: skip
        for d in range(strip, frames + tl.minimum(strip + BLOCK - 1, labels)):
            # A diagonal ahead, so that no step waits for memory.
            blank_ahead, label_ahead, blank_cost_ahead, label_cost_ahead = _arcs(
                blank_posteriors, label_posteriors, blank_costs, label_costs, corner, width, frames, labels, d + 1 - u,
                u, BACKWARDS,
            )  # fmt: skip
            t = d - u
            inside = (t >= 0) & (t < frames) & (u <= labels)
            node = corner - t * width - u if BACKWARDS else corner + t * width + u
            # The lane before, and for the first lane the strip before.
            beside = tl.gather(mean, tl.maximum(lanes - 1, 0), 0)
            at_edge = inside & (lanes == 0) & (u > 0)
            edge = tl.load(means + (node + 1 if BACKWARDS else node - 1), mask=at_edge, other=0.0)
            other = tl.where(lanes == 0, edge, beside)
            mean = blank * (mean + blank_cost) + label * (other + label_cost)
            tl.store(means + node, mean, mask=inside)
            blank, label, blank_cost, label_cost = blank_ahead, label_ahead, blank_cost_ahead, label_cost_ahead
    return mean


@kernel
def solve(
    blank_posteriors, label_posteriors, blank_costs, label_costs, losses, logit_lengths, target_lengths, row_offsets,
    num_frames: tl.int32, num_labels: tl.int32, before, after, costs, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths up to each node, and of all of a sample, or, by its second program, from each node on."""
    n = tl.program_id(0)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    origin, width = origin_and_width(n, frames, labels, row_offsets, num_frames, num_labels, PACKED)
    loss = tl.load(losses + n)
    possible = loss < float("inf")
    if tl.program_id(1) == 1:
        if possible:
            _sweep(
                blank_posteriors, label_posteriors, blank_costs, label_costs, after, origin, width, frames, labels,
                BLOCK, True,
            )  # fmt: skip
    else:
        cost = tl.where(loss == loss, 0.0, float("nan")).to(tl.float64)
        if possible:
            mean = _sweep(
                blank_posteriors, label_posteriors, blank_costs, label_costs, before, origin, width, frames, labels,
                BLOCK, False,
            )  # fmt: skip
            is_last = tl.arange(0, BLOCK) == labels % BLOCK
            cost = tl.sum(tl.where(is_last, mean, 0.0), 0)
            cost += tl.load(blank_costs + origin + (frames - 1) * width + labels)
        tl.store(costs + n, cost)


@kernel
def move_posteriors(
    blank_posteriors, label_posteriors, losses, before, after, costs, num_rows: tl.int64, logit_lengths, target_lengths,
    row_offsets, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, blank_costs, label_costs,
    moved_blank, moved_label, PACKED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """How the posteriors of arcs move, which may be written over what they cost; 0 where there is no path and in
    padding.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    possible = real & (tl.load(losses + n) < float("inf"))
    passed = tl.load(before + rows, mask=possible, other=0.0) - tl.load(costs + n, mask=possible, other=0.0)
    width = labels + 1 if PACKED else num_labels + 1
    # Behind the last frame is the end.
    left = tl.load(after + rows + width, mask=possible & (t < frames - 1), other=0.0)
    left += tl.load(blank_costs + rows, mask=possible, other=0.0)
    posterior = tl.load(blank_posteriors + rows, mask=possible, other=0.0)
    tl.store(moved_blank + rows, posterior * (passed + left), mask=rows < num_rows)
    left = tl.load(after + rows + 1, mask=possible & (u < labels), other=0.0)
    left += tl.load(label_costs + rows, mask=possible, other=0.0)
    posterior = tl.load(label_posteriors + rows, mask=possible, other=0.0)
    tl.store(moved_label + rows, posterior * (passed + left), mask=rows < num_rows)


@triton.jit
def _write_block(
    places, moved, out, v, written, within, alive, undefined, scale, maximum, mean, occupancy, total_tangent, blank,
    label, blank_tangent, label_tangent, upstream, LOGITS: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The product's part of classes ``v`` of rows."""
    product = tl.zeros((alive[:, None] & within).shape, WORK)
    if LOGITS:
        x = tl.load(places, mask=alive[:, None] & within, other=float("-inf")).to(WORK)
        cost = tl.load(moved, mask=alive[:, None] & within, other=0.0).to(WORK)
        slope = total_tangent[:, None] + occupancy[:, None] * (cost - mean[:, None])
        product = scale[:, None] * tl.exp(x - maximum[:, None]) * slope
    product -= tl.where(v == blank, blank_tangent[:, None], 0.0)
    product -= tl.where(v == label[:, None], label_tangent[:, None], 0.0)
    product = tl.where(alive[:, None], upstream[:, None] * product, 0.0)
    product = tl.where(undefined[:, None], float("nan"), product)
    tl.store(out, product.to(out.dtype.element_ty), mask=written[:, None] & within)


@kernel
def write_product(
    grad_losses, tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_u: tl.int64,
    tangent_stride_v: tl.int64, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64,
    num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, num_samples: tl.int32,
    num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, blank: tl.int32,
    losses, maxima, sums, blank_posteriors, label_posteriors, means, blank_tangents, label_tangents, out,
    out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64, out_stride_v: tl.int64,
    LOGITS: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """upstream * the tangent of (occupancy * softmax - posterior of each class), padding included."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    loss, upstream = tl.load(losses + n), tl.load(grad_losses + n).to(WORK)
    undefined = real & (loss != loss)
    occupancy = tl.load(blank_posteriors + rows, mask=real, other=0.0)
    occupancy = (occupancy + tl.load(label_posteriors + rows, mask=real, other=0.0)).to(WORK)
    alive = real & (loss < float("inf")) & (occupancy > 0)
    blank_tangent = tl.load(blank_tangents + rows, mask=real, other=0.0).to(WORK)
    label_tangent = tl.load(label_tangents + rows, mask=real, other=0.0).to(WORK)
    # Masked by what is alive, Triton 3.7 fails to compile it for some widths.
    label = tl.load(targets + n * targets_width + u, mask=real & (u < labels), other=-1)
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    moved = starts_of(n, t, u, rows, tangent_stride_n, tangent_stride_t, tangent_stride_u, PACKED)
    out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
    if RAGGED or ALIGNED > 1:
        stride_v, tangent_stride_v, out_stride_v = 1, 1, 1
    maximum, scale, mean = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=alive, other=0.0)
        scale = 1.0 / tl.load(sums + rows, mask=alive, other=1.0)
        mean = tl.load(means + rows, mask=alive, other=0.0)
    written, total_tangent = rows < num_rows, blank_tangent + label_tangent
    head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
    origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
    moved_origins = from_whole(moved, ALIGNED, RAGGED)[:, None]
    out_origins = from_whole(out_starts, ALIGNED, RAGGED)[:, None]
    for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
        v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
        _write_block(
            scores + origins + place * stride_v, tangent + moved_origins + place * tangent_stride_v,
            out + out_origins + place * out_stride_v, v, written, within, alive, undefined, scale, maximum, mean,
            occupancy, total_tangent, blank, label, blank_tangent, label_tangent, upstream, LOGITS, WORK,
        )  # fmt: skip
    if RAGGED and ALIGNED > 1:
        v, within = edge_columns(head, body, num_classes, ALIGNED)
        _write_block(
            scores + starts[:, None] + v, tangent + moved[:, None] + v, out + out_starts[:, None] + v, v, written,
            within, alive, undefined, scale, maximum, mean, occupancy, total_tangent, blank, label, blank_tangent,
            label_tangent, upstream, LOGITS, WORK,
        )  # fmt: skip
