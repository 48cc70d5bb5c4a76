"""From the files to the aligned utterances, printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console as RichConsole
from rich.text import Text
from torch import Tensor

from pathsum.console import Console
from pathsum.files import replacing
from pathsum.printable import printable
from pathsum.torch import TokenSpan, forced_align, infeasible, token_spans, word_spans

from . import outputs
from .inputs import STAR, AlignError, Transcript, load_scores, load_vocabulary, read_lines, spell, spell_ids
from .outputs import Interval, Utterance

FORMATS = ("textgrid", "ctm", "json", "png")


def run(
    scores: str,
    texts: Sequence[str],
    *,
    text_file: str | None = None,
    vocabulary: str | None = None,
    tokens: str | None = None,
    space: str | None = None,
    blank: int = 0,
    frame_seconds: float = 0.02,
    logits: bool = False,
    out: str | None = None,
    formats: Sequence[str] = FORMATS,
    console: RichConsole | None = None,
) -> list[Utterance]:
    """Align each sample of a file of scores with its text; print a table of each and write its files into ``out``.

    Where anything goes wrong nothing is printed, and ``out`` keeps the files that it had.

    Args:
        scores: Path of a .npy, .npz or .pt file with log-probabilities (T, C) or (N, T, C), in an archive with
            ``input_lengths`` beside them.
        texts: A transcript for each sample: words where there is a vocabulary, else class numbers.
        text_file: Path of a file with a transcript a line, in place of ``texts``.
        vocabulary: Path of a file with one token a line, in the order of the classes.
        tokens: The vocabulary as a string, a character for each class.
        space: The token that stands between words; by default the first of the usual ones that is in the vocabulary.
        blank: Index of the blank class; negative counts from the end.
        frame_seconds: How long a frame lasts, in [1e-6, 1e6].
        logits: The scores are logits.
        out: Folder to write to; ``None`` writes nothing.
        formats: What to write, some of ``FORMATS``.
        console: Where to print; by default on standard output.

    Returns:
        The aligned utterances.

    Raises:
        AlignError: (a ValueError) a file, a text or a combination of them that cannot be aligned.
    """
    console = console or Console()
    if not 1e-6 <= frame_seconds <= 1e6:
        raise AlignError(f"frame_seconds must lie in [1e-06, 1e+06]; got {frame_seconds}")
    path = Path(scores)
    log_probs, lengths = load_scores(path)
    if logits:
        log_probs = log_probs.log_softmax(2)
    if text_file is not None:
        texts = [*texts, *read_lines(Path(text_file))]
    if len(texts) != len(log_probs):
        raise AlignError(f"{path}: has {len(log_probs)} samples; got {len(texts)} transcripts")
    num_classes = log_probs.shape[2]
    blank = blank % num_classes if -num_classes <= blank < num_classes else blank

    names = _vocabulary(vocabulary, tokens, num_classes)
    transcripts = [spell_ids(text) if names is None else spell(text, names, space) for text in texts]
    names = [*(map(str, range(num_classes)) if names is None else names), STAR]
    if any(transcript.unspelled for transcript in transcripts):
        # The star's scores: log-probability 0 in every frame, that of any class at all.
        log_probs = torch.nn.functional.pad(log_probs, (0, 1))
    targets = [label for transcript in transcripts for label in transcript.classes]
    counts = [len(transcript.classes) for transcript in transcripts]
    paths, frame_scores = forced_align(log_probs, torch.tensor(targets, dtype=torch.int64), lengths, counts, blank)

    aligned = []
    for n, transcript in enumerate(transcripts):
        name = path.stem if len(texts) == 1 else f"{path.stem}-{n}"
        length = int(lengths[n])
        own_path, own_scores = paths[n, :length], frame_scores[n, :length]
        if bool((own_path < 0).any()):
            reason = "a score is NaN or +inf" if own_scores.isnan().any() else "no path spells the transcript"
            for misfit in infeasible("ctc", transcript.classes, length, counts[n]):
                raise AlignError(f"{name}: the transcript {misfit.reason}")
            raise AlignError(f"{name}: {reason}, in {length} frames and {counts[n]} tokens")
        spans = token_spans(own_path, own_scores, blank)
        aligned.append((_utterance(name, transcript, spans, own_scores, names, frame_seconds), spans))

    written: list[list[str]] = [[] for _ in aligned]
    if out is not None:
        with replacing(out) as beside:
            for n, (utterance, spans) in enumerate(aligned):
                written[n] += _write(beside, utterance, formats)
                if "png" in formats:
                    from . import picture

                    written[n].append(f"{utterance.name}.png")
                    own_scores, classes = log_probs[n, : int(lengths[n])], transcripts[n].classes
                    file = beside / written[n][-1]
                    picture.draw(file, utterance, own_scores, classes, spans, names, blank, frame_seconds)
    for (utterance, _), transcript, files in zip(aligned, transcripts, written, strict=True):
        outputs.print_table(console, utterance)
        if transcript.unspelled:
            listed = printable(" ".join(dict.fromkeys(transcript.unspelled)))
            console.print(
                Text(f"a star ({STAR}) stands for what the vocabulary cannot spell in: {listed}"), soft_wrap=True
            )
        if out is not None:
            console.print(
                Text("wrote " + ", ".join(printable(str(Path(out) / file)) for file in files)), soft_wrap=True
            )
    return [utterance for utterance, _ in aligned]


def _vocabulary(vocabulary: str | None, tokens: str | None, num_classes: int) -> list[str] | None:
    if vocabulary is None and tokens is None:
        return None
    names = load_vocabulary(Path(vocabulary)) if vocabulary is not None else list(tokens or "")
    if len(names) != num_classes:
        raise AlignError(f"the vocabulary must have a token for each of the {num_classes} classes; has {len(names)}")
    return names


def _utterance(
    name: str,
    transcript: Transcript,
    spans: Sequence[TokenSpan],
    scores: Tensor,
    names: Sequence[str],
    frame_seconds: float,
) -> Utterance:
    tokens = [Interval(names[span.token], *span.seconds(frame_seconds), span.confidence) for span in spans]
    words = []
    for text, first, last in transcript.words:
        (word,) = word_spans(spans[first:last], [last - first])
        words.append(Interval(text, *word.seconds(frame_seconds), word.confidence))
    return Utterance(name, transcript.text, len(scores) * frame_seconds, float(scores.double().sum()), tokens, words)


def _write(folder: Path, utterance: Utterance, formats: Sequence[str]) -> list[str]:
    """Write an utterance's text files; returns their names."""
    writers = {
        "textgrid": (outputs.write_textgrid, "TextGrid"),
        "ctm": (outputs.write_ctm, "ctm"),
        "json": (outputs.write_json, "json"),
    }
    names = []
    for format_name, (write, suffix) in writers.items():
        if format_name in formats:
            names.append(f"{utterance.name}.{suffix}")
            write(folder / names[-1], utterance)
    return names
