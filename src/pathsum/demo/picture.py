"""One picture of what the recognisers do with one sequence, and of their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathsum import plots
from pathsum.torch import TokenSpan

from .data import HOP, MELS, SAMPLE_RATE, Batch, decode, encode, mel_filters
from .model import Recogniser, word_seconds, words
from .report import TITLES
from .train import OBJECTIVES

COLOURS = {"ctc": "tab:orange", "rnnt": "tab:blue", "asg": "tab:green", "lfmmi": "tab:red"}
PANEL_TITLES = {
    "ctc": "a character for a frame or two, blanks between in grey",
    "rnnt": "a row is what is written so far, and a character where its row begins",
    "asg": "every frame belongs to a character; 1 is the one before it once more",
    "lfmmi": "a character for a frame or more, among all strings of the words",
}


def draw(path: Path, recognisers: Mapping[str, Recogniser], batch: Batch, metrics: Mapping[str, Any]) -> None:
    """Draws one sequence: words, spectrogram, then each loss's lattice. Below, the loss curves.

    It is the first of three words that all recognisers got right, or else the first of three words. What is aligned is
    what was spoken.
    """
    written = {name: recogniser.transcribe(batch) for name, recogniser in recognisers.items()}
    three_words = [n for n, text in enumerate(batch.texts) if len(text.split()) == 3]
    right = [n for n in three_words if all(of[n].text == batch.texts[n] for of in written.values())]
    n = (right or three_words)[0]
    batch = batch.part(n, n + 1)
    aligned = {name: recogniser.align(batch)[0] for name, recogniser in recognisers.items()}
    figure = Figure(figsize=(13, 6.5 + 3.6 * len(recognisers)), layout="constrained")
    figure.suptitle(f"“{batch.texts[0]}”, a held-out sequence, as small recognisers hear it", fontsize=15)
    ratios = [0.3 + 0.22 * len(recognisers), 1.7, *[1.6] * len(recognisers), 1.2]
    rows = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
    spectrogram = figure.add_subplot(rows[1])
    lanes, *lattices = (figure.add_subplot(rows[k], sharex=spectrogram) for k in (0, *range(2, 2 + len(recognisers))))
    draw_words(lanes, recognisers, aligned, batch)
    draw_spectrogram(spectrogram, batch)
    for axes, (name, recogniser) in zip(lattices, recognisers.items(), strict=True):
        draw_lattice(axes, name, recogniser, batch, aligned[name], written[name][n].text)
    lattices[-1].set_xlabel("seconds")
    draw_loss_curves(figure, rows[len(ratios) - 1].subgridspec(1, len(metrics["losses"])), metrics)
    figure.savefig(path, dpi=110)


def draw_recording(path: Path, recognisers: Mapping[str, Recogniser], batch: Batch, name: str) -> None:
    """Draws a recording of which nobody knows what was said: its spectrogram, and what each recogniser wrote when."""
    aligned = {}
    for key, recogniser in recognisers.items():
        text = recogniser.transcribe(batch)[0].text
        written = torch.tensor([encode(text)], dtype=torch.int64)
        spoken = batch._replace(targets=written, target_lengths=torch.tensor([len(text)]), texts=[text])
        aligned[key] = recogniser.align(spoken)[0] if text else []
    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle(name, fontsize=15, parse_math=False)
    lanes, spectrogram = figure.subplots(2, 1, sharex=True, height_ratios=[0.3 + 0.22 * len(recognisers), 1.7])
    draw_words(lanes, recognisers, aligned, batch)
    draw_spectrogram(spectrogram, batch)
    spectrogram.set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def draw_words(
    axes: Axes, recognisers: Mapping[str, Recogniser], aligned: Mapping[str, list[TokenSpan]], batch: Batch
) -> None:
    """A lane for each loss, whose bars are the words of its alignment."""
    for lane, (name, spans) in enumerate(aligned.items()):
        for word in words(spans):
            begin, end = word_seconds(word, recognisers[name])
            axes.broken_barh([(begin, end - begin)], (lane - 0.4, 0.8), color=COLOURS[name])
            axes.text(
                (begin + end) / 2,
                lane,
                decode([span.token for span in word]),
                ha="center",
                va="center",
                color="white",
                fontweight="bold",
                path_effects=[patheffects.withStroke(linewidth=2, foreground="black")],
            )
    draw_cuts(axes, batch, "black")
    axes.set_ylim(len(aligned) - 0.5, -0.5)
    axes.set_yticks(range(len(aligned)), [TITLES[name] for name in aligned])
    axes.tick_params(axis="x", labelbottom=False)
    axes.set_title(
        "Words on the best alignment" + ("; dashed: where the recordings were cut" if batch.word_seconds[0] else "")
    )


def draw_cuts(axes: Axes, batch: Batch, colour: str) -> None:
    for edge in (edge for cut in batch.word_seconds[0] for edge in cut):
        axes.axvline(edge, color=colour, linestyle="dashed", linewidth=0.8)


def draw_spectrogram(axes: Axes, batch: Batch) -> None:
    seconds = batch.features.shape[1] * HOP / SAMPLE_RATE
    plots.alignment(batch.features[0], [], feature_seconds=HOP / SAMPLE_RATE, ax=axes)
    axes.set_xlabel("")
    draw_cuts(axes, batch, "white")
    axes.set_xlim(0, seconds)
    peaks = mel_filters().argmax(0).numpy() * (SAMPLE_RATE / 2) / (len(mel_filters()) - 1)
    ticks = [250, 500, 1000, 2000, 3500]
    axes.set_yticks(np.interp(ticks, peaks, np.arange(MELS)), [*map(str, ticks)])
    axes.set_ylabel("Hz (mel scale)")
    axes.set_title("Log-mel spectrogram")


def draw_lattice(
    axes: Axes, name: str, recogniser: Recogniser, batch: Batch, aligned: list[TokenSpan], written: str
) -> None:
    """How probable each row of the lattice is in each frame, the rows without a name in grey."""
    posteriors, names = recogniser.posteriors(batch)
    step = recogniser.encoder.seconds_per_frame
    colours = [COLOURS[name] if row else "dimgrey" for row in names]
    plots.posteriors(posteriors, frame_seconds=step, start_seconds=-step / 2, colours=colours, ax=axes)
    axes.set_xlabel("")
    draw_cuts(axes, batch, "black")
    rows = [row for row, text in enumerate(names) if text]
    axes.set_yticks(rows, [names[row].replace(" ", "␣") for row in rows], family="monospace", fontsize=8)
    axes.set_ylabel("label")
    axes.set_title(f"{TITLES[name]} wrote “{written}”; posterior over all alignments: {PANEL_TITLES[name]}")


def draw_loss_curves(figure: Figure, cells: Any, metrics: Mapping[str, Any]) -> None:
    """A curve for each loss: what they are of differs."""
    for place, (name, of) in enumerate(metrics["losses"].items()):
        axes = figure.add_subplot(cells[place])
        axes.semilogy(range(1, 1 + of["steps"]), of["loss_curve"], color=COLOURS[name])
        axes.set_xlabel("training step")
        axes.set_ylabel(f"loss per {OBJECTIVES[name].unit}")
        axes.set_title(f"{TITLES[name]}: {of['word_error_rate']:.1%} of words wrong, held out", fontsize=10)
