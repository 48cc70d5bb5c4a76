"""Aligned utterances as a table, and as TextGrid, CTM and JSON files. Times are in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pathsum.files import write_text
from pathsum.printable import printable


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


def visible(text: str) -> str:
    return "␣" if text == " " else printable(text)


def write_textgrid(path: Path, utterance: Utterance) -> None:
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


def write_ctm(path: Path, utterance: Utterance) -> None:
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


def write_json(path: Path, utterance: Utterance) -> None:
    document = utterance._asdict() | {
        kind: [_rounded(interval) for interval in getattr(utterance, kind)] for kind in ("tokens", "words")
    }
    write_text(path, json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _rounded(interval: Interval) -> dict[str, Any]:
    digits = {name: round(value, 6) for name, value in interval._asdict().items() if name != "text"}
    return {"text": interval.text} | digits
