"""Chains: two scans over the frames, each step all states of all samples at once, in extended range.

The scan forward keeps alpha in front of each frame; the scan back makes the posteriors of the frame's arcs. Both are
sums and products of positive numbers, and JAX differentiates them, to any order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended, rows
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, ChainLattice

# Columns in front of the first state: the virtual state, and one more so that a skip into state 0 reads a zero.
FRONT = 2


class Solved(NamedTuple):
    """Of each sample the sum over all paths (N,), whether all its scores are defined (N,), and the posteriors of the
    arcs by what they emit (N, T, S'); where all arcs into a state score the same, ``step`` has them all.
    """

    total: Number
    defined: Array
    step: Array
    stay: Array | None


class _Frame(NamedTuple):
    """One frame's weights of the arcs that enter and that stay in each state (N, S'), and whether the frame is the
    sample's own (N, 1).
    """

    step: Number
    stay: Number | None
    real: Array


def forward(scores: Array, lattice: ChainLattice, *, logits: bool) -> tuple[Array, Array]:
    """Losses (N,) of scores (N, T, C), and the gradient of each with respect to the scores."""
    real = jnp.arange(scores.shape[1]) < lattice.input_lengths[:, None]
    scores = rows.real_rows(scores, real)
    found = rows.statistics(scores)
    solved = solve(scores, found.maxima if logits else jnp.zeros_like(found.maxima), lattice)
    feasible = solved.total.mantissa > 0
    total = extended.select(feasible, solved.total, extended.ones(feasible.shape, scores.dtype))
    normaliser, defined = extended.ones(feasible.shape, scores.dtype), solved.defined
    gradient = -expected_counts(solved, lattice, scores.shape[2])
    if logits:
        normaliser = product_over_frames(jnp.where(real, found.sums, 1))
        defined = found.defined.all(1)
        gradient += rows.softmax(scores, found)
    losses = jnp.where(feasible, extended.log(extended.divide(normaliser, total)), jnp.inf)
    gradient = jnp.where((real & feasible[:, None])[:, :, None], gradient, 0)
    gradient = jnp.where((real & ~defined[:, None])[:, :, None], jnp.nan, gradient)
    return jnp.where(defined, losses, jnp.nan), gradient


def solve(scores: Array, maxima: Array, lattice: ChainLattice, transitions: Array | None = None) -> Solved:
    """Solve scores (N, T, C) less the maxima (N, T) of their rows; transitions (C, C) where the lattice has any."""
    num_states = lattice.step_labels.shape[1]
    frames, defined = _frames(scores, maxima, lattice, transitions)

    def advance(alpha: Number, frame: _Frame) -> tuple[Number, Number]:
        entered = extended.multiply(_arriving(alpha, lattice), frame.step)
        if frame.stay is not None:
            entered = extended.add(entered, extended.multiply(_inner(alpha), frame.stay))
        front = extended.zeros((len(scores), FRONT), scores.dtype)
        return extended.select(frame.real, extended.concatenate([front, entered], 1), alpha), alpha

    def retreat(beta: Number, step: tuple[_Frame, Number]) -> tuple[Number, tuple[Array, Array | None]]:
        frame, alpha = step
        stepped = extended.multiply(beta, frame.step)
        stayed = stepped if frame.stay is None else extended.multiply(beta, frame.stay)
        masses = [extended.multiply(_arriving(alpha, lattice), stepped)]
        if frame.stay is not None:
            masses.append(extended.multiply(_inner(alpha), stayed))
        # The posteriors of a frame sum to 1: divided by their own sum they are free of what alpha and beta have in
        # common, and of its rounding.
        shares = extended.shares(extended.concatenate(masses, 1), 1)
        leaving = extended.add(stayed, _following(stepped, 1), _following(extended.keep(lattice.skips, stepped), 2))
        posteriors = shares[:, :num_states], None if frame.stay is None else shares[:, num_states:]
        return extended.select(frame.real, leaving, beta), posteriors

    state = jnp.arange(-FRONT, num_states)
    start = jnp.broadcast_to(state == lattice.start_state, (len(scores), len(state)))
    last = lattice.num_states[:, None]
    final = (state >= -1) & (state >= last - lattice.num_final) & (state < last)
    first_alpha, last_beta = extended.varying_as(
        (extended.one_where(start, scores.dtype), extended.one_where(final[:, FRONT:], scores.dtype)),
        (frames, lattice.skips, lattice.num_states),
    )
    alpha, before = lax.scan(advance, first_alpha, frames)
    total = extended.total(extended.keep(final, alpha), 1)
    _, (step, stay) = lax.scan(retreat, last_beta, (frames, before), reverse=True)
    return Solved(total, defined, step.swapaxes(0, 1), None if stay is None else stay.swapaxes(0, 1))


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


def product_over_frames(factors: Array) -> Number:
    """(N,) product of positive floats (N, T)."""
    numbers = extended.number_of(factors.T)
    start = extended.varying_as(extended.ones(factors.shape[:1], factors.dtype), factors)
    return lax.scan(lambda product, factor: (extended.multiply(product, factor), None), start, numbers)[0]


def _frames(scores: Array, maxima: Array, lattice: ChainLattice, transitions: Array | None) -> tuple[_Frame, Array]:
    """The frames of a batch, time first, and whether all scores of a sample's arcs are below +inf (N,)."""
    relative = extended.exact_sum(scores, -maxima[:, :, None])
    real = jnp.arange(scores.shape[1])[:, None, None] < lattice.input_lengths[:, None]
    own_states = jnp.arange(lattice.step_labels.shape[1]) < lattice.num_states[:, None]
    step, defined = _emitted(relative, lattice.step_labels, transitions, lattice.step_transitions, own_states)
    if _shared_scores(lattice):
        return _Frame(step, None, real), defined
    stay, also_defined = _emitted(relative, lattice.stay_labels, transitions, lattice.stay_transitions, own_states)
    return _Frame(step, stay, real), defined & also_defined


def _emitted(
    relative: tuple[Array, Array], labels: Array, transitions: Array | None, indices: Array | None, own_states: Array
) -> tuple[Number, Array]:
    """(T, N, S') weights of the arcs that emit a label, with what they have the same in all frames."""
    score, rest = (jnp.take_along_axis(part, labels[:, None], 2).swapaxes(0, 1) for part in relative)
    if transitions is not None and indices is not None:
        constant = jnp.where(indices >= 0, transitions.ravel()[jnp.maximum(indices, 0)], 0)
        # Kept whole: the same rounding in every frame would add up over the frames.
        score, more = extended.exact_sum(score, constant)
        rest += more
    return extended.exp(score, rest), ((score < jnp.inf) | ~own_states).all((0, 2))


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


def _following(number: Number, distance: int) -> Number:
    """The numbers of the states so many further on."""
    width = number.high.shape[1]
    beyond = extended.zeros((number.high.shape[0], min(distance, width)), number.high.dtype)
    return extended.concatenate([extended.at(number, (..., slice(distance, None))), beyond], 1)


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
