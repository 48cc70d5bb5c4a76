"""What `pathsum demo` does, from the options to the files it leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.text import Text

from pathsum.console import Console
from pathsum.files import check_folder, replacing, write_text

from .data import Batch, WordSequences, load_recording, load_recordings, one_recording
from .decoding import LM_TEXTS, Decoder, decoders, language_model, sharpen, transcribe
from .model import CTCRecogniser, Recogniser
from .picture import draw, draw_recording
from .report import TITLES, boundary_errors, error_rates, print_summary, summarise
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
    mwer_steps: int = 40,
    wav: str | None = None,
) -> dict[str, Any]:
    """Trains one recogniser per loss on random sequences of recorded number words and tests it on held-out sequences.

    Args:
        losses: Which of `"ctc"`, `"rnnt"`, `"asg"` and `"lfmmi"` to train with.
        out: Folder for `metrics.json`, `demo.png`, the language model and the list of words; made if missing.
        steps: Training steps per loss; None takes each recogniser's own default.
        seconds: Time budget per loss, from the end of the first step, which may compile kernels. Training ends after
            `steps` or `seconds`, whichever comes first, and the learning rate follows whichever is nearer, so that a
            slow machine gets a shorter training, not a broken one.
        seed: Seeds the weights and the training sequences. The held-out sequences are always the same.
        num_threads: CPU threads while training and testing; None takes one, since matrices as small as these gain next
            to nothing from a second, and lose much on a busy machine.
        mwer_steps: Steps on the expected number of wrong words, behind CTC's training; 0 leaves them out.
        wav: Path of a recording of one's own, which the recognisers write down and align.

    Returns:
        What `metrics.json` holds.
    """
    unknown = [name for name in losses if name not in OBJECTIVES]
    if unknown or not losses:
        raise ValueError(f"demo: losses must be some of {sorted(OBJECTIVES)}; got {list(losses)}")
    num_threads = num_threads or 1
    own = None if wav is None else load_recording(wav)
    folder = Path(out)
    check_folder(folder)
    first = not dist.is_initialized() or dist.get_rank() == 0
    console = Console(quiet=not first)
    recordings = load_recordings()
    held_out_stream = WordSequences(recordings, HELD_OUT_SEED)
    held_out = [held_out_stream.batch(HELD_OUT_BATCH_SIZE) for _ in range(HELD_OUT_BATCHES)]
    held_out_texts = [text for batch in held_out for text in batch.texts]
    processes = dist.get_world_size() if dist.is_initialized() else 1
    console.print(
        Text("pathsum demo", style="bold"),
        f": {len(recordings)} recorded number words, 2 to 5 in a sequence, CPU threads: {num_threads}"
        f"{f' in each of {processes} processes' if processes > 1 else ''}, "
        f"at most {seconds:g} s for each loss behind its first step",
        sep="",
    )
    metrics: dict[str, Any] = {
        "words": len(recordings),
        "held_out_sequences": len(held_out_texts),
        "held_out": "one voice; unseen sequences of seen recordings",
        "seed": seed,
        "num_threads": num_threads,
        "processes": processes,
        "torch": torch.__version__,
        "losses": {},
    }
    recognisers: dict[str, Recogniser] = {}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for name in dict.fromkeys(losses):
            stream = WordSequences(recordings, seed, exclude=frozenset(held_out_texts))
            recogniser, log = train(name, stream, steps=steps, seconds=seconds, seed=seed, console=console)
            if not first:
                continue
            written = [transcript.text for batch in held_out for transcript in recogniser.transcribe(batch)]
            rates = error_rates(held_out_texts, written) | boundary_errors(held_out, recogniser)
            metrics["losses"][name] = summarise(log) | rates
            recognisers[name] = recogniser
        stream = WordSequences(recordings, seed + 1, exclude=frozenset(held_out_texts))
        arpa = language_model(stream.texts(LM_TEXTS), stream.words)
        trained, beams = recognisers.get("ctc"), decoders(arpa, stream.words)
        if isinstance(trained, CTCRecogniser):
            metrics["decoding"] = decoded(trained, held_out, beams)
            if mwer_steps:
                sharpened = copy.deepcopy(trained)
                expected = sharpen(sharpened, stream, mwer_steps, console)
                metrics["mwer"] = decoded(sharpened, held_out, beams) | {"expected_errors": expected}
    finally:
        torch.set_num_threads(threads_before)

    if not first:
        return metrics
    heard = {}
    if own is not None:
        batch = one_recording(own)
        heard = {TITLES[name]: recogniser.transcribe(batch)[0].text for name, recogniser in recognisers.items()}
        if isinstance(trained, CTCRecogniser):
            heard |= {f"CTC, {name}": transcribe(trained, batch, decoder)[0] for name, decoder in beams.items()}
        metrics["recording"] = heard
    with replacing(folder) as beside:
        if own is not None:
            draw_recording(beside / "recording.png", recognisers, one_recording(own), Path(str(wav)).name)
        write_text(beside / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_text(beside / "words.arpa", arpa)
        write_text(beside / "words.txt", "\n".join(recordings) + "\n")
        draw(beside / "demo.png", recognisers, held_out[0], metrics)
    print_summary(console, metrics, folder)
    return metrics


def decoded(recogniser: CTCRecogniser, batches: Sequence[Batch], beams: Mapping[str, Decoder]) -> dict[str, float]:
    """Returns the word error rate of each way to decode."""
    spoken = [text for batch in batches for text in batch.texts]
    written = {"greedy": [each.text for batch in batches for each in recogniser.transcribe(batch)]}
    for name, decoder in beams.items():
        written[name] = [text for batch in batches for text in transcribe(recogniser, batch, decoder)]
    return {name: error_rates(spoken, texts)["word_error_rate"] for name, texts in written.items()}
