"""The exact mass of many strings at once, and the best frames of each: sums over an acyclic graph of tokens.

A node is a token at a place in some strings; what may come behind it are its followers, all numbered higher. Its mass
is that of all frames so far that read as a string which ends there. Strings that begin alike share their nodes. Of
these, often hundreds of thousands, few have mass that matters in one frame: each frame goes through those alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.prefix_beam import log_add


class Graph(NamedTuple):
    """Strings as a graph. Node 0 is the start, before any token.

    Attributes:
        tokens: (M,) class of each node; the start has the separator, or -1.
        offsets: (M+1,) first follower of each node.
        followers: the nodes that may come behind it.
        loops: (M,) whether the token may come any number of times, which read as one: the separator's.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    followers: np.ndarray
    loops: np.ndarray


@exact_kernel
def score(frames, graph, blank, collapses, transitions, least):
    """(2, M) log-mass of all frames (T, C) that end in each node: in a blank, and in its token.

    ``least`` (M,) is a log-mass that strings which end in a node are known to have, infinity where none ends. Mass of a
    node that is e**-40 of it even if all to come were added is left out: it would change no digit.
    """
    tokens, offsets, followers, loops = graph.tokens, graph.offsets, graph.followers, graph.loops
    moves = transitions.size > 0
    least = _through(graph, least)
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
    totals, arriving = blanks.copy(), np.full(tokens.size, -np.inf)
    live, count = np.zeros(tokens.size, np.int64), 1
    for t in range(frames.shape[0]):
        row = frames[t]
        still = row[blank] if blank >= 0 else -np.inf
        size = count
        for i in range(count):
            node = live[i]
            for k in range(offsets[node], offsets[node + 1]):
                after = followers[k]
                step = _leaving(
                    totals, blanks, labels, node, tokens[node], tokens[after], collapses, moves, transitions
                )
                if step > -np.inf:
                    if totals[after] == -np.inf and arriving[after] == -np.inf:
                        live[size] = after
                        size += 1
                    arriving[after] = log_add(arriving[after], step)
        count = 0
        for i in range(size):
            node = live[i]
            token, arrived = tokens[node], arriving[node]
            arriving[node] = -np.inf
            if totals[node] > -np.inf:
                if token >= 0 and (collapses or loops[node]):
                    arrived = log_add(arrived, labels[node] + (transitions[token, token] if moves else 0.0))
                    if loops[node]:
                        arrived = log_add(arrived, blanks[node])
                blanks[node] = totals[node] + still
            labels[node] = arrived + row[token] if token >= 0 else -np.inf
            total = log_add(blanks[node], labels[node])
            if total == -np.inf or total + to_come[t] < least[node] - 40.0:
                blanks[node], labels[node], totals[node] = -np.inf, -np.inf, -np.inf
            else:
                totals[node] = total
                live[count] = node
                count += 1
    return mass


@part(forceinline=True, **COMPILE_EXACTLY)
def _through(graph, ends):
    """(M,) the least, over all strings through a node, of what is given for the nodes in which strings end."""
    least = ends.copy()
    for node in range(least.size - 1, -1, -1):
        for k in range(graph.offsets[node], graph.offsets[node + 1]):
            least[node] = min(least[node], least[graph.followers[k]])
    return least


@part(forceinline=True, **COMPILE_EXACTLY)
def _leaving(totals, blanks, labels, node, before, token, collapses, moves, transitions):
    """The mass that may pass from a node to one behind it."""
    if collapses and before == token:
        return blanks[node]
    if moves and before >= 0:
        return log_add(blanks[node], labels[node] + transitions[token, before])
    return totals[node]


@part(**COMPILE_EXACTLY)
def _longer(array):
    longer = np.empty(2 * array.size, array.dtype)
    longer[: array.size] = array
    return longer


@exact_kernel
def align(frames, graph, blank, collapses, transitions, final_offsets, finals, slack):
    """Of each of K strings the best path, (K, T): the node of each frame, and -1 - node where it is in a blank behind.

    String k ends in one of the nodes ``finals[final_offsets[k] : final_offsets[k + 1]]``. Of equal paths the one that
    ends in a token, and that, going back from the end, stays rather than has stepped on, and has stepped from a blank
    rather than from a token.

    Also whether each was found, (K,): whether its best path is at most ``slack`` behind the best class of each frame.
    What is further behind already, were the best classes of all frames to come, is not followed.
    """
    tokens, offsets, followers, loops = graph.tokens, graph.offsets, graph.followers, graph.loops
    moves = transitions.size > 0
    num_frames, num_nodes, num_strings = frames.shape[0], tokens.size, final_offsets.size - 1
    # What the best classes of the frames behind each come to.
    highest = transitions.max() if moves else 0.0
    to_come = np.zeros(num_frames)
    for t in range(num_frames - 1, 0, -1):
        to_come[t - 1] = to_come[t] + frames[t].max() + highest
    wanted = np.full(num_nodes, np.inf)
    for node in finals:
        wanted[node] = (to_come[0] + frames[0].max() if num_frames > 0 else 0.0) - slack
    least = _through(graph, wanted)

    blanks, labels = np.full(num_nodes, -np.inf), np.full(num_nodes, -np.inf)
    blanks[0] = 0.0
    arriving, comes_from = np.full(num_nodes, -np.inf), np.zeros(num_nodes, np.int32)
    # The nodes that are followed, frame after frame. Where a frame in a node's token came from, and one in the blank:
    # twice the entry of the frame before, and 1 more where that was in the token.
    entries, from_tokens, from_blanks = np.zeros(1024, np.int32), np.zeros(1024, np.int32), np.zeros(1024, np.int32)
    begins = np.zeros(num_frames + 2, np.int64)
    begins[1] = 1
    entered = np.full(num_nodes, np.int32(-1))  # the entry of the frame before
    entered[0] = 0
    for t in range(num_frames):
        row = frames[t]
        still = row[blank] if blank >= 0 else -np.inf
        begin, end = begins[t], begins[t + 1]
        size = end
        while entries.size < end + num_nodes:
            entries, from_tokens, from_blanks = _longer(entries), _longer(from_tokens), _longer(from_blanks)
        # Entries of this frame: those of the frame before, then those that are reached.
        for i in range(begin, end):
            entries[size] = entries[i]
            size += 1
        for i in range(begin, end):
            node = np.int64(entries[i])
            before = tokens[node]
            for k in range(offsets[node], offsets[node + 1]):
                after = followers[k]
                token = tokens[after]
                best, origin = blanks[node], 2 * (i - begin)
                if not (collapses and before == token):
                    value = labels[node] + (transitions[token, before] if moves and before >= 0 else 0.0)
                    if value > best:
                        best, origin = value, 2 * (i - begin) + 1
                if best > arriving[after]:
                    if entered[after] < 0 and arriving[after] == -np.inf:
                        entries[size] = after
                        size += 1
                    arriving[after], comes_from[after] = best, np.int32(origin)
        place = end
        for i in range(end, size):
            node = np.int64(entries[i])
            token = tokens[node]
            own = np.int32(2 * entered[node])
            best, origin = arriving[node], comes_from[node]
            arriving[node] = -np.inf
            if token >= 0 and loops[node] and blanks[node] >= best:
                best, origin = blanks[node], own
            if token >= 0 and (collapses or loops[node]):
                value = labels[node] + (transitions[token, token] if moves else 0.0)
                if value >= best:
                    best, origin = value, np.int32(own + 1)
            spoken = labels[node] > blanks[node]
            blanks[node] = max(blanks[node], labels[node]) + still
            labels[node] = best + row[token] if token >= 0 else -np.inf
            if max(blanks[node], labels[node]) + to_come[t] < least[node]:
                blanks[node], labels[node] = -np.inf, -np.inf
            if max(blanks[node], labels[node]) == -np.inf:
                entered[node] = -1
                continue
            entries[place], from_tokens[place] = node, origin
            from_blanks[place] = own + 1 if spoken else own
            entered[node] = place - end
            place += 1
        begins[t + 2] = place

    paths = np.empty((num_strings, num_frames), np.int32)
    found = np.zeros(num_strings, np.bool_)
    for k in range(num_strings):
        best, place, in_label = -np.inf, np.int64(0), False
        for node in finals[final_offsets[k] : final_offsets[k + 1]]:
            if labels[node] > best:
                best, place, in_label = labels[node], np.int64(entered[node]), True
        for node in finals[final_offsets[k] : final_offsets[k + 1]]:
            if blanks[node] > best:
                best, place, in_label = blanks[node], np.int64(entered[node]), False
        found[k] = best > -np.inf
        if not found[k]:
            continue
        for t in range(num_frames - 1, -1, -1):
            entry = begins[t + 1] + place
            paths[k, t] = entries[entry] if in_label else -1 - entries[entry]
            origin = from_tokens[entry] if in_label else from_blanks[entry]
            place, in_label = np.int64(origin >> 1), (origin & 1) == 1
    return paths, found
