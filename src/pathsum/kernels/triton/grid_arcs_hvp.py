"""How the posteriors of a grid's arcs of several kinds move along a tangent of their scores, as in ``grid_hvp``.

A skip has a posterior and no tangent.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.rows import locate


@triton.jit
def _mean(total, mass):
    return tl.where(mass > 0, total / tl.where(mass > 0, mass, 1.0), 0.0)


@triton.jit
def _before(
    posteriors, skips, tangents, stride, before, origin, frames, labels, ARCS: tl.constexpr, SKIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a plane of the mean costs of the paths up to each node; that of all paths."""
    lanes, width = tl.arange(0, BLOCK), (labels + 1).to(tl.int64)
    cost = tl.zeros([], tl.float64)
    for strip in range(0, labels + 1, BLOCK):
        u = strip + lanes
        skipped, skipped_mass = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        for d in range(strip, frames + 1 + tl.minimum(strip + BLOCK - 1, labels)):
            # What other threads have stored of earlier diagonals.
            barrier()
            t = d - u
            inside = (t >= 0) & (t < frames) & (u <= labels)
            is_end = (t == frames) & (u == labels)
            node = origin + t * width + u
            total, mass = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
            for k in tl.static_range(len(ARCS)):
                # An arc that there is not has the posterior 0.
                arrives = (inside | is_end) & (t >= ARCS[k][0]) & (t - ARCS[k][0] < frames) & (u >= ARCS[k][1])
                source = node - ARCS[k][0] * width - ARCS[k][1]
                posterior = tl.load(posteriors + k * stride + source, mask=arrives, other=0.0)
                passed = tl.load(before + source, mask=arrives, other=0.0)
                passed += tl.load(tangents + k * stride + source, mask=arrives, other=0.0)
                total += tl.where(posterior > 0, posterior * passed, 0.0)
                mass += posterior
            if SKIPS >= 0:
                # It comes from (0, 0), before which there is no cost.
                mass += tl.load(skips + node, mask=inside & (u == 0) & (t > 0), other=0.0)
                lands = (u == labels) & (t == frames - SKIPS)
                total += tl.where(lands, skipped, 0.0)
                mass += tl.where(lands, skipped_mass, 0.0)
            mean = _mean(total, mass)
            if SKIPS >= 0:
                posterior = tl.load(skips + stride + node, mask=inside & (u == labels), other=0.0)
                skipped, skipped_mass = skipped + posterior * mean, skipped_mass + posterior
            tl.store(before + node, mean, mask=inside)
            cost += tl.sum(tl.where(is_end, mean, 0.0), 0)
    return cost


@triton.jit
def _after(
    posteriors, skips, tangents, stride, after, origin, frames, labels, ARCS: tl.constexpr, SKIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a plane of the mean costs from each node on."""
    lanes, width = tl.arange(0, BLOCK), (labels + 1).to(tl.int64)
    for strip in range(0, labels + 1, BLOCK):
        u = labels - strip - lanes
        # What is expected where the skips of the last frames lead to.
        rest = tl.zeros([BLOCK], tl.float64)
        for d in range(strip, frames + tl.minimum(strip + BLOCK - 1, labels)):
            barrier()
            t = frames - 1 - (d - strip - lanes)
            inside = (t >= 0) & (t < frames) & (u >= 0)
            node = origin + t * width + u
            total, mass = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
            for k in tl.static_range(len(ARCS)):
                lands = inside & (t + ARCS[k][0] < frames) & (u + ARCS[k][1] <= labels)
                posterior = tl.load(posteriors + k * stride + node, mask=inside, other=0.0)
                left = tl.load(after + node + ARCS[k][0] * width + ARCS[k][1], mask=lands, other=0.0)
                left += tl.load(tangents + k * stride + node, mask=inside, other=0.0)
                total += tl.where(posterior > 0, posterior * left, 0.0)
                mass += posterior
            if SKIPS >= 0:
                posterior = tl.load(skips + stride + node, mask=inside & (u == labels), other=0.0)
                total, mass = total + posterior * rest, mass + posterior
            mean = _mean(total, mass)
            if SKIPS == 1:
                rest = tl.where((u == labels) & (t == frames - 1), mean, rest)
            tl.store(after + node, mean, mask=inside)


@kernel
def solve(
    posteriors, skips, tangents, losses, stride: tl.int64, logit_lengths, target_lengths, row_offsets, before,
    after, costs, ARCS: tl.constexpr, SKIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean cost of the paths up to each node, and of all of a sample, or, by its second program, from each node on."""
    n = tl.program_id(0)
    frames, labels = tl.load(logit_lengths + n).to(tl.int32), tl.load(target_lengths + n).to(tl.int32)
    origin, loss = tl.load(row_offsets + n), tl.load(losses + n)
    possible = loss < float("inf")
    if tl.program_id(1) == 1:
        if possible:
            _after(posteriors, skips, tangents, stride, after, origin, frames, labels, ARCS, SKIPS, BLOCK)
    else:
        cost = tl.where(loss == loss, 0.0, float("nan")).to(tl.float64)
        if possible:
            cost = _before(posteriors, skips, tangents, stride, before, origin, frames, labels, ARCS, SKIPS, BLOCK)
        tl.store(costs + n, cost)


@kernel
def move_posteriors(
    posteriors, tangents, losses, before, after, costs, stride: tl.int64, logit_lengths, target_lengths, row_offsets,
    num_samples: tl.int32, moved, ARCS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """How the posteriors of the arcs out of each node move; 0 where there is no path, NaN where it is not defined."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, t, u, frames, labels, real = locate(
        rows, stride, logit_lengths, target_lengths, row_offsets, num_samples, 1, 0, True
    )
    loss = tl.load(losses + n)
    possible = real & (loss < float("inf"))
    elsewhere = tl.where(real & (loss != loss), float("nan"), 0.0).to(tl.float64)
    passed = tl.load(before + rows, mask=possible, other=0.0) - tl.load(costs + n, mask=possible, other=0.0)
    for k in tl.static_range(len(ARCS)):
        lands = possible & (t + ARCS[k][0] < frames) & (u + ARCS[k][1] <= labels)
        left = tl.load(after + rows + ARCS[k][0] * (labels + 1) + ARCS[k][1], mask=lands, other=0.0)
        left += tl.load(tangents + k * stride + rows, mask=possible, other=0.0)
        posterior = tl.load(posteriors + k * stride + rows, mask=possible, other=0.0)
        product = tl.where(posterior > 0, posterior * (passed + left), 0.0)
        tl.store(moved + k * stride + rows, product + elsewhere, mask=rows < stride)
