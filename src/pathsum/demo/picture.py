"""One picture of what the recognisers do with one sequence, and of their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pathsum.torch import TokenSpan

from .data import HOP, MELS, SAMPLE_RATE, Batch, decode, mel_filters
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
LANE = 5  # mel bands: height of a loss's lane above the spectrogram


def draw(path: Path, recognisers: Mapping[str, Recogniser], batch: Batch, metrics: Mapping[str, Any]) -> None:
    """Draws one sequence: spectrogram and word boundaries, then each loss's lattice. Below, the loss curves.

    It is the first of three words that all recognisers got right, or else the first of three words. What is aligned is
    what was spoken.
    """
    written = {name: recogniser.transcribe(batch) for name, recogniser in recognisers.items()}
    three_words = [n for n, text in enumerate(batch.texts) if len(text.split()) == 3]
    right = [n for n in three_words if all(of[n].text == batch.texts[n] for of in written.values())]
    n = (right or three_words)[0]
    batch = pick(batch, n)
    aligned = {name: recogniser.align(batch)[0] for name, recogniser in recognisers.items()}
    figure = Figure(figsize=(13, 6 + 3.6 * len(recognisers)), layout="constrained")
    figure.suptitle(f"“{batch.texts[0]}”, a held-out sequence, as small recognisers hear it", fontsize=15)
    ratios = [1.7] + [1.6] * len(recognisers) + [1.0]
    spectrogram, *lattices, curves = figure.subplots(len(ratios), 1, height_ratios=ratios)
    draw_spectrogram(spectrogram, batch, recognisers, aligned)
    for axes, (name, recogniser) in zip(lattices, recognisers.items(), strict=True):
        draw_lattice(axes, name, recogniser, batch, aligned[name], written[name][n].text)
        axes.sharex(spectrogram)
    lattices[-1].set_xlabel("seconds")
    draw_loss_curves(curves, metrics)
    figure.savefig(path, dpi=110)


def pick(batch: Batch, n: int) -> Batch:
    frames, labels = int(batch.feature_lengths[n]), int(batch.target_lengths[n])
    return Batch(
        batch.features[n : n + 1, :frames],
        batch.feature_lengths[n : n + 1],
        batch.targets[n : n + 1, :labels],
        batch.target_lengths[n : n + 1],
        batch.texts[n : n + 1],
        batch.word_seconds[n : n + 1],
    )


def draw_spectrogram(
    axes: Axes,
    batch: Batch,
    recognisers: Mapping[str, Recogniser],
    aligned: Mapping[str, list[TokenSpan]],
) -> None:
    """The spectrogram; above it a lane for each loss, whose bars are the words of its alignment."""
    seconds = batch.features.shape[1] * HOP / SAMPLE_RATE
    axes.imshow(
        batch.features[0].T.numpy(),
        aspect="auto",
        origin="lower",
        cmap="magma",
        extent=(0, seconds, -0.5, MELS - 0.5),
    )
    top = MELS + LANE * len(aligned)
    for begin, end in batch.word_seconds[0]:
        axes.vlines([begin, end], -0.5, top, colors="white", linestyles="dashed", linewidth=1)
    for lane, (name, spans) in enumerate(reversed(list(aligned.items()))):
        bottom = MELS + LANE * lane
        for word in words(spans):
            begin, end = word_seconds(word, recognisers[name])
            axes.broken_barh([(begin, end - begin)], (bottom + 0.6, LANE - 1.2), color=COLOURS[name])
            axes.vlines([begin, end], -0.5, bottom, colors=COLOURS[name], linewidth=1.2)
            axes.text(
                (begin + end) / 2,
                bottom + LANE / 2,
                decode([span.token for span in word]),
                ha="center",
                va="center",
                color="white",
                fontweight="bold",
                path_effects=[patheffects.withStroke(linewidth=2, foreground="black")],
            )
    axes.set_facecolor("black")
    axes.set_xlim(0, seconds)
    axes.set_ylim(-0.5, top)
    peaks = mel_filters().argmax(0).numpy() * (SAMPLE_RATE / 2) / (len(mel_filters()) - 1)
    ticks = [250, 500, 1000, 2000, 3500]
    lanes = [MELS + LANE * (lane + 0.5) for lane in reversed(range(len(aligned)))]
    axes.set_yticks(
        [*np.interp(ticks, peaks, np.arange(MELS)), *lanes], [*map(str, ticks), *(TITLES[name] for name in aligned)]
    )
    for text, name in zip(axes.get_yticklabels()[len(ticks) :], aligned, strict=True):
        text.set(color=COLOURS[name], weight="bold")
    axes.set_ylabel("Hz (mel scale)")
    axes.set_title("Log-mel spectrogram; words of each loss's best alignment; dashed: where the recordings were cut")


def draw_lattice(
    axes: Axes, name: str, recogniser: Recogniser, batch: Batch, aligned: list[TokenSpan], written: str
) -> None:
    """How probable each row of the lattice is in each frame, the rows without a name in grey."""
    posteriors, names = recogniser.posteriors(batch)
    step = recogniser.encoder.seconds_per_frame
    colours = np.array([to_rgb(COLOURS[name] if row else "dimgrey") for row in names])
    share = posteriors.T.clamp(0, 1).numpy()[:, :, None]
    extent = (-step / 2, (len(posteriors) - 0.5) * step, -0.5, len(names) - 0.5)
    axes.imshow(
        1 - share * (1 - colours[:, None]),
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=extent,
    )
    for begin, end in batch.word_seconds[0]:
        axes.vlines([begin, end], *extent[2:], colors="black", linestyles="dashed", linewidth=0.7)
    rows = [row for row, text in enumerate(names) if text]
    axes.set_yticks(rows, [names[row].replace(" ", "␣") for row in rows], family="monospace", fontsize=8)
    axes.set_ylim(extent[2:])
    axes.set_ylabel("label")
    axes.set_title(f"{TITLES[name]} wrote “{written}”; posterior over all alignments: {PANEL_TITLES[name]}")


def draw_loss_curves(axes: Axes, metrics: Mapping[str, Any]) -> None:
    for name, of in metrics["losses"].items():
        axes.semilogy(
            range(1, 1 + of["steps"]),
            of["loss_curve"],
            color=COLOURS[name],
            label=f"{TITLES[name]}, per {OBJECTIVES[name].unit}: {of['word_error_rate']:.1%} of words wrong, held out",
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.set_title("Training loss")
    axes.legend()
