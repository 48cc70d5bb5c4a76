"""``pathsum align``: scores and transcripts in, the time of every token out, printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console as RichConsole
from rich.text import Text
from torch import Tensor

from pathsum.console import Console
from pathsum.files import replacing
from pathsum.printable import printable
from pathsum.torch import TokenSpan, forced_align, infeasible, token_spans

from . import outputs
from .corpus.manifest import Entry
from .inputs import STAR, Reading, Transcript, UtteranceError, load_scores, read_lines, spell_ids
from .outputs import Utterance, intervals

# So many scores are read at a time.
BLOCK = 1 << 22
FORMATS = ("textgrid", "ctm", "json", "png")


class Aligned(NamedTuple):
    """An utterance, and what of its alignment a picture shows besides.

    Attributes:
        log_probs: (T, K) of the classes that the transcripts read, and of the blank.
        names: What these classes are called.
        classes, spans, blank: Of the transcript, numbered as ``names``.
    """

    utterance: Utterance
    transcript: Transcript
    log_probs: Tensor
    names: list[str]
    classes: list[int]
    spans: list[TokenSpan]
    blank: int


def run(
    scores: str,
    texts: Sequence[str],
    reading: Reading,
    *,
    text_file: str | None = None,
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
        reading: How scores and texts are read.
        text_file: Path of a file with a transcript a line, in place of ``texts``.
        out: Folder to write to; ``None`` writes nothing.
        formats: What to write, some of ``FORMATS``.
        console: Where to print; by default on standard output.

    Returns:
        The aligned utterances.

    Raises:
        UtteranceError: (a ValueError) a file, a text or a combination of them that cannot be aligned.
    """
    console = console or Console()
    path = Path(scores)
    log_probs, lengths = load_scores(path)
    if text_file is not None:
        texts = [*texts, *read_lines(Path(text_file))]
    if len(texts) != len(log_probs):
        raise UtteranceError(f"{path}: has {len(log_probs)} samples; got {len(texts)} transcripts")
    aligned = align(outputs.names_of(path, len(texts)), log_probs, lengths, texts, reading)

    written: list[list[str]] = [[] for _ in aligned]
    if out is not None:
        with replacing(out) as beside:
            for names, each in zip(written, aligned, strict=True):
                names += outputs.write(beside, each.utterance, formats)
                if "png" in formats:
                    from . import picture

                    names.append(f"{each.utterance.name}.png")
                    picture.draw(beside / names[-1], each, reading.frame_seconds)
    for (utterance, transcript, *_), files in zip(aligned, written, strict=True):
        outputs.print_table(console, utterance)
        if transcript.unspelled:
            listed = printable(" ".join(dict.fromkeys(transcript.unspelled)))
            console.print(
                Text(f"a star ({STAR}) stands for what the vocabulary cannot spell in: {listed}"), soft_wrap=True
            )
        if out is not None:
            outputs.print_files(console, Path(out), files)
    return [utterance for utterance, *_ in aligned]


def align(
    names: Sequence[str], scores: Tensor, lengths: Tensor, texts: Sequence[str], reading: Reading
) -> list[Aligned]:
    """Align scores (N, T, C) with a text for each sample.

    Memory is for the scores of the classes that the texts read, and for what ``forced_align`` takes; the scores may be
    those of a file that is mapped.

    Raises:
        UtteranceError: (a ValueError) a sample that cannot be aligned; the message has its name.
    """
    num_classes = scores.shape[2]
    blank = reading.blank_of(num_classes)
    tokens = [*reading.tokens(num_classes), STAR]
    spell = spell_ids if reading.vocabulary is None else reading.vocabulary.spell
    transcripts = [spell(text) for text in texts]
    targets = [label for transcript in transcripts for label in transcript.classes]
    counts = [len(transcript.classes) for transcript in transcripts]
    columns = sorted({blank, *targets})
    stars = any(transcript.unspelled for transcript in transcripts)
    if not 0 <= columns[0] <= columns[-1] < num_classes + stars:
        forced_align(scores, torch.tensor(targets), lengths, counts, blank)  # which says what is out of range
    log_probs = _columns(scores, columns, reading)
    own = {label: column for column, label in enumerate(columns)}
    own_targets = torch.tensor([own[label] for label in targets], dtype=torch.int64)
    paths, frame_scores = forced_align(log_probs, own_targets, lengths, counts, own[blank])
    own_names = [tokens[column] for column in columns]

    aligned = []
    for n, (name, transcript) in enumerate(zip(names, transcripts, strict=True)):
        length = int(lengths[n])
        own_path, own_scores = paths[n, :length], frame_scores[n, :length]
        if bool((own_path < 0).any()):
            reason = "a score is NaN or +inf" if own_scores.isnan().any() else "no path spells the transcript"
            for misfit in infeasible("ctc", transcript.classes, length, counts[n]):
                raise UtteranceError(f"{name}: the transcript {misfit.reason}")
            raise UtteranceError(f"{name}: {reason}, in {length} frames and {counts[n]} tokens")
        spans = token_spans(own_path, own_scores, own[blank])
        utterance = Utterance(
            name,
            transcript.text,
            length * reading.frame_seconds,
            float(own_scores.double().sum()),
            *intervals(spans, transcript.words, own_names, reading.frame_seconds),
        )
        classes = [own[label] for label in transcript.classes]
        aligned.append(Aligned(utterance, transcript, log_probs[n, :length], own_names, classes, spans, own[blank]))
    return aligned


def _columns(scores: Tensor, columns: list[int], reading: Reading) -> Tensor:
    """Log-probabilities (N, T, K) of some classes; that behind all others is a star, with 0 in each frame."""
    count, num_frames, num_classes = scores.shape
    real = [column for column in columns if column < num_classes]
    found = scores.new_zeros(count, num_frames, len(columns))
    step = max(BLOCK // max(count * num_classes, 1), 1)
    for begin in range(0, num_frames, step):
        part = slice(begin, begin + step)
        found[:, part, : len(real)] = reading.log_probs(scores[:, part])[:, :, real]
    return found


class AlignJob(NamedTuple):
    """The alignment of a corpus.

    Attributes:
        reading: How scores and texts are read.
        options: What all runs have to agree in.
    """

    reading: Reading
    options: dict[str, Any]
    name: str = "align"
    done: str = "aligned"

    def try_out(self) -> None:
        align(["nothing"], *self.reading.nothing(), [""], self.reading)

    def __call__(self, entry: Entry) -> dict[str, Any]:
        text = entry.text
        if text is None:
            beside = Path(entry.scores).with_suffix(".txt")
            if not beside.is_file():
                raise UtteranceError(f"it has no text, nor is there a file {beside}")
            text = " ".join(read_lines(beside))
        (aligned,) = align([entry.id], *entry.load_scores(), [text], self.reading)
        document = outputs.document(aligned.utterance)
        del document["name"]
        if aligned.transcript.unspelled:
            document["unspelled"] = aligned.transcript.unspelled
        return document
