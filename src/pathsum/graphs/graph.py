"""A weighted graph as arrays, an entry an arc, and what can be asked of it without any scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from pathsum.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from pathsum.graphs.layout import Layout

MAX_DRAWN = 100  # states and arcs that a notebook shows as a drawing
EPSILON = -1
"""The label of an arc that emits nothing and takes no frame."""


class Path(NamedTuple):
    """One path of a graph.

    Attributes:
        arcs: Numbers of its arcs, epsilon arcs included.
        labels: What they emit, one label a frame.
        score: The sum of their weights and of the scores of both ends.
    """

    arcs: tuple[int, ...]
    labels: tuple[int, ...]
    score: float


class Graph:
    """A weighted graph: arcs from state to state that emit a label each, or nothing.

    A path begins in a state that has a start score and ends in one that has a final score. Its score is the sum of
    both, of the weights of its arcs and, in a loss, of ``scores[t, label]`` of the t-th label. Sums run over *paths*: a
    string of labels that two paths spell counts twice.

    Args:
        sources: (A,) state that each arc leaves, from 0.
        destinations: (A,) state that it enters.
        labels: (A,) class that it emits, or -1: an epsilon arc, which takes no frame.
        weights: (A,) natural logs, added to the score of every path through the arc; a number is all arcs'.
        start: The state in which paths start, with score 0; a mapping from states to scores; or scores by state (S,),
            -inf where none starts.
        final: As ``start``: where paths end. ``None``: in the last state.
        outputs: (A,) a second label of each arc, such as the word that it begins, or -1; it takes no part in any sum.
            ``None``: the labels.

    Attributes:
        sources, destinations, labels, outputs: (A,) int64.
        weights: (A,) float64.
        start, final: (S,) float64, scores by state.
        num_states, num_arcs: S and A.

    Raises:
        InvalidValueError: (a ValueError) a negative state, a label below -1, a score that is NaN or +inf, sizes that
            do not match.
        InvalidTypeError: (a TypeError) states or labels that are no integers.

    Notes:
        The arrays cannot be written to. Arcs keep their order: arc k of a result is the k-th of the caller's. A weight
        of -inf makes an arc impossible; its paths are still counted and enumerated.

    Example:
        >>> from pathsum.graphs import Graph
        >>> graph = Graph([0, 0, 1], [0, 1, 1], [1, 2, 2], final={1: 0.0})  # 1* 2 2*
        >>> graph.count_paths(3)
        3
        >>> sorted(path.labels for path in graph.paths(3))
        [(1, 1, 2), (1, 2, 2), (2, 2, 2)]
    """

    sources: np.ndarray
    destinations: np.ndarray
    labels: np.ndarray
    outputs: np.ndarray
    weights: np.ndarray
    start: np.ndarray
    final: np.ndarray

    def __init__(
        self,
        sources: Any,
        destinations: Any,
        labels: Any,
        weights: Any = 0.0,
        start: Any = 0,
        final: Any = None,
        *,
        outputs: Any = None,
    ) -> None:
        self.sources = _integers("sources", sources, 0)
        count = len(self.sources)
        self.destinations = _integers("destinations", destinations, 0, count)
        self.labels = _integers("labels", labels, EPSILON, count)
        self.outputs = self.labels if outputs is None else _integers("outputs", outputs, EPSILON, count)
        self.weights = _scores("weights", weights, count)
        ends = {"start": start, "final": final}
        seen = max(
            self.sources.max(initial=-1), self.destinations.max(initial=-1), *map(_last_state, ends, ends.values())
        )
        self.num_states = int(max(seen + 1, 1))
        if final is None:
            ends["final"] = self.num_states - 1
        self.start, self.final = (_ends(name, value, self.num_states) for name, value in ends.items())
        for array in (self.sources, self.destinations, self.labels, self.outputs, self.weights, self.start, self.final):
            array.flags.writeable = False

    @property
    def num_arcs(self) -> int:
        return len(self.sources)

    def __repr__(self) -> str:
        epsilons = int((self.labels == EPSILON).sum())
        of_them = f" ({epsilons} epsilon)" if epsilons else ""
        return f"Graph({self.num_states} states, {self.num_arcs} arcs{of_them})"

    def _repr_html_(self) -> str:
        if self.num_states + self.num_arcs > MAX_DRAWN:
            return f"<code>{self!r}</code>"
        # As an image: a style within the page would be the page's.
        return f'<img alt="{self!r}" src="data:image/svg+xml,{quote(self.draw())}">'

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        format: str = "openfst",
        *,
        label_offset: int = 0,
        acceptor: bool | None = None,
    ) -> Graph:
        """Read a graph from a file.

        Args:
            path: The file.
            format: ``"openfst"``: OpenFst's binary files, "vector" of "standard" or "log" arcs. ``"att"``: the text
                that fstprint writes. Both hold costs, which are negated here. ``"k2"``: k2's text, whose arcs of label
                -1 are final scores. ``"gtn"``: gtn's text. Both of these hold scores.
            label_offset: Added to the labels of the file, but for gtn's epsilon. OpenFst's epsilon is its label 0:
                where classes are counted from 1 in the file, -1 makes them classes from 0 and epsilons -1. With 0 the
                file's label 0 is class 0, as k2 has it.
            acceptor: Of ``"att"``: whether the fourth of four columns is a cost, and not a second label. ``None``: it
                is where no line has five columns and some fourth one is no integer.

        Returns:
            The graph, its arcs in the file's order.

        Raises:
            GraphFileError: (a ValueError) the file is malformed; the message says at which line or byte.
            InvalidValueError: An unknown format.
        """
        from pathsum.graphs import formats

        return formats.read(path, format, label_offset, acceptor)

    @classmethod
    def parse(cls, text: str, format: str, *, label_offset: int = 0, acceptor: bool | None = None) -> Graph:
        """The graph of a text that a file might hold, of the format ``"att"``, ``"k2"`` or ``"gtn"``; see ``read``."""
        from pathsum.graphs import formats

        return formats.parse(text, format, label_offset, acceptor)

    def write(self, path: str | os.PathLike[str], format: str = "openfst", *, label_offset: int = 0) -> None:
        """Write the graph to a file, so that ``read`` with the same arguments gives the same paths.

        What the format cannot say is said with more states: several starts, or scores of a start, by epsilon arcs out
        of a new state; k2's final scores by arcs into one more state, its last.

        Args:
            path: The file, which is replaced.
            format: As in ``read``. OpenFst's files have weights in float32.
            label_offset: Taken from the labels: what ``read`` adds.

        Raises:
            InvalidValueError: A label that the format cannot hold, such as an epsilon in OpenFst's without
                ``label_offset=-1``; an unknown format.
        """
        from pathsum.graphs import formats

        formats.write(self, path, format, label_offset)

    @classmethod
    def from_fst(cls, fst: Any, *, label_offset: int = 0) -> Graph:
        """The graph of an object of pynini, kaldifst or k2.

        Args:
            fst: pynini's or pywrapfst's ``Fst``, kaldifst's ``StdVectorFst``, or a single ``Fsa`` of k2's; told apart
                by their methods, so that none is imported. Costs are negated; k2's scores are taken as they are.
            label_offset: As in ``read``. With pynini and kaldifst, to whom 0 is the epsilon, -1.

        Raises:
            InvalidTypeError: An object that has no such methods.
        """
        from pathsum.graphs import formats

        return formats.from_fst(fst, label_offset)

    def trim(self) -> Graph:
        """The graph without the states that are on no path from a start to an end, and without their arcs.

        States and arcs keep their order. Of a graph without any path one state without arcs is left.
        """
        useful = self.useful
        number = np.cumsum(useful) - 1
        kept = useful[self.sources] & useful[self.destinations]
        if not useful.any():
            return Graph([], [], [], final={})
        return Graph(
            number[self.sources[kept]],
            number[self.destinations[kept]],
            self.labels[kept],
            self.weights[kept],
            self.start[useful],
            self.final[useful],
            outputs=self.outputs[kept],
        )

    def union(self, *others: Graph) -> Graph:
        """The graphs side by side: all paths of each; states and arcs of a later one are counted on."""
        graphs = (self, *others)
        first = np.cumsum([0, *(graph.num_states for graph in graphs)])
        return Graph(
            np.concatenate([graph.sources + n for graph, n in zip(graphs, first, strict=False)]),
            np.concatenate([graph.destinations + n for graph, n in zip(graphs, first, strict=False)]),
            *(np.concatenate([getattr(g, name) for g in graphs]) for name in ("labels", "weights", "start", "final")),
            outputs=np.concatenate([graph.outputs for graph in graphs]),
        )

    def check(self, num_classes: int | None = None) -> Graph:
        """Raise where something is wrong with the graph that a loss would not tell; else return the graph.

        Args:
            num_classes: How many classes there are to emit; ``None``: any number.

        Raises:
            InvalidValueError: Epsilon arcs form a cycle, a label is not below ``num_classes``, or a state is on no
                path: ``trim`` takes such states away.
        """
        self.epsilon_levels  # noqa: B018 (raises)
        if num_classes is not None:
            self.check_labels("Graph.check", num_classes)
        useless = ~self.useful
        if useless.any():
            raise InvalidValueError(
                "Graph.check", "every state", "be on a path", f"state {int(useless.argmax())}, on none"
            )
        return self

    def check_labels(
        self, function: str, num_classes: int, argument: str = "a graph", sample: int | None = None
    ) -> None:
        """Raise where a label is not below ``num_classes``."""
        if self.labels.max(initial=-1) >= num_classes:
            arc = int((self.labels >= num_classes).argmax())
            rule = f"have labels in [0, C) with C = {num_classes}"
            raise InvalidValueError(function, argument, rule, f"{int(self.labels[arc])} on arc {arc}", sample)

    def check_posed(self, function: str, argument: str, num_classes: int, sample: int | None) -> None:
        """Raise where a loss of so many classes cannot be had of the graph."""
        try:
            self.epsilon_levels  # noqa: B018 (raises)
        except InvalidValueError as error:
            _, _, got = str(error).rpartition("; got ")
            raise InvalidValueError(function, argument, "have no cycle of epsilon arcs", got, sample) from None
        self.check_labels(function, num_classes, argument, sample)

    def count_paths(self, num_frames: int) -> int:
        """How many paths emit so many labels, exactly; in time of frames times arcs."""
        order = self._epsilons_in_order()
        emitting = np.flatnonzero(self.labels != EPSILON)
        counts = self._relaxed([int(score > -np.inf) for score in self.start], order)
        for _ in range(num_frames):
            following = [0] * self.num_states
            for source, to in zip(self.sources[emitting].tolist(), self.destinations[emitting].tolist(), strict=True):
                following[to] += counts[source]
            counts = self._relaxed(following, order)
        return sum(count for count, score in zip(counts, self.final, strict=True) if score > -np.inf)

    def _relaxed(self, counts: list[int], order: np.ndarray) -> list[int]:
        for source, to in zip(self.sources[order].tolist(), self.destinations[order].tolist(), strict=True):
            counts[to] += counts[source]
        return counts

    def paths(self, num_frames: int) -> Iterator[Path]:
        """Every path that emits so many labels; there may be exponentially many."""
        self.epsilon_levels  # noqa: B018 (raises where there are infinitely many)
        leaving = [np.flatnonzero(self.sources == state).tolist() for state in range(self.num_states)]
        ends = self._reaching_the_end(num_frames)

        def walk(state: int, arcs: tuple[int, ...], labels: tuple[int, ...], score: float) -> Iterator[Path]:
            left = num_frames - len(labels)
            if left == 0 and self.final[state] > -np.inf:
                yield Path(arcs, labels, score + float(self.final[state]))
            for arc in leaving[state]:
                label, to = int(self.labels[arc]), int(self.destinations[arc])
                emits = label != EPSILON
                if left - emits >= 0 and ends[left - emits, to]:
                    further = (*labels, label) if emits else labels
                    yield from walk(to, (*arcs, arc), further, score + float(self.weights[arc]))

        for state in np.flatnonzero(self.start > -np.inf).tolist():
            if ends[num_frames, state]:
                yield from walk(state, (), (), float(self.start[state]))

    def _reaching_the_end(self, num_frames: int) -> np.ndarray:
        """(T+1, S) whether a path from a state can end after exactly so many labels more."""
        order = self._epsilons_in_order()[::-1]
        emitting = self.labels != EPSILON
        ends = np.zeros((num_frames + 1, self.num_states), bool)
        ends[0] = self.final > -np.inf
        for left in range(num_frames + 1):
            if left > 0:
                ends[left, self.sources[emitting & ends[left - 1][self.destinations]]] = True
            for arc in order:
                ends[left, self.sources[arc]] |= ends[left, self.destinations[arc]]
        return ends

    def draw(self, format: str = "svg", *, names: Mapping[int, str] | Sequence[str] | None = None) -> str:
        """The graph as a picture.

        Args:
            format: ``"svg"``, or ``"dot"``: text for graphviz.
            names: What to write for each label; the numbers where ``None``.

        Returns:
            The text of the picture. States on the same distance from the start stand in one column; ends have a double
            border, and arcs between the same two states share a line.
        """
        from pathsum.graphs import drawing

        return drawing.draw(self, format, names)

    @cached_property
    def useful(self) -> np.ndarray:
        """(S,) whether a state is on a path from a start to an end, of any length."""
        forward = _reached(self.start > -np.inf, self.sources, self.destinations)
        return forward & _reached(self.final > -np.inf, self.destinations, self.sources)

    @cached_property
    def layout(self) -> Layout:
        """The graph as kernels walk it."""
        from pathsum.graphs.layout import lay_out

        return lay_out(self)

    def _epsilons_in_order(self) -> np.ndarray:
        """Numbers of the epsilon arcs, those into a state before those out of it."""
        epsilons = np.flatnonzero(self.labels == EPSILON)
        return epsilons[np.argsort(self.epsilon_levels[self.destinations[epsilons]], kind="stable")]

    @cached_property
    def epsilon_levels(self) -> np.ndarray:
        """(S,) how many epsilon arcs a path can take at most on its way into each state, one after another.

        Raises:
            InvalidValueError: Epsilon arcs form a cycle; the message names a state on it.
        """
        epsilons = np.flatnonzero(self.labels == EPSILON)
        sources, destinations = self.sources[epsilons].tolist(), self.destinations[epsilons].tolist()
        leaving: dict[int, list[int]] = {}
        waiting_for = [0] * self.num_states
        for source, to in zip(sources, destinations, strict=True):
            leaving.setdefault(source, []).append(to)
            waiting_for[to] += 1
        levels = np.zeros(self.num_states, np.int64)
        ready = [state for state in leaving if waiting_for[state] == 0]
        while ready:
            state = ready.pop()
            for to in leaving.get(state, ()):
                levels[to] = max(levels[to], levels[state] + 1)
                waiting_for[to] -= 1
                if waiting_for[to] == 0:
                    ready.append(to)
        if any(waiting_for):
            before = {to: source for source, to in zip(sources, destinations, strict=True) if waiting_for[source]}
            state, seen = next(iter(before.values())), set[int]()
            while state not in seen:
                seen.add(state)
                state = before[state]
            rule = "have no cycle of epsilon arcs"
            raise InvalidValueError("Graph", "a graph", rule, f"one through state {state}")
        levels.flags.writeable = False
        return levels


def _reached(from_states: np.ndarray, sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
    """(S,) the states that arcs lead to, those given included."""
    order = np.argsort(sources, kind="stable")
    first = np.searchsorted(sources[order], np.arange(len(from_states) + 1))
    following = destinations[order]
    reached, waiting = from_states.copy(), np.flatnonzero(from_states).tolist()
    while waiting:
        state = waiting.pop()
        for to in following[first[state] : first[state + 1]].tolist():
            if not reached[to]:
                reached[to] = True
                waiting.append(to)
    return reached


def _integers(argument: str, values: Any, minimum: int, count: int | None = None) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise InvalidTypeError("Graph", argument, "be integers", array.dtype.name)
    if array.ndim != 1 or (count is not None and len(array) != count):
        rule = "have shape (A,)" if count is None else f"have one entry an arc, A = {count}"
        raise InvalidValueError("Graph", argument, rule, f"shape {array.shape}")
    if array.size and (array.min() < minimum or array.max() >= 2**31 - 1):
        arc = int(((array < minimum) | (array >= 2**31 - 1)).argmax())
        raise InvalidValueError("Graph", argument, f"lie in [{minimum}, 2**31 - 1)", f"{array[arc]} on arc {arc}")
    return array.astype(np.int64)


def _scores(argument: str, values: Any, count: int) -> np.ndarray:
    """Numbers below infinity; a single one stands for all."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError("Graph", argument, "be numbers", type(values).__name__) from error
    if array.ndim > 1 or (array.ndim == 1 and len(array) != count):
        raise InvalidValueError("Graph", argument, f"be a number or have {count} entries", f"shape {array.shape}")
    array = np.array(np.broadcast_to(array, (count,)))
    if not (array < np.inf).all():
        place = int((~(array < np.inf)).argmax())
        raise InvalidValueError("Graph", argument, "be neither NaN nor +inf", f"{array[place]} at {place}")
    return array


def _last_state(argument: str, ends: Any) -> int:
    """The highest state that the starts or ends speak of."""
    if ends is None:
        return -1
    if isinstance(ends, Mapping):
        states = list(ends)
        wrong = [state for state in states if not _is_state(state)]
        if wrong:
            raise InvalidValueError("Graph", argument, "map states, from 0, to scores", wrong[0])
        return max(states, default=-1)
    if isinstance(ends, (int, np.integer)) and not isinstance(ends, bool):
        if not _is_state(ends):
            raise InvalidValueError("Graph", argument, "be a state, from 0", ends)
        return int(ends)
    return len(np.atleast_1d(ends)) - 1


def _is_state(state: Any) -> bool:
    return isinstance(state, (int, np.integer)) and not isinstance(state, bool) and 0 <= int(state) < 2**31 - 1


def _ends(argument: str, ends: Any, num_states: int) -> np.ndarray:
    if isinstance(ends, (int, np.integer)):
        ends = {int(ends): 0.0}
    if not isinstance(ends, Mapping):
        if np.ndim(ends) != 1:
            raise InvalidTypeError("Graph", argument, "be a state, a mapping or scores by state", type(ends).__name__)
        return _scores(argument, ends, num_states)
    scores = np.full(num_states, -np.inf)
    scores[list(ends)] = _scores(argument, list(ends.values()), len(ends))
    return scores
