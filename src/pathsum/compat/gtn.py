"""gtn's graphs as far as its CTC and ASG recipes need them: made arc by arc, composed, summed, differentiated.

Weights and gradients are torch's, in float64, and are handed out in float32 as the peer does. A composition with a
linear graph, the frames of a recording, is remembered as the question that it is: the sum over its paths is
``lattice_score``'s, and the lattice of frames by arcs is made only where it is asked for. Not kept: epsilons in a
composition without a linear graph, and lists of graphs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import graphs
from pathsum.compat.conventions import checked
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.torch import lattice_align, lattice_score

epsilon = -1


class Graph:
    """``gtn.Graph``.

    Args:
        calc_grad: Whether there is to be a gradient of the weights.

    Example:
        >>> from pathsum.compat import gtn
        >>> graph = gtn.Graph()
        >>> first, last = graph.add_node(True), graph.add_node(False, True)
        >>> graph.add_arc(first, last, 1), graph.add_arc(first, last, 2)
        (0, 1)
        >>> score = gtn.forward_score(graph)
        >>> round(score.item(), 4)
        0.6931
        >>> gtn.backward(score)
        >>> graph.grad().weights_to_list()
        [0.5, 0.5]
    """

    @checked
    def __init__(self, calc_grad: bool = True) -> None:
        self.calc_grad = calc_grad
        self._starts: list[bool] = []
        self._accepts: list[bool] = []
        self._arcs: list[tuple[int, int, int, int]] = []
        self._weights: Tensor = torch.zeros(0, dtype=torch.float64, device="cpu")
        self._added: list[float] = []
        # Of a linear graph its frames and labels; of a composition with one, what was composed.
        self._frames: tuple[int, int] | None = None
        self._parts: tuple[Graph, Graph] | None = None

    @checked
    def add_node(self, start: bool = False, accept: bool = False) -> int:
        """A node more, and its number."""
        self._become_plain()
        self._starts.append(start)
        self._accepts.append(accept)
        return len(self._starts) - 1

    @checked
    def add_arc(self, src_node: int, dst_node: int, label: int, olabel: int | None = None, weight: float = 0.0) -> int:
        """An arc more, and its number; -1 is the label of an epsilon."""
        self._become_plain()
        for name, node in (("src_node", src_node), ("dst_node", dst_node)):
            if not 0 <= node < len(self._starts):
                raise InvalidValueError("Graph.add_arc", name, f"lie in [0, {len(self._starts)})", node)
        self._arcs.append((src_node, dst_node, int(label), int(label if olabel is None else olabel)))
        self._added.append(weight)
        return len(self._arcs) - 1

    def num_nodes(self) -> int:
        self._become_plain()
        return len(self._starts)

    def num_arcs(self) -> int:
        self._become_plain()
        return len(self._arcs)

    def arc_sort(self, olabel: bool = False) -> None:
        """Does nothing: arcs may be in any order."""

    def item(self) -> float:
        """The weight of a graph that has one arc."""
        (weight,) = self._tensor().tolist()
        return weight

    def weights_to_list(self) -> list[float]:
        return self.weights_to_numpy().tolist()

    def weights_to_numpy(self) -> np.ndarray:
        return self._tensor().detach().numpy().astype(np.float32)

    def labels_to_list(self, ilabel: bool = True) -> list[int]:
        self._become_plain()
        return [arc[2 if ilabel else 3] for arc in self._arcs]

    def set_weights(self, weights: int | Sequence[float] | np.ndarray) -> None:
        """Weights of all arcs: a list, an array, or the address of as many float32."""
        count = len(self._tensor())
        if isinstance(weights, int):
            weights = np.ctypeslib.as_array(ctypes.cast(weights, ctypes.POINTER(ctypes.c_float)), (count,))
        values = np.array(weights, np.float64).ravel()
        if len(values) != count:
            raise InvalidValueError("Graph.set_weights", "weights", f"have one entry an arc, {count}", len(values))
        gradient = self._weights.grad
        self._weights = torch.from_numpy(values).requires_grad_(self.calc_grad)
        self._weights.grad = gradient

    def grad(self) -> Graph:
        """The same graph, its weights being their gradient."""
        if self._weights.grad is None:
            raise InvalidValueError("Graph.grad", "graph", "have a gradient, by backward of what it is part of", None)
        found = Graph(False)
        found._starts, found._accepts = list(self._starts), list(self._accepts)
        found._arcs, found._frames, found._weights = list(self._arcs), self._frames, self._weights.grad
        return found

    def zero_grad(self) -> None:
        self._weights.grad = None

    def _tensor(self) -> Tensor:
        """The weights (A,), a leaf of torch's unless the graph was composed."""
        self._become_plain() if self._parts else None
        if self._added:
            together = [*self._weights.tolist(), *self._added]
            self._weights = torch.tensor(together, dtype=torch.float64, device="cpu").requires_grad_(self.calc_grad)
            self._added = []
        return self._weights

    def _become_plain(self) -> None:
        """Have the nodes and arcs that were only spoken of."""
        if self._frames is not None:
            (count, labels), self._frames = self._frames, None
            self._starts = [True, *[False] * count]
            self._accepts = [*[False] * count, True]
            self._arcs = [(t, t + 1, c, c) for t in range(count) for c in range(labels)]
        if self._parts is not None:
            parts, self._parts = self._parts, None
            _compose(self, *parts)


@checked
def linear_graph(M: int, N: int, calc_grad: bool = True) -> Graph:
    """``gtn.linear_graph``: M arcs in a row, each of N labels. Weight N*t + c is that of label c in frame t."""
    for name, count, most in (("M", M, 2**31), ("N", N, 2**31 // max(M, 1))):
        if not 0 <= count <= most:
            raise InvalidValueError("linear_graph", name, f"lie in [0, {most}]", count)
    graph = Graph(calc_grad)
    graph._frames = M, N
    graph._weights = torch.zeros(M * N, dtype=torch.float64, device="cpu").requires_grad_(calc_grad)
    return graph


@checked
def scalar_graph(weight: float, calc_grad: bool = True) -> Graph:
    """``gtn.scalar_graph``: one arc."""
    graph = linear_graph(1, 1, calc_grad)
    graph.set_weights([weight])
    return graph


def compose(g1: Graph, g2: Graph) -> Graph:
    """``gtn.compose``: the paths whose output by the first graph is the input of the second.

    Raises:
        InvalidValueError: Where the sum is asked for: epsilons, and neither graph is linear.
    """
    graph = Graph(g1.calc_grad or g2.calc_grad)
    graph._parts = g1, g2
    return graph


def intersect(g1: Graph, g2: Graph) -> Graph:
    """``gtn.intersect``: what two acceptors both accept.

    Example:
        >>> from pathsum.compat import gtn
        >>> frames, every = gtn.linear_graph(3, 2), gtn.Graph()
        >>> every.add_node(True, True), every.add_arc(0, 0, 1)
        (0, 0)
        >>> frames.set_weights([0.0, 1.0, 0.0, 2.0, 0.0, 3.0])
        >>> gtn.forward_score(gtn.intersect(frames, every)).item()
        6.0
    """
    return compose(g1, g2)


def forward_score(g: Graph) -> Graph:
    """``gtn.forward_score``: the log-sum over all paths, as a graph of one arc.

    Raises:
        InvalidValueError: The graph has a cycle, of which the peer says so too.
    """
    scores, acceptor, weights = _question(g)
    found = lattice_score(scores[:, None], acceptor, weights=weights)
    return _scalar(found)


def viterbi_path(g: Graph) -> Graph:
    """``gtn.viterbi_path`` of a linear graph, or of a composition with one: a graph of the best path alone."""
    scores, acceptor, weights = _question(g, "viterbi_path")
    scores, weights = scores.detach(), weights.detach()
    best = lattice_align(scores[:, None], acceptor, weights=weights)
    path = Graph(False)
    path.add_node(True)
    if best.log_probs.item() == -torch.inf:
        return path
    for t, (arc, label) in enumerate(zip(best.arcs[0].tolist(), best.labels[0].tolist(), strict=True)):
        path.add_node()
        path.add_arc(t, t + 1, label, int(acceptor.outputs[arc]), float(scores[t, label] + weights[arc]))
    path._accepts[-1] = True
    return path


def negate(g: Graph) -> Graph:
    """``gtn.negate`` of a graph of one arc."""
    return _scalar(-g._tensor())


def add(g1: Graph, g2: Graph) -> Graph:
    """``gtn.add`` of graphs of one arc."""
    return _scalar(g1._tensor() + g2._tensor())


def subtract(g1: Graph, g2: Graph) -> Graph:
    """``gtn.subtract`` of graphs of one arc."""
    return _scalar(g1._tensor() - g2._tensor())


def backward(g: Graph, retain_graph: bool = False) -> None:
    """``gtn.backward``: add the gradients of the weights of all graphs that a graph of one arc was made of."""
    g._tensor().sum().backward(retain_graph=retain_graph)


def parallel_for(function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
    """``gtn.parallel_for``, one after another: sums over paths take threads themselves."""
    return [function(*arguments) for arguments in zip(*iterables, strict=False)]


def _scalar(weight: Tensor) -> Graph:
    graph = linear_graph(1, 1, weight.requires_grad)
    if weight.numel() != 1:
        raise InvalidValueError("gtn", "graph", "have one arc", f"{weight.numel()}")
    graph._weights = weight.reshape(1)
    if weight.requires_grad:
        graph._weights.retain_grad()
    return graph


def _question(g: Graph, function: str | None = None) -> tuple[Tensor, graphs.Graph, Tensor]:
    """Scores (T, C), the graph that reads them, and weights (A,) of its arcs, for the sum over a graph's paths."""
    if g._frames is not None:
        count, labels = g._frames
        every = graphs.Graph(np.zeros(labels, np.int64), np.zeros(labels, np.int64), np.arange(labels), final=0)
        return g._tensor().view(count, labels), every, torch.zeros(labels, dtype=torch.float64, device="cpu")
    if g._parts is not None:
        first, second = g._parts
        frames, other, column = (first, second, 2) if first._frames is not None else (second, first, 3)
        if frames._frames is not None and other._frames is None:
            return _of_frames(frames, other, column)
    if function is not None:
        raise InvalidTypeError(function, "graph", "be linear or composed with such", "another")
    arcs = _columns(g)
    # What takes no frame is a path over epsilon arcs alone.
    own = graphs.Graph(arcs[:, 0], arcs[:, 1], np.full(len(arcs), -1), 0.0, *_ends(g))
    return torch.zeros(0, 1, dtype=torch.float64, device="cpu"), own, g._tensor()


def _of_frames(frames: Graph, other: Graph, column: int) -> tuple[Tensor, graphs.Graph, Tensor]:
    assert frames._frames is not None
    count, labels = frames._frames
    weights, arcs = other._tensor(), _columns(other)
    read = np.flatnonzero(arcs[:, column] < labels)
    arcs = arcs[read]
    own = graphs.Graph(arcs[:, 0], arcs[:, 1], arcs[:, column], 0.0, *_ends(other), outputs=arcs[:, 5 - column])
    return frames._tensor().view(count, labels), own, weights[torch.from_numpy(read)]


def _columns(g: Graph) -> np.ndarray:
    """(A, 4) sources, destinations and both labels."""
    g._become_plain()
    return np.array(g._arcs, np.int64).reshape(-1, 4)


def _ends(g: Graph) -> tuple[np.ndarray, np.ndarray]:
    g._become_plain()
    # A graph has one node at least.
    start, final = (np.where(np.array(ends or [False]), 0.0, -np.inf) for ends in (g._starts, g._accepts))
    return start, final


def _compose(out: Graph, first: Graph, second: Graph) -> None:
    """Give a graph the pairs of nodes that can be reached, and the pairs of arcs that read each other."""
    left, right = _columns(first), _columns(second)
    for name, labels in (("first", left[:, 3]), ("second", right[:, 2])):
        if (labels == epsilon).any():
            raise InvalidValueError("compose", f"{name} graph", "have no epsilons where they are read", "one")
    leaving: list[dict[int, list[int]]] = [{} for _ in second._starts]
    for place, (source, _, label, _) in enumerate(right.tolist()):
        leaving[source].setdefault(label, []).append(place)
    out_of: list[list[int]] = [[] for _ in first._starts]
    for place, source in enumerate(left[:, 0].tolist()):
        out_of[source].append(place)

    numbers: dict[tuple[int, int], int] = {}
    waiting: list[tuple[int, int]] = []

    def node(pair: tuple[int, int]) -> int:
        if pair not in numbers:
            a, b = pair
            numbers[pair] = len(out._starts)
            out._starts.append(first._starts[a] and second._starts[b])
            out._accepts.append(first._accepts[a] and second._accepts[b])
            waiting.append(pair)
        return numbers[pair]

    for a in np.flatnonzero(first._starts).tolist():
        for b in np.flatnonzero(second._starts).tolist():
            node((a, b))
    found: list[tuple[int, int, int, int]] = []
    while waiting:
        a, b = waiting.pop(0)
        for one in out_of[a]:
            for other in leaving[b].get(int(left[one, 3]), ()):
                to = node((int(left[one, 1]), int(right[other, 1])))
                found.append((numbers[a, b], to, one, other))
    useful = _leading_on(out._accepts, found)
    found = [arc for arc in found if useful[arc[1]]]
    place = (np.cumsum(useful) - 1).tolist()
    out._starts, out._accepts = ([own for own, kept in zip(ends, useful, strict=True) if kept]
                                 for ends in (out._starts, out._accepts))  # fmt: skip
    out._arcs = [
        (place[source], place[to], int(left[one, 2]), int(right[other, 3])) for source, to, one, other in found
    ]
    pairs = [arc[2:] for arc in found]
    ones, others = torch.from_numpy(np.array(pairs, np.int64).reshape(-1, 2)).T
    out._weights = first._tensor()[ones] + second._tensor()[others]
    if out._weights.requires_grad:
        out._weights.retain_grad()


def _leading_on(accepts: list[bool], arcs: list[tuple[int, int, int, int]]) -> list[bool]:
    """Whether an end can be reached from each node."""
    useful, before = list(accepts), [[] for _ in accepts]
    for source, to, *_ in arcs:
        before[to].append(source)
    waiting = [node for node, accepted in enumerate(accepts) if accepted]
    while waiting:
        for source in before[waiting.pop()]:
            if not useful[source]:
                useful[source] = True
                waiting.append(source)
    return useful


# The peer's names are put in its place together: its graphs and these do not mix.
PLACES = {
    "gtn": {
        "Graph": Graph,
        "add": add,
        "backward": backward,
        "compose": compose,
        "forward_score": forward_score,
        "intersect": intersect,
        "linear_graph": linear_graph,
        "negate": negate,
        "parallel_for": parallel_for,
        "scalar_graph": scalar_graph,
        "subtract": subtract,
        "viterbi_path": viterbi_path,
    }
}
HELPERS = {"gtn": {"epsilon": epsilon}}
