"""Chains: two scans over the frames, each step all states of all samples at once, in extended range.

The scan forward keeps alpha in front of each frame, the scan back the mass of what its arcs lead to, and the posteriors
are made of both, all frames at once. All are sums and products of positive numbers, and JAX differentiates them, to any
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended, rows
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, ChainLattice

# Columns in front of the first state, the virtual state and one more so that a skip into state 0 reads a zero, and as
# many behind the last, zeros for a step and a skip out of it. Of states with columns on one side alone XLA makes a loop
# of single numbers, five times as slow.
EDGE = 2
INNER = slice(EDGE, -EDGE)


class Solved(NamedTuple):
    """Of each sample the sum over all paths (N,), what rounding has taken from it (N,), relative to it, and the
    posteriors of the arcs by what they emit (N, T, S'); where all arcs into a state score the same, ``step`` has them
    all.
    """

    total: Number
    lost: Array
    step: Array
    stay: Array | None


class _Ahead(NamedTuple):
    """The sum over the paths ahead, from a frame's arcs on: of those that enter each state (N, S'+4), and of those that
    stay in it (N, S') where they score otherwise.
    """

    step: Number
    stay: Number | None


class Frames(NamedTuple):
    """Weights of the arcs that enter and that stay in each state (T, N, S'), ``stay`` ``None`` where they are the same,
    and whether a frame is its sample's own (T, N, 1).
    """

    step: Number
    stay: Number | None
    real: Array

    def each(self, change: Callable[[Number], Number]) -> Frames:
        """The same with other weights."""
        return Frames(change(self.step), None if self.stay is None else change(self.stay), self.real)


def forward(scores: Array, lattice: ChainLattice, *, logits: bool) -> tuple[Array, Array]:
    """Losses (N,) of scores (N, T, C), and the gradient of each with respect to the scores."""
    real = jnp.arange(scores.shape[1]) < lattice.input_lengths[:, None]
    scores = rows.real_rows(scores, real)
    found = rows.statistics(scores)
    used = _used(lattice, scores.shape[2])[:, None]
    maxima = found.maxima if logits else rows.huge(jnp.where(used, scores, -jnp.inf).max(2, initial=-jnp.inf))
    relative = extended.exact_sum(scores, -maxima[:, :, None])
    # Exponentials of whichever there are fewer of. Rests of classes are counted by class: arcs need none.
    by_class = scores.shape[2] <= lattice.step_labels.shape[1]

    def weighted(ranged: Callable[[Number], Number]) -> Frames:
        if by_class:
            return _frames(ranged(extended.rounded(extended.exp(*relative))), lattice, _same)
        return _frames(relative, lattice, lambda pair: ranged(extended.exp(*pair)))

    # Made in front of the choice, so that they are arrays in it: XLA would make them again for each use.
    narrow_frames = weighted(extended.narrow)
    normaliser = extended.product(jnp.where(real, found.sums, 1), jnp.where(real, found.rests, 0)) if logits else None

    def solved(narrow: bool) -> tuple[Array, ...]:
        ranged = extended.narrow if narrow else _same
        paths = solve(narrow_frames if narrow else weighted(_same), lattice)
        feasible = paths.total.mantissa > 0
        one = extended.ones(feasible.shape, paths.total)
        dividend = one if normaliser is None else ranged(normaliser)
        losses = extended.log(extended.divide(dividend, extended.select(feasible, paths.total, one)))
        return feasible, losses - paths.lost, expected_counts(paths, lattice, scores.shape[2])

    reaches = extended.reach(jnp.where(used, relative[0], 0), 2).sum(1)
    feasible, losses, counts = extended.by_range(reaches, solved)
    gradient = -counts
    if by_class and scores.dtype == jnp.float32:
        losses -= lax.stop_gradient(counts * extended.relative_rest(extended.exp(*relative))).sum((1, 2))
    if logits:
        defined = found.defined.all(1)
        # The sums are constants of the paths' weights, and their derivative is here.
        normalisers = jnp.log(jnp.where(real & (found.sums > 0), found.sums, 1)).sum(1)
        losses = rows.not_negative(losses + (normalisers - lax.stop_gradient(normalisers)))
        gradient += rows.softmax(scores, found)
    else:
        defined = ((scores < jnp.inf) | ~used).all((1, 2))
        losses -= maxima.sum(1)
    losses = jnp.where(feasible, losses, jnp.inf)
    gradient = jnp.where((real & feasible[:, None])[:, :, None], gradient, 0)
    gradient = jnp.where((real & ~defined[:, None])[:, :, None], jnp.nan, gradient)
    return jnp.where(defined, losses, jnp.nan), gradient


def solve(frames: Frames, lattice: ChainLattice) -> Solved:
    """The sum over all paths, and the posteriors.

    The scans keep mantissas alone, as posteriors are right to their rounding. What rounding does to the sum, arc by
    arc, adds up in the paths through each state: the sum of the states' relative errors, each times its posterior.
    """
    _, num_samples, num_states = frames.step.high.shape
    exact = frames
    frames = frames.each(extended.rounded)
    like = frames.step
    edge = extended.zeros((num_samples, EDGE), like)

    # Columns are put beside the states last of all: from within XLA makes loops of single numbers. A carry is handed on
    # as it came: else XLA computes a frame twice.
    def advance(alpha: Number, frame: Frames) -> tuple[Number, Number]:
        return extended.concatenate([edge, _entered(alpha, frame, lattice), edge], 1), alpha

    def retreat(later: _Ahead, step: tuple[Frames, Array]) -> tuple[_Ahead, _Ahead]:
        frame, is_last = step
        beta = _leaving(later, skipped)

        def entering(weight: Number) -> Number:
            return extended.select(is_last, extended.keep(final, weight), extended.multiply(beta, weight))

        stay = None if frame.stay is None else entering(frame.stay)
        return _Ahead(extended.concatenate([edge, entering(frame.step), edge], 1), stay), later

    state = jnp.arange(-EDGE, num_states + EDGE)
    start = jnp.broadcast_to(state == lattice.start_state, (num_samples, len(state)))
    last = lattice.num_states[:, None]
    is_final = (state >= -1) & (state >= last - lattice.num_final) & (state < last)
    final = is_final[:, INNER]
    nothing = _Ahead(
        extended.zeros((num_samples, num_states + 2 * EDGE), like),
        None if frames.stay is None else extended.zeros((num_samples, num_states), like),
    )
    first_alpha, nothing = extended.varying_as(
        (extended.one_where(start, like), nothing),
        (frames, lattice.skips, lattice.num_states),
    )
    alpha, before = lax.scan(advance, first_alpha, frames)
    # Where a sample ends; what is behind its end is never read.
    at_end = lattice.input_lengths[None, :, None]
    alpha = jax.tree.map(
        lambda last, others: jnp.take_along_axis(jnp.concatenate([others, last[None]]), at_end, 0)[0], alpha, before
    )

    skipped = jnp.pad(lattice.skips, ((0, 0), (0, EDGE)))[:, EDGE:]
    is_last = jnp.arange(1, len(frames.real) + 1)[:, None, None] >= lattice.input_lengths[:, None]
    first, later = lax.scan(retreat, nothing, (frames, is_last), reverse=True)
    ahead = jax.tree.map(lambda own, others: jnp.concatenate([own[None], others])[:-1], first, later)

    total = extended.total(extended.keep(is_final, extended.with_rest(alpha)), 1)
    posteriors = _posteriors(before, ahead, extended.at(total, (slice(None), None)), lattice)
    lost = _lost(before, exact, posteriors, lattice) if total.rest is not None else jnp.zeros_like(total.mantissa)
    step, stay = (None if part is None else part.swapaxes(0, 1) for part in posteriors)
    return Solved(total, lost, step, stay)


def expected_counts(solved: Solved, lattice: ChainLattice, num_classes: int) -> Array:
    """(N, T, C): the posterior of each class in each frame."""
    counts = _by_index(solved.step, lattice.step_labels, num_classes)
    return counts if solved.stay is None else counts + _by_index(solved.stay, lattice.stay_labels, num_classes)


def expected_transitions(solved: Solved, lattice: ChainLattice, real: Array, num_classes: int) -> Array:
    """(N, C, C): how often each transition is expected on a path."""
    counts = jnp.zeros((len(real), 1, num_classes * num_classes), solved.step.dtype)
    for posteriors, index in ((solved.step, lattice.step_transitions), (solved.stay, lattice.stay_transitions)):
        if posteriors is not None:
            expected = jnp.where(real[:, :, None], posteriors, 0).sum(1, keepdims=True)
            counts += _by_index(expected, index, num_classes * num_classes)
    return counts.reshape(-1, num_classes, num_classes)


def _of_labels(classes: Any, labels: Array) -> Any:
    """Of (N, T, C) the entries of labels (N, S'), (T, N, S')."""
    num_samples, _, num_classes = jax.tree.leaves(classes)[0].shape
    if num_classes > labels.shape[1]:
        return jax.tree.map(
            lambda part: jnp.take_along_axis(part, labels[:, None], 2, mode="clip").swapaxes(0, 1), classes
        )
    # One frame after another: of all at once XLA makes columns, and turns them later.
    by_frame = jax.tree.map(lambda part: part.swapaxes(0, 1), classes)
    places = jnp.arange(num_samples)[:, None] * num_classes + jnp.clip(labels, 0, num_classes - 1)
    return lax.map(lambda frame: jax.tree.map(lambda part: part.ravel().at[places].get(mode="clip"), frame), by_frame)


def _used(lattice: ChainLattice, num_classes: int) -> Array:
    """(N, C) the classes that arcs of a sample's own states emit."""
    own_states = jnp.arange(lattice.step_labels.shape[1]) < lattice.num_states[:, None]
    sample = jnp.arange(len(own_states))[:, None]
    used = jnp.zeros((len(own_states), num_classes), bool)
    for labels in {id(own): own for own in (lattice.step_labels, lattice.stay_labels)}.values():
        used = used.at[sample, jnp.where(own_states, labels, num_classes)].set(True, mode="drop")
    return used


def _same(number: Any) -> Any:
    return number


def _frames(classes: Any, lattice: ChainLattice, weights: Callable[[Any], Number]) -> Frames:
    """``weights`` of what there is for emitting a class (N, T, C)."""
    step = weights(_of_labels(classes, lattice.step_labels))
    stay = None if lattice.shared_labels else weights(_of_labels(classes, lattice.stay_labels))
    return Frames(step, stay, real_frames(len(step.high), lattice))


def frames_of(states: Number, arcs: Number, lattice: ChainLattice) -> Frames:
    """Of weights of entering a class in each frame (T, N, C), and of passing from class to class (C, C), [to, from]."""
    flat = jax.tree.map(jnp.ravel, arcs)

    def weights(labels: Array, indices: Array | None) -> Number:
        assert indices is not None, "a lattice whose arcs have scores of their own"
        entered = jax.tree.map(lambda part: jnp.take_along_axis(part, labels[None], 2), states)
        passed = extended.at(flat, jnp.maximum(indices, 0))
        none = extended.ones(indices.shape, flat)
        return extended.multiply(entered, extended.select(indices >= 0, passed, none))

    step = weights(lattice.step_labels, lattice.step_transitions)
    stay = weights(lattice.stay_labels, lattice.stay_transitions)
    return Frames(step, stay, real_frames(len(step.high), lattice))


def real_frames(num_frames: int, lattice: ChainLattice) -> Array:
    """(T, N, 1) whether a frame is its sample's own."""
    return jnp.arange(num_frames)[:, None, None] < lattice.input_lengths[:, None]


def _posteriors(before: Number, ahead: _Ahead, total: Number, lattice: ChainLattice) -> tuple[Array, Array | None]:
    """Of all frames (T, N, S'), from alpha in front of each and what is ahead of its arcs."""
    masses = [extended.part(_arriving(before, lattice), _inner(ahead.step), total)]
    if ahead.stay is not None:
        masses.append(extended.part(_inner(before), ahead.stay, total))
    # Those of a frame sum to 1: divided by their own sum they are free of what alpha and beta have in common, and of
    # its rounding.
    whole = sum(mass.sum(2, keepdims=True) for mass in masses)
    step, *stay = (jnp.where(whole > 0, mass / jnp.where(whole > 0, whole, 1), 0) for mass in masses)
    return step, stay[0] if stay else None


def _lost(before: Number, frames: Frames, posteriors: tuple[Array, Array | None], lattice: ChainLattice) -> Array:
    """(N,) what rounding has taken from the sum over all paths, relative to it; a constant.

    Each product here has the bits that the scan gave it: what is added is multiplied by a power of two at last, so that
    it is the same whether or not a device joins product and sum in one operation.
    """
    before, frames, posteriors = lax.stop_gradient((before, frames, posteriors))
    entered = _entered(extended.with_rest(before), frames, lattice)
    step, stay = posteriors
    through = step if stay is None else step + stay
    return jnp.where(frames.real, through * extended.relative_rest(entered), 0).sum((0, 2))


def _shared_scores(lattice: ChainLattice) -> bool:
    """Whether all arcs into a state have the same score."""
    return lattice.shared_labels and lattice.stay_transitions is None


def _inner(alpha: Number) -> Number:
    """The states without the columns beside them."""
    return extended.at(alpha, (..., INNER))


def _arriving(alpha: Number, lattice: ChainLattice) -> Number:
    """The mass about to enter each state, in front of the weight that all arcs into it share."""
    before = extended.at(alpha, (..., slice(EDGE - 1, -EDGE - 1)))
    two_before = extended.keep(lattice.skips, extended.at(alpha, (..., slice(EDGE - 2, -EDGE - 2))))
    if _shared_scores(lattice):
        return extended.add(_inner(alpha), before, two_before)
    return extended.add(before, two_before)


def _entered(alpha: Number, frame: Frames, lattice: ChainLattice) -> Number:
    """Alpha of the states behind a frame."""
    entered = extended.multiply(_arriving(alpha, lattice), frame.step)
    if frame.stay is None:
        return entered
    return extended.add(entered, extended.multiply(_inner(alpha), frame.stay))


def _leaving(later: _Ahead, skipped: Array) -> Number:
    """What is ahead of each state; ``skipped``: whether a skip leaves it."""
    next_state = extended.at(later.step, (..., slice(EDGE + 1, 1 - EDGE)))
    after_skip = extended.keep(skipped, extended.at(later.step, (..., slice(EDGE + 2, 2 - EDGE or None))))
    return extended.add(_inner(later.step) if later.stay is None else later.stay, next_state, after_skip)


def _by_index(values: Array, indices: Array, size: int) -> Array:
    """(N, T, size) sums of values (N, T, S') that have the same index (N, S'); those of a negative one are dropped.

    The sums are products of matrices, so that no index is written twice: the order of such writes, and with it the
    rounding, would change from run to run on some devices. Where there are more indices than values, those that have
    the same are summed, and then written.
    """
    num_samples, num_frames, width = values.shape
    # Where the indices are constants XLA would work this table out at compile time, which takes it seconds.
    indices = lax.optimization_barrier(indices)
    position = jnp.arange(width)
    first = indices
    if size > width:
        first = jnp.where(indices[:, :, None] == indices[:, None, :], position, width).min(2)
    is_first = (first[:, :, None] == jnp.arange(min(size, width))).astype(values.dtype)
    if size <= width:
        return jnp.einsum("nts,nsf->ntf", values, is_first, precision=lax.Precision.HIGHEST)
    merged = jnp.einsum("nts,nsf->nft", values, is_first, precision=lax.Precision.HIGHEST)
    # Out of range, and different from one another.
    target = jnp.where((first == position) & (indices >= 0), indices, size + position)
    sums = jnp.zeros((num_samples, size, num_frames), values.dtype)
    sample = jnp.arange(num_samples)[:, None]
    return sums.at[sample, target].set(merged, mode="drop", unique_indices=True).swapaxes(1, 2)
