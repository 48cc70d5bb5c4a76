"""How results show themselves: as lines of text, and in notebooks as tables.

``shown(describe)`` gives a class both, from one description of an object as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np

Class = TypeVar("Class", bound=type)

MAX_ROWS, MAX_VALUES, MAX_TEXT = 12, 8, 60


class Table(NamedTuple):
    """What is told of an object. Numbers are on the right; of many rows the first are shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def shown(describe: Callable[[Any], Table]) -> Callable[[Class], Class]:
    """A decorator of classes, whose objects then show the table that ``describe`` makes of them."""

    def table(value: Any) -> Table:
        try:
            return describe(value)
        except (RuntimeError, TypeError):  # traced or transformed: there are shapes and no values
            return arrays(value)

    def decorate(cls: Class) -> Class:
        for name, drawn in (("__repr__", as_text), ("_repr_html_", as_html)):
            setattr(cls, name, lambda self, drawn=drawn: drawn(table(self)))
        return cls

    return decorate


def as_text(table: Table) -> str:
    """Lines without a final newline."""
    cells = [table.columns, *_first(table.rows, len(table.columns))]
    columns = [_aligned(column) for column in zip(*cells, strict=True)]
    return "\n".join([table.title, *("  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True))])


def as_html(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>"
        for row in _first(table.rows, len(table.columns))
    )
    return f"<table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def arrays(value: Any) -> Table:
    """The arrays that a named tuple or a dataclass consists of."""
    names = [field.name for field in fields(value)] if is_dataclass(value) else value._fields
    rows = [(name, *_array_cells(getattr(value, name))) for name in names]
    return Table(type(value).__name__, ("field", "shape", "type", "values"), rows)


def best_paths(found: Any) -> Table:
    """Paths (N, T), with the score of each frame."""
    paths, scores = rows_of(found.paths), rows_of(found.scores)
    rows = [
        (str(n), str(int((path >= 0).sum())), f"{score.sum():.4f}", _runs(path[path >= 0]))
        for n, (path, score) in enumerate(zip(paths, scores, strict=True))
    ]
    title = f"{type(found).__name__}: {_count(len(rows), 'sample')}"
    return Table(title, ("sample", "frames", "score", "path: class×frames"), rows)


def walks(found: Any) -> Table:
    """Labels placed on frames, with the score of the whole."""
    log_probs = np.atleast_1d(to_numpy(found.log_probs))
    rows = [
        (str(n), f"{log_probs[n]:.4f}", _cut(" ".join(str(frame) for frame in frames[frames >= 0])))
        for n, frames in enumerate(rows_of(found.frames))
    ]
    return Table(
        f"{type(found).__name__}: {_count(len(rows), 'sample')}", ("sample", "log P", "frame of each label"), rows
    )


def lattice_paths(found: Any) -> Table:
    """Labels (N, T) that paths of graphs emit."""
    log_probs = np.atleast_1d(to_numpy(found.log_probs))
    rows = [
        (str(n), f"{log_probs[n]:.4f}", _runs(labels[labels >= 0])) for n, labels in enumerate(rows_of(found.labels))
    ]
    return Table(
        f"{type(found).__name__}: {_count(len(rows), 'sample')}", ("sample", "score", "path: class×frames"), rows
    )


def decoded(found: Any) -> Table:
    """Tokens (N, L), one hypothesis a sample."""
    rows = [
        (str(n), f"{scores.sum():.4f}", _cut(" ".join(map(str, tokens[tokens >= 0]))))
        for n, (tokens, scores) in enumerate(zip(rows_of(found.tokens), rows_of(found.scores), strict=True))
    ]
    return Table(f"{type(found).__name__}: {_count(len(rows), 'sample')}", ("sample", "score", "tokens"), rows)


def hypotheses(found: Any) -> Table:
    """Several hypotheses of each sample, the best first."""
    masses = np.atleast_1d(to_numpy(found.mass))
    tokens, lengths = to_numpy(found.tokens), to_numpy(found.lengths)
    scores, log_probs = to_numpy(found.scores), to_numpy(found.ctc_scores)
    words = found.words
    if tokens.ndim == 2:
        tokens, lengths, scores, log_probs = tokens[None], lengths[None], scores[None], log_probs[None]
        words = None if words is None else [words]
    rows = []
    for n, k in np.ndindex(scores.shape):
        if scores[n, k] == -np.inf:
            continue
        read = tokens[n, k, : lengths[n, k]] if words is None else words[n][k]
        text = _cut(" ".join(map(str, read)))
        mass = f"{np.exp(masses[n]):.3g}" if k == 0 else ""
        rows.append((str(n), str(k + 1), f"{scores[n, k]:.4f}", f"{log_probs[n, k]:.4f}", mass, text))
    columns = ("sample", "rank", "score", "log P", "mass of the list", "tokens" if words is None else "words")
    return Table(f"{type(found).__name__}: {_count(len(masses), 'sample')}", columns, rows)


def to_numpy(values: Any) -> np.ndarray:
    """An array, or a tensor on any device, of whatever front end; half precision as float64."""
    if hasattr(values, "detach"):  # torch's
        values = values.detach().cpu()
        values = values.double() if values.dtype.is_floating_point else values
    return np.asarray(values)


def rows_of(values: Any) -> np.ndarray:
    """(N, T), also where there is one sample without an axis for it."""
    return np.atleast_2d(to_numpy(values))


def _array_cells(value: Any) -> tuple[str, str, str]:
    if not hasattr(value, "shape"):
        return "", type(value).__name__, _cut(repr(value))
    kind = str(value.dtype).removeprefix("torch.")
    shape = str(tuple(value.shape)).replace(" ", "")
    try:
        return shape, kind, _values(to_numpy(value))
    except (RuntimeError, TypeError):
        return shape, kind, "not known yet"


def _values(array: np.ndarray) -> str:
    row = array.reshape(-1, array.shape[-1])[:1].ravel() if array.ndim and array.size else array.ravel()
    texts = [f"{value:.4g}" if array.dtype.kind == "f" else str(value) for value in row[:MAX_VALUES]]
    return " ".join(texts) + (" …" if array.size > len(texts) else "")


def _runs(path: Iterable[Any]) -> str:
    lengths = ((label, len(list(run))) for label, run in groupby(path))
    return _cut(" ".join(f"{label}×{length}" if length > 1 else str(label) for label, length in lengths)) or "none"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 2] + " …"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _first(rows: Sequence[Sequence[str]], width: int) -> Iterator[Sequence[str]]:
    yield from rows[:MAX_ROWS]
    if len(rows) > MAX_ROWS:
        yield [f"… {len(rows) - MAX_ROWS} more", *[""] * (width - 1)]


def _aligned(column: Sequence[str]) -> list[str]:
    """A heading and its cells in one width, numbers on the right."""
    width = max(map(len, column))
    numbers = all(re.fullmatch(r"-?[\d.]+(e[-+]\d+)?|-?inf|nan|", text) for text in column[1:])
    return [text.rjust(width) if numbers else text.ljust(width) for text in column]
