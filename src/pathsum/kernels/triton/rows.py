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


# Beyond every node.
NOWHERE = tl.constexpr(2**62)


@triton.jit
def nodes_of_tile(rows, num_rows, listed, begin, count):
    """The nodes that the rows of a tile are, ``NOWHERE`` of those it has not.

    A tile begins at a node, or at a place of a list of nodes that has ``count``.
    """
    node, real = begin + rows, rows < num_rows
    if listed is not None:
        real = real & (node < tl.load(count))
        node = tl.load(listed + node, mask=real, other=0).to(tl.int64)
    return tl.where(real, node, NOWHERE)


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
def whole_pieces(starts, num_classes, ALIGNED: tl.constexpr, RAGGED: tl.constexpr):
    """How many elements of a row lie in front of its whole pieces of memory, and how many in these.

    Not ``RAGGED``, rows are made of whole pieces, or move an element at a time. Else they begin anywhere in a piece.
    """
    if RAGGED:
        head = tl.minimum((ALIGNED - starts % ALIGNED) % ALIGNED, num_classes)
        return head, in_pieces(num_classes - head, ALIGNED)
    else:
        return 0, in_pieces(num_classes, ALIGNED)


@triton.jit
def from_whole(starts, ALIGNED: tl.constexpr, RAGGED: tl.constexpr):
    """Where the whole pieces of rows begin."""
    return in_pieces(starts + (ALIGNED - 1) if RAGGED else starts, ALIGNED)


@triton.jit
def columns_of(first, head, body, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """A block of the elements in whole pieces: their classes, their places among them, and which there are."""
    place = first + tl.arange(0, BLOCK)
    if RAGGED:
        return head[:, None] + place[None, :], place.to(tl.int64)[None, :], place[None, :] < body[:, None]
    else:
        return place[None, :], place.to(tl.int64)[None, :], (place < body)[None, :]


@triton.jit
def edge_columns(head, body, num_classes, ALIGNED: tl.constexpr):
    """The elements in front of whole pieces and behind them: their classes, and which there are."""
    i = tl.arange(0, 2 * ALIGNED)[None, :]
    v = tl.where(i < ALIGNED, i, (head + body)[:, None] + i - ALIGNED)
    return v, v < tl.where(i < ALIGNED, head[:, None], num_classes)


@triton.jit
def read_scores(places, v, read, within, bias, WORK: tl.constexpr):
    """Scores of rows by classes ``v``, -inf where they are not read; with what a tile's logits lack, their bias."""
    x = tl.load(places, mask=read[:, None] & within, other=float("-inf")).to(WORK)
    if bias is not None:
        x += tl.load(bias + v, mask=within, other=0.0)
    return x


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
def _add_scores(
    maximum, coarse, fine, places, v, read, within, bias, lone, LONE: tl.constexpr, WORK: tl.constexpr
):  # fmt: skip
    x = read_scores(places, v, read, within, bias, WORK)
    if LONE:
        x = tl.where(v == lone, float("-inf"), x)
    return add_terms(maximum, coarse, fine, x)


@triton.jit
def softmax_statistics(
    scores, starts, stride_v, num_classes, read, WORK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    lone=-1, LONE: tl.constexpr = False, bias=None, RAGGED: tl.constexpr = False,
):  # fmt: skip
    """Maximum and, in float64, sum of exp(score - maximum) of each row, 0 of nothing but -inf; NaN where a score is NaN
    or +inf.

    With ``LONE`` the class ``lone`` has no part in them.
    """
    if RAGGED or ALIGNED > 1:
        stride_v = 1
    head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
    origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
    maximum, coarse, fine = no_terms(starts, WORK)
    for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
        v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
        places = scores + origins + place * stride_v
        maximum, coarse, fine = _add_scores(maximum, coarse, fine, places, v, read, within, bias, lone, LONE, WORK)
    if RAGGED and ALIGNED > 1:
        v, within = edge_columns(head, body, num_classes, ALIGNED)
        places = scores + starts[:, None] + v
        maximum, coarse, fine = _add_scores(maximum, coarse, fine, places, v, read, within, bias, lone, LONE, WORK)
    total = sum_of_terms(maximum, coarse, fine)
    return tl.where(total == total, maximum, float("nan")), total


@triton.jit
def _moved_terms(
    places, tangent, v, read, within, maximum, bias, lone, LONE: tl.constexpr, WORK: tl.constexpr
):  # fmt: skip
    """exp(score - maximum) * tangent"""
    x = read_scores(places, v, read, within, bias, WORK)
    if LONE:
        x = tl.where(v == lone, float("-inf"), x)
    moved = tl.load(tangent, mask=read[:, None] & within, other=0.0).to(WORK)
    return tl.exp(x - maximum[:, None]) * moved


@triton.jit
def softmax_mean(
    scores, starts, stride_v, tangent, tangent_starts, tangent_stride_v, num_classes, maximum, read,
    WORK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, lone=-1, LONE: tl.constexpr = False, bias=None,
    RAGGED: tl.constexpr = False,
):  # fmt: skip
    """The sum of exp(score - maximum) * tangent of each row; lanes are added up once, as in ``dense``.

    With ``LONE`` the class ``lone`` has no part in it.
    """
    if RAGGED or ALIGNED > 1:
        stride_v, tangent_stride_v = 1, 1
    head, body = whole_pieces(starts, num_classes, ALIGNED, RAGGED)
    origins = from_whole(starts, ALIGNED, RAGGED)[:, None]
    moved_origins = from_whole(tangent_starts, ALIGNED, RAGGED)[:, None]
    total = tl.zeros([starts.shape[0], BLOCK], WORK)
    for first in range(0, in_pieces(num_classes, ALIGNED), BLOCK):
        v, place, within = columns_of(first, head, body, BLOCK, RAGGED)
        places, moved = scores + origins + place * stride_v, tangent + moved_origins + place * tangent_stride_v
        total += _moved_terms(places, moved, v, read, within, maximum, bias, lone, LONE, WORK)
    mean = tl.sum(total, 1)
    if RAGGED and ALIGNED > 1:
        v, within = edge_columns(head, body, num_classes, ALIGNED)
        places, moved = scores + starts[:, None] + v, tangent + tangent_starts[:, None] + v
        terms = tl.zeros([starts.shape[0], 2 * ALIGNED], WORK)
        terms += _moved_terms(places, moved, v, read, within, maximum, bias, lone, LONE, WORK)
        mean += tl.sum(terms, 1)
    return mean
