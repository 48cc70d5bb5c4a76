"""The picture of an alignment: what the network said, what the target makes of it, and the best path over both."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from pathsum import plots
from pathsum.printable import printable
from pathsum.torch import TokenSpan, ctc_posteriors

from .align import Aligned
from .outputs import Utterance, visible

# More tokens than this are not written one by one, and more nodes than that are not drawn.
MAX_TEXTS = 80
MAX_WORD = 24
MAX_NODES = 20_000_000
COLOUR = "#d1495b"
# Words and tokens may hold any character: none of them is mathematics.
TICKS: dict[str, Any] = {"family": "monospace", "fontsize": 8, "parse_math": False}


def draw(path: Path, aligned: Aligned, frame_seconds: float) -> None:
    """Draw one utterance: its log-probabilities (T, C) and the spans of the classes of its transcript."""
    utterance, _, log_probs, names, classes, spans, blank = aligned
    names = [visible(name) for name in names]
    num_frames = len(log_probs)
    with_posteriors = len(classes) * num_frames <= MAX_NODES and len(classes) > 0
    rows = [blank, *sorted(set(classes))]
    height = 1.6 + 0.16 * len(rows) + (1.0 + 0.14 * min(len(classes), MAX_TEXTS) if with_posteriors else 0)
    figure = Figure(figsize=(min(max(9.0, num_frames / 18), 22), min(max(height, 4.0), 18)), layout="constrained")
    title = utterance.transcript if len(utterance.transcript) < 90 else f"{utterance.transcript[:87]}…"
    figure.suptitle(printable(f"{utterance.name}: “{title}”"), fontsize=12, parse_math=False)
    ratios = [len(rows) + 3, min(len(classes), MAX_TEXTS) + 3] if with_posteriors else [1]
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    draw_probabilities(panels[0], log_probs, rows, spans, names, frame_seconds)
    draw_words(panels[0], utterance)
    if with_posteriors:
        nodes = ctc_posteriors(log_probs[None], torch.tensor([list(classes)]), blank=blank).nodes[0, :, 1::2]
        draw_posteriors(panels[1], nodes, classes, spans, names, frame_seconds)
    panels[-1].set_xlabel("seconds")
    with warnings.catch_warnings():
        # A character that the font lacks is a box in the picture, and no concern of the one who aligns.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=110)


def draw_probabilities(
    axes: Axes, log_probs: Tensor, rows: Sequence[int], spans: Sequence[TokenSpan], names: Sequence[str], step: float
) -> None:
    probabilities = log_probs[:, list(rows)].double().exp().T.clamp(1e-4, 1.0)
    image = axes.imshow(
        probabilities.numpy(),
        aspect="auto",
        cmap="Greys",
        norm=LogNorm(1e-4, 1.0),
        interpolation="nearest",
        extent=(0, len(log_probs) * step, len(rows) - 0.5, -0.5),
    )
    axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=14, label="probability")
    for span in spans:
        start, end = span.seconds(step)
        row = rows.index(span.token)
        box = [start, end, end, start, start], [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5]
        axes.plot(*box, color=COLOUR, linewidth=1.4, solid_joinstyle="miter")
    axes.set_yticks(range(len(rows)), [names[c] for c in rows], **TICKS)
    axes.set_title("What the network says of each class; framed, the best path", fontsize=10, pad=20)


def draw_words(axes: Axes, utterance: Utterance) -> None:
    """The words, or the tokens, above the axes, each over its time."""
    intervals = utterance.words or utterance.tokens
    if len(intervals) > MAX_TEXTS:
        return
    for text, start, end, _ in intervals:
        axes.text(
            (start + end) / 2,
            1.02,
            visible(text if len(text) <= MAX_WORD else f"{text[: MAX_WORD - 1]}…"),
            parse_math=False,
            in_layout=False,  # a long one may stand over the edge, but not narrow the picture
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            family="monospace",
            color=COLOUR,
        )
        if utterance.words:
            for edge in (start, end):
                axes.axvline(edge, color=COLOUR, linewidth=0.6, alpha=0.5)


def draw_posteriors(
    axes: Axes, nodes: Tensor, classes: Sequence[int], spans: Sequence[TokenSpan], names: Sequence[str], step: float
) -> None:
    plots.posteriors(nodes, frame_seconds=step, ax=axes)
    edges = torch.tensor([[*span.seconds(step)] for span in spans]).reshape(-1, 2).numpy()
    middle = np.arange(len(spans))
    axes.hlines(middle, edges[:, 0], edges[:, 1], color=COLOUR, linewidth=2.2)
    every = -(-len(classes) // MAX_TEXTS)
    ticks = range(0, len(classes), every)
    axes.set_yticks(ticks, [names[classes[s]] for s in ticks], **TICKS)
    axes.set_title(
        "Posterior of each token of the transcript, over all its paths; the line, the best path", fontsize=10
    )
