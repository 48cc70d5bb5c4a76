"""Losses over any weighted graph, and all else that its paths can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph
from pathsum.kernels.protocol import Call, Kernels, SparseOptions
from pathsum.lattice import SparseLattice
from pathsum.options import ReductionName, TorchImpl
from pathsum.problems.graphs import pose_graphs
from pathsum.reductions import reduce
from pathsum.torch._expectations import directional, real_log_softmax
from pathsum.torch._inputs import (
    Integers,
    as_given,
    as_lengths,
    as_scores,
    check_generator,
    difference,
    dtype_of,
    finish,
    of_samples,
    samples_first,
    shape_of,
)
from pathsum.torch._operators import kernels_of
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch.paths.frames import centred

Graphs = Graph | Sequence[Graph]

MEMORY = 2**30
"""Bytes that the sweeps over the frames may remember; beyond, some frames are computed twice."""


class LatticeAlignment(NamedTuple):
    """The best path of each sample through its graph.

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


class LatticeSamples(NamedTuple):
    """Paths drawn from a distribution: ``arcs``, ``labels`` and ``outputs`` (N, K, T) as in ``LatticeAlignment``."""

    arcs: Tensor
    labels: Tensor
    outputs: Tensor


def lattice_score(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    reduction: ReductionName = "none",
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    memory_limit: int = MEMORY,
    impl: TorchImpl = "auto",
) -> Tensor:
    """The log-sum over all paths of a graph that emit as many labels as there are frames.

    ``score[n] = log sum over paths of exp(start + sum of weights + sum over t of log_probs[t, n, label[t]] + final)``.
    The sum is over paths: a string of labels that two paths spell counts twice.

    Args:
        log_probs: Scores (T, N, C), or (T, C) for one sample; they need not be normalised. float32, float64, bfloat16
            or float16, any strides.
        graphs: A ``pathsum.graphs.Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        reduction: ``"none"``: (N,). ``"sum"``. ``"mean"``: the mean over N, lengths not counted.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        memory_limit: Bytes that the sweeps over the frames may remember; beyond, only every sqrt(T)-th frame is kept
            and the others are computed twice.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced score, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) epsilon arcs that form a cycle, a label that is not below C, a wrong number of
            graphs, a length out of range, shapes that do not match; the message names the sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted, no ``Graph``.

    Notes:
        A sample without a path has score -inf and gradient exactly 0. A NaN or +inf among the scores of the classes
        that a graph emits, or among weights, makes the score of its own samples NaN. -inf is fine. Padding is never
        read.

        Twice differentiable (``create_graph=True``), by ``weights`` too. A third derivative is had with
        ``impl="reference"`` alone. Every state has an exponent of its own, so that nothing is lost in long inputs.

        Cost: O(T*(A + E)) time a sample and, for a gradient, O(T*(S + K)) memory, K being the classes that the graph
        emits. Deterministic for any number of threads. Graphs are laid out once, at their first use.

    Example:
        >>> import torch
        >>> from pathsum.graphs import Graph
        >>> from pathsum.torch import lattice_score
        >>> graph = Graph([0, 0], [0, 1], [1, 2])  # any number of 1 and a 2
        >>> round(lattice_score(torch.zeros(3, 1, 3), graph).exp().item(), 4)
        1.0
    """
    function = "lattice_score"
    arguments = (graphs, input_lengths, weights, reduction, fused_log_softmax, batch_first, memory_limit, impl)
    posed = pose_graph_call(function, log_probs, *arguments)
    return posed.reduce(-finish(posed.losses(), posed.given, False), reduction)


def lattice_loss(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    memory_limit: int = MEMORY,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Minus ``lattice_score``: the negative log-likelihood of what a graph accepts.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C) or (T, C).
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        zero_infinity: Make the loss of a sample without a path 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        memory_limit: As in ``lattice_score``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        With the graph ``over_ctc(linear(target), C)`` it is ``ctc_loss``, which is faster. Cost, accuracy, derivatives,
        NaN and infeasible samples are as in ``lattice_score``.

    Example:
        >>> import torch
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import ctc_loss, lattice_loss
        >>> logits = torch.arange(12.0).sin().reshape(4, 1, 3)
        >>> loss = lattice_loss(logits, over_ctc(linear([1, 2]), 3), fused_log_softmax=True)
        >>> bool(torch.isclose(loss, ctc_loss(logits, [[1, 2]], [4], [2], reduction="sum", fused_log_softmax=True)))
        True
    """
    function = "lattice_loss"
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    arguments = (graphs, input_lengths, weights, reduction, fused_log_softmax, batch_first, memory_limit, impl)
    posed = pose_graph_call(function, log_probs, *arguments)
    return posed.reduce(finish(posed.losses(), posed.given, zero_infinity), reduction)


def lattice_align(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> LatticeAlignment:
    """The best path of each sample through its graph: which arc every frame takes.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C), or (T, C) for one sample.
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``log_probs`` (N,), ``arcs``, ``labels`` and ``outputs`` (N, T); without the first axis for one sample given as
        (T, C). Not differentiable.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        Epsilon arcs on the path count in its score and are not told. Of several best paths, the one that from its end
        back takes the arc from the lowest state, and of those the lowest arc; epsilon arcs only where they are better.

    Example:
        >>> import torch
        >>> from pathsum.graphs import ctc_topology
        >>> from pathsum.torch import lattice_align
        >>> log_probs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> best = lattice_align(log_probs, ctc_topology(2))
        >>> best.labels.tolist(), best.outputs.tolist()  # a token where it begins
        ([0, 1, 1], [-1, 1, -1])
    """
    arguments = (graphs, input_lengths, weights, "none", fused_log_softmax, batch_first, MEMORY, impl)
    posed = pose_graph_call("lattice_align", log_probs, *arguments)
    found = posed.kernels.best(posed.call(posed.scores.detach(), posed.weights.detach()))
    log_probs = finish(found.log_probs, posed.given, False)
    return LatticeAlignment(*of_samples(posed.batched, log_probs, found.arcs, found.labels, posed.outputs(found.arcs)))


def lattice_sample(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    weights: Tensor | np.ndarray | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> LatticeSamples:
    """Paths drawn at random, each as probable as its share in the sum over all paths.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C), or (T, C) for one sample.
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        num_samples: K, how many paths are drawn of each.
        generator: What draws; ``None``: torch's own of the CPU.
        weights: (A,) weights of the arcs in place of a single graph's own.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``arcs``, ``labels`` and ``outputs`` (N, K, T), or (K, T) for one sample given as (T, C); -1 in padding, and
        where a sample has no path or a NaN score.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Example:
        >>> import torch
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import lattice_sample
        >>> graph, generator = over_ctc(linear([1]), 2), torch.Generator().manual_seed(0)
        >>> drawn = lattice_sample(torch.zeros(3, 2), graph, num_samples=600, generator=generator)
        >>> len(drawn.labels.unique(dim=0))  # six labellings
        6
    """
    function = "lattice_sample"
    arguments = (graphs, input_lengths, weights, "none", fused_log_softmax, batch_first, MEMORY, impl)
    posed = pose_graph_call(function, log_probs, *arguments)
    count = _checks.check_count(function, "num_samples", num_samples)
    check_generator(function, generator)
    num_sequences, num_frames, _ = posed.scores.shape
    draws = torch.rand(count, num_sequences, num_frames + 1, generator=generator, dtype=torch.float64, device="cpu")
    arcs = posed.kernels.sample(posed.call(posed.scores.detach(), posed.weights.detach()), draws).transpose(0, 1)
    return LatticeSamples(*of_samples(posed.batched, arcs, posed.labels(arcs), posed.outputs(arcs)))


def lattice_posteriors(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """How probable each class is in each frame, among all paths of a graph.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C), or (T, C) for one sample.
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C). The result has the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        (N, T, C), or (T, C) for one sample given as (T, C); 0 in padding and where no path exists. Not differentiable.
        float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Example:
        >>> import torch
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import lattice_posteriors
        >>> posteriors = lattice_posteriors(torch.zeros(3, 2), over_ctc(linear([1]), 2))  # six labellings
        >>> (posteriors * 6).round().int().tolist()
        [[3, 3], [2, 4], [3, 3]]
    """
    arguments = (graphs, input_lengths, weights, "none", fused_log_softmax, batch_first, MEMORY, impl)
    posed = pose_graph_call("lattice_posteriors", log_probs, *arguments)
    _, found = posed.kernels.posteriors(posed.call(posed.scores.detach(), posed.weights.detach()))
    (found,) = of_samples(posed.batched, finish(found, posed.given, False))
    return found


def lattice_entropy(
    log_probs: Tensor | np.ndarray,
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    reduction: ReductionName = "mean",
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Entropy, in nats, of the paths of a graph.

    ``entropy[n] = log Z - sum over paths of q(path) * score(path)`` with ``q(path) = exp(score(path)) / Z``.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C) or (T, C).
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced entropy, float64 for float64 scores and float32 for all others; 0 with gradient 0 for a sample
        without a path.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        Differentiable. Cost: a loss and its gradient, and in backward a Hessian-vector product, a sample after another.

    Example:
        >>> import torch
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import lattice_entropy
        >>> round(lattice_entropy(torch.zeros(3, 2), over_ctc(linear([1]), 2)).exp().item(), 4)  # six labellings
        6.0
    """
    arguments = (graphs, input_lengths, weights, reduction, fused_log_softmax, batch_first, MEMORY, impl)
    posed = pose_graph_call("lattice_entropy", log_probs, *arguments)
    # The difference of a log-sum and a mean score: what all paths have in common would cost it all digits.
    posed = posed._replace(scores=centred(posed.scores, 2))
    parts = [posed.expected(n, lambda one: (one.scores, one.weights)) for n in range(len(posed.scores))]
    entropies = [torch.where(losses == torch.inf, 0.0, -losses - costs) for losses, costs in parts]
    return posed.reduce(finish(posed.joined(entropies), posed.given, False), reduction)


def lattice_expected_risk(
    log_probs: Tensor | np.ndarray,
    costs: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    graphs: Graphs,
    input_lengths: Integers | None = None,
    *,
    weights: Tensor | np.ndarray | None = None,
    reduction: ReductionName = "mean",
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Expected cost of the paths of a graph, whose arcs cost each time that they are taken.

    ``risk[n] = sum over paths of q(path) * sum over its arcs of costs[arc]``; epsilon arcs may cost too.

    Args:
        log_probs: As in ``lattice_score``: (T, N, C) or (T, C).
        costs: (A,) of the arcs of a single graph, or a list of N such of N graphs; differentiable.
        graphs: A ``Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced risk, float64 for float64 scores and float32 for all others; 0 for a sample without a path.

    Raises:
        InvalidValueError: As in ``lattice_score``; also for costs that are not one an arc.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        Differentiable, at the cost that ``lattice_entropy`` has.

    Example:
        >>> import torch
        >>> from pathsum.graphs import ctc_topology
        >>> from pathsum.torch import lattice_expected_risk
        >>> graph = ctc_topology(2)
        >>> tokens = torch.tensor([float(output >= 0) for output in graph.outputs])  # 1 where a token begins
        >>> round(lattice_expected_risk(torch.zeros(3, 2), tokens, graph).item(), 4)  # 8 labellings, 8 tokens in all
        1.0
    """
    function = "lattice_expected_risk"
    arguments = (graphs, input_lengths, weights, reduction, fused_log_softmax, batch_first, MEMORY, impl)
    posed = pose_graph_call(function, log_probs, *arguments)
    each = list(costs) if isinstance(costs, (list, tuple)) else [costs] * len(posed.graphs)
    if len(each) != len(posed.graphs):
        raise InvalidValueError(function, "costs", f"be one tensor a graph, {len(posed.graphs)}", f"{len(each)}")
    tables = [_arc_table(function, "costs", own, graph, posed) for own, graph in zip(each, posed.graphs, strict=True)]

    def cost_of(one: PosedGraphs) -> tuple[None, Tensor]:
        own = tables[one.number]
        return None, torch.cat([own, own.new_zeros(len(one.weights) - len(own))])

    risks = [posed.expected(n, cost_of)[1] for n in range(len(posed.scores))]
    return posed.reduce(finish(posed.joined(risks), posed.given, False), reduction)


def lfmmi_loss(
    scores: Tensor | np.ndarray,
    numerators: Graphs,
    denominator: Graph,
    input_lengths: Integers | None = None,
    reduction: ReductionName = "mean",
    *,
    den_scale: float = 1.0,
    zero_infinity: bool = False,
    batch_first: bool = False,
    memory_limit: int = MEMORY,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Lattice-free maximum mutual information: how much of what a denominator accepts is the sample's own.

    ``loss[n] = den_scale * lattice_score(denominator) - lattice_score(numerators[n])``.

    Args:
        scores: Unnormalised scores (T, N, C), or (T, C) for one sample.
        numerators: What each sample may be, a list of N graphs, such as ``over_ctc(linear(target), C)`` with the
            denominator's weights; or one for all.
        denominator: The graph of all that may be, which the samples share, such as ``over_ctc(ngram(...), C)``.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        reduction: ``"none"``: losses (N,). ``"sum"``. ``"mean"``: their sum divided by the frames of all samples.
        den_scale: What the denominator's score is multiplied by.
        zero_infinity: Make the loss of a sample whose numerator has no path 0 instead of infinity.
        batch_first: ``scores`` are (N, T, C).
        memory_limit: As in ``lattice_score``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        Twice differentiable. A numerator without a path makes the loss infinite, with gradient exactly 0. Exact: no
        leaky arcs, and scores are not clamped.

    References:
        Povey et al. (2016), Purely sequence-trained neural networks for ASR based on lattice-free MMI; Hadian et al.
        (2018), End-to-end speech recognition using lattice-free MMI.

    Example:
        >>> import torch
        >>> from pathsum.graphs import ctc_topology, linear, over_ctc
        >>> from pathsum.torch import lfmmi_loss
        >>> loss = lfmmi_loss(torch.zeros(3, 1, 2), [over_ctc(linear([1]), 2)], ctc_topology(2), reduction="none")
        >>> round(loss.exp().item(), 4)  # 6 of the 8 labellings
        1.3333
    """
    function = "lfmmi_loss"
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    den_scale = _checks.check_number(function, "den_scale", den_scale)
    if not isinstance(denominator, Graph):
        raise InvalidTypeError(function, "denominator", "be a Graph", type(denominator).__name__)
    arguments = (input_lengths, None, reduction, False, batch_first, memory_limit, impl)
    every = pose_graph_call(function, scores, denominator, *arguments, scores_name="scores")
    own = pose_graph_call(function, scores, numerators, *arguments, scores_name="scores", graphs_name="numerators")
    # A difference of two log-sums, whose scores are shared, as are the gradients of both.
    losses = difference(own.losses(), den_scale * every.losses())
    losses = finish(losses, own.given, zero_infinity)
    if reduction != "mean":
        return own.reduce(losses, reduction)
    return losses.sum() / max(int(own.lattice.input_lengths.sum()), 1)


class PosedGraphs(NamedTuple):
    """The arguments of a function on graphs, checked.

    Attributes:
        given: the caller's scores (N, T, C), of which results have the dtype.
        scores: (N, T, C) as the arcs take them.
        weights: (W,) float64.
        lattice: of NumPy arrays.
        graphs: those of the lattice, each once.
        options: for the kernels.
        batched: whether the caller's scores had a batch axis.
        impl: the implementation chosen.
        number: which of the caller's graphs the first is, where this is one sample of a call.
    """

    given: Tensor
    scores: Tensor
    weights: Tensor
    lattice: SparseLattice
    graphs: list[Graph]
    options: SparseOptions
    batched: bool
    impl: str
    number: int = 0

    @property
    def kernels(self) -> Kernels:
        return kernels_of(self.impl, "sparse")

    def call(self, scores: Tensor, weights: Tensor) -> Call:
        return Call((scores, weights), self.lattice, self.options)

    def losses(self) -> Tensor:
        """Minus the log-sums (N,) in float64."""
        return self.kernels.losses(self.call(self.scores, self.weights))

    def reduce(self, values: Tensor, reduction: ReductionName) -> Tensor:
        return as_given(reduce(values, reduction), self.batched, reduction)

    def joined(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values) if values else self.scores.new_zeros(0, dtype=torch.float64)

    def expected(self, sample: int, costs_of: Callable[[PosedGraphs], Any]) -> tuple[Tensor, Tensor]:
        """Loss and expected cost (1,) of a sample, of what its scores and its weights cost."""
        number = int(self.lattice.graph_of_sample[sample])
        own = slice(sample, sample + 1)
        lattice, _ = pose_graphs([self.graphs[number]], np.zeros(1, np.int64), self.lattice.input_lengths[own])
        weights = self.weights[slice(*self.lattice.weight_offsets[number : number + 2].tolist())]
        one = self._replace(
            scores=self.scores[own],
            weights=weights,
            lattice=lattice,
            options=self.options._replace(by_weights=True),
            number=number,
        )
        return directional(lambda *scores: one.kernels.losses(one.call(*scores)), (one.scores, weights), costs_of(one))

    def labels(self, arcs: Tensor) -> Tensor:
        return self._of_arcs(arcs, "labels")

    def outputs(self, arcs: Tensor) -> Tensor:
        return self._of_arcs(arcs, "outputs")

    def _of_arcs(self, arcs: Tensor, name: str) -> Tensor:
        """What the arcs (N, ..., T) of each sample's graph have; -1 where there is none."""
        found = torch.full_like(arcs, -1)
        for n, number in enumerate(self.lattice.graph_of_sample.tolist()):
            table = torch.from_numpy(np.append(getattr(self.graphs[number], name), -1)).to(arcs.device)
            found[n] = table[arcs[n]]
        return found


def pose_graph_call(
    function: str,
    log_probs: Any,
    graphs: Graphs,
    input_lengths: Any,
    weights: Any,
    reduction: ReductionName,
    fused_log_softmax: bool,
    batch_first: bool,
    memory_limit: int,
    impl: str,
    *,
    scores_name: str = "log_probs",
    graphs_name: str = "graphs",
) -> PosedGraphs:
    scores, batched = samples_first(function, scores_name, log_probs, batch_first)
    num_samples, num_frames, num_classes = scores.shape
    logits = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    _checks.check_reduction(function, reduction)
    memory = _checks.check_count(function, "memory_limit", memory_limit)
    chosen = dispatch.select(function, scores.device.type, impl, "sparse")
    lengths = np.full(num_samples, num_frames)
    if input_lengths is not None:
        lengths = _checks.check_integers(
            function, "input_lengths", as_lengths(function, "input_lengths", input_lengths, batched), (1,)
        )
        _checks.check_lengths(function, "input_lengths", lengths, num_samples, "T", num_frames)
    different, numbers = _told_apart(function, graphs_name, graphs, num_samples, num_classes)
    lattice, own = pose_graphs(different, numbers, lengths)
    table = torch.from_numpy(own).to(scores.device)
    if weights is not None:
        if not isinstance(graphs, Graph):
            raise InvalidTypeError(function, "weights", f"be given with a single Graph as {graphs_name}", "a list")
        taken = _arc_table(function, "weights", weights, graphs, scores)
        table = torch.cat([taken, table[len(taken) :]])
    taken = real_log_softmax(scores.to(work_dtype(scores)), lattice.input_lengths) if logits else scores
    options = SparseOptions(by_weights=weights is not None, memory=memory)
    return PosedGraphs(scores, taken, table, lattice, different, options, batched, chosen)


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


def _arc_table(function: str, argument: str, values: Any, graph: Graph, scores: Any) -> Tensor:
    """Numbers (A,) of a graph's arcs, float64."""
    beside = scores.given if isinstance(scores, PosedGraphs) else scores
    table = as_scores(values)
    _checks.check_scores(function, argument, dtype_of(table), (*shape_of(table), 1), ("(A, 1)",))
    if table.shape != (graph.num_arcs,):
        raise InvalidValueError(
            function, argument, f"have one entry an arc, A = {graph.num_arcs}", f"shape {tuple(table.shape)}"
        )
    _checks.check_device(function, argument, str(table.device), str(beside.device))
    return table.double()
