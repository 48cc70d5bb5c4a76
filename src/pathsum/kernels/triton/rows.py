"""Rows of scores: which node a row is, its softmax statistics, and their inverse.

Kernels on rows take ``ROWS`` of them at a time, ``BLOCK`` classes wide; a row is gone through once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_sample(rows, row_offsets, num_samples):
    """The sample of each packed row: the last one whose first row is not behind it."""
    low, high = tl.zeros_like(rows), tl.zeros_like(rows) + num_samples
    steps = num_samples
    while steps > 0:
        middle = (low + high) // 2
        above = tl.load(row_offsets + middle) <= rows
        # An interval of one is found, and must not move.
        found = high - low <= 1
        low = tl.where(above & ~found, middle, low)
        high = tl.where(above | found, high, middle)
        steps = steps // 2
    return low


@triton.jit
def locate(
    rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, num_labels,
    PACKED: tl.constexpr,
):  # fmt: skip
    """Sample, frame, label position, lengths T and U of each row of a grid; and whether it is a node at all.

    Padded rows are those of (N, num_frames, num_labels + 1), packed ones are the samples' own, one after another.
    """
    within = rows < num_rows
    if PACKED:
        n = find_sample(tl.where(within, rows, 0), row_offsets, num_samples)
        node = rows - tl.load(row_offsets + n)
        labels = tl.load(target_lengths + n)
        # A sample that is not defined has lengths of -1.
        width = tl.maximum(labels + 1, 1)
        t, u = node // width, node % width
    else:
        n = tl.where(within, rows // (num_frames.to(tl.int64) * (num_labels + 1)), 0)
        t, u = rows // (num_labels + 1) % num_frames, rows % (num_labels + 1)
        labels = tl.load(target_lengths + n)
    frames = tl.load(logit_lengths + n)
    return n, t, u, frames, labels, within & (t < frames) & (u <= labels)


@triton.jit
def in_pieces(x, ALIGNED: tl.constexpr):
    """A multiple of a number of elements, as one that the compiler knows for it: it moves so many at a time then."""
    return x // ALIGNED * ALIGNED


@triton.jit
def softmax_statistics(
    scores, starts, stride_v, num_classes, read, WORK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    lone=-1, LONE: tl.constexpr = False,
):  # fmt: skip
    """Maximum and sum of exp(score - maximum) of each row, 0 of nothing but -inf; NaN where a score is NaN or +inf.

    With ``LONE`` the class ``lone`` has no part in them.
    """
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, stride_v = in_pieces(starts, ALIGNED), 1
    columns = tl.arange(0, BLOCK)
    maximum = tl.full(starts.shape, float("-inf"), WORK)
    total = tl.zeros(starts.shape, WORK)
    for first in range(0, num_classes, BLOCK):
        v = first + columns
        mask = read[:, None] & (v < num_classes)[None, :]
        x = tl.load(scores + starts[:, None] + v.to(tl.int64)[None, :] * stride_v, mask=mask, other=float("-inf"))
        x = x.to(WORK)
        if LONE:
            x = tl.where(v[None, :] == lone, float("-inf"), x)
        larger = tl.maximum(maximum, tl.max(x, 1))
        reference = tl.where(larger > float("-inf"), larger, 0.0)
        total = total * tl.exp(maximum - reference) + tl.sum(tl.exp(x - reference[:, None]), 1)
        maximum = larger
    # The exponential of a NaN, and of +inf less itself, is NaN.
    return tl.where(total == total, maximum, float("nan")), total


@triton.jit
def softmax_mean(
    scores, starts, stride_v, tangent, tangent_starts, tangent_stride_v, num_classes, maximum, read,
    WORK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, lone=-1, LONE: tl.constexpr = False,
):  # fmt: skip
    """The sum of exp(score - maximum) * tangent of each row; lanes are added up once, as in ``dense``.

    With ``LONE`` the class ``lone`` has no part in it.
    """
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, tangent_starts = in_pieces(starts, ALIGNED), in_pieces(tangent_starts, ALIGNED)
        stride_v, tangent_stride_v = 1, 1
    total = tl.zeros([starts.shape[0], BLOCK], WORK)
    for first in range(0, num_classes, BLOCK):
        v = first + tl.arange(0, BLOCK)
        mask = read[:, None] & (v < num_classes)[None, :]
        columns = v.to(tl.int64)[None, :]
        x = tl.load(scores + starts[:, None] + columns * stride_v, mask=mask, other=float("-inf")).to(WORK)
        if LONE:
            x = tl.where(columns == lone, float("-inf"), x)
        moved = tl.load(tangent + tangent_starts[:, None] + columns * tangent_stride_v, mask=mask, other=0.0).to(WORK)
        total += tl.exp(x - maximum[:, None]) * moved
    return tl.sum(total, 1)
