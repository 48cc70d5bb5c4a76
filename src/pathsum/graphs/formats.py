"""Files of graphs and objects of other packages: OpenFst's binary and text, k2's text, gtn's text."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pathsum.errors import GraphFileError, InvalidTypeError, InvalidValueError
from pathsum.files import replacing
from pathsum.graphs.graph import EPSILON, Graph

FORMATS = ("openfst", "att", "k2", "gtn")

_MAGIC, _SYMBOLS_MAGIC = 2125659606, 2125658996
_ARC = np.dtype([("label", "<i4"), ("output", "<i4"), ("cost", "<f4"), ("to", "<i4")])
# The bits of an OpenFst header that say what follows it, and the properties that a vector has: expanded and mutable.
_HAS_SYMBOLS, _PROPERTIES = (1, 2), 3


def read(path: str | os.PathLike[str], format: str, label_offset: int, acceptor: bool | None) -> Graph:
    _check("Graph.read", format, label_offset)
    data, name = Path(path).read_bytes(), str(path)
    if format == "openfst":
        return _read_openfst(data, name, label_offset)
    return _read_text(data, name, format, label_offset, acceptor)


def parse(text: str, format: str, label_offset: int, acceptor: bool | None) -> Graph:
    _check("Graph.parse", format, label_offset)
    if format == "openfst":
        raise InvalidValueError("Graph.parse", "format", "be one of text", repr(format))
    return _read_text(text.encode(), "text", format, label_offset, acceptor)


def _read_text(data: bytes, name: str, format: str, label_offset: int, acceptor: bool | None) -> Graph:
    lines = _lines(data, name)
    if format == "att":
        return _read_att(lines, name, label_offset, acceptor)
    return (_read_k2 if format == "k2" else _read_gtn)(lines, name, label_offset)


def write(graph: Graph, path: str | os.PathLike[str], format: str, label_offset: int) -> None:
    _check("Graph.write", format, label_offset)
    path = Path(path)
    written = {"openfst": _openfst, "att": _att, "k2": _k2, "gtn": _gtn}[format](graph, label_offset)
    with replacing(path.parent) as beside:
        (beside / path.name).write_bytes(written)


def from_fst(fst: Any, label_offset: int) -> Graph:
    _check("Graph.from_fst", "openfst", label_offset)
    if hasattr(fst, "arcs") and hasattr(fst, "scores"):
        return _from_k2(fst, label_offset)
    if all(hasattr(fst, name) for name in ("states", "arcs", "final", "start")):
        # pynini prints its weights: nine digits, which are that float32 alone.
        narrow = getattr(fst, "arc_type", str)() in ("standard", "log")
        cost_of = (lambda weight: float(np.float32(str(weight)))) if narrow else float
        arcs, final = [], {}
        for state in fst.states():
            cost = cost_of(fst.final(state))
            if cost < np.inf:
                final[state] = -cost
            arcs += [(state, arc.nextstate, arc.ilabel, arc.olabel, -cost_of(arc.weight)) for arc in fst.arcs(state)]
        sources, to, labels, outputs, weights = map(list, zip(*arcs, strict=True)) if arcs else [[]] * 5
        start = {} if fst.start() < 0 else fst.start()
        return _graph("Graph.from_fst", label_offset, sources, to, labels, outputs, weights, start, final)
    if hasattr(fst, "write") and hasattr(fst, "num_states"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.fst")
            fst.write(str(path))
            return read(path, "openfst", label_offset, None)
    raise InvalidTypeError(
        "Graph.from_fst", "fst", "be an Fst of pynini or kaldifst, or an Fsa of k2", type(fst).__name__
    )


def _from_k2(fsa: Any, label_offset: int) -> Graph:
    """Of k2's arcs (A, 4): source, destination, label, and the bits of the score."""
    arcs = np.asarray(fsa.arcs.values())[:, :3].astype(np.int64)
    outputs = np.asarray(fsa.aux_labels) if hasattr(fsa, "aux_labels") else arcs[:, 2]
    weights = np.asarray(fsa.scores.detach(), np.float64)
    last = int(fsa.arcs.shape[0]) - 1 if hasattr(fsa.arcs, "shape") else int(arcs[:, :2].max(initial=0))
    sources, to, labels = arcs.T
    return _with_final_arcs("Graph.from_fst", label_offset, sources, to, labels, outputs, weights, last)


def _check(function: str, format: str, label_offset: Any) -> None:
    if format not in FORMATS:
        raise InvalidValueError(function, "format", f"be one of {', '.join(FORMATS)}", repr(format))
    if isinstance(label_offset, bool) or not isinstance(label_offset, (int, np.integer)):
        raise InvalidTypeError(function, "label_offset", "be an int", type(label_offset).__name__)


def _graph(
    function: str, offset: int, sources: Any, to: Any, labels: Any, outputs: Any, weights: Any, start: Any, final: Any
) -> Graph:
    """The graph of a file's arcs, its labels shifted."""
    labels = np.asarray(labels, np.int64) + offset
    if labels.min(initial=0) < EPSILON:
        arc = int(labels.argmin())
        rule = f"leave labels of at least -1 with label_offset={offset}"
        raise InvalidValueError(function, "the graph", rule, f"{labels[arc]} on arc {arc}")
    outputs = np.maximum(np.asarray(outputs, np.int64) + offset, EPSILON)
    return Graph(sources, to, labels, weights, start, final, outputs=outputs)


def _with_final_arcs(
    function: str, offset: int, sources: Any, to: Any, labels: Any, outputs: Any, weights: Any, last: int
) -> Graph:
    """Of k2's arcs: those of label -1 lead to the last state and are final scores; where there are two, they add up."""
    ends = labels == -1
    final = np.full(last + 1, -np.inf)
    np.logaddexp.at(final, sources[ends], weights[ends])
    sources, to, labels, outputs, weights = (v[~ends] for v in (sources, to, labels, outputs, weights))
    # The last state stays, out of everything's reach, where an arc that emits leads to it.
    kept = last + 1 if (to == last).any() or last == 0 else last
    return _graph(function, offset, sources, to, labels, outputs, weights, 0, final[:kept])


def _lowest(offset: int) -> int:
    """The lowest label that OpenFst's files may have: 0, or what becomes an epsilon."""
    return max(0, EPSILON - offset)


class _Cursor:
    """The bytes of a file, read in order."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.place = data, name, 0

    def fail(self, rule: str, got: object, place: int | None = None) -> NoReturn:
        raise GraphFileError(self.name, f"byte {self.place if place is None else place}", rule, got)

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        if self.place + size > len(self.data):
            self.fail(f"have {size} more bytes", f"{len(self.data) - self.place}, the end of the file")
        values = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += size
        return values

    def number(self, layout: str) -> int:
        return self.take(layout)[0]

    def skip(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.place:
            self.fail("name a length within the file", size)
        self.place += size
        return self.data[self.place - size : self.place]

    def text(self) -> str:
        return self.skip(self.number("i")).decode("utf-8", errors="replace")


def _read_openfst(data: bytes, name: str, offset: int) -> Graph:
    file = _Cursor(data, name)
    magic = file.number("i")
    if magic != _MAGIC:
        file.fail(f"begin with OpenFst's number {_MAGIC}", magic, 0)
    for rule, allowed in (("be an FST of type vector (fstconvert makes one)", ("vector",)),
                          ("have standard or log arcs", ("standard", "log"))):  # fmt: skip
        place, word = file.place, file.text()
        if word not in allowed:
            file.fail(rule, repr(word), place)
    _, flags, _, start, num_states, _ = file.take("iiQqqq")
    for bit in _HAS_SYMBOLS:
        if flags & bit:
            _skip_symbols(file)

    costs, counts, pieces = [], [], []
    while len(costs) < num_states or (num_states < 0 and file.place < len(data)):
        place = file.place
        cost, count = file.take("fq")
        if not 0 <= count <= (len(data) - file.place) // _ARC.itemsize:
            file.fail("have all arcs of a state within the file", f"{count} of state {len(costs)}", place)
        costs.append(cost)
        counts.append(count)
        pieces.append(file.skip(count * _ARC.itemsize))
    if file.place < len(data):
        file.fail("end behind the last state", f"{len(data) - file.place} more bytes")
    arcs = np.frombuffer(b"".join(pieces), _ARC)
    sources = np.repeat(np.arange(len(costs)), counts)
    states = np.cumsum([0, *counts])

    def place_of(arc: int) -> int:
        # Every arc lies behind the heads, 12 bytes each, of its own state and of those before it.
        head = len(data) - int(states[-1]) * _ARC.itemsize - 12 * len(costs)
        return head + 12 * (int(sources[arc]) + 1) + arc * _ARC.itemsize

    for field, rule, allowed in (
        ("to", f"lead to one of the {len(costs)} states", (arcs["to"] >= 0) & (arcs["to"] < len(costs))),
        ("cost", "cost neither NaN nor -inf", arcs["cost"] > -np.inf),
        ("label", f"have labels of at least {_lowest(offset)}", arcs["label"] >= _lowest(offset)),
    ):
        if not allowed.all():
            arc = int((~allowed).argmax())
            file.fail(rule, arcs[field][arc], place_of(arc))
    if not -1 <= start < len(costs):
        file.fail(f"start in one of the {len(costs)} states", start, 0)
    final = -np.asarray(costs, np.float64)
    if not (final < np.inf).all():
        file.fail("have final costs that are neither NaN nor -inf", costs[int((~(final < np.inf)).argmax())], 0)
    start, final = {} if start < 0 else start, final if len(costs) else {}
    weights = -arcs["cost"].astype(np.float64)
    return _graph("Graph.read", offset, sources, arcs["to"], arcs["label"], arcs["output"], weights, start, final)


def _skip_symbols(file: _Cursor) -> None:
    place, magic = file.place, file.number("i")
    if magic != _SYMBOLS_MAGIC:
        file.fail(f"have a symbol table, which begins with {_SYMBOLS_MAGIC}", magic, place)
    file.text()
    _, count = file.take("qq")
    for _ in range(count):
        file.text()
        file.number("q")


def _openfst(graph: Graph, offset: int) -> bytes:
    graph = _with_one_start(graph, offset)
    order, first = _by_source(graph)
    labels, outputs = _shifted(graph, offset, 0)
    arcs = np.empty(graph.num_arcs, _ARC)
    arcs["label"], arcs["output"], arcs["to"] = labels[order], outputs[order], graph.destinations[order]
    arcs["cost"] = -graph.weights[order]
    costs = -graph.final.astype(np.float32)
    names = b"".join(struct.pack("<i", len(word)) + word for word in (b"vector", b"standard"))
    start = _start_of(graph)
    head = struct.pack("<i", _MAGIC) + names
    head += struct.pack("<iiQqqq", 2, 0, _PROPERTIES, start, graph.num_states, graph.num_arcs)
    states = (
        struct.pack("<fq", cost, last - begin) + arcs[begin:last].tobytes()
        for cost, begin, last in zip(costs.tolist(), first[:-1].tolist(), first[1:].tolist(), strict=True)
    )
    return head + b"".join(states)


def _lines(data: bytes, name: str) -> list[tuple[int, list[str]]]:
    """Number and columns of each line that has any."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GraphFileError(
            name, f"byte {error.start}", "be UTF-8 text", repr(data[error.start : error.start + 1])
        ) from error
    return [(number, line.split()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


class _Table:
    """The columns of arcs as they are read off the lines of a file."""

    def __init__(self, name: str, offset: int) -> None:
        self.name, self.offset = name, offset
        self.arcs: list[tuple[int, int, int, int, float]] = []

    def fail(self, line: int, rule: str, got: object) -> NoReturn:
        raise GraphFileError(self.name, f"line {line}", rule, got)

    def integer(self, line: int, text: str, what: str, minimum: int = 0) -> int:
        try:
            value = int(text)
        except ValueError:
            self.fail(line, f"have an integer as {what}", repr(text))
        if not minimum <= value < 2**31 - 1:
            self.fail(line, f"have {what} of at least {minimum} and below 2**31 - 1", value)
        return value

    def score(self, line: int, text: str, sign: int) -> float:
        try:
            value = sign * float(text)
        except ValueError:
            self.fail(line, "have a number as weight", repr(text))
        if not value < np.inf:
            self.fail(line, f"have a weight that is neither NaN nor {'+' if sign > 0 else '-'}inf", text)
        return value

    def arc(self, line: int, columns: list[str], weight: str | None, sign: int, lowest: int) -> None:
        """Source, destination and label, and a second label where there is a fourth column."""
        source, to = (self.integer(line, text, "a state") for text in columns[:2])
        label, *output = (self.integer(line, text, "a label", lowest) for text in columns[2:])
        score = 0.0 if weight is None else self.score(line, weight, sign)
        self.arcs.append((source, to, label, output[0] if output else label, score))

    def columns(self) -> list[np.ndarray]:
        integers = np.array([arc[:4] for arc in self.arcs], np.int64).reshape(-1, 4)
        return [*integers.T, np.array([arc[4] for arc in self.arcs], np.float64)]


def _read_att(lines: list[tuple[int, list[str]]], name: str, offset: int, acceptor: bool | None) -> Graph:
    table, final, start = _Table(name, offset), dict[int, float](), None
    widths = {len(columns) for _, columns in lines}
    if acceptor is None:
        acceptor = 5 not in widths and any(not _is_integer(c[3]) for _, c in lines if len(c) == 4)
    for line, columns in lines:
        if len(columns) > (4 if acceptor else 5):
            table.fail(line, f"have at most {4 if acceptor else 5} columns", len(columns))
        if len(columns) <= 2:
            state = table.integer(line, columns[0], "a state")
            if state in final:
                table.fail(line, "give a state one final cost", f"a second one of state {state}")
            final[state] = table.score(line, columns[1], -1) if len(columns) == 2 else 0.0
        else:
            weighted = len(columns) == (4 if acceptor else 5)
            table.arc(line, columns[: len(columns) - weighted], columns[-1] if weighted else None, -1, _lowest(offset))
        start = int(columns[0]) if start is None else start
    sources, to, labels, outputs, weights = table.columns()
    start = {} if start is None else start
    return _graph("Graph.read", offset, sources, to, labels, outputs, weights, start, final)


def _is_integer(text: str) -> bool:
    return text.lstrip("+-").isdigit()


def _att(graph: Graph, offset: int) -> bytes:
    graph = _with_one_start(graph, offset)
    start, (labels, outputs) = _start_of(graph), _shifted(graph, offset, 0)
    # What starts is the first line's state. A start that nothing leaves, and that is not final, is on no path.
    order = np.lexsort((graph.sources, graph.sources != start))
    final = [(state, f"{state}\t{_number(-graph.final[state])}") for state in np.flatnonzero(graph.final > -np.inf)]
    final.sort(key=lambda line: line[0] != start)
    arcs = [
        f"{graph.sources[arc]}\t{graph.destinations[arc]}\t{labels[arc]}\t{outputs[arc]}\t{_number(-graph.weights[arc])}"
        for arc in order
    ]
    ends = [text for _, text in final]
    if not len(order) or graph.sources[order[0]] != start:
        if not final or final[0][0] != start:
            return b""
        return _text(ends[:1] + arcs + ends[1:])
    return _text(arcs + ends)


def _read_k2(lines: list[tuple[int, list[str]]], name: str, offset: int) -> Graph:
    table = _Table(name, offset)
    if not lines:
        return Graph([], [], [], final={})
    *arcs, (number, columns) = lines
    if len(columns) != 1:
        table.fail(number, "end with the last state alone", " ".join(columns))
    last = table.integer(number, columns[0], "a state")
    for line, columns in arcs:
        if len(columns) not in (4, 5):
            table.fail(line, "have source, destination, label, perhaps a second label, and score", " ".join(columns))
        table.arc(line, columns[:-1], columns[-1], 1, min(-1, _lowest(offset)))
        source, to, label, *_ = table.arcs[-1]
        if source > last or to > last:
            table.fail(line, f"have states up to the last, {last}", max(source, to))
        if label == -1 and to != last:
            table.fail(line, f"have label -1 on arcs to the last state, {last}, alone", f"one to {to}")
        if label != -1 and label + offset < EPSILON:
            table.fail(line, f"have labels of at least {EPSILON - offset}", label)
    sources, to, labels, outputs, weights = table.columns()
    return _with_final_arcs("Graph.read", offset, sources, to, labels, outputs, weights, last)


def _k2(graph: Graph, offset: int) -> bytes:
    graph = _with_one_start(graph, offset)
    labels, outputs = _shifted(graph, offset, 0)
    # k2's start is state 0, and its final state the last of all.
    start, last = max(_start_of(graph), 0), graph.num_states
    number = np.arange(last)
    number[[0, start]] = number[[start, 0]]
    ends = np.flatnonzero(graph.final > -np.inf)
    # An acceptor's lines have no second label.
    second = [""] * graph.num_arcs if (labels == outputs).all() else [f" {output}" for output in outputs]
    arcs = [
        (number[source], f"{number[source]} {number[to]} {label}{output} {_number(weight)}")
        for source, to, label, output, weight in zip(
            graph.sources, graph.destinations, labels, second, graph.weights, strict=True
        )
    ]
    final = "-1" if (labels == outputs).all() else "-1 -1"
    arcs += [(number[state], f"{number[state]} {last} {final} {_number(graph.final[state])}") for state in ends]
    if not (graph.start > -np.inf).any():
        arcs = []
    return _text([text for _, text in sorted(arcs, key=lambda arc: arc[0])] + [str(last)])


def _read_gtn(lines: list[tuple[int, list[str]]], name: str, offset: int) -> Graph:
    table = _Table(name, offset)
    if len(lines) < 2:
        raise GraphFileError(
            name, f"line {len(lines) + 1}", "have a line of starts and one of accepting states", "none"
        )
    starts, accepts = ({table.integer(line, text, "a state"): 0.0 for text in columns} for line, columns in lines[:2])
    for line, columns in lines[2:]:
        if len(columns) not in (3, 4, 5):
            table.fail(line, "have source, destination, label, perhaps a second label and a weight", " ".join(columns))
        table.arc(line, columns[:4], columns[4] if len(columns) == 5 else None, 1, min(-1, _lowest(offset)))
    sources, to, labels, outputs, weights = table.columns()
    labels, outputs = (np.where(values == -1, -1 - offset, values) for values in (labels, outputs))
    return _graph("Graph.read", offset, sources, to, labels, outputs, weights, starts, accepts)


def _gtn(graph: Graph, offset: int) -> bytes:
    starts, final = np.flatnonzero(graph.start > -np.inf), np.flatnonzero(graph.final > -np.inf)
    if (graph.start[starts] != 0).any():
        graph = _with_one_start(graph, offset)
        starts = np.flatnonzero(graph.start > -np.inf)
    if (graph.final[final] != 0).any():
        last = graph.num_states
        graph = _with_arcs(graph, final, [last] * len(final), graph.final[final], graph.start, {last: 0.0})
        final = [last]
    if not len(starts) or not len(final):
        raise InvalidValueError("Graph.write", "a graph", "start and end somewhere in gtn's format", "none")
    labels, outputs = _shifted(graph, offset, EPSILON)
    arcs = [
        f"{source} {to} {label} {output} {_number(weight)}"
        for source, to, label, output, weight in zip(
            graph.sources, graph.destinations, labels, outputs, graph.weights, strict=True
        )
    ]
    return _text([" ".join(map(str, starts)), " ".join(map(str, final)), *arcs])


def _number(value: Any) -> str:
    """The shortest decimal that is this number again."""
    return "Infinity" if value == np.inf else "-Infinity" if value == -np.inf else repr(float(value) + 0.0)


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _shifted(graph: Graph, offset: int, lowest: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the outputs as a file has them; an epsilon is -1 in the one format that has such."""
    labels, outputs = graph.labels - offset, graph.outputs - offset
    if lowest == EPSILON:
        labels, outputs = (
            np.where(own == EPSILON, EPSILON, values)
            for own, values in ((graph.labels, labels), (graph.outputs, outputs))
        )
    if labels.min(initial=lowest) < lowest:
        arc = int(labels.argmin())
        rule = f"have labels of at least {lowest} in the file"
        hint = "; label_offset=-1 makes epsilons 0" if graph.labels[arc] == EPSILON else ""
        raise InvalidValueError("Graph.write", "a graph", rule + hint, f"{labels[arc]} on arc {arc}")
    return labels, np.maximum(outputs, lowest)


def _start_of(graph: Graph) -> int:
    starts = np.flatnonzero(graph.start > -np.inf)
    return int(starts[0]) if len(starts) else -1


def _with_one_start(graph: Graph, offset: int) -> Graph:
    """The same paths from one start with score 0, which a new state is where there are several or other scores."""
    starts = np.flatnonzero(graph.start > -np.inf)
    if len(starts) == 0 or (len(starts) == 1 and graph.start[starts[0]] == 0):
        return graph
    new = graph.num_states
    final = np.append(graph.final, -np.inf)
    return _with_arcs(graph, [new] * len(starts), starts, graph.start[starts], new, final)


def _with_arcs(graph: Graph, sources: Any, to: Any, weights: Any, start: Any, final: Any) -> Graph:
    """The graph with epsilon arcs behind its own, and other ends."""
    none = [EPSILON] * len(sources)
    return Graph(
        np.append(graph.sources, sources),
        np.append(graph.destinations, to),
        np.append(graph.labels, none),
        np.append(graph.weights, weights),
        start if isinstance(start, int) else np.append(start, -np.inf),
        final,
        outputs=np.append(graph.outputs, none),
    )


def _by_source(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the arcs by the state they leave, and the first of each state."""
    order = np.argsort(graph.sources, kind="stable")
    return order, np.searchsorted(graph.sources[order], np.arange(graph.num_states + 1))
