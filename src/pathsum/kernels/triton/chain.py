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
    add_three,
    narrowed,
    normalise,
    pack,
    reference_of,
    shift,
    split,
    split_exactly,
    split_wide,
    unit_of,
    unpack,
    zeros_like,
)
from pathsum.kernels.triton.rows import softmax_statistics

MAX_EXPONENT = tl.constexpr(float(numerics.MAX_EXPONENT_32))
# The bits of a float32 NaN: greater, as an integer, than those of every other number that is not negative.
UNDEFINED = tl.constexpr(0x7FC00000)
LARGEST_32 = tl.constexpr(3.4028234663852886e38)
# An eps squared: a posterior of less is lost in any sum of them.
LEAST = tl.constexpr(2.0**-104)


@triton.jit
def _greatest_of_states(
    scores, starts, stride_c, labels, labels_width, n, num_states, num_columns, real, WORK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The greatest score of each row's states; of one that is not defined anything."""
    greatest = tl.full([starts.shape[0], BLOCK], float("-inf"), WORK)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)
        used = real[:, None] & (s[None, :] < num_states[:, None])
        label = tl.load(labels + n[:, None] * labels_width + s[None, :], mask=used, other=0).to(tl.int64)
        x = tl.load(scores + starts[:, None] + label * stride_c, mask=used, other=float("-inf")).to(WORK)
        greatest = tl.maximum(greatest, x)
    return tl.max(greatest, 1)


@triton.jit
def _greatest_of_classes(
    scores, starts, stride_c, num_classes, real, WORK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The greatest score of each row."""
    greatest = tl.full([starts.shape[0], BLOCK], float("-inf"), WORK)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = real[:, None] & (c < num_classes)[None, :]
        places = scores + starts[:, None] + c.to(tl.int64)[None, :] * stride_c
        greatest = tl.maximum(greatest, tl.load(places, mask=mask, other=float("-inf")).to(WORK))
    return tl.max(greatest, 1)


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
    largest = tl.zeros([rows.shape[0], BLOCK], tl.float32)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)
        used = real[:, None] & (s[None, :] < num_states[:, None])
        label = tl.load(labels + n[:, None] * labels_width + s[None, :], mask=used, other=0).to(tl.int64)
        x = tl.load(scores + starts[:, None] + label * stride_c, mask=used, other=float("-inf")).to(WORK)
        # A maximum leaves NaN out: what is not defined is infinite here, as no other is.
        undefined = used & ~(x < float("inf"))
        x -= reference[:, None]
        size = tl.where(x > float("-inf"), tl.minimum(tl.abs(x), LARGEST_32), 0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(undefined, float("inf"), size))
        places = out + rows[:, None] * num_columns + s[None, :]
        tl.store(places, x, mask=real[:, None] & (s < num_columns)[None, :])
    of_rows = tl.max(largest, 1)
    return tl.where(of_rows < float("inf"), of_rows, float("nan"))


@triton.jit
def score_tile(
    scores, stride_n, stride_t, stride_c, program, num_samples, num_frames, num_classes, input_lengths, num_states,
    stay_labels, step_labels, labels_width, num_columns, maxima, sums, powers, stay_scores, step_scores, extents,
    LOGITS: tl.constexpr, SHARED: tl.constexpr, RELATIVE: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Softmax statistics, scores of each state's arcs, and for each sample the bits of the largest of them by size.

    ``powers`` are those of the units that alpha takes each frame's scores in.

    Without LOGITS a row's maximum is ``greatest_of_rows``, and is left where ``maxima`` are given.
    """
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    real = within & (t < tl.load(input_lengths + n))
    states = tl.load(num_states + n)
    starts = n * stride_n + t * stride_t
    undefined = rows < 0
    if LOGITS:
        maximum, total = softmax_statistics(scores, starts, stride_c, num_classes, real, WORK, BLOCK, ALIGNED)
        tl.store(sums + rows, total, mask=real)
        _, _, power = unit_of(maximum)
        tl.store(powers + rows, power.to(tl.int32), mask=real)
        undefined = total != total
    else:
        maximum = greatest_of_rows(
            scores, starts, stride_c, num_classes, stay_labels, step_labels, labels_width, n, states, num_columns, real,
            SHARED, RELATIVE, WORK, BLOCK,
        )  # fmt: skip
    if maxima is not None:
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
    # The bits of floats that are not negative are in their order: the same integer whoever comes first. Nothing else is
    # handed on by it, which a stricter order would wait for.
    tl.atomic_max(extents + n, bits, mask=real, sem="relaxed")


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, num_states, stay_labels, step_labels, labels_width: tl.int32,
    num_columns: tl.int32, maxima, sums, powers, stay_scores, step_scores, extents, LOGITS: tl.constexpr,
    SHARED: tl.constexpr, RELATIVE: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """``score_tile`` of all rows."""
    score_tile(
        scores, stride_n, stride_t, stride_c, tl.program_id(0), num_samples, num_frames, num_classes, input_lengths,
        num_states, stay_labels, step_labels, labels_width, num_columns, maxima, sums, powers, stay_scores, step_scores,
        extents, LOGITS, SHARED, RELATIVE, WORK, ROWS, BLOCK, ALIGNED,
    )  # fmt: skip


@triton.jit
def is_wide(extent, frames, FIXED: tl.constexpr):
    """Whether the exponents of a sample's paths may leave the narrow pair."""
    if FIXED:
        return True
    else:
        largest = extent.to(tl.float32, bitcast=True)
        return ~(frames.to(tl.float32) * (largest + 2.0) * LOG2_E < MAX_EXPONENT)


@triton.jit
def in_words(plane, WIDE: tl.constexpr):
    """A plane of the narrow pair's words, or of the wide pair's in the same memory."""
    if WIDE:
        return plane.to(tl.pointer_type(tl.float64), bitcast=True)
    else:
        return plane


@triton.jit
def constants_of(transitions, indices, n, width, s, used, TRANSITIONS: tl.constexpr):
    """The scores of arcs that are the same in all frames."""
    if TRANSITIONS:
        index = tl.load(indices + n * width + s, mask=used, other=-1)
        return tl.load(transitions + index, mask=index >= 0, other=0.0).to(tl.float64)
    else:
        return 0.0


@triton.jit
def _scores(plane, frame, num_columns, s, used):
    """The scores of the states' arcs in a frame, as they are kept; frames count through the batch."""
    return tl.load(plane + frame * num_columns + s, mask=used, other=float("-inf"))


@triton.jit
def _weight(x, constants, WIDE: tl.constexpr):
    """Scores as extended numbers."""
    if WIDE:
        x = x.to(tl.float64) + constants
    return split(x)


@triton.jit
def _share(x, constants, power, WIDE: tl.constexpr):
    """The same with mantissas of the wide pair, in units of the frame's own power of two: about 1 where a model is
    sure.
    """
    if WIDE:
        mantissa, exponent = split_wide(x.to(tl.float64) + constants)
        return mantissa, exponent - power
    else:
        mantissa, exponent = split_exactly(x)
        return mantissa, exponent - power


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
def two_beside(values, BLOCK: tl.constexpr, BEHIND: tl.constexpr):
    """The values one and two lanes before each, or BEHIND it, in one exchange; the ends have their own end's."""
    pairs = tl.arange(0, 2 * BLOCK)
    distance = 1 + pairs % 2
    source = pairs // 2 + (distance if BEHIND else -distance)
    both = tl.gather(values, tl.minimum(tl.maximum(source, 0), BLOCK - 1), 0)
    return tl.split(tl.reshape(both, [BLOCK, 2]))


@triton.jit
def _power(powers, frame, is_real, LOGITS: tl.constexpr):
    if LOGITS:
        return tl.load(powers + frame, mask=is_real, other=0)
    else:
        return 0


@triton.jit
def _arrive(
    mantissa, exponent, one, two, weight, weight_exponent, stay_weight, stay_exponent, ARCS_DIFFER: tl.constexpr
):  # fmt: skip
    """The mass in each state a frame on, normalised, of that in it and the words of the two before it."""
    one, one_exponent = unpack(one, exponent.dtype)
    two, two_exponent = unpack(two, exponent.dtype)
    if ARCS_DIFFER:
        one, one_exponent = one * weight, one_exponent + weight_exponent
        two, two_exponent = two * weight, two_exponent + weight_exponent
        mantissa, exponent = mantissa * stay_weight, exponent + stay_exponent
        return normalise(*add_three(mantissa, exponent, one, one_exponent, two, two_exponent))
    else:
        mantissa, exponent = add_three(mantissa, exponent, one, one_exponent, two, two_exponent)
        return normalise(mantissa * weight, exponent + weight_exponent)


@triton.jit
def _alpha(
    stay_scores, step_scores, powers, stays, steps, transitions, skips, n, frame, frames, states, width, num_columns,
    start_state, alpha, LOGITS: tl.constexpr, ARCS_DIFFER: tl.constexpr, TRANSITIONS: tl.constexpr,
    BLOCK: tl.constexpr, STRIPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mass that arrives in each state of each frame; ``frame`` is the sample's first in the batch.

    In words of the wide pair, whatever the scores' own: the loss is a difference, and in float32 the rounding of many
    frames alike would be all of it. The exponents are the scores' own pair's.
    """
    lanes = tl.arange(0, BLOCK)
    for strip in range(0, states, BLOCK):
        if STRIPS:
            # What an earlier strip has stored other threads read.
            barrier()
        s = strip + lanes
        used = s < states
        # Of the first two lanes what is before them is not in the program.
        has_one, has_two = lanes > 0, lanes > 1
        skip = tl.load(skips + n * width + s, mask=used, other=0) != 0
        stay = constants_of(transitions, stays, n, width, s, used, TRANSITIONS)
        step = constants_of(transitions, steps, n, width, s, used, TRANSITIONS)
        none = zeros_like(tl.zeros([BLOCK], tl.float64))
        one_at_edge, two_at_edge = none, none
        mantissa = (s == start_state).to(tl.float64)
        mantissa, exponent = normalise(mantissa, tl.zeros([BLOCK], tl.int64 if WIDE else tl.int32))
        word = none
        step_ahead = _scores(step_scores, frame, num_columns, s, used)
        stay_ahead = _scores(stay_scores, frame, num_columns, s, used & ARCS_DIFFER)
        power_ahead = _power(powers, frame, True, LOGITS)
        for t in range(frames):
            weight, weight_exponent = _share(step_ahead, step, power_ahead, WIDE)
            stay_weight, stay_exponent = weight, weight_exponent
            if ARCS_DIFFER:
                stay_weight, stay_exponent = _share(stay_ahead, stay, power_ahead, WIDE)
            one, two = two_beside(word, BLOCK, False)
            one, two = tl.where(has_one, one, one_at_edge), tl.where(has_two, two, two_at_edge)
            if t == 0:
                # The start may be a state that is not there.
                one, two = _ones(s - 1 == start_state, True), _ones(s - 2 == start_state, True)
            two = tl.where(skip, two, none)
            # Asked for a frame before they are looked at, so that no step waits for memory.
            ahead, is_next = frame + t + 1, t + 1 < frames
            step_ahead = _scores(step_scores, ahead, num_columns, s, used & is_next)
            if ARCS_DIFFER:
                stay_ahead = _scores(stay_scores, ahead, num_columns, s, used & is_next)
            power_ahead = _power(powers, ahead, is_next, LOGITS)
            places = (frame + t) * num_columns + s
            if STRIPS:
                one_at_edge = _load_words(alpha, places - 1, used & (s > 0) & ~has_one)
                two_at_edge = _load_words(alpha, places - 2, used & (s > 1) & ~has_two)
            mantissa, exponent = _arrive(
                mantissa, exponent, one, two, weight, weight_exponent, stay_weight, stay_exponent, ARCS_DIFFER
            )
            word = pack(mantissa, exponent)
            tl.store(alpha + places, word, mask=used)


@triton.jit
def _entered(
    word, step_scores, steps, transitions, n, frame, num_columns, width, s, mask, TRANSITIONS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Masses behind states times the weight of entering these, as words."""
    step = constants_of(transitions, steps, n, width, s, mask, TRANSITIONS)
    weight, weight_exponent = _weight(_scores(step_scores, frame, num_columns, s, mask), step, WIDE)
    mantissa, exponent = unpack(word)
    return pack(*normalise(mantissa * weight, exponent + weight_exponent))


@triton.jit
def _beta(
    stay_scores, step_scores, stays, steps, transitions, skips, n, frame, frames, states, width, num_columns,
    num_final, beta, ARCS_DIFFER: tl.constexpr, TRANSITIONS: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The mass that leaves each state of each frame.

    What is handed from lane to lane is the mass that enters a state: one score a state, and none of its neighbours'.
    """
    lanes = tl.arange(0, BLOCK)
    last_strip = (states - 1) // BLOCK * BLOCK
    for back in range(0, states, BLOCK):
        if STRIPS:
            barrier()
        s = last_strip - back + lanes
        used = s < states
        has_one, has_two = lanes < BLOCK - 1, lanes < BLOCK - 2
        skip = tl.load(skips + n * width + s + 2, mask=s + 2 < states, other=0) != 0
        stay = constants_of(transitions, stays, n, width, s, used, TRANSITIONS)
        step = constants_of(transitions, steps, n, width, s, used, TRANSITIONS)
        word = _ones(used & (s >= states - num_final), WIDE)
        none = zeros_like(word)
        mantissa, exponent = unpack(word)
        last = frame + frames - 1
        tl.store(beta + last * num_columns + s, word, mask=used)
        step_ahead = _scores(step_scores, last, num_columns, s, used & (frames > 1))
        stay_ahead = _scores(stay_scores, last, num_columns, s, used & (frames > 1) & ARCS_DIFFER)
        for behind in range(1, frames):
            row = last + 1 - behind
            weight, weight_exponent = _weight(step_ahead, step, WIDE)
            entering, entering_exponent = normalise(mantissa * weight, exponent + weight_exponent)
            one, two = two_beside(pack(entering, entering_exponent), BLOCK, True)
            one_at_edge, two_at_edge = none, none
            if STRIPS:
                at_one, at_two = (s + 1 < states) & ~has_one, (s + 2 < states) & ~has_two
                one_at_edge = _entered(
                    _load_words(beta, row * num_columns + s + 1, at_one), step_scores, steps, transitions, n, row,
                    num_columns, width, s + 1, at_one, TRANSITIONS, WIDE,
                )  # fmt: skip
                two_at_edge = _entered(
                    _load_words(beta, row * num_columns + s + 2, at_two), step_scores, steps, transitions, n, row,
                    num_columns, width, s + 2, at_two, TRANSITIONS, WIDE,
                )  # fmt: skip
            one, two = tl.where(has_one, one, one_at_edge), tl.where(has_two & skip, two, none)
            if STRIPS:
                two = tl.where(skip & ~has_two, two_at_edge, two)
            if ARCS_DIFFER:
                weight, weight_exponent = _weight(stay_ahead, stay, WIDE)
                mantissa, exponent = mantissa * weight, exponent + weight_exponent
            else:
                mantissa, exponent = entering, entering_exponent
            is_next = behind + 1 < frames
            step_ahead = _scores(step_scores, row - 1, num_columns, s, used & is_next)
            if ARCS_DIFFER:
                stay_ahead = _scores(stay_scores, row - 1, num_columns, s, used & is_next)
            mantissa, exponent = normalise(*add_three(mantissa, exponent, *unpack(one), *unpack(two)))
            tl.store(beta + (row - 1) * num_columns + s, pack(mantissa, exponent), mask=used)


@triton.jit
def _taken_off(maxima, sums, powers, frame, frames, LOGITS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
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
            power = tl.load(powers + frame + t, mask=t < frames, other=0)
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


@triton.jit
def solve_sample(
    n, backwards, stay_scores, step_scores, maxima, sums, powers, extents, input_lengths, num_states, skips, stays,
    steps, transitions, common, num_frames, width, num_columns, start_state, num_final, alpha, beta, losses,
    LOGITS: tl.constexpr, SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """``solve`` of a sample, in the pair that holds its paths."""
    frames, states = tl.load(input_lengths + n).to(tl.int32), tl.load(num_states + n).to(tl.int32)
    frame = n * num_frames
    is_defined = (tl.load(extents + n) != UNDEFINED) & (frames >= 0)
    if backwards:
        if is_defined & (frames > 0):
            _beta(
                stay_scores, step_scores, stays, steps, transitions, skips, n, frame, frames, states, width,
                num_columns, num_final, in_words(beta, WIDE), not SHARED or TRANSITIONS, TRANSITIONS, BLOCK, STRIPS,
                WIDE,
            )  # fmt: skip
    else:
        # Without frames there is the empty path, where its one state is final.
        stands = (start_state >= states - num_final) & (start_state < states)
        loss = tl.where(stands, 0.0, float("inf")).to(tl.float64)
        if is_defined & (frames > 0):
            _alpha(
                stay_scores, step_scores, powers, stays, steps, transitions, skips, n, frame, frames, states, width,
                num_columns, start_state, alpha, LOGITS, not SHARED or TRANSITIONS, TRANSITIONS, BLOCK, STRIPS, WIDE,
            )  # fmt: skip
            barrier()
            mantissa, exponent = _final_mass(alpha, frame, frames, states, num_columns, num_final)
            loss = -tl.log(tl.where(mantissa > 0, mantissa, 1.0))
            if maxima is not None:
                loss += _taken_off(maxima, sums, powers, frame, frames, LOGITS, BLOCK, WIDE)
            if common is not None:
                loss -= tl.maximum(frames - 1, 0) * tl.load(common)
            loss = tl.where(mantissa > 0, loss - exponent.to(tl.float64) * LN_2, float("inf"))
        if LOGITS:
            # The paths share a probability of 1: what rounding has left below 0 is 0.
            loss = tl.where(loss < 0, 0.0, loss)
        tl.store(losses + n, tl.where(is_defined, loss, float("nan")))


@kernel
def solve(
    stay_scores, step_scores, maxima, sums, powers, extents, input_lengths, num_states, skips, stays, steps,
    transitions, common, num_frames: tl.int32, width: tl.int32, num_columns: tl.int32, start_state: tl.int32,
    num_final: tl.int32, alpha, beta, losses, LOGITS: tl.constexpr, SHARED: tl.constexpr, TRANSITIONS: tl.constexpr,
    BLOCK: tl.constexpr, STRIPS: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta.

    Without ``maxima`` the loss lacks what alpha lacks, without ``common`` what transitions have in common.
    """
    n, backwards = tl.program_id(0).to(tl.int64), tl.program_id(1) == 1
    if is_wide(tl.load(extents + n), tl.load(input_lengths + n), FIXED):
        solve_sample(
            n, backwards, stay_scores, step_scores, maxima, sums, powers, extents, input_lengths, num_states, skips,
            stays, steps, transitions, common, num_frames, width, num_columns, start_state, num_final, alpha, beta,
            losses, LOGITS, SHARED, TRANSITIONS, BLOCK, STRIPS, True,
        )  # fmt: skip
    elif not FIXED:
        solve_sample(
            n, backwards, stay_scores, step_scores, maxima, sums, powers, extents, input_lengths, num_states, skips,
            stays, steps, transitions, common, num_frames, width, num_columns, start_state, num_final, alpha, beta,
            losses, LOGITS, SHARED, TRANSITIONS, BLOCK, STRIPS, False,
        )  # fmt: skip


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
        weight, weight_exponent = _weight(_scores(step_scores, rows, num_columns, s, used), step, WIDE)
        own, own_exponent = _unpack_alpha(entering(alpha, rows, num_columns, s, t, used, 0, start_state), WIDE)
        stay_weight, stay_exponent = _weight(_scores(stay_scores, rows, num_columns, s, used), stay, WIDE)
        staying = own * stay_weight * after
        return (
            mantissa * weight * after, exponent + weight_exponent + after_exponent, staying,
            own_exponent + stay_exponent + after_exponent,
        )  # fmt: skip


@triton.jit
def posteriors_of_tile(
    program, stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps, transitions,
    alpha, beta, num_samples, num_frames, width, num_columns, start_state, SHARED: tl.constexpr,
    TRANSITIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, FIXED: tl.constexpr,
    nodes=None,
):  # fmt: skip
    """``find_posteriors`` of the samples whose paths a pair holds, the others are left alone; the sums of both arcs'
    posteriors in ``nodes`` where these are given.
    """
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    frames, states = tl.load(input_lengths + n), tl.load(num_states + n)
    own = within & (t < frames) & (tl.load(losses + n) < float("inf"))
    if not FIXED:
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
        entered = shift(mantissa, exponent - largest[:, None]) * scale
        tl.store(step_scores + places, entered, mask=mask)
        if not SHARED:
            stayed = shift(staying, stay_exponent - largest[:, None]) * scale
            tl.store(stay_scores + places, stayed, mask=mask)
            if nodes is not None:
                tl.store(nodes + places, entered + stayed, mask=mask)


@kernel
def find_posteriors(
    stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps, transitions, alpha,
    beta, num_samples: tl.int32, num_frames: tl.int32, width: tl.int32, num_columns: tl.int32, start_state: tl.int32,
    SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Write the posteriors of the arcs that emitted them over the scores.

    Those of a frame sum to 1, so dividing by their own sum keeps what alpha and beta have in common, and its rounding,
    out of them. There is a program for the rows of each pair, unless FIXED.
    """
    program = tl.program_id(0)
    if tl.program_id(1) == 0:
        posteriors_of_tile(
            program, stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps,
            transitions, alpha, in_words(beta, True), num_samples, num_frames, width, num_columns, start_state, SHARED,
            TRANSITIONS, ROWS, BLOCK, True, FIXED,
        )  # fmt: skip
    elif not FIXED:
        posteriors_of_tile(
            program, stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps,
            transitions, alpha, beta, num_samples, num_frames, width, num_columns, start_state, SHARED, TRANSITIONS,
            ROWS, BLOCK, False, FIXED,
        )  # fmt: skip


@kernel
def list_posteriors(
    stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps, transitions, alpha,
    beta, num_samples: tl.int32, num_frames: tl.int32, width: tl.int32, num_columns: tl.int32, start_state: tl.int32,
    nodes, TRANSITIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """As ``find_posteriors`` of arcs told apart, and those of the states, as a caller gets them: 0 in padding and where
    there is no path, NaN where a sample is not defined.
    """
    program = tl.program_id(0)
    if tl.program_id(1) == 0:
        posteriors_of_tile(
            program, stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps,
            transitions, alpha, in_words(beta, True), num_samples, num_frames, width, num_columns, start_state, False,
            TRANSITIONS, ROWS, BLOCK, True, FIXED, nodes,
        )  # fmt: skip
        rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        within = rows < num_samples.to(tl.int64) * num_frames
        n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
        loss, real = tl.load(losses + n), within & (t < tl.load(input_lengths + n))
        undefined, without = (real & (loss != loss))[:, None], within & ~(real & (loss < float("inf")))
        for first in range(0, num_columns, BLOCK):
            s = first + tl.arange(0, BLOCK)[None, :]
            value = tl.where(undefined & (s < tl.load(num_states + n)[:, None]), float("nan"), 0.0)
            places, mask = rows[:, None] * num_columns + s, without[:, None] & (s < num_columns)
            for plane in tl.static_range(3):
                out = stay_scores if plane == 0 else (step_scores if plane == 1 else nodes)
                tl.store(out + places, value.to(nodes.dtype.element_ty), mask=mask)
    elif not FIXED:
        posteriors_of_tile(
            program, stay_scores, step_scores, extents, losses, input_lengths, num_states, skips, stays, steps,
            transitions, alpha, beta, num_samples, num_frames, width, num_columns, start_state, False, TRANSITIONS,
            ROWS, BLOCK, False, FIXED, nodes,
        )  # fmt: skip


@triton.jit
def _masses_of_arcs(
    stay_scores, step_scores, skips, alpha, beta, rows, n, t, s, used, num_columns, start_state
):  # fmt: skip
    """Masses of the wide pair through the arcs that stay in, step into and skip into each state; scores of the first
    and of the others.
    """
    after, after_exponent = unpack(_load_words(beta, rows * num_columns + s, used))
    step_score = _scores(step_scores, rows, num_columns, s, used)
    stay_score = _scores(stay_scores, rows, num_columns, s, used)
    step_weight, step_exponent = split(step_score)
    stay_weight, stay_exponent = split(stay_score)
    step_weight, step_exponent = step_weight * after, step_exponent + after_exponent
    skip = tl.load(skips + n * num_columns + s, mask=used, other=0) != 0
    own, own_exponent = unpack(entering(alpha, rows, num_columns, s, t, used, 0, start_state))
    one, one_exponent = unpack(entering(alpha, rows, num_columns, s, t, used, 1, start_state))
    two = entering(alpha, rows, num_columns, s, t, used & skip, 2, start_state)
    two, two_exponent = unpack(tl.where(skip, two, zeros_like(two)))
    return (
        own * stay_weight * after, own_exponent + stay_exponent + after_exponent, one * step_weight,
        one_exponent + step_exponent, two * step_weight, two_exponent + step_exponent, stay_score, step_score,
    )  # fmt: skip


@kernel
def expect(
    stay_scores, step_scores, maxima, sums, losses, input_lengths, num_states, skips, stay_labels, step_labels, alpha,
    beta, num_samples: tl.int32, num_frames: tl.int32, num_columns: tl.int32, start_state: tl.int32, costs,
    stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, stay, step, skip, entered, stay_costs, step_costs,
    expected, LOGITS: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Posteriors of the three arcs into each state, of the wide pair; of those with the label of its step together,
    ``entered``; what arcs cost, 0 where they are on no path, and each frame's share in the expected sum of ``costs``
    (N, T, C): a sample's shares add up to it, to NaN if the sample is not defined.

    Without ``costs`` they are minus the scores, and the sum, of the loss too, is the entropy of the paths.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    loss = tl.load(losses + n)
    others = tl.where((t == 0) & (loss != loss), loss, 0.0)
    own = within & (t < tl.load(input_lengths + n)) & (loss < float("inf"))
    lacking = tl.zeros([ROWS], tl.float64)
    if costs is None:
        others = tl.where((t == 0) & (loss != float("inf")), -loss, 0.0)
        if LOGITS:
            maximum = tl.load(maxima + rows, mask=own, other=0.0)
            lacking = (reference_of(maximum) - maximum) - tl.log(tl.load(sums + rows, mask=own, other=1.0))
    starts = (n * stride_n + t * stride_t)[:, None]
    states, places_of_rows = tl.load(num_states + n)[:, None], (rows * num_columns)[:, None]
    own, at, sample, frame, words = own[:, None], rows[:, None], n[:, None], t[:, None], in_words(beta, True)
    largest, total = tl.zeros([ROWS], tl.int64) - 2**60, tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)[None, :]
        stayed, stay_power, stepped, step_power, skipped, skip_power, _, _ = _masses_of_arcs(
            stay_scores, step_scores, skips, alpha, words, at, sample, frame, s, own & (s < states), num_columns,
            start_state,
        )  # fmt: skip
        power = tl.maximum(stay_power, tl.maximum(step_power, skip_power))
        greater = tl.maximum(largest, tl.max(power, 1))
        total = shift(total, (largest - greater)[:, None]) + shift(stayed, stay_power - greater[:, None])
        total += shift(stepped, step_power - greater[:, None]) + shift(skipped, skip_power - greater[:, None])
        largest = greater
    mass = tl.sum(total, 1)[:, None]
    scale = 1.0 / tl.where(mass > 0, mass, 1.0)
    spent = tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, num_columns, BLOCK):
        s = first + tl.arange(0, BLOCK)[None, :]
        stayed, stay_power, stepped, step_power, skipped, skip_power, stay_score, step_score = _masses_of_arcs(
            stay_scores, step_scores, skips, alpha, words, at, sample, frame, s, own & (s < states), num_columns,
            start_state,
        )  # fmt: skip
        stayed = shift(stayed, stay_power - largest[:, None]) * scale
        stepped = shift(stepped, step_power - largest[:, None]) * scale
        skipped = shift(skipped, skip_power - largest[:, None]) * scale
        # What passes through an arc of less is lost in any sum.
        stayed, stepped = tl.where(stayed > LEAST, stayed, 0.0), tl.where(stepped > LEAST, stepped, 0.0)
        skipped = tl.where(skipped > LEAST, skipped, 0.0)
        of_step = stepped + skipped
        if SHARED:
            of_step += stayed
        places, mask = places_of_rows + s, own & (s < num_columns)
        if costs is None:
            step_cost, stay_cost = -(step_score + lacking[:, None]), -(stay_score + lacking[:, None])
        else:
            labels = sample * num_columns + s
            label = tl.load(step_labels + labels, mask=mask & (of_step > 0), other=0).to(tl.int64)
            step_cost = tl.load(costs + starts + label * stride_c, mask=mask & (of_step > 0), other=0.0).to(tl.float64)
            label = tl.load(stay_labels + labels, mask=mask & (stayed > 0), other=0).to(tl.int64)
            stay_cost = tl.load(costs + starts + label * stride_c, mask=mask & (stayed > 0), other=0.0).to(tl.float64)
            tl.store(entered + places, of_step, mask=mask)
        step_cost, stay_cost = tl.where(of_step > 0, step_cost, 0.0), tl.where(stayed > 0, stay_cost, 0.0)
        spent += of_step * step_cost
        if not SHARED:
            spent += stayed * stay_cost
            tl.store(stay_costs + places, stay_cost, mask=mask)
        tl.store(step_costs + places, step_cost, mask=mask)
        tl.store(stay + places, stayed, mask=mask)
        tl.store(step + places, stepped, mask=mask)
        tl.store(skip + places, skipped, mask=mask)
    tl.store(expected + rows, others + tl.sum(spent, 1), mask=within)
