"""``pathsum decode``: scores in, the most probable texts out, each with its probability, printed and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console as RichConsole
from torch import Tensor

from pathsum.console import Console
from pathsum.files import replacing
from pathsum.torch import Lexicon, NGram, ctc_beam_decode, forced_align, token_spans

from . import outputs
from .corpus.manifest import Entry
from .inputs import WORD_BEGIN, Reading, UtteranceError, Vocabulary, Word, load_scores, read_lines
from .outputs import Decoded, Hypothesis, intervals

FORMATS = ("textgrid", "ctm", "json")


class Search(NamedTuple):
    """What is searched for, and how far: options of ``pathsum.torch.ctc_beam_decode``.

    Attributes:
        lm, lexicon, hotwords: see there; ``None`` where there is none.
    """

    beam_size: int = 50
    n_best: int = 1
    lm: NGram | None = None
    lm_weight: float = 0.5
    word_score: float = 0.0
    lexicon: Lexicon | None = None
    hotwords: Mapping[str, float] | None = None
    token_min: float = -math.inf
    beam_threshold: float = math.inf


def run(
    scores: str,
    reading: Reading,
    search: Search,
    *,
    out: str | None = None,
    formats: Sequence[str] = FORMATS,
    console: RichConsole | None = None,
) -> list[Decoded]:
    """Decode each sample of a file of scores; print a table of each and write its files into ``out``.

    Where anything goes wrong nothing is printed, and ``out`` keeps the files that it had.

    Args:
        scores: Path of a .npy, .npz or .pt file with log-probabilities (T, C) or (N, T, C), in an archive with
            ``input_lengths`` beside them.
        reading: How scores are read.
        search: What is searched for.
        out: Folder to write to; ``None`` writes nothing.
        formats: What to write, some of ``FORMATS``.
        console: Where to print; by default on standard output.

    Returns:
        The decoded utterances.

    Raises:
        UtteranceError: (a ValueError) a file, or scores, that cannot be decoded.
    """
    console = console or Console()
    path = Path(scores)
    found, lengths = load_scores(path)
    decoded = decode(outputs.names_of(path, len(found)), found, lengths, reading, search)
    written: list[list[str]] = [[] for _ in decoded]
    if out is not None:
        with replacing(out) as beside:
            written = [outputs.write(beside, utterance, formats) for utterance in decoded]
    for utterance, files in zip(decoded, written, strict=True):
        outputs.print_hypotheses(console, utterance)
        if out is not None:
            outputs.print_files(console, Path(out), files)
    return decoded


def decode(names: Sequence[str], scores: Tensor, lengths: Tensor, reading: Reading, search: Search) -> list[Decoded]:
    """Decode scores (N, T, C).

    Raises:
        UtteranceError: (a ValueError) a sample with a NaN or +inf among its scores; the message has its name.
    """
    log_probs = reading.log_probs(scores)
    num_classes = log_probs.shape[2]
    blank = reading.blank_of(num_classes)
    tokens = reading.tokens(num_classes)
    separator = None if reading.vocabulary is None else reading.vocabulary.separator
    beams = ctc_beam_decode(
        log_probs,
        lengths,
        blank,
        separator=separator,
        labels=None if reading.vocabulary is None else tokens,
        **search._asdict(),
    )
    decoded = []
    for n, name in enumerate(names):
        length = int(lengths[n])
        if bool(beams.mass[n].isnan()):
            raise UtteranceError(f"{name}: a score is NaN or +inf, in {length} frames")
        hypotheses, rows = [], []
        for k in range(beams.lengths.shape[1]):
            if beams.scores[n, k] == -math.inf:
                break
            rows.append(beams.tokens[n, k, : int(beams.lengths[n, k])].tolist())
            text = " ".join(beams.words[n][k]) if beams.words is not None else _text(rows[-1], tokens, reading)
            numbers = (float(of[n, k]) for of in (beams.scores, beams.ctc_scores, beams.lm_scores))
            hypotheses.append(Hypothesis(text, *numbers))
        spans, words = [], []
        if rows:
            found = forced_align(log_probs[n, :length], rows[0], length, len(rows[0]), blank)
            spans = token_spans(*found, blank)
            texts = [] if beams.words is None else beams.words[n][0]
            words = _words(rows[0], texts, tokens, separator, search.lexicon)
        decoded.append(
            Decoded(
                name,
                length * reading.frame_seconds,
                hypotheses,
                math.exp(min(float(beams.mass[n]), 0.0)),
                *intervals(spans, words, tokens, reading.frame_seconds),
            )
        )
    return decoded


def _text(row: Sequence[int], tokens: Sequence[str], reading: Reading) -> str:
    if reading.vocabulary is None:
        return " ".join(tokens[c] for c in row)
    return "".join(tokens[c] for c in row).replace(WORD_BEGIN, " ").strip()


def _words(
    row: Sequence[int], texts: Sequence[str], tokens: Sequence[str], separator: int | None, lexicon: Lexicon | None
) -> list[Word]:
    """Which tokens of a hypothesis spell each of its words."""
    if separator is not None:
        bounds = [-1, *(place for place, c in enumerate(row) if c == separator), len(row)]
        runs = [(begin + 1, end) for begin, end in pairwise(bounds) if end > begin + 1]
        return [Word(text, *own) for text, own in zip(texts, runs, strict=True)]
    if lexicon is not None:
        return _spelled(row, texts, lexicon)
    # Pieces of words; none where there are other tokens.
    begins = [place for place, c in enumerate(row) if tokens[c][:1] == WORD_BEGIN]
    bounds = [*([0] if begins and begins[0] > 0 else []), *begins, len(row)]
    runs = pairwise(bounds)
    named = [("".join(tokens[c] for c in row[begin:end]).removeprefix(WORD_BEGIN), begin, end) for begin, end in runs]
    return [Word(*word) for word in named if word[0]]


def _spelled(row: Sequence[int], texts: Sequence[str], lexicon: Lexicon) -> list[Word]:
    """The words of a row without separators: each is one of its spellings."""
    spellings = dict(zip(lexicon.words, lexicon.spellings, strict=True))
    # By how many words have gone before: where they may end, and where the last of them began.
    reached: list[dict[int, int]] = [{0: -1}]
    for text in texts:
        ends = {}
        for begin in reached[-1]:
            for spelling in spellings[text]:
                if tuple(row[begin : begin + len(spelling)]) == spelling:
                    ends.setdefault(begin + len(spelling), begin)
        reached.append(ends)
    words, end = [], len(row)
    for text, ends in zip(reversed(texts), reversed(reached), strict=False):
        words.append(Word(text, ends[end], end))
        end = ends[end]
    return words[::-1]


def load_search(
    reading: Reading, *, lm: str | None = None, lexicon: str | None = None, hotwords: Sequence[str] = (), **options: Any
) -> Search:
    """What a command searches for.

    Args:
        reading: How scores are read.
        lm: Path of an ARPA file, which gzip may have packed.
        lexicon: Path of a file with a word and its tokens a line, or a word alone, which the vocabulary spells.
        hotwords: Words or phrases, each with its weight: ``"new york=3.0"``.
        options: The others of ``Search``.
    """
    weights = {}
    for hotword in hotwords:
        phrase, equals, weight = hotword.rpartition("=")
        try:
            weights[phrase] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not phrase.strip():
            raise UtteranceError(f"hotwords must be words=weight, such as 'new york=3'; got {hotword!r}")
    return Search(
        lm=None if lm is None else NGram.read(lm),
        lexicon=None if lexicon is None else load_lexicon(lexicon, reading.vocabulary),
        hotwords=weights or None,
        **options,
    )


def load_lexicon(path: str, vocabulary: Vocabulary | None) -> Lexicon:
    """A lexicon of lines of a word and its tokens, or of words alone, which the vocabulary spells."""
    lines = [line.split() for line in read_lines(Path(path))]
    if vocabulary is None or any(len(line) > 1 for line in lines):
        return Lexicon.read(path, None if vocabulary is None else vocabulary.tokens)
    entries = []
    for number, line in enumerate(lines, 1):
        for word in line:
            transcript = vocabulary.spell(word)
            if transcript.unspelled:
                raise UtteranceError(f"{path}: the vocabulary must spell every word; got {word!r} at line {number}")
            entries.append((word, transcript.classes))
    return Lexicon(entries)


class DecodeJob(NamedTuple):
    """The decoding of a corpus.

    Attributes:
        reading: How scores are read.
        search: What is searched for.
        options: What all runs have to agree in.
    """

    reading: Reading
    search: Search
    options: dict[str, Any]
    name: str = "decode"
    done: str = "decoded"

    def try_out(self) -> None:
        lexicon = self.search.lexicon
        spelled = [] if lexicon is None else [c for own in lexicon.spellings for spelling in own for c in spelling]
        decode(["nothing"], *self.reading.nothing(1 + max(spelled, default=0)), self.reading, self.search)

    def __call__(self, entry: Entry) -> dict[str, Any]:
        (decoded,) = decode([entry.id], *entry.load_scores(), self.reading, self.search)
        document = outputs.document(decoded)
        del document["name"]
        return document if entry.text is None else document | {"reference": entry.text}
