"""The paths of a lattice one by one, by walking its arcs: an oracle that shares nothing with any recursion.

A node is a pair: (frames consumed, state) in a chain, (t, u) in a grid. ``arcs_out_of`` and ``is_final`` are all that
knows a lattice; the rest only walks.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from pathsum.lattice import LABEL, NOTHING, ArcLattice, ChainLattice, GridLattice

Lattice = ChainLattice | GridLattice | ArcLattice
Node = tuple[int, int]


class Arc(NamedTuple):
    """One arc of a path.

    Attributes:
        kind: ``"stay"``, ``"step"``, ``"skip"`` in a chain, ``"blank"``, ``"label"`` in a grid; in an arc lattice
            the number of the kind, or ``"skip"``.
        source, target: the nodes it joins.
        row: where the scores of the arc are: ``(t,)`` in a chain, ``(t, u)`` in a grid.
        label: the class it emits.
    """

    kind: str
    source: Node
    target: Node
    row: tuple[int, ...]
    label: int


class Enumerated(NamedTuple):
    """What the paths of a sample sum to: their log-sum, and its derivative by each score."""

    log_z: float
    posteriors: np.ndarray


def start_node(lattice: Lattice) -> Node:
    """The node that every path leaves from."""
    return (0, lattice.start_state) if isinstance(lattice, ChainLattice) else (0, 0)


def is_final(lattice: Lattice, sample: int, node: Node) -> bool:
    """Whether a path may end in a node."""
    if isinstance(lattice, ChainLattice):
        frame, state = node
        first_final = int(lattice.num_states[sample]) - lattice.num_final
        return frame == int(lattice.input_lengths[sample]) and state >= first_final
    # Without frames the first node is not final: a walk ends with a blank.
    return node[0] > 0 and node == (int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample]))


def arcs_out_of(lattice: Lattice, sample: int, node: Node) -> list[Arc]:
    """The arcs that leave a node."""
    if isinstance(lattice, ChainLattice):
        return _chain_arcs(lattice, sample, node)
    return _grid_arcs(lattice, sample, node) if isinstance(lattice, GridLattice) else _kinds(lattice, sample, node)


def _chain_arcs(lattice: ChainLattice, sample: int, node: Node) -> list[Arc]:
    frame, state = node
    num_states = int(lattice.num_states[sample])
    if frame == int(lattice.input_lengths[sample]):
        return []
    moves = [("stay", state, lattice.stay_labels)] if state >= 0 else []  # the virtual state cannot be stayed in
    if state + 1 < num_states:
        moves.append(("step", state + 1, lattice.step_labels))
    if state + 2 < num_states and bool(lattice.skips[sample, state + 2]):
        moves.append(("skip", state + 2, lattice.step_labels))
    return [Arc(kind, node, (frame + 1, to), (frame,), int(labels[sample, to])) for kind, to, labels in moves]


def _grid_arcs(lattice: GridLattice, sample: int, node: Node) -> list[Arc]:
    t, u = node
    num_frames, num_labels = int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample])
    if t == num_frames:
        return []
    arcs = [Arc("blank", node, (t + 1, u), node, int(lattice.blank))]
    if u < num_labels:
        arcs.append(Arc("label", node, (t, u + 1), node, int(lattice.targets[sample, u])))
    return arcs


def _kinds(lattice: ArcLattice, sample: int, node: Node) -> list[Arc]:
    t, u = node
    num_frames, num_labels = int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample])
    if t == num_frames:
        return []
    arcs = []
    for k, ((frames, labels), emitted) in enumerate(zip(lattice.arcs, lattice.emits, strict=True)):
        to = (t + frames, u + labels)
        if to[1] > num_labels or to[0] > num_frames or (to[0] == num_frames and to[1] < num_labels):
            continue
        if labels and not int(lattice.first_frames[sample, u]) <= t <= int(lattice.last_frames[sample, u]):
            continue
        if labels and to[0] == num_frames and not lattice.label_ends:
            continue
        label = int(lattice.targets[sample, u]) if emitted == LABEL else emitted
        arcs.append(Arc(str(k), node, to, node, label))
    if lattice.skips_to is not None:
        if node == (0, 0):
            arcs += [Arc("skip", node, (later, 0), node, NOTHING) for later in range(1, num_frames)]
        if u == num_labels and t < num_frames - 1:
            arcs.append(Arc("skip", node, (num_frames - lattice.skips_to, u), node, NOTHING))
    return arcs


def enumerate_paths(lattice: Lattice, sample: int = 0) -> Iterator[tuple[Arc, ...]]:
    """Every complete path of a sample, as its arcs. There are exponentially many."""

    def walk(node: Node, path: tuple[Arc, ...]) -> Iterator[tuple[Arc, ...]]:
        if is_final(lattice, sample, node):
            yield path
        for arc in arcs_out_of(lattice, sample, node):
            yield from walk(arc.target, (*path, arc))

    return walk(start_node(lattice), ())


def count_paths(lattice: Lattice, sample: int = 0) -> int:
    """The number of complete paths of a sample, exactly; polynomial time."""
    counts = {start_node(lattice): 1}
    waiting = list(counts)
    total = 0
    while waiting:
        # Arcs lead to later nodes only, so that the first of all nodes seen has all its paths counted.
        node = heappop(waiting)
        count = counts[node]
        total += count * is_final(lattice, sample, node)
        for arc in arcs_out_of(lattice, sample, node):
            if arc.target not in counts:
                heappush(waiting, arc.target)
            counts[arc.target] = counts.get(arc.target, 0) + count
    return total


def sum_over_paths(log_probs: Any, lattice: Lattice, sample: int = 0) -> Enumerated:
    """Enumerate the paths of a sample and sum their probabilities in float64.

    Args:
        log_probs: Scores of the sample's arcs (T, C) or (T, U+1, V).
        lattice: A chain or a grid.
        sample: Index in the batch.

    Returns:
        The log-sum, -inf where no path is possible, and its derivative with respect to ``log_probs``: how often an
        arc with that score is expected on a path; 0 where no path is possible.
    """
    scores = np.asarray(log_probs, np.float64)
    paths = list(enumerate_paths(lattice, sample))
    weights = np.array([sum(scores[(*arc.row, arc.label)] for arc in path) for path in paths], np.float64)
    posteriors = np.zeros_like(scores)
    largest = weights.max(initial=-np.inf)
    if largest == -np.inf:
        return Enumerated(-np.inf, posteriors)
    probabilities = np.exp(weights - largest)
    for path, probability in zip(paths, probabilities, strict=True):
        for arc in path:
            posteriors[(*arc.row, arc.label)] += probability
    total = probabilities.sum()
    return Enumerated(float(largest + np.log(total)), posteriors / total)
