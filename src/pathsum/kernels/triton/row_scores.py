"""Rows of scores to planes on the GPU: log-probabilities of a few classes of each node, the log-softmax fused.

Classes are the same for all nodes, or ``LABEL``, each node's own label, which is -inf where none may be emitted. A
``lone`` class has no share in the softmax: its probability is the sigmoid of its score, and the others share the rest.
Programs go over the rows of the scores, padded or packed; planes have a word for each node, (K, nodes), packed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum import lattice
from pathsum.kernels.triton.compilation import kernel
from pathsum.kernels.triton.grid import starts_of
from pathsum.kernels.triton.rows import in_pieces, locate, softmax_mean, softmax_statistics

LABEL = tl.constexpr(lattice.LABEL)


@triton.jit
def _nodes(
    rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, num_samples,
    num_frames, num_labels, targets_width, PACKED: tl.constexpr,
):  # fmt: skip
    """Sample, frame and label position of each row, whether it is a node, which one, and its label or -1."""
    n, t, u, _, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
    )
    node = rows
    if not PACKED:
        node = tl.load(row_offsets + n) + t * (labels + 1) + u
    places, emits = n * targets_width + u, real & (u < labels)
    emits = emits & (tl.load(first_frames + places, mask=emits, other=0) <= t)
    emits = emits & (tl.load(last_frames + places, mask=emits, other=-1) >= t)
    return n, t, u, real, node, tl.load(targets + places, mask=emits, other=-1)


@triton.jit
def _column(classes, k, label):
    """The class that plane k reads of each row, -1 where it has none."""
    wanted = tl.load(classes + k).to(tl.int64)
    return tl.where(wanted == LABEL, label, wanted)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64, num_rows: tl.int64,
    logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, num_samples: tl.int32,
    num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, classes,
    num_planes: tl.int32, lone: tl.int32, num_nodes: tl.int64, maxima, sums, planes, LOGITS: tl.constexpr,
    LONE: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Softmax statistics and planes; of a row with an undefined score one entry at least is NaN or +inf."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, num_samples,
        num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    reference, log_sum = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if LOGITS:
        maximum, total = softmax_statistics(
            scores, starts, stride_v, num_classes, real, WORK, BLOCK, ALIGNED, lone, LONE
        )
        tl.store(maxima + node, maximum, mask=real)
        tl.store(sums + node, total, mask=real)
        # A row of nothing but -inf has no maximum to subtract; its scores stay -inf.
        reference = tl.where(maximum > float("-inf"), maximum, tl.where(total == total, 0.0, maximum)).to(tl.float64)
        log_sum = tl.log(tl.where(total > 0, total, 1.0))
        if LONE:
            alone = tl.load(scores + starts + lone.to(tl.int64) * stride_v, mask=real, other=0.0).to(tl.float64)
            log_sum -= tl.where(alone < float("inf"), _log_sigmoid(-alone), float("nan"))
    for k in range(num_planes):
        column = _column(classes, k, label)
        read = real & (column >= 0)
        x = tl.load(scores + starts + column * stride_v, mask=read, other=float("-inf")).to(tl.float64)
        # The reference first: beside a huge one the logarithm would be lost.
        score = x - reference - log_sum
        if LONE:
            by_itself = tl.where(x < float("inf"), _log_sigmoid(x), float("nan"))
            score = tl.where(column == lone, by_itself, score)
        tl.store(planes + k * num_nodes + node, score, mask=real)


@kernel
def write_gradient(
    grad_planes, upstream, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64,
    num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames,
    num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32,
    classes, num_planes: tl.int32, lone: tl.int32, num_nodes: tl.int64, maxima, sums, clamp: tl.float64, out,
    out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64, out_stride_v: tl.int64,
    LOGITS: tl.constexpr, LONE: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """upstream * clamp(the gradient of the planes with respect to the scores), padding included."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, num_samples,
        num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
    # The mass that the softmax spreads over its classes, and what the lone one has besides.
    mass, alone = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for k in range(num_planes):
        column = _column(classes, k, label)
        gradient = tl.load(grad_planes + k * num_nodes + node, mask=real & (column >= 0), other=0.0)
        is_lone = (column == lone) & (column >= 0)
        mass += tl.where(is_lone, 0.0, gradient)
        alone += tl.where(is_lone, gradient, 0.0)
    if LONE:
        logit = tl.load(scores + starts + lone.to(tl.int64) * stride_v, mask=real, other=0.0).to(tl.float64)
        alone = alone * _sigmoid(-logit) - mass * _sigmoid(logit)
    maximum, factor = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        total = tl.load(sums + node, mask=real, other=0.0)
        maximum = tl.load(maxima + node, mask=real, other=0.0)
        # Of a row of nothing but -inf there is no softmax.
        maximum = tl.where(total > 0, maximum, 0.0)
        factor = tl.where(total > 0, -mass.to(WORK) / tl.where(total > 0, total, 1.0), 0.0)
        factor = tl.where(mass == mass, factor, float("nan"))
    weight = tl.load(upstream + n, mask=real, other=0.0).to(WORK)
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, out_starts = in_pieces(starts, ALIGNED), in_pieces(out_starts, ALIGNED)
        stride_v, out_stride_v = 1, 1
    for first in range(0, num_classes, BLOCK):
        v = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        gradient = tl.zeros([ROWS, BLOCK], WORK)
        if LOGITS:
            read = real[:, None] & (v < num_classes)
            x = tl.load(scores + starts[:, None] + v * stride_v, mask=read, other=float("-inf")).to(WORK)
            gradient = factor[:, None] * tl.exp(x - maximum[:, None])
        for k in range(num_planes):
            column = _column(classes, k, label)
            own = tl.load(grad_planes + k * num_nodes + node, mask=real & (column >= 0), other=0.0).to(WORK)
            gradient += tl.where(v == column[:, None], own[:, None], 0.0)
        if LONE:
            gradient = tl.where(v == lone, alone.to(WORK)[:, None], gradient)
        if clamp > 0:
            bound = (tl.zeros([1, 1], tl.float64) + clamp).to(WORK)
            gradient = tl.where(gradient == gradient, tl.minimum(tl.maximum(gradient, -bound), bound), gradient)
        gradient = tl.where(real[:, None], weight[:, None] * gradient, 0.0)
        places = out + out_starts[:, None] + v * out_stride_v
        tl.store(places, gradient.to(out.dtype.element_ty), mask=(rows < num_rows)[:, None] & (v < num_classes))


@kernel
def write_product(
    tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_u: tl.int64,
    tangent_stride_v: tl.int64, grad_planes, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64,
    stride_v: tl.int64, num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, first_frames,
    last_frames, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32,
    num_classes: tl.int32, classes, num_planes: tl.int32, lone: tl.int32, num_nodes: tl.int64, maxima, sums, slopes,
    out, out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64, out_stride_v: tl.int64,
    LOGITS: tl.constexpr, LONE: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The derivatives of <tangent, gradient>: ``slopes`` (K, nodes) with respect to the planes' gradients, and with
    respect to the scores, padding included.

        slope of class c = v[c] - <softmax, v>      product = -mass * softmax * (v - <softmax, v>)
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, num_samples,
        num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    moved = starts_of(n, t, u, rows, tangent_stride_n, tangent_stride_t, tangent_stride_u, PACKED)
    out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, moved = in_pieces(starts, ALIGNED), in_pieces(moved, ALIGNED)
        out_starts = in_pieces(out_starts, ALIGNED)
        stride_v, tangent_stride_v, out_stride_v = 1, 1, 1
    maximum, share, mean = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        total = tl.load(sums + node, mask=real, other=0.0)
        share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        maximum = tl.where(total > 0, tl.load(maxima + node, mask=real, other=0.0), 0.0)
        mean = share * softmax_mean(
            scores, starts, stride_v, tangent, moved, tangent_stride_v, num_classes, maximum, real, WORK, BLOCK,
            ALIGNED, lone, LONE,
        )  # fmt: skip
    probability, alone_cost = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if LONE:
        logit = tl.load(scores + starts + lone.to(tl.int64) * stride_v, mask=real, other=0.0).to(tl.float64)
        probability = _sigmoid(logit)
        place = tangent + moved + lone.to(tl.int64) * tangent_stride_v
        alone_cost = tl.load(place, mask=real, other=0.0).to(tl.float64)
    mass, alone = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for k in range(num_planes):
        column = _column(classes, k, label)
        read = real & (column >= 0)
        cost = tl.load(tangent + moved + column * tangent_stride_v, mask=read, other=0.0).to(tl.float64)
        gradient = tl.load(grad_planes + k * num_nodes + node, mask=read, other=0.0)
        is_lone = (column == lone) & (column >= 0)
        mass += tl.where(is_lone, 0.0, gradient)
        alone += tl.where(is_lone, gradient, 0.0)
        slope = tl.where(is_lone, (1.0 - probability) * cost, cost - mean - probability * alone_cost)
        tl.store(slopes + k * num_nodes + node, tl.where(read, slope, 0.0), mask=real)
    alone = -(mass + alone) * probability * (1.0 - probability) * alone_cost
    factor = -mass.to(WORK) * share
    for first in range(0, num_classes, BLOCK):
        v = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        product = tl.zeros([ROWS, BLOCK], WORK)
        if LOGITS:
            read = real[:, None] & (v < num_classes)
            x = tl.load(scores + starts[:, None] + v * stride_v, mask=read, other=float("-inf")).to(WORK)
            cost = tl.load(tangent + moved[:, None] + v * tangent_stride_v, mask=read, other=0.0).to(WORK)
            product = factor[:, None] * tl.exp(x - maximum[:, None]) * (cost - mean[:, None])
        if LONE:
            product = tl.where(v == lone, alone.to(WORK)[:, None], product)
        product = tl.where(real[:, None], product, 0.0)
        places = out + out_starts[:, None] + v * out_stride_v
        tl.store(places, product.to(out.dtype.element_ty), mask=(rows < num_rows)[:, None] & (v < num_classes))
