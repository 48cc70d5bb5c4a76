"""Chains on the GPU: forward.

Three kernels: rows (softmax statistics, scores gathered by state), the recursion, and the posteriors. Planes over
frames are (N, T, S'), as the scores are padded.

The recursion is one launch: a program for alpha and one for beta of every sample, with a lane for each state, which
hands its mass to the next two. Chains with more than ``BLOCK`` states are done in strips of it, what enters a strip
being read back from the plane that the strip before has written. Masses are in extended range: those of alpha in the
wide pair, those of beta and of the posteriors in the narrow one where its exponents hold every path of a sample. Each
of the two launches leaves the other's samples alone, so that nobody has to look at scores before launching.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum import numerics
from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import (
    LN_2,
    LOG2_E,
    add,
    narrowed,
    normalise,
    pack,
    reference_of,
    shift,
    split,
    split_wide,
    unit_of,
    unpack,
    zeros_like,
)
from pathsum.kernels.triton.rows import softmax_statistics

MAX_EXPONENT = tl.constexpr(float(numerics.MAX_EXPONENT_32))
# The bits of a float32 NaN: greater, as an integer, than those of every other number that is not negative.
UNDEFINED = tl.constexpr(0x7FC00000)


@triton.jit
def _greatest_of_states(
    scores, starts, stride_c, labels, labels_width, n, num_states, num_columns, real, WORK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The greatest score of each row's states; of one that is not defined anything."""
    greatest = tl.full(starts.shape, float("-inf"), WORK)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)
        used = real[:, None] & (s[None, :] < num_states[:, None])
        label = tl.load(labels + n[:, None] * labels_width + s[None, :], mask=used, other=0).to(tl.int64)
        x = tl.load(scores + starts[:, None] + label * stride_c, mask=used, other=float("-inf")).to(WORK)
        greatest = tl.maximum(greatest, tl.max(x, 1))
    return greatest


@triton.jit
def _greatest_of_classes(
    scores, starts, stride_c, num_classes, real, WORK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The greatest score of each row."""
    greatest = tl.full(starts.shape, float("-inf"), WORK)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = real[:, None] & (c < num_classes)[None, :]
        places = scores + starts[:, None] + c.to(tl.int64)[None, :] * stride_c
        greatest = tl.maximum(greatest, tl.max(tl.load(places, mask=mask, other=float("-inf")).to(WORK), 1))
    return greatest


@triton.jit
def greatest_of_rows(
    scores, starts, stride_c, num_classes, stay_labels, step_labels, labels_width, n, num_states, num_columns, real,
    SHARED: tl.constexpr, RELATIVE: tl.constexpr, WORK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The greatest score of each row, or unless RELATIVE that of its states: what scores that are no logits lack, where
    it is huge.
    """
    if RELATIVE:
        return _greatest_of_classes(scores, starts, stride_c, num_classes, real, WORK, BLOCK)
    else:
        greatest = _greatest_of_states(
            scores, starts, stride_c, step_labels, labels_width, n, num_states, num_columns, real, WORK, BLOCK
        )
        if not SHARED:
            other = _greatest_of_states(
                scores, starts, stride_c, stay_labels, labels_width, n, num_states, num_columns, real, WORK, BLOCK
            )
            greatest = tl.maximum(greatest, other)
        return greatest


@triton.jit
def gather_by_state(
    scores, starts, stride_c, labels, labels_width, n, num_states, num_columns, reference, out, rows, real,
    WORK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the scores of each state's label; the largest one of each row by size, NaN where one is not defined."""
    largest = tl.zeros(rows.shape, tl.float32)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)
        used = real[:, None] & (s[None, :] < num_states[:, None])
        label = tl.load(labels + n[:, None] * labels_width + s[None, :], mask=used, other=0).to(tl.int64)
        x = tl.load(scores + starts[:, None] + label * stride_c, mask=used, other=float("-inf")).to(WORK)
        # A maximum leaves NaN out, a sum does not.
        undefined = tl.sum((used & ~(x < float("inf"))).to(tl.int32), 1) > 0
        x -= reference[:, None]
        size = tl.where(x > float("-inf"), tl.abs(x), 0.0).to(tl.float32)
        largest = tl.where(undefined, float("nan"), tl.maximum(largest, tl.max(size, 1)))
        places = out + rows[:, None] * num_columns + s[None, :]
        tl.store(places, x, mask=real[:, None] & (s < num_columns)[None, :])
    return largest


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, num_states, stay_labels, step_labels, labels_width: tl.int32,
    num_columns: tl.int32, maxima, sums, stay_scores, step_scores, extents, LOGITS: tl.constexpr,
    SHARED: tl.constexpr, RELATIVE: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Softmax statistics, scores of each state's arcs, and for each sample the bits of the largest of them by size.

    Without LOGITS a row's maximum is ``greatest_of_rows``.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    real = within & (t < tl.load(input_lengths + n))
    states = tl.load(num_states + n)
    starts = n * stride_n + t * stride_t
    undefined = rows < 0
    if LOGITS:
        maximum, total = softmax_statistics(scores, starts, stride_c, num_classes, real, WORK, BLOCK, ALIGNED)
        tl.store(sums + rows, total, mask=real)
        undefined = total != total
    else:
        maximum = greatest_of_rows(
            scores, starts, stride_c, num_classes, stay_labels, step_labels, labels_width, n, states, num_columns, real,
            SHARED, RELATIVE, WORK, BLOCK,
        )  # fmt: skip
    tl.store(maxima + rows, maximum, mask=real)
    reference = reference_of(maximum)
    largest = gather_by_state(
        scores, starts, stride_c, step_labels, labels_width, n, states, num_columns, reference, step_scores, rows, real,
        WORK, BLOCK,
    )  # fmt: skip
    if not SHARED:
        other = gather_by_state(
            scores, starts, stride_c, stay_labels, labels_width, n, states, num_columns, reference, stay_scores, rows,
            real, WORK, BLOCK,
        )  # fmt: skip
        undefined = undefined | (other != other)
        largest = tl.maximum(largest, other)
    undefined = undefined | (largest != largest)
    if LOGITS:
        # The exponents of alpha are less the row's.
        size = tl.abs(maximum - reference)
        largest = tl.maximum(largest, tl.where(size < float("inf"), size, 0.0).to(tl.float32))
    bits = tl.where(undefined, UNDEFINED, largest.to(tl.int32, bitcast=True))
    # The bits of floats that are not negative are in their order: the same integer whoever comes first.
    tl.atomic_max(extents + n, bits, mask=real)


@triton.jit
def is_wide(extent, frames, FIXED: tl.constexpr):
    """Whether the exponents of a sample's paths may leave the narrow pair."""
    if FIXED:
        return extent == extent
    else:
        largest = extent.to(tl.float32, bitcast=True)
        return ~(frames.to(tl.float32) * (largest + 2.0) * LOG2_E < MAX_EXPONENT)


@triton.jit
def constants_of(transitions, indices, n, width, s, used, TRANSITIONS: tl.constexpr):
    """The scores of arcs that are the same in all frames."""
    if TRANSITIONS:
        index = tl.load(indices + n * width + s, mask=used, other=-1)
        return tl.load(transitions + index, mask=index >= 0, other=0.0).to(tl.float64)
    else:
        return 0.0


@triton.jit
def _score(plane, frame, num_columns, s, used, constants, WIDE: tl.constexpr):
    """The scores of the states' arcs in a frame; frames count through the batch."""
    x = tl.load(plane + frame * num_columns + s, mask=used, other=float("-inf"))
    if WIDE:
        x = x.to(tl.float64) + constants
    return x


@triton.jit
def _weight(plane, frame, num_columns, s, used, constants, WIDE: tl.constexpr):
    """The same as extended numbers."""
    return split(_score(plane, frame, num_columns, s, used, constants, WIDE))


@triton.jit
def _share(
    plane, maxima, frame, is_real, num_columns, s, used, constants, LOGITS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The same in the wide pair, in units of the frame's own power of two: about 1 where a model is sure."""
    mantissa, exponent = split_wide(_score(plane, frame, num_columns, s, used & is_real, constants, WIDE))
    if LOGITS:
        _, _, power = unit_of(tl.load(maxima + frame, mask=is_real, other=0.0))
        exponent -= power
    return mantissa, exponent


@triton.jit
def _ones(where, WIDE: tl.constexpr):
    """Words of 1 where asked, else of 0."""
    mantissa = where.to(tl.float64 if WIDE else tl.float32)
    return pack(*normalise(mantissa, tl.zeros(mantissa.shape, tl.int64 if WIDE else tl.int32)))


@triton.jit
def _load_words(plane, places, mask):
    word = tl.load(plane + places, mask=mask, other=0)
    return tl.where(mask, word, zeros_like(word))


@triton.jit
def _times(word, mantissa, exponent):
    other, other_exponent = unpack(word)
    return other * mantissa, other_exponent + exponent


@triton.jit
def _beside(word, plane, places, lanes, distance, inside, BLOCK: tl.constexpr):
    """The words ``distance`` lanes further down, or up where negative: the strip's own, or read from the plane."""
    other = lanes - distance
    own = tl.gather(word, tl.minimum(tl.maximum(other, 0), BLOCK - 1), 0)
    outside = (other < 0) | (other >= BLOCK)
    return tl.where(outside, _load_words(plane, places, inside & outside), own)


@triton.jit
def _alpha(
    stay_scores, step_scores, maxima, stays, steps, transitions, skips, n, frame, frames, states, width, num_columns,
    start_state, alpha, LOGITS: tl.constexpr, ARCS_DIFFER: tl.constexpr, TRANSITIONS: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mass that arrives in each state of each frame; ``frame`` is the sample's first in the batch.

    In words of the wide pair, whatever the scores' own: the loss is a difference, and in float32 the rounding of many
    frames alike would be all of it.
    """
    lanes = tl.arange(0, BLOCK)
    for strip in range(0, states, BLOCK):
        # What an earlier strip has stored other threads read.
        barrier()
        s = strip + lanes
        used = s < states
        skip = tl.load(skips + n * width + s, mask=used, other=0) != 0
        stay = constants_of(transitions, stays, n, width, s, used, TRANSITIONS)
        step = constants_of(transitions, steps, n, width, s, used, TRANSITIONS)
        word = _ones(s == start_state, True)
        one_before, two_before = _ones(s - 1 == start_state, True), _ones(s - 2 == start_state, True)
        step_ahead, step_exponent_ahead = _share(
            step_scores, maxima, frame, True, num_columns, s, used, step, LOGITS, WIDE
        )
        stay_ahead, stay_exponent_ahead = step_ahead, step_exponent_ahead
        if ARCS_DIFFER:
            stay_ahead, stay_exponent_ahead = _share(
                stay_scores, maxima, frame, True, num_columns, s, used, stay, LOGITS, WIDE
            )
        for t in range(frames):
            weight, weight_exponent = step_ahead, step_exponent_ahead
            stay_weight, stay_exponent = stay_ahead, stay_exponent_ahead
            # A frame ahead, so that no step waits for memory.
            is_next = t + 1 < frames
            step_ahead, step_exponent_ahead = _share(
                step_scores, maxima, frame + t + 1, is_next, num_columns, s, used, step, LOGITS, WIDE
            )
            stay_ahead, stay_exponent_ahead = step_ahead, step_exponent_ahead
            if ARCS_DIFFER:
                stay_ahead, stay_exponent_ahead = _share(
                    stay_scores, maxima, frame + t + 1, is_next, num_columns, s, used, stay, LOGITS, WIDE
                )
            if t > 0:
                places = (frame + t - 1) * num_columns + s
                one_before = _beside(word, alpha, places - 1, lanes, 1, used & (s > 0), BLOCK)
                two_before = _beside(word, alpha, places - 2, lanes, 2, used & (s > 1), BLOCK)
            two_before = tl.where(skip, two_before, zeros_like(two_before))
            arriving, exponent = _times(one_before, weight, weight_exponent)
            skipping, skip_exponent = _times(two_before, weight, weight_exponent)
            staying, own_exponent = _times(word, stay_weight, stay_exponent)
            arriving, exponent = add(arriving, exponent, skipping, skip_exponent)
            arriving, exponent = add(arriving, exponent, staying, own_exponent)
            word = pack(arriving, exponent)
            tl.store(alpha + (frame + t) * num_columns + s, word, mask=used)


@triton.jit
def _beta(
    stay_scores, step_scores, stays, steps, transitions, skips, n, frame, frames, states, width, num_columns,
    num_final, beta, TRANSITIONS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mass that leaves each state of each frame."""
    lanes = tl.arange(0, BLOCK)
    last_strip = (states - 1) // BLOCK * BLOCK
    for back in range(0, states, BLOCK):
        barrier()
        s = last_strip - back + lanes
        used, has_one, has_two = s < states, s + 1 < states, s + 2 < states
        skip = tl.load(skips + n * width + s + 2, mask=has_two, other=0) != 0
        stay = constants_of(transitions, stays, n, width, s, used, TRANSITIONS)
        step = constants_of(transitions, steps, n, width, s + 1, has_one, TRANSITIONS)
        step_two = constants_of(transitions, steps, n, width, s + 2, has_two, TRANSITIONS)
        word = _ones(used & (s >= states - num_final), WIDE)
        tl.store(beta + (frame + frames - 1) * num_columns + s, word, mask=used)
        for behind in range(1, frames):
            t = frames - behind
            places = (frame + t) * num_columns + s
            one_after = _beside(word, beta, places + 1, lanes, -1, has_one, BLOCK)
            two_after = _beside(word, beta, places + 2, lanes, -2, has_two, BLOCK)
            weight, weight_exponent = _weight(stay_scores, frame + t, num_columns, s, used, stay, WIDE)
            leaving, exponent = _times(word, weight, weight_exponent)
            weight, weight_exponent = _weight(step_scores, frame + t, num_columns, s + 1, has_one, step, WIDE)
            stepping, step_exponent = _times(one_after, weight, weight_exponent)
            weight, weight_exponent = _weight(
                step_scores, frame + t, num_columns, s + 2, has_two & skip, step_two, WIDE
            )
            skipping, skip_exponent = _times(two_after, weight, weight_exponent)
            leaving, exponent = add(leaving, exponent, stepping, step_exponent)
            leaving, exponent = add(leaving, exponent, skipping, skip_exponent)
            word = pack(leaving, exponent)
            tl.store(beta + places - num_columns, word, mask=used)


@triton.jit
def _taken_off(maxima, sums, frame, frames, LOGITS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """What the loss has besides the logarithm of alpha, which lacks what is huge in the frames' scores.

    Of logits, whose softmax lacks the same, the sums of their exponentials in the units of ``_share``.
    """
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, frames, BLOCK):
        t = first + tl.arange(0, BLOCK)
        maximum = tl.load(maxima + frame + t, mask=t < frames, other=0.0)
        if LOGITS:
            mass = tl.load(sums + frame + t, mask=t < frames, other=1.0)
            # A row of nothing but -inf has none, and no path goes through it.
            possible = mass > 0
            size = tl.where(possible, maximum - reference_of(maximum), 0.0)
            # The sum is of exp(score - maximum): the weight of the greatest as ``_alpha`` has it, and its power.
            greatest, exponent = split_wide(size.to(tl.float64) if WIDE else size)
            _, _, power = unit_of(tl.where(possible, maximum, 0.0))
            total += tl.log(greatest * tl.where(possible, mass, 1.0)) + (exponent - power).to(tl.float64) * LN_2
        else:
            total -= reference_of(maximum).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _final_mass(alpha, frame, frames, states, num_columns, num_final):
    """The mass in the final states after the last frame."""
    last = (frame + frames - 1) * num_columns + states - 1
    one = _load_words(alpha, last, (num_final > 0) & (states > 0))
    two = _load_words(alpha, last - 1, (num_final > 1) & (states > 1))
    return add(*unpack(one), *unpack(two))


@kernel
def solve(
    stay_scores, step_scores, maxima, sums, extents, input_lengths, num_states, skips, stays, steps, transitions,
    num_frames: tl.int32, width: tl.int32, num_columns: tl.int32, start_state: tl.int32, num_final: tl.int32, alpha,
    beta, losses, LOGITS: tl.constexpr, SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta.

    Without ``maxima`` the loss lacks what alpha lacks.
    """
    n = tl.program_id(0).to(tl.int64)
    frames, states = tl.load(input_lengths + n).to(tl.int32), tl.load(num_states + n).to(tl.int32)
    extent = tl.load(extents + n)
    frame = n * num_frames
    is_defined = (extent != UNDEFINED) & (frames >= 0)
    if is_wide(extent, frames, FIXED) == WIDE:
        if tl.program_id(1) == 1:
            if is_defined & (frames > 0):
                _beta(
                    stay_scores, step_scores, stays, steps, transitions, skips, n, frame, frames, states, width,
                    num_columns, num_final, beta, TRANSITIONS, BLOCK, WIDE,
                )  # fmt: skip
        else:
            # Without frames there is the empty path, where its one state is final.
            stands = (start_state >= states - num_final) & (start_state < states)
            loss = tl.where(stands, 0.0, float("inf")).to(tl.float64)
            if is_defined & (frames > 0):
                _alpha(
                    stay_scores, step_scores, maxima, stays, steps, transitions, skips, n, frame, frames, states, width,
                    num_columns, start_state, alpha, LOGITS, not SHARED or TRANSITIONS, TRANSITIONS, BLOCK, WIDE,
                )  # fmt: skip
                barrier()
                mantissa, exponent = _final_mass(alpha, frame, frames, states, num_columns, num_final)
                loss = -tl.log(tl.where(mantissa > 0, mantissa, 1.0))
                if maxima is not None:
                    loss += _taken_off(maxima, sums, frame, frames, LOGITS, BLOCK, WIDE)
                loss = tl.where(mantissa > 0, loss - exponent.to(tl.float64) * LN_2, float("inf"))
            tl.store(losses + n, tl.where(is_defined, loss, float("nan")))


@triton.jit
def entering(alpha, rows, num_columns, s, t, mask, distance, start_state):
    """The masses of the frame before, ``distance`` states down; before the first frame all is in the start."""
    source = s - distance
    before = _load_words(alpha, (rows - 1) * num_columns + source, mask & (t > 0) & (source >= 0))
    return tl.where(t > 0, before, _ones((source == start_state) & (t <= 0), True))


@triton.jit
def _unpack_alpha(word, WIDE: tl.constexpr):
    """A word of alpha as a number of the pair that beta has."""
    mantissa, exponent = unpack(word)
    if not WIDE:
        mantissa, exponent = narrowed(mantissa, exponent)
    return mantissa, exponent


@triton.jit
def _masses(
    stay_scores, step_scores, stays, steps, transitions, skips, alpha, beta, rows, n, t, s, used, width, num_columns,
    start_state, SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Masses through the arcs that enter, and through those that stay in, each state; through all where SHARED."""
    places = rows * num_columns + s
    after, after_exponent = unpack(_load_words(beta, places, used))
    if SHARED:
        mantissa, exponent = _unpack_alpha(_load_words(alpha, places, used), WIDE)
        mantissa, exponent = mantissa * after, exponent + after_exponent
        return mantissa, exponent, mantissa, exponent
    else:
        step = constants_of(transitions, steps, n, width, s, used, TRANSITIONS)
        stay = constants_of(transitions, stays, n, width, s, used, TRANSITIONS)
        skip = tl.load(skips + n * width + s, mask=used, other=0) != 0
        one, one_exponent = _unpack_alpha(entering(alpha, rows, num_columns, s, t, used, 1, start_state), WIDE)
        skipping = entering(alpha, rows, num_columns, s, t, used & skip, 2, start_state)
        two, two_exponent = _unpack_alpha(tl.where(skip, skipping, zeros_like(skipping)), WIDE)
        mantissa, exponent = add(one, one_exponent, two, two_exponent)
        weight, weight_exponent = _weight(step_scores, rows, num_columns, s, used, step, WIDE)
        own, own_exponent = _unpack_alpha(entering(alpha, rows, num_columns, s, t, used, 0, start_state), WIDE)
        stay_weight, stay_exponent = _weight(stay_scores, rows, num_columns, s, used, stay, WIDE)
        staying = own * stay_weight * after
        return (
            mantissa * weight * after, exponent + weight_exponent + after_exponent, staying,
            own_exponent + stay_exponent + after_exponent,
        )  # fmt: skip


@kernel
def find_posteriors(
    stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps, transitions, alpha,
    beta, num_samples: tl.int32, num_frames: tl.int32, width: tl.int32, num_columns: tl.int32, start_state: tl.int32,
    SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    FIXED: tl.constexpr,
):  # fmt: skip
    """Write the posteriors of the arcs that emitted them over the scores.

    Those of a frame sum to 1, so dividing by their own sum keeps what alpha and beta have in common, and its rounding,
    out of them.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    frames, states = tl.load(input_lengths + n), tl.load(num_states + n)
    own = within & (t < frames) & (tl.load(losses + n) < float("inf"))
    own = own & (is_wide(tl.load(extents + n), frames, FIXED) == WIDE)
    rows, n, t, states, own = rows[:, None], n[:, None], t[:, None], states[:, None], own[:, None]
    largest = tl.zeros([ROWS], tl.int64 if WIDE else tl.int32) - (2**60 if WIDE else 2**28)
    total = tl.zeros([ROWS, BLOCK], tl.float64 if WIDE else tl.float32)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)[None, :]
        mantissa, exponent, staying, stay_exponent = _masses(
            stay_scores, step_scores, stays, steps, transitions, skips, alpha, beta, rows, n, t, s, own & (s < states),
            width, num_columns, start_state, SHARED, TRANSITIONS, WIDE,
        )  # fmt: skip
        greater = tl.maximum(largest, tl.maximum(tl.max(exponent, 1), tl.max(stay_exponent, 1)))
        total = shift(total, (largest - greater)[:, None]) + shift(mantissa, exponent - greater[:, None])
        if not SHARED:
            total += shift(staying, stay_exponent - greater[:, None])
        largest = greater
    mass = tl.sum(total, 1)[:, None]
    scale = 1.0 / tl.where(mass > 0, mass, 1.0)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)[None, :]
        mantissa, exponent, staying, stay_exponent = _masses(
            stay_scores, step_scores, stays, steps, transitions, skips, alpha, beta, rows, n, t, s, own & (s < states),
            width, num_columns, start_state, SHARED, TRANSITIONS, WIDE,
        )  # fmt: skip
        places, mask = rows * num_columns + s, own & (s < num_columns)
        tl.store(step_scores + places, shift(mantissa, exponent - largest[:, None]) * scale, mask=mask)
        if not SHARED:
            tl.store(stay_scores + places, shift(staying, stay_exponent - largest[:, None]) * scale, mask=mask)
