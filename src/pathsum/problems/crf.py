"""The CRF of nanopore base callers (Oxford Nanopore's bonito): states are k-mers, and every move has a score a frame.

A read passes through the k-mers of its bases, one or more frames each. State s is the k-mer whose bases, 0 to 3, are
the digits of s in base 4, the first the highest. In a frame a path stays, or moves on by a base:

    scores[t, 5*s]         stay in s
    scores[t, 5*s + 1 + b] move into s from the k-mer whose first base, b, has gone

    loss = log sum over all paths of exp(score)  -  log sum over the paths through the target's k-mers of exp(score)

A path of all starts and ends in any state; one of the target starts in its first k-mer, before the first frame, and
ends in its last. So all paths are those of a graph of 4**k states and 5*4**k arcs, a class each, and the target's are
those of a chain.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pathsum._namespace import namespace
from pathsum.graphs import Graph
from pathsum.lattice import Array, ChainLattice

BASES = 4
# The longest k-mers whose 5*4**k classes a 32-bit number counts.
LONGEST = 14


@lru_cache(maxsize=8)
def all_kmers(state_len: int) -> Graph:
    """The graph of all paths: arc k emits class k."""
    count = BASES**state_len
    states = np.arange(count)
    before = states[:, None] // BASES + np.arange(BASES) * (count // BASES)
    sources = np.concatenate([states[:, None], before], 1)
    zeros = np.zeros(count)
    labels = np.arange(sources.size)
    return Graph(sources.ravel(), np.repeat(states, 1 + BASES), labels, start=zeros, final=zeros)


def pose_crf(targets: Array, input_lengths: Array, target_lengths: Array, state_len: int) -> ChainLattice:
    """The chain of targets (N, S), bases 1 to 4; entries beyond a target's length are not used.

    A target of fewer bases than a k-mer has passes through no state: its sample is infeasible.
    """
    xp = namespace(targets)
    used = xp.arange(targets.shape[1]) < target_lengths[:, None]
    # Columns behind the last let a k-mer begin at every base; there the values do not matter.
    bases = xp.pad(xp.where(used, targets - 1, 0), [(0, 0), (0, state_len)])
    width = max(targets.shape[1] - state_len + 1, 1)
    states = xp.zeros_like(bases[:, :width])
    for place in range(state_len):
        states = states * BASES + bases[:, place : place + width]
    stays = states * (1 + BASES)
    dropped = xp.concatenate([xp.full_like(bases[:, :1], -1), bases[:, : width - 1]], 1)
    return ChainLattice(
        input_lengths=input_lengths,
        num_states=(target_lengths - state_len + 1).clip(0),
        stay_labels=stays,
        step_labels=stays + 1 + dropped,
        skips=xp.zeros_like(states, dtype=bool),
        start_state=0,
        num_final=1,
    )
