"""The best of several lists in one: how the best paths into a node are made of those into the nodes before it."""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE_EXACTLY
from pathsum.kernels.numba.linking import part

_FACTORS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


@part(**COMPILE_EXACTLY)
def merge(lists, nodes, scores, count, front, ranks, best, codes, strings, marks, own):
    """The greatest of what ``count`` lists hold, each list with a score added, in falling order.

    ``lists`` (rows, K) fall and end in -inf; ``nodes`` say which rows are merged. ``best`` (K,) takes the greatest, of
    equals that of the first list first; ``codes`` (K,) take list * K + place in it. Where there are no more they take
    -inf and -1. ``front`` and ``ranks`` are memory, an entry a list.

    Where ``strings`` (rows, K) has entries, each stands for a string, which a mark other than 0 makes longer; then
    each string is taken once, and ``own`` (K,) takes those that are.
    """
    size, taken = best.size, 0
    for h in range(count):
        ranks[h], front[h] = 0, lists[nodes[h], 0] + scores[h]
    while taken < size:
        top, at = -np.inf, -1
        for h in range(count):
            if front[h] > top:
                top, at = front[h], h
        if at < 0:
            break
        place, known = ranks[at], False
        if strings.size > 0:
            string = _longer(strings[nodes[at], place], marks[at])
            for r in range(taken):
                known = known or own[r] == string
            own[taken] = string
        ranks[at] = place + 1
        front[at] = lists[nodes[at], place + 1] + scores[at] if place + 1 < size else -np.inf
        if not known:
            best[taken], codes[taken] = top, at * size + place
            taken += 1
    best[taken:] = -np.inf
    codes[taken:] = -1


@part(**COMPILE_EXACTLY)
def _longer(string, mark):
    """A string with a mark more, as 64 bits that no two strings of a graph share but by a chance of 2**-64."""
    if mark == 0:
        return string
    mixed = string * _FACTORS[0] + mark
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _FACTORS[1]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _FACTORS[2]
    return mixed ^ (mixed >> _SHIFTS[2])
