"""Rows of scores: which node a row is, its softmax statistics, and their inverse.

Kernels on rows take ``ROWS`` of them at a time, ``BLOCK`` classes wide; a row is gone through once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.extended import shift, split, unit_of

# Added and taken away, it rounds a float32 below 64 to a multiple of 2**-16.
ROUNDING = tl.constexpr(1.5 * 2.0**7)


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
def _rounded(x):
    """A float32 below 64 rounded to a multiple of 2**-16: a few hundred of them add up without an error."""
    return (x + ROUNDING) - ROUNDING


@triton.jit
def no_terms(like, WORK: tl.constexpr):
    """What ``add_terms`` begins with, for rows as there are in ``like``."""
    nothing = tl.zeros(like.shape, WORK)
    return nothing + float("-inf"), nothing, nothing


@triton.jit
def add_terms(maximum, coarse, fine, x):
    """The maximum of rows, and the sum of their exponentials in units of it, with some more scores of each row.

    Of a row that is sure of a class the sum is 1 and what the others have, which is all that the row costs a path: so
    scores are divided by a power of two, which has no rounding, and terms are added up in two parts.
    """
    # The exponential of a NaN is NaN, as is that of +inf less itself.
    undefined = ~(x < float("inf"))
    x = tl.where(undefined, float("-inf"), x)
    before, _, power_before = unit_of(maximum)
    maximum = tl.maximum(maximum, tl.max(x, 1))
    reference, _, power = unit_of(maximum)
    # Of nothing but -inf before there is nothing to be made greater.
    factor, exponent = split(tl.minimum(before - reference, 0.0))
    factor = shift(factor, tl.minimum(exponent + (power_before - power), 1))
    terms, exponents = split(x - reference[:, None])
    terms = shift(terms, exponents - power[:, None])
    upper = _rounded(terms)
    lower = tl.where(undefined, float("nan"), terms - upper)
    scaled = coarse * factor
    kept = _rounded(scaled)
    return maximum, kept + tl.sum(upper, 1), fine * factor + (scaled - kept) + tl.sum(lower, 1)


@triton.jit
def sum_of_terms(maximum, coarse, fine):
    """In float64 the sum of exp(score - maximum), 0 of nothing but -inf; NaN where a score is NaN or +inf."""
    _, greatest, _ = unit_of(maximum)
    return (coarse.to(tl.float64) + fine.to(tl.float64)) / greatest.to(tl.float64)


@triton.jit
def softmax_statistics(
    scores, starts, stride_v, num_classes, read, WORK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    lone=-1, LONE: tl.constexpr = False,
):  # fmt: skip
    """Maximum and, in float64, sum of exp(score - maximum) of each row, 0 of nothing but -inf; NaN where a score is NaN
    or +inf.

    With ``LONE`` the class ``lone`` has no part in them.
    """
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, stride_v = in_pieces(starts, ALIGNED), 1
    columns = tl.arange(0, BLOCK)
    maximum, coarse, fine = no_terms(starts, WORK)
    for first in range(0, num_classes, BLOCK):
        v = first + columns
        mask = read[:, None] & (v < num_classes)[None, :]
        x = tl.load(scores + starts[:, None] + v.to(tl.int64)[None, :] * stride_v, mask=mask, other=float("-inf"))
        x = x.to(WORK)
        if LONE:
            x = tl.where(v[None, :] == lone, float("-inf"), x)
        maximum, coarse, fine = add_terms(maximum, coarse, fine, x)
    total = sum_of_terms(maximum, coarse, fine)
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
