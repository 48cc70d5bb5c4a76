"""The transducer's joiner fused with the loss on the GPU: logits exist in registers, a block of rows by classes.

    logits[n, t, u] = activation(encoder[n, t] + predictor[n, u]) @ weight.T + bias

Rows are the real nodes (t, u) of the samples, one after another: padding costs nothing. Forward makes the two score
planes of a grid. Backward lists the rows whose posterior counts (``list_rows``) and goes through the list chunk by
chunk: the gradient of a chunk's logits is stored, and multiplied on the one side by the weight, on the other by the
hidden rows, which are made again. Every entry of every gradient has one program that adds to it, in the order of the
rows.

How many rows there are is known on the device alone. Programs are launched for as many as there may be, and those
without rows end at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.rows import add_terms, find_sample, no_terms, sum_of_terms


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        # exp(-2|x|) cannot overflow; a NaN stays one.
        small = tl.exp(-2.0 * tl.abs(x))
        value = (1.0 - small) / (1.0 + small)
        return tl.where(x > 0, value, tl.where(x <= 0, -value, x))
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, x)
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _slope(x, ACTIVATION: tl.constexpr):
    """The derivative of the activation."""
    value = _activate(x, ACTIVATION)
    if ACTIVATION == "tanh":
        return 1.0 - value * value
    elif ACTIVATION == "sigmoid":
        return value * (1.0 - value)
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, 1.0)
    else:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _locate(rows, real, row_offsets, target_lengths, num_samples):
    """Sample, frame and label position of packed rows, and how many labels the sample has."""
    n = find_sample(tl.where(real, rows, 0), row_offsets, num_samples)
    labels = tl.load(target_lengths + n)
    node = tl.where(real, rows - tl.load(row_offsets + n), 0)
    return n, node // (labels + 1), node % (labels + 1), labels


@triton.jit
def _joined(encoder, predictor, n, t, u, h, mask, num_frames, width, size):
    """encoder + predictor, what the activation is of, for rows by hidden units; both operands are contiguous."""
    left = tl.load(encoder + ((n * num_frames + t) * size)[:, None] + h[None, :], mask=mask, other=0.0)
    right = tl.load(predictor + ((n * width + u) * size)[:, None] + h[None, :], mask=mask, other=0.0)
    return left.to(tl.float32) + right.to(tl.float32)


@triton.jit
def _logits(
    encoder, predictor, weight, bias, n, t, u, real, v, num_frames, width, size, num_classes,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Logits of rows by classes; -inf beyond the classes."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, size, UNITS):
        h = first + tl.arange(0, UNITS)
        mask = real[:, None] & (h < size)[None, :]
        joined = _joined(encoder, predictor, n, t, u, h, mask, num_frames, width, size)
        hidden = tl.where(mask, _activate(joined, ACTIVATION), 0.0)
        places = weight + v.to(tl.int64)[None, :] * size + h[:, None]
        factor = tl.load(places, mask=(h < size)[:, None] & (v < num_classes)[None, :], other=0.0)
        total = tl.dot(hidden.to(factor.dtype), factor, total, input_precision=PRECISION)
    total += tl.load(bias + v, mask=v < num_classes, other=0.0).to(tl.float32)[None, :]
    return tl.where((v < num_classes)[None, :], total, float("-inf"))


@kernel
def score_rows(
    encoder, predictor, weight, bias, target_lengths, targets, row_offsets, num_samples: tl.int32,
    num_frames: tl.int32, width: tl.int32, targets_width: tl.int32, size: tl.int32, num_classes: tl.int32,
    blank: tl.int32, log_sums, blank_scores, label_scores, undefined, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The log of each row's softmax sum and the log-probabilities of the two arcs out of its node."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    num_rows = tl.load(row_offsets + num_samples)
    if tl.program_id(0).to(tl.int64) * ROWS < num_rows:
        real = rows < num_rows
        n, t, u, labels = _locate(rows, real, row_offsets, target_lengths, num_samples)
        label = tl.load(targets + n * targets_width + u, mask=real & (u < labels), other=-1)
        maximum, coarse, fine = no_terms(rows, tl.float32)
        blank_score, label_score = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for first in range(0, num_classes, BLOCK):
            v = first + tl.arange(0, BLOCK)
            x = _logits(
                encoder, predictor, weight, bias, n, t, u, real, v, num_frames, width, size, num_classes, ACTIVATION,
                PRECISION, ROWS, BLOCK, UNITS,
            )  # fmt: skip
            maximum, coarse, fine = add_terms(maximum, coarse, fine, x)
            blank_score += tl.sum(tl.where(v[None, :] == blank, x, 0.0), 1)
            label_score += tl.sum(tl.where(v[None, :] == label[:, None], x, 0.0), 1)
        reference = tl.where(maximum > float("-inf"), maximum, 0.0).to(tl.float64)
        total = sum_of_terms(maximum, coarse, fine)
        log_sum = tl.log(tl.where(total > 0, total, 1.0))
        tl.store(log_sums + rows, reference + log_sum, mask=real)
        # The reference first: beside a huge one the logarithm would be lost.
        label_score = tl.where(label >= 0, label_score.to(tl.float64) - reference - log_sum, float("-inf"))
        tl.store(blank_scores + rows, blank_score.to(tl.float64) - reference - log_sum, mask=real)
        tl.store(label_scores + rows, label_score, mask=real)
        # The same integer whoever comes first.
        tl.atomic_max(undefined + n, tl.full([ROWS], 1, tl.int32), mask=real & (total != total))


@kernel
def list_rows(alive, before, num_rows: tl.int64, listed, ROWS: tl.constexpr):
    """listed[before[row]] = row where the row is alive; ``before`` counts those in front of it."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = rows < num_rows
    mask = mask & (tl.load(alive + rows, mask=mask, other=0) != 0)
    tl.store(listed + tl.load(before + rows, mask=mask, other=0), rows, mask=mask)


@triton.jit
def _chunk_rows(listed, count, first, chunk, ROWS: tl.constexpr):
    """The rows of a tile of a chunk, and which of them there are."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = (place < chunk) & (first + place < count)
    return place, tl.load(listed + first + place, mask=real, other=0), real


@kernel
def differentiate_logits(
    grad_losses, losses, encoder, predictor, weight, bias, target_lengths, targets, row_offsets, num_samples: tl.int32,
    num_frames: tl.int32, width: tl.int32, targets_width: tl.int32, size: tl.int32, num_classes: tl.int32,
    blank: tl.int32, log_sums, blank_posteriors, label_posteriors, fastemit_lambda: tl.float64, clamp: tl.float64,
    listed, count, first: tl.int64, chunk: tl.int64, out, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """out (chunk, V): upstream * clamp(occupancy * softmax - posterior of each class)."""
    place, rows, real = _chunk_rows(listed, tl.load(count), first, chunk, ROWS)
    if first + tl.program_id(0).to(tl.int64) * ROWS < tl.load(count):
        n, t, u, labels = _locate(rows, real, row_offsets, target_lengths, num_samples)
        loss, upstream = tl.load(losses + n), tl.load(grad_losses + n).to(tl.float32)
        label = tl.load(targets + n * targets_width + u, mask=real & (u < labels), other=-1)
        blank_posterior = tl.load(blank_posteriors + rows, mask=real, other=0.0)
        label_posterior = tl.load(label_posteriors + rows, mask=real, other=0.0) * (1.0 + fastemit_lambda)
        occupancy = (blank_posterior + label_posterior).to(tl.float32)
        log_sum = tl.load(log_sums + rows, mask=real, other=0.0).to(tl.float32)
        v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        x = _logits(
            encoder, predictor, weight, bias, n, t, u, real, v, num_frames, width, size, num_classes, ACTIVATION,
            PRECISION, ROWS, BLOCK, UNITS,
        )  # fmt: skip
        gradient = occupancy[:, None] * tl.exp(x - log_sum[:, None])
        gradient -= tl.where(v[None, :] == blank, blank_posterior.to(tl.float32)[:, None], 0.0)
        gradient -= tl.where(v[None, :] == label[:, None], label_posterior.to(tl.float32)[:, None], 0.0)
        if clamp > 0:
            bound = (tl.zeros([1, 1], tl.float64) + clamp).to(tl.float32)
            gradient = tl.minimum(tl.maximum(gradient, -bound), bound)
        gradient = tl.where((loss == loss)[:, None], upstream[:, None] * gradient, float("nan"))
        places = out + place[:, None] * num_classes + v[None, :]
        tl.store(places, gradient.to(out.dtype.element_ty), mask=real[:, None] & (v < num_classes)[None, :])


@kernel
def differentiate_hidden(
    encoder, predictor, weight, target_lengths, row_offsets, num_samples: tl.int32, num_frames: tl.int32,
    width: tl.int32, size: tl.int32, num_classes: tl.int32, listed, count, first: tl.int64, chunk: tl.int64,
    grad_logits, out, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """out (chunk, H): the gradient with respect to encoder + predictor of each row."""
    place, rows, real = _chunk_rows(listed, tl.load(count), first, chunk, ROWS)
    if first + tl.program_id(0).to(tl.int64) * ROWS < tl.load(count):
        h = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
        total = tl.zeros([ROWS, UNITS], tl.float32)
        for begin in range(0, num_classes, BLOCK):
            v = begin + tl.arange(0, BLOCK)
            places = grad_logits + place[:, None] * num_classes + v[None, :]
            gradient = tl.load(places, mask=real[:, None] & (v < num_classes)[None, :], other=0.0)
            places = weight + v.to(tl.int64)[:, None] * size + h[None, :]
            factor = tl.load(places, mask=(v < num_classes)[:, None] & (h < size)[None, :], other=0.0)
            total = tl.dot(gradient, factor, total, input_precision=PRECISION)
        n, t, u, _ = _locate(rows, real, row_offsets, target_lengths, num_samples)
        mask = real[:, None] & (h < size)[None, :]
        total *= _slope(_joined(encoder, predictor, n, t, u, h, mask, num_frames, width, size), ACTIVATION)
        tl.store(out + place[:, None] * size + h[None, :], total, mask=mask)


@kernel
def add_weight_gradient(
    encoder, predictor, target_lengths, row_offsets, num_samples: tl.int32, num_frames: tl.int32, width: tl.int32,
    size: tl.int32, num_classes: tl.int32, listed, count, first: tl.int64, chunk: tl.int64, grad_logits, grad_weight,
    grad_bias, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """grad_weight[v, h] += the sum over the chunk of grad_logits[row, v] * hidden[row, h]; the same of the bias."""
    v, h = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    here = tl.minimum(tl.load(count) - first, chunk)
    if here > 0:
        total, bias = tl.zeros([BLOCK, UNITS], tl.float32), tl.zeros([BLOCK], tl.float32)
        begin = tl.zeros([], tl.int64)
        while begin < here:
            place = begin + tl.arange(0, ROWS)
            real = place < here
            rows = tl.load(listed + first + place, mask=real, other=0)
            n, t, u, _ = _locate(rows, real, row_offsets, target_lengths, num_samples)
            mask = real[:, None] & (h < size)[None, :]
            joined = _joined(encoder, predictor, n, t, u, h, mask, num_frames, width, size)
            hidden = tl.where(mask, _activate(joined, ACTIVATION), 0.0)
            places = grad_logits + place[None, :] * num_classes + v[:, None]
            gradient = tl.load(places, mask=real[None, :] & (v < num_classes)[:, None], other=0.0)
            total = tl.dot(gradient, hidden.to(gradient.dtype), total, input_precision=PRECISION)
            bias += tl.sum(gradient.to(tl.float32), 1)
            begin += ROWS
        mask = (v < num_classes)[:, None] & (h < size)[None, :]
        places = grad_weight + v.to(tl.int64)[:, None] * size + h[None, :]
        tl.store(places, tl.load(places, mask=mask, other=0.0) + total, mask=mask)
        owner = v < tl.where(tl.program_id(1) == 0, num_classes, 0)
        bias += tl.load(grad_bias + v, mask=owner, other=0.0)
        # Several lanes hold a class; one of them stores it, when all have read.
        barrier()
        tl.store(grad_bias + v, bias, mask=owner)


@kernel
def add_operand_gradients(
    logit_lengths, target_lengths, row_offsets, num_frames: tl.int32, width: tl.int32, size: tl.int32, alive, before,
    count, first: tl.int64, chunk: tl.int64, grad_hidden, grad_encoder, grad_predictor, UNITS: tl.constexpr,
):  # fmt: skip
    """Each frame's row of the encoder's gradient, or each label position's of the predictor's: += that of its nodes."""
    # Both in the axis that takes more than 65535 programs.
    place = tl.program_id(0).to(tl.int64)
    n, line = place // (num_frames + width), place % (num_frames + width)
    h = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    origin, end = tl.load(row_offsets + n), tl.load(row_offsets + n + 1)
    is_frame = line < num_frames
    # A line is a frame of U+1 nodes one after another, or a label position of T nodes a frame apart.
    start = origin + tl.where(is_frame, line * (labels + 1), line - num_frames)
    step = tl.where(is_frame, 1, labels + 1).to(tl.int64)
    nodes = tl.where(is_frame, labels + 1, frames)
    exists = tl.where(is_frame, line < frames, line - num_frames <= labels)
    last = tl.minimum(first + chunk, tl.load(count))
    if exists & (frames > 0):
        # The sample has listed rows in the chunk only if these two places do not lie on the same side of it.
        if (tl.load(before + origin) < last) & (tl.load(before + end - 1) + tl.load(alive + end - 1) > first):
            total = tl.zeros([UNITS], tl.float32)
            for i in range(nodes):
                row = start + i * step
                place = tl.load(before + row)
                inside = (tl.load(alive + row) != 0) & (place >= first) & (place < last)
                limit = tl.where(inside, size, 0)
                total += tl.load(grad_hidden + (place - first) * size + h, mask=h < limit, other=0.0)
            row = tl.where(is_frame, n * num_frames + line, n * width + line - num_frames)
            if is_frame:
                places = grad_encoder + row * size + h
                tl.store(places, tl.load(places, mask=h < size, other=0.0) + total, mask=h < size)
            else:
                places = grad_predictor + row * size + h
                tl.store(places, tl.load(places, mask=h < size, other=0.0) + total, mask=h < size)
