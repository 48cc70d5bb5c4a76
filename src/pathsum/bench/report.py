"""Rows as tables, on screen or in Markdown, and as plots. Reads rows only: recorded ones look like fresh ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.table import Table as RichTable

from pathsum.bench.cases import GROUPS, TIMED
from pathsum.bench.gate import GRADIENT_BARS
from pathsum.bench.peers import OURS
from pathsum.bench.rows import Row

COLOURS = {
    "pathsum": "#c1442e",
    "pathsum-packed": "#d9826b",
    "pathsum-padded": "#e8b3a3",
    "pathsum-jax": "#a8324a",
    "pathsum-jax-plain": "#c76a7e",
    "torch": "#4c6a92",
    "torchaudio": "#6f8fb5",
    "warprnnt-numba": "#9db4cf",
    "optax": "#7a9a6a",
    "pathsum-tensorflow": "#b8506a",
    "tensorflow": "#c9a24a",
    "tensorflow-sparse": "#dcc48a",
    "tf-seq2seq-losses": "#8a7a4a",
    "pathsum-ctc": "#d9826b",
    "pathsum-pyctcdecode": "#e8b3a3",
    "k2": "#6f8fb5",
    "gtn": "#9db4cf",
    "fast-ctc-decode": "#6f8fb5",
    "flashlight-text": "#7a9a6a",
    "pyctcdecode": "#4c6a92",
    "copy": "#b5b5b5",
}


@dataclass(frozen=True)
class Table:
    """A table of strings; the first two columns are words, all others numbers."""

    title: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]


def tables(rows: Iterable[Row]) -> list[Table]:
    """One table for each group."""
    return [_table(group, list(members)) for group, members in groupby(rows, lambda row: row.group)]


def as_rich(table: Table) -> RichTable:
    rich_table = RichTable(title=table.title, title_justify="left", title_style="bold")
    for index, name in enumerate(table.header):
        rich_table.add_column(name, justify="left" if index < 2 else "right", no_wrap=index >= 2)
    for line in _without_repeats(table.lines):
        rich_table.add_row(*line, style="bold" if line[1] == "pathsum" else None)
    return rich_table


def as_markdown(table: Table) -> str:
    lines = [table.header, tuple("---" if index < 2 else "--:" for index in range(len(table.header)))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*lines, *_without_repeats(table.lines)])


def misses_bar(row: Row) -> bool:
    """Whether a row of the accuracy group is ours and beyond what is promised."""
    if row.impl not in OURS or row.group != "accuracy":
        return False
    # Written so that NaN misses it.
    return row.max_abs_error is None or not row.max_abs_error <= GRADIENT_BARS[row.op]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One figure of one group's rows: a cluster of bars for each case; all but memory on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    group = rows[0].group
    rows = _over_batches(rows)
    bars = [row for row in rows if row.direction == "both" and _value(row)]
    if not bars:
        return
    clusters = [(label, list(members)) for label, members in groupby(bars, _case_label)]
    figure = Figure(figsize=(9, 1.1 + 0.24 * (len(bars) + 0.7 * len(clusters))), layout="constrained")
    axes = figure.add_subplot()
    position, ticks = 0.0, []
    for label, members in clusters:
        ticks.append((position + (len(members) - 1) / 2, label))
        for row in members:
            value = _value(row)
            spread = None
            if row.p20_ms is not None and row.p80_ms is not None:
                spread = [[value - row.p20_ms], [row.p80_ms - value]]
            axes.barh(position, value, color=COLOURS[row.impl], xerr=spread, ecolor="#333333", capsize=2, height=0.85)
            axes.annotate(
                _bar_label(row),
                (row.p80_ms or value, position),
                (6, 0),
                textcoords="offset points",
                va="center",
                size=8,
            )
            position += 1
        position += 0.7
    values = [_value(row) for row in bars]
    if group == "memory":
        axes.set_xlim(0, 1.3 * max(values))
    else:
        axes.set_xscale("log")
        # Room on the right for the labels, on the left for the shortest bar to have a length.
        axes.set_xlim(min(values) / 2, max(values) * (max(values) / min(values) * 2) ** 0.35)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(position - 1, -0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(_axis(group))
    first = rows[0]
    dtypes = ", ".join(dict.fromkeys(row.dtype for row in rows))
    title = f"{GROUPS[group]}\n{first.cpu}, {first.threads} threads, {dtypes}, {first.timestamp[:10]}"
    axes.set_title(title, fontsize=10, loc="left")
    FigureCanvasAgg(figure).print_figure(path, dpi=120)


def _table(group: str, rows: list[Row]) -> Table:
    title = f"{group}: {GROUPS[group]}"
    failed = [row for row in rows if row.failure is not None]
    if failed:
        table = _table(group, [row for row in rows if row.failure is None])
        blank = ("",) * (len(table.header) - 3)
        failures = [(_case_label(row), row.impl, row.failure or "", *blank) for row in failed]
        return replace(table, lines=[*table.lines, *failures])
    if group == "rnnt-librispeech":
        header = ("case", "by", "forward ms", "backward ms", "step ms (20-80 %)", "peak MiB", "x ours")
        by_contender = groupby(_over_batches(rows), lambda row: (_case_label(row), row.impl))
        return Table(title, header, [_step_line(list(members)) for _, members in by_contender])
    if group in TIMED:
        header = ("case", "by", "forward ms", "backward ms", "both ms (20-80 %)", "turns", "x copy", "x ours")
        lines = [_timed_line(list(members)) for _, members in groupby(rows, lambda row: (_case_label(row), row.impl))]
        return Table(title, header, lines)
    if group == "decode":
        header = ("case", "by", "ms (20-80 %)", "us a frame", "wrong words, %", "turns", "x ours")
        lines = [
            (
                _case_label(row),
                row.impl,
                _spread(row),
                f"{1e3 * _value(row) / (row.shape[0] * row.shape[1]):.3g}",
                "" if row.word_error_rate is None else f"{100 * row.word_error_rate:.1f}",
                str(row.repeats),
                _ratio(row),
            )
            for row in rows
        ]
        return Table(title, header, lines)
    if group == "accuracy":
        header = ("case", "by", "largest error", "norm of error / norm", "x ours")
        lines = [
            (_case_label(row), row.impl, _scientific(row.max_abs_error), _scientific(row.relative_error), _ratio(row))
            for row in rows
        ]
        return Table(title, header, lines)
    if group == "memory":
        header = ("case", "by", "peak MiB", "beyond the gradient, % of scores", "x ours")
        lines = [
            (
                _case_label(row),
                row.impl,
                f"{row.peak_mib:.1f}",
                f"{100 * (row.share_beyond_gradient or 0):.1f}",
                _ratio(row),
            )
            for row in rows
        ]
        return Table(title, header, lines)
    header = ("case", "by", "first call ms (20-80 %)", "processes")
    lines = [(_case_label(row), row.impl, _spread(row), str(row.repeats)) for row in rows]
    return Table(title, header, lines)


def _timed_line(directions: list[Row]) -> tuple[str, ...]:
    case, name, forward, backward, both = _times(directions)
    copy = "" if both.ratio_to_copy is None else f"{both.ratio_to_copy:.3g}"
    return (case, name, forward, backward, _spread(both), str(both.repeats), copy, _ratio(both))


def _step_line(directions: list[Row]) -> tuple[str, ...]:
    case, name, forward, backward, both = _times(directions)
    return (case, name, forward, backward, _spread(both), _whole(both.peak_mib), _ratio(both))


def _times(directions: list[Row]) -> tuple[str, str, str, str, Row]:
    """The case, who ran it, forward, backward, and the row of both."""
    by_direction = {row.direction: row for row in directions}
    both = by_direction["both"]
    forward, backward = (
        _milliseconds(by_direction[name].median_ms) if name in by_direction else "" for name in ("forward", "backward")
    )
    name = both.impl if both.process == "shared" else f"{both.impl} ({both.process} process)"
    return _case_label(both), name, forward, backward, both


def _over_batches(rows: Sequence[Row]) -> Sequence[Row]:
    """The batches of the public comparison as one: mean times, with their quantiles over the batches, and the highest
    peak. Other rows as they are.
    """
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if not row.lengths.startswith("batch"):
            return rows
        if row.failure is not None:
            continue
        kinds.setdefault((row.kind, row.impl, row.direction), []).append(row)
    means = {key: float(np.mean([_value(row) for row in members])) for key, members in kinds.items()}
    merged = []
    for (kind, impl, direction), members in kinds.items():
        first, mean = members[0], means[kind, impl, direction]
        low, high = np.percentile([_value(row) for row in members], [20, 80])
        merged.append(
            first
            if len(members) == 1
            else replace(
                first,
                shape=(first.shape[0], *(max(row.shape[axis] for row in members) for axis in (1, 2)), first.shape[3]),
                lengths=f"{len(members)} batches",
                median_ms=mean,
                p20_ms=float(low),
                p80_ms=float(high),
                peak_mib=max((row.peak_mib for row in members if row.peak_mib is not None), default=None),
                ratio_to_ours=mean / means[kind, "pathsum", direction],
            )
        )
    return merged


# Of graphs and of decoders; of other losses logits are not mentioned.
_KINDS = ("graph", "ctc", "labels", "words", "list")


def _case_label(row: Row) -> str:
    if row.group == "rnnt-librispeech":
        return f"{row.kind}, {row.lengths} {row.shape}"
    details = [row.lengths] if row.group in TIMED else []
    if row.cache:
        details = [f"{row.cache} cache"]
    if row.std != 1:
        details.append(f"std {row.std:g}")
    if row.dtype != "float32":
        details.append(row.dtype)
    kind = f" of {row.kind}" if row.kind in ("log_probs", *_KINDS) else ""
    shape = "(" + ", ".join(map(str, row.shape)) + ")"
    return ", ".join([f"{row.op}{kind} {shape}", *details])


def _without_repeats(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    cases = [None, *(line[0] for line in lines)]
    return [("", *line[1:]) if line[0] == before else line for line, before in zip(lines, cases, strict=False)]


def _value(row: Row) -> float:
    return row.median_ms or row.peak_mib or row.max_abs_error or 0.0


def _axis(group: str) -> str:
    if group == "accuracy":
        return "largest absolute error of the gradient"
    return (
        "MiB beyond the inputs, gradient included" if group == "memory" else "ms, forward and backward: median, 20-80 %"
    )


def _bar_label(row: Row) -> str:
    value = _value(row)
    text = _scientific(value) if row.group == "accuracy" else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    if row.impl == "pathsum" or row.ratio_to_ours is None:
        return f"{row.impl}  {text}"
    ratio = f"{row.ratio_to_ours:.2g}" if row.ratio_to_ours < 100 else f"{row.ratio_to_ours:.0f}"
    return f"{row.impl}  {text}  ({ratio}x ours)"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _spread(row: Row) -> str:
    return f"{_milliseconds(row.median_ms)} ({_milliseconds(row.p20_ms)}-{_milliseconds(row.p80_ms)})"


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _ratio(row: Row) -> str:
    if row.ratio_to_ours is None:
        return ""
    return f"{row.ratio_to_ours:.0f}" if row.ratio_to_ours >= 100 else f"{row.ratio_to_ours:.3g}"
