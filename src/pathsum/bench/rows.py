"""A measurement is a row: what was measured, on what, with which versions. Rows are kept as JSON lines."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pathsum
from pathsum.bench.cases import Case
from pathsum.info import cpu_name


@dataclass(frozen=True)
class Row:
    """One measurement. None where a field does not apply to the group.

    Attributes:
        group, op, kind, shape, lengths, std: The case; shape is (N, T, L, C).
        impl: ``"pathsum"``, a peer's name, or ``"copy"``; ``"pathsum-packed"`` and ``"pathsum-padded"`` for our losses
            of a joiner's logits, where ``"pathsum"`` is the fused joiner; ``"pathsum-jax"`` for ``pathsum.jax``, where
            ``"pathsum"`` is ``pathsum.torch``.
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
    ) -> Row:
        return Row(
            group=case.group,
            op=case.op,
            kind=case.kind,
            impl=impl,
            shape=case.shape,
            lengths=case.lengths,
            std=case.std,
            dtype="float32",
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
        )


def append(rows: Iterable[Row], folder: Path) -> None:
    """Add rows to ``<group>.jsonl`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with (folder / f"{row.group}.jsonl").open("a") as file:
            file.write(json.dumps({name: _rounded(value) for name, value in asdict(row).items()}) + "\n")


def read_latest(folder: Path) -> list[Row]:
    """The rows of the last run of every group recorded in a folder."""
    latest = []
    for path in sorted(folder.glob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        last = max(record["timestamp"] for record in records)
        latest += [
            Row(**{**record, "shape": tuple(record["shape"])}) for record in records if record["timestamp"] == last
        ]
    return latest


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
