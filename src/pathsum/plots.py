"""Pictures of lattices, posteriors, alignments, beams and graphs, with matplotlib.

Every function draws into the axes that it is given, or into new ones, and returns them. Scores and results are those
of any front end: NumPy arrays, or tensors on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathsum.display import to_numpy
from pathsum.errors import InvalidValueError, name_extra
from pathsum.graphs import Graph
from pathsum.graphs.drawing import RADIUS, arc_text, curve, places
from pathsum.lattice import ArcLattice, ChainLattice, GridLattice
from pathsum.testing.paths import Arc, arcs_out_of, is_final, start_node

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba_array
    from matplotlib.patches import Circle, FancyArrowPatch
    from matplotlib.path import Path as Outline
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise name_extra(error, "matplotlib", "plots") from error

__all__ = ["alignment", "beam", "graph", "lattice", "mass", "posteriors"]

Names = Mapping[int, str] | Sequence[str] | None

INK, FAINT, WARM = "#3b82b6", "#8a94a0", "#d9822b"
COLOURS = {"stay": FAINT, "blank": FAINT, "step": INK, "label": INK, "skip": WARM}
MAX_NODES = 5000


def lattice(
    lattice: ChainLattice | GridLattice | ArcLattice,
    sample: int = 0,
    *,
    posteriors: Any = None,
    names: Names = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the nodes and arcs of one sample that lie on complete paths.

    Args:
        lattice: Of a loss, as ``ctc_paths(...).lattice``.
        sample: Its index in the batch.
        posteriors: ``nodes`` of the sample's posteriors, (T, S') of a chain or (T, U+1) of a grid, which nodes are
            the larger for; or a named tuple that has ``nodes`` (N, T, ...). ``None``: all nodes are alike.
        names: The text of each class; ``None``: its number.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        InvalidValueError: (a ValueError) no such sample, or a lattice of more than 5000 nodes.

    Example:
        >>> import torch
        >>> from pathsum import plots
        >>> from pathsum.torch.paths import ctc_paths
        >>> paths = ctc_paths(torch.zeros(4, 1, 3), [[1, 2]], fused_log_softmax=True)
        >>> ax = plots.lattice(paths.lattice, posteriors=paths.posteriors(), names="-ab")
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['-', 'a', '-', 'b', '-']
    """
    _check_sample("plots.lattice", sample, len(_lengths(lattice)))
    is_chain = isinstance(lattice, ChainLattice)
    arcs = _useful_arcs(lattice, sample)
    share = None if posteriors is None else _one(_values(posteriors), sample, axes=2)
    name = _namer(names)
    ax = _axes(ax)
    kinds = dict.fromkeys(_kind(arc, is_chain) for arc in arcs)
    for kind in kinds:
        lines = [(_point(arc.source, is_chain), _point(arc.target, is_chain)) for arc in arcs
                 if _kind(arc, is_chain) == kind]  # fmt: skip
        ax.add_collection(LineCollection(lines, colors=COLOURS.get(kind, INK), linewidths=1.1, zorder=1, label=kind))
    nodes = sorted({node for arc in arcs for node in (arc.source, arc.target)})
    sizes = [_size(share, node, is_chain) for node in nodes]
    points = np.array([_point(node, is_chain) for node in nodes]).reshape(-1, 2)
    ax.scatter(points[:, 0], points[:, 1], s=sizes, color=INK if share is not None else FAINT, zorder=2)
    if is_chain:
        rows = range(int(lattice.num_states[sample]))
        ax.set_yticks(rows, [name(int(lattice.step_labels[sample, s])) for s in rows])
        ax.invert_yaxis()
    else:
        labels = [name(int(label)) for label in lattice.targets[sample][: int(lattice.target_lengths[sample])]]
        ax.set_yticks(range(len(labels) + 1), ["", *labels])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.5 - is_chain, _lengths(lattice)[sample] - 0.5 + (not is_chain))
    _frames(ax, "frame")
    ax.set_ylabel("state" if is_chain else "label written")
    if kinds:
        ax.legend(frameon=False, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return ax


def posteriors(
    posteriors: Any,
    sample: int = 0,
    *,
    names: Sequence[str] | None = None,
    frame_seconds: float | None = None,
    start_seconds: float = 0.0,
    colours: Sequence[Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how probable each row of a lattice, or each class, is in each frame. The first row is at the top.

    Args:
        posteriors: A named tuple that has ``nodes`` (N, T, S), or probabilities (N, T, S) or (T, S).
        sample: Its index in the batch.
        names: The text of each row; or of the labels alone, which are every second row of CTC. ``None``: none.
        frame_seconds: How long a frame lasts; ``None``: the axis counts frames.
        start_seconds: When the first frame begins.
        colours: What each row is drawn in where it is certain, as matplotlib names colours. ``None``: all in blue, with
            a bar that says which shade is how much.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        InvalidValueError: (a ValueError) no such sample, other shapes, a number of names that fits neither, or not a
            colour for each row.

    Example:
        >>> import torch
        >>> from pathsum import plots
        >>> from pathsum.torch import ctc_posteriors
        >>> found = ctc_posteriors(torch.zeros(1, 4, 3).log_softmax(2), [[1, 2]])
        >>> ax = plots.posteriors(found, names="ab", frame_seconds=0.04)
        >>> ax.get_xlabel(), [text.get_text() for text in ax.get_yticklabels()]
        ('seconds', ['a', 'b'])
    """
    share = _one(_values(posteriors), sample, axes=2, function="plots.posteriors")
    num_frames, num_rows = share.shape
    step = 1.0 if frame_seconds is None else frame_seconds
    ax, image = _axes(ax), np.clip(share.T, 0.0, 1.0)
    if colours is not None:
        if len(colours) != num_rows:
            raise InvalidValueError("plots.posteriors", "colours", f"be {num_rows}, one for each row", len(colours))
        image = 1.0 - image[:, :, None] * (1.0 - to_rgba_array(colours)[:, None, :3])
    extent = (start_seconds, start_seconds + num_frames * step, num_rows - 0.5, -0.5)
    shades = {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0}
    drawn = ax.imshow(image, aspect="auto", interpolation="nearest", extent=extent, **shades)
    if colours is None:
        ax.figure.colorbar(drawn, ax=ax, pad=0.01, label="posterior")
    if names is None:
        ax.set_yticks([])
    elif len(names) == num_rows:
        ax.set_yticks(range(num_rows), names)
    elif 2 * len(names) + 1 == num_rows:
        ax.set_yticks(range(1, num_rows, 2), names)
    else:
        rule = f"name the {num_rows} rows, or every second of them"
        raise InvalidValueError("plots.posteriors", "names", rule, f"{len(names)} names")
    _frames(ax, "frame" if frame_seconds is None else "seconds")
    return ax


def alignment(
    features: Any,
    spans: Sequence[Any],
    *,
    texts: Sequence[str] | None = None,
    names: Names = None,
    frame_seconds: float = 1.0,
    feature_seconds: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw spans of tokens or words over a spectrogram, or over any features of frames.

    Args:
        features: (F, M), band 0 at the bottom.
        spans: Of ``token_spans`` or ``word_spans``.
        texts: What is written above each span. ``None``: the names of the tokens; above words nothing.
        names: The text of each class; ``None``: its number.
        frame_seconds: How long a frame of the spans lasts.
        feature_seconds: How long a row of ``features`` lasts; ``None``: as ``frame_seconds``.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes. Boxes are the fainter the less sure their spans are.

    Raises:
        InvalidValueError: (a ValueError) features of other than two axes, or not a text for each span.

    Example:
        >>> import numpy as np
        >>> from pathsum import plots
        >>> from pathsum.torch import TokenSpan
        >>> spans = [TokenSpan(1, 2, 5, -0.1), TokenSpan(2, 5, 6, -2.0)]
        >>> ax = plots.alignment(np.zeros((16, 8)), spans, names="-ab", frame_seconds=0.04, feature_seconds=0.02)
        >>> [text.get_text() for text in ax.texts]
        ['a', 'b']
    """
    function = "plots.alignment"
    image = to_numpy(features)
    if image.ndim != 2:
        raise InvalidValueError(function, "features", "be (F, M)", image.shape)
    if texts is None:
        name = _namer(names)
        texts = [name(int(span.token)) if hasattr(span, "token") else "" for span in spans]
    if len(texts) != len(spans):
        raise InvalidValueError(function, "texts", f"be {len(spans)}, one for each span", len(texts))
    seconds = len(image) * (frame_seconds if feature_seconds is None else feature_seconds)
    ax = _axes(ax)
    bands = image.shape[1]
    ax.imshow(image.T, aspect="auto", origin="lower", cmap="magma", extent=(0.0, seconds, -0.5, bands - 0.5))
    for text, span in zip(texts, spans, strict=True):
        start, end = span.seconds(frame_seconds)
        ax.axvspan(start, end, facecolor="none", edgecolor="white", linewidth=0.9, alpha=0.8)
        ax.axvspan(start, end, 1.0, 1.06, color=INK, alpha=max(0.15, min(1.0, span.confidence)), clip_on=False)
        ax.text((start + end) / 2, 1.075, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom")
    ax.set_ylabel("band")
    _frames(ax, "frame" if frame_seconds == 1.0 else "seconds")
    ax.set_xlim(0.0, seconds)
    return ax


def beam(
    beams: Any,
    sample: int = 0,
    *,
    names: Names = None,
    frame_seconds: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the hypotheses of a sample over time: each token where it begins in its best alignment, the best on top.

    Args:
        beams: Of a beam decoder of any front end.
        sample: Its index in the batch.
        names: The text of each class; ``None``: its number.
        frame_seconds: How long a frame lasts; ``None``: the axis counts frames.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes. To the left of each hypothesis stands its score. What differs from the best is in another colour.

    Raises:
        InvalidValueError: (a ValueError) no such sample.

    Example:
        >>> import numpy as np
        >>> from pathsum import plots
        >>> from pathsum.decoding import ctc_beam_decode
        >>> log_probs = np.log([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
        >>> ax = plots.beam(ctc_beam_decode(log_probs, n_best=2), names="-a")
        >>> [text.get_text() for text in ax.texts]
        ['a', 'a', 'a']
    """
    hypotheses = _hypotheses("plots.beam", beams, sample)
    step = 1.0 if frame_seconds is None else frame_seconds
    name = _namer(names)
    ax = _axes(ax)
    best = set(hypotheses[0].placed) if hypotheses else set()
    for row, hypothesis in enumerate(hypotheses):
        ax.axhline(row, color=FAINT, linewidth=0.5, alpha=0.5, zorder=0)
        for token, frame in hypothesis.placed:
            colour = INK if (token, frame) in best else WARM
            ax.text((frame + 0.5) * step, row, name(token), ha="center", va="center", color=colour, weight="bold")
    last = max((frame for hypothesis in hypotheses for _, frame in hypothesis.placed), default=0)
    ax.set_xlim(0.0, (last + 1.5) * step)
    ax.set_ylim(len(hypotheses) - 0.5, -0.5)
    ax.set_yticks(range(len(hypotheses)), [f"{hypothesis.score:.2f}" for hypothesis in hypotheses])
    ax.set_ylabel("score")
    _frames(ax, "frame" if frame_seconds is None else "seconds")
    return ax


def mass(beams: Any, sample: int = 0, *, names: Names = None, ax: Axes | None = None) -> Axes:
    """Draw the probability of each hypothesis of a sample, and below them that of all texts that are not listed.

    Args:
        beams: Of ``ctc_beam_decode`` and its like, with ``exact_scores``.
        sample: Its index in the batch.
        names: The text of each class; ``None``: its number. Hypotheses of words are written as these.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        InvalidValueError: (a ValueError) no such sample.

    Example:
        >>> import numpy as np
        >>> from pathsum import plots
        >>> from pathsum.decoding import ctc_beam_decode
        >>> log_probs = np.log([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
        >>> ax = plots.mass(ctc_beam_decode(log_probs, n_best=2), names="-a")
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['a a', 'a', 'all others']
        >>> [round(float(bar.get_width()), 3) for bar in ax.patches]
        [0.532, 0.447, 0.022]
    """
    hypotheses = _hypotheses("plots.mass", beams, sample)
    name = _namer(names)
    texts = [" ".join(of.words if of.words is not None else [name(token) for token, _ in of.placed]) or "∅"
             for of in hypotheses]  # fmt: skip
    listed = float(np.exp(_one(to_numpy(beams.mass), sample, axes=0)))
    widths = [float(np.exp(hypothesis.log_prob)) for hypothesis in hypotheses]
    ax = _axes(ax)
    bars = ax.barh(range(len(texts) + 1), [*widths, max(0.0, 1.0 - listed)], color=[INK] * len(texts) + [FAINT])
    ax.bar_label(bars, fmt="{:.3g}", padding=3)
    ax.set_yticks(range(len(texts) + 1), [*texts, "all others"])
    ax.invert_yaxis()
    ax.set_xlabel("probability")
    ax.margins(x=0.15)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def graph(graph: Graph, arcs: Any = None, *, names: Names = None, ax: Axes | None = None) -> Axes:
    """Draw a graph, its arcs the wider the more often they are taken.

    Args:
        graph: Few states and arcs, so that they can be told apart.
        arcs: (A,) how often each arc is expected to be taken: the gradient of ``lattice_score`` by ``weights``.
            ``None``: all arcs are alike.
        names: The text of each class; ``None``: its number.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        InvalidValueError: (a ValueError) not a number for each arc, or a graph of more than 5000 states.

    Example:
        >>> import torch
        >>> from pathsum import plots
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import lattice_score
        >>> graph = over_ctc(linear([1, 2]), 3)
        >>> weights = torch.zeros(graph.num_arcs, dtype=torch.float64, requires_grad=True)
        >>> lattice_score(torch.zeros(6, 1, 3), graph, weights=weights, fused_log_softmax=True).sum().backward()
        >>> ax = plots.graph(graph, weights.grad, names="-ab")
        >>> len(ax.texts) >= graph.num_states
        True
    """
    function = "plots.graph"
    share = None if arcs is None else to_numpy(arcs)
    if share is not None and share.shape != (graph.num_arcs,):
        raise InvalidValueError(function, "arcs", f"be ({graph.num_arcs},), a number an arc", share.shape)
    if graph.num_states > MAX_NODES:
        raise InvalidValueError(function, "graph", f"have at most {MAX_NODES} states", graph.num_states)
    where = places(graph)
    together: dict[tuple[int, int], list[int]] = {}
    for arc in range(graph.num_arcs):
        together.setdefault((int(graph.sources[arc]), int(graph.destinations[arc])), []).append(arc)
    ax = _axes(ax)
    for (a, b), between in together.items():
        bent = curve(where[a], where[b])
        often = 1.0 if share is None else float(sum(share[arc] for arc in between))
        colour, width = (INK, 1.2) if share is None else (INK if often > 0.005 else FAINT, 0.6 + min(3.5, 2.0 * often))
        between_ends = len(bent.points) - 1
        bow = Outline(
            bent.points, [Outline.MOVETO, *[Outline.CURVE4 if between_ends == 3 else Outline.CURVE3] * between_ends]
        )
        ax.add_patch(FancyArrowPatch(path=bow, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=width))
        text = ", ".join(arc_text(graph, arc, names) for arc in between)
        text += "" if share is None else f"  {often:.2g}"
        ax.text(*bent.beside(text), text, ha="center", va="center", fontsize="small", color=colour)
    for state, (x, y) in enumerate(where):
        for radius in (RADIUS, RADIUS - 3) if graph.final[state] > -np.inf else (RADIUS,):
            ax.add_patch(Circle((x, y), radius, facecolor="none", edgecolor=INK, linewidth=1.2))
        weight = "bold" if graph.start[state] > -np.inf else "normal"
        ax.text(x, y, str(state), ha="center", va="center", fontsize="small", weight=weight, color=INK)
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.margins(0.08)
    return ax


class _Hypothesis(NamedTuple):
    """One of a beam's: its tokens with the frames in which they begin, its words, its score and its probability."""

    placed: list[tuple[int, int]]
    words: Sequence[str] | None
    score: float
    log_prob: float


def _hypotheses(function: str, beams: Any, sample: int) -> list[_Hypothesis]:
    lengths = np.atleast_2d(to_numpy(beams.lengths))
    _check_sample(function, sample, len(lengths))
    tokens, frames = (_one(to_numpy(values), sample, axes=2) for values in (beams.tokens, beams.frames))
    scores, log_probs = (_one(to_numpy(values), sample, axes=1) for values in (beams.scores, beams.ctc_scores))
    words = beams.words
    if words is not None and np.ndim(to_numpy(beams.mass)):
        words = words[sample]
    return [
        _Hypothesis(
            [(int(token), int(frame)) for token, frame in zip(tokens[k, :length], frames[k, :length], strict=True)],
            None if words is None else words[k],
            float(scores[k]),
            float(log_probs[k]),
        )
        for k, length in enumerate(lengths[sample])
        if scores[k] > -np.inf
    ]


def _useful_arcs(lattice: ChainLattice | GridLattice | ArcLattice, sample: int) -> list[Arc]:
    """The arcs on complete paths: those that are reached, and from which an end is."""
    reached, waiting, arcs = {start_node(lattice)}, [start_node(lattice)], []
    while waiting:
        node = waiting.pop()
        for arc in arcs_out_of(lattice, sample, node):
            arcs.append(arc)
            if arc.target not in reached:
                reached.add(arc.target)
                waiting.append(arc.target)
                if len(reached) > MAX_NODES:
                    raise InvalidValueError("plots.lattice", "lattice", f"have at most {MAX_NODES} nodes", "more")
    useful = {node for node in reached if is_final(lattice, sample, node)}
    into: dict[Any, list[Any]] = {}
    for arc in arcs:
        into.setdefault(arc.target, []).append(arc.source)
    waiting = list(useful)
    while waiting:
        for source in into.get(waiting.pop(), []):
            if source not in useful:
                useful.add(source)
                waiting.append(source)
    return [arc for arc in arcs if arc.source in useful and arc.target in useful]


def _kind(arc: Arc, is_chain: bool) -> str:
    """Arcs of lattices whose kinds are numbers are told apart by what they do."""
    if is_chain or not arc.kind.isdigit():
        return arc.kind
    return "label" if arc.target[1] > arc.source[1] else "blank"


def _point(node: tuple[int, int], is_chain: bool) -> tuple[float, float]:
    """Where a node is drawn: a chain's behind so many frames in the frame that led there, a grid's in its frame."""
    return (node[0] - 1.0 if is_chain else float(node[0]), float(node[1]))


def _size(share: np.ndarray | None, node: tuple[int, int], is_chain: bool) -> float:
    frame, row = node[0] - is_chain, node[1]
    if share is None:
        return 30.0
    inside = 0 <= frame < share.shape[0] and 0 <= row < share.shape[1]
    return 4.0 + 140.0 * float(share[frame, row]) if inside else 12.0


def _lengths(lattice: Any) -> Any:
    return lattice.input_lengths if isinstance(lattice, ChainLattice) else lattice.logit_lengths


def _values(posteriors: Any) -> np.ndarray:
    return to_numpy(posteriors.nodes if hasattr(posteriors, "nodes") else posteriors)


def _one(values: np.ndarray, sample: int, axes: int, function: str = "plots") -> np.ndarray:
    """A sample's part of a batch; what has no axis for samples is the only one's."""
    if values.ndim == axes:
        return values
    if values.ndim != axes + 1:
        raise InvalidValueError(function, "posteriors", f"have {axes} axes, or {axes + 1} with samples", values.shape)
    _check_sample(function, sample, len(values))
    return values[sample]


def _check_sample(function: str, sample: int, count: int) -> None:
    if not 0 <= sample < count:
        raise InvalidValueError(function, "sample", f"be in [0, {count})", sample)


def _namer(names: Names) -> Callable[[int], str]:
    def name(label: int) -> str:
        return str(label) if names is None else str(names[label])

    return name


def _axes(ax: Axes | None) -> Axes:
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax


def _frames(ax: Axes, unit: str) -> None:
    ax.set_xlabel(unit)
    ax.spines[["top", "right"]].set_visible(False)
