"""What is asked and answered: a problem, one step over it, and who can take it.

As all of this folder, this runs in interpreters in which pathsum is not installed too (``pathsum bench
--peer-python``), of Python 3.9 or later, so it imports NumPy alone and every library where its adapter is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What the classes of a decoder's problems are, behind the blank.
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


class Problem(NamedTuple):
    """One input, in pathsum's own layout.

    Attributes:
        op: Name of pathsum's function.
        kind: ``"logits"`` or ``"log_probs"``; of a joiner, ``"initial"`` or ``"peaky"``; of a decoder what it has to go
            by, ``"labels"``, ``"words"``, or ``"list"`` where all that it finds is asked for.
        scores: float32; (T, N, C) for the CTC losses and ASG, (N, T, U+1, V) or packed (rows, V) for RNN-T, for TDT of
            the tokens; an encoder's output (N, T, H) for RNN-T with its joiner.
        targets: (N, S) labels, int64; (N, K, S) hypotheses of ``ctc_mwer_loss``.
        input_lengths: (N,) frames.
        target_lengths: (N,) labels, or (N, K).
        blank: Index of the blank class.
        beside: What has a gradient beside the scores: of a joiner predictor's output (N, U+1, H), weight (V, H) and
            bias (V,); of ASG transitions (C, C); of TDT logits (N, T, U+1, 5) of the durations 0 to 4.
        graph: Arcs (A, 3) of a graph, source, destination and label, their weights (A,), and the final states; state 0
            is the start. Of one graph for all samples; there is none elsewhere.
        arpa: A language model of words, as an ARPA file; the words that there are are its.
        dtype: What the losses are given, ``"float16"`` or ``"bfloat16"``; the scores are numbers that it has.
    """

    op: str
    kind: str
    scores: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int
    beside: tuple[np.ndarray, ...] = ()
    graph: tuple[np.ndarray, ...] = ()
    arpa: str = ""
    dtype: str = "float32"

    @property
    def operands(self) -> tuple[np.ndarray, ...]:
        """What gradients are taken of, the scores first."""
        return self.scores, *self.beside

    @property
    def errors(self) -> np.ndarray:
        """(N, K) what the hypotheses cost: how many of their labels are not the first one's."""
        return (self.targets != self.targets[:, :1]).sum(2)

    @property
    def integers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets and lengths, in the order in which every loss takes them."""
        return self.targets, self.input_lengths, self.target_lengths


class Step(NamedTuple):
    """One forward and backward: milliseconds by direction, the summed loss, and the gradient laid out as the scores.

    The gradients of what is beside the scores are computed with it, and not kept. A decoder has no gradient, but the
    labels that it found for each sample; its loss is minus their log-probability, NaN where it tells none.
    """

    milliseconds: dict[str, float]
    loss: float
    gradient: np.ndarray | None
    labels: list[list[int]] | None = None


Stepper = Callable[[], Step]


class Peer(NamedTuple):
    """An implementation: what must be installed for it, and what it can run."""

    modules: tuple[str, ...]
    distribution: str
    prepare: Callable[[Problem], Stepper]
    runs: frozenset[tuple[str, str]]


def milliseconds_of(start: float, middle: float, end: float) -> dict[str, float]:
    spans = {"forward": middle - start, "backward": end - middle, "both": end - start}
    return {direction: 1e3 * seconds for direction, seconds in spans.items()}


def save(problem: Problem, folder: Path) -> None:
    """Write a problem for another process."""
    for name in ("scores", "targets", "input_lengths", "target_lengths"):
        np.save(folder / f"{name}.npy", getattr(problem, name))
    for name in ("beside", "graph"):
        for index, array in enumerate(getattr(problem, name)):
            np.save(folder / f"{name}-{index}.npy", array)
    (folder / "problem.json").write_text(
        json.dumps([problem.op, problem.kind, problem.blank, problem.arpa, problem.dtype])
    )


def load(folder: Path) -> Problem:
    """Read what ``save`` wrote; the arrays are read into memory, not mapped."""
    op, kind, blank, arpa, dtype = json.loads((folder / "problem.json").read_text())
    arrays = [np.load(folder / f"{name}.npy") for name in ("scores", "targets", "input_lengths", "target_lengths")]
    beside, graph = (
        tuple(np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))) for name in ("beside", "graph")
    )
    return Problem(op, kind, *arrays, blank=blank, beside=beside, graph=graph, arpa=arpa, dtype=dtype)
