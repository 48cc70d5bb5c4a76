"""What `pathsum demo` does, from the options to the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from pathsum.console import Console
from pathsum.files import check_folder, replacing, write_text

from .data import WordSequences, load_recordings
from .picture import draw
from .report import boundary_errors, error_rates, print_summary, summarise
from .train import OBJECTIVES, train

HELD_OUT_SEED = 2026
HELD_OUT_BATCHES = 4
HELD_OUT_BATCH_SIZE = 50


def run(
    losses: Sequence[str] = ("ctc", "rnnt", "asg"),
    out: str | Path = "demo-out",
    steps: int | None = None,
    seconds: float = 180,
    seed: int = 0,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Trains one recogniser per loss on random sequences of recorded number words and tests it on held-out sequences.

    Args:
        losses: Which of `"ctc"`, `"rnnt"`, `"asg"` and `"lfmmi"` to train with.
        out: Folder for `metrics.json` and `demo.png`; made if missing.
        steps: Training steps per loss; None takes each recogniser's own default.
        seconds: Time budget per loss. Training ends after `steps` or `seconds`, whichever comes first, and the learning
            rate follows whichever is nearer, so that a slow machine gets a shorter training, not a broken one.
        seed: Seeds the weights and the training sequences. The held-out sequences are always the same.
        num_threads: CPU threads while training and testing; None takes one, since matrices as small as these gain next
            to nothing from a second, and lose much on a busy machine.

    Returns:
        What `metrics.json` holds.
    """
    unknown = [name for name in losses if name not in OBJECTIVES]
    if unknown or not losses:
        raise ValueError(f"demo: losses must be some of {sorted(OBJECTIVES)}; got {list(losses)}")
    num_threads = num_threads or 1
    folder = Path(out)
    check_folder(folder)
    console = Console()
    recordings = load_recordings()
    held_out_stream = WordSequences(recordings, HELD_OUT_SEED)
    held_out = [held_out_stream.batch(HELD_OUT_BATCH_SIZE) for _ in range(HELD_OUT_BATCHES)]
    held_out_texts = [text for batch in held_out for text in batch.texts]
    console.print(
        Text("pathsum demo", style="bold"),
        f": {len(recordings)} recorded number words, 2 to 5 in a sequence, "
        f"CPU threads: {num_threads}, at most {seconds:g} s for each loss",
        sep="",
    )

    metrics: dict[str, Any] = {
        "words": len(recordings),
        "held_out_sequences": len(held_out_texts),
        "held_out": "one voice; unseen sequences of seen recordings",
        "seed": seed,
        "num_threads": num_threads,
        "torch": torch.__version__,
        "losses": {},
    }
    recognisers = {}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for name in dict.fromkeys(losses):
            stream = WordSequences(recordings, seed, exclude=frozenset(held_out_texts))
            recogniser, log = train(name, stream, steps=steps, seconds=seconds, seed=seed, console=console)
            written = [transcript.text for batch in held_out for transcript in recogniser.transcribe(batch)]
            rates = error_rates(held_out_texts, written) | boundary_errors(held_out, recogniser)
            metrics["losses"][name] = summarise(log) | rates
            recognisers[name] = recogniser
    finally:
        torch.set_num_threads(threads_before)

    with replacing(folder) as beside:
        write_text(beside / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        draw(beside / "demo.png", recognisers, held_out[0], metrics)
    print_summary(console, metrics, folder)
    return metrics
