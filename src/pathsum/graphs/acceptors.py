"""Acceptors of tokens: what may be said, before any topology says how long a token lasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.graphs.graph import Graph


def linear(tokens: Sequence[int]) -> Graph:
    """The graph of one string: an arc a token, in order.

    Args:
        tokens: Labels.

    Example:
        >>> from pathsum.graphs import linear
        >>> linear([1, 2]).count_paths(2)
        1
    """
    count = len(tokens)
    return Graph(range(count), range(1, count + 1), list(tokens), final=count)


def star(tokens: Sequence[int], label: int, *, insertion: float | None = 0.0, bypass: float | None = None) -> Graph:
    """The graph of a string that may lack tokens, or have wrong ones.

    Args:
        tokens: Labels.
        label: What stands for any token: a class of its own, behind those of the model. Its score in a frame is the
            log of the sum of the probabilities of all that are not the blank.
        insertion: Weight of the arc that emits it once more, at the beginning, between any two tokens and at the end;
            ``None``: no such arc.
        bypass: Weight of the arc that emits it in place of a token; ``None``: no such arc.

    References:
        Pratap et al. (2022), Star temporal classification, arXiv 2201.12208; Gao et al. (2023), Bypass temporal
        classification, arXiv 2306.01031.

    Example:
        >>> from pathsum.graphs import star
        >>> star([1, 2], label=3).count_paths(3)  # 312, 132 and 123
        3
    """
    count = len(tokens)
    before, behind, labels = list(range(count)), list(range(1, count + 1)), list(tokens)
    weights = [0.0] * count
    if insertion is not None:
        before, behind = before + list(range(count + 1)), behind + list(range(count + 1))
        labels, weights = labels + [label] * (count + 1), weights + [insertion] * (count + 1)
    if bypass is not None:
        before, behind = before + list(range(count)), behind + list(range(1, count + 1))
        labels, weights = labels + [label] * count, weights + [bypass] * count
    return Graph(before, behind, labels, weights, final=count)


def words(tokens: Sequence[int] | Sequence[Sequence[int]], separator: int) -> Graph:
    """The graph of all strings that read as the same words: separators before, between and behind count once.

    Args:
        tokens: The words, each a list of labels; or the labels of them all, with separators between the words.
        separator: The label that divides words.

    Example:
        >>> from pathsum.graphs import words
        >>> words([[1], [2, 1]], separator=3).count_paths(5)  # 13321, 31321, 13213
        3
    """
    divided: list[list[int]] = [[]]
    for item in tokens:
        if not isinstance(item, (int, np.integer)):
            divided += [list(item)]
        elif item == separator:
            divided += [[]]
        else:
            divided[-1].append(item)
    divided = [word for word in divided if word]
    arcs = [(0, 0, separator)]
    state = 0
    for number, word in enumerate(divided):
        if number > 0:
            arcs += [(state, state + 1, separator), (state + 1, state + 1, separator)]
            state += 1
        for token in word:
            arcs.append((state, state + 1, token))
            state += 1
    if state > 0:
        arcs.append((state, state, separator))
    sources, destinations, labels = zip(*arcs, strict=True)
    return Graph(sources, destinations, labels, final=state)
