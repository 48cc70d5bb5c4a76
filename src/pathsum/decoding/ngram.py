"""N-gram language models: ARPA files as back-off automata in arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from pathsum import _checks, arpa
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.prefix_beam import Automaton, step

_BEGIN, _END = "<s>", "</s>"
_UNKNOWN = ("<unk>", "<UNK>")


class NGram:
    """A back-off n-gram model: P(word | words before), a state for each context.

    Attributes:
        words: the V words, "<s>", "</s>" and "<unk>" among them; their places are the classes of ``advance``.
        order: words of the longest n-gram.
        start: state behind "<s>".
        unknown: place of "<unk>", -1 where there is none.
        automaton: the arrays: see ``pathsum.kernels.numba.prefix_beam.Automaton``.
        spelled: its words as lexicons, by the labels that spell them: what decoders have made of it before.

    Notes:
        All scores are natural logarithms; ARPA files have those to base 10. A word that the model lacks is "<unk>",
        and impossible, -inf, where the model has no such word.

    Example:
        >>> from pathsum.decoding import NGram
        >>> text = '''\\\\data\\\\
        ... ngram 1=4
        ... ngram 2=1
        ...
        ... \\\\1-grams:
        ... -99 <s> -0.3
        ... -0.5 </s>
        ... -0.5 hello -0.1
        ... -1.0 world
        ...
        ... \\\\2-grams:
        ... -0.2 hello world
        ...
        ... \\\\end\\\\'''
        >>> model = NGram.parse(text.splitlines())
        >>> round(model.score(["hello", "world"]) / 2.302585093, 6)  # -0.3 - 0.5 - 0.2 - 0.5, to base 10
        -1.5
    """

    def __init__(self, words: Sequence[str], order: int, start: int, automaton: Automaton, *, bounded: bool = True):
        self.words = list(words)
        self.order = order
        self.start = start
        self._bounded = bounded
        self.automaton = automaton
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self.unknown = next((self._numbers[word] for word in _UNKNOWN if word in self._numbers), -1)
        self.spelled: dict[Any, Any] = {}
        self._last: tuple[Sequence[str], np.ndarray] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NGram:
        """Read an ARPA file, or one that gzip has packed.

        Args:
            path: The file, UTF-8.

        Returns:
            The model.

        Raises:
            InvalidValueError: (a ValueError) the file is no ARPA file; the message names the line.
            OSError: the file cannot be read.
        """
        name = os.fspath(path)
        return cls._made(arpa.read(arpa.lines_of(path, _failing(name)), _failing(name)))

    @classmethod
    def parse(cls, lines: Iterable[str]) -> NGram:
        """Read the lines of an ARPA file.

        Args:
            lines: The lines.

        Returns:
            The model.

        Raises:
            InvalidValueError: (a ValueError) as ``read``.
        """
        return cls._made(arpa.read(lines, _failing("the text")))

    @classmethod
    def _made(cls, grams: list[dict[tuple[str, ...], arpa.Gram]]) -> NGram:
        words = [gram[0] for gram in grams[0]]
        numbers = {word: number for number, word in enumerate(words)}
        coded = [{tuple(numbers[w] for w in gram): value for gram, value in level.items()} for level in grams]
        return cls(words, len(grams), *_automaton(coded, numbers))

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def number(self, word: str) -> int:
        """The place of a word in ``words``, that of "<unk>" for one that is not there, -1 where there is none."""
        return self._numbers.get(word, self.unknown)

    def numbers(self, words: Sequence[str]) -> np.ndarray:
        """The places of some words, and behind them that of any other word (W+1,)."""
        # The same list comes with every call of a decoder.
        if self._last is None or self._last[0] is not words:
            self._last = (words, np.array([*map(self.number, words), self.unknown], np.int32))
        return self._last[1]

    def score(self, words: Iterable[str], *, bos: bool = True, eos: bool = True) -> float:
        """ln P(words, "</s>").

        Args:
            words: The words, without "<s>" and "</s>".
            bos: The words begin behind "<s>".
            eos: They end in "</s>".

        Returns:
            The natural logarithm.
        """
        state, total = self.begin(bos), 0.0
        for word in words:
            score, state = self.follow(state, word)
            total += score
        return total + (self.end(state) if eos else 0.0)

    def begin(self, bos: bool = True) -> int:
        """The state before the first word: behind "<s>", or without any context."""
        return self.start if bos else 0

    def follow(self, state: int, word: str) -> tuple[float, int]:
        """ln P of a word behind a state, and the state behind both."""
        score, state = step(self.automaton, state, self.number(word))
        return float(score), int(state)

    def end(self, state: int) -> float:
        """ln P("</s>") in a state; 0 for a model that has no such word."""
        end = self._numbers.get(_END) if self._bounded else None
        return 0.0 if end is None else float(step(self.automaton, state, end)[0])

    def changed(
        self,
        *,
        offsets: Any = None,
        missing: float | None = None,
        start: int | None = None,
        bounded: bool = True,
    ) -> NGram:
        """A model of the same words whose scores differ.

        Args:
            offsets: (V,) what is added to ln P of each word wherever it stands.
            missing: ln P of a word that the model lacks, where it has no "<unk>".
            start: The state before the first word.
            bounded: False: texts begin without a context, and nothing is scored at their end.

        Returns:
            The model.

        Raises:
            InvalidValueError: (a ValueError) not as many offsets as words.
        """
        automaton = self.automaton
        if offsets is not None:
            offsets = np.asarray(offsets, np.float64)
            if offsets.shape != (len(self.words),):
                rule = f"have one entry a word, V = {len(self.words)}"
                raise InvalidValueError("NGram.changed", "offsets", rule, f"shape {offsets.shape}")
            automaton = automaton._replace(scores=automaton.scores + offsets[automaton.labels])
        if missing is not None:
            automaton = automaton._replace(missing=np.array([missing], np.float64))
        begin = start if start is not None else self.start if bounded else 0
        made = NGram(self.words, self.order, begin, automaton, bounded=bounded and self._bounded)
        made.spelled = self.spelled  # the same words, spelled alike
        return made

    def advance(self, states: Any) -> tuple[np.ndarray, np.ndarray]:
        """All words behind each of some states.

        Args:
            states: (B,) integers; ``start`` and what ``advance`` returns.

        Returns:
            ln P(word) (B, V), float64, and the states behind each word (B, V), int64.

        Raises:
            InvalidValueError: (a ValueError) a state that is none.
        """
        states = _checks.check_integers("NGram.advance", "states", np.asarray(states), (1,))
        count = len(self.automaton.backoffs)
        if states.size and not (0 <= states.min() and states.max() < count):
            raise InvalidValueError("NGram.advance", "states", f"lie in [0, {count})", states.tolist())
        scores = np.full((len(states), len(self.words)), -np.inf)
        targets = np.zeros_like(scores, dtype=np.int64)
        offsets, labels, ends, values, backoffs, weights, _ = self.automaton
        for row, onto, state in zip(scores, targets, states.tolist(), strict=True):
            contexts, owed = [(state, 0.0)], 0.0
            while state:
                owed += float(weights[state])
                state = int(backoffs[state])
                contexts.append((state, owed))
            for context, owed in reversed(contexts):
                arcs = slice(offsets[context], offsets[context + 1])
                row[labels[arcs]] = values[arcs] + owed
                onto[labels[arcs]] = ends[arcs]
        return scores, targets

    def __repr__(self) -> str:
        grams = len(self.automaton.labels)
        return f"NGram({len(self.words)} words, order {self.order}, {grams} n-grams)"


def _failing(name: str) -> arpa.Fail:
    def fail(line: int, rule: str, got: object) -> NoReturn:
        raise InvalidValueError("NGram.read", "path", rule, f"{got} at line {line} of {name}")

    return fail


def _automaton(grams: list[dict[tuple[int, ...], arpa.Gram]], numbers: dict[str, int]) -> tuple[int, Automaton]:
    """The start and the automaton of n-grams, given by the numbers of their words."""
    contexts: dict[tuple[int, ...], int] = {(): 0}
    for level in grams[:-1]:
        for gram in level:
            contexts.setdefault(gram, len(contexts))
    for level in grams[1:]:
        for gram in level:
            contexts.setdefault(gram[:-1], len(contexts))  # of a pruned model, whose own n-gram is gone
    longest = len(grams) - 1

    def known(gram: tuple[int, ...]) -> int:
        gram = gram[max(0, len(gram) - longest) :]
        while gram not in contexts:
            gram = gram[1:]
        return contexts[gram]

    backoffs = np.zeros(len(contexts), np.int32)
    weights = np.zeros(len(contexts))
    for context, state in contexts.items():
        if context:
            backoffs[state] = known(context[1:])
            own = grams[len(context) - 1].get(context)
            weights[state] = 0.0 if own is None else own.backoff
    arcs = [(contexts[gram[:-1]], gram[-1], known(gram), own.score) for level in grams for gram, own in level.items()]
    start = contexts.get((numbers[_BEGIN],), 0) if _BEGIN in numbers else 0
    return start, as_automaton(arcs, backoffs, weights, -math.inf)


def as_automaton(
    arcs: list[tuple[int, int, int, float]], backoffs: np.ndarray, weights: np.ndarray, missing: float
) -> Automaton:
    """The arrays of arcs (state, word, next state, score)."""
    table = np.array([arc[:3] for arc in arcs], np.int32).reshape(-1, 3)
    order = np.lexsort((table[:, 1], table[:, 0]))
    offsets = np.zeros(len(backoffs) + 1, np.int64)
    np.cumsum(np.bincount(table[:, 0], minlength=len(backoffs)), out=offsets[1:])
    labels, targets = np.ascontiguousarray(table[order, 1]), np.ascontiguousarray(table[order, 2])
    scores = np.array([arc[3] for arc in arcs])[order] if arcs else np.zeros(0)
    return Automaton(offsets, labels, targets, scores, backoffs, weights, np.array([missing]))


_NONE = np.zeros(0, np.int32)
EMPTY = Automaton(np.zeros(1, np.int64), _NONE, _NONE, np.zeros(0), np.zeros(1, np.int32), np.zeros(1), np.zeros(1))


def phrases(weighted: dict[tuple[int, ...], float]) -> tuple[Automaton, np.ndarray]:
    """The automaton of phrases, given by their words' numbers, and what each of its states holds of promises (S,).

    A phrase scores its weight each time that it is complete (Aho and Corasick, 1975): a state is what the words so far
    have in common with the beginning of phrases. As a part of a phrase promises, and may be dropped for what it
    promises, a search is told of the share early: a state's promise is in the scores of the arcs that lead to it, and
    is taken back where they leave it. At the end it is to be taken back once more.
    """
    states: dict[tuple[int, ...], int] = {(): 0}
    promises: dict[tuple[int, ...], float] = {(): 0.0}
    for phrase, weight in weighted.items():
        for end in range(1, len(phrase) + 1):
            states.setdefault(phrase[:end], len(states))
            share = weight * end / len(phrase) if end < len(phrase) else 0.0
            promises[phrase[:end]] = max(promises.get(phrase[:end], 0.0), share)

    def longest(suffix: tuple[int, ...]) -> tuple[int, ...]:
        while suffix not in states:
            suffix = suffix[1:]
        return suffix

    backoffs, weights, arcs = np.zeros(len(states), np.int32), np.zeros(len(states)), []
    for state, number in states.items():
        if not state:
            continue
        fallback = longest(state[1:])
        backoffs[number] = states[fallback]
        weights[number] = promises[fallback] - promises[state]
        complete = sum(weighted.get(state[begin:], 0.0) for begin in range(len(state)))
        arcs.append((states[state[:-1]], state[-1], number, complete + promises[state] - promises[state[:-1]]))
    held = np.array([promises[state] for state in states])
    return as_automaton(arcs, backoffs, weights, 0.0), held


def as_ngram(function: str, argument: str, value: Any) -> NGram | None:
    if value is not None and not isinstance(value, NGram):
        raise InvalidTypeError(function, argument, "be an NGram", type(value).__name__)
    return value
