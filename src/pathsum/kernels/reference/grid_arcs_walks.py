"""Single walks through an arc lattice, node by node in the order of frames and labels."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import GridWalks
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, choose
from pathsum.lattice import ArcLattice

Node = tuple[int, int]


class _Way(NamedTuple):
    """An arc into a node, or a skip, whose kind is behind those of the arcs."""

    source: Node
    score: float
    kind: int


class _Grid(NamedTuple):
    """One sample: scores by kind, frame and label."""

    arcs: list[list[list[float]]]
    lattice: ArcLattice
    num_frames: int
    num_labels: int
    skip_score: float

    def nodes(self) -> Iterator[Node]:
        return ((t, u) for t in range(self.num_frames + 1) for u in range(self.num_labels + 1))

    def into(self, t: int, u: int) -> Iterator[_Way]:
        lattice = self.lattice
        for kind, (frames_on, labels_on) in enumerate(lattice.arcs):
            source = (t - frames_on, u - labels_on)
            ends = t < self.num_frames or not labels_on or lattice.label_ends
            if 0 <= source[0] < self.num_frames and source[1] >= 0 and ends:
                yield _Way(source, self.arcs[kind][source[0]][source[1]], kind)
        if lattice.skips_to is not None:
            skip = (self.skip_score, len(lattice.arcs))
            if u == 0 and 0 < t < self.num_frames:
                yield _Way((0, 0), *skip)
            if u == self.num_labels and t == self.num_frames - lattice.skips_to:
                yield from (_Way((before, u), *skip) for before in range(min(self.num_frames - 1, t)))


Walk = tuple[float, list[_Way]]


def k_best(planes: Tensor, lattice: ArcLattice, k: int, *, skip_score: float) -> GridWalks:
    """The k best walks of each sample of planes (kinds, rows), in tensors as wide as the lattice's targets."""
    return _of_samples(lambda sample, grid: _best(grid, k), planes, lattice, k, skip_score)


def sample_walks(planes: Tensor, lattice: ArcLattice, draws: Tensor, *, skip_score: float) -> GridWalks:
    """Walks drawn by their posteriors, of ``draws`` (N, K, arcs of the longest walk) in [0, 1), one an arc."""
    return _of_samples(
        lambda sample, grid: _drawn(grid, draws[sample].tolist()), planes, lattice, draws.shape[1], skip_score
    )


def _best(grid: _Grid, k: int) -> list[Walk]:
    lists: dict[Node, list[Walk]] = {(0, 0): [(0.0, [])]}
    for node in grid.nodes():
        if node != (0, 0):
            # Of equals the first stays the first: by kind, a skip last, then by place in the list before.
            longer = (
                (score + way.score, [*walk, way])
                for way in grid.into(*node)
                for score, walk in lists[way.source]
                if score + way.score > IMPOSSIBLE
            )
            lists[node] = heapq.nsmallest(k, longer, key=lambda walk: -walk[0])
    return lists[grid.num_frames, grid.num_labels]


def _drawn(grid: _Grid, draws: list[list[float]]) -> list[Walk]:
    alpha: dict[Node, float] = {(0, 0): 0.0}
    for node in grid.nodes():
        if node != (0, 0):
            terms = [alpha[way.source] + way.score for way in grid.into(*node)]
            largest = max(terms, default=IMPOSSIBLE)
            alpha[node] = largest
            if largest > IMPOSSIBLE:
                alpha[node] += math.log(math.fsum(math.exp(term - largest) for term in terms))
    end, walks = (grid.num_frames, grid.num_labels), []
    if alpha[end] == IMPOSSIBLE:
        return walks
    for own in draws:
        node, walk = end, []
        while node != (0, 0):
            ways = list(grid.into(*node))
            parts = [math.exp(alpha[way.source] + way.score - alpha[node]) for way in ways]
            way = ways[choose(parts, own[len(walk)])[0]]
            walk.append(way)
            node = way.source
        walks.append((sum(way.score for way in walk), walk[::-1]))
    return walks


def _of_samples(
    solve: Callable[[int, _Grid], list[Walk]], planes: Tensor, lattice: ArcLattice, count: int, skip_score: float
) -> GridWalks:
    num_samples, num_labels = lattice.targets.shape
    longest = (int(lattice.logit_lengths.amax()) if num_samples else 0) + num_labels
    options = {"dtype": torch.int64, "device": planes.device}
    frames = torch.full((num_samples, count, num_labels), -1, **options)
    kinds = torch.full((num_samples, count, longest), -1, **options)
    label_scores, log_probs = planes.new_zeros(frames.shape), planes.new_full((num_samples, count), IMPOSSIBLE)
    for sample, (length, labels) in enumerate(
        zip(lattice.logit_lengths.tolist(), lattice.target_lengths.tolist(), strict=True)
    ):
        first = int(lattice.row_offsets[sample])
        own = planes[:, first : first + length * (labels + 1)]
        grid = _Grid(own.reshape(len(planes), length, labels + 1).tolist(), lattice, length, labels, skip_score)
        defined = bool((own < torch.inf).all())
        walks = solve(sample, grid) if defined and length else []
        log_probs[sample, len(walks) :] = IMPOSSIBLE if defined else torch.nan
        label_scores[sample, len(walks) :, :labels] = IMPOSSIBLE if defined else torch.nan
        for k, (log_prob, walk) in enumerate(walks):
            log_probs[sample, k] = log_prob
            for place, way in enumerate(walk):
                kinds[sample, k, place] = way.kind
                t, u = way.source
                if way.kind < len(lattice.arcs) and lattice.arcs[way.kind][1]:
                    frames[sample, k, u], label_scores[sample, k, u] = t, way.score
    return GridWalks(log_probs, frames, label_scores, kinds)
