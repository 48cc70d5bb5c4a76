"""How long a token lasts: the topologies of CTC, alone and over an acceptor of tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs.graph import EPSILON, Graph

KINDS = ("standard", "modified", "simple")


def ctc_topology(num_classes: int, blank: int = 0, kind: str = "standard") -> Graph:
    """The graph of all labellings of frames, whose outputs are the tokens that they read as.

    Args:
        num_classes: C, the blank included.
        blank: The class that stands for no token; negative counts from the end.
        kind: As in ``over_ctc``.

    Returns:
        Of ``"standard"`` C states, the class emitted last, and C*C arcs; each labelling is one path, so that of scores
        that are log-probabilities the sum is 1. Of ``"simple"`` one state, and the same. Of ``"modified"`` a labelling
        is as many paths as there are strings that it may stand for.

    Example:
        >>> from pathsum.graphs import ctc_topology
        >>> ctc_topology(3).count_paths(4)
        81
    """
    blank = _blank("ctc_topology", blank, num_classes)
    tokens = [token for token in range(num_classes) if token != blank]
    anything = Graph([0] * len(tokens), [0] * len(tokens), tokens, final=0)
    return over_ctc(anything, num_classes, blank, kind)


def over_ctc(acceptor: Graph, num_classes: int, blank: int = 0, kind: str = "standard") -> Graph:
    """The graph of all labellings of frames that read as a string of an acceptor, as often as it has paths.

    Args:
        acceptor: A graph of tokens, such as ``linear``, ``words`` and ``ngram`` make. Its outputs are those of the arcs
            that begin a token.
        num_classes: C, the blank included.
        blank: The class that stands for no token; negative counts from the end.
        kind: ``"standard"``: a token lasts one frame or more, blanks may stand anywhere, and one must between two equal
            tokens. ``"modified"``: the same, but none must. ``"simple"``: a token lasts one frame.

    Returns:
        A graph whose states are the acceptor's, each as often as there are tokens it can be entered by, and once more
        for the blank. Its size is in proportion to the pairs of a token into a state and an arc out of it.

    Raises:
        InvalidValueError: A label of the acceptor that is the blank, or not below C; an unknown kind; epsilon arcs that
            form a cycle.

    Example:
        >>> from pathsum.graphs import linear, over_ctc
        >>> [over_ctc(linear([1, 1]), 2, kind=kind).count_paths(4) for kind in ("standard", "modified", "simple")]
        [5, 15, 6]
    """
    function = "over_ctc"
    if kind not in KINDS:
        raise InvalidValueError(function, "kind", f"be one of {', '.join(KINDS)}", repr(kind))
    blank = _blank(function, blank, num_classes)
    acceptor.check_labels(function, num_classes)
    if (acceptor.labels == blank).any():
        arc = int((acceptor.labels == blank).argmax())
        raise InvalidValueError(function, "the acceptor", f"not emit the blank, {blank}", f"it on arc {arc}")
    acceptor.epsilon_levels  # noqa: B018 (raises)
    return _Product(acceptor, blank, kind).graph()


class _Product:
    """An acceptor's states by what was emitted last, found from the starts on.

    A state is (state of the acceptor, label of the last frame, whether an epsilon arc has led to it). Between two
    tokens epsilon arcs are taken at last, right before the token or the end: were a frame more to be spent behind one,
    the same labelling would be as many paths as there are ways to divide its frames.
    """

    def __init__(self, acceptor: Graph, blank: int, kind: str) -> None:
        self.acceptor, self.blank, self.kind = acceptor, blank, kind
        order = np.argsort(acceptor.sources, kind="stable")
        first = np.searchsorted(acceptor.sources[order], np.arange(acceptor.num_states + 1))
        self.leaving = [order[a:b].tolist() for a, b in pairwise(first.tolist())]
        self.to, self.labels = acceptor.destinations.tolist(), acceptor.labels.tolist()
        self.weights, self.outputs = acceptor.weights.tolist(), acceptor.outputs.tolist()
        self.numbers: dict[tuple[int, int, bool], int] = {}
        self.arcs: list[tuple[int, int, int, float, int]] = []

    def graph(self) -> Graph:
        starts = np.flatnonzero(self.acceptor.start > -np.inf).tolist()
        start = {self._number((state, self.blank, False)): float(self.acceptor.start[state]) for state in starts}
        number = 0
        states = list(self.numbers)
        while number < len(states):
            self._leave(number, states[number])
            states += list(self.numbers)[len(states) :]
            number += 1
        ends = {n: float(self.acceptor.final[state]) for (state, _, _), n in self.numbers.items()}
        final = {n: score for n, score in ends.items() if score > -np.inf}
        sources, to, labels, weights, outputs = map(list, zip(*self.arcs, strict=True)) if self.arcs else [[]] * 5
        return Graph(sources, to, labels, weights, start, final, outputs=outputs)

    def _leave(self, number: int, node: tuple[int, int, bool]) -> None:
        state, last, moved = node
        if not moved:
            self._add(number, (state, self.blank, False), self.blank, 0.0, EPSILON)
            if last != self.blank and self.kind != "simple":
                self._add(number, node, last, 0.0, EPSILON)
        for arc in self.leaving[state]:
            label, to = self.labels[arc], self.to[arc]
            if label == EPSILON:
                # Which token was the last matters where a blank has to part it from the next.
                kept = last if self.kind == "standard" else self.blank
                self._add(number, (to, kept, True), EPSILON, self.weights[arc], self.outputs[arc])
            elif label != last or self.kind != "standard":
                entered = (to, self.blank if self.kind == "simple" else label, False)
                self._add(number, entered, label, self.weights[arc], self.outputs[arc])

    def _add(self, source: int, to: tuple[int, int, bool], label: int, weight: float, output: int) -> None:
        self.arcs.append((source, self._number(to), label, weight, output))

    def _number(self, node: tuple[int, int, bool]) -> int:
        return self.numbers.setdefault(node, len(self.numbers))


def _blank(function: str, blank: Any, num_classes: Any) -> int:
    for name, value in (("blank", blank), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InvalidTypeError(function, name, "be an int", type(value).__name__)
    if num_classes < 1:
        raise InvalidValueError(function, "num_classes", "be at least 1", num_classes)
    if not -num_classes <= blank < num_classes:
        raise InvalidValueError(function, "blank", f"lie in [{-num_classes}, {num_classes})", blank)
    return int(blank) % int(num_classes)
