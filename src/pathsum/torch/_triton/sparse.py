"""Lattices of graphs on a GPU: scores (N, T, C) and weights (W,).

Integers stay on the host, where their sizes are known, and are sent as they are needed. What the sweeps remember of the
frames, alpha and beta, is of some samples at a time, as many as the memory allows; posteriors are what is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, SparsePath, SparseSaved
from pathsum.kernels.triton import best_path, sparse, sparse_hvp
from pathsum.kernels.triton.plan import bucket, programs
from pathsum.lattice import SparseLattice
from pathsum.torch._lattices import SparseOperators
from pathsum.torch._operators import as_arrays, as_tensors
from pathsum.torch._triton.launching import empties, even, launch, nowhere, sent, warps, work_dtype

# Arcs that a program has in hand at once, of states or of classes.
_TILE = 512
_BLOCK = 256
# A grid has no more programs in its second axis.
_MOST = 65535
# The lists of arcs that sweeps over the frames read.
_SWEPT = ("into", "out", "epsilons", "leaving", "starts", "finals")


class Sparse(SparseOperators):
    name = "triton_sparse"

    def sent(self, lattice: SparseLattice, device: torch.device) -> SparseLattice:
        return as_tensors(lattice)

    def forward(self, call: Call, need_gradient: bool) -> SparseSaved:
        posed = _Posed(call)
        size = posed.places[-1] if need_gradient else 0
        gamma = call.scores[0].new_empty(int(size), dtype=work_dtype(call.scores[0]))
        counts = posed.zeros(posed.counted[-1] if need_gradient and call.options.by_weights else 0)
        for group in posed.groups(planes=2 if need_gradient else 1, every=need_gradient):
            group.sweep(both=need_gradient)
            if need_gradient:
                group.over_classes(sparse.find_posteriors, gamma)
            if len(counts):
                group.count(sparse, counts)
        return SparseSaved(posed.losses, gamma, counts)

    def backward(
        self, call: Call, saved: SparseSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        samples = _Samples(call)
        by_scores = samples.spread(upstream, saved.losses, saved.gamma) if needed[0] else None
        return by_scores, samples.by_weights(upstream, saved.losses, saved.counts) if needed[1] else None

    def second(
        self,
        call: Call,
        saved: SparseSaved,
        upstream: Tensor,
        tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        scores, weights = call.scores
        along = scores.new_zeros(1).expand(scores.shape) if tangents[0] is None else tangents[0]
        posed = _Posed(call, along, torch.zeros_like(weights) if tangents[1] is None else tangents[1])
        slopes, moved = posed.zeros(len(scores)), posed.zeros(posed.places[-1])
        counts = posed.zeros(posed.counted[-1] if needed[1] else 0)
        for group in posed.groups(planes=4):
            group.sweep(both=True)
            group.find_means(slopes)
            group.over_classes(sparse_hvp.move_posteriors, moved)
            if len(counts):
                group.count(sparse_hvp, counts)
        product = posed.spread(upstream, saved.losses, moved)
        return slopes, (product, posed.by_weights(upstream, saved.losses, counts))

    def best(self, call: Call) -> SparsePath:
        posed, scores = _Posed(call), call.scores[0]
        log_probs, arcs, labels = posed.zeros(len(scores)), *(nowhere(scores, *scores.shape[:2]) for _ in range(2))
        lists = [(*posed.lists[name][:-1], posed.values[name]) for name in ("into", "epsilons", "starts", "finals")]
        (numbers,) = posed.on_device(posed.own.in_arcs)
        for group in posed.groups(planes=2):
            back = torch.empty(group.num_states, dtype=torch.int32, device=posed.device)
            launch(
                best_path.sparse, (group.size,), scores,
                *posed.frames, group.table, posed.classes, group.references, posed.undefined, posed.state_levels,
                numbers, *itertools.chain(*lists), empties(back)(group.num_states), back, log_probs, arcs, labels,
                scores.shape[1], **posed.states_tile,
            )  # fmt: skip
        return SparsePath(log_probs, arcs, labels)

    def posteriors(self, call: Call) -> tuple[Tensor, Tensor]:
        saved = self.forward(call, need_gradient=True)
        found = _Samples(call).spread(-torch.ones_like(saved.losses), saved.losses, saved.gamma, saved.gamma.dtype)
        return saved.losses, torch.where(saved.losses.isnan()[:, None, None], 0.0, found)


class _Samples:
    """What is known of the samples on the host.

    Attributes:
        states, num_classes: (N,) of each sample's graph.
        places, counted: (N+1,) where the posteriors and what is counted of the weights of each sample begin.
    """

    def __init__(self, call: Call) -> None:
        self.call, self.own, self.device = call, as_arrays(as_tensors(call.lattice)), call.scores[0].device
        self.lengths, self.graphs = self.own.input_lengths, self.own.graph_of_sample
        self.states, self.num_classes = (
            np.diff(offsets)[self.graphs] for offsets in (self.own.state_offsets, self.own.class_offsets)
        )
        self.places = _running(self.lengths * self.num_classes)
        self.counted = _running(np.diff(self.own.weight_offsets)[self.graphs])
        self.levels = _levels(self.own)
        (self.classes,) = self.on_device(self.own.classes)

    def on_device(self, *arrays: np.ndarray) -> list[Tensor]:
        return sent(self.device, *(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(int(size), dtype=torch.float64, device=self.device)

    def table(self, group: np.ndarray, rows: np.ndarray) -> Tensor:
        """(M, columns) what kernels know of some samples, of which so many rows of states are remembered."""
        own, graph = self.own, self.graphs[group]
        first_epsilons = np.diff(_running(self.levels == 0)[own.state_offsets])
        table = np.zeros((len(group), sparse.COLUMNS.value), np.int64)
        for column, values in (
            (sparse.SAMPLE, group),
            (sparse.FRAMES, self.lengths[group]),
            (sparse.PLANE, _running(rows[group] * self.states[group])[:-1]),
            (sparse.FRAME, _running(self.lengths[group] + 1)[:-1]),
            (sparse.GAMMA, self.places[group]),
            (sparse.COUNTS, self.counted[group]),
            (sparse.KEPT, rows[group]),
            (sparse.STATE, own.state_offsets[graph]),
            (sparse.STATES, self.states[group]),
            (sparse.CLASS, own.class_offsets[graph]),
            (sparse.CLASSES, self.num_classes[group]),
            (sparse.WEIGHT, own.weight_offsets[graph]),
            (sparse.WEIGHTS, np.diff(self.counted)[group]),
            (sparse.EPSILON, first_epsilons[graph]),
        ):
            table[:, column.value] = values
        return self.on_device(table)[0]

    def spread(self, upstream: Tensor, losses: Tensor, gamma: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Minus the upstream gradient times numbers of the classes of each graph, as numbers of all (N, T, C)."""
        scores = self.call.scores[0]
        out = torch.zeros_like(scores, dtype=dtype)
        block, everyone = bucket(scores.shape[2], 32, 1024), np.arange(len(scores))
        for first in range(0, len(scores), _MOST):
            group = everyone[first : first + _MOST]
            launch(
                sparse.write_gradient, (int(self.lengths[group].max()), len(group)), scores,
                upstream.contiguous(), losses, self.table(group, self.lengths), self.classes, gamma, scores.shape[2],
                out, *out.stride(), BLOCK=block, num_warps=warps(block),
            )  # fmt: skip
        return out

    def by_weights(self, upstream: Tensor, losses: Tensor, counts: Tensor) -> Tensor:
        """Minus the upstream gradient times what is counted of the weights in each sample, (W,)."""
        gradient = self.zeros(self.own.weight_offsets[-1])
        if len(counts):
            everyone = np.arange(len(losses))
            launch(
                sparse.add_counts, (programs(len(gradient), _BLOCK),), gradient,
                upstream.contiguous(), losses, self.table(everyone, self.lengths), len(losses), counts, len(gradient),
                gradient, BLOCK=_BLOCK,
            )  # fmt: skip
        return gradient.to(self.call.scores[1].dtype)


class _Posed(_Samples):
    """A call on the device, to be swept over.

    Attributes:
        frames: The scores with their strides and, where there are any, their tangents likewise.
        lists: Arcs by states and by classes, as kernels take them: offsets, integers, and weights as words.
        values, costs: The weights of each list and, where there are any, their tangents.
        undefined: (N,) whether a weight that counts is NaN or +inf; behind a sweep, whether a score is.
    """

    def __init__(self, call: Call, along: Tensor | None = None, weights_along: Tensor | None = None) -> None:
        super().__init__(call)
        scores, weights = call.scores
        self.frames: tuple[Any, ...] = (scores, *scores.stride())
        if along is not None:
            self.frames += (along, *along.stride())
        self.losses, self.width = self.zeros(len(scores)), int(self.num_classes.max(initial=0))
        lists = _lists(self.own)
        # Each list begins at a multiple of 16 bytes.
        sizes = [even(len(own.places)) for own in lists.values()]
        places, graphs = (
            np.concatenate([np.resize(own[i], size) for own, size in zip(lists.values(), sizes, strict=True)])
            for i in range(2)
        )
        places, graphs, graph_of_sample, self.state_levels = self.on_device(places, graphs, self.graphs, self.levels)
        values = weights.double()[places]
        words = torch.empty_like(values)
        launch(sparse.write_words, (programs(len(places), _BLOCK),), words, values, len(places), words, BLOCK=_BLOCK)
        wrong = torch.zeros(len(self.own.state_offsets), dtype=torch.int32, device=self.device)
        wrong.index_add_(0, graphs, (~(values < torch.inf)).to(torch.int32))
        self.undefined = wrong[graph_of_sample]
        self.values = dict(zip(lists, values.split(sizes), strict=True))
        self.lists = {
            name: (*self.on_device(*own.integers), part)
            for (name, own), part in zip(lists.items(), words.split(sizes), strict=True)
        }
        self.costs: dict[str, tuple[Tensor, ...]] = dict.fromkeys(lists, ())
        if weights_along is not None:
            parts = weights_along.double()[places].split(sizes)
            self.costs = {name: (part,) for name, part in zip(lists, parts, strict=True)}

    @property
    def states_tile(self) -> dict[str, int]:
        return _tile(self.states, len(self.own.in_sources) / max(len(self.levels), 1))

    @property
    def classes_tile(self) -> dict[str, int]:
        return _tile(self.num_classes, len(self.own.in_sources) / max(len(self.classes), 1))

    def groups(self, planes: int, every: bool = True) -> Iterator[_Group]:
        """Samples at a time, one at least, whose states fit into the memory, ``planes`` numbers each.

        Those of every frame, or of the last and the one before.
        """
        rows = self.lengths + 1 if every else np.full_like(self.lengths, 2)
        needed = 8 * planes * self.states * rows
        group: list[int] = []
        for n in range(len(rows)):
            if group and (len(group) == _MOST or needed[[*group, n]].sum() > self.call.options.memory):
                yield _Group(self, np.array(group), rows)
                group = []
            group.append(n)
        if group:
            yield _Group(self, np.array(group), rows)


class _Group:
    """Samples that are swept over at once, and what is remembered of their frames.

    Attributes:
        references: The greatest score of each frame.
        emitted: Words of two frames' classes, for each direction.
        planes: alpha and the bases of its rows, beta likewise, mantissas and exponents of the sums over all paths.
        means: Mean costs of the paths into each state and out of it, and the slopes of the losses.
    """

    def __init__(self, posed: _Posed, samples: np.ndarray, rows: np.ndarray) -> None:
        self.posed, self.table, self.size = posed, posed.table(samples, rows), len(samples)
        self.longest = int(posed.lengths[samples].max())
        self.num_frames = int((posed.lengths[samples] + 1).sum())
        self.num_states = int((rows * posed.states)[samples].sum())
        self.references, self.means = empties(posed.classes)(self.num_frames), ()
        scores, *strides = posed.frames[:4]
        block = bucket(posed.width, 32, 1024)
        launch(
            sparse.read_frames, (self.longest, self.size), scores,
            scores, *strides, self.table, posed.classes, self.references, posed.undefined, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip

    def sweep(self, both: bool) -> None:
        """Find alpha and the losses, and beta where both are asked for."""
        posed, empty = self.posed, empties(self.references)
        self.emitted = empty(4 * self.size * posed.width)
        alpha, bases = empty(self.num_states), empty(self.num_frames, dtype=torch.int64)
        beta, beta_bases = (torch.empty_like(plane) if both else plane for plane in (alpha, bases))
        self.planes = alpha, bases, beta, beta_bases, empty(self.size), empty(self.size, dtype=torch.int64)
        launch(
            sparse.solve, (self.size, 2 if both else 1), alpha,
            *posed.frames[:4], self.table, posed.classes, self.references, posed.undefined, posed.state_levels,
            *(tensor for name in _SWEPT for tensor in posed.lists[name]), self.emitted, posed.width, *self.planes,
            posed.losses, **posed.states_tile,
        )  # fmt: skip

    def find_means(self, slopes: Tensor) -> None:
        posed, (alpha, _, beta, *_) = self.posed, self.planes
        self.means = torch.empty_like(alpha), torch.empty_like(beta), slopes
        launch(
            sparse_hvp.solve, (self.size, 2), alpha,
            *posed.frames, self.table, posed.classes, self.references, posed.state_levels,
            *(tensor for name in _SWEPT for tensor in posed.lists[name] + posed.costs[name]), self.emitted,
            torch.empty_like(self.emitted), posed.width, *self.planes, posed.losses, *self.means,
            **posed.states_tile,
        )  # fmt: skip

    def over_classes(self, kernel: Any, out: Tensor) -> None:
        """What a kernel finds of each class in each frame."""
        posed = self.posed
        launch(
            kernel, (self.longest, self.size), out,
            *posed.frames, self.table, posed.classes, self.references, *posed.lists["classes"],
            *posed.costs["classes"], *self.planes, posed.losses, *self.means, out, **posed.classes_tile,
        )  # fmt: skip

    def count(self, kernels: Any, counts: Tensor) -> None:
        """What the kernels of a module count of the weights."""
        posed, own = self.posed, self.posed.own
        found = (*self.planes, posed.losses, *self.means, counts)
        for name, numbers in (("into", own.in_arcs), ("epsilons", own.epsilon_arcs)):
            emits = name == "into"
            offsets, sources, *labels, words = posed.lists[name]
            bounds = own.in_offsets if emits else own.epsilon_offsets
            destinations, numbers = posed.on_device(_ends(bounds, own.state_offsets), numbers)
            most = int(np.diff(bounds[own.state_offsets]).max())
            launch(
                kernels.count_arcs, (programs(most, _BLOCK), self.size), counts,
                *posed.frames, self.table, posed.classes, self.references, offsets, sources, destinations,
                labels[0] if emits else sources, numbers, words, *posed.costs[name], *found, EMITS=emits, BLOCK=_BLOCK,
            )  # fmt: skip
        ends = [tensor for name in ("starts", "finals") for tensor in posed.lists[name] + posed.costs[name]]
        most = int(np.diff(own.state_offsets).max())
        launch(
            kernels.count_ends, (programs(most, _BLOCK), self.size), counts,
            self.table, *ends, *found, BLOCK=_BLOCK,
        )  # fmt: skip


def _tile(rows: np.ndarray, arcs: float) -> dict[str, int]:
    """Rows and arcs of each that a program has in hand, of so many rows with so many arcs on average."""
    lanes = bucket(math.ceil(arcs), 4, 32)
    tile = {"ROWS": bucket(int(rows.max(initial=1)), 16, _TILE // lanes), "LANES": lanes}
    return tile | {"num_warps": min(warps(tile["ROWS"] * lanes), 8)}


class _List(NamedTuple):
    """Places of the weights of some arcs, graphs of these, and integers."""

    places: np.ndarray
    graphs: np.ndarray
    integers: tuple[np.ndarray, ...] = ()


def _lists(own: SparseLattice) -> dict[str, _List]:
    """The arcs in each order in which they are read."""
    graph_of_state = np.repeat(np.arange(len(own.state_offsets) - 1), np.diff(own.state_offsets))
    first_states, num_states = own.state_offsets[graph_of_state], len(graph_of_state)
    states = np.arange(num_states) - first_states

    def of_states(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.repeat(values, np.diff(offsets))

    def listed(graphs: np.ndarray, arcs: np.ndarray, *integers: np.ndarray) -> _List:
        return _List(own.weight_offsets[graphs] + arcs, graphs, tuple(_narrow(values) for values in integers))

    graphs = of_states(own.in_offsets, graph_of_state)
    into = listed(graphs, own.in_arcs, own.in_offsets, own.in_sources, own.in_labels)
    out = listed(
        of_states(own.out_offsets, graph_of_state), own.out_arcs, own.out_offsets, own.out_destinations, own.out_labels
    )
    classes, destinations = own.class_offsets[graphs] + own.in_labels, of_states(own.in_offsets, states)
    order, bounds = _sorted(classes, len(own.classes))
    by_class = listed(graphs[order], own.in_arcs[order], bounds, own.in_sources[order], destinations[order])

    graphs, destinations = (of_states(own.epsilon_offsets, values) for values in (graph_of_state, states))
    epsilons = listed(graphs, own.epsilon_arcs, own.epsilon_offsets, own.epsilon_sources)
    order, bounds = _sorted(own.state_offsets[graphs] + own.epsilon_sources, num_states)
    leaving = listed(graphs[order], own.epsilon_arcs[order], bounds, destinations[order])

    # What is scored of states lies behind the weights of all arcs.
    behind = own.weight_offsets[1:][graph_of_state] + states
    sizes = np.diff(own.state_offsets)[graph_of_state]
    starts, finals = (_List(behind - part * sizes, graph_of_state) for part in (2, 1))
    return {
        "into": into, "out": out, "epsilons": epsilons, "leaving": leaving, "starts": starts, "finals": finals,
        "classes": by_class,
    }  # fmt: skip


def _sorted(keys: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of keys below a number, and where each begins in it."""
    narrow = keys.astype(np.uint16) if count <= 2**16 else keys  # which are sorted faster
    return np.argsort(narrow, kind="stable"), _running(np.bincount(keys, minlength=count))


def _ends(offsets: np.ndarray, state_offsets: np.ndarray) -> np.ndarray:
    """The states that the arcs lead to, whose offsets these are, in their graphs."""
    states = np.arange(len(offsets) - 1) - np.repeat(state_offsets[:-1], np.diff(state_offsets))
    return _narrow(np.repeat(states, np.diff(offsets)))


def _levels(own: SparseLattice) -> np.ndarray:
    """How many epsilon arcs there can be up to each state at most."""
    reached = np.diff(own.epsilon_offsets) > 0
    levels = np.zeros(len(reached), np.int64)
    levels[reached] = own.epsilon_levels[own.epsilon_offsets[:-1][reached]]
    # States are in the order of their levels; one that nothing leads to any more has that of the one before.
    apart = np.repeat(np.arange(len(own.state_offsets) - 1), np.diff(own.state_offsets)) * (levels.max(initial=0) + 1)
    return _narrow(np.maximum.accumulate(apart + levels) - apart)


def _running(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32)
