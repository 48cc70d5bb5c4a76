"""A graph as a lattice holds it: states in the order of their epsilon arcs, arcs by both of their ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.graphs.graph import EPSILON, Graph


class Layout(NamedTuple):
    """One graph's part of a ``SparseLattice``, whose attributes these are, and its weights.

    Attributes:
        states: (S,) the number that each state has in the graph.
    """

    states: np.ndarray
    weights: np.ndarray
    classes: np.ndarray
    in_offsets: np.ndarray
    in_sources: np.ndarray
    in_labels: np.ndarray
    in_arcs: np.ndarray
    out_offsets: np.ndarray
    out_destinations: np.ndarray
    out_labels: np.ndarray
    out_arcs: np.ndarray
    epsilon_offsets: np.ndarray
    epsilon_sources: np.ndarray
    epsilon_arcs: np.ndarray
    epsilon_levels: np.ndarray


def offsets_of(ends: np.ndarray, num_states: int) -> np.ndarray:
    """Where the arcs of each state begin, of the state of each arc, which rise."""
    return np.searchsorted(ends, np.arange(num_states + 1))


def lay_out(graph: Graph) -> Layout:
    useful, levels = graph.useful, graph.epsilon_levels
    states = np.flatnonzero(useful)
    states = states[np.argsort(levels[states], kind="stable")]
    place = np.full(graph.num_states, -1)
    place[states] = np.arange(len(states))
    kept = useful[graph.sources] & useful[graph.destinations]
    sources, to = place[graph.sources], place[graph.destinations]
    emits = graph.labels != EPSILON

    arcs, epsilons = np.flatnonzero(kept & emits), np.flatnonzero(kept & ~emits)
    classes = np.unique(graph.labels[arcs])
    into = arcs[np.lexsort((arcs, sources[arcs], to[arcs]))]
    out = arcs[np.lexsort((arcs, to[arcs], sources[arcs]))]
    epsilons = epsilons[np.lexsort((epsilons, sources[epsilons], to[epsilons]))]

    def offsets(ends: np.ndarray) -> np.ndarray:
        return offsets_of(ends, len(states))

    def narrow(values: np.ndarray) -> np.ndarray:
        return values.astype(np.int32)

    return Layout(
        states=states,
        weights=np.concatenate([graph.weights, graph.start[states], graph.final[states]]),
        classes=classes,
        in_offsets=offsets(to[into]),
        in_sources=narrow(sources[into]),
        in_labels=narrow(np.searchsorted(classes, graph.labels[into])),
        in_arcs=narrow(into),
        out_offsets=offsets(sources[out]),
        out_destinations=narrow(to[out]),
        out_labels=narrow(np.searchsorted(classes, graph.labels[out])),
        out_arcs=narrow(out),
        epsilon_offsets=offsets(to[epsilons]),
        epsilon_sources=narrow(sources[epsilons]),
        epsilon_arcs=narrow(epsilons),
        epsilon_levels=narrow(levels[states][to[epsilons]]),
    )
