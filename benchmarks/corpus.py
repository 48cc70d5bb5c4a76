"""What `pathsum align` takes for a corpus: its rate by one process and by two, the first process's part, peak memory.

    python benchmarks/corpus.py [--utterances 10000] [--rounds 3] [--folder FOLDER]

The utterances are of the demo's recordings, 3 s each; their scores are noise with a peak where each letter is. One
process and two take turns, and of each the best round counts, on a machine that does nothing else. A tenth of the
corpus goes before, for its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from pathsum import cli

FRAME_SECONDS = 0.04
BATCH = 50


def make(folder: Path, count: int) -> None:
    """Write a manifest of so many utterances, one of a tenth, their scores and a vocabulary."""
    from pathsum.demo.data import CHARACTERS, NUM_CLASSES, WordSequences, encode, load_recordings

    stream, rng = WordSequences(load_recordings(), 5), np.random.default_rng(0)
    (folder / "tokens.txt").write_text("\n".join(["<blank>", *CHARACTERS]) + "\n")
    lines: list[str] = []
    while len(lines) < count:
        batch = stream.batch(BATCH)
        for text, length, words in zip(batch.texts, batch.feature_lengths.tolist(), batch.word_seconds, strict=True):
            frames, name = -(-length // 4), f"{len(lines)}.npy"
            scores = rng.standard_normal((frames, NUM_CLASSES)).astype(np.float32)
            scores[:, 0] += 3
            for word, (begin, end) in zip(text.split(), words, strict=True):
                letters = encode(word)
                at = np.linspace(begin, end, len(letters), endpoint=False) / FRAME_SECONDS
                scores[at.astype(int).clip(0, frames - 1), letters] += 6
            np.save(folder / name, scores)
            lines.append(json.dumps({"id": f"u{len(lines)}", "scores": name, "text": text}) + "\n")
    (folder / "all.jsonl").write_text("".join(lines[:count]))
    (folder / "tenth.jsonl").write_text("".join(islice(lines, count // 10)))


def measured(folder: Path, manifest: str, processes: int) -> dict[str, float]:
    """One run, in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only", manifest, str(processes)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def only(folder: Path, manifest: str, processes: str) -> None:
    """Align, and print what it took."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--vocabulary", str(folder / "tokens.txt"), "--frame-seconds", str(FRAME_SECONDS), "--logits"]
        command = ["align", str(folder / manifest), *options, "--processes", processes, "--out", out]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = cli.main(command)
    (seconds,) = re.findall(r"utterances in ([\d.]+) s", printed.getvalue())
    taken = {"seconds": float(seconds), "first": time.process_time(), "status": status}
    peaks = {"first_mb": resource.RUSAGE_SELF, "worker_mb": resource.RUSAGE_CHILDREN}
    print(json.dumps(taken | {name: resource.getrusage(who).ru_maxrss / 1024 for name, who in peaks.items()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        only(arguments.folder, *arguments.only)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, count = arguments.folder or Path(temporary), arguments.utterances
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "all.jsonl").exists():
            make(folder, count)
        firsts: list[float] = []
        for manifest, size in (("tenth.jsonl", count // 10), ("all.jsonl", count)):
            rounds = [[measured(folder, manifest, processes) for processes in (1, 2)] for _ in range(arguments.rounds)]
            one, two = (min(runs, key=lambda run: run["seconds"]) for runs in zip(*rounds, strict=True))
            firsts.append(min(two["first"] for _, two in rounds))
            print(
                f"{size} utterances: {size / one['seconds']:.0f} a second by one process, "
                f"{size / two['seconds']:.0f} by two, {one['seconds'] / two['seconds'] / 2:.3f} of twice as many; "
                f"peak {two['first_mb']:.0f} MB of the first process, {two['worker_mb']:.0f} MB of a worker",
                flush=True,
            )
        print(f"the first process's part: {1000 * (firsts[1] - firsts[0]) / (count - count // 10):.3f} ms an utterance")


if __name__ == "__main__":
    main()
