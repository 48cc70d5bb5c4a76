"""Any weighted graph: the log-sum over its paths of as many labels as there are frames.

    score(path) = start + sum over its arcs of weights[arc] + sum over t of scores[t, label of the t-th] + final
    log Z       = log of the sum over all paths of exp(score(path))

Paths are counted, not the strings that they spell. Epsilon arcs take no frame and form no cycle, so that the paths of a
frame are finitely many. LF-MMI (Povey et al., 2016) is the difference of two such sums, of a denominator that all
samples share and of a numerator of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathsum.graphs import Graph
from pathsum.graphs.layout import Layout
from pathsum.lattice import Array, SparseLattice

# What is numbered within each graph is laid side by side; what points among the arcs is counted on.
_SIDE_BY_SIDE = (
    "classes", "in_sources", "in_labels", "in_arcs", "out_destinations", "out_labels", "out_arcs", "epsilon_sources",
    "epsilon_arcs", "epsilon_levels",
)  # fmt: skip
_COUNTED_ON = ("in_offsets", "out_offsets", "epsilon_offsets")


def pose_graphs(
    graphs: Sequence[Graph], graph_of_sample: Array, input_lengths: Array
) -> tuple[SparseLattice, np.ndarray]:
    """Pose graphs, one or more, with the number of each sample's (N,); also the weights (W,) in float64."""
    return pose_layouts([graph.layout for graph in graphs], input_lengths, graph_of_sample)


def pose_layouts(
    layouts: Sequence[Layout], input_lengths: Array, graph_of_sample: Array | None = None
) -> tuple[SparseLattice, np.ndarray]:
    """As ``pose_graphs``, of graphs that are laid out; where no numbers are given each sample has its own."""
    if graph_of_sample is None:
        graph_of_sample = np.arange(len(input_lengths))
    sizes = [(len(own.states), len(own.classes), len(own.weights)) for own in layouts]
    states, classes, weights = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(sizes, 0)]).T
    lattice = SparseLattice(
        input_lengths=input_lengths,
        graph_of_sample=graph_of_sample,
        state_offsets=np.ascontiguousarray(states),
        class_offsets=np.ascontiguousarray(classes),
        weight_offsets=np.ascontiguousarray(weights),
        **{name: _joined([getattr(own, name) for own in layouts]) for name in _SIDE_BY_SIDE},
        **{name: _counted_on(layouts, name) for name in _COUNTED_ON},
    )
    return lattice, _joined([own.weights for own in layouts])


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _counted_on(layouts: Sequence[Layout], name: str) -> np.ndarray:
    counted, last = [np.zeros(1, np.int64)], 0
    for own in layouts:
        offsets = getattr(own, name)
        counted.append(offsets[1:] + last)
        last += offsets[-1]
    return np.concatenate(counted)


class SideBySide(NamedTuple):
    """The states and arcs of all samples counted on, each graph as often as samples run on it; NumPy arrays.

    Attributes:
        samples: (S,) sample of each state.
        starts, finals: (S,) places of their scores among the weights of a sample.
        sources, destinations, of_arcs, classes, weights: (A,) of each arc that emits: states, sample, class, and place
            of its weight.
        levels: of the epsilon arcs of each level sources, destinations, samples and places of weights.
        used: (N, C) whether a class is emitted.
        counted: (N, W) whether a weight is of any path's.
    """

    samples: np.ndarray
    starts: np.ndarray
    finals: np.ndarray
    sources: np.ndarray
    destinations: np.ndarray
    of_arcs: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    levels: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]
    used: np.ndarray
    counted: np.ndarray


def side_by_side(lattice: SparseLattice, num_classes: int) -> SideBySide:
    """A lattice of NumPy arrays for those who take a step of all samples at once."""
    graph = lattice.graph_of_sample
    sizes = np.diff(lattice.state_offsets)[graph]
    first_state = np.cumsum(sizes) - sizes
    samples = np.repeat(np.arange(len(graph)), sizes)
    state = np.arange(len(samples)) - first_state[samples]
    behind = lattice.weight_offsets[graph + 1] if len(graph) else graph

    def arcs(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        bounds = offsets[lattice.state_offsets]
        counts = np.diff(bounds)[graph]
        own = np.repeat(np.arange(len(graph)), counts)
        places = np.arange(len(own)) - (np.cumsum(counts) - counts - bounds[graph])[own]
        ends = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[places]
        return places, own, ends - lattice.state_offsets[graph][own] + first_state[own]

    places, of_arcs, destinations = arcs(lattice.in_offsets)
    classes = lattice.classes[lattice.class_offsets[graph][of_arcs] + lattice.in_labels[places]]
    used = np.zeros((len(graph), num_classes), bool)
    used[of_arcs, classes] = True
    epsilons, of_epsilons, reached = arcs(lattice.epsilon_offsets)
    left = lattice.epsilon_sources[epsilons] + first_state[of_epsilons]
    weights = lattice.weight_offsets[graph][of_epsilons] + lattice.epsilon_arcs[epsilons]
    level = lattice.epsilon_levels[epsilons]
    starts, finals = ((behind - part * sizes)[samples] + state for part in (2, 1))
    emitting = lattice.weight_offsets[graph][of_arcs] + lattice.in_arcs[places]
    counted = np.zeros((len(graph), int(lattice.weight_offsets[-1])), bool)
    for of, own in ((samples, starts), (samples, finals), (of_arcs, emitting), (of_epsilons, weights)):
        counted[of, own] = True
    return SideBySide(
        samples=samples,
        starts=starts,
        finals=finals,
        sources=lattice.in_sources[places] + first_state[of_arcs],
        destinations=destinations,
        of_arcs=of_arcs,
        classes=classes,
        weights=emitting,
        levels=tuple(
            (left[own], reached[own], of_epsilons[own], weights[own])
            for own in (level == depth for depth in np.unique(level))
        ),
        used=used,
        counted=counted,
    )
