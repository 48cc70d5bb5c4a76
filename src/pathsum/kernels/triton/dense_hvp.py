"""Second derivatives of dense lattices on the GPU.

As on chains (``chain_hvp``) the posterior of an arc moves by itself times its cost and the mean costs before and behind
it, less the mean cost of all paths; means are weighted by the arcs' posteriors, which are made as they are needed from
what forward has kept of both ends, of samples that ``dense`` has lost as logarithms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel


@triton.jit
def _costs(tangent, start, stride_c, c, num_classes):
    return tl.load(tangent + start + c.to(tl.int64) * stride_c, mask=c < num_classes, other=0.0).to(tl.float64)


@triton.jit
def _arcs(
    matrix, transitions, constants, alpha, entering, row, i, j, num_classes, lost, CONSTANTS: tl.constexpr,
):  # fmt: skip
    """Posteriors of the arcs from i in the frame before ``row`` to j in it, and what the transitions cost: (j, i)."""
    mask = (j < num_classes)[:, None] & (i < num_classes)[None, :]
    places = j.to(tl.int64)[:, None] * num_classes + i[None, :]
    enters = tl.load(entering + row * num_classes + j, mask=j < num_classes, other=0.0)[:, None]
    before = tl.load(alpha + (row - 1) * num_classes + i, mask=i < num_classes, other=0.0)[None, :]
    if lost:
        arc = tl.load(transitions + places, mask=mask, other=float("-inf")).to(tl.float64)
        posterior = tl.exp(arc + enters + before)
    else:
        posterior = tl.load(matrix + places, mask=mask, other=0.0) * enters * before
    cost = tl.zeros(places.shape, tl.float64)
    if CONSTANTS:
        cost = tl.load(constants + places, mask=mask, other=0.0).to(tl.float64)
    return posterior, cost


@triton.jit
def _mean(total, mass):
    return tl.where(mass > 0, total / tl.where(mass > 0, mass, 1.0), 0.0)


@triton.jit
def _sweep_forward(
    tangent, start, stride_t, stride_c, matrix, transitions, constants, alpha, entering, row, frames, num_classes, lost,
    before, CONSTANTS: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths up to each state of each frame, the frame's own cost included."""
    for t in range(frames):
        # What other threads have stored of the frame before.
        barrier()
        for to in range(0, num_classes, TO):
            j = to + tl.arange(0, TO)
            total, mass = tl.zeros([TO, FROM], tl.float64), tl.zeros([TO, FROM], tl.float64)
            if t > 0:
                for source in range(0, num_classes, FROM):
                    i = source + tl.arange(0, FROM)
                    posterior, cost = _arcs(
                        matrix, transitions, constants, alpha, entering, row + t, i, j, num_classes, lost, CONSTANTS
                    )
                    places = before + (row + t - 1) * num_classes + i
                    mean = tl.load(places, mask=i < num_classes, other=0.0)[None, :]
                    total += posterior * (mean + cost)
                    mass += posterior
            own = _costs(tangent, start + t * stride_t, stride_c, j, num_classes)
            mean = _mean(tl.sum(total, 1), tl.sum(mass, 1)) + own
            tl.store(before + (row + t) * num_classes + j, mean, mask=j < num_classes)


@triton.jit
def _sweep_back(
    tangent, start, stride_t, stride_c, matrix, transitions, constants, alpha, entering, row, frames, num_classes, lost,
    behind, CONSTANTS: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths behind each state of each frame."""
    for back in range(frames):
        t = frames - 1 - back
        barrier()
        for source in range(0, num_classes, FROM):
            i = source + tl.arange(0, FROM)
            total, mass = tl.zeros([TO, FROM], tl.float64), tl.zeros([TO, FROM], tl.float64)
            if back > 0:
                for to in range(0, num_classes, TO):
                    j = to + tl.arange(0, TO)
                    posterior, cost = _arcs(
                        matrix, transitions, constants, alpha, entering, row + t + 1, i, j, num_classes, lost, CONSTANTS
                    )
                    places = behind + (row + t + 1) * num_classes + j
                    mean = tl.load(places, mask=j < num_classes, other=0.0)
                    mean += _costs(tangent, start + (t + 1) * stride_t, stride_c, j, num_classes)
                    total += posterior * (mean[:, None] + cost)
                    mass += posterior
            mean = _mean(tl.sum(total, 0), tl.sum(mass, 0))
            tl.store(behind + (row + t) * num_classes + i, mean, mask=i < num_classes)


@kernel
def solve(
    tangent, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_frames: tl.int32,
    num_classes: tl.int32, matrix, transitions, constants, gamma, alpha, entering, losses, lost, before, behind, costs,
    CONSTANTS: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Mean cost up to each state, and of all paths of a sample, or, by its second program, behind each state."""
    n = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + n).to(tl.int32)
    row, start = n * num_frames, n * stride_n
    loss, is_lost = tl.load(losses + n), tl.load(lost + n) != 0
    possible = (loss < float("inf")) & (frames > 0)
    if tl.program_id(1) == 1:
        if possible:
            _sweep_back(
                tangent, start, stride_t, stride_c, matrix, transitions, constants, alpha, entering, row, frames,
                num_classes, is_lost, behind, CONSTANTS, TO, FROM,
            )  # fmt: skip
    else:
        cost = tl.where(loss == loss, 0.0, float("nan")).to(tl.float64)
        if possible:
            _sweep_forward(
                tangent, start, stride_t, stride_c, matrix, transitions, constants, alpha, entering, row, frames,
                num_classes, is_lost, before, CONSTANTS, TO, FROM,
            )  # fmt: skip
            barrier()
            total, mass = tl.zeros([FROM], tl.float64), tl.zeros([FROM], tl.float64)
            for first in range(0, num_classes, FROM):
                c = first + tl.arange(0, FROM)
                places = (row + frames - 1) * num_classes + c
                posterior = tl.load(gamma + places, mask=c < num_classes, other=0.0)
                total += posterior * tl.load(before + places, mask=c < num_classes, other=0.0)
                mass += posterior
            cost = tl.sum(total, 0) / tl.sum(mass, 0)
        tl.store(costs + n, cost)


@kernel
def move_posteriors(
    tangent, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_frames: tl.int32,
    num_classes: tl.int32, gamma, losses, before, behind, costs, moved, BLOCK: tl.constexpr,
):  # fmt: skip
    """How the posteriors of the states of each frame move; ``behind`` gets the frame's own cost, less that of all
    paths. Both are 0 where there is no path and in padding, as is ``before``.
    """
    row = tl.program_id(0).to(tl.int64)
    n, t = row // num_frames, row % num_frames
    possible = (t < tl.load(input_lengths + n)) & (tl.load(losses + n) < float("inf"))
    cost = tl.load(costs + n, mask=possible, other=0.0)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask, places = c < tl.where(possible, num_classes, 0), row * num_classes + c
        passed = tl.load(before + places, mask=mask, other=0.0)
        left = tl.load(behind + places, mask=mask, other=0.0) - cost
        own = _costs(tangent, n * stride_n + t * stride_t, stride_c, c, tl.where(possible, num_classes, 0))
        posterior = tl.load(gamma + places, mask=mask, other=0.0)
        tl.store(moved + places, posterior * (passed + left), mask=c < num_classes)
        tl.store(behind + places, tl.where(mask, own + left, 0.0), mask=c < num_classes)
        tl.store(before + places, passed, mask=c < num_classes)


@kernel
def add_transition_product(
    grad_losses, input_lengths, losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, matrix,
    transitions, constants, alpha, entering, lost, before, behind, product, CONSTANTS: tl.constexpr, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """product[j, i] -= upstream * how the number of arcs from i to j moves, over the samples that are lost."""
    j, i = tl.program_id(0) * TO + tl.arange(0, TO), tl.program_id(1) * FROM + tl.arange(0, FROM)
    mask = (j < num_classes)[:, None] & (i < num_classes)[None, :]
    places = product + j.to(tl.int64)[:, None] * num_classes + i[None, :]
    total = tl.load(places, mask=mask, other=0.0)
    for n in range(num_samples):
        upstream = tl.load(grad_losses + n).to(tl.float64)
        if (tl.load(lost + n) != 0) & (tl.load(losses + n) < float("inf")) & (upstream != 0):
            for t in range(1, tl.load(input_lengths + n).to(tl.int32)):
                row = (tl.zeros([], tl.int64) + n) * num_frames + t
                posterior, cost = _arcs(
                    matrix, transitions, constants, alpha, entering, row, i, j, num_classes, True, CONSTANTS
                )
                passed = tl.load(before + (row - 1) * num_classes + i, mask=i < num_classes, other=0.0)
                left = tl.load(behind + row * num_classes + j, mask=j < num_classes, other=0.0)
                total -= upstream * posterior * (passed[None, :] + cost + left[:, None])
    tl.store(places, total, mask=mask)
