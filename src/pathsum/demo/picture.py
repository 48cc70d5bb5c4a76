"""One picture of what the recognisers do with one sequence, and of their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathsum.torch import rnnt_loss

from .data import BLANK, HOP, MELS, SAMPLE_RATE, Batch, decode, mel_filters
from .model import CTCRecogniser, RNNTRecogniser, Transcript
from .report import TITLES

COLOURS = {"ctc": "tab:orange", "rnnt": "tab:blue"}
DOT: dict[str, Any] = {"color": "tab:orange", "markersize": 4}


def draw(
    path: Path,
    recognisers: Mapping[str, CTCRecogniser | RNNTRecogniser],
    batch: Batch,
    metrics: Mapping[str, Any],
) -> None:
    """Draws one sequence: spectrogram and alignments, then posteriors. Below, the loss curves.

    It is the first of three words that all recognisers got right, or else the first of three words.
    """
    written = {name: recogniser.transcribe(batch) for name, recogniser in recognisers.items()}
    three_words = [n for n, text in enumerate(batch.texts) if len(text.split()) == 3]
    right = [n for n in three_words if all(of[n].text == batch.texts[n] for of in written.values())]
    n = (right or three_words)[0]
    batch = pick(batch, n)
    transcripts = {name: of[n] for name, of in written.items()}
    figure = Figure(figsize=(13, 4.2 + 4 * len(recognisers)), layout="constrained")
    figure.suptitle(f"“{batch.texts[0]}”, a held-out sequence, as small recognisers hear it", fontsize=15)
    panels = figure.subplots(2 + len(recognisers), 1, height_ratios=[1.2] + [1.6] * len(recognisers) + [0.9])
    draw_spectrogram(panels[0], batch, recognisers, transcripts)
    for axes, (name, recogniser) in zip(panels[1:-1], recognisers.items(), strict=True):
        if isinstance(recogniser, CTCRecogniser):
            draw_ctc_posteriors(axes, recogniser, batch, transcripts[name])
        else:
            draw_rnnt_posteriors(axes, recogniser, batch, transcripts[name])
        axes.sharex(panels[0])
    panels[-2].set_xlabel("seconds")
    draw_loss_curves(panels[-1], metrics)
    figure.savefig(path, dpi=110)


def pick(batch: Batch, n: int) -> Batch:
    frames, labels = int(batch.feature_lengths[n]), int(batch.target_lengths[n])
    return Batch(
        batch.features[n : n + 1, :frames],
        batch.feature_lengths[n : n + 1],
        batch.targets[n : n + 1, :labels],
        batch.target_lengths[n : n + 1],
        batch.texts[n : n + 1],
    )


def draw_spectrogram(
    axes: Axes,
    batch: Batch,
    recognisers: Mapping[str, CTCRecogniser | RNNTRecogniser],
    transcripts: Mapping[str, Transcript],
) -> None:
    seconds = batch.features.shape[1] * HOP / SAMPLE_RATE
    axes.imshow(
        batch.features[0].T.numpy(),
        aspect="auto",
        origin="lower",
        cmap="magma",
        extent=(0, seconds, -0.5, MELS - 0.5),
    )
    axes.set_facecolor("black")
    peaks = mel_filters().argmax(0).numpy() * (SAMPLE_RATE / 2) / (len(mel_filters()) - 1)
    ticks = [250, 500, 1000, 2000, 3500]
    axes.set_yticks(np.interp(ticks, peaks, np.arange(MELS)), [str(tick) for tick in ticks])
    axes.set_ylabel("Hz (mel scale)")
    axes.set_title("Log-mel spectrogram; each character where it was written, by CTC above, by RNN-T below")
    for name, transcript in transcripts.items():
        step = recognisers[name].encoder.seconds_per_frame
        for frame in sorted(set(transcript.frames)):
            classes = [c for c, t in zip(transcript.classes, transcript.frames, strict=True) if t == frame]
            axes.text(
                frame * step,
                0.95 if name == "ctc" else 0.05,
                decode(classes).replace(" ", "␣"),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top" if name == "ctc" else "bottom",
                color="white",
                family="monospace",
                fontsize=12,
                fontweight="bold",
                path_effects=[patheffects.withStroke(linewidth=2.5, foreground="black")],
            )


def draw_ctc_posteriors(axes: Axes, recogniser: CTCRecogniser, batch: Batch, transcript: Transcript) -> None:
    with torch.no_grad():
        probs = recogniser(batch)[0][:, 0].softmax(1)
    rows = sorted(set(transcript.classes) | {BLANK} | set(batch.targets[0].tolist()))
    step = recogniser.encoder.seconds_per_frame
    draw_matrix(axes, probs[:, rows].T, step, [label(c) for c in rows])
    axes.plot([t * step for t in transcript.frames], [rows.index(c) for c in transcript.classes], "o", **DOT)
    axes.set_ylabel("class")
    axes.set_title(
        f"CTC wrote “{transcript.text}”: posterior of each class in each frame; a dot where a character begins"
    )


def draw_rnnt_posteriors(axes: Axes, recogniser: RNNTRecogniser, batch: Batch, transcript: Transcript) -> None:
    written = batch._replace(
        targets=torch.tensor([transcript.classes], dtype=torch.int64),
        target_lengths=torch.tensor([len(transcript.classes)]),
    )
    step = recogniser.encoder.seconds_per_frame
    draw_matrix(axes, node_posteriors(recogniser, written).T, step, ["start"] + [label(c) for c in transcript.classes])
    axes.plot([t * step for t in transcript.frames], range(1, 1 + len(transcript.frames)), "o", **DOT)
    axes.set_ylabel("written so far")
    axes.set_title(
        f"RNN-T wrote “{transcript.text}”: posterior over all its alignments; a dot where greedy decoding wrote"
    )


def node_posteriors(recogniser: RNNTRecogniser, batch: Batch) -> torch.Tensor:
    """Returns (T, U+1): the probability that an alignment of the one target passes through each node of the grid.

    The gradient of the loss with respect to log-probabilities is minus the posterior of each arc, and every alignment
    leaves each node it visits by one arc.
    """
    with torch.no_grad():
        logits, lengths = recogniser(batch)
    log_probs = logits.log_softmax(3).requires_grad_()
    loss = rnnt_loss(
        log_probs,
        batch.targets,
        lengths,
        batch.target_lengths,
        blank=BLANK,
        fused_log_softmax=False,
        reduction="sum",
    )
    (grad_log_probs,) = torch.autograd.grad(loss, log_probs)
    return -grad_log_probs[0].sum(2)


def draw_matrix(axes: Axes, rows: torch.Tensor, step: float, labels: Sequence[str]) -> None:
    # An encoder frame stands for the stretch around its time, hence the half step.
    extent = (-step / 2, (rows.shape[1] - 0.5) * step, -0.5, len(labels) - 0.5)
    axes.imshow(
        rows.numpy(),
        aspect="auto",
        origin="lower",
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=extent,
    )
    axes.set_yticks(range(len(labels)), labels, family="monospace")
    axes.set_ylim(extent[2:])


def draw_loss_curves(axes: Axes, metrics: Mapping[str, Any]) -> None:
    for name, of in metrics["losses"].items():
        axes.semilogy(
            range(1, 1 + of["steps"]),
            of["loss_curve"],
            color=COLOURS[name],
            label=f"{TITLES[name]}: {of['word_error_rate']:.1%} of words wrong, held out",
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.set_title("Training loss (each in its own unit: CTC per character, RNN-T per sequence)")
    axes.legend()


def label(c: int) -> str:
    if c == BLANK:
        return "blank"
    return "space" if decode([c]) == " " else decode([c])
