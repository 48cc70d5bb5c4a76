"""Chains: two scans over the frames, each step all states of all samples at once, in extended range.

The scan forward keeps alpha in front of each frame, the scan back the mass of what its arcs lead to, and the posteriors
are made of both, all frames at once. All are sums and products of positive numbers, and JAX differentiates them, to any
order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended, rows
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, ChainLattice

# Columns in front of the first state: the virtual state, and one more so that a skip into state 0 reads a zero.
FRONT = 2
# Columns behind the last state, zeros for a step and a skip out of it.
BACK = 2


class Solved(NamedTuple):
    """Of each sample the sum over all paths (N,), and the posteriors of the arcs by what they emit (N, T, S'); where
    all arcs into a state score the same, ``step`` has them all.
    """

    total: Number
    step: Array
    stay: Array | None


class _Ahead(NamedTuple):
    """The sum over the paths ahead, from a frame's arcs on: of those that enter each state (N, S'+2), and of those that
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


def forward(scores: Array, lattice: ChainLattice, *, logits: bool) -> tuple[Array, Array]:
    """Losses (N,) of scores (N, T, C), and the gradient of each with respect to the scores."""
    real = jnp.arange(scores.shape[1]) < lattice.input_lengths[:, None]
    scores = rows.real_rows(scores, real)
    found = rows.statistics(scores)
    maxima = found.maxima if logits else jnp.where(real, _common(scores, lattice), 0)
    frames, defined = _frames(scores, maxima, lattice)
    solved = solve(frames, lattice)
    feasible = solved.total.mantissa > 0
    one = extended.with_rest(extended.ones(feasible.shape, scores.dtype))
    total = extended.select(feasible, solved.total, one)
    normaliser = one
    gradient = -expected_counts(solved, lattice, scores.shape[2])
    if logits:
        normaliser = product_over_frames(jnp.where(real, found.sums, 1), jnp.where(real, found.rests, 0))
        defined = found.defined.all(1)
        gradient += rows.softmax(scores, found)
    losses = extended.log(extended.divide(normaliser, total))
    losses = rows.not_negative(losses) if logits else losses - maxima.sum(1)
    losses = jnp.where(feasible, losses, jnp.inf)
    gradient = jnp.where((real & feasible[:, None])[:, :, None], gradient, 0)
    gradient = jnp.where((real & ~defined[:, None])[:, :, None], jnp.nan, gradient)
    return jnp.where(defined, losses, jnp.nan), gradient


def solve(frames: Frames, lattice: ChainLattice) -> Solved:
    _, num_samples, num_states = frames.step.high.shape
    dtype = frames.step.high.dtype
    front, back = (extended.zeros((num_samples, columns), dtype) for columns in (FRONT, BACK))
    front = extended.with_rest(front)

    def advance(alpha: Number, frame: Frames) -> tuple[Number, Number]:
        entered = extended.multiply(_arriving(alpha, lattice), frame.step)
        if frame.stay is not None:
            entered = extended.add(entered, extended.multiply(_inner(alpha), frame.stay))
        entered = extended.concatenate([front, entered], 1)
        return extended.select(frame.real, entered, alpha), extended.rounded(alpha)

    def retreat(later: _Ahead, step: tuple[Frames, Array]) -> tuple[_Ahead, _Ahead]:
        frame, is_last = step
        beta = _leaving(later, skipped)

        def entering(weight: Number, beyond: list[Number]) -> Number:
            # The selection outside of all else, and the carry handed on as it came: of other forms XLA makes more loops
            # a frame, or computes a frame twice.
            first, further = extended.keep(final, weight), extended.multiply(beta, weight)
            return extended.select(is_last, *(extended.concatenate([own, *beyond], 1) for own in (first, further)))

        stay = None if frame.stay is None else entering(frame.stay, [])
        return _Ahead(entering(frame.step, [back]), stay), later

    state = jnp.arange(-FRONT, num_states)
    start = jnp.broadcast_to(state == lattice.start_state, (num_samples, len(state)))
    last = lattice.num_states[:, None]
    is_final = (state >= -1) & (state >= last - lattice.num_final) & (state < last)
    final = is_final[:, FRONT:]
    nothing = _Ahead(
        extended.zeros((num_samples, num_states + BACK), dtype),
        None if frames.stay is None else extended.zeros((num_samples, num_states), dtype),
    )
    first_alpha, nothing = extended.varying_as(
        (extended.with_rest(extended.one_where(start, dtype)), nothing),
        (frames, lattice.skips, lattice.num_states),
    )
    alpha, before = lax.scan(advance, first_alpha, frames)
    total = extended.total(extended.keep(is_final, alpha), 1)
    # Posteriors are right to the rounding of a mantissa as they are.
    frames = Frames(extended.rounded(frames.step), frames.stay and extended.rounded(frames.stay), frames.real)

    skipped = jnp.pad(lattice.skips, ((0, 0), (0, BACK)))[:, BACK:]
    is_last = jnp.arange(1, len(frames.real) + 1)[:, None, None] >= lattice.input_lengths[:, None]
    first, later = lax.scan(retreat, nothing, (frames, is_last), reverse=True)
    ahead = jax.tree.map(lambda own, others: jnp.concatenate([own[None], others])[:-1], first, later)

    return Solved(total, *_posteriors(before, ahead, lattice))


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


def product_over_frames(factors: Array, rests: Array) -> Number:
    """(N,) product of positive floats (N, T) and what these have rounded off, by halves: the log of T products after
    one another.
    """
    product = extended.number_of(factors, rests)
    if not factors.shape[1]:
        product = extended.with_rest(extended.ones((len(factors), 1), factors.dtype))
    while (width := product.high.shape[1]) > 1:
        half = width // 2
        parts = slice(half), slice(half, 2 * half), slice(2 * half, None)
        first, second, rest = (extended.at(product, (..., part)) for part in parts)
        product = extended.concatenate([extended.multiply(first, second), rest], 1)
    return extended.at(product, (..., 0))


def _common(scores: Array, lattice: ChainLattice) -> Array:
    """(N, T) what all arcs of a frame have in common, where it is huge."""
    own_states = (jnp.arange(lattice.step_labels.shape[1]) < lattice.num_states[:, None])[:, None]
    labels = {id(own): own for own in (lattice.step_labels, lattice.stay_labels)}.values()
    arcs = [jnp.where(own_states, jnp.take_along_axis(scores, own[:, None], 2), -jnp.inf) for own in labels]
    return rows.huge(jnp.concatenate(arcs, 2).max(2, initial=-jnp.inf))


def _frames(scores: Array, maxima: Array, lattice: ChainLattice) -> tuple[Frames, Array]:
    """Of scores (N, T, C) less the maxima (N, T) of their rows; whether those of a sample's arcs are below +inf."""
    relative = extended.exact_sum(scores, -maxima[:, :, None])
    own_states = jnp.arange(lattice.step_labels.shape[1]) < lattice.num_states[:, None]
    step, defined = _emitted(relative, lattice.step_labels, own_states)
    stay = None
    if not lattice.shared_labels:
        stay, also_defined = _emitted(relative, lattice.stay_labels, own_states)
        defined &= also_defined
    return Frames(step, stay, _real(len(step.high), lattice)), defined


def frames_of(states: Number, arcs: Number, lattice: ChainLattice) -> Frames:
    """Of weights of entering a class in each frame (T, N, C), and of passing from class to class (C, C), [to, from]."""
    flat = jax.tree.map(jnp.ravel, arcs)

    def weights(labels: Array, indices: Array | None) -> Number:
        assert indices is not None, "a lattice whose arcs have scores of their own"
        entered = jax.tree.map(lambda part: jnp.take_along_axis(part, labels[None], 2), states)
        passed = extended.at(flat, jnp.maximum(indices, 0))
        none = extended.with_rest(extended.ones(indices.shape, states.high.dtype))
        return extended.multiply(entered, extended.select(indices >= 0, passed, none))

    step = weights(lattice.step_labels, lattice.step_transitions)
    stay = weights(lattice.stay_labels, lattice.stay_transitions)
    return Frames(step, stay, _real(len(step.high), lattice))


def _real(num_frames: int, lattice: ChainLattice) -> Array:
    return jnp.arange(num_frames)[:, None, None] < lattice.input_lengths[:, None]


def _emitted(relative: tuple[Array, Array], labels: Array, own_states: Array) -> tuple[Number, Array]:
    """(T, N, S') weights of the arcs that emit a label."""
    score, rest = (jnp.take_along_axis(part, labels[:, None], 2).swapaxes(0, 1) for part in relative)
    return extended.exp(score, rest), ((score < jnp.inf) | ~own_states).all((0, 2))


def _posteriors(before: Number, ahead: _Ahead, lattice: ChainLattice) -> tuple[Array, Array | None]:
    """Of all frames (N, T, S'), from alpha in front of each and what is ahead of its arcs, both time first."""
    masses = [extended.multiply(_arriving(before, lattice), extended.at(ahead.step, (..., slice(None, -BACK))))]
    if ahead.stay is not None:
        masses.append(extended.multiply(_inner(before), ahead.stay))
    # Those of a frame sum to 1: divided by their own sum they are free of what alpha and beta have in common, and of
    # its rounding.
    shares = extended.shares(extended.concatenate(masses, 2), 2).swapaxes(0, 1)
    step, *stay = jnp.split(shares, len(masses), 2)
    return step, stay[0] if stay else None


def _shared_scores(lattice: ChainLattice) -> bool:
    """Whether all arcs into a state have the same score."""
    return lattice.shared_labels and lattice.stay_transitions is None


def _inner(alpha: Number) -> Number:
    """The states without those in front."""
    return extended.at(alpha, (..., slice(FRONT, None)))


def _arriving(alpha: Number, lattice: ChainLattice) -> Number:
    """The mass about to enter each state, in front of the weight that all arcs into it share."""
    before = extended.at(alpha, (..., slice(1, -1)))
    two_before = extended.keep(lattice.skips, extended.at(alpha, (..., slice(None, -2))))
    if _shared_scores(lattice):
        return extended.add(_inner(alpha), before, two_before)
    return extended.add(before, two_before)


def _leaving(later: _Ahead, skipped: Array) -> Number:
    """What is ahead of each state; ``skipped``: whether a skip leaves it."""
    own, next_state, after_skip = (
        extended.at(later.step, (..., slice(distance, distance - BACK or None))) for distance in range(BACK + 1)
    )
    return extended.add(own if later.stay is None else later.stay, next_state, extended.keep(skipped, after_skip))


def _by_index(values: Array, indices: Array, size: int) -> Array:
    """(N, T, size) sums of values (N, T, S') that have the same index (N, S'); those of a negative one are dropped.

    Values of the same index are first added by a product of matrices, so that no index is written twice: the order of
    such writes, and with it the rounding, would change from run to run on some devices.
    """
    num_samples, num_frames, width = values.shape
    # Where the indices are constants XLA would work this table out at compile time, which takes it seconds.
    indices = lax.optimization_barrier(indices)
    position = jnp.arange(width)
    first = jnp.where(indices[:, :, None] == indices[:, None, :], position, width).min(2)
    is_first = (first[:, :, None] == position).astype(values.dtype)
    merged = jnp.einsum("nts,nsf->nft", values, is_first, precision=lax.Precision.HIGHEST)
    # Out of range, and different from one another.
    target = jnp.where((first == position) & (indices >= 0), indices, size + position)
    sums = jnp.zeros((num_samples, size, num_frames), values.dtype)
    sample = jnp.arange(num_samples)[:, None]
    return sums.at[sample, target].set(merged, mode="drop", unique_indices=True).swapaxes(1, 2)
