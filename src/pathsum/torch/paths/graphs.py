"""The paths of any graph that emit as many labels as there are frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.display import lattice_paths, shown
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph
from pathsum.kernels.protocol import Call, Kernels, SparseOptions, SparsePath
from pathsum.lattice import SparseLattice
from pathsum.options import TorchImpl
from pathsum.problems.graphs import pose_graphs
from pathsum.torch._expectations import Expected, posteriors_of, product, real_log_softmax
from pathsum.torch._inputs import (
    Integers,
    as_scores,
    dtype_of,
    length_array,
    of_samples,
    samples_first,
    shape_of,
)
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch.paths.base import Paths
from pathsum.torch.paths.frames import centred, places_of

Graphs = Graph | Sequence[Graph]

MEMORY = 2**30
"""Bytes that the sweeps over the frames may remember; beyond, some frames are computed twice."""


@shown(lattice_paths)
class LatticeAlignment(NamedTuple):
    """The best path of each sample through its graph; or, with an axis K behind N, its best paths or such as are drawn.

    Attributes:
        log_probs: (N,) score of the path, weights and ends included; -inf where there is none, NaN where a score is.
        arcs: (N, T) number of the arc that each frame takes; -1 in padding, and in all frames where there is no path.
        labels: (N, T) the class that it emits.
        outputs: (N, T) its output, the arcs' second label.
    """

    log_probs: Tensor
    arcs: Tensor
    labels: Tensor
    outputs: Tensor


class GraphPaths(Paths):
    """Paths through graphs, one for all samples or one for each.

    Attributes:
        scores: (N, T, C) as the arcs take them.
        weights: (W,) float64, of the lattice.
        graphs: Those of the lattice, each once.
        options: For the kernels.
    """

    lattice: SparseLattice

    def __init__(
        self,
        function: str,
        scores: Tensor,
        weights: Tensor,
        lattice: SparseLattice,
        graphs: list[Graph],
        options: SparseOptions,
        kernels: Kernels,
        batched: bool,
    ) -> None:
        super().__init__(function, lattice, kernels, work_dtype(scores), batched)
        self.scores, self.weights, self.graphs, self.options = scores, weights, graphs, options

    def entropy(self) -> Tensor:
        """``log Z - E[score of path]`` (N,), in nats, differentiable; 0 where no path exists."""
        # What all paths have in common would cost the difference all digits.
        scores, (weights, lattice) = centred(self.scores, 2), self._apart(self.weights)
        return self._expectation(lattice, scores, weights, scores, weights).entropies().to(self.dtype)

    def expected(self, costs: Tensor | np.ndarray | Sequence[Tensor | np.ndarray]) -> Tensor:
        """The expected sum of the costs of a path's arcs, differentiable by costs, scores and weights.

        Args:
            costs: (A,) of the arcs of a single graph, epsilon arcs too, or a list of such, one a graph.

        Returns:
            (N,), 0 where no path exists.
        """
        each = list(costs) if isinstance(costs, (list, tuple)) else [costs] * len(self.graphs)
        if len(each) != len(self.graphs):
            rule = f"be one tensor a graph, {len(self.graphs)}"
            raise InvalidValueError(self.function, "costs", rule, f"{len(each)}")
        tables = []
        for own, graph, size in zip(each, self.graphs, np.diff(self.lattice.weight_offsets).tolist(), strict=True):
            table = arc_table(self.function, "costs", own, graph, self.scores)
            tables.append(torch.cat([table, table.new_zeros(size - len(table))]))
        weights, lattice = self._apart(self.weights)
        taken, _ = self._apart(torch.cat(tables))
        return self._expectation(lattice, self.scores, weights, None, taken).costs.to(self.dtype)

    def posteriors(self) -> Tensor:
        """(N, T, C) how probable each class is in each frame; 0 in padding and where no path exists."""
        _, found = self.kernels.posteriors(self._detached())
        return of_samples(self.batched, found.to(self.dtype))[0]

    def best(self) -> LatticeAlignment:
        """The best path of each sample: which arc every frame takes."""
        return self._told(self.kernels.best(self._detached()))

    def k_best(self, k: int, distinct: bool = False) -> LatticeAlignment:
        """The k best paths of each sample in falling order.

        Args:
            k: At least 1. Of a sample with fewer paths the others have the log-score -inf, and -1 in all frames.
            distinct: Of the paths whose arcs write the same outputs list the best alone. So the paths of
                ``ctc_topology`` are the best labellings of k label sequences. Outputs of epsilon arcs count too.

        Returns:
            ``log_probs`` (N, K), ``arcs``, ``labels`` and ``outputs`` (N, K, T). Of equals that one comes first that
            ``lattice_align`` takes.

        Example:
            >>> import torch
            >>> from pathsum.graphs import ctc_topology
            >>> from pathsum.torch.paths import graph_paths
            >>> log_probs = torch.tensor([[0.6, 0.4], [0.7, 0.3]]).log()
            >>> best = graph_paths(log_probs, ctc_topology(2)).k_best(2, distinct=True)
            >>> best.labels.tolist(), [round(prob, 2) for prob in best.log_probs.exp().tolist()]  # nothing, and a 1
            ([[0, 0], [1, 0]], [0.42, 0.28])
        """
        outputs = self._outputs_by_weight() if _checks.check_flag(self.function, "distinct", distinct) else None
        call = self._detached()
        return self._told(self._lister("routes").k_best(call, self._count(k, places_of(call)), outputs))

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> LatticeAlignment:
        """Paths drawn at random, independently, each as probable as its share in the sum over all paths.

        Args:
            num_samples: K, how many are drawn of each sample.
            generator: What draws, on the CPU; ``None``: torch's own.

        Returns:
            ``log_probs`` (N, K), ``arcs``, ``labels`` and ``outputs`` (N, K, T).
        """
        draws = self._draws(num_samples, generator, len(self.scores), self.scores.shape[1] + 1)
        return self._told(self._lister("routes").sample(self._detached(), draws))

    def _size(self) -> str:
        states = [graph.num_states for graph in self.graphs]
        return "N={}, T={}, C={}".format(*self.scores.shape) + f", {sum(states)} states"

    def call(self) -> Call:
        return Call((self.scores, self.weights), self.lattice, self.options)

    def _detached(self) -> Call:
        return self.call()._replace(scores=(self.scores.detach(), self.weights.detach()))

    def _apart(self, table: Tensor) -> tuple[Tensor, SparseLattice]:
        """A table of the weights (W,) with a copy for each sample, and the lattice on which each has its own."""
        own = self.lattice.graph_of_sample
        numbers = own if len(own) else np.zeros(1, np.int64)
        lattice, _ = pose_graphs([self.graphs[n] for n in numbers], np.arange(len(own)), self.lattice.input_lengths)
        sizes = np.diff(lattice.weight_offsets)
        first = self.lattice.weight_offsets[numbers] - lattice.weight_offsets[:-1]
        places = np.arange(sizes.sum()) + np.repeat(first, sizes)
        return table[torch.from_numpy(places).to(table.device)], lattice

    def _expectation(
        self, lattice: SparseLattice, scores: Tensor, weights: Tensor, costs: Tensor | None, weight_costs: Tensor
    ) -> Expected:
        """Of a lattice on which each sample has its own weights."""
        options = self.options._replace(by_weights=True)
        losses, posteriors, counts = posteriors_of(
            lambda *both: self.kernels.losses(Call(both, lattice, options)), scores, weights
        )
        sizes = np.diff(lattice.weight_offsets)[: len(scores)]
        sample = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(scores.device)
        of_weights = product(counts, weight_costs)[: len(sample)]
        expected = torch.zeros_like(losses).index_add(0, sample, of_weights)
        return Expected(losses, expected if costs is None else expected + product(posteriors, costs).sum((1, 2)))

    def _told(self, found: SparsePath) -> LatticeAlignment:
        outputs = self._outputs_by_weight().to(found.arcs.device)
        first = torch.from_numpy(self.lattice.weight_offsets[self.lattice.graph_of_sample]).to(found.arcs.device)
        places = found.arcs + first.reshape(-1, *[1] * (found.arcs.ndim - 1))
        written = torch.where(found.arcs < 0, -1, outputs[places.clamp(min=0)])
        return LatticeAlignment(
            *of_samples(self.batched, found.log_probs.to(self.dtype), found.arcs, found.labels, written)
        )

    def _outputs_by_weight(self) -> Tensor:
        """(W,) the output of the arc of each weight, and -1 of the weights of ends."""
        outputs = np.full(int(self.lattice.weight_offsets[-1]) + 1, -1)
        for graph, first in zip(self.graphs, self.lattice.weight_offsets.tolist(), strict=False):
            outputs[first : first + graph.num_arcs] = graph.outputs
        return torch.from_numpy(outputs)


def graph_paths(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | int | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    memory_limit: int = MEMORY,
    impl: TorchImpl = "auto",
) -> GraphPaths:
    """The paths of a graph that emit as many labels as there are frames.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C), or (T, C) for one sample.
        graphs: A ``pathsum.graphs.Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        memory_limit: As in ``lattice_score``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The ``Paths``: ``losses``, ``loss``, ``entropy``, ``expected``, ``posteriors``, ``best``, ``k_best`` and
        ``sample`` of them.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Example:
        >>> import torch
        >>> from pathsum.graphs import ctc_topology
        >>> from pathsum.torch.paths import graph_paths
        >>> paths = graph_paths(torch.zeros(3, 2), ctc_topology(2))
        >>> round(paths.entropy().exp().item(), 4)
        8.0
    """
    return paths_of_graphs(
        "graph_paths", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, memory_limit=memory_limit, impl=impl,
    )  # fmt: skip


def paths_of_graphs(
    function: str,
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | int | None,
    *,
    weights: Tensor | np.ndarray | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool,
    memory_limit: int = MEMORY,
    impl: str,
    scores_name: str = "log_probs",
    graphs_name: str = "graphs",
    kernels: str = "sparse",
) -> GraphPaths:
    """The paths that a function of graphs is made of, which may call its arguments by other names.

    ``kernels``: what the implementation is chosen for, by its name in the table.
    """
    scores, batched = samples_first(function, scores_name, log_probs, batch_first)
    num_samples, num_frames, num_classes = scores.shape
    logits = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    memory = _checks.check_count(function, "memory_limit", memory_limit)
    chosen = dispatch.select(function, scores.device.type, impl, kernels)
    solver = dispatch.kernels_of(chosen, "sparse")
    lengths = length_array(function, "input_lengths", input_lengths, num_samples, num_frames, batched)
    different, numbers = _told_apart(function, graphs_name, graphs, num_samples, num_classes)
    lattice, own = pose_graphs(different, numbers, lengths)
    table = torch.from_numpy(own).to(scores.device)
    if weights is not None:
        if not isinstance(graphs, Graph):
            raise InvalidTypeError(function, "weights", f"be given with a single Graph as {graphs_name}", "a list")
        taken = arc_table(function, "weights", weights, graphs, scores)
        table = torch.cat([taken, table[len(taken) :]])
    taken = real_log_softmax(scores.to(work_dtype(scores)), lattice.input_lengths) if logits else scores
    options = SparseOptions(by_weights=weights is not None, memory=memory)
    return GraphPaths(function, taken, table, lattice, different, options, solver, batched)


def _told_apart(
    function: str, argument: str, graphs: Graphs, num_samples: int, num_classes: int
) -> tuple[list[Graph], np.ndarray]:
    """Each graph once, and which is whose."""
    if isinstance(graphs, Graph):
        each = [graphs] * num_samples
    elif isinstance(graphs, (list, tuple)):
        each = list(graphs)
        if len(each) != num_samples:
            raise InvalidValueError(function, argument, f"be one or one a sample, N = {num_samples}", f"{len(each)}")
    else:
        raise InvalidTypeError(function, argument, "be a Graph or a list of them", type(graphs).__name__)
    known: dict[int, int] = {}
    different = [graphs] if isinstance(graphs, Graph) else []
    for sample, graph in enumerate(each):
        if not isinstance(graph, Graph):
            raise InvalidTypeError(function, argument, "be a Graph or a list of them", type(graph).__name__)
        if id(graph) not in known:
            known[id(graph)] = len(known)
            if not isinstance(graphs, Graph):
                different.append(graph)
            graph.check_posed(function, argument, num_classes, None if isinstance(graphs, Graph) else sample)
    numbers = np.array([known[id(graph)] for graph in each], np.int64)
    return different or [Graph([], [], [], final={})], numbers


def arc_table(function: str, argument: str, values: Any, graph: Graph, scores: Tensor) -> Tensor:
    """Numbers (A,) of a graph's arcs, float64."""
    table = as_scores(values)
    _checks.check_scores(function, argument, dtype_of(table), (*shape_of(table), 1), ("(A, 1)",))
    if table.shape != (graph.num_arcs,):
        raise InvalidValueError(
            function, argument, f"have one entry an arc, A = {graph.num_arcs}", f"shape {tuple(table.shape)}"
        )
    _checks.check_device(function, argument, str(table.device), str(scores.device))
    return table.double()
