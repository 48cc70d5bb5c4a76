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
        return _graph(self._tokens, self._sources, self._separator)


def grown(
    parents: list[int], tokens: list[int], nodes: list[int], separator: int
) -> tuple[Graph, list[tuple[int, ...]]]:
    """The strings of labellings in a tree, as those of ``Strings``, and the nodes in which those of each end.

    Args:
        parents, tokens: Of each labelling of the tree the one that it grew from, and its last token.
        nodes: The labellings.
        separator: The separator, -1 for none.
    """
    needed = {0}
    for node in nodes:
        while node not in needed:
            needed.add(node)
            node = parents[node]
    order = sorted(needed)  # a labelling is younger than what it grew from
    numbers = {node: number for number, node in enumerate(order)}
    own = [tokens[node] for node in order]
    sources: list[tuple[int, ...]] = [(), *((numbers[parents[node]],) for node in order[1:])]
    separated = {parents[node]: numbers[node] for node in order[1:] if tokens[node] == separator}
    finals = []
    for node in nodes:
        if separator < 0 or node == 0:
            finals.append((numbers[node],))
            continue
        end = parents[node] if tokens[node] == separator else node
        if end not in separated:
            separated[end] = len(own)
            own.append(separator)
            sources.append((numbers[end],))
        finals.append((numbers[end], separated[end]))
    return _graph(own, sources, separator), finals


def _graph(tokens: list[int], sources: list[tuple[int, ...]], separator: int) -> Graph:
    own = np.array(tokens, np.int32)
    offsets = np.zeros(len(own) + 1, np.int64)
    np.cumsum([len(each) for each in sources], out=offsets[1:])
    flat = np.array([source for each in sources for source in each], np.int32)
    return Graph(own, offsets, flat, own == separator if separator >= 0 else own < -1)
