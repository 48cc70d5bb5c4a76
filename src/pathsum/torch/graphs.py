"""Losses over any weighted graph, and all else that its paths can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError
from pathsum.graphs import Graph
from pathsum.options import ReductionName, TorchImpl
from pathsum.torch._autograd.difference import difference
from pathsum.torch._inputs import Integers, finish
from pathsum.torch.paths.graphs import MEMORY, Graphs, LatticeAlignment, paths_of_graphs


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    paths = paths_of_graphs(
        "lattice_score", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, memory_limit=memory_limit, impl=impl,
    )  # fmt: skip
    return -paths.loss(reduction)


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    paths = paths_of_graphs(
        "lattice_loss", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, memory_limit=memory_limit, impl=impl,
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    paths = paths_of_graphs(
        "lattice_align", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip
    return paths.best()


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
) -> LatticeAlignment:
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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``log_probs`` (N, K), and ``arcs``, ``labels`` and ``outputs`` (N, K, T), or (K,) and (K, T) for one sample
        given as (T, C); -1 in padding, and where a sample has no path or a NaN score.

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
    paths = paths_of_graphs(
        "lattice_sample", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, impl=impl, kernels="routes",
    )  # fmt: skip
    return paths.sample(num_samples, generator)


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    paths = paths_of_graphs(
        "lattice_posteriors", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip
    return paths.posteriors()


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced entropy, float64 for float64 scores and float32 for all others; 0 with gradient 0 for a sample
        without a path.

    Raises:
        InvalidValueError: As in ``lattice_score``.
        InvalidTypeError: As in ``lattice_score``.

    Notes:
        Differentiable. Cost: a loss and its gradient, and in backward a Hessian-vector product. A graph that
        samples share is laid out for each.

    Example:
        >>> import torch
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.torch import lattice_entropy
        >>> round(lattice_entropy(torch.zeros(3, 2), over_ctc(linear([1]), 2)).exp().item(), 4)  # six labellings
        6.0
    """
    paths = paths_of_graphs(
        "lattice_entropy", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip
    return paths.reduce(paths.entropy(), reduction)


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    paths = paths_of_graphs(
        "lattice_expected_risk", log_probs, graphs, input_lengths, weights=weights, fused_log_softmax=fused_log_softmax,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip
    return paths.reduce(paths.expected(costs), reduction)


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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    den_scale = _checks.check_number(function, "den_scale", den_scale)
    if not isinstance(denominator, Graph):
        raise InvalidTypeError(function, "denominator", "be a Graph", type(denominator).__name__)
    options: dict[str, Any] = {"batch_first": batch_first, "memory_limit": memory_limit, "impl": impl}
    every = paths_of_graphs(function, scores, denominator, input_lengths, scores_name="scores", **options)
    own = paths_of_graphs(
        function, scores, numerators, input_lengths, scores_name="scores", graphs_name="numerators", **options
    )
    losses = finish(difference(own.exact_losses(), den_scale * every.exact_losses()), own.scores, zero_infinity)
    if reduction != "mean":
        return own.reduce(losses, reduction)
    return losses.sum() / max(int(own.lattice.input_lengths.sum()), 1)
