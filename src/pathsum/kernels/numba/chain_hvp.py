"""Second derivatives of chains on the CPU.

Let the scores move along a tangent, which makes it the cost of each arc. The posterior of an arc then moves by itself
times

    mean cost before its source + cost + mean cost after its destination - mean cost

of the paths through it. Before and after are two sweeps: seen from a node, the mean of the arcs into it, or out of it,
weighted by their posteriors. The weights are not negative, so that nothing cancels; and in each frame the mean over
all nodes is taken off, so that what is swept on stays as small as the deviations are, for any number of frames.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.chain import (
    count_visits,
    greatest_of,
    in_memory_order,
    longest_of,
    of_states,
    offsets_of,
    stay_factors,
    subtract_by_class,
    subtract_by_transition,
)
from pathsum.kernels.numba.chain_recursion import FRONT, fill_alpha, is_held, of_sample, pairs_for, start, stay_in
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import shift
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    BLOCK,
    Strided,
    less_common,
    load_row,
    softmax_mean,
    softmax_tangent_row,
    store_row,
    take_off,
    target_row,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import ChainSaved, Product
from pathsum.lattice import ChainLattice


def hvp(
    grad_losses: np.ndarray,
    tangent: Strided,
    transition_tangent: np.ndarray | None,
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    transitions: np.ndarray | None,
    saved: ChainSaved,
    out: Strided,
    num_frames: int,
    *,
    logits: bool,
    num_threads: int,
) -> Product:
    """Write the Hessian of the sum of grad_losses * losses, times the tangents, into ``out`` with axes (N, T, C).

    ``tangent`` has the axes of ``scores``, ``transition_tangent`` those of ``transitions``, (C, C).
    """
    transitions = None if transitions is None else less_common(transitions)
    work, frame_offsets = work_dtype(scores.flat), offsets_of(lattice)
    rows, width = len(lattice.input_lengths) * num_frames, -(-saved.posteriors[1].shape[1] // BLOCK) * BLOCK
    num_threads = parallel.worthwhile(num_threads, rows * (width + num_classes // 4))

    # One array of them all: NumPy asks for huge pages only where one is large, and others cost more than to fill them.
    planes = np.empty((2, 1 if lattice.shared_labels else 2, int(frame_offsets[-1]), width), work)
    stay_costs, step_costs = _gather(tangent, num_classes, lattice, planes[0], num_threads)
    arc_scores = _gather(scores, num_classes, lattice, planes[1], num_threads)
    # What staying costs beside that, the same in all frames.
    stay_constants = np.zeros((len(saved.losses), width), work)
    if transition_tangent is not None:
        constants = of_states(transition_tangent, lattice.stay_transitions, lattice.num_states)
        stay_constants[:, : constants.shape[1]] = constants[:, :width]
    frame_slopes = np.zeros(int(frame_offsets[-1]))
    _move_posteriors(
        *arc_scores, stay_factors(transitions, lattice), lattice, saved, stay_costs, step_costs, stay_constants,
        frame_slopes, num_threads,
    )  # fmt: skip

    stay_labels, step_labels = _as_positions(lattice.stay_labels), _as_positions(lattice.step_labels)

    def write(first: int, last: int) -> None:
        _write_product(
            grad_losses, tangent.flat, *tangent.strides, scores.flat, *scores.strides, scores.encoding,
            np.empty((3, num_classes), work), num_frames, first, last, frame_offsets, lattice.num_states, stay_labels,
            step_labels, lattice.shared_labels, logits, saved.losses, saved.maxima, saved.sums, stay_costs, step_costs,
            frame_slopes, out.flat, *out.strides,
        )  # fmt: skip

    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)
    samples = np.repeat(np.arange(len(saved.losses)), lattice.input_lengths)
    slopes = np.bincount(samples, frame_slopes, len(saved.losses)).astype(np.float64)  # no integers, of no frames
    if transition_tangent is not None:
        # All paths have the same steps.
        steps = of_states(transition_tangent, lattice.step_transitions, lattice.num_states).sum(1)
        slopes -= np.where(saved.losses < np.inf, steps, 0.0)
    slopes[np.isnan(saved.losses)] = np.nan
    if transitions is None:
        return Product(slopes, np.empty((0, 0)))
    product = np.zeros((num_classes, num_classes))
    stays = count_visits(lattice, saved._replace(stay=stay_costs, step=step_costs))
    subtract_by_transition(grad_losses, lattice, saved.losses, lattice.stay_transitions, stays, product)
    return Product(slopes, product)


def _gather(
    scores: Strided,
    num_classes: int,
    lattice: ChainLattice,
    planes: np.ndarray,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of each state's two classes, of staying and of entering: one plane twice where they share it.

    Rows are padded with zeros.
    """
    frame_offsets = offsets_of(lattice)
    positions = len(lattice.input_lengths) * int(lattice.input_lengths.max(initial=0))

    def fill(plane: np.ndarray, labels: np.ndarray) -> np.ndarray:
        def gather(first: int, last: int) -> None:
            _gather_by_state(
                scores.flat, *scores.strides, scores.encoding, np.empty(num_classes, plane.dtype), first, last,
                frame_offsets, lattice.num_states, _as_positions(labels), plane,
            )  # fmt: skip

        parallel.run(gather, parallel.split_evenly(positions, num_threads), num_threads)
        return plane

    step = fill(planes[0], lattice.step_labels)
    return step if lattice.shared_labels else fill(planes[1], lattice.stay_labels), step


def _as_positions(labels: np.ndarray) -> np.ndarray:
    """Labels as indices that no kernel tries for counting from the end, which would cost it half its time."""
    return labels.astype(np.uint32)


def _move_posteriors(
    stay_scores: np.ndarray,
    step_scores: np.ndarray,
    stays: tuple[np.ndarray, np.ndarray] | None,
    lattice: ChainLattice,
    saved: ChainSaved,
    stay_costs: np.ndarray,
    step_costs: np.ndarray,
    stay_constants: np.ndarray,
    frame_slopes: np.ndarray,
    num_threads: int,
) -> None:
    """Overwrite the costs by the tangents of the posteriors; frame_slopes get minus the mean cost of each frame."""
    frame_offsets, width, work = offsets_of(lattice), step_costs.shape[1], step_costs.dtype.type
    stay, step = saved.posteriors
    skips = np.ascontiguousarray(lattice.skips)
    # What passes through a node of less is lost in any sum; nor are there subnormal numbers to work on then.
    least = np.finfo(work).eps ** 2
    memory = parallel.Memory()
    pairs = pairs_for(stays, work)
    running = start(len(saved.losses), width, lattice.start_state, pairs)

    def move(samples: np.ndarray) -> None:
        rows = int(lattice.input_lengths[samples].max(initial=0)) + 1
        for pair in pairs:
            alpha = memory.take((rows, FRONT + width), pair.mantissa)
            exponents = memory.take((rows, FRONT + width), pair.exponent)
            arcs = memory.take((3, rows, width + FRONT), work)
            before = memory.take((rows, FRONT + width), work)
            left = _move_samples(
                samples, frame_offsets, step_scores, stay_scores, stays, stay, step, lattice.num_states, skips,
                lattice.shared_labels, alpha, exponents, pair.running_exponent(pair.zero), running.mass,
                running.exponents, running.reaches, least, arcs, before, stay_costs, step_costs, stay_constants,
                frame_slopes,
            )  # fmt: skip
            memory.give(alpha, exponents, arcs, before)
            if not left:
                break

    solved = np.flatnonzero(saved.losses < np.inf)
    order = solved[np.argsort(-(lattice.input_lengths * lattice.num_states)[solved], kind="stable")]
    shares = min(len(order), 4 * num_threads if num_threads > 1 else 1)
    parallel.run(move, [(order[share::shares],) for share in range(shares)], num_threads)


@kernel
def _gather_by_state(
    flat, stride_n, stride_t, stride_c, encoding, scratch, first, last, frame_offsets, num_states, labels, gathered
):  # fmt: skip
    """Positions [first, last) of the padded batch; the sum of their rows' whole blocks.

    The sum has no use but that rows are read in order, which memory is twice as fast at as at one label here and there.
    """
    flat, scratch, labels, gathered = borrow(flat), borrow(scratch), borrow(labels), borrow(gathered)
    longest = longest_of(frame_offsets)
    total = gathered.dtype.type(0)
    for position in range(first, last):
        n, t = in_memory_order(position, num_states.size, longest, stride_n, stride_t)
        frame = frame_offsets[n] + t
        if frame < frame_offsets[n + 1]:
            row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
            for c in range(scratch.size // BLOCK * BLOCK):
                total += row[c]
            own, out = labels[n], gathered[frame]
            for s in range(num_states[n]):
                out[s] = row[own[s]]
            for s in range(num_states[n], out.size):
                out[s] = 0
    return total


@kernel
def _move_samples(
    samples, frame_offsets, step_scores, stay_scores, stays, stay_posteriors, step_posteriors, num_states, skips,
    shared_labels, alpha, exponents, zero, running_mass, running_exponents, reaches, least, arcs, before, stay_costs,
    step_costs, stay_constants, frame_slopes,
):  # fmt: skip
    """Those of some samples that alpha's pair holds, one after another over the same room for alpha, for the posteriors
    of the arcs and for what comes before each node. How many are left.
    """
    left = 0
    for n in samples:
        first, last = frame_offsets[n], frame_offsets[n + 1]
        if not is_held(n, step_scores[first:last], stay_scores[first:last], shared_labels, alpha, reaches):
            left += 1 if alpha.itemsize == 4 else 0
            continue
        states = num_states[n]
        _tell_arcs_apart(
            step_scores[first:last], stay_scores[first:last], of_sample(stays, n), stay_posteriors[first:last],
            step_posteriors[first:last], states, skips[n], shared_labels, alpha, exponents, zero, running_mass[n],
            running_exponents[n], least, arcs,
        )  # fmt: skip
        # Whole blocks leave the compiler no rest to go through one state at a time. What is past the states is zeros.
        width = -(-states // BLOCK) * BLOCK
        _sweep_forward(
            arcs, stay_costs[first:last], step_costs[first:last], stay_constants[n], width, before,
            frame_slopes[first:last],
        )  # fmt: skip
        _sweep_back(
            arcs, before, frame_slopes[first:last], width, shared_labels, stay_constants[n], stay_costs[first:last],
            step_costs[first:last],
        )  # fmt: skip
    return left


@part(**COMPILE)
def _tell_arcs_apart(
    step_scores, stay_scores, stays, stay_posteriors, step_posteriors, num_states, skips, shared_labels, alpha,
    exponents, zero, running_mass, running_exponents, least, arcs,
):  # fmt: skip
    """Posteriors of the arcs that stay, step and skip into each state of each frame.

    Of those that forward saved together each has the share of its source in alpha, their scores being the same.
    """
    step_scores, stay_scores, skips = borrow(step_scores), borrow(stay_scores), borrow(skips)
    stay_posteriors, step_posteriors = borrow(stay_posteriors), borrow(step_posteriors)
    alpha, exponents, arcs = borrow(alpha), borrow(exponents), borrow(arcs)
    for t in range(step_scores.shape[0]):
        step, stay = step_scores[t, :num_states], stay_scores[t, :num_states]
        largest = greatest_of(step, stay, shared_labels)
        take_off(step, largest)
        if not shared_labels:
            take_off(stay, largest)
    fill_alpha(
        step_scores, stay_scores, stays, num_states, skips, shared_labels, True, True, alpha, exponents, zero,
        running_mass, running_exponents,
    )  # fmt: skip
    zero = exponents.dtype.type(zero)
    staying, staying_exponents = np.empty(num_states, alpha.dtype), np.empty(num_states, exponents.dtype)
    nothing, impossible = alpha.dtype.type(0), arcs.dtype.type(0)
    for t in range(step_scores.shape[0]):
        here, here_exponents = stay_in(alpha[t, FRONT:], exponents[t, FRONT:], stays, staying, staying_exponents)
        one_before, one_before_exponents = alpha[t, FRONT - 1 :], exponents[t, FRONT - 1 :]
        two_before, two_before_exponents = alpha[t], exponents[t]
        stay, step, skip = arcs[0, t], arcs[1, t], arcs[2, t]
        entered = step_posteriors[t]
        for s in range(num_states):
            # The mantissa has to go as well: where nothing else arrives, the exponent of zero is the largest.
            skip_mass, skip_exponent = (two_before[s], two_before_exponents[s]) if skips[s] else (nothing, zero)
            stay_mass, stay_exponent = (here[s], here_exponents[s]) if shared_labels else (nothing, zero)
            step_exponent = one_before_exponents[s]
            largest = step_exponent if step_exponent > skip_exponent else skip_exponent
            largest = stay_exponent if stay_exponent > largest else largest
            stay_mass = shift(stay_mass, stay_exponent - largest)
            step_mass = shift(one_before[s], step_exponent - largest)
            skip_mass = shift(skip_mass, skip_exponent - largest)
            total = stay_mass + step_mass + skip_mass
            share = entered[s] / total if entered[s] > least else nothing
            stay[s], step[s], skip[s] = stay_mass * share, step_mass * share, skip_mass * share
        if not shared_labels:
            stayed = stay_posteriors[t]
            for s in range(num_states):
                stay[s] = stayed[s] if stayed[s] > least else impossible
        for s in range(num_states, stay.size):
            stay[s], step[s], skip[s] = impossible, impossible, impossible


@part(**COMPILE)
def _sweep_forward(arcs, stay_costs, step_costs, stay_constants, width, before, frame_slopes):
    """Mean cost of the paths up to each node less that of all paths: before[t] in front of frame t."""
    arcs, stay_costs, step_costs, before = borrow(arcs), borrow(stay_costs), borrow(step_costs), borrow(before)
    stay_constants = borrow(stay_constants)
    nothing = before.dtype.type(0)
    arrived = np.empty(width, before.dtype)
    before[0, : width + FRONT] = 0
    for t in range(step_costs.shape[0]):
        stay, step, skip = arcs[0, t], arcs[1, t], arcs[2, t]
        stay_cost, step_cost = stay_costs[t], step_costs[t]
        two_before, one_before, here = before[t], before[t, FRONT - 1 :], before[t, FRONT:]
        mean, mass = nothing, nothing
        for s in range(width):
            entered = step[s] * (one_before[s] + step_cost[s]) + skip[s] * (two_before[s] + step_cost[s])
            cost = stay[s] * (here[s] + stay_cost[s] + stay_constants[s]) + entered
            total = stay[s] + step[s] + skip[s]
            arrived[s] = cost / total if total > nothing else nothing
            mean += cost
            mass += total
        mean /= mass
        frame_slopes[t] = -mean
        following = before[t + 1]
        for s in range(FRONT):
            following[s] = 0
        for s in range(width):
            following[FRONT + s] = arrived[s] - mean


@part(**COMPILE)
def _sweep_back(arcs, before, frame_slopes, width, shared_labels, stay_constants, stay_costs, step_costs):
    """Mean cost of the paths behind each node, and with it, over the costs, the tangent of each frame's posteriors."""
    arcs, stay_costs, step_costs, before = borrow(arcs), borrow(stay_costs), borrow(step_costs), borrow(before)
    stay_constants = borrow(stay_constants)
    number = before.dtype.type
    nothing = number(0)
    # Arrays made here do not alias others, as the planes of costs may each other, which lets the loops vectorise.
    stayed, entered = np.empty(width, number), np.empty(width, number)
    behind = np.empty(width, number)
    # Of the arcs into each state, cost and what comes behind; the states past the last are entered by none.
    stay_behind, step_behind = np.empty(width + FRONT, number), np.empty(width + FRONT, number)
    for s in range(width):
        behind[s] = 0
    for s in range(width, width + FRONT):
        step_behind[s] = 0
    # Not a plain countdown: for one the compiler moves the checks for aliasing out of the loop over frames, where they
    # always fail, and takes one state at a time.
    for t in np.arange(step_costs.shape[0])[::-1]:
        stay, step, skip = arcs[0, t], arcs[1, t], arcs[2, t]
        one_step, two_skip = step[1:], skip[2:]
        one_behind, two_behind = step_behind[1:], step_behind[2:]
        stay_cost, step_cost = stay_costs[t], step_costs[t]
        two_before, one_before, here = before[t], before[t, FRONT - 1 :], before[t, FRONT:]
        mean = number(-frame_slopes[t])
        for s in range(width):
            stay_behind[s] = stay_cost[s] + stay_constants[s] - mean + behind[s]
            step_behind[s] = step_cost[s] - mean + behind[s]
        for s in range(width):
            stayed[s] = stay[s] * (here[s] + stay_behind[s])
            entered[s] = step[s] * (one_before[s] + step_behind[s]) + skip[s] * (two_before[s] + step_behind[s])
        for s in range(width):
            step_cost[s] = entered[s] + stayed[s] if shared_labels else entered[s]
        if not shared_labels:
            for s in range(width):
                stay_cost[s] = stayed[s]
        mean, mass = nothing, nothing
        for s in range(width):
            cost = stay[s] * stay_behind[s] + one_step[s] * one_behind[s] + two_skip[s] * two_behind[s]
            total = stay[s] + one_step[s] + two_skip[s]
            behind[s] = cost / total if total > nothing else nothing
            mean += cost
            mass += total
        mean = mean / mass if mass > nothing else nothing
        for s in range(width):
            behind[s] -= mean


@kernel
def _write_product(
    grad_losses, tangent, tangent_stride_n, tangent_stride_t, tangent_stride_c, flat, stride_n, stride_t, stride_c,
    encoding, scratch, padded_frames, first, last, frame_offsets, num_states, stay_labels, step_labels, shared_labels,
    logits, losses, maxima, sums, stay, step, frame_slopes, out, out_stride_n, out_stride_t, out_stride_c,
):  # fmt: skip
    """Rows [first, last) of the padded batch: grad_loss * (softmax's tangent - that of each class's posterior), or 0.

    The slope of the softmax's logarithm is added to each frame's.
    """
    flat, tangent, out, scratch = borrow(flat), borrow(tangent), borrow(out), borrow(scratch)
    nothing, one = step.dtype.type(0), step.dtype.type(1)
    for position in range(first, last):
        n, t = in_memory_order(position, losses.size, padded_frames, out_stride_n, out_stride_t)
        start = n * out_stride_n + t * out_stride_t
        frame = frame_offsets[n] + t
        row = target_row(out, start, out_stride_c, scratch[2])
        if frame >= frame_offsets[n + 1] or losses[n] == np.inf:
            row[:] = 0
        elif losses[n] != losses[n]:
            row[:] = np.nan
        else:
            upstream = step.dtype.type(grad_losses[n])
            if logits:
                scores = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch[0])
                own = n * tangent_stride_n + t * tangent_stride_t
                costs = load_row(tangent, own, tangent_stride_c, encoding, scratch[1])
                share = one / sums[frame]
                mean = share * softmax_mean(scores, maxima[frame], costs)
                softmax_tangent_row(scores, maxima[frame], nothing, upstream * share, costs, mean, row)
                frame_slopes[frame] += mean
            else:
                row[:] = 0
            subtract_by_class(upstream, step[frame], step_labels[n], num_states[n], row)
            if not shared_labels:
                subtract_by_class(upstream, stay[frame], stay_labels[n], num_states[n], row)
        store_row(out, start, out_stride_c, encoding, row)
