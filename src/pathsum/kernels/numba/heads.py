"""Lattices with arcs of several kinds: heads make planes, sums of planes score the arcs, and back again.

A head reads its planes from logits, makes them by a joiner, or has them given. Its ``differentiate`` turns the planes'
gradients into its own; but for a joiner ``move`` and ``multiply`` are the derivatives of both along its tangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pathsum.kernels.numba import arc_scores, grid_arcs, grid_arcs_hvp, joint, joint_scores, row_scores, row_scores_hvp
from pathsum.kernels.numba.grid import GridRows
from pathsum.kernels.numba.row_scores import Wanted
from pathsum.kernels.protocol import ArcSaved
from pathsum.lattice import ArcLattice

# Softmax maxima and sums of the rows.
Statistics = Sequence[np.ndarray]
_NOTHING = np.empty(0)


class Logits(NamedTuple):
    """Logits, padded or packed, whose rows are read; ``out`` is where their gradient or its derivative is written."""

    rows: GridRows
    num_classes: int
    lattice: ArcLattice
    wanted: Wanted
    num_threads: int
    out: GridRows | None = None
    tangent: GridRows | None = None

    def read(self, planes: np.ndarray) -> Statistics:
        """Fill planes (K, rows); what is kept of the rows."""
        asked = (self.rows, self.num_classes, self.lattice, self.wanted, planes)
        return row_scores.forward(*asked, num_threads=self.num_threads)

    def differentiate(self, grad_planes: np.ndarray, upstream: np.ndarray, kept: Statistics, clamp: float) -> GridRows:
        assert self.out is not None
        asked = (grad_planes, upstream, self.rows, self.num_classes, self.lattice, self.wanted)
        row_scores.backward(*asked, *kept, self.out, clamp=clamp, num_threads=self.num_threads)
        return self.out

    def move(self, kept: Statistics) -> tuple[np.ndarray, np.ndarray]:
        """How the planes move along the tangent, and each row's mean of it."""
        planes = np.empty((len(self.wanted.classes), int(self.lattice.row_offsets[-1])))
        asked = (self.tangent, self.rows, self.num_classes, self.lattice, self.wanted)
        return planes, row_scores_hvp.gather(*asked, *kept, planes, num_threads=self.num_threads)

    def multiply(
        self, grad_planes: np.ndarray, moved_planes: np.ndarray, kept: Statistics, means: np.ndarray
    ) -> GridRows:
        """How ``differentiate``'s result moves, with which the planes' gradients move by ``moved_planes``."""
        assert self.out is not None
        asked = (self.tangent, grad_planes, moved_planes, self.rows, self.num_classes, self.lattice, self.wanted)
        row_scores_hvp.hvp(*asked, *kept, means, self.out, num_threads=self.num_threads)
        return self.out


class Joined(NamedTuple):
    """A joiner, whose logits are made a tile at a time."""

    joiner: joint.Joiner
    lattice: ArcLattice
    wanted: Wanted
    matmul: joint.Matmul
    rows_per_tile: int
    gate: float | None
    num_threads: int

    def read(self, planes: np.ndarray) -> Statistics:
        sizes = {"rows_per_tile": self.rows_per_tile, "num_threads": self.num_threads}
        planes[:] = joint_scores.forward(self.joiner, self.lattice, self.wanted, self.matmul, **sizes)
        return _NOTHING, _NOTHING

    def differentiate(
        self, grad_planes: np.ndarray, upstream: np.ndarray, kept: Statistics, clamp: float
    ) -> joint.Joiner:
        asked = (grad_planes, upstream, self.joiner, self.lattice, self.wanted, self.matmul)
        sizes = {"rows_per_tile": self.rows_per_tile, "num_threads": self.num_threads}
        return joint_scores.backward(*asked, clamp=clamp, gate=self.gate, **sizes)


class Given(NamedTuple):
    """Planes (K, rows) that are given."""

    planes: np.ndarray
    tangent: np.ndarray | None = None

    def differentiate(
        self, grad_planes: np.ndarray, upstream: np.ndarray, kept: Statistics, clamp: float
    ) -> np.ndarray:
        return grad_planes

    def move(self, kept: Statistics) -> tuple[np.ndarray, np.ndarray]:
        assert self.tangent is not None
        return self.tangent, _NOTHING

    def multiply(
        self, grad_planes: np.ndarray, moved_planes: np.ndarray, kept: Statistics, means: np.ndarray
    ) -> np.ndarray:
        return moved_planes


Head = Logits | Joined | Given


def read(heads: Sequence[Head], lattice: ArcLattice) -> tuple[np.ndarray, list[np.ndarray]]:
    """The planes (planes, rows) of all heads, and the softmax maxima and sums of each."""
    if isinstance(heads[0], Given):
        return heads[0].planes, [_NOTHING] * 2
    counts = [len(classes) for classes in lattice.reads]
    planes, first, statistics = np.empty((sum(counts), int(lattice.row_offsets[-1]))), 0, []
    for head, count in zip(heads, counts, strict=True):
        statistics += head.read(planes[first : first + count])
        first += count
    return planes, statistics


def forward(
    heads: Sequence[Head],
    lattice: ArcLattice,
    *,
    sigma: float,
    label_bonus: np.ndarray | None,
    skip_score: float,
    need_gradient: bool,
    num_threads: int,
) -> ArcSaved:
    """Losses of a batch and, where asked, the posteriors of the arcs; the bonus (rows,) is of labels."""
    planes, statistics = read(heads, lattice)
    scores = arc_scores.forward(planes, arc_scores.kinds_of(lattice), sigma=sigma, label_bonus=label_bonus)
    skips = np.zeros((0 if lattice.skips_to is None else 2, scores.shape[1]))
    raised = lattice.skips_to is not None or label_bonus is not None or sigma < 0
    # Whether the paths share a probability of 1.
    share_one = not raised and all(not isinstance(head, Given) and head.wanted.logits for head in heads)
    losses = grid_arcs.solve(
        scores, lattice, skip_score, need_gradient=need_gradient, num_threads=num_threads, skips=skips,
        at_least=0.0 if share_one else -np.inf,
    )  # fmt: skip
    statistics += [_NOTHING] * (4 - len(statistics))
    return ArcSaved(losses, scores if need_gradient else scores[:0], skips, *statistics)


def backward(
    upstream: np.ndarray,
    heads: Sequence[Head],
    lattice: ArcLattice,
    saved: ArcSaved,
    needed: Sequence[bool],
    *,
    fastemit_lambda: float,
    clamp: float,
) -> list[Any]:
    """What each of the heads gives of its planes' gradients; ``None`` where it is not needed."""
    # A joiner's gate is of the posteriors, which are the gradients of a loss's own planes; a clamp is of a loss's own
    # gradient. Either needs the upstream gradient apart.
    apart, ones = clamp > 0 or any(isinstance(head, Joined) for head in heads), np.ones(len(upstream))
    scales = _scales(ones if apart else upstream, lattice, saved)
    by_planes = _by_planes(saved.posteriors, scales, lattice, fastemit_lambda)
    found, statistics = [], _statistics(saved)
    for k, head in enumerate(heads):
        asked = (by_planes[k], upstream if apart else ones, statistics[k], clamp)
        found.append(head.differentiate(*asked) if needed[k] else None)
    return found


def hvp(
    upstream: np.ndarray,
    heads: Sequence[Logits | Given],
    lattice: ArcLattice,
    saved: ArcSaved,
    needed: Sequence[bool],
    *,
    num_threads: int,
) -> tuple[np.ndarray, list[Any]]:
    """Slopes of the losses (N,) along the heads' tangents, and how ``backward``'s gradients move."""
    scales = _scales(upstream, lattice, saved)
    grad_planes = _by_planes(saved.posteriors, scales, lattice)
    statistics = _statistics(saved)
    moved, means = zip(*(head.move(statistics[k]) for k, head in enumerate(heads)), strict=True)
    arcs = arc_scores.forward(np.concatenate(moved), arc_scores.kinds_of(lattice))
    costs = grid_arcs_hvp.hvp(arcs, saved.losses, saved.posteriors, lattice, skips=saved.skips, num_threads=num_threads)
    moved_planes, products = _by_planes(arcs, scales, lattice), []
    for k, head in enumerate(heads):
        asked = (grad_planes[k], moved_planes[k], statistics[k], means[k])
        products.append(head.multiply(*asked) if needed[k] else None)
    return -costs, products


def _by_planes(
    by_arcs: np.ndarray, scales: np.ndarray, lattice: ArcLattice, fastemit_lambda: float = 0.0
) -> list[np.ndarray]:
    """From scales (rows,) times a gradient (kinds, rows) by the arcs' scores to that by the planes of each head."""
    kinds, (first, *rest) = arc_scores.kinds_of(lattice), map(len, lattice.reads)
    found = arc_scores.backward(by_arcs, scales, kinds, first + sum(rest), fastemit_lambda=fastemit_lambda)
    return [found[:first], found[first:]] if rest else [found]


def _statistics(saved: ArcSaved) -> list[Statistics]:
    """Of each head."""
    return [(saved.maxima, saved.sums), (saved.second_maxima, saved.second_sums)]


def _scales(upstream: np.ndarray, lattice: ArcLattice, saved: ArcSaved) -> np.ndarray:
    """What the posteriors of each row are to count in the gradient."""
    scales = np.empty(saved.posteriors.shape[1])
    arc_scores.fill_scales(upstream, saved.losses, lattice.row_offsets, scales)
    return scales
