"""Second derivatives of chains on the GPU.

Along a tangent of the scores an arc has a cost, and its posterior moves by itself times

    mean cost before its source + cost + mean cost behind its destination - mean cost

of the paths through it. The means are weighted by posteriors, which are not negative: they are swept in float64, where
sums over any number of frames keep their digits, and no state of a frame waits for a sum over all of them.

Five kernels: rows (what arcs cost), the posteriors of the arcs that forward has added up, the two sweeps by two
programs a sample at the same time, in strips as in ``chain``, how the posteriors move, and rows again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.chain import constants_of, entering, gather_by_state, greatest_of_rows, two_beside
from pathsum.kernels.triton.chain_gradient import rows_of_frames, sum_by_class
from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import reference_of, shift, split, unpack, zeros_like
from pathsum.kernels.triton.rows import in_pieces, softmax_mean

# What passes through a node of less, an eps squared, is lost in any sum.
LEAST_32, LEAST_64 = tl.constexpr(2.0**-46), tl.constexpr(2.0**-104)


@kernel
def gather_tangents(
    tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_c: tl.int64, scores,
    stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, num_states, stay_labels, step_labels, num_columns: tl.int32, losses, maxima,
    sums, means, stay_scores, step_scores, stay_costs, step_costs, extents, LOGITS: tl.constexpr, SHARED: tl.constexpr,
    WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Scores of each state's arcs, as ``chain.score_rows`` has them, what they cost, and each row's mean tangent."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    real = within & (t < tl.load(input_lengths + n))
    possible = real & (tl.load(losses + n) < float("inf"))
    states = tl.load(num_states + n)
    starts, moved = n * stride_n + t * stride_t, n * tangent_stride_n + t * tangent_stride_t
    nothing = tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=possible, other=0.0)
        mean = softmax_mean(
            scores, starts, stride_c, tangent, moved, tangent_stride_c, num_classes, maximum, possible, WORK, BLOCK,
            ALIGNED,
        ) / tl.load(sums + rows, mask=possible, other=1.0)  # fmt: skip
        tl.store(means + rows, mean, mask=within)
    else:
        maximum = greatest_of_rows(
            scores, starts, stride_c, num_classes, stay_labels, step_labels, num_columns, n, states, num_columns,
            possible, SHARED, False, WORK, BLOCK,
        )  # fmt: skip
    reference = reference_of(maximum)
    largest = gather_by_state(
        scores, starts, stride_c, step_labels, num_columns, n, states, num_columns, reference, step_scores, rows,
        possible, WORK, BLOCK,
    )  # fmt: skip
    gather_by_state(
        tangent, moved, tangent_stride_c, step_labels, num_columns, n, states, num_columns, nothing, step_costs, rows,
        possible, WORK, BLOCK,
    )  # fmt: skip
    if not SHARED:
        other = gather_by_state(
            scores, starts, stride_c, stay_labels, num_columns, n, states, num_columns, reference, stay_scores, rows,
            possible, WORK, BLOCK,
        )  # fmt: skip
        gather_by_state(
            tangent, moved, tangent_stride_c, stay_labels, num_columns, n, states, num_columns, nothing, stay_costs,
            rows, possible, WORK, BLOCK,
        )  # fmt: skip
        largest = tl.maximum(largest, other)
    tl.atomic_max(extents + n, largest.to(tl.int32, bitcast=True), mask=possible, sem="relaxed")


@triton.jit
def _weighed(word, transitions, indices, n, width, s, used, TRANSITIONS: tl.constexpr):
    """A mass times the exponential of a transition that is the same in all frames."""
    mantissa, exponent = unpack(word)
    if TRANSITIONS:
        factor, power = split(constants_of(transitions, indices, n, width, s, used, TRANSITIONS))
        mantissa, exponent = mantissa * factor, exponent + power
    return mantissa, exponent


@kernel
def tell_arcs_apart(
    losses, input_lengths, num_states, skips, stays, steps, transitions, alpha, stay_posteriors, step_posteriors,
    num_samples: tl.int32, num_frames: tl.int32, num_columns: tl.int32, start_state: tl.int32, stay, step, skip,
    SHARED: tl.constexpr, TRANSITIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Posteriors of the arcs that stay, step and skip into each state of each frame, 0 where there is no path.

    Of those that forward saved together each has the share of its source in alpha, their scores being the same.
    """
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    own = within & (t < tl.load(input_lengths + n)) & (tl.load(losses + n) < float("inf"))
    used, places = own & (s < tl.load(num_states + n)), rows * num_columns + s
    one = entering(alpha, rows, num_columns, s, t, used, 1, start_state)
    step_mass, step_exponent = _weighed(one, transitions, steps, n, num_columns, s, used, TRANSITIONS)
    two = entering(alpha, rows, num_columns, s, t, used, 2, start_state)
    two = tl.where(tl.load(skips + n * num_columns + s, mask=used, other=0) != 0, two, zeros_like(two))
    skip_mass, skip_exponent = _weighed(two, transitions, steps, n, num_columns, s, used, TRANSITIONS)
    largest = tl.maximum(step_exponent, skip_exponent)
    entered = tl.load(step_posteriors + places, mask=used, other=0.0)
    least = LEAST_64 if entered.dtype == tl.float64 else LEAST_32
    if SHARED:
        staying = entering(alpha, rows, num_columns, s, t, used, 0, start_state)
        stay_mass, stay_exponent = _weighed(staying, transitions, stays, n, num_columns, s, used, TRANSITIONS)
        largest = tl.maximum(largest, stay_exponent)
        stay_mass = shift(stay_mass, stay_exponent - largest)
        step_mass, skip_mass = shift(step_mass, step_exponent - largest), shift(skip_mass, skip_exponent - largest)
        total = stay_mass + step_mass + skip_mass
        share = tl.where((entered > least) & (total > 0), entered / tl.where(total > 0, total, 1.0), 0.0)
        tl.store(stay + places, stay_mass * share, mask=own & (s < num_columns))
    else:
        step_mass, skip_mass = shift(step_mass, step_exponent - largest), shift(skip_mass, skip_exponent - largest)
        total = step_mass + skip_mass
        share = tl.where((entered > least) & (total > 0), entered / tl.where(total > 0, total, 1.0), 0.0)
        stayed = tl.load(stay_posteriors + places, mask=used, other=0.0)
        tl.store(stay + places, tl.where(stayed > least, stayed, 0.0), mask=own & (s < num_columns))
    tl.store(step + places, step_mass * share, mask=own & (s < num_columns))
    tl.store(skip + places, skip_mass * share, mask=own & (s < num_columns))


@triton.jit
def _load(plane, places, mask):
    return tl.load(plane + places, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def _load_as_kept(plane, places, mask):
    return tl.load(plane + places, mask=mask, other=0.0)


@triton.jit
def _shares(stayed, stepped, skipped):
    """Of the three arcs that enter, or that leave, each state."""
    stayed, stepped, skipped = stayed.to(tl.float64), stepped.to(tl.float64), skipped.to(tl.float64)
    mass = stayed + stepped + skipped
    share = 1.0 / tl.where(mass > 0, mass, 1.0)
    return stayed * share, stepped * share, skipped * share


@triton.jit
def _arcs_into(stay, step, skip, stay_costs, step_costs, places, used):
    """Posteriors of the three arcs that enter each state, and what staying and entering cost, as they are kept."""
    return (
        _load_as_kept(stay, places, used), _load_as_kept(step, places, used), _load_as_kept(skip, places, used),
        _load_as_kept(stay_costs, places, used), _load_as_kept(step_costs, places, used),
    )  # fmt: skip


@triton.jit
def _arcs_out_of(stay, step, skip, stay_costs, step_costs, places, used, has_one, has_two):
    """Posteriors of the three arcs that leave each state, and what they cost, as they are kept."""
    return (
        _load_as_kept(stay, places, used), _load_as_kept(step, places + 1, has_one),
        _load_as_kept(skip, places + 2, has_two), _load_as_kept(stay_costs, places, used),
        _load_as_kept(step_costs, places + 1, has_one), _load_as_kept(step_costs, places + 2, has_two),
    )  # fmt: skip


@triton.jit
def _sweep_forward(
    stay, step, skip, stay_costs, step_costs, constants, stays, steps, n, frame, frames, states, num_columns, before,
    CONSTANTS: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths up to each state of each frame, the frame's own cost included."""
    lanes = tl.arange(0, BLOCK)
    nothing = tl.zeros([BLOCK], tl.float64)
    for strip in range(0, states, BLOCK):
        if STRIPS:
            # What an earlier strip has stored other threads read.
            barrier()
        s = strip + lanes
        used = s < states
        stay_constant = constants_of(constants, stays, n, num_columns, s, used, CONSTANTS)
        step_constant = constants_of(constants, steps, n, num_columns, s, used, CONSTANTS)
        has_one, has_two = lanes > 0, lanes > 1
        mean, one_at_edge, two_at_edge = nothing, nothing, nothing
        stay_ahead, step_ahead, skip_ahead, stay_cost_ahead, step_cost_ahead = _arcs_into(
            stay, step, skip, stay_costs, step_costs, frame * num_columns + s, used
        )
        for t in range(frames):
            stayed, stepped, skipped = _shares(stay_ahead, step_ahead, skip_ahead)
            stay_cost = stay_cost_ahead.to(tl.float64) + stay_constant
            step_cost = step_cost_ahead.to(tl.float64) + step_constant
            places = (frame + t) * num_columns + s
            # Before the first frame all means are 0.
            one, two = two_beside(mean, BLOCK, False)
            one, two = tl.where(has_one, one, one_at_edge), tl.where(has_two, two, two_at_edge)
            # Asked for a frame before they are looked at, so that no step waits for memory.
            stay_ahead, step_ahead, skip_ahead, stay_cost_ahead, step_cost_ahead = _arcs_into(
                stay, step, skip, stay_costs, step_costs, places + num_columns, used & (t + 1 < frames)
            )
            if STRIPS:
                one_at_edge = _load(before, places - 1, used & (s > 0) & ~has_one)
                two_at_edge = _load(before, places - 2, used & (s > 1) & ~has_two)
            mean = stayed * (mean + stay_cost) + stepped * (one + step_cost) + skipped * (two + step_cost)
            tl.store(before + places, mean, mask=used)


@triton.jit
def _sweep_back(
    stay, step, skip, stay_costs, step_costs, constants, stays, steps, n, frame, frames, states, num_columns, behind,
    CONSTANTS: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths behind each state of each frame."""
    lanes = tl.arange(0, BLOCK)
    nothing = tl.zeros([BLOCK], tl.float64)
    last_strip = (states - 1) // BLOCK * BLOCK
    for back in range(0, states, BLOCK):
        if STRIPS:
            barrier()
        s = last_strip - back + lanes
        used, has_one, has_two = s < states, s + 1 < states, s + 2 < states
        stay_constant = constants_of(constants, stays, n, num_columns, s, used, CONSTANTS)
        step_constant = constants_of(constants, steps, n, num_columns, s + 1, has_one, CONSTANTS)
        skip_constant = constants_of(constants, steps, n, num_columns, s + 2, has_two, CONSTANTS)
        # Behind the last frame all means are 0.
        mean, one_at_edge, two_at_edge = nothing, nothing, nothing
        places = (frame + frames - 1) * num_columns + s
        tl.store(behind + places, mean, mask=used)
        stay_ahead, step_ahead, skip_ahead, stay_cost_ahead, step_cost_ahead, skip_cost_ahead = _arcs_out_of(
            stay, step, skip, stay_costs, step_costs, places, used, has_one, has_two
        )
        for back_frames in range(1, frames):
            stayed, stepped, skipped = _shares(stay_ahead, step_ahead, skip_ahead)
            stay_cost = stay_cost_ahead.to(tl.float64) + stay_constant
            step_cost = step_cost_ahead.to(tl.float64) + step_constant
            skip_cost = skip_cost_ahead.to(tl.float64) + skip_constant
            places = (frame + frames - back_frames) * num_columns + s
            one, two = two_beside(mean, BLOCK, True)
            one, two = tl.where(lanes < BLOCK - 1, one, one_at_edge), tl.where(lanes < BLOCK - 2, two, two_at_edge)
            is_next = back_frames + 1 < frames
            stay_ahead, step_ahead, skip_ahead, stay_cost_ahead, step_cost_ahead, skip_cost_ahead = _arcs_out_of(
                stay, step, skip, stay_costs, step_costs, places - num_columns, used & is_next, has_one & is_next,
                has_two & is_next,
            )  # fmt: skip
            if STRIPS:
                one_at_edge = _load(behind, places - num_columns + 1, has_one & (lanes == BLOCK - 1))
                two_at_edge = _load(behind, places - num_columns + 2, has_two & (lanes >= BLOCK - 2))
            mean = stayed * (mean + stay_cost) + stepped * (one + step_cost) + skipped * (two + skip_cost)
            tl.store(behind + places - num_columns, mean, mask=used)


@triton.jit
def _mean_of_ends(stay, step, skip, before, frame, frames, states, num_columns, num_final):
    """Mean cost of all paths, of those that end in each of the final states."""
    total, mass = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    for k in tl.static_range(2):
        final, place = (k < num_final) & (k < states), (frame + frames - 1) * num_columns + states - 1 - k
        posterior = _load(stay, place, final) + _load(step, place, final) + _load(skip, place, final)
        total += posterior * _load(before, place, final)
        mass += posterior
    return total / tl.where(mass > 0, mass, 1.0)


@kernel
def solve(
    stay, step, skip, stay_costs, step_costs, constants, stays, steps, losses, input_lengths, num_states,
    num_frames: tl.int32, num_columns: tl.int32, num_final: tl.int32, before, behind, costs, CONSTANTS: tl.constexpr,
    BLOCK: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Mean cost up to each state, and of all paths of a sample, or, by its second program, behind each state.

    ``constants`` are the costs of transitions, the same in all frames.
    """
    n = tl.program_id(0).to(tl.int64)
    frames, states = tl.load(input_lengths + n).to(tl.int32), tl.load(num_states + n).to(tl.int32)
    frame = n * num_frames
    loss = tl.load(losses + n)
    possible = (loss < float("inf")) & (frames > 0)
    if tl.program_id(1) == 1:
        if possible:
            _sweep_back(
                stay, step, skip, stay_costs, step_costs, constants, stays, steps, n, frame, frames, states,
                num_columns, behind, CONSTANTS, BLOCK, STRIPS,
            )  # fmt: skip
    else:
        cost = tl.where(loss == loss, 0.0, float("nan")).to(tl.float64)
        if possible:
            _sweep_forward(
                stay, step, skip, stay_costs, step_costs, constants, stays, steps, n, frame, frames, states,
                num_columns, before, CONSTANTS, BLOCK, STRIPS,
            )  # fmt: skip
            barrier()
            cost = _mean_of_ends(stay, step, skip, before, frame, frames, states, num_columns, num_final)
        tl.store(costs + n, cost)


@kernel
def move_posteriors(
    stay, step, skip, stay_costs, step_costs, constants, stays, steps, losses, input_lengths, num_states, before,
    behind, costs, num_samples: tl.int32, num_frames: tl.int32, num_columns: tl.int32, moved_stay, moved_step,
    SHARED: tl.constexpr, CONSTANTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How the posteriors move that entered, or where SHARED were, there, and of those that stay; they may be written
    over ``step`` and ``stay``.
    """
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    own = within & (t < tl.load(input_lengths + n)) & (tl.load(losses + n) < float("inf"))
    used, places = own & (s < tl.load(num_states + n)), rows * num_columns + s
    after = _load(behind, places, used) - tl.load(costs + n, mask=own, other=0.0)
    stay_cost = _load(stay_costs, places, used) + constants_of(constants, stays, n, num_columns, s, used, CONSTANTS)
    step_cost = _load(step_costs, places, used) + constants_of(constants, steps, n, num_columns, s, used, CONSTANTS)
    sources = places - num_columns
    here = _load(before, sources, used & (t > 0))
    one_before = _load(before, sources - 1, used & (t > 0) & (s > 0))
    two_before = _load(before, sources - 2, used & (t > 0) & (s > 1))
    stayed = _load(stay, places, used) * (here + stay_cost + after)
    entered = _load(step, places, used) * (one_before + step_cost + after)
    entered += _load(skip, places, used) * (two_before + step_cost + after)
    if SHARED:
        entered += stayed
    else:
        tl.store(moved_stay + places, stayed.to(moved_stay.dtype.element_ty), mask=used)
    tl.store(moved_step + places, entered.to(moved_step.dtype.element_ty), mask=used)


@kernel
def write_product(
    grad_losses, tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_c: tl.int64, scores,
    stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, losses, maxima, sums, means, out, out_stride_n: tl.int64,
    out_stride_t: tl.int64, out_stride_c: tl.int64, LOGITS: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """upstream * softmax's tangent, or 0, padding included."""
    rows, within, n, t, possible, undefined = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    upstream = tl.load(grad_losses + n).to(WORK)
    starts, moved = n * stride_n + t * stride_t, n * tangent_stride_n + t * tangent_stride_t
    out_starts = n * out_stride_n + t * out_stride_t
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, moved = in_pieces(starts, ALIGNED), in_pieces(moved, ALIGNED)
        out_starts = in_pieces(out_starts, ALIGNED)
        stride_c, tangent_stride_c, out_stride_c = 1, 1, 1
    maximum, scale, mean = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=possible, other=0.0)
        scale = upstream / tl.load(sums + rows, mask=possible, other=1.0)
        mean = tl.load(means + rows, mask=within, other=0.0)
    for first in range(0, num_classes, BLOCK):
        c = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        product = tl.zeros([ROWS, BLOCK], WORK)
        if LOGITS:
            read = possible[:, None] & (c < num_classes)
            x = tl.load(scores + starts[:, None] + c * stride_c, mask=read, other=float("-inf")).to(WORK)
            cost = tl.load(tangent + moved[:, None] + c * tangent_stride_c, mask=read, other=0.0).to(WORK)
            product = scale[:, None] * tl.exp(x - maximum[:, None]) * (cost - mean[:, None])
        product = tl.where(undefined[:, None], float("nan"), product)
        places = out + out_starts[:, None] + c * out_stride_c
        tl.store(places, product.to(out.dtype.element_ty), mask=within[:, None] & (c < num_classes))


@kernel
def write_entries(
    grad_losses, tangent, tangent_stride_n: tl.int64, tangent_stride_t: tl.int64, tangent_stride_c: tl.int64, scores,
    stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, losses, maxima, sums, means, stay, step, classes, entries,
    num_entries: tl.int32, num_columns: tl.int32, out, out_stride_n: tl.int64, out_stride_t: tl.int64,
    out_stride_c: tl.int64, LOGITS: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """upstream * (softmax's tangent - that of each class's posterior), over what ``write_product`` has written.

    ``stay`` and ``step`` are how the posteriors move; ``entries`` and ``classes`` as in ``chain_gradient``.
    """
    rows, within, n, t, possible, _ = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    upstream = tl.load(grad_losses + n).to(WORK)
    starts, moved = n * stride_n + t * stride_t, n * tangent_stride_n + t * tangent_stride_t
    out_starts = n * out_stride_n + t * out_stride_t
    maximum, scale, mean = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=possible, other=0.0)
        scale = upstream / tl.load(sums + rows, mask=possible, other=1.0)
        mean = tl.load(means + rows, mask=within, other=0.0)
    carry = tl.zeros([ROWS, 1], WORK)
    for first in range(0, num_entries, BLOCK):
        c, ends, posterior, carry = sum_by_class(
            stay, step, rows, n, classes, entries, first, num_entries, num_classes, num_columns, possible, carry, BLOCK
        )
        product = -upstream[:, None] * posterior
        if LOGITS:
            x = tl.load(scores + starts[:, None] + c * stride_c, mask=ends, other=float("-inf")).to(WORK)
            cost = tl.load(tangent + moved[:, None] + c * tangent_stride_c, mask=ends, other=0.0).to(WORK)
            product += scale[:, None] * tl.exp(x - maximum[:, None]) * (cost - mean[:, None])
        tl.store(out + out_starts[:, None] + c * out_stride_c, product.to(out.dtype.element_ty), mask=ends)
