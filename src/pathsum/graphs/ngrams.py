"""N-gram models in ARPA's format as acceptors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from pathsum import arpa
from pathsum.errors import GraphFileError
from pathsum.graphs.graph import EPSILON, Graph

START, END = "<s>", "</s>"
# ARPA's stand-in for the log of 0.
_NOTHING = -99.0 * arpa.LN_10


def ngram(path: str | os.PathLike[str], tokens: Mapping[str, int] | Sequence[str] | None = None) -> Graph:
    """The acceptor of an n-gram model: a state a history, and an epsilon arc from each to the next shorter one.

    Args:
        path: An ARPA file, or one that gzip has packed.
        tokens: The label of each word; a list names the words of labels 0, 1, ... N-grams with other words are left
            out, and so are those that go on behind ``</s>``. ``None``: the words are numbers, their own labels.

    Returns:
        Weights are natural logs. Paths start in the history ``<s>``, where the file has such a one, and end with what
        ``</s>`` costs.

    Raises:
        GraphFileError: (a ValueError) the file is malformed; the message names the line.

    Notes:
        A back-off arc may be taken even where the longer history knows the word, so that such a word is two paths.
        Their sum is a little more than the model's probability; the best path is the model's, where backing off is
        never better. Probabilities of -99 count as impossible.

    Example:
        >>> import os, tempfile
        >>> from pathsum.graphs import ngram
        >>> lines = ["\\\\data\\\\", "ngram 1=2", "\\\\1-grams:", "-0.5 1", "-0.2 </s>", "\\\\end\\\\"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "lm.arpa")
        ...     _ = open(path, "w").write("\\n".join(lines))
        ...     ngram(path)
        Graph(1 states, 1 arcs)
    """
    entries = _read(path)
    labels = None if tokens is None else dict(tokens) if isinstance(tokens, Mapping) else _numbered(tokens)

    def label_of(word: str, line: int) -> int | None:
        if labels is not None:
            return labels.get(word)
        if not word.isdigit():
            raise GraphFileError(
                str(path), f"line {line}", "have numbers as words where no tokens are given", repr(word)
            )
        return int(word)

    order = max((len(words) for words in entries), default=1)
    # A state is a history that something follows, by a longer n-gram or by a back-off.
    histories: dict[tuple[str, ...], int] = {(): 0}
    for words in sorted(entries, key=len):
        for history in (words[:-1], words if len(words) < order and words[-1] != END else ()):
            histories.setdefault(history, len(histories))
    arcs, final = [], dict[int, float]()
    for words, entry in entries.items():
        source, word = histories[words[:-1]], words[-1]
        if entry.score > -math.inf and word == END:
            final[source] = entry.score
        elif entry.score > -math.inf and word != START:
            label = label_of(word, entry.line)
            following = words
            while following not in histories:
                following = following[1:]
            if label is not None:
                arcs.append((source, histories[following], label, entry.score))
    for history, state in histories.items():
        if history:
            shorter = history[1:]
            while shorter not in histories:
                shorter = shorter[1:]
            backoff = entries[history].backoff if history in entries else 0.0
            arcs.append((state, histories[shorter], EPSILON, backoff))
    sources, to, emitted, weights = map(list, zip(*arcs, strict=True)) if arcs else [[]] * 4
    start = histories.get((START,), 0)
    return Graph(sources, to, emitted, weights, start, {0: -np.inf, len(histories) - 1: -np.inf} | final).trim()


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: label for label, token in enumerate(tokens)}


def _read(path: str | os.PathLike[str]) -> dict[tuple[str, ...], arpa.Gram]:
    """N-grams by their words; what is ARPA's log of 0 is impossible."""

    def fail(line: int, rule: str, got: object) -> NoReturn:
        raise GraphFileError(str(path), f"line {line}", rule, got)

    def log(value: float) -> float:
        return value if value > _NOTHING else -math.inf

    return {
        words: gram._replace(score=log(gram.score), backoff=log(gram.backoff))
        for level in arpa.read(arpa.lines_of(path, fail), fail)
        for words, gram in level.items()
    }
