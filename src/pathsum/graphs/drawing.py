"""Pictures of graphs: SVG, and text for graphviz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from pathsum.errors import InvalidValueError
from pathsum.graphs.graph import EPSILON, Graph

Names = Mapping[int, str] | Sequence[str] | None

_WIDTH, _HEIGHT, RADIUS, _MARGIN = 120, 90, 16, 50
_HALF_LETTER = 3.3, 6.0  # of its width and height
# Colours that are read on light and on dark paper; nothing is filled.
_STYLE = (
    "circle{fill:none;stroke:#8a94a0;stroke-width:1.5}path{fill:none;stroke:#8a94a0;stroke-width:1.2;"
    "marker-end:url(#tip)}text{font:12px sans-serif;text-anchor:middle;fill:#7d8794}.arc{fill:#3b82b6}"
)
_TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<polygon points="0,1 8,4 0,7" fill="#8a94a0"/></marker>'
)


class Place(NamedTuple):
    x: float
    y: float


class Curve(NamedTuple):
    """An arc as it is drawn: the ends of a Bezier curve and what lies between, its middle, and the side of its text."""

    points: list[Place]
    middle: Place
    side: Place

    def beside(self, text: str) -> Place:
        """The centre of a text that does not touch the curve."""
        away = 4 + abs(self.side.x) * _HALF_LETTER[0] * len(text) + abs(self.side.y) * _HALF_LETTER[1]
        return Place(self.middle.x + self.side.x * away, self.middle.y + self.side.y * away)


def draw(graph: Graph, format: str, names: Names) -> str:
    if format not in ("svg", "dot"):
        raise InvalidValueError("Graph.draw", "format", "be one of svg, dot", repr(format))
    lines: dict[tuple[int, int], list[str]] = {}
    for arc in range(graph.num_arcs):
        ends = int(graph.sources[arc]), int(graph.destinations[arc])
        lines.setdefault(ends, []).append(arc_text(graph, arc, names))
    return _dot(graph, lines) if format == "dot" else _svg(graph, lines)


def arc_text(graph: Graph, arc: int, names: Names) -> str:
    def name(label: int) -> str:
        if label == EPSILON:
            return "ε"
        try:
            return str(label) if names is None else str(names[label])
        except (KeyError, IndexError):
            return str(label)

    label, output, weight = int(graph.labels[arc]), int(graph.outputs[arc]), float(graph.weights[arc])
    text = name(label) + (f":{name(output)}" if output != label else "")
    return text + (f"/{weight:.4g}" if weight else "")


def _state(graph: Graph, state: int) -> str:
    """The number of a state, and the scores of its ends that are not 0."""
    scores = [float(ends[state]) for ends in (graph.start, graph.final)]
    return f"{state}" + "".join(f"/{score:.4g}" for score in scores if score not in (0.0, -np.inf))


def _dot(graph: Graph, lines: dict[tuple[int, int], list[str]]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = ["digraph {", "  rankdir=LR", "  node [shape=circle]"]
    for state in range(graph.num_states):
        shape = "doublecircle" if graph.final[state] > -np.inf else "circle"
        bold = ", style=bold" if graph.start[state] > -np.inf else ""
        text.append(f"  {state} [label={quoted(_state(graph, state))}, shape={shape}{bold}]")
    text += [f"  {a} -> {b} [label={quoted(', '.join(labels))}]" for (a, b), labels in lines.items()]
    return "\n".join([*text, "}"])


def _svg(graph: Graph, lines: dict[tuple[int, int], list[str]]) -> str:
    where = places(graph)
    width = max(place.x for place in where) + _MARGIN
    height = max(place.y for place in where) + _MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        f"<style>{_STYLE}</style><defs>{_TIP}</defs>",
    ]
    labels = []
    for (a, b), texts in lines.items():
        bent, text = curve(where[a], where[b]), ", ".join(texts)
        begin, *between = bent.points
        kind = "C" if len(between) == 3 else "Q"
        bow = f"M{begin.x:.1f},{begin.y:.1f} {kind}" + " ".join(f"{x:.1f},{y:.1f}" for x, y in between)
        drawn.append(f'<path d="{bow}"/>')
        place = bent.beside(text)
        labels.append(f'<text class="arc" x="{place.x:.1f}" y="{place.y + 4:.1f}">{escape(text)}</text>')
    for state, (x, y) in enumerate(where):
        if graph.start[state] > -np.inf:
            drawn.append(f'<path d="M{x - RADIUS - 22:g},{y:g} L{x - RADIUS:g},{y:g}"/>')
        drawn.append(f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}"/>')
        if graph.final[state] > -np.inf:
            drawn.append(f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS - 3}"/>')
        labels.append(f'<text x="{x:g}" y="{y + 4:g}">{escape(_state(graph, state))}</text>')
    return "\n".join([*drawn, *labels, "</svg>"])


def places(graph: Graph) -> list[Place]:
    """A column a distance from the starts; states that are not reached stand behind all others."""
    distance = np.where(graph.start > -np.inf, 0, graph.num_states)
    for _ in range(graph.num_states):
        nearer = distance.copy()
        np.minimum.at(nearer, graph.destinations, distance[graph.sources] + 1)
        if (nearer == distance).all():
            break
        distance = nearer
    _, columns = np.unique(distance, return_inverse=True)
    sizes = np.bincount(columns)
    found, used = [], np.zeros(len(sizes))
    for column in columns:
        y = _MARGIN + 20 + (used[column] + (sizes.max() - sizes[column]) / 2) * _HEIGHT
        used[column] += 1
        found.append(Place(_MARGIN + column * _WIDTH, y))
    return found


def curve(a: Place, b: Place) -> Curve:
    """A loop, or a curve to the left of its direction."""
    if a == b:
        left, right, top = a.x - 10, a.x + 10, a.y - RADIUS + 3
        loop = [Place(left, top), Place(left - 16, top - 38), Place(right + 16, top - 38), Place(right, top)]
        return Curve(loop, Place(a.x, top - 28.5), Place(0.0, -1.0))
    dx, dy = b.x - a.x, b.y - a.y
    if dx == 0:
        # Around the loops that stand between two states of a column.
        side = float(np.sign(dy))
        begin = Place(a.x + 0.86 * side * RADIUS, a.y + 0.5 * side * RADIUS)
        end = Place(b.x + 0.86 * side * (RADIUS + 1), b.y - 0.5 * side * (RADIUS + 1))
        control, middle = Place(a.x + 44 * side, (a.y + b.y) / 2), Place(a.x + 27 * side, a.y + 0.4 * dy)
        return Curve([begin, control, end], middle, Place(side, 0.0))
    length = float(np.hypot(dx, dy))
    ux, uy = dx / length, dy / length
    bend = 14 + 0.12 * length * (length > 1.5 * _WIDTH)
    middle = Place((a.x + b.x) / 2 + uy * bend, (a.y + b.y) / 2 - ux * bend)
    begin = Place(a.x + ux * RADIUS, a.y + uy * RADIUS)
    end = Place(b.x - ux * (RADIUS + 1), b.y - uy * (RADIUS + 1))
    control = Place(middle.x + uy * bend, middle.y - ux * bend)
    return Curve([begin, control, end], middle, Place(uy, -ux))
