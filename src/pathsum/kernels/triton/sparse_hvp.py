"""Second derivatives of lattices of graphs on the GPU.

As on chains (``chain_hvp``) the posterior of an arc moves by itself times its cost and the mean costs before and behind
it, less the mean cost of all paths. A state's mean is that over the arcs into it, or out of it, by their shares in what
``sparse.solve`` has found there: averages with non-negative weights, in which nothing cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import plain, unpack
from pathsum.kernels.triton.sparse import (
    CLASS,
    CLASSES,
    COUNTS,
    EPSILON,
    FRAME,
    FRAMES,
    GAMMA,
    PLANE,
    SAMPLE,
    STATE,
    STATES,
    STEPS,
    WEIGHTS,
    emit_row,
    fact,
    level_ahead,
    next_of_many,
    of_row,
    rows_of,
    terms,
    units_of,
    word_of,
)


@triton.jit
def _costs(ends, others, constants, means, other_means, k, mask, FACTORS: tl.constexpr):
    """What the arcs k cost with what comes at their ends."""
    end = tl.load(ends + k, mask=mask, other=0)
    cost = tl.load(means + end, mask=mask, other=0.0) + tl.load(constants + k, mask=mask, other=0.0)
    if FACTORS:
        cost += tl.load(other_means + tl.load(others + k, mask=mask, other=0), mask=mask, other=0.0)
    return cost


@triton.jit
def _weigh_long_row(
    begin, end, ends, others, words, constants, states, factors, means, other_means, unit, own, FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What ``_weigh_arcs`` finds of one row."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(begin, end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        mantissa, exponent = terms(ends, others, words, states, factors, k, k < end, FACTORS)
        cost = _costs(ends, others, constants, means, other_means, k, k < end, FACTORS) + own
        total += plain(mantissa, exponent + unit) * cost
    return tl.sum(total, 0)


@triton.jit
def _weigh_arcs(
    first, last, ends, others, words, constants, states, factors, means, other_means, units, own,
    FACTORS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sums of the arcs times their costs and those of the row itself, in units of 2**-units of each row."""
    total = tl.zeros([ROWS, LANES], tl.float64)
    degree = last - first
    longest = tl.max(degree, 0)
    for step in range(0, tl.minimum(longest, STEPS * LANES), LANES):
        k = first[:, None] + step + tl.arange(0, LANES)[None, :]
        mask = k < last[:, None]
        mantissa, exponent = terms(ends, others, words, states, factors, k, mask, FACTORS)
        cost = _costs(ends, others, constants, means, other_means, k, mask, FACTORS) + own[:, None]
        total += plain(mantissa, exponent + units[:, None]) * cost
    summed = tl.sum(total, 1)
    if longest > STEPS * LANES:
        index = tl.arange(0, ROWS)
        row = next_of_many(degree, -1, ROWS, LANES)
        while row < ROWS:
            more = _weigh_long_row(
                of_row(first, row, ROWS) + STEPS * LANES, of_row(last, row, ROWS), ends, others, words, constants,
                states, factors, means, other_means, of_row(units, row, ROWS), of_row(own, row, ROWS), FACTORS,
                ROWS * LANES,
            )  # fmt: skip
            summed += tl.where(index == row, more, 0.0)
            row = next_of_many(degree, row, ROWS, LANES)
    return summed


@triton.jit
def _relax_means(
    row, means, levels, offsets, ends, words, constants, count, first, BACK: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Add what the paths over epsilon arcs bring to the mean cost of each state."""
    left = tl.where(first < count, count if BACK else count - first, 0)
    while left > 0:
        # What other threads have stored of the level before.
        barrier()
        s, own = level_ahead(levels, left, count, BACK, ROWS)
        begin, end = rows_of(offsets, s, own)
        state, place = unpack(tl.load(row + s, mask=own, other=float("-inf")))
        possible = own & (state > 0)
        nothing = tl.zeros([ROWS], tl.float64)
        more = _weigh_arcs(
            begin, tl.where(possible, end, begin), ends, ends, words, constants, row, row, means, means, -place,
            nothing, False, ROWS, LANES,
        )  # fmt: skip
        mean = tl.load(means + s, mask=own, other=0.0)
        tl.store(means + s, mean + more / tl.where(possible, state, 1.0), mask=own)
        left -= tl.sum(own.to(tl.int32), 0)


@triton.jit
def _cost_row(tangents, start, along_c, classes, count, row, BLOCK: tl.constexpr):
    """What the classes of a frame cost."""
    for first in range(0, count, BLOCK):
        c = first + tl.arange(0, BLOCK)
        place = tl.load(classes + c, mask=c < count, other=0) * along_c
        x = tl.load(tangents + start + place, mask=c < count, other=0.0)
        tl.store(row + c, x.to(tl.float64), mask=c < count)


@triton.jit
def _sweep(
    scores, start, stride_t, stride_c, tangents, along_start, along_t, along_c, classes, num_classes, references,
    frames, offsets, ends, labels, words, constants, epsilon_offsets, epsilon_ends, epsilon_words, epsilon_constants,
    levels, first_row, first_costs, count, first_epsilon, emitted, costs, plane, bases, means,
    BACK: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Mean costs of the paths into each state of each row of alpha, or backwards of those out of each of beta."""
    begun = frames * count if BACK else 0
    for begin in range(0, count, ROWS):
        s = begin + tl.arange(0, ROWS)
        one, exponent = unpack(tl.load(first_row + s, mask=s < count, other=float("-inf")))
        state, place = unpack(tl.load(plane + begun + s, mask=s < count, other=float("-inf")))
        share = plain(one, exponent - place) / tl.where(state > 0, state, 1.0)
        tl.store(means + begun + s, share * tl.load(first_costs + s, mask=s < count, other=0.0), mask=s < count)
    _relax_means(
        plane + begun, means + begun, levels, epsilon_offsets, epsilon_ends, epsilon_words, epsilon_constants, count,
        first_epsilon, BACK, ROWS, LANES,
    )  # fmt: skip
    for step in range(frames):
        # What other threads have stored of the frame before; and they have read what the last one emits.
        barrier()
        t = frames - 1 - step if BACK else step
        before, at = (t + 1, t) if BACK else (t, t + 1)
        emit_row(
            scores, start + t * stride_t, stride_c, classes, num_classes, tl.load(references + t), emitted, ROWS * LANES
        )
        _cost_row(tangents, along_start + t * along_t, along_c, classes, num_classes, costs, ROWS * LANES)
        barrier()
        behind = tl.load(bases + before) - tl.load(bases + at)
        for begin in range(0, count, ROWS):
            s = begin + tl.arange(0, ROWS)
            state, place = unpack(tl.load(plane + at * count + s, mask=s < count, other=float("-inf")))
            possible = (s < count) & (state > 0)
            first, last = rows_of(offsets, s, possible)
            mean = _weigh_arcs(
                first, last, ends, labels, words, constants, plane + before * count, emitted, means + before * count,
                costs, tl.where(possible, behind - place, 0), tl.zeros([ROWS], tl.float64), True, ROWS, LANES,
            )  # fmt: skip
            tl.store(means + at * count + s, mean / tl.where(possible, state, 1.0), mask=s < count)
        _relax_means(
            plane + at * count, means + at * count, levels, epsilon_offsets, epsilon_ends, epsilon_words,
            epsilon_constants, count, first_epsilon, BACK, ROWS, LANES,
        )  # fmt: skip


@kernel
def solve(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, tangents, along_n: tl.int64, along_t: tl.int64,
    along_c: tl.int64, samples, classes, references, levels, in_offsets, in_sources, in_labels, in_words, in_costs,
    out_offsets, out_destinations, out_labels, out_words, out_costs, epsilon_offsets, epsilon_sources, epsilon_words,
    epsilon_costs, leaving_offsets, leaving_destinations, leaving_words, leaving_costs, starts, start_costs, finals,
    final_costs, emitted, costs, width: tl.int32, alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses,
    before, behind, slopes, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Mean cost up to each state, and of all paths of a sample, or, by its second program, behind each state."""
    m = tl.program_id(0)
    n, frames = fact(samples, m, SAMPLE), fact(samples, m, FRAMES)
    plane, frame, first_state = fact(samples, m, PLANE), fact(samples, m, FRAME), fact(samples, m, STATE)
    count, first_epsilon = fact(samples, m, STATES).to(tl.int32), fact(samples, m, EPSILON).to(tl.int32)
    own, num_classes = classes + fact(samples, m, CLASS), fact(samples, m, CLASSES).to(tl.int32)
    row = (2 * m + tl.program_id(1)).to(tl.int64) * 2 * width
    loss = tl.load(losses + n)
    if tl.program_id(1) == 1:
        if loss < float("inf"):
            _sweep(
                scores, n * stride_n, stride_t, stride_c, tangents, n * along_n, along_t, along_c, own, num_classes,
                references + frame, frames, out_offsets + first_state, out_destinations, out_labels, out_words,
                out_costs, leaving_offsets + first_state, leaving_destinations, leaving_words, leaving_costs,
                levels + first_state, finals + first_state, final_costs + first_state, count, first_epsilon,
                emitted + row, costs + row, beta + plane, beta_bases + frame, behind + plane, True, ROWS, LANES,
            )  # fmt: skip
    else:
        slope = tl.where(loss == loss, 0.0, float("nan")).to(tl.float64)
        if loss < float("inf"):
            _sweep(
                scores, n * stride_n, stride_t, stride_c, tangents, n * along_n, along_t, along_c, own, num_classes,
                references + frame, frames, in_offsets + first_state, in_sources, in_labels, in_words, in_costs,
                epsilon_offsets + first_state, epsilon_sources, epsilon_words, epsilon_costs, levels + first_state,
                starts + first_state, start_costs + first_state, count, first_epsilon, emitted + row, costs + row,
                alpha + plane, alpha_bases + frame, before + plane, False, ROWS, LANES,
            )  # fmt: skip
            barrier()
            last = plane + frames * count
            total = tl.load(totals + m)
            units = tl.load(alpha_bases + frame + frames) - tl.load(total_exponents + m)
            summed = tl.zeros([ROWS], tl.float64)
            for begin in range(0, count, ROWS):
                s = begin + tl.arange(0, ROWS)
                state, place = unpack(tl.load(alpha + last + s, mask=s < count, other=float("-inf")))
                final, exponent = unpack(tl.load(finals + first_state + s, mask=s < count, other=float("-inf")))
                cost = tl.load(before + last + s, mask=s < count, other=0.0)
                cost += tl.load(final_costs + first_state + s, mask=s < count, other=0.0)
                summed += plain(state / total * final, place + exponent + units) * cost
            slope = -tl.sum(summed, 0)
        tl.store(slopes + n, slope)


@kernel
def move_posteriors(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, tangents, along_n: tl.int64, along_t: tl.int64,
    along_c: tl.int64, samples, classes, references, class_offsets, class_sources, class_destinations, class_words,
    class_costs, alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses, before, behind, slopes, moved,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """How the posteriors of the classes in each frame move; 0 where there is no path."""
    t, m = tl.program_id(0), tl.program_id(1)
    if t < fact(samples, m, FRAMES):
        n, frame, states = fact(samples, m, SAMPLE), fact(samples, m, FRAME), fact(samples, m, STATES)
        first_class, num_classes = fact(samples, m, CLASS), fact(samples, m, CLASSES).to(tl.int32)
        passed = fact(samples, m, PLANE) + t * states
        left = passed + states
        out = moved + fact(samples, m, GAMMA) + t * num_classes.to(tl.int64)
        possible = tl.load(losses + n) < float("inf")
        reference = tl.load(references + frame + t)
        total, units, slope = tl.full([], 1.0, tl.float64), tl.zeros([], tl.int64), tl.zeros([], tl.float64)
        if possible:
            total, slope = tl.load(totals + m), tl.load(slopes + n)
            units = units_of(alpha_bases, beta_bases, total_exponents, m, frame, t, t + 1)
        for begin in range(0, num_classes, ROWS):
            c = begin + tl.arange(0, ROWS)
            mask = c < tl.where(possible, num_classes, 0)
            first, last = rows_of(class_offsets + first_class, c, mask)
            own = tl.load(classes + first_class + c, mask=mask, other=0)
            x = tl.load(scores + n * stride_n + t * stride_t + own * stride_c, mask=mask, other=float("-inf"))
            factor, factor_exponent = unpack(word_of(x.to(tl.float64) - reference))
            place = tangents + n * along_n + t * along_t + own * along_c
            # The slope is of the loss: minus that of the log-sum.
            cost = tl.load(place, mask=mask, other=0.0).to(tl.float64) + slope
            last = tl.where(factor > 0, last, first)
            move = _weigh_arcs(
                first, last, class_sources, class_destinations, class_words, class_costs, alpha + passed, beta + left,
                before + passed, behind + left, tl.where(factor > 0, factor_exponent + units, 0), cost, True, ROWS,
                LANES,
            )  # fmt: skip
            tl.store(out + c, move * factor / total, mask=c < num_classes)


@kernel
def count_arcs(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, tangents, along_n: tl.int64, along_t: tl.int64,
    along_c: tl.int64, samples, classes, references, offsets, sources, destinations, labels, arcs, words, constants,
    alpha, alpha_bases, beta, beta_bases, totals, total_exponents, losses, before, behind, slopes, counts,
    EMITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How the number of times moves that each arc is taken; arguments as in ``sparse.count_arcs``."""
    m = tl.program_id(1)
    n, frames, frame = fact(samples, m, SAMPLE), fact(samples, m, FRAMES), fact(samples, m, FRAME)
    first_state, states, plane = fact(samples, m, STATE), fact(samples, m, STATES), fact(samples, m, PLANE)
    k = tl.load(offsets + first_state) + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < tl.load(offsets + first_state + states)
    if (tl.load(losses + n) < float("inf")) & (tl.max(mask.to(tl.int32), 0) != 0):
        source = tl.load(sources + k, mask=mask, other=0)
        destination = tl.load(destinations + k, mask=mask, other=0)
        weight, weight_exponent = unpack(tl.load(words + k, mask=mask, other=float("-inf")))
        own = tl.zeros([BLOCK], tl.int64)
        if EMITS:
            label = tl.load(labels + k, mask=mask, other=0)
            own += tl.load(classes + fact(samples, m, CLASS) + label, mask=mask, other=0)
        weight = weight / tl.load(totals + m)
        constant = tl.load(constants + k, mask=mask, other=0.0) + tl.load(slopes + n)
        taken = tl.zeros([BLOCK], tl.float64)
        for t in range(frames if EMITS else frames + 1):
            u = t + 1 if EMITS else t
            units = units_of(alpha_bases, beta_bases, total_exponents, m, frame, t, u)
            here, there = plane + t * states + source, plane + u * states + destination
            one, one_exponent = unpack(tl.load(alpha + here, mask=mask, other=float("-inf")))
            other, other_exponent = unpack(tl.load(beta + there, mask=mask, other=float("-inf")))
            mantissa, exponent = one * weight * other, one_exponent + weight_exponent + other_exponent + units
            cost = tl.load(before + here, mask=mask, other=0.0) + tl.load(behind + there, mask=mask, other=0.0)
            if EMITS:
                start = scores + n * stride_n + t * stride_t
                x = tl.load(start + own * stride_c, mask=mask, other=float("-inf")).to(tl.float64)
                factor, factor_exponent = unpack(word_of(x - tl.load(references + frame + t)))
                mantissa, exponent = mantissa * factor, exponent + factor_exponent
                start = tangents + n * along_n + t * along_t
                cost += tl.load(start + own * along_c, mask=mask, other=0.0).to(tl.float64)
            taken += plain(mantissa, exponent) * (cost + constant)
        number = tl.load(arcs + k, mask=mask, other=0)
        tl.store(counts + fact(samples, m, COUNTS) + number, taken, mask=mask)


@kernel
def count_ends(
    samples, starts, start_costs, finals, final_costs, alpha, alpha_bases, beta, beta_bases, totals, total_exponents,
    losses, before, behind, slopes, counts, BLOCK: tl.constexpr,
):  # fmt: skip
    """How the probabilities move that states are the first, and the last."""
    m = tl.program_id(1)
    n, frames, frame = fact(samples, m, SAMPLE), fact(samples, m, FRAMES), fact(samples, m, FRAME)
    first_state, states, plane = fact(samples, m, STATE), fact(samples, m, STATES), fact(samples, m, PLANE)
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(losses + n) < float("inf"):
        total, units, slope = tl.load(totals + m), -tl.load(total_exponents + m), tl.load(slopes + n)
        out = counts + fact(samples, m, COUNTS) + fact(samples, m, WEIGHTS) - 2 * states
        for end in tl.static_range(2):
            at, means, bases = beta + plane, behind + plane, beta_bases + frame
            ends, costs = starts, start_costs
            if end == 1:
                last = plane + frames * states
                at, means, bases = alpha + last, before + last, alpha_bases + frame + frames
                ends, costs = finals, final_costs
            one, one_exponent = unpack(tl.load(at + s, mask=s < states, other=float("-inf")))
            score, score_exponent = unpack(tl.load(ends + first_state + s, mask=s < states, other=float("-inf")))
            posterior = plain(one / total * score, one_exponent + score_exponent + units + tl.load(bases))
            cost = tl.load(means + s, mask=s < states, other=0.0) + slope
            cost += tl.load(costs + first_state + s, mask=s < states, other=0.0)
            tl.store(out + end * states + s, posterior * cost, mask=s < states)
