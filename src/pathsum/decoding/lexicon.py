"""Lexicons: the words that may be decoded, and how each is spelled in classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.prefix_beam import Trie

Spelling = tuple[int, ...]


class Lexicon:
    """Words with one spelling or more each, as a trie of classes.

    Attributes:
        words: the W words, each once.
        spellings: of each word its spellings, tuples of classes.

    Example:
        >>> from pathsum.decoding import Lexicon
        >>> lexicon = Lexicon.from_words(["cab", "ace"], lambda word: [ord(letter) - 96 for letter in word])
        >>> lexicon.words, lexicon.spellings
        (['cab', 'ace'], [[(3, 1, 2)], [(1, 3, 5)]])
    """

    def __init__(self, entries: Iterable[tuple[str, Sequence[int]]], *, _function: str = "Lexicon"):
        found: dict[str, list[Spelling]] = {}
        for word, spelling in entries:
            tokens = _checked(_function, word, spelling)
            spellings = found.setdefault(word, [])
            if tokens not in spellings:
                spellings.append(tokens)
        self.words = list(found)
        self.spellings = list(found.values())
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self._tries: dict[int, _Tree] = {}
        self._checked: set[tuple[int, int, int]] = set()

    @classmethod
    def from_words(cls, words: Iterable[str], tokenizer: Callable[[str], Sequence[int]]) -> Lexicon:
        """The lexicon of words that a tokenizer spells.

        Args:
            words: The words.
            tokenizer: ``tokenizer(word)`` are the classes of its tokens.

        Returns:
            The lexicon.

        Raises:
            InvalidValueError: (a ValueError) a word without tokens; the message names it.
            InvalidTypeError: (a TypeError) tokens that are no integers.
        """
        if not callable(tokenizer):
            raise InvalidTypeError("Lexicon.from_words", "tokenizer", "be callable", type(tokenizer).__name__)
        return cls(((word, tokenizer(word)) for word in words), _function="Lexicon.from_words")

    @classmethod
    def read(cls, path: str | os.PathLike[str], tokens: Sequence[str] | Mapping[str, int] | None = None) -> Lexicon:
        """Read a file of lines ``word token token ...``, as flashlight's and Kaldi's.

        Args:
            path: The file, UTF-8. A word may have several lines, a spelling in each.
            tokens: The classes' names, or their numbers by name. ``None``: the file has numbers.

        Returns:
            The lexicon.

        Raises:
            InvalidValueError: (a ValueError) a line without tokens, or with one that is not among ``tokens``; the
                message names the line.
            OSError: the file cannot be read.
        """
        numbers = None
        if tokens is not None:
            numbers = tokens if isinstance(tokens, Mapping) else {name: number for number, name in enumerate(tokens)}
        entries = []
        with open(path, encoding="utf-8") as file:
            for line_number, line in enumerate(file, 1):
                word, *spelled = line.split() or [""]
                if not word:
                    continue
                place = f"at line {line_number} of {os.fspath(path)}"
                try:
                    spelling = [int(token) if numbers is None else numbers[token] for token in spelled]
                except (KeyError, ValueError) as error:
                    rule = "have known tokens" if numbers is not None else "have classes, which are numbers,"
                    raise InvalidValueError("Lexicon.read", "path", rule, f"{error} {place}") from error
                if not spelling:
                    raise InvalidValueError("Lexicon.read", "path", "have tokens behind each word", f"{word!r} {place}")
                entries.append((word, spelling))
        return cls(entries, _function="Lexicon.read")

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def entries(self) -> Iterator[tuple[str, Spelling]]:
        """Each word with each of its spellings."""
        for word, spellings in zip(self.words, self.spellings, strict=True):
            yield from ((word, spelling) for spelling in spellings)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Lexicon({len(self.words)} words, {sum(map(len, self.spellings))} spellings)"

    def tree(self, separator: int) -> _Tree:
        """The trie of the spellings, without the separators that they end in."""
        if separator not in self._tries:
            self._tries[separator] = _Tree([
                [_stripped(spelling, separator) for spelling in spellings] for spellings in self.spellings
            ])  # fmt: skip
        return self._tries[separator]

    def check(self, function: str, num_classes: int, blank: int, separator: int) -> None:
        """Tokens must be classes other than the blank, and the separator may only be at a spelling's end."""
        if (num_classes, blank, separator) in self._checked:
            return
        for word, spelling in self.entries():
            for token in spelling:
                if not 0 <= token < num_classes or token == blank:
                    rule = f"have tokens in [0, {num_classes}) other than the blank"
                    raise InvalidValueError(function, "lexicon", rule, f"{token} in {word!r}")
            stripped = _stripped(spelling, separator)
            if separator in stripped or not stripped:
                rule = f"have the separator, {separator}, nowhere but at the end of a spelling"
                raise InvalidValueError(function, "lexicon", rule, f"{list(spelling)} of {word!r}")
        self._checked.add((num_classes, blank, separator))


def _checked(function: str, word: Any, spelling: Any) -> Spelling:
    if not isinstance(word, str):
        raise InvalidTypeError(function, "words", "be texts", type(word).__name__)
    array = np.asarray(spelling)
    if array.ndim != 1 or not array.size:
        raise InvalidValueError(function, "words", "have tokens", f"{spelling!r} of {word!r}")
    if array.dtype.kind not in "iu":
        raise InvalidTypeError(function, "words", "have integers for tokens", f"{spelling!r} of {word!r}")
    return tuple(array.tolist())


def _stripped(spelling: Spelling, separator: int) -> Spelling:
    while spelling and spelling[-1] == separator:
        spelling = spelling[:-1]
    return spelling


class _Tree:
    """A trie before it is known what its words are worth."""

    def __init__(self, spellings: list[list[Spelling]]):
        self.spellings = spellings
        children: list[dict[int, int]] = [{}]
        parents, depths, ends = [0], [0], []
        for word, own in enumerate(spellings):
            for spelling in dict.fromkeys(own):
                node = 0
                for token in spelling:
                    child = children[node].get(token)
                    if child is None:
                        child = children[node][token] = len(children)
                        children.append({})
                        parents.append(node)
                        depths.append(depths[node] + 1)
                    node = child
                ends.append((node, word))
        count = len(children)
        self.parents, self.depths = np.array(parents, np.int32), np.array(depths, np.int32)
        arcs = [(node, token, child) for node, own in enumerate(children) for token, child in sorted(own.items())]
        table = np.array(arcs, np.int32).reshape(-1, 3)
        self.offsets = _offsets(table[:, 0], count)
        self.tokens, self.children = np.ascontiguousarray(table[:, 1]), np.ascontiguousarray(table[:, 2])
        ends.sort()
        pairs = np.array(ends, np.int32).reshape(-1, 2)
        self.end_nodes, self.words = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        self.word_offsets = _offsets(self.end_nodes, count)
        single = (np.diff(self.offsets) == 0) & (np.diff(self.word_offsets) == 1)
        self.only_words = np.full(count, -1, np.int32)
        self.only_words[single] = self.words[self.word_offsets[:-1][single]]
        self._last: tuple[np.ndarray, np.ndarray, float, Trie] | None = None

    def worth(self, scores: np.ndarray, bonuses: np.ndarray, unknown: float) -> Trie:
        """The trie with what the best word below a node promises.

        Args:
            scores: (W,) what each word is worth as soon as it can be the one.
            bonuses: (W,) what it is worth by the share of its tokens that are there.
            unknown: What a word that is not in the trie is worth.
        """
        # The same come with every call of a decoder.
        if self._last is not None:
            *known, trie = self._last
            if all(np.array_equal(*pair) for pair in zip(known, (scores, bonuses, unknown), strict=True)):
                return trie
        count = len(self.parents)
        potentials = np.full(count + 1, -np.inf)
        shares = np.zeros(count)
        lengths = np.maximum(self.depths[self.end_nodes], 1)
        np.maximum.at(potentials, self.end_nodes, scores[self.words])
        np.maximum.at(shares, self.end_nodes, bonuses[self.words] / lengths)
        for depth in range(int(self.depths.max()), 0, -1):
            nodes = np.flatnonzero(self.depths == depth)
            np.maximum.at(potentials, self.parents[nodes], potentials[nodes])
            np.maximum.at(shares, self.parents[nodes], shares[nodes])
        potentials[:count] += shares * self.depths
        potentials[0], potentials[count] = 0.0, unknown
        trie = Trie(self.offsets, self.tokens, self.children, self.word_offsets, self.words, self.only_words,
                    potentials)  # fmt: skip
        self._last = (scores, bonuses, unknown, trie)
        return trie


def _offsets(sources: np.ndarray, count: int) -> np.ndarray:
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=count), out=offsets[1:])
    return offsets
