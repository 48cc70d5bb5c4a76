"""What is measured: groups of cases, and the inputs of a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathsum.bench import librispeech, texts
from pathsum.bench.peers import Problem
from pathsum.bench.peers.problem import LETTERS

GROUPS = {
    "ctc": "time of ctc_loss, from logits and from log-probabilities",
    "simple_ctc": "time of simple_ctc_loss",
    "rnnt": "time of rnnt_loss",
    "mwer": "time of ctc_mwer_loss of 8 hypotheses beside one ctc_loss",
    "graphs": "time of lattice_loss, of a random graph and of CTC's",
    "decode": "time of beam decoders, and their word error rates",
    "small": "time of losses so small that the call itself is most of it",
    "half": "time of losses of half precision, beside float32",
    "rnnt-librispeech": "a training step of RNN-T, joiner included, on the public comparison's batches",
    "accuracy": "float32 gradients against float64, on long input and peaky scores",
    "memory": "peak memory of forward and backward, in fresh processes",
    "first_call": "the first call after imports, kernel cache cold and warm, in fresh processes",
}
TIMED = ("ctc", "simple_ctc", "rnnt", "mwer", "graphs", "small", "half")
# Too long and too large to be measured unasked.
ON_REQUEST = ("rnnt-librispeech",)


@dataclass(frozen=True)
class Case:
    """One input of one function.

    Attributes:
        group: The group that it belongs to.
        op: Name of pathsum's function.
        kind: ``"logits"`` or ``"log_probs"``; of a joiner, ``"initial"`` or ``"peaky"``; of a graph, ``"graph"`` or
            ``"ctc"``; of a decoder, ``"labels"``, ``"words"`` or ``"list"``.
        shape: (N, T, L, C): samples, frames, labels, classes. Of a random graph L is its arcs.
        lengths: ``"full"``, or ``"ragged"``: from half of the padded size to all of it, one sample at the full size; or
            ``"batch K"``: those of a batch of the public comparison.
        std: Standard deviation of the logits.
        dtype: What the scores are rounded to.
    """

    group: str
    op: str
    kind: str
    shape: tuple[int, int, int, int]
    lengths: str = "full"
    std: float = 1.0
    dtype: str = "float32"

    def __str__(self) -> str:
        text = f"{self.op} {self.kind} {self.shape} {self.lengths}"
        text = text if self.std == 1 else f"{text} std {self.std:g}"
        return text if self.dtype == "float32" else f"{text} {self.dtype}"


_CTC_SHAPES = [
    (16, 500, 60, 500),  # characters or phonemes of long utterances
    (16, 1000, 100, 5000),  # word pieces: the scores' bytes decide
    (32, 150, 40, 32),  # short utterances, few classes: the recursion decides
]
_RNNT_SHAPES = [(8, 300, 60, 500)]
# Few classes, where eight recursions decide, and many.
_MWER_SHAPES = [(16, 150, 30, 29), (8, 200, 40, 32), (32, 100, 20, 60), (8, 300, 60, 1000)]
HYPOTHESES = 8
# A denominator of LF-MMI: 3 states for 50 arcs, of one sample and of a batch.
_GRAPH_SHAPES = [(1, 300, 50_000, 200), (16, 300, 50_000, 200)]


def cases(
    group: str,
    quick: bool = False,
    batches: int = librispeech.NUM_BATCHES,
    utterances: int = librispeech.BATCH_SIZE,
) -> list[Case]:
    """The cases of a group; with ``quick`` the same kinds on tiny shapes.

    Of the public comparison the first ``batches`` are taken, and of each the first ``utterances``.
    """
    ctc_shapes = [(2, 20, 5, 8)] if quick else _CTC_SHAPES
    rnnt_shapes = [(2, 10, 4, 6)] if quick else _RNNT_SHAPES
    if group == "ctc":
        return [
            Case(group, "ctc_loss", kind, shape, lengths)
            for shape in ctc_shapes
            for kind in ("logits", "log_probs")
            for lengths in ("full", "ragged")
        ]
    if group == "simple_ctc":
        shapes = [ctc_shapes[0], ctc_shapes[-1]][: len(ctc_shapes)]
        return [
            Case(group, "simple_ctc_loss", "logits", shape, lengths)
            for shape in shapes
            for lengths in ("full", "ragged")
        ]
    if group == "rnnt":
        return [
            Case(group, "rnnt_loss", "logits", shape, lengths)
            for shape in rnnt_shapes
            for lengths in ("full", "ragged")
        ]
    if group == "mwer":
        return [Case(group, "ctc_mwer_loss", "logits", shape) for shape in (ctc_shapes if quick else _MWER_SHAPES)]
    if group == "graphs":
        shapes = [(2, 10, 40, 6)] if quick else _GRAPH_SHAPES
        random = [Case(group, "lattice_loss", "graph", shape) for shape in shapes]
        return [*random, Case(group, "lattice_loss", "ctc", ctc_shapes[0])]
    if group == "decode":
        return _decode_cases(group, quick)
    if group == "small":
        ctc_shapes = [(1, 20, 5, 10)] if quick else [(1, 20, 5, 10), (8, 50, 10, 30)]
        rnnt_shapes = [(1, 10, 5, 10)] if quick else [(1, 10, 5, 10), (4, 30, 8, 30)]
        chains = [
            Case(group, "ctc_loss", kind, *each)
            for kind in ("log_probs", "logits")
            for each in _full_and_ragged(ctc_shapes)
        ]
        grids = [Case(group, "rnnt_loss", "logits", *each) for each in _full_and_ragged(rnnt_shapes)]
        tables = [Case(group, "tdt_loss", "logits", rnnt_shapes[0]), Case(group, "asg_loss", "logits", ctc_shapes[0])]
        return chains + grids + tables
    if group == "half":
        return [
            Case(group, op, "logits", shape, dtype=dtype)
            for op, shape in (("ctc_loss", ctc_shapes[0]), ("rnnt_loss", rnnt_shapes[0]))
            for dtype in ("float32", "bfloat16", "float16")
        ]
    if group == "rnnt-librispeech":
        return _librispeech_cases(group, quick, batches, utterances)
    if group == "accuracy":
        long = [(1, 50, 10, 8)] if quick else [(1, 1000, 200, 100), (1, 2000, 200, 1000), (1, 10000, 1000, 100)]
        grid = (1, 20, 6, 8) if quick else (1, 1500, 300, 8)
        return [Case(group, "ctc_loss", "logits", shape) for shape in long] + [
            Case(group, "rnnt_loss", "logits", grid, std=std) for std in (1.0, 8.0)
        ]
    if group == "memory":
        return [
            Case(group, "ctc_loss", "logits", ctc_shapes[min(1, len(ctc_shapes) - 1)]),
            Case(group, "rnnt_loss", "logits", rnnt_shapes[0]),
        ]
    small = (2, 20, 5, 8) if quick else (4, 100, 20, 30)
    functions = ("ctc_loss", "simple_ctc_loss", "rnnt_loss", "rnnt_packed_loss", "tdt_loss", "asg_loss")
    return [Case(group, op, "logits", small) for op in functions]


def _full_and_ragged(shapes: list[tuple[int, int, int, int]]) -> list[tuple[tuple[int, int, int, int], str]]:
    """Each shape with lengths of both kinds; one sample has but one."""
    return [(shape, lengths) for shape in shapes for lengths in ("full", "ragged")[: shape[0]]]


def _decode_cases(group: str, quick: bool) -> list[Case]:
    classes = 1 + len(LETTERS)
    sentences, frames = (2, 40) if quick else (20, 160)
    short = [
        Case(group, "ctc_beam_decode", kind, (sentences, frames, texts.labels_of(frames), classes))
        for kind in ("labels", "words")
    ]
    frames = 20 if quick else 1500
    return [*short, Case(group, "ctc_beam_decode", "list", (1, frames, texts.labels_of(frames), classes))]


def _librispeech_cases(group: str, quick: bool, batches: int, utterances: int) -> list[Case]:
    sizes = [("ragged", (2, 10, 4, 6))]
    if not quick:
        padded = [librispeech.batch_lengths(k, utterances).max(0) for k in range(batches)]
        sizes = [
            (f"batch {k}", (utterances, int(frames), int(labels), librispeech.NUM_CLASSES))
            for k, (frames, labels) in enumerate(padded)
        ]
    return [
        Case(group, "rnnt_joint_loss", kind, shape, lengths)
        for kind in ("initial", "peaky")
        for lengths, shape in sizes
    ]


def make_problem(case: Case, seed: int = 0) -> Problem:
    """The inputs of a case: the same for the same seed."""
    rng = np.random.default_rng(seed)
    num_samples, frames, labels, classes = case.shape
    if case.op == "ctc_beam_decode":
        return texts.make_problem(case.op, case.kind, num_samples, frames, labels, rng)
    grid = case.op.startswith("rnnt") or case.op == "tdt_loss"
    blank = classes - 1 if grid else 0
    targets = rng.integers(0 if grid else 1, blank if grid else classes, (num_samples, labels))
    if case.op == "asg_loss":
        targets = _without_equal_neighbours(targets, classes)
    if case.lengths.startswith("batch"):
        batch = int(case.lengths.removeprefix("batch"))
        input_lengths, target_lengths = librispeech.batch_lengths(batch, num_samples).T
    else:
        input_lengths, target_lengths = (_lengths(rng, case.lengths, num_samples, size) for size in (frames, labels))
    if case.op == "rnnt_joint_loss":
        scores, *joiner = librispeech.make_operands(
            rng, input_lengths, targets, target_lengths, classes, case.kind == "peaky"
        )
        return Problem(
            case.op, case.kind, scores, targets, input_lengths, target_lengths, blank, (joiner[0], joiner[1], joiner[2])
        )
    further: tuple[np.ndarray, ...] = ()
    if case.op == "asg_loss":
        further = (rng.standard_normal((classes, classes), dtype=np.float32),)
    elif case.op == "tdt_loss":
        further = (rng.standard_normal((num_samples, frames, labels + 1, 5), dtype=np.float32),)
    shape = (num_samples, frames, labels + 1, classes) if grid else (frames, num_samples, classes)
    if case.op == "rnnt_packed_loss":
        shape = (int(np.sum(input_lengths * (target_lengths + 1))), classes)
    scores = rng.standard_normal(shape, dtype=np.float32)
    scores *= np.float32(case.std)
    if case.kind != "logits":
        scores -= scores.max(-1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    if case.dtype != "float32":
        import torch

        scores = torch.from_numpy(scores).to(getattr(torch, case.dtype)).float().numpy()
    graph: tuple[np.ndarray, ...] = ()
    if case.kind == "graph":
        graph, targets, target_lengths = _random_graph(rng, labels, classes), targets[:, :0], 0 * target_lengths
    if case.op == "ctc_mwer_loss":
        targets, target_lengths = _hypotheses(rng, targets, classes), np.repeat(target_lengths[:, None], HYPOTHESES, 1)
    return Problem(
        case.op, case.kind, scores, targets, input_lengths, target_lengths, blank, further, graph, dtype=case.dtype
    )


def _hypotheses(rng: np.random.Generator, targets: np.ndarray, classes: int) -> np.ndarray:
    """(N, K, S): the targets, and lists of what differs from them in one to three labels, as a decoder's do.

    No two of a sample are the same, which count once.
    """
    hypotheses = np.repeat(targets[:, None], HYPOTHESES, 1)
    for each in hypotheses:
        for k in range(1, HYPOTHESES):
            while (each[:k] == each[k]).all(1).any():
                places = rng.integers(0, each.shape[1], rng.integers(1, 4))
                each[k, places] = rng.integers(1, classes, len(places))
    return hypotheses


def _without_equal_neighbours(targets: np.ndarray, classes: int) -> np.ndarray:
    """Labels that ASG can tell from their neighbours: each is some way behind the one before."""
    return (targets[:, :1] + np.cumsum(targets % (classes - 1) + 1, 1)) % classes


def _random_graph(rng: np.random.Generator, num_arcs: int, classes: int) -> tuple[np.ndarray, ...]:
    """Arcs, weights and final states of a graph in which any state is reached and any may be the last."""
    num_states = max(num_arcs * 3 // 50, 2)
    arcs = np.stack([*rng.integers(0, num_states, (2, num_arcs)), rng.integers(0, classes, num_arcs)], 1)
    chain = np.arange(num_states - 1)
    arcs[chain, 0], arcs[chain, 1] = chain, chain + 1
    return arcs, rng.standard_normal(num_arcs, dtype=np.float32), np.arange(num_states)


def _lengths(rng: np.random.Generator, lengths: str, num_samples: int, size: int) -> np.ndarray:
    if lengths == "full":
        return np.full(num_samples, size)
    # Peers want one sample to reach the padded size.
    return np.concatenate([[size], rng.integers((size + 1) // 2, size + 1, num_samples - 1)])
