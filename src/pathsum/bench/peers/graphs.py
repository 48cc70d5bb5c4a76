"""The losses over graphs that are measured, ours among them."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from .losses import autograd_step
from .problem import Problem, Step, Stepper, milliseconds_of


def _own_targets(problem: Problem) -> list[list[int]]:
    lengths = problem.target_lengths.tolist()
    return [labels[: lengths[n]] for n, labels in enumerate(problem.targets.tolist())]


def prepare_pathsum(problem: Problem) -> Stepper:
    import torch

    from pathsum.graphs import Graph, linear, over_ctc
    from pathsum.torch import lattice_loss

    lengths, graphs = torch.from_numpy(problem.input_lengths), None
    if problem.graph:
        arcs, weights, final = problem.graph
        graphs = Graph(arcs[:, 0], arcs[:, 1], arcs[:, 2], weights, final=dict.fromkeys(final.tolist(), 0.0))
    else:
        num_classes = problem.scores.shape[2]
        graphs = [over_ctc(linear(labels), num_classes, problem.blank) for labels in _own_targets(problem)]
    return autograd_step(problem, lambda scores: lattice_loss(scores, graphs, lengths, reduction="sum"))


def prepare_k2(problem: Problem) -> Stepper:
    import k2  # pyright: ignore[reportMissingImports]
    import torch

    num_samples = len(problem.input_lengths)
    if problem.graph:
        graphs = k2.create_fsa_vec([k2.Fsa(torch.from_numpy(_arcs_of_k2(*problem.graph)))])
        graphs = k2.index_fsa(graphs, torch.zeros(num_samples, dtype=torch.int32))
    else:
        graphs = k2.ctc_graph(_own_targets(problem), modified=False)
    segments = np.zeros((num_samples, 3), np.int32)
    segments[:, 0], segments[:, 2] = np.arange(num_samples), problem.input_lengths

    def loss_of(scores: Any) -> Any:
        dense = k2.DenseFsaVec(scores.transpose(0, 1), torch.from_numpy(segments))
        # Nothing is pruned: the same number as all others'.
        lattices = k2.intersect_dense(graphs, dense, output_beam=1e10)
        return -lattices.get_tot_scores(log_semiring=True, use_double_scores=True).sum()

    return autograd_step(problem, loss_of)


def _arcs_of_k2(arcs: np.ndarray, weights: np.ndarray, final: np.ndarray) -> np.ndarray:
    """(A, 4) of int32 by source: weights by their bits, and arcs of label -1 from the final states to the last."""
    last = int(arcs[:, :2].max()) + 1
    endings = np.stack([final, np.full_like(final, last), np.full_like(final, -1)], 1)
    every = np.concatenate([arcs, endings]).astype(np.int32)
    scores = np.concatenate([weights, np.zeros(len(final))]).astype(np.float32)
    order = np.argsort(every[:, 0], kind="stable")
    return np.concatenate([every, scores.view(np.int32)[:, None]], 1)[order]


def prepare_gtn(problem: Problem) -> Stepper:
    import gtn  # pyright: ignore[reportMissingImports]

    arcs, weights, final = problem.graph
    graph = gtn.Graph(False)
    ending = set(final.tolist())
    for state in range(int(arcs[:, :2].max()) + 1):
        graph.add_node(state == 0, state in ending)
    for index, (source, destination, label) in enumerate(arcs.tolist()):
        graph.add_arc(source, destination, label, label, float(weights[index]))
    samples = [np.ascontiguousarray(scores) for scores in problem.scores.swapaxes(0, 1)]

    def step() -> Step:
        start = perf_counter()
        emissions, losses = [], []
        for scores in samples:
            emitted = gtn.linear_graph(*scores.shape, True)
            emitted.set_weights(scores.ctypes.data)
            emissions.append(emitted)
            losses.append(gtn.negate(gtn.forward_score(gtn.intersect(graph, emitted))))
        middle = perf_counter()
        for loss in losses:
            gtn.backward(loss)
        end = perf_counter()
        gradients = [emitted.grad().weights_to_numpy().reshape(samples[0].shape) for emitted in emissions]
        total = sum(loss.item() for loss in losses)
        return Step(milliseconds_of(start, middle, end), total, np.stack(gradients, 1))

    return step
