"""The strings of hypotheses as one graph: built here, summed and aligned by ``kernels.numba.string_graph``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.decoding.lexicon import Spelling
from pathsum.kernels.numba.string_graph import Graph

Words = Sequence[Sequence[Spelling]]


class Strings:
    """A graph that grows by the strings of one hypothesis after another.

    A hypothesis is its words, a word its spellings. With a separator its strings are all that have one spelling of each
    word, separators between them, as many as one likes, and before and behind them as many or none.
    """

    def __init__(self, separator: int):
        self._separator = separator
        self._tokens = [separator]
        self._sources: list[tuple[int, ...]] = [()]
        self._numbers: dict[tuple[tuple[int, ...], int], int] = {}
        self._ends: dict[tuple[int, tuple[Spelling, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def add(self, words: Words) -> tuple[int, ...]:
        """The nodes in which the strings of a hypothesis end."""
        if self._separator < 0 and any(len(spellings) > 1 for spellings in words):
            return self._add_ambiguous(words)
        before = finals = (0,)
        for spellings in words:
            ends = tuple(self._spell(before, spelling) for spelling in spellings)
            before = finals = ends
            if self._separator >= 0:
                before = (self._node(ends, self._separator),)
                finals = ends + before
        return finals

    def _spell(self, before: tuple[int, ...], spelling: Spelling) -> int:
        for token in spelling:
            before = (self._node(before, token),)
        return before[0]

    def _node(self, sources: tuple[int, ...], token: int) -> int:
        number = self._numbers.get((sources, token))
        if number is None:
            number = self._numbers[sources, token] = len(self._tokens)
            self._tokens.append(token)
            self._sources.append(sources)
        return number

    def _add_ambiguous(self, words: Words) -> tuple[int, ...]:
        """The same where one string may be had in several ways: a node stands for all that its strings may be.

        What a string may be is a set of (word, spelling, tokens of it), and each string leads to one set.
        """
        longest = [max(map(len, spellings)) for spellings in words]

        def to_come(places: frozenset[tuple[int, int, int]]) -> int:
            return max(sum(longest[word:]) - count for word, _, count in places)

        def opened(word: int) -> set[tuple[int, int, int]]:
            return {(word, 0, 0)}

        def steps(places: frozenset[tuple[int, int, int]]) -> dict[int, set[tuple[int, int, int]]]:
            found: dict[int, set[tuple[int, int, int]]] = {}
            for word, which, count in places:
                if word == len(words):
                    continue
                choices = enumerate(words[word]) if count == 0 else [(which, words[word][which])]
                for number, spelling in choices:
                    after = {(word, number, count + 1)} if count + 1 < len(spelling) else opened(word + 1)
                    found.setdefault(spelling[count], set()).update(after)
            return found

        start = frozenset(opened(0))
        # The sets in an order in which all that leads to one comes before it.
        arriving: dict[frozenset[tuple[int, int, int]], dict[int, list[int]]] = {start: {}}
        finals: list[int] = []
        while arriving:
            places = max(arriving, key=lambda each: (to_come(each), sorted(each)))
            by_token = arriving.pop(places)
            nodes = [self._node(tuple(sources), token) for token, sources in by_token.items()] or [0]
            if any(word == len(words) for word, _, _ in places):
                finals += nodes
            for token, after in steps(places).items():
                arriving.setdefault(frozenset(after), {}).setdefault(token, []).extend(nodes)
        return tuple(finals)

    def graph(self) -> Graph:
        counts = [len(each) for each in self._sources]
        flat = np.array([source for each in self._sources for source in each], np.int32)
        return _graph(
            np.array(self._tokens, np.int32), flat, np.repeat(np.arange(len(counts)), counts), self._separator
        )


def grown(
    parents: np.ndarray, tokens: np.ndarray, nodes: np.ndarray, separator: int
) -> tuple[Graph, list[tuple[int, ...]]]:
    """The strings of labellings in a tree, as those of ``Strings``, and the nodes in which those of each end.

    Args:
        parents, tokens: Of each labelling of the tree the one that it grew from, -1 for none, and its last token.
        nodes: The labellings.
        separator: The separator, -1 for none.
    """
    needed = np.zeros(len(parents), np.bool_)
    needed[0] = True
    missing = nodes
    while len(missing := missing[~needed[missing]]):
        needed[missing] = True
        missing = parents[missing]
    order = np.flatnonzero(needed)  # a labelling is younger than what it grew from
    numbers = np.cumsum(needed) - 1
    own, sources, ends = tokens[order], numbers[parents[order[1:]]], numbers[nodes]
    if separator < 0:
        return _graph(own, sources, np.arange(1, len(own)), separator), [(end,) for end in ends.tolist()]
    # With and without a separator behind: that of the tree, where it has one.
    ends = np.where((tokens[nodes] == separator) & (nodes > 0), numbers[parents[nodes]], ends)
    separated = np.full(len(own), -1)
    behind = np.flatnonzero(own[1:] == separator)
    separated[sources[behind]] = behind + 1
    open_ended = np.unique(ends[(separated[ends] < 0) & (nodes > 0)])
    separated[open_ended] = len(own) + np.arange(len(open_ended))
    own = np.concatenate([own, np.full(len(open_ended), separator, own.dtype)])
    graph = _graph(own, np.concatenate([sources, open_ended]), np.arange(1, len(own)), separator)
    finals = zip(ends.tolist(), separated[ends].tolist(), nodes.tolist(), strict=True)
    return graph, [(end, after) if node else (0,) for end, after, node in finals]


def _graph(tokens: np.ndarray, sources: np.ndarray, nodes: np.ndarray, separator: int) -> Graph:
    """The graph of arcs from each of ``sources`` to each of ``nodes``."""
    order = np.argsort(sources, kind="stable")
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=len(tokens)), out=offsets[1:])
    loops = tokens == separator if separator >= 0 else np.zeros(len(tokens), np.bool_)
    return Graph(tokens, offsets, nodes[order].astype(np.int32), loops)
