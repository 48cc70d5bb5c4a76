"""alpha[t, j] = sum over arcs k into j of alpha[t-1, source[k]] * weight[k] * score[t, class[k]], and over epsilon arcs
of alpha[t, source[k]] * weight[k], in logs: all samples' states side by side, an entry a state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import SparsePath
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, exact, tied
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


def sample_paths(scores: Tensor, lattice: SparseLattice, weights: Tensor, draws: Tensor) -> Tensor:
    """Arcs (K, N, T) of paths drawn by their posteriors, from numbers (K, N, T+1) in [0, 1); -1 as in ``best_path``."""
    posed = _pose(scores.detach(), lattice, weights.detach())
    alphas, num_paths = posed.alphas(), len(draws)
    arcs = torch.full((num_paths, *scores.shape[:2]), -1, dtype=torch.int64, device=scores.device)
    ends = alphas[-1] + posed.final
    into = posed.arcs.destinations
    nothing = into.new_empty(0)
    epsilons = [
        torch.cat([nothing, *(getattr(level, name) for level in posed.levels)]) for name in _Epsilons._fields[:3]
    ]
    for n in range(len(scores)):
        own = torch.nonzero(posed.sample_of_state == n).flatten()
        total = torch.logsumexp(ends[own], 0) if len(own) else ends.new_tensor(IMPOSSIBLE)
        if bool(posed.undefined[n]) or total == IMPOSSIBLE:
            continue
        for k in range(num_paths):
            frame = int(lattice.input_lengths[n])
            place, left = _choose((ends[own] - total).exp(), float(draws[k, n, frame]))
            state = int(own[place])
            while True:
                choices = torch.nonzero(epsilons[1] == state).flatten() if posed.levels else own[:0]
                parts = [alphas[frame][epsilons[0][e]] + epsilons[2][e] - alphas[frame][state] for e in choices]
                entered = torch.nonzero(into == state).flatten() if frame > 0 else own[:0]
                if frame > 0:
                    terms = alphas[frame - 1][posed.arcs.sources[entered]] + posed.arc_scores(frame - 1)[entered]
                    parts += list(terms - alphas[frame][state])
                if frame == 0:
                    # What is left of the start itself.
                    parts.append(posed.start[state] - alphas[0][state])
                place, left = _choose(torch.stack(parts).exp(), left)
                if place < len(choices):
                    state = int(epsilons[0][choices[place]])
                elif frame == 0:
                    break
                else:
                    arc = entered[place - len(choices)]
                    frame -= 1
                    arcs[k, n, frame], state = posed.arcs.numbers[arc], int(posed.arcs.sources[arc])
                    left = float(draws[k, n, frame])
    return arcs


def _choose(parts: Tensor, left: float) -> tuple[int, float]:
    """Which part of a whole a number in [0, 1) falls in, and what is left of the number, spread over [0, 1) again."""
    possible = torch.nonzero(parts > 0).flatten().tolist()
    for place in possible:
        part = float(parts[place])
        if left < part or place == possible[-1]:
            return place, min(left / part, 1.0)
        left -= part
    raise AssertionError("a state without a way into it")


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
    levels, counted = [], 0
    for depth in torch.unique(level).tolist():
        own = torch.nonzero(level == depth).flatten()
        numbers = torch.arange(counted, counted + len(own), device=device)
        levels.append(_Epsilons(sources[own], destinations[own], taken[own], numbers))
        counted += len(own)

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
    return _Posed(shifted, offset, real, undefined, nothing, sample_of_state, start, final, arcs, levels)


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
