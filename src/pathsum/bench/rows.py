"""A measurement is a row: what was measured, on what, with which versions. Rows are kept as JSON lines."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from types import NoneType

import pathsum
from pathsum.bench.cases import GROUPS, Case
from pathsum.bench.peers import PEERS
from pathsum.errors import CommandError
from pathsum.info import cpu_name


@dataclass(frozen=True)
class Row:
    """One measurement. None where a field does not apply to the group.

    Attributes:
        group, op, kind, shape, lengths, std, dtype: The case; shape is (N, T, L, C).
        impl: ``"pathsum"``, a peer's name, or ``"copy"``; ``"pathsum-packed"`` and ``"pathsum-padded"`` for our losses
            of a joiner's logits, where ``"pathsum"`` is the fused joiner; ``"pathsum-ctc"`` for one ``ctc_loss`` beside
            what is made of several; ``"pathsum-pyctcdecode"`` for the decoder in pyctcdecode's place;
            ``"pathsum-jax"`` for ``pathsum.jax``, where ``"pathsum"`` is ``pathsum.torch``.
        direction: ``"forward"``, ``"backward"`` or ``"both"``.
        repeats: How often it ran.
        median_ms, p20_ms, p80_ms: Milliseconds, and the quantiles that 20 and 80 % are below.
        peak_mib: Most memory held beyond the inputs, gradients included.
        share_beyond_gradient: The same without the gradients, as a share of the scores, or of all that have a gradient.
        max_abs_error, relative_error: Of the gradient against float64: largest entry, and norm over norm.
        cache: ``"cold"`` or ``"warm"``: numba's cache on disk before a first call.
        ratio_to_copy: Median over that of copying the scores, same run.
        ratio_to_ours: Median (of memory: peak; of accuracy: largest error) over pathsum's, same run.
        process: ``"shared"`` with ours, ``"separate"`` (another interpreter, taking turns) or ``"fresh"``.
        versions: Of the interpreter that ran it, and of pathsum.
        failure: Why a peer was not measured, in one line: memory, time, an error or a wrong value.
        word_error_rate: Of a decoder's texts.
        commit: pathsum's, where it runs from its repository; ends in ``-dirty`` with uncommitted changes.
    """

    group: str
    op: str
    kind: str
    impl: str
    shape: tuple[int, int, int, int]
    lengths: str
    std: float
    dtype: str
    direction: str
    repeats: int
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    peak_mib: float | None
    share_beyond_gradient: float | None
    max_abs_error: float | None
    relative_error: float | None
    cache: str | None
    ratio_to_copy: float | None
    ratio_to_ours: float | None
    process: str
    device: str
    cpu: str
    threads: int
    versions: dict[str, str | None]
    commit: str | None
    timestamp: str
    failure: str | None = None
    word_error_rate: float | None = None


@dataclass(frozen=True)
class Run:
    """What all rows of a run share."""

    threads: int
    cpu: str
    commit: str | None
    timestamp: str

    @classmethod
    def begin(cls, threads: int) -> Run:
        now = datetime.datetime.now(datetime.timezone.utc)
        return cls(threads, cpu_name(), _commit(), now.isoformat(timespec="seconds"))

    def row(
        self,
        case: Case,
        impl: str,
        versions: Mapping[str, str | None],
        process: str,
        *,
        direction: str = "both",
        repeats: int = 1,
        median_ms: float | None = None,
        p20_ms: float | None = None,
        p80_ms: float | None = None,
        peak_mib: float | None = None,
        share_beyond_gradient: float | None = None,
        max_abs_error: float | None = None,
        relative_error: float | None = None,
        cache: str | None = None,
        ratio_to_copy: float | None = None,
        ratio_to_ours: float | None = None,
        failure: str | None = None,
        word_error_rate: float | None = None,
    ) -> Row:
        return Row(
            group=case.group,
            op=case.op,
            kind=case.kind,
            impl=impl,
            shape=case.shape,
            lengths=case.lengths,
            std=case.std,
            dtype=case.dtype,
            direction=direction,
            repeats=repeats,
            median_ms=median_ms,
            p20_ms=p20_ms,
            p80_ms=p80_ms,
            peak_mib=peak_mib,
            share_beyond_gradient=share_beyond_gradient,
            max_abs_error=max_abs_error,
            relative_error=relative_error,
            cache=cache,
            ratio_to_copy=ratio_to_copy,
            ratio_to_ours=ratio_to_ours,
            process=process,
            device="cpu",
            cpu=self.cpu,
            threads=self.threads,
            versions={**versions, "pathsum": pathsum.__version__},
            commit=self.commit,
            timestamp=self.timestamp,
            failure=failure,
            word_error_rate=word_error_rate,
        )


def append(rows: Iterable[Row], folder: Path, beside: Path) -> None:
    """Write ``<group>.jsonl`` of a folder with more rows at its end to a folder beside it."""
    for group, members in groupby(rows, lambda row: row.group):
        lines = [json.dumps({name: _rounded(value) for name, value in asdict(row).items()}) for row in members]
        name = f"{group}.jsonl"
        before = (folder / name).read_bytes() if (folder / name).exists() else b""
        (beside / name).write_bytes(before + "".join(f"{line}\n" for line in lines).encode())


def read_latest(folder: Path) -> list[Row]:
    """The rows of the last run of every group recorded in a folder.

    Raises:
        CommandError: a line is no row.
    """
    latest = []
    for path in sorted(folder.glob("*.jsonl")):
        found = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                found.append(_read(line))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise CommandError(f"{path}: line {number} is not a row that pathsum bench has written") from error
        last = max((row.timestamp for row in found), default="")
        latest += [row for row in found if row.timestamp == last]
    return latest


def _read(line: bytes) -> Row:
    record = json.loads(line)
    row = Row(**{**record, "shape": tuple(record.get("shape", ()))})
    for field in fields(Row):
        if not isinstance(getattr(row, field.name), _TYPES[str(field.type)]):
            raise TypeError(field.name)
    if row.group not in GROUPS or row.impl not in PEERS or len(row.shape) != 4:
        raise ValueError("of something unknown")
    return row


# By the text of a field's annotation.
_TYPES = {
    "str": str,
    "int": int,
    "float": (int, float),
    "str | None": (str, NoneType),
    "float | None": (int, float, NoneType),
    "tuple[int, int, int, int]": tuple,
    "dict[str, str | None]": dict,
}


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _commit() -> str | None:
    package = Path(pathsum.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An installed copy may lie inside a repository that is not pathsum's.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
