"""Paths that take a frame of scores (N, T, C) an arc: along a chain, and from every state to every state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.display import arrays, best_paths, shown
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import Call, ChainOptions, DenseOptions, Kernels, SparseOptions, SparsePath
from pathsum.kernels.reference.log_domain import common, exact
from pathsum.lattice import ChainLattice, DenseLattice, SparseLattice
from pathsum.problems.single_paths import chain_as_graphs, dense_as_graphs
from pathsum.torch._autograd.expectations import expectation, expects, listed_posteriors
from pathsum.torch._bounded import Unread
from pathsum.torch._expectations import Expected, posteriors_of, product, real_log_softmax
from pathsum.torch._inputs import (
    Integers,
    as_batch,
    as_integer_tensor,
    as_integers,
    as_values,
    of_samples,
)
from pathsum.torch._operators import as_arrays
from pathsum.torch._ops.arrays import as_tensor, work_dtype
from pathsum.torch.paths.base import Paths


@shown(best_paths)
class BestPath(NamedTuple):
    """A path through the frames of each sample. Without the axis N for one sample given as (T, C).

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame; 0 in padding, -inf in the frames of a sample that has no
            path and NaN in those of a sample with a NaN score, so that the sum over frames is the path's own score.
    """

    paths: Tensor
    scores: Tensor


class Alignment(BestPath):
    """The best path of each sample that spells its target: a pair of paths and scores, as torchaudio's, and positions.

    Attributes:
        paths, scores: (N, T) as in ``BestPath``: what the pair unpacks to.
        positions: (N, T) which of the target's labels the frame belongs to, from 0; -1 in the frames of blanks, in
            padding, and in all frames of a sample that has no path. ``token_spans`` tells equal neighbours apart by it.
    """

    positions: Tensor

    def __new__(cls, paths: Tensor, scores: Tensor, positions: Tensor) -> Alignment:
        pair = super().__new__(cls, paths, scores)
        pair.positions = positions
        return pair

    def __getnewargs__(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.paths, self.scores, self.positions


@shown(arrays)
class PathList(NamedTuple):
    """K paths through the frames of each sample. Without the axis N for one sample given as (T, C).

    Attributes:
        log_probs: (N, K) log-score of each, differentiable; -inf where there is no such path, NaN where a score is.
        paths: (N, K, T) class of each frame; -1 in padding, and in all frames where there is no such path.
    """

    log_probs: Tensor
    paths: Tensor


@shown(arrays)
class AlignmentList(NamedTuple):
    """K paths of each sample that spell its target.

    Attributes:
        log_probs, paths: As in ``PathList``.
        positions: (N, K, T) as in ``Alignment``.
    """

    log_probs: Tensor
    paths: Tensor
    positions: Tensor


@shown(arrays)
class ChainPosteriors(NamedTuple):
    """Posteriors in a chain of S' states: shares of all paths that spell the target, in the frames of each sample.

    Zero in padding and where no path exists. In every frame the nodes sum to 1, and so do the two kinds of arcs.

    Attributes:
        nodes: (N, T, S') in state s after frame t.
        stays: (N, T, S') in state s before and after frame t.
        entries: (N, T, S') in state s after frame t and in another before. The two arcs together are the node.
    """

    nodes: Tensor
    stays: Tensor
    entries: Tensor


@shown(arrays)
class DensePosteriors(NamedTuple):
    """Posteriors where every state can follow every state. Zero in padding.

    Attributes:
        classes: (N, T, C) frame t has class c.
        transitions: (C, C) how often class j is followed by i, summed over the frames and samples, those with a NaN
            score left out.
    """

    classes: Tensor
    transitions: Tensor


class FramePaths(Paths):
    """Paths with an arc a frame.

    Attributes:
        given: The scores as they came, (N, T, C), or (T, N, C) where ``frames_first``.
        transitions: (C, C) from one class to the next, or ``None`` where these have no scores.
        relative: Whether losses may lack what huge scores have in common, to be compared with others that lack it.
    """

    relative = False
    softmax = False

    def __init__(
        self, function: str, scores: Tensor, transitions: Tensor | None, lattice: Any, kernels: Kernels,
        batched: bool, frames_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(function, lattice, kernels, work_dtype(scores), batched)
        self.given, self.frames_first, self.transitions = scores, frames_first, transitions

    @property
    def scores(self) -> Tensor:
        """(N, T, C)"""
        return self.given.transpose(0, 1) if self.frames_first else self.given

    @scores.setter
    def scores(self, scores: Tensor) -> None:
        self.given, self.frames_first = scores, False

    def solve(self, scores: Tensor, transitions: Tensor | None) -> Tensor:
        """Losses (N,) in float64 of other scores, which are taken as they are."""
        return self.kernels.losses(Call((scores, transitions), self.lattice, self._options(softmax=False)))

    def entropy(self) -> Tensor:
        """``log Z - E[score of path]`` (N,), in nats, differentiable; 0 where no path exists."""
        return self._expect(None).to(self.dtype)

    def expected(self, costs: Tensor, transition_costs: Tensor | None = None) -> Tensor:
        """The expected sum of the costs of a path's arcs, differentiable by costs and scores.

        Args:
            costs: (N, T, C) of a class in a frame. Where a class is on no path its cost is not read.
            transition_costs: (C, C) of a transition, or ``None``.

        Returns:
            (N,), 0 where no path exists.
        """
        return self._expect(costs, transition_costs).to(self.dtype)

    def _expect(self, costs: Tensor | None, transition_costs: Tensor | None = None) -> Tensor:
        """(N,) in float64, expected costs or, without any, entropies."""
        if self.transitions is None and expects(self.kernels, self.scores, costs):
            return expectation(self.kernels, self.call(), costs, self._composed)
        return self._composed((self.scores, self.transitions), costs, transition_costs)

    def _composed(self, scores: Sequence[Any], costs: Tensor | None, transition_costs: Tensor | None = None) -> Tensor:
        """The same of other scores, as a gradient and a product with it."""
        own = copy(self)
        own.scores, own.transitions = scores
        if costs is None:
            normal = own._normal()
            return own._expectation(*normal, *normal).entropies()
        return own._expectation(*own._plain(), costs, transition_costs).costs

    def k_best(self, k: int) -> Any:
        """The k best paths of each sample in falling order.

        Args:
            k: At least 1.

        Returns:
            A ``PathList``, of chains an ``AlignmentList``. Of equals that one comes first that ``best`` takes.
        """
        call = self._as_graphs()
        return self._told(self._lister("routes").k_best(call, self._count(k, places_of(call))))

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> Any:
        """Paths drawn at random, independently, each as probable as its share in the sum over all paths.

        Args:
            num_samples: K, how many are drawn of each sample.
            generator: What draws, on the CPU; ``None``: torch's own.

        Returns:
            A ``PathList``, of chains an ``AlignmentList``.
        """
        draws = self._draws(num_samples, generator, len(self.scores), self.scores.shape[1] + 1)
        return self._told(self._lister("routes").sample(self._as_graphs(), draws))

    def _told(self, found: SparsePath) -> Any:
        return PathList(*of_samples(self.batched, self._log_probs(found), found.labels))

    def _as_graphs(self) -> Call:
        """What kernels of single paths are asked about: the lattice as graphs, and their weights."""
        scores, transitions = self._plain()
        table = None if transitions is None else transitions.detach().double().cpu().numpy()
        lattice, weights = self._graphs(as_arrays(self.lattice), table)
        return Call((scores.detach(), torch.from_numpy(weights).to(scores.device)), lattice, SparseOptions())

    def _graphs(self, lattice: Any, transitions: Any) -> tuple[SparseLattice, np.ndarray]:
        """The lattice, of NumPy arrays, as graphs, and their weights, of transitions (C, C)."""
        raise NotImplementedError

    def _log_probs(self, found: SparsePath) -> Tensor:
        """(N, K) the paths' own scores, differentiable."""
        scores, transitions = self._plain()
        classes = found.labels.clamp(min=0)
        taken = exact(scores).gather(2, classes.movedim(1, 2)).movedim(2, 1)
        own = torch.where(found.labels >= 0, taken, 0.0).sum(2)
        if transitions is not None:
            moves = exact(transitions)[classes[:, :, 1:], classes[:, :, :-1]]
            own = own + torch.where(found.labels[:, :, 1:] >= 0, moves, 0.0).sum(2)
        return torch.where(found.log_probs > -torch.inf, own, found.log_probs.to(own)).to(self.dtype)

    def _size(self) -> str:
        return "N={}, T={}, C={}".format(*self.scores.shape)

    def _options(self, *, softmax: bool) -> Any:
        raise NotImplementedError

    def call(self) -> Call:
        if self.frames_first and self.kernels.reads_frames_first:
            options = self._options(softmax=self.softmax)._replace(frames_first=True)
            return Call((self.given, self.transitions), self.lattice, options)
        return Call((self.scores, self.transitions), self.lattice, self._options(softmax=self.softmax))

    def _plain(self) -> tuple[Tensor, Tensor | None]:
        """The scores that a path's score is the sum of."""
        return self.scores, self.transitions

    def _normal(self) -> tuple[Tensor, Tensor | None]:
        """As ``_plain``, without what all paths have in common, which would cost their differences all digits."""
        return self._plain()

    def _expectation(
        self, scores: Tensor, transitions: Tensor | None, costs: Tensor, transition_costs: Tensor | None
    ) -> Expected:
        losses, posteriors = posteriors_of(
            lambda scores: self.solve(scores, transitions), scores, beside=(transitions,)
        )
        expected = product(posteriors, costs).sum((1, 2))
        if transition_costs is None or transitions is None:
            return Expected(losses, expected)
        # The counts of transitions are summed over the samples of a call, and are wanted of each.
        counts = [self._transition_counts(scores, transitions, n) for n in range(len(scores))]
        of_transitions = [product(count, transition_costs).sum() for count in counts]
        return Expected(losses, expected + torch.stack(of_transitions) if counts else expected)

    def _transition_counts(self, scores: Tensor, transitions: Tensor, sample: int) -> Tensor:
        """(C, C) how often each transition is expected in a sample."""
        own = slice(sample, sample + 1)
        one = type(self)(self.function, scores[own], transitions, part_of(self.lattice, own), self.kernels, True)
        return posteriors_of(lambda transitions: one.solve(scores[own], transitions), transitions, beside=(scores,))[1]

    def _real(self) -> Tensor:
        """(N, T) whether a frame is one of its sample's."""
        lengths = as_tensor(self.lattice.input_lengths).to(self.scores.device)
        return torch.arange(self.scores.shape[1], device=self.scores.device) < lengths[:, None]

    def _best_scores(self, scores: Tensor, labels: Tensor, log_probs: Tensor) -> Tensor:
        """(N, T) score of each frame's class and of the transition to it, differentiable by both.

        Where there is no path the sum over the frames is ``log_probs`` (N,) still.
        """
        classes = labels.clamp(min=0)
        own = scores.gather(2, classes[:, :, None])[:, :, 0]
        if self.transitions is not None:
            moves = self.transitions.to(own.dtype)[classes[:, 1:], classes[:, :-1]]
            own = own + torch.cat([torch.zeros_like(own[:, :1]), moves], 1)
        instead = torch.where(self._real(), log_probs[:, None].to(own.dtype), 0)
        return torch.where(labels >= 0, own, instead)


class ChainPaths(FramePaths):
    """Paths along a chain of states, those that spell a target.

    Attributes:
        scores, transitions: As in ``FramePaths``.
        softmax: Whether the scores are logits, whose log-softmax is to be taken.
        label_dtype: Of the classes of the best path.
        positions: Maps states (N, T) to the label of the target that their frame belongs to, -1 of none.
    """

    by_logits = False
    label_dtype = torch.int64
    positions: Callable[[Tensor], Tensor] = staticmethod(lambda states: states)

    def posteriors(self) -> ChainPosteriors:
        """How probable each state and arc is in each frame."""
        transitions = None if self.transitions is None else self.transitions.detach()
        asked = Call((self.scores.detach(), transitions), self.lattice, self._options(softmax=self.softmax))
        found = listed_posteriors(self.kernels, asked)
        if found is not None:
            return ChainPosteriors(*of_samples(self.batched, *found))
        losses, stays, entries = self.kernels.posteriors(asked)
        states = as_tensor(self.lattice.num_states).to(self.scores.device)
        used = torch.arange(stays.shape[2], device=self.scores.device) < states[:, None]
        real = self._real()[:, :, None] & used[:, None]
        stays, entries = (self._defined(plane, losses, real) for plane in (stays, entries))
        return ChainPosteriors(*of_samples(self.batched, stays + entries, stays, entries))

    def best(self) -> Alignment:
        """The best path that spells the target: class, score and label position of every frame."""
        transitions = None if self.transitions is None else self.transitions.detach()
        own, _ = self._plain() if self.softmax else (self.scores, None)
        found = self.kernels.best(Call((own.detach(), transitions), self.lattice, self._options(softmax=False)))
        labels = self._labels(found.states)
        positions = torch.where(found.states < 0, -1, self.positions(found.states))
        scores = self._best_scores(own.to(self.scores.dtype), labels, found.log_probs)
        return Alignment(*of_samples(self.batched, labels.to(self.label_dtype), scores, positions))

    def _told(self, found: SparsePath) -> AlignmentList:
        # The arcs into a state are numbered one after another.
        states = torch.where(found.arcs < 0, -1, found.arcs // 3).flatten(0, 1)
        positions = torch.where(states < 0, -1, self.positions(states)).view_as(found.arcs)
        log_probs, paths = self._log_probs(found), found.labels.to(self.label_dtype)
        return AlignmentList(*of_samples(self.batched, log_probs, paths, positions))

    def _graphs(self, lattice: ChainLattice, transitions: Any) -> tuple[SparseLattice, np.ndarray]:
        return chain_as_graphs(lattice, transitions)

    def _options(self, *, softmax: bool) -> ChainOptions:
        return ChainOptions(softmax, self.by_logits, self.relative)

    def _plain(self) -> tuple[Tensor, Tensor | None]:
        if self.transitions is not None:
            return self.scores, self.transitions
        # What is made of them is the difference of a log-sum and a mean score, each as large as a loss.
        scores = exact(self.scores)
        return (real_log_softmax(scores, self.lattice.input_lengths) if self.softmax else scores), None

    def _normal(self) -> tuple[Tensor, Tensor | None]:
        scores, transitions = self._plain()
        if transitions is None:
            return scores, transitions
        return centred(exact(scores), 2), centred(exact(transitions), 0, 1)

    def _labels(self, states: Tensor) -> Tensor:
        """(N, T) class that the arc into each state emits; -1 where there is no state."""
        lattice: ChainLattice = self.lattice
        before = torch.cat([torch.full_like(states[:, :1], lattice.start_state), states[:, :-1]], 1)
        stay, step = (
            as_tensor(labels).to(states.device).gather(1, states.clamp(min=0))
            for labels in (lattice.stay_labels, lattice.step_labels)
        )
        return torch.where(states < 0, -1, torch.where(states == before, stay, step))


class DensePaths(FramePaths):
    """Paths in which every state can follow every state."""

    lattice: DenseLattice
    transitions: Tensor

    def posteriors(self) -> DensePosteriors:
        """How probable each class is in each frame, and how often each transition is expected."""
        asked = Call((self.scores.detach(), self.transitions.detach()), self.lattice, self._options(softmax=False))
        losses, classes, counts = self.kernels.posteriors(asked)
        classes = self._defined(classes, losses, self._real()[:, :, None])
        (classes,) = of_samples(self.batched, classes)
        return DensePosteriors(classes, counts.to(self.dtype))

    def best(self) -> BestPath:
        """The best path among all: class and score of every frame."""
        asked = Call((self.scores.detach(), self.transitions.detach()), self.lattice, self._options(softmax=False))
        log_probs, paths = self.kernels.best(asked)
        return BestPath(*of_samples(self.batched, paths, self._best_scores(self.scores, paths, log_probs)))

    def _graphs(self, lattice: DenseLattice, transitions: Any) -> tuple[SparseLattice, np.ndarray]:
        return dense_as_graphs(lattice, transitions)

    def _options(self, *, softmax: bool) -> DenseOptions:
        return DenseOptions(self.relative)

    def _normal(self) -> tuple[Tensor, Tensor]:
        return centred(exact(self.scores), 2), centred(exact(self.transitions), 0, 1)


def frame_batch(
    function: str,
    sizes: tuple[int, int],
    batched: bool,
    targets: Integers,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    *,
    num_classes: int,
    blank: int | None,
    known: bool,
    device: torch.device | None,
) -> _checks.Batch | Unread:
    """The integers of a call on so many samples and frames, checked; where no lengths are given they are these sizes.

    ``known``: they must have values. A ``device``: they stay on it, see ``as_batch``.
    """
    num_samples, num_frames = sizes
    labels: Any = targets
    if target_lengths is None or not batched:
        as_given = as_integer_tensor if device is not None else as_integers if known else as_values
        labels = as_given(function, "targets", targets)
        labels = labels[None] if labels.ndim == 1 and not batched else labels
        if target_lengths is None and labels.ndim < 2:
            raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
    lengths: list[Any] = [input_lengths, target_lengths]
    padded = (num_frames, labels.shape[1] if target_lengths is None else None)
    filled: list[Any] = [
        [size] * num_samples if given is None else given for given, size in zip(lengths, padded, strict=True)
    ]
    return as_batch(
        function,
        labels,
        *filled,
        batched=batched,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
        known=known,
        device=device,
    )


def label_dtype(targets: Integers) -> torch.dtype:
    """That of the targets where it is int32; int64 for all others, in which -1 and a star may not exist."""
    return torch.int32 if isinstance(targets, Tensor) and targets.dtype == torch.int32 else torch.int64


def centred(table: Tensor, *dims: int) -> Tensor:
    """Scores less the largest along some axes, a constant: where all paths take one of them it changes no share."""
    return table - common(table, *dims)


def places_of(call: Call) -> int:
    """How many states there are in all frames of a question about graphs, those of the samples' own paths with them."""
    num_samples, num_frames, _ = call.scores[0].shape
    return (num_frames + 1) * (num_samples + int(call.lattice.state_offsets[-1]))


def part_of(lattice: Any, samples: slice) -> Any:
    """The lattice of some of the samples; what was one array stays one."""
    arrays = {name: value for name, value in vars(lattice).items() if isinstance(value, (np.ndarray, Tensor))}
    parts = {id(array): array[samples] for array in arrays.values()}
    return replace(lattice, **{name: parts[id(array)] for name, array in arrays.items()})
