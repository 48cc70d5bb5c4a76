"""alpha[t, j] = sum over arcs k into j of alpha[t-1, source[k]] * weight[k] * score[t, class[k]], and over epsilon arcs
of alpha[t, source[k]] * weight[k], in logs: all samples' states side by side, an entry a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import SparsePath
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, choose, exact, tied
from pathsum.lattice import SparseLattice


def forward(scores: Tensor, lattice: SparseLattice, weights: Tensor) -> Tensor:
    """Losses (N,) of scores (N, T, C) and weights (W,)."""
    posed = _pose(scores, lattice, weights)
    log_z = _log_sums(posed.alphas()[-1] + posed.final, posed.sample_of_state, len(scores))
    losses = -(log_z + posed.offset.sum(1))
    return tied(torch.where(posed.undefined, posed.nothing, losses), scores, weights)


def posteriors(scores: Tensor, lattice: SparseLattice, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (N,), and the posterior of each class in each frame (N, T, C), 0 where no path exists."""
    with torch.enable_grad():
        probe = exact(scores.detach()).requires_grad_()
        losses = forward(probe, lattice, weights.detach())
        (gradient,) = torch.autograd.grad(losses.sum(), probe)
    losses = losses.detach()
    return losses, torch.where((losses < torch.inf)[:, None, None], -gradient, 0.0)


def best_path(scores: Tensor, lattice: SparseLattice, weights: Tensor) -> SparsePath:
    """The best path of each sample."""
    posed = _pose(scores.detach(), lattice, weights.detach())
    alpha, back = posed.start, []
    for frame in range(scores.shape[1] + 1):
        places = torch.full_like(posed.sample_of_state, -1)
        if frame > 0:
            terms = alpha[posed.arcs.sources] + posed.arc_scores(frame - 1)
            entered, places = _greatest(terms, posed.arcs.destinations, len(alpha))
            alpha = torch.where(posed.takes(frame - 1), entered, alpha)
        for level in posed.levels:
            terms = alpha[level.sources] + level.weights
            better, place = _greatest(terms, level.destinations, len(alpha))
            raised = better > alpha
            alpha, places = torch.where(raised, better, alpha), torch.where(raised, -2 - level.numbers[place], places)
        back.append(places)
    ends = alpha + posed.final
    log_probs, states = _greatest(ends, posed.sample_of_state, len(scores))
    log_probs = torch.where(posed.undefined, torch.nan, log_probs + posed.offset.sum(1))
    arcs, labels = (torch.full(scores.shape[:2], -1, dtype=torch.int64, device=scores.device) for _ in range(2))
    sources = torch.cat([level.sources for level in posed.levels]) if posed.levels else states[:0]
    for n in torch.nonzero(log_probs > IMPOSSIBLE).flatten().tolist():
        state, frame = int(states[n]), int(lattice.input_lengths[n])
        while frame > 0 or int(back[frame][state]) < -1:
            place = int(back[frame][state])
            if place < -1:
                state = int(sources[-2 - place])
            else:
                frame -= 1
                arcs[n, frame], labels[n, frame] = posed.arcs.numbers[place], posed.arcs.labels[place]
                state = int(posed.arcs.sources[place])
    return SparsePath(log_probs, arcs, labels)


def k_best(
    scores: Tensor, lattice: SparseLattice, weights: Tensor, k: int, outputs: Tensor | None = None
) -> SparsePath:
    """The k best paths of each sample; where ``outputs`` (W,) are given, the best of each string that they write."""
    posed = _pose(scores.detach(), lattice, weights.detach())
    marks: list[int] = [] if outputs is None else outputs.tolist()

    def solve(sample: _Sample, num_frames: int) -> list[_Path]:
        offset = int(lattice.weight_offsets[lattice.graph_of_sample[sample.number]])

        def listed(ways: Iterator[_Path]) -> list[_Path]:
            # Of equals the first stays the first: arcs by number, epsilon arcs last, then by place in the list before.
            ordered = sorted((path for path in ways if path.score > IMPOSSIBLE), key=lambda path: -path.score)
            if outputs is not None:
                first: dict[tuple[int, ...], _Path] = {}
                for path in ordered:
                    first.setdefault(path.string, path)
                ordered = list(first.values())
            return ordered[:k]

        def by(way: _Way, path: _Path) -> _Path:
            mark = marks[offset + way.number] if marks else -1
            string = path.string if mark < 0 else (*path.string, mark)
            arcs = path.arcs if way.arc is None else (*path.arcs, way.arc)
            return _Path(path.score + way.score, arcs, string)

        before: dict[int, list[_Path]] = {}
        for frame in range(num_frames + 1):
            now: dict[int, list[_Path]] = {}
            for state in sample.states:
                entering = (
                    [_Path(sample.start(state), (), ())]
                    if frame == 0
                    else [by(way, path) for way in sample.arcs(state, frame) for path in before[way.source]]
                )
                over = (by(way, path) for way in sample.epsilons(state) for path in now[way.source])
                now[state] = listed(chain(entering, over))
            before = now
        return listed(
            path._replace(score=path.score + sample.final(state)) for state in sample.states for path in before[state]
        )

    return _of_samples(solve, posed, scores, lattice, k)


def sample_paths(scores: Tensor, lattice: SparseLattice, weights: Tensor, draws: Tensor) -> SparsePath:
    """Paths drawn by their posteriors, from numbers (N, K, T+1) in [0, 1)."""
    posed = _pose(scores.detach(), lattice, weights.detach())
    alphas = [alpha.tolist() for alpha in posed.alphas()]

    def solve(sample: _Sample, num_frames: int) -> list[_Path]:
        ends = [alphas[-1][state] + sample.final(state) for state in sample.states]
        largest = max(ends, default=IMPOSSIBLE)
        if largest == IMPOSSIBLE:
            return []
        total = math.fsum(math.exp(end - largest) for end in ends)
        shares = [math.exp(end - largest) / total for end in ends]
        return [drawn(sample, shares, own, num_frames) for own in draws[sample.number].tolist()]

    def drawn(sample: _Sample, shares: list[float], own: list[float], frame: int) -> _Path:
        place, left = choose(shares, own[frame])
        state, arcs = sample.states[place], []
        score = sample.final(state)
        while True:
            entering = [_Way(state, sample.start(state), None, 0)] if frame == 0 else list(sample.arcs(state, frame))
            over = list(sample.epsilons(state))
            terms = [way.score + (alphas[frame - 1][way.source] if frame else 0.0) for way in entering]
            terms += [way.score + alphas[frame][way.source] for way in over]
            place, left = choose([math.exp(term - alphas[frame][state]) for term in terms], left)
            way = [*entering, *over][place]
            score, state = score + way.score, way.source
            if place < len(entering) and frame == 0:
                return _Path(score, tuple(reversed(arcs)), ())
            if place < len(entering):
                frame -= 1
                arcs.append(way.arc)
                left = own[frame]

    return _of_samples(solve, posed, scores, lattice, draws.shape[1])


class _Path(NamedTuple):
    """A path so far: the places of its arcs among all of them, and what it has written."""

    score: float
    arcs: tuple[int, ...]
    string: tuple[int, ...]


class _Way(NamedTuple):
    """A way into a state; epsilon arcs are no ``arc``, and ``number`` counts the arcs of a graph."""

    source: int
    score: float
    arc: int | None
    number: int


class _Sample:
    """The states of one sample and the ways into them, as plain numbers."""

    def __init__(self, posed: _Posed, number: int, of_epsilons: Tensor) -> None:
        self.number, self._posed = number, posed
        self.states = torch.nonzero(posed.sample_of_state == number).flatten().tolist()
        self._into: dict[int, list[int]] = {state: [] for state in self.states}
        for place in torch.nonzero(posed.arcs.samples == number).flatten().tolist():
            self._into[int(posed.arcs.destinations[place])].append(place)
        self._over: dict[int, list[_Way]] = {state: [] for state in self.states}
        for level in posed.levels:
            for source, to, weight, place in zip(*(values.tolist() for values in level[:4]), strict=True):
                if to in self._over:
                    self._over[to].append(_Way(source, weight, None, int(of_epsilons[place])))

    def start(self, state: int) -> float:
        return float(self._posed.start[state])

    def final(self, state: int) -> float:
        return float(self._posed.final[state])

    def arcs(self, state: int, frame: int) -> Iterator[_Way]:
        """The arcs that lead into a state by a frame, which is counted from 1."""
        arcs, scores = self._posed.arcs, self._posed.arc_scores(frame - 1)
        for place in self._into[state]:
            yield _Way(int(arcs.sources[place]), float(scores[place]), place, int(arcs.numbers[place]))

    def epsilons(self, state: int) -> Iterator[_Way]:
        return iter(self._over[state])


def _of_samples(
    solve: Callable[[_Sample, int], list[_Path]], posed: _Posed, scores: Tensor, lattice: SparseLattice, count: int
) -> SparsePath:
    """What is found of each sample, as tensors; fewer than ``count`` where there are no more."""
    num_samples, num_frames, _ = scores.shape
    log_probs = posed.offset.new_full((num_samples, count), IMPOSSIBLE)
    arcs, labels = (
        torch.full((num_samples, count, num_frames), -1, dtype=torch.int64, device=scores.device) for _ in range(2)
    )
    log_probs[posed.undefined] = torch.nan
    offsets = posed.offset.sum(1)
    for n in torch.nonzero(~posed.undefined).flatten().tolist():
        for place, path in enumerate(solve(_Sample(posed, n, posed.epsilons), int(lattice.input_lengths[n]))):
            log_probs[n, place] = path.score + offsets[n]
            arcs[n, place, : len(path.arcs)] = posed.arcs.numbers[list(path.arcs)]
            labels[n, place, : len(path.arcs)] = posed.arcs.labels[list(path.arcs)]
    return SparsePath(log_probs, arcs, labels)


class _Emitting(NamedTuple):
    """The arcs of all samples that emit, an entry an arc of a sample, by destination."""

    sources: Tensor
    destinations: Tensor
    labels: Tensor
    numbers: Tensor
    samples: Tensor
    weights: Tensor


class _Epsilons(NamedTuple):
    """The epsilon arcs of all samples that lead to states of one level; ``numbers`` count them over all levels."""

    sources: Tensor
    destinations: Tensor
    weights: Tensor
    numbers: Tensor


class _Posed(NamedTuple):
    """The lattice laid out by samples, with its scores.

    Attributes:
        scores: (N, T, C) less the offset (N, T), which all paths of a sample have in common; 0 in padding.
        undefined: (N,) whether a score or a weight that counts is NaN or +inf; ``nothing`` (N,) is NaN by all scores.
        start, final: (states,) scores of the ends.
        epsilons: (epsilon arcs,) their numbers in their graphs, in the order of the levels.
    """

    scores: Tensor
    offset: Tensor
    real: Tensor
    undefined: Tensor
    nothing: Tensor
    sample_of_state: Tensor
    start: Tensor
    final: Tensor
    arcs: _Emitting
    levels: list[_Epsilons]
    epsilons: Tensor

    def takes(self, frame: int) -> Tensor:
        """(states,) whether a state's sample has this frame."""
        return self.real[self.sample_of_state, frame]

    def arc_scores(self, frame: int) -> Tensor:
        return self.arcs.weights + self.scores[self.arcs.samples, frame, self.arcs.labels]

    def alphas(self) -> list[Tensor]:
        """(states,) before the first frame and behind each; behind a sample's last it stays."""
        alpha = self._relaxed(self.start)
        found = [alpha]
        for frame in range(self.scores.shape[1]):
            terms = alpha[self.arcs.sources] + self.arc_scores(frame)
            entered = self._relaxed(_log_sums(terms, self.arcs.destinations, len(alpha)))
            alpha = torch.where(self.takes(frame), entered, alpha)
            found.append(alpha)
        return found

    def _relaxed(self, alpha: Tensor) -> Tensor:
        own = torch.arange(len(alpha), device=alpha.device)
        for level in self.levels:
            terms = torch.cat([alpha, alpha[level.sources] + level.weights])
            alpha = _log_sums(terms, torch.cat([own, level.destinations]), len(alpha))
        return alpha


def _pose(scores: Tensor, lattice: SparseLattice, weights: Tensor) -> _Posed:
    device, (num_samples, num_frames, num_classes) = scores.device, scores.shape
    graph = lattice.graph_of_sample
    sizes = lattice.state_offsets.diff()[graph]
    first_state = sizes.cumsum(0) - sizes

    def laid(offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the arcs whose ends these offsets are: where they are, their samples, and the states they lead to."""
        bounds = offsets[lattice.state_offsets]
        counts = bounds.diff()[graph]
        samples = torch.repeat_interleave(torch.arange(num_samples, device=device), counts)
        places = torch.arange(len(samples), device=device) - (counts.cumsum(0) - counts - bounds[:-1][graph])[samples]
        ends = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=device), offsets.diff())[places]
        return places, samples, ends - lattice.state_offsets[graph][samples] + first_state[samples]

    table = exact(weights)
    places, samples, destinations = laid(lattice.in_offsets)
    numbers = lattice.in_arcs[places].long()
    arcs = _Emitting(
        lattice.in_sources[places] + first_state[samples],
        destinations,
        lattice.classes[lattice.class_offsets[graph][samples] + lattice.in_labels[places]],
        numbers,
        samples,
        table[lattice.weight_offsets[graph][samples] + numbers],
    )
    places, of_sample, destinations = laid(lattice.epsilon_offsets)
    taken = table[lattice.weight_offsets[graph][of_sample] + lattice.epsilon_arcs[places]]
    sources, level = lattice.epsilon_sources[places] + first_state[of_sample], lattice.epsilon_levels[places]
    levels, counted, order = [], 0, [places[:0]]
    for depth in torch.unique(level).tolist():
        own = torch.nonzero(level == depth).flatten()
        numbers = torch.arange(counted, counted + len(own), device=device)
        levels.append(_Epsilons(sources[own], destinations[own], taken[own], numbers))
        counted += len(own)
        order.append(own)
    epsilons = lattice.epsilon_arcs[places[torch.cat(order)]].long()

    sample_of_state = torch.repeat_interleave(torch.arange(num_samples, device=device), sizes)
    state = torch.arange(len(sample_of_state), device=device) - first_state[sample_of_state]
    behind = lattice.weight_offsets[1:][graph]
    start, final = (table[(behind - part * sizes)[sample_of_state] + state] for part in (2, 1))

    used = torch.zeros(num_samples, num_classes, dtype=torch.bool, device=device)
    used[arcs.samples, arcs.labels] = True
    real = torch.arange(num_frames, device=device) < lattice.input_lengths[:, None]
    emitted = torch.where(real[:, :, None] & used[:, None], exact(scores), 0.0)
    counted_in = torch.where(used[:, None], emitted.detach(), IMPOSSIBLE)
    offset = counted_in.amax(2)
    offset = torch.where(real & (offset > IMPOSSIBLE), offset, 0.0)

    wrong = [~(counted_in < torch.inf).flatten(1).all(1)]
    for values, of in (
        (arcs.weights, arcs.samples),
        (taken, of_sample),
        (start, sample_of_state),
        (final, sample_of_state),
    ):
        counts = torch.zeros(num_samples, dtype=torch.int64, device=device)
        wrong.append(counts.index_add(0, of, (~(values < torch.inf)).long()) > 0)
    undefined = torch.stack(wrong).any(0)
    per_sample = torch.zeros(num_samples, dtype=table.dtype, device=device).index_add(0, arcs.samples, arcs.weights)
    # Of no other sample: 0 times NaN would be in its gradient.
    nothing = (emitted.sum((1, 2)) + per_sample) * torch.where(undefined, torch.nan, 0.0)
    shifted = emitted - offset[:, :, None]
    return _Posed(shifted, offset, real, undefined, nothing, sample_of_state, start, final, arcs, levels, epsilons)


def _greatest(terms: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest term of each group, and the first place where it is; -inf and 0 of an empty one."""
    greatest = terms.new_full((count,), IMPOSSIBLE).scatter_reduce(0, groups, terms, "amax")
    places = torch.where(terms == greatest[groups], torch.arange(len(terms), device=terms.device), len(terms))
    first = places.new_full((count,), len(terms)).scatter_reduce(0, groups, places, "amin")
    return greatest, torch.where(first == len(terms), 0, first)


def _log_sums(terms: Tensor, groups: Tensor, count: int) -> Tensor:
    """The log-sum of the terms of each group, -inf with zero derivative where there is nothing."""
    known = terms.detach()
    largest = known.new_full((count,), IMPOSSIBLE).scatter_reduce(0, groups, known, "amax")
    largest = torch.where(largest == IMPOSSIBLE, 0.0, largest)
    total = torch.zeros_like(largest).index_add(0, groups, (terms - largest[groups]).exp())
    possible = total != 0
    return torch.where(possible, torch.where(possible, total, 1.0).log() + largest, IMPOSSIBLE)
