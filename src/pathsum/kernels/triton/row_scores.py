"""Rows of scores to planes on the GPU: log-probabilities of a few classes of each node, the log-softmax fused.

``CLASSES`` are the same for all nodes, or ``LABEL``, each node's own label, which is -inf where none may be emitted. A
``lone`` class has no share in the softmax: its probability is the sigmoid of its score, and the others share the rest.
Programs go over the rows of the scores, padded or packed; planes have a word for each node, (K, nodes), packed.

Scores may be a tile of a joiner's logits: rows of some nodes, ``begin`` the first of them, or its place in a list of
them. Then they lack the ``bias`` of each class, and softmax statistics are the tile's own: a product of other rows
rounds its logits otherwise, and a softmax by the statistics of other logits does not sum to 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum import lattice
from pathsum.kernels.triton.compilation import kernel
from pathsum.kernels.triton.grid import starts_of
from pathsum.kernels.triton.rows import (
    NOWHERE,
    columns_of,
    edge_columns,
    from_whole,
    in_pieces,
    locate,
    nodes_of_tile,
    read_scores,
    softmax_mean,
    softmax_statistics,
    whole_pieces,
)

LABEL = tl.constexpr(lattice.LABEL)


@triton.jit
def _nodes(
    rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, listed, begin,
    count, num_samples, num_frames, num_labels, targets_width, PACKED: tl.constexpr,
):  # fmt: skip
    """Sample, frame and label position of each row, its sample's frames, whether it is a node, which one, and its label
    or -1.
    """
    if PACKED:
        node = nodes_of_tile(rows, num_rows, listed, begin, count)
        n, t, u, frames, labels, real = locate(
            node, NOWHERE, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
        )
    else:
        n, t, u, frames, labels, real = locate(
            rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels, PACKED
        )
        node = tl.load(row_offsets + n) + t * (labels + 1) + u
    places, emits = n * targets_width + u, real & (u < labels)
    emits = emits & (tl.load(first_frames + places, mask=emits, other=0) <= t)
    emits = emits & (tl.load(last_frames + places, mask=emits, other=-1) >= t)
    return n, t, u, frames, real, node, tl.load(targets + places, mask=emits, other=-1)


@triton.jit
def _column(CLASS: tl.constexpr, label):
    """The class that a plane reads of each row, -1 where it has none."""
    return label if CLASS == LABEL else tl.zeros_like(label) + CLASS


@triton.jit
def _score(places, column, read, bias, other):
    """In float64 the score of a class of each row."""
    x = tl.load(places, mask=read, other=other).to(tl.float64)
    if bias is not None:
        x += tl.load(bias + tl.where(read, column, 0), mask=read, other=0.0)
    return x


@triton.jit
def _share(grad_planes, stride, factors, k, node, read):
    """What plane k adds to the gradient of its class."""
    own = tl.load(grad_planes + k * stride + node, mask=read, other=0.0)
    if factors is not None:
        own *= tl.load(factors + k)
    return own


@triton.jit
def _weight(upstream, n, real, WORK: tl.constexpr):
    """What multiplies the gradient of each row: 1 where nothing is given."""
    if upstream is None:
        return tl.zeros(n.shape, WORK) + 1.0
    else:
        return tl.load(upstream + n, mask=real, other=0.0).to(WORK)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64, stride_v: tl.int64, num_rows: tl.int64,
    logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, listed, begin: tl.int64, count,
    num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32,
    lone: tl.int32, stride: tl.int64, bias, maxima, sums, sigma: tl.float64, delay: tl.float64, undefined, planes,
    CLASSES: tl.constexpr, LOGITS: tl.constexpr, LONE: tl.constexpr, PACKED: tl.constexpr, WORK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Softmax statistics and planes; of a row with an undefined score one entry at least is NaN or +inf.

    ``sigma`` is taken from every plane, and ``delay`` for each frame behind the middle one from those of labels.
    ``undefined[n]`` = 1 where such a row is of the sample.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, listed, begin,
        count, num_samples, num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    reference, log_sum = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if LOGITS:
        maximum, total = softmax_statistics(
            scores, starts, stride_v, num_classes, real, WORK, BLOCK, ALIGNED, lone, LONE, bias, RAGGED
        )
        if maxima is not None:
            tl.store(maxima + node, maximum, mask=real)
            tl.store(sums + node, total, mask=real)
        # A row of nothing but -inf has no maximum to subtract; its scores stay -inf.
        reference = tl.where(maximum > float("-inf"), maximum, tl.where(total == total, 0.0, maximum)).to(tl.float64)
        log_sum = tl.log(tl.where(total > 0, total, 1.0))
        if LONE:
            alone = _score(scores + starts + lone.to(tl.int64) * stride_v, lone, real, bias, 0.0)
            log_sum -= tl.where(alone < float("inf"), _log_sigmoid(-alone), float("nan"))
    wrong = rows < 0
    for k in tl.static_range(len(CLASSES)):
        column = _column(CLASSES[k], label)
        x = _score(scores + starts + column * stride_v, column, real & (column >= 0), bias, float("-inf"))
        # The reference first: beside a huge one the logarithm would be lost.
        score = x - reference - log_sum
        if LONE:
            by_itself = tl.where(x < float("inf"), _log_sigmoid(x), float("nan"))
            score = tl.where(column == lone, by_itself, score)
        score -= sigma
        if CLASSES[k] == LABEL:
            score += delay * 0.5 * (frames - 1 - 2 * t).to(tl.float64)
        wrong = wrong | ~(score < float("inf"))
        tl.store(planes + k * stride + node, score, mask=real)
    if undefined is not None:
        # The same integer whoever comes first.
        tl.atomic_max(undefined + n, tl.full([ROWS], 1, tl.int32), mask=real & wrong, sem="relaxed")


@triton.jit
def _statistics(
    scores, starts, stride_v, num_classes, real, node, maxima, sums, bias, lone, LONE: tl.constexpr, WORK: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """The maximum and the sum of a row's softmax, 0 where there is none: of nothing but -inf."""
    if maxima is None:
        maximum, total = softmax_statistics(
            scores, starts, stride_v, num_classes, real, WORK, BLOCK, ALIGNED, lone, LONE, bias, RAGGED
        )
    else:
        maximum = tl.load(maxima + node, mask=real, other=0.0)
        total = tl.load(sums + node, mask=real, other=0.0)
    return tl.where(total > 0, maximum, 0.0), total


@triton.jit
def _write_block(
    places, out, v, real, written, within, label, node, grad_planes, stride, factors, bias, factor, maximum, weight,
    lone, alone, clamp, CLASSES: tl.constexpr, LOGITS: tl.constexpr, LONE: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The gradient of classes ``v`` of rows."""
    gradient = tl.zeros((real[:, None] & within).shape, WORK)
    if LOGITS:
        x = read_scores(places, v, real, within, bias, WORK)
        gradient = factor[:, None] * tl.exp(x - maximum[:, None])
    for k in tl.static_range(len(CLASSES)):
        column = _column(CLASSES[k], label)
        own = _share(grad_planes, stride, factors, k, node, real & (column >= 0)).to(WORK)
        gradient += tl.where(v == column[:, None], own[:, None], 0.0)
    if LONE:
        gradient = tl.where(v == lone, alone.to(WORK)[:, None], gradient)
    if clamp > 0:
        bound = (tl.zeros([1, 1], tl.float64) + clamp).to(WORK)
        gradient = tl.where(gradient == gradient, tl.minimum(tl.maximum(gradient, -bound), bound), gradient)
    gradient = tl.where(real[:, None], weight[:, None] * gradient, 0.0)
    tl.store(out, gradient.to(out.dtype.element_ty), mask=written[:, None] & within)


@kernel
def write_gradient(
    grad_planes, factors, upstream, scores, stride_n: tl.int64, stride_t: tl.int64, stride_u: tl.int64,
    stride_v: tl.int64, num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets, first_frames,
    last_frames, listed, begin: tl.int64, count, num_samples: tl.int32, num_frames: tl.int32, num_labels: tl.int32,
    targets_width: tl.int32, num_classes: tl.int32, lone: tl.int32, stride: tl.int64, bias, maxima, sums,
    clamp: tl.float64, out, out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64,
    out_stride_v: tl.int64, CLASSES: tl.constexpr, LOGITS: tl.constexpr, LONE: tl.constexpr, PACKED: tl.constexpr,
    WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """upstream * clamp(the gradient of the planes with respect to the scores), padding included; out may be these."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, listed, begin,
        count, num_samples, num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
    # The mass that the softmax spreads over its classes, and what the lone one has besides.
    mass, alone = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for k in tl.static_range(len(CLASSES)):
        column = _column(CLASSES[k], label)
        gradient = _share(grad_planes, stride, factors, k, node, real & (column >= 0))
        is_lone = (column == lone) & (column >= 0)
        mass += tl.where(is_lone, 0.0, gradient)
        alone += tl.where(is_lone, gradient, 0.0)
    if LONE:
        logit = _score(scores + starts + lone.to(tl.int64) * stride_v, lone, real, bias, 0.0)
        alone = alone * _sigmoid(-logit) - mass * _sigmoid(logit)
    maximum, factor = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum, total = _statistics(
            scores, starts, stride_v, num_classes, real, node, maxima, sums, bias, lone, LONE, WORK, BLOCK, ALIGNED,
            RAGGED,
        )  # fmt: skip
        factor = tl.where(total > 0, -mass.to(WORK) / tl.where(total > 0, total, 1.0), 0.0).to(WORK)
        factor = tl.where(mass == mass, factor, float("nan"))
    weight, written = _weight(upstream, n, real, WORK), rows < num_rows
    if RAGGED or ALIGNED > 1:
        stride_v, out_stride_v = 1, 1
    head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
    origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
    out_origins = from_whole(out_starts, ALIGNED, RAGGED)[:, None]
    for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
        v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
        _write_block(
            scores + origins + place * stride_v, out + out_origins + place * out_stride_v, v, real, written, within,
            label, node, grad_planes, stride, factors, bias, factor, maximum, weight, lone, alone, clamp, CLASSES,
            LOGITS, LONE, WORK,
        )  # fmt: skip
    if RAGGED and ALIGNED > 1:
        v, within = edge_columns(head, body, num_classes, ALIGNED)
        _write_block(
            scores + starts[:, None] + v, out + out_starts[:, None] + v, v, real, written, within, label, node,
            grad_planes, stride, factors, bias, factor, maximum, weight, lone, alone, clamp, CLASSES, LOGITS, LONE,
            WORK,
        )  # fmt: skip


@triton.jit
def _write_product_block(
    places, moved, out, v, real, written, within, bias, factor, maximum, mean, weight, lone, alone,
    LOGITS: tl.constexpr, LONE: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The product's part of classes ``v`` of rows."""
    product = tl.zeros((real[:, None] & within).shape, WORK)
    if LOGITS:
        x = read_scores(places, v, real, within, bias, WORK)
        cost = tl.load(moved, mask=real[:, None] & within, other=0.0).to(WORK)
        product = factor[:, None] * tl.exp(x - maximum[:, None]) * (cost - mean[:, None])
    if LONE:
        product = tl.where(v == lone, alone.to(WORK)[:, None], product)
    product = tl.where(real[:, None], weight[:, None] * product, 0.0)
    tl.store(out, product.to(out.dtype.element_ty), mask=written[:, None] & within)


@kernel
def write_product(
    tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_u: tl.int64,
    tangent_stride_v: tl.int64, grad_planes, factors, upstream, scores, stride_n: tl.int64, stride_t: tl.int64,
    stride_u: tl.int64, stride_v: tl.int64, num_rows: tl.int64, logit_lengths, target_lengths, targets, row_offsets,
    first_frames, last_frames, listed, begin: tl.int64, count, num_samples: tl.int32, num_frames: tl.int32,
    num_labels: tl.int32, targets_width: tl.int32, num_classes: tl.int32, lone: tl.int32, stride: tl.int64, bias,
    maxima, sums, slopes, out, out_stride_n: tl.int64, out_stride_t: tl.int64, out_stride_u: tl.int64,
    out_stride_v: tl.int64, CLASSES: tl.constexpr, LOGITS: tl.constexpr, LONE: tl.constexpr, PACKED: tl.constexpr,
    WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """The derivatives of <tangent, gradient>: ``slopes`` (K, nodes) with respect to the planes' gradients, and with
    respect to the scores, padding included, times ``upstream``. Either may be left out.

        slope of class c = v[c] - <softmax, v>      product = -mass * softmax * (v - <softmax, v>)
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, _, real, node, label = _nodes(
        rows, num_rows, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, listed, begin,
        count, num_samples, num_frames, num_labels, targets_width, PACKED,
    )  # fmt: skip
    starts = starts_of(n, t, u, rows, stride_n, stride_t, stride_u, PACKED)
    moved = starts_of(n, t, u, rows, tangent_stride_n, tangent_stride_t, tangent_stride_u, PACKED)
    maximum, share, mean = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum, total = _statistics(
            scores, starts, stride_v, num_classes, real, node, maxima, sums, bias, lone, LONE, WORK, BLOCK, ALIGNED,
            RAGGED,
        )  # fmt: skip
        share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0).to(WORK)
        mean = share * softmax_mean(
            scores, starts, stride_v, tangent, moved, tangent_stride_v, num_classes, maximum, real, WORK, BLOCK,
            ALIGNED, lone, LONE, bias, RAGGED,
        )  # fmt: skip
    probability, alone_cost = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if LONE:
        probability = _sigmoid(_score(scores + starts + lone.to(tl.int64) * stride_v, lone, real, bias, 0.0))
        of_lone = tangent + moved + lone.to(tl.int64) * tangent_stride_v
        alone_cost = tl.load(of_lone, mask=real, other=0.0).to(tl.float64)
    mass, alone = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for k in tl.static_range(len(CLASSES)):
        column = _column(CLASSES[k], label)
        read = real & (column >= 0)
        cost = tl.load(tangent + moved + column * tangent_stride_v, mask=read, other=0.0).to(tl.float64)
        gradient = _share(grad_planes, stride, factors, k, node, read)
        is_lone = (column == lone) & (column >= 0)
        mass += tl.where(is_lone, 0.0, gradient)
        alone += tl.where(is_lone, gradient, 0.0)
        if slopes is not None:
            slope = tl.where(is_lone, (1.0 - probability) * cost, cost - mean - probability * alone_cost)
            tl.store(slopes + k * stride + node, tl.where(read, slope, 0.0), mask=real)
    if out is not None:
        alone = -(mass + alone) * probability * (1.0 - probability) * alone_cost
        factor = -mass.to(WORK) * share
        weight, written = _weight(upstream, n, real, WORK), rows < num_rows
        out_starts = starts_of(n, t, u, rows, out_stride_n, out_stride_t, out_stride_u, PACKED)
        if RAGGED or ALIGNED > 1:
            stride_v, tangent_stride_v, out_stride_v = 1, 1, 1
        head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
        origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
        moved_origins = from_whole(moved, ALIGNED, RAGGED)[:, None]
        out_origins = from_whole(out_starts, ALIGNED, RAGGED)[:, None]
        for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
            v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
            _write_product_block(
                scores + origins + place * stride_v, tangent + moved_origins + place * tangent_stride_v,
                out + out_origins + place * out_stride_v, v, real, written, within, bias, factor, maximum, mean,
                weight, lone, alone, LOGITS, LONE, WORK,
            )  # fmt: skip
        if RAGGED and ALIGNED > 1:
            v, within = edge_columns(head, body, num_classes, ALIGNED)
            _write_product_block(
                scores + starts[:, None] + v, tangent + moved[:, None] + v, out + out_starts[:, None] + v, v, real,
                written, within, bias, factor, maximum, mean, weight, lone, alone, LOGITS, LONE, WORK,
            )  # fmt: skip
