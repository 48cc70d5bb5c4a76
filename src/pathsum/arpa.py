"""N-gram models in ARPA's format: a file's lines, and the n-grams of each order."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

LN_10 = math.log(10.0)
_SPACES = " \t\r\n"  # no others: words may have them
_PACKED = b"\x1f\x8b"

# Raises: of a line, what it must do, and what it is.
Fail = Callable[[int, str, object], NoReturn]


class Gram(NamedTuple):
    """Log-probability and back-off of an n-gram, natural logarithms, and its line in the file."""

    score: float
    backoff: float
    line: int


def lines_of(path: str | os.PathLike[str], fail: Fail) -> Iterator[str]:
    """The lines of a file, UTF-8, which gzip may have packed."""
    number = 0
    with open(path, "rb") as file:
        packed = file.peek(2)[:2] == _PACKED
        lines: Iterable[bytes] = gzip.open(cast(BinaryIO, file), "rb") if packed else file
        try:
            for line in lines:
                number += 1
                yield line.decode()
        except UnicodeDecodeError as error:
            fail(number, "be UTF-8", error)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            fail(number + 1, "be whole where gzip has packed the file", error)


def read(lines: Iterable[str], fail: Fail) -> list[dict[tuple[str, ...], Gram]]:
    """The n-grams of each order, by their words."""
    return _Reader(iter(lines), fail).grams()


class _Reader:
    def __init__(self, lines: Iterator[str], fail: Fail):
        self._lines, self._raise, self._number, self._line = lines, fail, 0, ""

    def grams(self) -> list[dict[tuple[str, ...], Gram]]:
        while (line := self._next()) != "\\data\\":
            if line is None:
                self._fail("have a line \\data\\")
        counts: list[int] = []
        line = self._next()
        while line is not None and line.startswith("ngram "):
            order, _, count = line[6:].partition("=")
            if order.strip() != str(len(counts) + 1) or not count.strip().isdigit():
                self._fail(f"have a line 'ngram {len(counts) + 1}=COUNT'")
            counts.append(int(count))
            line = self._next()
        if not counts:
            self._fail("have a line 'ngram 1=COUNT'")
        found: list[dict[tuple[str, ...], Gram]] = []
        for order, count in enumerate(counts, 1):
            if line != f"\\{order}-grams:":
                self._fail(f"have a line \\{order}-grams:")
            level: dict[tuple[str, ...], Gram] = {}
            while (line := self._next()) is not None and not line.startswith("\\"):
                words, gram = self._gram(line, order, order == len(counts))
                if order > 1 and not all((word,) in found[0] for word in words):
                    self._fail("have words among its 1-grams")
                if words in level:
                    self._fail("have each n-gram once")
                level[words] = gram
            if len(level) != count:
                self._fail(f"have {count} {order}-grams, as it says", len(level))
            found.append(level)
        if line != "\\end\\":
            self._fail("end in a line \\end\\")
        return found

    def _next(self) -> str | None:
        for line in self._lines:
            self._number += 1
            self._line = line.strip(_SPACES)
            if self._line:
                return self._line
        self._number, self._line = self._number + 1, "the end of the file"
        return None

    def _gram(self, line: str, order: int, last: bool) -> tuple[tuple[str, ...], Gram]:
        fields = [field for field in line.replace("\t", " ").split(" ") if field]
        if len(fields) not in ((order + 1,) if last and order > 1 else (order + 1, order + 2)):
            self._fail(f"have a log-probability and {order} words in a line, and a back-off at most")
        try:
            score = float(fields[0])
            backoff = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
        except ValueError:
            self._fail("have numbers for log-probabilities and back-offs")
        if not (score <= 0.0 and backoff < math.inf):
            self._fail("have log-probabilities of at most 0 and finite back-offs")
        return tuple(fields[1 : order + 1]), Gram(score * LN_10, backoff * LN_10, self._number)

    def _fail(self, rule: str, got: Any = None) -> NoReturn:
        self._raise(self._number, rule, repr(self._line) if got is None else got)
