"""Aligned and decoded utterances as tables, and as TextGrid, CTM and JSON files. Times are in seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pathsum.files import write_text
from pathsum.printable import printable
from pathsum.torch import TokenSpan, word_spans

from .inputs import Word


class Interval(NamedTuple):
    """A token or a word.

    Attributes:
        text: What it is.
        start, end: Seconds.
        confidence: Geometric mean of the probabilities of its frames, in [0, 1].
    """

    text: str
    start: float
    end: float
    confidence: float


class Utterance(NamedTuple):
    """An aligned utterance.

    Attributes:
        name: Of its files and in the CTM.
        transcript: As it was given.
        seconds: How long it is.
        log_prob: Of the best path.
        tokens, words: In order; words may be empty.
    """

    name: str
    transcript: str
    seconds: float
    log_prob: float
    tokens: list[Interval]
    words: list[Interval]


class Hypothesis(NamedTuple):
    """A text that was found.

    Attributes:
        text: What it reads as.
        score: What the list is ordered by, ``log_prob + lm_weight * lm_log_prob + word_score * words`` and hotwords.
        log_prob: Natural logarithm of its probability, over all its alignments.
        lm_log_prob: That of its words in the language model; 0 without one.
    """

    text: str
    score: float
    log_prob: float
    lm_log_prob: float

    @property
    def probability(self) -> float:
        return math.exp(min(self.log_prob, 0.0))


class Decoded(NamedTuple):
    """A decoded utterance.

    Attributes:
        name: Of its files and in the CTM.
        seconds: How long it is.
        hypotheses: The texts, the best first. There is none where nothing that may be written is possible.
        listed: The share of all probability that they have together.
        tokens, words: Of the best, on its best alignment. Words may be empty.
    """

    name: str
    seconds: float
    hypotheses: list[Hypothesis]
    listed: float
    tokens: list[Interval]
    words: list[Interval]


def names_of(path: Path, count: int) -> list[str]:
    """What the samples of a file are called."""
    return [path.stem] if count == 1 else [f"{path.stem}-{n}" for n in range(count)]


def intervals(
    spans: Sequence[TokenSpan], words: Sequence[Word], tokens: Sequence[str], frame_seconds: float
) -> tuple[list[Interval], list[Interval]]:
    """The tokens and the words of spans; what a class is called stands in ``tokens``."""
    found = []
    for text, first, end in words:
        (word,) = word_spans(spans[first:end], [end - first])
        found.append(Interval(text, *word.seconds(frame_seconds), word.confidence))
    return [Interval(tokens[span.token], *span.seconds(frame_seconds), span.confidence) for span in spans], found


def print_table(console: Console, utterance: Utterance) -> None:
    # As Text: of a plain string rich would read brackets as markup.
    title = f"{printable(utterance.name)}: {utterance.seconds:.3f} s, best path {utterance.log_prob:.2f} nats"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("token")
    for name in ("start s", "end s", "confidence"):
        table.add_column(name, justify="right")
    table.add_column("word")
    starting = {word.start: word.text for word in utterance.words}
    for token in utterance.tokens:
        row = (f"{token.start:.3f}", f"{token.end:.3f}", f"{token.confidence:.3f}")
        table.add_row(Text(visible(token.text)), *row, Text(printable(starting.get(token.start, ""))))
    console.print(table)


def print_hypotheses(console: Console, utterance: Decoded) -> None:
    title = (
        f"{printable(utterance.name)}: {utterance.seconds:.3f} s, "
        f"{utterance.listed:.2%} of all probability is in this list"
    )
    with_lm = any(each.lm_log_prob for each in utterance.hypotheses)
    console.print(Text(title), soft_wrap=True)
    table = Table()
    for name in ("score", "ln P", *(["ln P of words"] if with_lm else []), "P"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for each in utterance.hypotheses:
        numbers = [each.score, each.log_prob, *([each.lm_log_prob] if with_lm else [])]
        cells = [f"{number:.3f}" for number in numbers]
        table.add_row(*cells, f"{each.probability:.4g}", Text(printable(each.text)))
    console.print(table)


def visible(text: str) -> str:
    return "␣" if text == " " else printable(text)


def print_files(console: Console, folder: Path, files: Sequence[str]) -> None:
    console.print(Text("wrote " + ", ".join(printable(str(folder / file)) for file in files)), soft_wrap=True)


def write(folder: Path, utterance: Utterance | Decoded, formats: Sequence[str]) -> list[str]:
    """Write an utterance's text files; returns their names."""
    writers = {
        "textgrid": (write_textgrid, "TextGrid"),
        "ctm": (write_ctm, "ctm"),
        "json": (write_json, "json"),
    }
    names = []
    for format_name, (write_file, suffix) in writers.items():
        if format_name in formats:
            names.append(f"{utterance.name}.{suffix}")
            write_file(folder / names[-1], utterance)
    return names


def write_textgrid(path: Path, utterance: Utterance | Decoded) -> None:
    """A Praat TextGrid with an interval tier for the tokens and, where there are any, one for the words."""
    tiers = [("tokens", utterance.tokens)] + ([("words", utterance.words)] if utterance.words else [])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {utterance.seconds:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, intervals) in enumerate(tiers, 1):
        filled = _without_gaps(intervals, utterance.seconds)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {utterance.seconds:.6f}"]
        lines += [f"        intervals: size = {len(filled)}"]
        for index, (text, start, end) in enumerate(filled, 1):
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
            ]
            lines += ['            text = "' + text.replace('"', '""') + '"']
    write_text(path, "\n".join(lines) + "\n")


def _without_gaps(intervals: Sequence[Interval], seconds: float) -> list[tuple[str, float, float]]:
    """Praat wants every tier to cover the whole time: gaps become intervals without text."""
    filled, at = [], 0.0
    for text, start, end, _ in intervals:
        if start > at:
            filled.append(("", at, start))
        filled.append((text, start, end))
        at = end
    if seconds > at or not filled:
        filled.append(("", at, seconds))
    return filled


def write_ctm(path: Path, utterance: Utterance | Decoded) -> None:
    """NIST CTM, a line a word or, without words, a token: name, channel, start, duration, text, confidence."""
    write_text(
        path,
        "".join(
            f"{_field(utterance.name)} 1 {start:.3f} {end - start:.3f} {_field(text)} {confidence:.3f}\n"
            for text, start, end, confidence in utterance.words or utterance.tokens
        ),
    )


def _field(text: str) -> str:
    """Spaces separate the fields of a CTM, so that none may stand within."""
    return "_".join(text.split()) or "<space>"


def write_json(path: Path, utterance: Utterance | Decoded) -> None:
    write_text(path, json.dumps(document(utterance), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def document(utterance: Utterance | Decoded) -> dict[str, Any]:
    """An utterance as JSON has it."""
    found = utterance._asdict()
    if isinstance(utterance, Decoded):
        listed = found.pop("hypotheses")
        found["text"] = listed[0].text if listed else ""
        found["hypotheses"] = [
            {
                "text": each.text,
                "probability": each.probability,
                "log_prob": each.log_prob,
                # JSON has no infinity.
                "lm_log_prob": each.lm_log_prob if each.lm_log_prob > -math.inf else None,
                "score": each.score,
            }
            for each in listed
        ]
    # The longest last.
    for kind in ("words", "tokens"):
        found[kind] = [_rounded(interval) for interval in found.pop(kind)]
    return found


def _rounded(interval: Interval) -> dict[str, Any]:
    digits = {name: round(value, 6) for name, value in interval._asdict().items() if name != "text"}
    return {"text": interval.text} | digits
