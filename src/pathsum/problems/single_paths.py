"""Chains and dense lattices as graphs, in which single paths are listed and drawn.

Every lattice of frames is one: its states are the graph's, in the order in which equals are told apart, behind a state
for what is before the first frame.

    chain: arc 3*s + k leads into state s from state s - k: stay, step, skip
    dense: arc (C+1)*j + i leads into state j from state i - 1; the first of all is no class's
"""

from __future__ import annotations

import numpy as np

from pathsum.graphs.layout import Layout, offsets_of
from pathsum.lattice import ChainLattice, DenseLattice, SparseLattice
from pathsum.problems.graphs import pose_layouts


def chain_as_graphs(chain: ChainLattice, transitions: np.ndarray | None) -> tuple[SparseLattice, np.ndarray]:
    """The graph of each sample of a chain of NumPy arrays, and the weights (W,), of transitions (C, C)."""
    table = None if transitions is None else transitions.ravel()
    layouts = [_chain(chain, table, sample) for sample in range(len(chain.num_states))]
    integers, numbers = np.empty(0, np.int64), np.empty(0)
    nothing = _laid(integers, integers, integers, integers, numbers, numbers, numbers)
    return pose_layouts(layouts or [nothing], chain.input_lengths)


def _chain(chain: ChainLattice, table: np.ndarray | None, sample: int) -> Layout:
    count = int(chain.num_states[sample])
    state, kinds = np.arange(count)[:, None], np.arange(3)
    labels = np.stack([chain.stay_labels, chain.step_labels, chain.step_labels], -1)[sample, :count]
    scores, stay, step = np.zeros((count, 3)), chain.stay_transitions, chain.step_transitions
    if table is not None and stay is not None and step is not None:
        indices = np.stack([stay, step, step], -1)[sample, :count]
        scores = np.where(indices >= 0, table[indices], 0.0)
    exists = (kinds < 2) | (chain.skips[sample, :count, None] & (state > 0))
    every = np.arange(-1, count)
    start = np.where(every == chain.start_state, 0.0, -np.inf)
    final = np.where(every >= count - chain.num_final, 0.0, -np.inf)
    numbers, sources, to = 3 * state + kinds, state + 1 - kinds, state + 1 + 0 * kinds
    return _laid(sources[exists], to[exists], labels[exists], numbers[exists], scores.ravel(), start, final)


def dense_as_graphs(dense: DenseLattice, transitions: np.ndarray) -> tuple[SparseLattice, np.ndarray]:
    """Of a dense lattice of NumPy arrays a graph that samples share, and the weights (W,), of transitions (C, C).

    Samples of one frame, which no transition is in, have a graph of their own, whose transitions have score 0.
    """
    count = dense.num_states
    to, sources = np.indices((count, count + 1))
    numbers = np.arange(to.size)
    nothing = np.zeros((count, 1))
    start, final = np.where(np.arange(count + 1) == 0, 0.0, -np.inf), np.zeros(count + 1)
    layouts = [
        _laid(sources.ravel(), to.ravel() + 1, to.ravel(), numbers, np.hstack([nothing, table]).ravel(), start, final)
        for table in (np.zeros_like(transitions), transitions)
    ]
    return pose_layouts(layouts, dense.input_lengths, (dense.input_lengths > 1).astype(np.int64))


def _laid(
    sources: np.ndarray,
    to: np.ndarray,
    labels: np.ndarray,
    numbers: np.ndarray,
    scores: np.ndarray,
    start: np.ndarray,
    final: np.ndarray,
) -> Layout:
    """A layout of arcs that are in the order of their destinations."""
    size, classes = len(start), np.unique(labels)
    out = np.lexsort((numbers, to, sources))
    places = np.searchsorted(classes, labels)
    nothing = np.empty(0, np.int32)

    def narrow(values: np.ndarray) -> np.ndarray:
        return values.astype(np.int32)

    return Layout(
        states=np.arange(size),
        weights=np.concatenate([scores, start, final]),
        classes=classes,
        in_offsets=offsets_of(to, size),
        in_sources=narrow(sources),
        in_labels=narrow(places),
        in_arcs=narrow(numbers),
        out_offsets=offsets_of(sources[out], size),
        out_destinations=narrow(to[out]),
        out_labels=narrow(places[out]),
        out_arcs=narrow(numbers[out]),
        epsilon_offsets=offsets_of(nothing, size),
        epsilon_sources=nothing,
        epsilon_arcs=nothing,
        epsilon_levels=nothing,
    )
