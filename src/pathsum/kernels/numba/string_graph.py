"""The exact mass of many strings at once, and the best frames of one: sums over an acyclic graph of tokens.

A node is a token at a place in some strings; what comes before it are its sources, all numbered lower. Its mass is
that of all frames so far that read as a string which ends there. Strings that begin alike share their nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.prefix_beam import log_add


class Graph(NamedTuple):
    """Strings as a graph. Node 0 is the start, before any token.

    Attributes:
        tokens: (M,) class of each node; the start has the separator, or -1.
        offsets: (M+1,) first source of each node.
        sources: the nodes that it may follow.
        loops: (M,) whether the token may come any number of times, which read as one: the separator's.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    loops: np.ndarray


@exact_kernel
def score(frames, graph, blank, collapses, transitions, least):
    """(2, M) log-mass of all frames (T, C) that end in each node: in a blank, and in its token.

    ``least`` (M,) is a log-mass that strings which end in a node are known to have, infinity where none ends. Mass of a
    node that is e**-40 of it even if all to come were added is left out: it would change no digit.
    """
    tokens, offsets, sources, loops = graph.tokens, graph.offsets, graph.sources, graph.loops
    moves = transitions.size > 0
    # Of all strings through a node the least.
    least = least.copy()
    for node in range(tokens.size - 1, 0, -1):
        for k in range(offsets[node], offsets[node + 1]):
            least[sources[k]] = min(least[sources[k]], least[node])
    # The most that the frames behind each can add; where passing on scores too, no bound.
    to_come = np.full(frames.shape[0], np.inf)
    if not moves and frames.shape[0] > 0:
        to_come[-1] = 0.0
        for t in range(frames.shape[0] - 1, 0, -1):
            whole = -np.inf
            for c in range(frames.shape[1]):
                whole = log_add(whole, frames[t, c])
            to_come[t - 1] = to_come[t] + whole
    mass = np.full((2, tokens.size), -np.inf)
    blanks, labels = mass[0], mass[1]
    blanks[0] = 0.0
    totals = blanks.copy()
    for t in range(frames.shape[0]):
        row = frames[t]
        still = row[blank] if blank >= 0 else -np.inf
        # Sources have lower numbers: from the last node on they still are what they were.
        for node in range(tokens.size - 1, -1, -1):
            token = tokens[node]
            arriving = -np.inf
            for k in range(offsets[node], offsets[node + 1]):
                source = sources[k]
                if totals[source] > -np.inf:
                    arriving = log_add(arriving, _leaving(
                        totals, blanks, labels, source, tokens[source], token, collapses, moves, transitions
                    ))  # fmt: skip
            if totals[node] > -np.inf:
                if token >= 0 and (collapses or loops[node]):
                    arriving = log_add(arriving, labels[node] + (transitions[token, token] if moves else 0.0))
                    if loops[node]:
                        arriving = log_add(arriving, blanks[node])
                blanks[node] = totals[node] + still
            elif arriving == -np.inf:
                continue
            labels[node] = arriving + row[token] if token >= 0 else -np.inf
            total = log_add(blanks[node], labels[node])
            if total + to_come[t] < least[node] - 40.0:
                blanks[node], labels[node], total = -np.inf, -np.inf, -np.inf
            totals[node] = total
    return mass


@njit(forceinline=True, **COMPILE_EXACTLY)
def _leaving(totals, blanks, labels, source, before, token, collapses, moves, transitions):
    """The mass that may pass from a node to one behind it."""
    if collapses and before == token:
        return blanks[source]
    if moves and before >= 0:
        return log_add(blanks[source], labels[source] + transitions[token, before])
    return totals[source]


@exact_kernel
def align(frames, graph, blank, collapses, transitions, final_offsets, finals):
    """Of each of K strings the best path, (K, T): the node of each frame, and -1 - node where it is in a blank behind.

    String k ends in one of the nodes ``finals[final_offsets[k] : final_offsets[k + 1]]``. Of equal paths the one that
    ends in a token, and that, going back from the end, stays rather than has stepped on, and has stepped from a blank
    rather than from a token.
    """
    tokens, offsets, sources, loops = graph.tokens, graph.offsets, graph.sources, graph.loops
    moves = transitions.size > 0
    num_frames, num_nodes = frames.shape[0], tokens.size
    blanks, labels = np.full(num_nodes, -np.inf), np.full(num_nodes, -np.inf)
    blanks[0] = 0.0
    # Where a frame in a token came from: twice the node before, and 1 more where that was in its token.
    came = np.empty((num_frames, num_nodes), np.int32)
    spoken = np.empty((num_frames, num_nodes), np.bool_)  # whether a frame in a blank came from the token
    for t in range(num_frames):
        row = frames[t]
        still = row[blank] if blank >= 0 else -np.inf
        # Sources have lower numbers: from the last node on they still are what they were.
        for node in range(num_nodes - 1, -1, -1):
            token = tokens[node]
            best, origin = -np.inf, np.int32(2 * node + 1)
            if token >= 0 and (collapses or loops[node]):
                best = labels[node] + (transitions[token, token] if moves else 0.0)
                if loops[node] and blanks[node] > best:
                    best, origin = blanks[node], np.int32(2 * node)
            for k in range(offsets[node], offsets[node + 1]):
                source = sources[k]
                before = tokens[source]
                if blanks[source] > best:
                    best, origin = blanks[source], np.int32(2 * source)
                if not (collapses and before == token):
                    value = labels[source] + (transitions[token, before] if moves and before >= 0 else 0.0)
                    if value > best:
                        best, origin = value, np.int32(2 * source + 1)
            came[t, node] = origin
            spoken[t, node] = labels[node] > blanks[node]
            blanks[node] = max(blanks[node], labels[node]) + still
            labels[node] = best + row[token] if token >= 0 else -np.inf

    paths = np.empty((final_offsets.size - 1, num_frames), np.int32)
    for k in range(final_offsets.size - 1):
        best, place, in_label = -np.inf, np.int32(0), False
        for node in finals[final_offsets[k] : final_offsets[k + 1]]:
            if labels[node] > best:
                best, place, in_label = labels[node], np.int32(node), True
        for node in finals[final_offsets[k] : final_offsets[k + 1]]:
            if blanks[node] > best:
                best, place, in_label = blanks[node], np.int32(node), False
        for t in range(num_frames - 1, -1, -1):
            paths[k, t] = place if in_label else -1 - place
            if in_label:
                origin = came[t, place]
                place, in_label = np.int32(origin >> 1), (origin & 1) == 1
            else:
                in_label = spoken[t, place]
    return paths
