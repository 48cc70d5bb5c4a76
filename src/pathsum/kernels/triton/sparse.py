"""Lattices of graphs on the GPU, in extended range on float64.

One launch for the recursion: a program for alpha and one for beta of every sample, whether samples share a graph or
not. A frame's row of states goes through the plane that keeps it, ``ROWS`` states at a time with ``LANES`` arcs of
each; a state of more arcs than most then has all lanes for what is left of them, one such state after another. So no
arc is added atomically, and the sums of a graph have one order. Epsilon arcs follow, one level after another.

A state is a word of extended range, whose exponent counts from that of its row, the *base*. So exponents are small, and
a word keeps most bits of the mantissa: 44 of a state 2**-256 of the greatest. Bases run behind by a frame, lest a row
wait for its own greatest state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import ZERO_64, add, log, normalise, pack, plain, split, unpack

# What is known of a sample, a column each: its number and frames; where its rows of states begin, its frames, its
# posteriors and counts among all samples'; how many rows of states are kept; of its graph the first state, class and
# weight, how many there are of each, and the first state that an epsilon arc may lead to, or the number of states.
SAMPLE, FRAMES, PLANE, FRAME, GAMMA, COUNTS, KEPT = (tl.constexpr(column) for column in range(7))
STATE, STATES, CLASS, CLASSES, WEIGHT, WEIGHTS, EPSILON = (tl.constexpr(column) for column in range(7, 14))
COLUMNS = tl.constexpr(16)
# Arcs of a row, in steps of LANES, before it is taken for one of those with many.
STEPS = tl.constexpr(16)
_FURTHEST = tl.constexpr(2.0**49)


@triton.jit
def fact(samples, m, COLUMN: tl.constexpr):
    return tl.load(samples + m * COLUMNS + COLUMN)


@triton.jit
def word_of(x):
    """exp(x) as a word; 0 of what is undefined, which is told elsewhere."""
    mantissa, exponent = split(tl.minimum(tl.where(x < float("inf"), x, float("-inf")), _FURTHEST))
    mantissa, exponent = normalise(mantissa, exponent)
    return pack(mantissa, exponent)


@kernel
def write_words(values, count: tl.int32, words, BLOCK: tl.constexpr):
    """exp of the values."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(words + k, word_of(tl.load(values + k, mask=k < count, other=0.0)), mask=k < count)


@kernel
def read_frames(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, samples, classes, references, undefined,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The greatest score of each frame among those of the sample's graph; samples of which one is NaN or +inf."""
    t, m = tl.program_id(0), tl.program_id(1)
    if t < fact(samples, m, FRAMES):
        n = fact(samples, m, SAMPLE)
        start, own = n * stride_n + t * stride_t, classes + fact(samples, m, CLASS)
        count = fact(samples, m, CLASSES).to(tl.int32)
        greatest, wrong = tl.full([BLOCK], float("-inf"), tl.float64), tl.zeros([BLOCK], tl.int32)
        for first in range(0, count, BLOCK):
            c = first + tl.arange(0, BLOCK)
            place = tl.load(own + c, mask=c < count, other=0) * stride_c
            x = tl.load(scores + start + place, mask=c < count, other=float("-inf")).to(tl.float64)
            wrong = wrong | (~(x < float("inf"))).to(tl.int32)
            greatest = tl.maximum(greatest, tl.where(x < float("inf"), x, float("-inf")))
        largest = tl.max(greatest, 0)
        tl.store(references + fact(samples, m, FRAME) + t, tl.where(largest > float("-inf"), largest, 0.0))
        # The same integer whoever comes first.
        tl.atomic_max(undefined + n, tl.max(wrong, 0), sem="relaxed")


@triton.jit
def emit_row(scores, start, stride_c, classes, count, reference, row, BLOCK: tl.constexpr):
    """What the classes of a frame emit, as words."""
    for first in range(0, count, BLOCK):
        c = first + tl.arange(0, BLOCK)
        place = tl.load(classes + c, mask=c < count, other=0) * stride_c
        x = tl.load(scores + start + place, mask=c < count, other=float("-inf")).to(tl.float64)
        tl.store(row + c, word_of(x - reference), mask=c < count)


@triton.jit
def terms(ends, others, words, states, factors, k, mask, FACTORS: tl.constexpr):
    """What the arcs k bring: weight * state at one end, and times the factor of its label, or state at the other."""
    end = tl.load(ends + k, mask=mask, other=0)
    mantissa, exponent = unpack(tl.load(states + end, mask=mask, other=float("-inf")))
    weight, weight_exponent = unpack(tl.load(words + k, mask=mask, other=float("-inf")))
    mantissa, exponent = mantissa * weight, exponent + weight_exponent
    if FACTORS:
        other = tl.load(others + k, mask=mask, other=0)
        factor, factor_exponent = unpack(tl.load(factors + other, mask=mask, other=float("-inf")))
        mantissa, exponent = mantissa * factor, exponent + factor_exponent
    return mantissa, exponent


@triton.jit
def sum_lanes(mantissa, exponent):
    """The sums of normalised numbers along the last axis.

    Mantissas are moved by their bits: a product would be contracted into the exchange with another lane.
    """
    top = tl.max(exponent, 1)
    down = tl.maximum(exponent - top[:, None], -1000)
    bits = mantissa.to(tl.int64, bitcast=True) + (down << 52)
    moved = tl.where(mantissa > 0, bits.to(tl.float64, bitcast=True), 0.0)
    return normalise(tl.sum(moved, 1), top)


@triton.jit
def nothing(size: tl.constexpr, width: tl.constexpr):
    return tl.zeros([size, width], tl.float64), tl.full([size, width], ZERO_64, tl.int64)


@triton.jit
def next_of_many(degree, row, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The row behind this one that has more arcs than were taken; ROWS behind the last."""
    index = tl.arange(0, ROWS)
    return tl.min(tl.where((degree > STEPS * LANES) & (index > row), index, ROWS), 0)


@triton.jit
def of_row(values, row, ROWS: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, ROWS) == row, values, 0), 0)


@triton.jit
def _sum_long_row(begin, end, ends, others, words, states, factors, FACTORS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the arcs from ``begin`` on, up to ``end``."""
    mantissa, exponent = nothing(1, BLOCK)
    for first in range(begin, end, BLOCK):
        k = first + tl.arange(0, BLOCK)[None, :]
        more, place = terms(ends, others, words, states, factors, k, k < end, FACTORS)
        mantissa, exponent = add(mantissa, exponent, more, place)
    total, total_exponent = sum_lanes(mantissa, exponent)
    return tl.max(total, 0), tl.max(total_exponent, 0)


@triton.jit
def sum_arcs(
    first, last, ends, others, words, states, factors, FACTORS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sums of the arcs from ``first`` on, up to ``last``, of each row."""
    mantissa, exponent = nothing(ROWS, LANES)
    degree = last - first
    longest = tl.max(degree, 0)
    for step in range(0, tl.minimum(longest, STEPS * LANES), LANES):
        k = first[:, None] + step + tl.arange(0, LANES)[None, :]
        more, place = terms(ends, others, words, states, factors, k, k < last[:, None], FACTORS)
        mantissa, exponent = add(mantissa, exponent, more, place)
    total, total_exponent = sum_lanes(mantissa, exponent)
    if longest > STEPS * LANES:
        index = tl.arange(0, ROWS)
        row = next_of_many(degree, -1, ROWS, LANES)
        while row < ROWS:
            left, left_exponent = _sum_long_row(
                of_row(first, row, ROWS) + STEPS * LANES, of_row(last, row, ROWS), ends, others, words, states, factors,
                FACTORS, ROWS * LANES,
            )  # fmt: skip
            summed, summed_exponent = add(total, total_exponent, left, left_exponent)
            total = tl.where(index == row, summed, total)
            total_exponent = tl.where(index == row, summed_exponent, total_exponent)
            row = next_of_many(degree, row, ROWS, LANES)
    return total, total_exponent


@triton.jit
def rows_of(offsets, s, mask):
    """The arcs of the states s: first, and behind the last."""
    return tl.load(offsets + s, mask=mask, other=0), tl.load(offsets + s + 1, mask=mask, other=0)


@triton.jit
def level_ahead(levels, left, count, back, ROWS: tl.constexpr):
    """States of one level, of those left, in order or backwards: their numbers, and whether each is one."""
    s = tl.where(back, left - ROWS, count - left) + tl.arange(0, ROWS)
    level = tl.load(levels + tl.where(back, left - 1, count - left))
    within = (s >= 0) & (s < count)
    return s, within & (tl.load(levels + s, mask=within, other=-1) == level)


@triton.jit
def _relax(
    row, levels, offsets, ends, words, count, first, top, back, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Add what epsilon arcs bring to the states of a row, a level after another; ``top`` goes with them."""
    left = tl.where(first < count, tl.where(back, count, count - first), 0)
    while left > 0:
        # What other threads have stored of the level before.
        barrier()
        s, own = level_ahead(levels, left, count, back, ROWS)
        begin, end = rows_of(offsets, s, own)
        more, place = sum_arcs(begin, end, ends, ends, words, row, row, False, ROWS, LANES)
        mantissa, exponent = unpack(tl.load(row + s, mask=own, other=float("-inf")))
        mantissa, exponent = add(mantissa, exponent, more, place)
        tl.store(row + s, pack(mantissa, exponent), mask=own)
        top = tl.maximum(top, exponent)
        left -= tl.sum(own.to(tl.int32), 0)
    return top


@triton.jit
def _base_behind(top):
    """What a row's greatest state is beyond its base; 0 of an empty row."""
    greatest = tl.max(top, 0)
    return tl.where(greatest > ZERO_64 // 2, greatest, 0)


@triton.jit
def _sweep(
    scores, start, stride_t, stride_c, classes, num_classes, references, frames, offsets, ends, labels, words,
    epsilon_offsets, epsilon_ends, epsilon_words, levels, first_row, count, first_epsilon, emitted, width, plane, bases,
    kept, back, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Fill the rows of alpha, or backwards those of beta."""
    index = tl.arange(0, ROWS)
    begun = plane + tl.where(back, frames % kept * count, 0)
    top = tl.full([ROWS], ZERO_64, tl.int64)
    for begin in range(0, count, ROWS):
        s = begin + index
        word = tl.load(first_row + s, mask=s < count, other=float("-inf"))
        tl.store(begun + s, word, mask=s < count)
        _, exponent = unpack(word)
        top = tl.maximum(top, exponent)
    top = _relax(
        begun, levels, epsilon_offsets, epsilon_ends, epsilon_words, count, first_epsilon, top, back, ROWS, LANES
    )
    base = tl.zeros([], tl.int64)
    tl.store(bases + tl.where(back, frames, 0), base)
    if frames > 0:
        soonest = tl.where(back, frames - 1, 0)
        emit_row(
            scores, start + soonest * stride_t, stride_c, classes, num_classes, tl.load(references + soonest), emitted,
            ROWS * LANES,
        )  # fmt: skip
    for step in range(frames):
        # What other threads have stored of the frame before.
        barrier()
        before = plane + tl.where(back, frames - step, step) % kept * count
        at = tl.where(back, frames - 1 - step, step + 1)
        row = plane + at % kept * count
        emissions = emitted + step % 2 * width
        if step < frames - 1:
            # A frame ahead, into the other row.
            t = tl.where(back, frames - 2 - step, step + 1)
            emit_row(
                scores, start + t * stride_t, stride_c, classes, num_classes, tl.load(references + t),
                emitted + (step + 1) % 2 * width, ROWS * LANES,
            )  # fmt: skip
        behind = _base_behind(top)
        base += behind
        top = tl.full([ROWS], ZERO_64, tl.int64)
        for begin in range(0, count, ROWS):
            s = begin + index
            first, last = rows_of(offsets, s, s < count)
            mantissa, exponent = sum_arcs(first, last, ends, labels, words, before, emissions, True, ROWS, LANES)
            exponent = tl.where(mantissa > 0, exponent - behind, ZERO_64)
            tl.store(row + s, pack(mantissa, exponent), mask=s < count)
            top = tl.maximum(top, exponent)
        top = _relax(
            row, levels, epsilon_offsets, epsilon_ends, epsilon_words, count, first_epsilon, top, back, ROWS, LANES
        )
        tl.store(bases + at, base)


@kernel
def solve(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, samples, classes, references, undefined, levels,
    in_offsets, in_sources, in_labels, in_words, out_offsets, out_destinations, out_labels, out_words, epsilon_offsets,
    epsilon_sources, epsilon_words, leaving_offsets, leaving_destinations, leaving_words, starts, finals, emitted,
    width: tl.int32, alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses, ROWS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta."""
    m = tl.program_id(0)
    n, frames = fact(samples, m, SAMPLE), fact(samples, m, FRAMES)
    plane, frame, kept = fact(samples, m, PLANE), fact(samples, m, FRAME), fact(samples, m, KEPT)
    first_state, count = fact(samples, m, STATE), fact(samples, m, STATES).to(tl.int32)
    own, num_classes = classes + fact(samples, m, CLASS), fact(samples, m, CLASSES).to(tl.int32)
    first_epsilon = fact(samples, m, EPSILON).to(tl.int32)
    row = emitted + (2 * m + tl.program_id(1)).to(tl.int64) * 2 * width
    back = tl.program_id(1) == 1
    offsets, ends, labels, words = in_offsets, in_sources, in_labels, in_words
    target, bases = alpha, alpha_bases
    over_offsets, over_ends, over_words, first_row = epsilon_offsets, epsilon_sources, epsilon_words, starts
    if back:
        offsets, ends, labels, words = out_offsets, out_destinations, out_labels, out_words
        target, bases = beta, beta_bases
        over_offsets, over_ends, over_words, first_row = leaving_offsets, leaving_destinations, leaving_words, finals
    is_defined = tl.load(undefined + n) == 0
    if is_defined:
        _sweep(
            scores, n * stride_n, stride_t, stride_c, own, num_classes, references + frame, frames,
            offsets + first_state, ends, labels, words, over_offsets + first_state, over_ends, over_words,
            levels + first_state, first_row + first_state, count, first_epsilon, row, width, target + plane,
            bases + frame, kept, back, ROWS, LANES,
        )  # fmt: skip
    if tl.program_id(1) == 0:
        loss = tl.full([], float("nan"), tl.float64)
        if is_defined:
            barrier()
            last = alpha + plane + frames % kept * count
            mantissa, exponent = nothing(1, ROWS)
            for begin in range(0, count, ROWS):
                s = begin + tl.arange(0, ROWS)[None, :]
                state, place = unpack(tl.load(last + s, mask=s < count, other=float("-inf")))
                final, more = unpack(tl.load(finals + first_state + s, mask=s < count, other=float("-inf")))
                mantissa, exponent = add(mantissa, exponent, state * final, place + more)
            mantissa, exponent = sum_lanes(mantissa, exponent)
            total, total_exponent = tl.max(mantissa, 0), tl.max(exponent, 0)
            total_exponent = tl.where(total > 0, total_exponent + tl.load(alpha_bases + frame + frames), 0)
            in_common = tl.zeros([], tl.float64)
            for t in range(frames):
                in_common += tl.load(references + frame + t)
            tl.store(totals + m, total)
            tl.store(total_exponents + m, total_exponent)
            loss = tl.where(total > 0, -log(total, total_exponent) - in_common, float("inf"))
        tl.store(losses + n, loss)


@triton.jit
def units_of(alpha_bases, beta_bases, exponents, m, frame, t, u):
    """What an exponent of alpha[t] * beta[u] counts from, as one of all paths."""
    return tl.load(alpha_bases + frame + t) + tl.load(beta_bases + frame + u) - tl.load(exponents + m)


@kernel
def find_posteriors(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, samples, classes, references, class_offsets,
    class_sources, class_destinations, class_words, alpha, alpha_bases, beta, beta_bases, totals, total_exponents,
    losses, gamma, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The posteriors of the classes in each frame; 0 where there is no path."""
    t, m = tl.program_id(0), tl.program_id(1)
    if t < fact(samples, m, FRAMES):
        n, frame, states = fact(samples, m, SAMPLE), fact(samples, m, FRAME), fact(samples, m, STATES)
        first_class, num_classes = fact(samples, m, CLASS), fact(samples, m, CLASSES).to(tl.int32)
        before = alpha + fact(samples, m, PLANE) + t * states
        after = beta + fact(samples, m, PLANE) + (t + 1) * states
        out = gamma + fact(samples, m, GAMMA) + t * num_classes.to(tl.int64)
        possible = tl.load(losses + n) < float("inf")
        start, reference = n * stride_n + t * stride_t, tl.load(references + frame + t)
        total, units = tl.full([], 1.0, tl.float64), tl.zeros([], tl.int64)
        if possible:
            total = tl.load(totals + m)
            units = units_of(alpha_bases, beta_bases, total_exponents, m, frame, t, t + 1)
        for begin in range(0, num_classes, ROWS):
            c = begin + tl.arange(0, ROWS)
            mask = c < tl.where(possible, num_classes, 0)
            first, last = rows_of(class_offsets + first_class, c, mask)
            mantissa, exponent = sum_arcs(
                first, last, class_sources, class_destinations, class_words, before, after, True, ROWS, LANES
            )
            place = tl.load(classes + first_class + c, mask=mask, other=0) * stride_c
            x = tl.load(scores + start + place, mask=mask, other=float("-inf")).to(tl.float64)
            factor, factor_exponent = unpack(word_of(x - reference))
            posterior = plain(mantissa / total * factor, exponent + factor_exponent + units)
            tl.store(out + c, posterior.to(gamma.dtype.element_ty), mask=c < num_classes)


@kernel
def count_arcs(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, samples, classes, references, offsets, sources,
    destinations, labels, arcs, words, alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses, counts,
    EMITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How often each arc is expected on a path; ``offsets`` are those of the arcs into each state."""
    m = tl.program_id(1)
    n, frames, frame = fact(samples, m, SAMPLE), fact(samples, m, FRAMES), fact(samples, m, FRAME)
    first_state, states = fact(samples, m, STATE), fact(samples, m, STATES)
    k = tl.load(offsets + first_state) + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < tl.load(offsets + first_state + states)
    if (tl.load(losses + n) < float("inf")) & (tl.max(mask.to(tl.int32), 0) != 0):
        source = tl.load(sources + k, mask=mask, other=0)
        destination = tl.load(destinations + k, mask=mask, other=0)
        weight, weight_exponent = unpack(tl.load(words + k, mask=mask, other=float("-inf")))
        place = tl.zeros([BLOCK], tl.int64)
        if EMITS:
            label = tl.load(labels + k, mask=mask, other=0)
            place = tl.load(classes + fact(samples, m, CLASS) + label, mask=mask, other=0) * stride_c
        before, after = alpha + fact(samples, m, PLANE), beta + fact(samples, m, PLANE)
        weight = weight / tl.load(totals + m)
        taken = tl.zeros([BLOCK], tl.float64)
        for t in range(frames if EMITS else frames + 1):
            u = t + 1 if EMITS else t
            units = units_of(alpha_bases, beta_bases, total_exponents, m, frame, t, u)
            one, one_exponent = unpack(tl.load(before + t * states + source, mask=mask, other=float("-inf")))
            other, other_exponent = unpack(tl.load(after + u * states + destination, mask=mask, other=float("-inf")))
            mantissa, exponent = one * weight * other, one_exponent + weight_exponent + other_exponent + units
            if EMITS:
                start = scores + n * stride_n + t * stride_t
                x = tl.load(start + place, mask=mask, other=float("-inf")).to(tl.float64)
                factor, factor_exponent = unpack(word_of(x - tl.load(references + frame + t)))
                mantissa, exponent = mantissa * factor, exponent + factor_exponent
            taken += plain(mantissa, exponent)
        number = tl.load(arcs + k, mask=mask, other=0)
        tl.store(counts + fact(samples, m, COUNTS) + number, taken, mask=mask)


@kernel
def count_ends(
    samples, starts, finals, alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses, counts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How probable each state is as the first, and as the last; what is counted of states lies behind all arcs."""
    m = tl.program_id(1)
    n, frames, frame = fact(samples, m, SAMPLE), fact(samples, m, FRAMES), fact(samples, m, FRAME)
    first_state, states, plane = fact(samples, m, STATE), fact(samples, m, STATES), fact(samples, m, PLANE)
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(losses + n) < float("inf"):
        total, units = tl.load(totals + m), -tl.load(total_exponents + m)
        behind = counts + fact(samples, m, COUNTS) + fact(samples, m, WEIGHTS) - 2 * states
        for end in tl.static_range(2):
            at, bases, ends = beta + plane, beta_bases + frame, starts + first_state
            if end == 1:
                at, bases, ends = alpha + plane + frames * states, alpha_bases + frame + frames, finals + first_state
            one, one_exponent = unpack(tl.load(at + s, mask=s < states, other=float("-inf")))
            score, score_exponent = unpack(tl.load(ends + s, mask=s < states, other=float("-inf")))
            posterior = plain(one / total * score, one_exponent + score_exponent + units + tl.load(bases))
            tl.store(behind + end * states + s, posterior, mask=s < states)


@kernel
def write_gradient(
    grad_losses, losses, samples, classes, gamma, num_classes: tl.int32, out, stride_n: tl.int64, stride_t: tl.int64,
    stride_c: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """-upstream * posterior of each class that the sample's graph emits; what else there is is 0 already."""
    t, m = tl.program_id(0), tl.program_id(1)
    if t < fact(samples, m, FRAMES):
        n, count = fact(samples, m, SAMPLE), fact(samples, m, CLASSES).to(tl.int32)
        upstream, loss = tl.load(grad_losses + n).to(tl.float64), tl.load(losses + n)
        row, target = gamma + fact(samples, m, GAMMA) + t * count.to(tl.int64), out + n * stride_n + t * stride_t
        for begin in range(0, tl.where(loss < float("inf"), count, 0), BLOCK):
            c = begin + tl.arange(0, BLOCK)
            place = tl.load(classes + fact(samples, m, CLASS) + c, mask=c < count, other=0) * stride_c
            gradient = -upstream * tl.load(row + c, mask=c < count, other=0.0)
            if out.dtype.element_ty.primitive_bitwidth < 32:
                # The interpreter does not round a float64 to a bfloat16.
                gradient = gradient.to(tl.float32)
            tl.store(target + place, gradient.to(out.dtype.element_ty), mask=c < count)
        for begin in range(0, tl.where(loss == loss, 0, num_classes), BLOCK):
            c = begin + tl.arange(0, BLOCK)
            unknown = tl.full([BLOCK], float("nan"), tl.float32).to(out.dtype.element_ty)
            tl.store(target + c.to(tl.int64) * stride_c, unknown, mask=c < num_classes)


@kernel
def add_counts(
    grad_losses, losses, samples, num_samples: tl.int32, counts, num_weights: tl.int32, gradient, BLOCK: tl.constexpr,
):  # fmt: skip
    """-upstream * counts, summed over the samples in order."""
    w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for m in range(num_samples):
        n = fact(samples, m, SAMPLE)
        upstream, loss = tl.load(grad_losses + n).to(tl.float64), tl.load(losses + n)
        if (upstream != 0) & (loss != float("inf")):
            place = w - fact(samples, m, WEIGHT)
            own = (place >= 0) & (place < fact(samples, m, WEIGHTS))
            taken = tl.load(counts + fact(samples, m, COUNTS) + place, mask=own, other=0.0)
            total -= tl.where(own, upstream * tl.where(loss == loss, taken, float("nan")), 0.0)
    tl.store(gradient + w, total, mask=w < num_weights)
