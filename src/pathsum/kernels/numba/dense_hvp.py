"""Second derivatives of dense lattices on the CPU.

The derivation is that of ``chain_hvp``: the posterior of an arc moves by itself times the deviations of the mean costs
before and behind it. With posterior(t, i to j) = entering[t, j] * matrix[j, i] * alpha[t-1, i] the averages are
products with the matrix, as alpha and beta are,

    before[t] = cost[t] + entering[t] / gamma[t] * (matrix @ (alpha * before)[t-1])
    behind[t] = alpha[t] / gamma[t] * (matrix.T @ (entering * (cost + behind))[t+1])

and where the transitions have a tangent too, one more each with the matrix times it. Samples in extended range take
their own way, in ``dense_extended``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import dense, dense_extended, dense_linear, parallel
from pathsum.kernels.numba.compilation import kernel
from pathsum.kernels.numba.dense_linear import GROUP, Matrix, multiply, send
from pathsum.kernels.numba.rows import Strided, copy_row, less_common, load_row
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import DenseSaved, Product
from pathsum.lattice import DenseLattice


class Moved(NamedTuple):
    """What becomes of planes of ``DenseSaved``, (sum of T, C') each.

    Attributes:
        gamma: the tangent of the posteriors.
        alpha: alpha * before.
        entering: entering * (cost + behind).
        means: (sum of T,) mean cost of each frame, in float64.
    """

    gamma: np.ndarray
    alpha: np.ndarray
    entering: np.ndarray
    means: np.ndarray


def hvp(
    grad_losses: np.ndarray,
    tangent: Strided,
    transition_tangent: np.ndarray | None,
    scores: Strided,
    num_classes: int,
    lattice: DenseLattice,
    transitions: np.ndarray,
    saved: DenseSaved,
    transition_gradient: np.ndarray | None,
    out: Strided,
    num_frames: int,
    *,
    need_transitions: bool,
    num_threads: int,
) -> Product:
    """Write the Hessian of the sum of grad_losses * losses, times the tangents, into ``out`` with axes (N, T, C).

    ``tangent`` has the axes of ``scores``, ``transition_tangent`` those of ``transitions``, (C, C); beside it goes the
    ``transition_gradient``.
    """
    transitions = less_common(transitions)
    lengths, offsets, work = lattice.input_lengths, dense.offsets_of(lattice), saved.gamma.dtype.type
    wanted = parallel.worthwhile(num_threads, 2 * dense.work_of(offsets, num_classes))
    solved = (lengths > 0) & (saved.losses < np.inf)
    matrix = dense_linear.exponential(transitions, work)
    moved = _move(tangent, transition_tangent, num_classes, offsets, saved, matrix, solved & ~saved.extended, wanted)

    product = np.zeros((num_classes, num_classes))
    if need_transitions:
        upstream = np.where(solved & ~saved.extended & (lengths > 1), -grad_losses, 0.0)
        samples = np.flatnonzero(upstream)
        for planes in (saved._replace(entering=moved.entering), saved._replace(alpha=moved.alpha)):
            dense_linear.add_transition_gradient(upstream, samples, planes, matrix, offsets, wanted, product)
    no_tangent = np.zeros((num_classes, num_classes))
    for n in map(int, np.flatnonzero(solved & saved.extended)):
        frames = slice(offsets[n], offsets[n + 1])
        own = dense.relative_scores(scores, num_classes, n, int(lengths[n]))
        costs = dense.sample_scores(tangent, num_classes, n, int(lengths[n]))
        constants = no_tangent if transition_tangent is None else transition_tangent.astype(np.float64)
        dense_extended.move(
            own, transitions, costs, constants, -grad_losses[n], saved.gamma[frames],
            moved.gamma[frames], moved.means[frames], product,
        )  # fmt: skip
    if transition_tangent is not None and transition_gradient is not None:
        # The scores of the arcs move by it themselves.
        product += transition_tangent * transition_gradient
    undefined = np.isnan(saved.losses)
    if (undefined & (lengths > 1) & (grad_losses != 0)).any():
        product[:] = np.nan

    planes = saved._replace(gamma=moved.gamma)
    dense.backward(grad_losses, num_classes, lattice, planes, out, num_frames, num_threads=num_threads)
    slopes = -np.bincount(np.repeat(np.arange(len(lengths)), lengths), moved.means, len(lengths)).astype(np.float64)
    slopes[undefined] = np.nan
    return Product(slopes, product)


def _move(
    tangent: Strided,
    transition_tangent: np.ndarray | None,
    num_classes: int,
    offsets: np.ndarray,
    saved: DenseSaved,
    matrix: Matrix,
    samples: np.ndarray,
    num_threads: int,
) -> Moved:
    """The samples of a mask; zeros for the others."""
    num_frames, width = saved.gamma.shape[0] - GROUP, saved.gamma.shape[1]
    # Zeros, since the gradient of the transitions may read up to three rows past a sample's last, times 0.
    moved = Moved(*np.zeros((3, num_frames + GROUP, width), saved.gamma.dtype), np.zeros(num_frames))
    constants = np.zeros((width, width) if transition_tangent is not None else (0, 0), saved.gamma.dtype)
    if transition_tangent is not None:
        constants[:num_classes, :num_classes] = transition_tangent
        constants *= matrix.by_destination + np.diag(matrix.stays)
    constants_by_source = np.ascontiguousarray(constants.T)
    # What passes through a state of less is lost in any sum; nor are there subnormal numbers to work on then.
    least = np.finfo(saved.gamma.dtype).eps ** 2

    def sweep(group: np.ndarray) -> None:
        arrays = (tangent.flat, *tangent.strides, tangent.encoding, num_classes, group, offsets, least)
        planes = (saved.gamma, saved.alpha, saved.entering, *moved)
        _sweep_forward(matrix.by_source, matrix.stays, constants_by_source, *arrays, *planes)
        _sweep_back(matrix.by_destination, matrix.stays, constants, *arrays, *planes)

    order = np.flatnonzero(samples)
    order = order[np.argsort(-np.diff(offsets)[order], kind="stable")]
    parallel.run(sweep, [(order[i : i + GROUP],) for i in range(0, len(order), GROUP)], num_threads)
    return moved


@kernel
def _sweep_forward(
    matrix, stays, constants, flat, stride_n, stride_t, stride_c, encoding, num_classes, group, offsets, least, gamma,
    alpha, entering, moved_gamma, moved_alpha, moved_entering, means,
):  # fmt: skip
    """Mean cost of the paths up to each state, that of its frame included, less that of all paths."""
    matrix, constants, flat, gamma, alpha = (
        borrow(matrix),
        borrow(constants),
        borrow(flat),
        borrow(gamma),
        borrow(alpha),
    )
    entering, moved_gamma, moved_alpha = borrow(entering), borrow(moved_gamma), borrow(moved_alpha)
    nothing = gamma.dtype.type(0)
    scratch = np.empty(num_classes, gamma.dtype)
    states, arrived = np.zeros((GROUP, stays.size), gamma.dtype), np.zeros((GROUP, stays.size), gamma.dtype)
    constant = np.zeros((GROUP, stays.size), gamma.dtype)
    before = np.empty(stays.size, gamma.dtype)
    for t in range(offsets[group[0] + 1] - offsets[group[0]]):
        if t > 0:
            send(matrix, stays, states, arrived)
            if constants.size > 0:
                for slot in range(group.size):
                    copy_row(alpha[min(offsets[group[slot]] + t, offsets[group[slot] + 1]) - 1], states[slot])
                multiply(constants, states, constant)
        for slot in range(group.size):
            n = group[slot]
            frame = offsets[n] + t
            if frame < offsets[n + 1]:
                row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
                posterior, entered = gamma[frame], entering[frame]
                mean, mass = nothing, nothing
                for c in range(before.size):
                    cost = row[c] if c < num_classes else nothing
                    share = entered[c] / posterior[c] if posterior[c] > least else nothing
                    before[c] = cost + share * (arrived[slot, c] + constant[slot, c])
                    weight = posterior[c] if posterior[c] > least else nothing
                    mean += weight * before[c]
                    mass += weight
                mean /= mass
                means[frame] = mean
                own, moved, state = alpha[frame], moved_gamma[frame], moved_alpha[frame]
                for c in range(before.size):
                    deviation = before[c] - mean if posterior[c] > least else nothing
                    before[c] = deviation
                    moved[c] = posterior[c] * deviation
                for c in range(before.size):
                    state[c] = own[c] * before[c]
                copy_row(state, states[slot])


@kernel
def _sweep_back(
    matrix, stays, constants, flat, stride_n, stride_t, stride_c, encoding, num_classes, group, offsets, least, gamma,
    alpha, entering, moved_gamma, moved_alpha, moved_entering, means,
):  # fmt: skip
    """Mean cost of the paths behind each state less that of all paths, added to what came before."""
    matrix, constants, flat, gamma, alpha = (
        borrow(matrix),
        borrow(constants),
        borrow(flat),
        borrow(gamma),
        borrow(alpha),
    )
    entering, moved_gamma, moved_entering = borrow(entering), borrow(moved_gamma), borrow(moved_entering)
    nothing = gamma.dtype.type(0)
    scratch = np.empty(num_classes, gamma.dtype)
    states, leaving = np.zeros((GROUP, stays.size), gamma.dtype), np.zeros((GROUP, stays.size), gamma.dtype)
    constant = np.zeros((GROUP, stays.size), gamma.dtype)
    behind = np.empty(stays.size, gamma.dtype)
    # Not a plain countdown: see chain_hvp.
    for t in np.arange(offsets[group[0] + 1] - offsets[group[0]])[::-1]:
        for slot in range(group.size):
            n = group[slot]
            frame = offsets[n] + t
            if frame < offsets[n + 1]:
                row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
                posterior, state, moved, ahead = gamma[frame], alpha[frame], moved_gamma[frame], moved_entering[frame]
                last = frame == offsets[n + 1] - 1
                mean, mass = nothing, nothing
                for c in range(behind.size):
                    possible = posterior[c] > least and not last
                    share = state[c] / posterior[c] if possible else nothing
                    behind[c] = share * (leaving[slot, c] + constant[slot, c])
                    mean += posterior[c] * behind[c]
                    mass += posterior[c]
                mean /= mass
                for c in range(behind.size):
                    behind[c] = behind[c] - mean if posterior[c] > least else nothing
                for c in range(behind.size):
                    moved[c] += posterior[c] * behind[c]
                for c in range(behind.size):
                    behind[c] += (row[c] if c < num_classes else nothing) - gamma.dtype.type(means[frame])
                own = entering[frame]
                for c in range(behind.size):
                    ahead[c] = own[c] * behind[c]
                copy_row(ahead, states[slot])
        if t > 0:
            send(matrix, stays, states, leaving)
            if constants.size > 0:
                for slot in range(group.size):
                    copy_row(entering[min(offsets[group[slot]] + t, offsets[group[slot] + 1] - 1)], states[slot])
                multiply(constants, states, constant)
