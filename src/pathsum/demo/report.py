"""What the demo says: error rates, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
import numpy as np
from rich.console import Console
from rich.table import Table

from .data import Batch
from .model import Recogniser, word_seconds, words
from .train import COMPARE_EVERY, OBJECTIVES, Log

TITLES = {"ctc": "CTC", "rnnt": "RNN-T", "asg": "ASG", "lfmmi": "LF-MMI"}


def error_rates(spoken: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """Returns the word and character error rates over all sequences, and the first sequences that went wrong."""
    wrong = [{"spoken": s, "written": w} for s, w in zip(spoken, written, strict=True) if s != w]
    return {
        "word_error_rate": jiwer.wer(list(spoken), list(written)),
        "character_error_rate": jiwer.cer(list(spoken), list(written)),
        "wrong_sequences": len(wrong),
        "first_wrong": wrong[:5],
    }


def boundary_errors(batches: Sequence[Batch], recogniser: Recogniser) -> dict[str, float]:
    """Returns how far the words of the best alignment begin and end from where the recordings were cut: medians."""
    errors = [
        np.subtract(word_seconds(word, recogniser), cut)
        for batch in batches
        for spans, cuts in zip(recogniser.align(batch), batch.word_seconds, strict=True)
        for word, cut in zip(words(spans), cuts, strict=True)
    ]
    begin, end = np.median(np.abs(errors), axis=0).tolist()
    return {"word_begin_error_seconds": begin, "word_end_error_seconds": end}


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
        "words begin, end off by": lambda of: (
            f"{1e3 * of['word_begin_error_seconds']:.0f} ms, {1e3 * of['word_end_error_seconds']:.0f} ms"
        ),
        "training": lambda of: f"{of['steps']} steps, {of['seconds']:.0f} s",
        "one step": lambda of: f"{1e3 * of['step_seconds']:.1f} ms",
        "of which in the loss": lambda of: f"{1e3 * of['loss_seconds']:.2f} ms, {of['loss_share']:.1%}",
    }.items():
        table.add_row(heading, *map(cell, results))
    table.add_row("torch's own, ours again", *(beside_torch(name, of) for name, of in metrics["losses"].items()))
    console.print(f"{metrics['held_out_sequences']} held-out sequences; {metrics['held_out']}")
    console.print(table)
    console.print(
        "Medians throughout. A loss's time is forward and backward, RNN-T's with the joiner that is fused with it. "
        f"Each {COMPARE_EVERY}th step's logits went through torch's own loss, and ours again, outside the step's time. "
        "Words of the best alignment are compared with where the recordings were cut."
    )
    print_decoding(console, metrics)
    for name, of in metrics["losses"].items():
        console.print(f"{TITLES[name]:>5} loss {sparkline(of['loss_curve'])} {of['loss_curve'][-1]:.3f}")
        for wrong in of["first_wrong"][:1]:
            console.print(f"      e.g. wrote '{wrong['written']}' for '{wrong['spoken']}'")
    names = ["demo.png", "metrics.json", "words.txt", "words.arpa"]
    if "recording" in metrics:
        console.print("Your recording:")
        for name, text in metrics["recording"].items():
            console.print(f"  {name}: '{text}'")
        names.append("recording.png")
    files = ", ".join(str(folder / name) for name in names)
    console.print(f"Written: {files}")


def print_decoding(console: Console, metrics: Mapping[str, Any]) -> None:
    """The word error rates of CTC's recogniser by how it is decoded, before and after MWER's steps."""
    if "decoding" not in metrics:
        return
    stages = {"trained with CTC": metrics["decoding"]}
    if "mwer" in metrics:
        stages[f"and {len(metrics['mwer']['expected_errors'])} steps of MWER"] = metrics["mwer"]
    table = Table("word error rate", *metrics["decoding"])
    for stage, rates in stages.items():
        table.add_row(stage, *(f"{rates[name]:.2%}" for name in metrics["decoding"]))
    console.print(table)


def beside_torch(name: str, result: Mapping[str, Any]) -> str:
    if OBJECTIVES[name].torch_loss is None:
        return "torch has none"
    if "torch_loss_seconds" not in result:
        return f"not timed in fewer than {COMPARE_EVERY} steps"
    theirs, ours = result["torch_loss_seconds"], result["loss_seconds_beside_torch"]
    return f"{1e3 * theirs:.2f} ms, {1e3 * ours:.2f} ms"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Returns one character per stretch of `values`, its height the logarithm of the stretch's mean."""
    heights = np.log([np.mean(part) for part in np.array_split(values, min(width, len(values)))])
    span = heights.max() - heights.min() or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int(level)] for level in 7 * (heights - heights.min()) / span)
