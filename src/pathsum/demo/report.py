"""What the demo shows: error rates, where the time went, and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pathsum.torch import rnnt_loss

from .data import BLANK, CHARACTERS, HOP, MELS, SAMPLE_RATE, Batch, mel_filters
from .model import CTCRecogniser, RNNTRecogniser, Transcript
from .train import COMPARE_EVERY, Log

TITLES = {"ctc": "CTC", "rnnt": "RNN-T"}
COLOURS = {"ctc": "tab:orange", "rnnt": "tab:cyan"}


def error_rates(spoken: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """Returns the word and character error rates over all sequences, and the first sequences that went wrong."""
    wrong = [{"spoken": s, "written": w} for s, w in zip(spoken, written, strict=True) if s != w]
    return {
        "word_error_rate": jiwer.wer(list(spoken), list(written)),
        "character_error_rate": jiwer.cer(list(spoken), list(written)),
        "wrong_sequences": len(wrong),
        "first_wrong": wrong[:5],
    }


def summarise(log: Log) -> dict[str, Any]:
    # The first step may hold the compilation of kernels.
    step_seconds, loss_seconds = (times[1:] or times for times in (log.step_seconds, log.loss_seconds))
    summary = {
        "steps": len(log.losses),
        "seconds": log.seconds,
        "step_seconds": median(step_seconds),
        "loss_seconds": median(loss_seconds),
        "loss_share": sum(loss_seconds) / sum(step_seconds),
        "loss_curve": log.losses,
    }
    if log.torch_seconds:
        summary["loss_seconds_beside_torch"] = median(log.own_again_seconds)
        summary["torch_loss_seconds"] = median(log.torch_seconds)
    return summary


def print_summary(console: Console, metrics: Mapping[str, Any], folder: Path) -> None:
    results = metrics["losses"].values()
    table = Table("", *[TITLES[name] for name in metrics["losses"]])
    for heading, cell in {
        "word error rate": lambda of: f"{of['word_error_rate']:.2%}",
        "character error rate": lambda of: f"{of['character_error_rate']:.2%}",
        "training": lambda of: f"{of['steps']} steps, {of['seconds']:.0f} s",
        "one step": lambda of: f"{1e3 * of['step_seconds']:.1f} ms",
        "of which in the loss": lambda of: f"{1e3 * of['loss_seconds']:.2f} ms, {of['loss_share']:.1%}",
        "torch's, same logits": beside_torch,
    }.items():
        table.add_row(heading, *map(cell, results))
    console.print(f"{metrics['held_out_sequences']} held-out sequences; {metrics['held_out']}")
    console.print(table)
    console.print(
        "Times are medians; the loss's are forward and backward, from logits to their gradient. Torch's own ran on "
        f"every {COMPARE_EVERY}th step's logits, outside the step's time."
    )
    for name, of in metrics["losses"].items():
        console.print(f"{TITLES[name]:>5} loss {sparkline(of['loss_curve'])} {of['loss_curve'][-1]:.3f}")
        for wrong in of["first_wrong"][:1]:
            console.print(f"      e.g. wrote '{wrong['written']}' for '{wrong['spoken']}'")
    console.print(f"Written: {folder / 'demo.png'}, {folder / 'metrics.json'}")


def beside_torch(result: Mapping[str, Any]) -> str:
    if "torch_loss_seconds" not in result:
        return "torch has none"
    theirs, ours = result["torch_loss_seconds"], result["loss_seconds_beside_torch"]
    return f"{1e3 * theirs:.2f} ms, {theirs / ours:.1f} times as long"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Returns one character per stretch of `values`, its height the logarithm of the stretch's mean."""
    heights = np.log([np.mean(part) for part in np.array_split(values, min(width, len(values)))])
    span = heights.max() - heights.min() or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int(level)] for level in 7 * (heights - heights.min()) / span)


def draw(
    path: Path,
    recognisers: Mapping[str, CTCRecogniser | RNNTRecogniser],
    batch: Batch,
    metrics: Mapping[str, Any],
) -> None:
    """Draws the batch's first sequence of three words: spectrogram, alignments, posteriors; below, the loss curves."""
    batch = pick(batch, next(n for n, text in enumerate(batch.texts) if len(text.split()) == 3))
    transcripts = {name: recogniser.transcribe(batch)[0] for name, recogniser in recognisers.items()}
    figure = Figure(figsize=(13, 4.2 + 4 * len(recognisers)), layout="constrained")
    figure.suptitle(f"pathsum demo: the held-out sequence “{batch.texts[0]}”, heard and aligned", fontsize=15)
    panels = figure.subplots(2 + len(recognisers), 1, height_ratios=[1.2] + [1.6] * len(recognisers) + [0.9])
    draw_spectrogram(panels[0], batch, recognisers, transcripts)
    for axes, (name, recogniser) in zip(panels[1:-1], recognisers.items(), strict=True):
        if isinstance(recogniser, CTCRecogniser):
            draw_ctc_posteriors(axes, recogniser, batch, transcripts[name])
        else:
            draw_rnnt_posteriors(axes, recogniser, batch, transcripts[name])
        axes.sharex(panels[0])
        axes.set_xlabel("seconds")
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
    peaks = mel_filters().argmax(0).numpy() * (SAMPLE_RATE / 2) / (len(mel_filters()) - 1)
    ticks = [250, 500, 1000, 2000, 3500]
    axes.set_yticks(np.interp(ticks, peaks, np.arange(MELS)), [str(tick) for tick in ticks])
    axes.set_ylabel("Hz (mel scale)")
    axes.set_title("Log-mel spectrogram; each character where CTC (above) and RNN-T (below) wrote it")
    for name, transcript in transcripts.items():
        step = recognisers[name].encoder.seconds_per_frame
        for frame in sorted(set(transcript.frames)):
            classes = [c for c, t in zip(transcript.classes, transcript.frames, strict=True) if t == frame]
            axes.text(
                frame * step,
                0.95 if name == "ctc" else 0.05,
                "".join(label(c) for c in classes),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top" if name == "ctc" else "bottom",
                color=COLOURS[name],
                family="monospace",
                fontweight="bold",
                path_effects=[patheffects.withStroke(linewidth=2.5, foreground="black")],
            )


def draw_ctc_posteriors(axes: Axes, recogniser: CTCRecogniser, batch: Batch, transcript: Transcript) -> None:
    with torch.no_grad():
        probs = recogniser(batch)[0][:, 0].softmax(1)
    rows = sorted(set(transcript.classes) | {BLANK} | set(batch.targets[0].tolist()))
    step = recogniser.encoder.seconds_per_frame
    draw_matrix(axes, probs[:, rows].T, step, [label(c) for c in rows])
    axes.plot(
        [t * step for t in transcript.frames],
        [rows.index(c) for c in transcript.classes],
        ".",
        color=COLOURS["ctc"],
        label="first frame of each written character",
    )
    axes.legend(loc="upper right")
    axes.set_ylabel("class")
    axes.set_title("CTC: the recogniser's posterior of each class in each frame")


def draw_rnnt_posteriors(axes: Axes, recogniser: RNNTRecogniser, batch: Batch, transcript: Transcript) -> None:
    written = batch._replace(
        targets=torch.tensor([transcript.classes], dtype=torch.int64),
        target_lengths=torch.tensor([len(transcript.classes)]),
    )
    step = recogniser.encoder.seconds_per_frame
    draw_matrix(axes, node_posteriors(recogniser, written).T, step, ["start"] + [label(c) for c in transcript.classes])
    axes.plot(
        [t * step for t in transcript.frames],
        range(1, 1 + len(transcript.frames)),
        ".",
        color=COLOURS["rnnt"],
        label="greedy decoding writes the character",
    )
    axes.legend(loc="lower right")
    axes.set_ylabel("written so far")
    axes.set_title("RNN-T: posterior of having written this much by each frame, over all alignments")


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
    loss.backward()
    return -log_probs.grad[0].sum(2)


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
    return "␣" if CHARACTERS[c - 1] == " " else CHARACTERS[c - 1]
