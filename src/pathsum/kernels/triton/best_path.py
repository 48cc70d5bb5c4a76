"""Best paths on the GPU: plain max-plus in float64, and the path traced back through what was chosen.

One program a sample, as in the recursions of ``chain``, ``grid``, ``dense`` and ``sparse``; the choices of a frame are
kept in a byte or an int32 a state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.dense import load_scores
from pathsum.kernels.triton.sparse import (
    CLASS,
    EPSILON,
    FRAME,
    FRAMES,
    PLANE,
    SAMPLE,
    STATE,
    STATES,
    STEPS,
    fact,
    level_ahead,
    next_of_many,
    of_row,
    rows_of,
)


@triton.jit
def _constants(transitions, indices, places, used, TRANSITIONS: tl.constexpr):
    if TRANSITIONS:
        index = tl.load(indices + places, mask=used, other=-1)
        return tl.load(transitions + index, mask=index >= 0, other=0.0).to(tl.float64)
    else:
        return 0.0


@triton.jit
def _beside(score, edges, t, lanes, strip, distance):
    """The scores of the frame before ``distance`` states down; of the strip before, its last two states'."""
    own = tl.gather(score, tl.maximum(lanes - distance, 0), 0)
    outside = lanes < distance
    edge = tl.load(edges + 2 * (t - 1) + lanes - distance + 2, mask=outside & (strip > 0), other=float("-inf"))
    return tl.where(outside, edge, own)


@kernel
def chain(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_states, stay_labels,
    step_labels, skips, stays, steps, transitions, num_frames: tl.int32, width: tl.int32, start_state: tl.int32,
    num_final: tl.int32, edges, moves, log_probs, states, TRANSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``moves`` (N, T, S'): how many states the best arc into each goes on. ``edges``: (N, 2, T, 2)."""
    n = tl.program_id(0).to(tl.int64)
    frames, count = tl.load(input_lengths + n).to(tl.int32), tl.load(num_states + n).to(tl.int32)
    lanes = tl.arange(0, BLOCK)
    best, state = tl.zeros([], tl.float64) - float("inf"), tl.zeros([], tl.int32)
    undefined = tl.zeros([BLOCK], tl.int32)
    for strip in range(0, count, BLOCK):
        # What an earlier strip has stored other threads read.
        barrier()
        s = strip + lanes
        used, places = s < count, n * width + s
        stay_label = tl.load(stay_labels + places, mask=used, other=0).to(tl.int64)
        step_label = tl.load(step_labels + places, mask=used, other=0).to(tl.int64)
        skip = tl.load(skips + places, mask=used, other=0) != 0
        stay = _constants(transitions, stays, places, used, TRANSITIONS)
        step = _constants(transitions, steps, places, used, TRANSITIONS)
        before = edges + (2 * n + (strip // BLOCK + 1) % 2) * num_frames * 2
        after = edges + (2 * n + strip // BLOCK % 2) * num_frames * 2
        own = tl.where(s == start_state, 0.0, float("-inf")).to(tl.float64)
        one = tl.where(s - 1 == start_state, 0.0, float("-inf")).to(tl.float64)
        two = tl.where(s - 2 == start_state, 0.0, float("-inf")).to(tl.float64)
        for t in range(frames):
            row = scores + n * stride_n + t * stride_t
            staying = tl.load(row + stay_label * stride_c, mask=used, other=float("-inf")).to(tl.float64) + stay
            entering = tl.load(row + step_label * stride_c, mask=used, other=float("-inf")).to(tl.float64) + step
            undefined = undefined | (used & ~((staying < float("inf")) & (entering < float("inf")))).to(tl.int32)
            if t > 0:
                one, two = _beside(own, before, t, lanes, strip, 1), _beside(own, before, t, lanes, strip, 2)
            score = own + staying
            stepping, skipping = one + entering, tl.where(skip, two + entering, float("-inf"))
            # Of equals the first: to stay, to step, to skip.
            move = (stepping > score).to(tl.int32)
            score = tl.maximum(score, stepping)
            move = tl.where(skipping > score, 2, move)
            own = tl.where(used, tl.maximum(score, skipping), float("-inf"))
            tl.store(moves + (n * num_frames + t) * width + s, move.to(tl.int8), mask=used)
            tl.store(after + 2 * t + lanes - BLOCK + 2, own, mask=lanes >= BLOCK - 2)
        final = tl.where(used & (s >= count - num_final), own, float("-inf"))
        top = tl.max(final, 0)
        lowest = tl.min(tl.where(final == top, s, width), 0)
        state = tl.where(top > best, lowest, state)
        best = tl.maximum(best, top)
    stands = (start_state >= count - num_final) & (start_state < count)
    best = tl.where((frames == 0) & stands, 0.0, best)
    is_defined = tl.max(undefined, 0) == 0
    tl.store(log_probs + n, tl.where(is_defined, best, float("nan")))
    barrier()
    if is_defined & (best > float("-inf")):
        for behind in range(frames):
            row = n * num_frames + frames - 1 - behind
            tl.store(states + row, state.to(tl.int64))
            state -= tl.load(moves + row * width + state).to(tl.int32)


@kernel
def grid(
    blank_scores, label_scores, undefined, logit_lengths, target_lengths, num_frames: tl.int32, num_labels: tl.int32,
    edges, by_label, log_probs, frames_out, scores_out, BLOCK: tl.constexpr,
):  # fmt: skip
    """``by_label`` (N, T, U+1): whether the best arc into each node is a label's. ``edges`` (N, 2, T)."""
    n = tl.program_id(0).to(tl.int64)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    width = num_labels + 1
    origin = n * num_frames * width
    lanes = tl.arange(0, BLOCK)
    score = tl.full([BLOCK], float("-inf"), tl.float64)
    for strip in range(0, tl.where(frames > 0, labels + 1, 0), BLOCK):
        barrier()
        u = strip + lanes
        before = edges + (2 * n + (strip // BLOCK + 1) % 2) * num_frames
        after = edges + (2 * n + strip // BLOCK % 2) * num_frames
        score = tl.full([BLOCK], float("-inf"), tl.float64)
        for d in range(strip, frames + tl.minimum(strip + BLOCK - 1, labels)):
            t = d - u
            inside = (t >= 0) & (t < frames) & (u <= labels)
            node = origin + t * width + u
            blank = tl.load(blank_scores + node - width, mask=inside & (t > 0), other=float("-inf"))
            label = tl.load(label_scores + node - 1, mask=inside & (u > 0), other=float("-inf"))
            beside = tl.gather(score, tl.maximum(lanes - 1, 0), 0)
            edge = tl.load(before + t, mask=inside & (lanes == 0) & (u > 0), other=float("-inf"))
            written = tl.where(lanes == 0, edge, beside) + label
            arriving = tl.where((t == 0) & (u == 0), 0.0, score + blank)
            tl.store(by_label + node, (written > arriving).to(tl.int8), mask=inside)
            score = tl.where(inside, tl.maximum(arriving, written), float("-inf"))
            tl.store(after + t, score, mask=inside & (lanes == BLOCK - 1))
    is_last = lanes == labels % BLOCK
    final = tl.load(blank_scores + origin + (frames - 1) * width + labels, mask=frames > 0, other=float("-inf"))
    best = tl.max(tl.where(is_last, score, float("-inf")), 0) + final
    is_defined = tl.load(undefined + n) == 0
    best = tl.where(is_defined, best, float("nan"))
    tl.store(log_probs + n, best)
    found = is_defined & (best > float("-inf"))
    barrier()
    t, u = tl.where(found, frames - 1, 0), tl.where(found, labels, 0)
    for _ in range(tl.where(found, frames - 1 + labels, 0)):
        node = origin + t.to(tl.int64) * width + u
        by = tl.load(by_label + node).to(tl.int32)
        place = n * num_labels + u - 1
        tl.store(frames_out + place, t.to(tl.int64), mask=by != 0)
        tl.store(scores_out + place, tl.load(label_scores + node - 1, mask=by != 0, other=0.0), mask=by != 0)
        t, u = t - (1 - by), u - by
    # Labels that are on no path have its score, -inf or NaN.
    for first in range(0, tl.where(found, 0, labels), BLOCK):
        tl.store(
            scores_out + n * num_labels + first + lanes,
            tl.zeros([BLOCK], tl.float64) + best,
            mask=first + lanes < labels,
        )


@triton.jit
def _best_arcs(transitions, vector, to, num_classes, TO: tl.constexpr, FROM: tl.constexpr):
    """The greatest vector[i] + transitions[to, i] over i, and the first i that has it."""
    best, source = tl.full([TO], float("-inf"), tl.float64), tl.zeros([TO], tl.int32)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        mask = (to < num_classes)[:, None] & (i < num_classes)[None, :]
        places = transitions + to.to(tl.int64)[:, None] * num_classes + i[None, :]
        x = tl.load(places, mask=mask, other=float("-inf")).to(tl.float64)
        x += tl.load(vector + i, mask=i < num_classes, other=float("-inf"))[None, :]
        greatest = tl.max(x, 1)
        lowest = tl.min(tl.where(x == greatest[:, None], i[None, :], num_classes), 1)
        source = tl.where(greatest > best, lowest, source)
        best = tl.maximum(best, greatest)
    return best, source


@kernel
def dense(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, transitions, undefined_arcs,
    num_frames: tl.int32, num_classes: tl.int32, alpha, sources, log_probs, states, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """``alpha`` (N, 2, C) is that of one frame and of the next; ``sources`` (N, T, C)."""
    n = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + n).to(tl.int32)
    best, state = tl.zeros([], tl.float64) - float("inf"), tl.zeros([], tl.int32)
    undefined = tl.zeros([TO], tl.int32)
    for t in range(frames):
        # What other threads have stored of the frame before.
        barrier()
        here, before = alpha + (2 * n + t % 2) * num_classes, alpha + (2 * n + (t + 1) % 2) * num_classes
        best = tl.zeros([], tl.float64) - float("inf")
        for first in range(0, num_classes, TO):
            j = first + tl.arange(0, TO)
            x = load_scores(scores, n * stride_n + t * stride_t, stride_c, j, num_classes)
            undefined = undefined | (~(x < float("inf"))).to(tl.int32)
            if t > 0:
                arriving, source = _best_arcs(transitions, before, j, num_classes, TO, FROM)
                tl.store(sources + (n * num_frames + t) * num_classes + j, source, mask=j < num_classes)
                x += arriving
            tl.store(here + j, x, mask=j < num_classes)
            top = tl.max(x, 0)
            lowest = tl.min(tl.where(x == top, j, num_classes), 0)
            state = tl.where(top > best, lowest, state)
            best = tl.maximum(best, top)
    best = tl.where(frames == 0, 0.0, best)
    wrong = tl.max(undefined, 0) | ((frames > 1) & (tl.load(undefined_arcs) != 0)).to(tl.int32)
    tl.store(log_probs + n, tl.where(wrong == 0, best, float("nan")))
    barrier()
    if (wrong == 0) & (best > float("-inf")):
        for behind in range(frames):
            t = frames - 1 - behind
            row = n * num_frames + t
            tl.store(states + row, state.to(tl.int64))
            state = tl.load(sources + row * num_classes + state, mask=t > 0, other=0)


# Beyond every arc; what a row without one has chosen.
NO_ARC = tl.constexpr(2**31 - 1)


@triton.jit
def _scores_of_arcs(ends, labels, weights, states, classes, frame, stride_c, reference, k, mask, EMITS: tl.constexpr):
    """What the paths over the arcs k score."""
    end = tl.load(ends + k, mask=mask, other=0)
    x = tl.load(states + end, mask=mask, other=float("-inf"))
    own = tl.load(weights + k, mask=mask, other=float("-inf"))
    if EMITS:
        label = tl.load(labels + k, mask=mask, other=0)
        place = tl.load(classes + label, mask=mask, other=0) * stride_c
        own += tl.load(frame + place, mask=mask, other=float("-inf")).to(tl.float64) - reference
    return x + own


@triton.jit
def _greatest_of_long_row(
    begin, end, ends, labels, weights, states, classes, frame, stride_c, reference, EMITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What ``_greatest_of_arcs`` finds of one row."""
    best, arc = tl.full([BLOCK], float("-inf"), tl.float64), tl.full([BLOCK], NO_ARC, tl.int32)
    for first in range(begin, end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        x = _scores_of_arcs(ends, labels, weights, states, classes, frame, stride_c, reference, k, k < end, EMITS)
        arc = tl.where(x > best, k, arc)
        best = tl.maximum(best, x)
    greatest = tl.max(best, 0)
    return greatest, tl.min(tl.where(best == greatest, arc, NO_ARC), 0)


@triton.jit
def _greatest_of_arcs(
    first, last, ends, labels, weights, states, classes, frame, stride_c, reference, EMITS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The greatest score of the arcs of each row, and the first arc that has it."""
    best, arc = tl.full([ROWS, LANES], float("-inf"), tl.float64), tl.full([ROWS, LANES], NO_ARC, tl.int32)
    degree = last - first
    longest = tl.max(degree, 0)
    for step in range(0, tl.minimum(longest, STEPS * LANES), LANES):
        k = first[:, None] + step + tl.arange(0, LANES)[None, :]
        x = _scores_of_arcs(
            ends, labels, weights, states, classes, frame, stride_c, reference, k, k < last[:, None], EMITS
        )
        arc = tl.where(x > best, k, arc)
        best = tl.maximum(best, x)
    greatest = tl.max(best, 1)
    chosen = tl.min(tl.where(best == greatest[:, None], arc, NO_ARC), 1)
    if longest > STEPS * LANES:
        index = tl.arange(0, ROWS)
        row = next_of_many(degree, -1, ROWS, LANES)
        while row < ROWS:
            top, other = _greatest_of_long_row(
                of_row(first, row, ROWS) + STEPS * LANES, of_row(last, row, ROWS), ends, labels, weights, states,
                classes, frame, stride_c, reference, EMITS, ROWS * LANES,
            )  # fmt: skip
            better = (index == row) & (top > greatest)
            chosen = tl.where(better, other, chosen)
            greatest = tl.where(better, top, greatest)
            row = next_of_many(degree, row, ROWS, LANES)
    return greatest, chosen


@kernel
def sparse(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, samples, classes, references, undefined, levels,
    numbers, in_offsets, in_sources, in_labels, in_weights, epsilon_offsets, epsilon_sources, epsilon_weights, starts,
    finals, alpha, back, log_probs, arcs, labels, num_frames: tl.int32, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``alpha`` and ``back`` have a row of states for each frame; the latter says by which arc a path came, or by which
    epsilon arc k as -2 - k. Columns of ``samples`` are those of the recursion.
    """
    m = tl.program_id(0)
    n, frames, frame = fact(samples, m, SAMPLE), fact(samples, m, FRAMES), fact(samples, m, FRAME)
    plane, first_state = fact(samples, m, PLANE), fact(samples, m, STATE)
    count, first_epsilon = fact(samples, m, STATES).to(tl.int32), fact(samples, m, EPSILON).to(tl.int32)
    own = classes + fact(samples, m, CLASS)
    in_common = tl.zeros([], tl.float64)
    for t in range(frames + 1):
        # What other threads have stored of the frame before.
        barrier()
        row, choices = alpha + plane + t * count, back + plane + t * count
        before = row - tl.where(t > 0, count, 0)
        at = scores + n * stride_n + (t - tl.where(t > 0, 1, 0)) * stride_t
        reference = tl.load(references + frame + t - 1, mask=t > 0, other=0.0)
        in_common += reference
        for begin in range(0, count, ROWS):
            s = begin + tl.arange(0, ROWS)
            first, last = rows_of(in_offsets + first_state, s, (s < count) & (t > 0))
            best, arc = _greatest_of_arcs(
                first, last, in_sources, in_labels, in_weights, before, own, at, stride_c, reference, True, ROWS, LANES
            )
            start = tl.load(starts + first_state + s, mask=(s < count) & (t == 0), other=float("-inf"))
            tl.store(row + s, tl.maximum(best, start), mask=s < count)
            tl.store(choices + s, arc, mask=s < count)
        left = tl.where(first_epsilon < count, count - first_epsilon, 0)
        while left > 0:
            barrier()
            s, mine = level_ahead(levels + first_state, left, count, False, ROWS)
            first, last = rows_of(epsilon_offsets + first_state, s, mine)
            best, arc = _greatest_of_arcs(
                first, last, epsilon_sources, epsilon_sources, epsilon_weights, row, own, at, stride_c, reference,
                False, ROWS, LANES,
            )  # fmt: skip
            better = mine & (best > tl.load(row + s, mask=mine, other=0.0))
            tl.store(row + s, best, mask=better)
            tl.store(choices + s, -2 - arc, mask=better)
            left -= tl.sum(mine.to(tl.int32), 0)
    barrier()
    best, state = tl.zeros([], tl.float64) - float("inf"), tl.zeros([], tl.int32)
    for begin in range(0, count, ROWS):
        s = begin + tl.arange(0, ROWS)
        x = tl.load(alpha + plane + frames * count + s, mask=s < count, other=float("-inf"))
        x += tl.load(finals + first_state + s, mask=s < count, other=float("-inf"))
        top = tl.max(x, 0)
        lowest = tl.min(tl.where(x == top, s, count), 0)
        state = tl.where(top > best, lowest, state)
        best = tl.maximum(best, top)
    is_defined = tl.load(undefined + n) == 0
    tl.store(log_probs + n, tl.where(is_defined, best + in_common, float("nan")))
    if is_defined & (best > float("-inf")):
        t = frames
        choice = tl.load(back + plane + t * count + state)
        while (t > 0) | (choice < -1):
            if choice < -1:
                state = tl.load(epsilon_sources - choice - 2)
            else:
                t -= 1
                place = n * num_frames + t
                tl.store(arcs + place, tl.load(numbers + choice).to(tl.int64))
                tl.store(labels + place, tl.load(own + tl.load(in_labels + choice)))
                state = tl.load(in_sources + choice)
            choice = tl.load(back + plane + t * count + state)
