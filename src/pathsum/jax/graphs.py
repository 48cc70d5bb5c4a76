"""Losses over any weighted graph."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph
from pathsum.jax._columns import log_softmax
from pathsum.jax._inputs import Batch, IntegersLike, as_array, check_batch, check_impl, check_scores, solve
from pathsum.jax._solvers import ChainSolver, GraphSolver
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array
from pathsum.problems.crf import BASES, LONGEST, all_kmers, pose_crf
from pathsum.reductions import reduce

Graphs = Graph | Sequence[Graph]


def lattice_loss(
    log_probs: Array,
    graphs: Graphs,
    input_lengths: IntegersLike | None = None,
    *,
    weights: Array | None = None,
    reduction: str = "none",
    zero_infinity: bool = False,
    fused_log_softmax: bool = False,
    impl: str = "auto",
) -> Array:
    """Minus the log-sum over all paths of a graph that emit as many labels as there are frames.

    ``loss[n] = -log sum over paths of exp(start + sum of weights + sum over t of log_probs[n, t, label[t]] + final)``.

    Args:
        log_probs: Scores (N, T, C); they need not be normalised. float32, float64, bfloat16 or float16.
        graphs: A ``pathsum.graphs.Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        reduction: ``"none"``: losses (N,). ``"sum"``. ``"mean"``: the mean over N, lengths not counted.
        zero_infinity: Make the loss of a sample without a path 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As ``pathsum.torch.lattice_score``.
        InvalidTypeError: As ``pathsum.torch.lattice_score``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Graphs are constants of a program: it is compiled anew for graphs that it has not seen. Transformations, NaN and
        padding are as in ``ctc_loss``; a sample without a path has loss infinity and gradient exactly 0.

    Example:
        >>> import jax
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.jax import lattice_loss
        >>> loss = lattice_loss(jax.numpy.zeros((1, 3, 2)), over_ctc(linear([1]), 2))
        >>> round(float(jax.numpy.exp(-loss[0])), 4)  # six labellings
        6.0
    """
    function = "lattice_loss"
    scores = check_scores(function, "log_probs", log_probs, "(N, T, C)")
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    fused = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    batch = _batch(function, scores, input_lengths)
    losses = _losses(function, "graphs", scores, graphs, batch, weights, fused, impl)
    return _finished(losses, reduction, zero_infinity)


def lfmmi_loss(
    scores: Array,
    numerators: Graphs,
    denominator: Graph,
    input_lengths: IntegersLike | None = None,
    reduction: str = "none",
    *,
    den_scale: float = 1.0,
    zero_infinity: bool = False,
    impl: str = "auto",
) -> Array:
    """Lattice-free maximum mutual information: how much of what a denominator accepts is the sample's own.

    ``loss[n] = lattice_loss(numerators[n]) - den_scale * lattice_loss(denominator)``.

    Args:
        scores: Unnormalised scores (N, T, C).
        numerators: What each sample may be, a list of N graphs; or one for all.
        denominator: The graph of all that may be, which the samples share.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        reduction: ``"none"``: losses (N,). ``"sum"``. ``"mean"``: their sum divided by the frames of all samples.
        den_scale: What the denominator's score is multiplied by.
        zero_infinity: Make the loss of a sample whose numerator has no path 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``lattice_loss``.
        InvalidTypeError: As in ``lattice_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        As in ``lattice_loss``.

    Example:
        >>> import jax
        >>> from pathsum.graphs import ctc_topology, linear, over_ctc
        >>> from pathsum.jax import lfmmi_loss
        >>> loss = lfmmi_loss(jax.numpy.zeros((1, 3, 2)), [over_ctc(linear([1]), 2)], ctc_topology(2))
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 6 of the 8 labellings
        1.3333
    """
    function = "lfmmi_loss"
    scores = check_scores(function, "scores", scores, "(N, T, C)")
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    if not isinstance(denominator, Graph):
        raise InvalidTypeError(function, "denominator", "be a Graph", type(denominator).__name__)
    batch = _batch(function, scores, input_lengths)
    den_scale = _checks.check_number(function, "den_scale", den_scale)
    scores, in_common = _apart(scores, batch.integers.input_lengths)
    every = _losses(function, "denominator", scores, denominator, batch, None, False, impl)
    own = _losses(function, "numerators", scores, numerators, batch, None, False, impl)
    losses = _difference(own, den_scale * every) - (1 - den_scale) * in_common
    if reduction != "mean":
        return _finished(losses, reduction, zero_infinity)
    return _finished(losses, "sum", zero_infinity) / jnp.maximum(batch.integers.input_lengths.sum(), 1)


def crf_ctc_loss(
    scores: Array,
    targets: IntegersLike,
    input_lengths: IntegersLike | None,
    target_lengths: IntegersLike | None,
    state_len: int,
    reduction: str = "none",
    *,
    zero_infinity: bool = False,
    impl: str = "auto",
) -> Array:
    """The CTC-CRF loss of nanopore base callers: see ``pathsum.torch.crf_ctc_loss``.

    Args:
        scores: Unnormalised scores (N, T, 5*4**k).
        targets: Bases 1 to 4, (N, S). Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Bases of each sample (N,), at most S; S where ``None``.
        state_len: k, at least 1.
        reduction: ``"none"``: losses (N,). ``"sum"``. ``"mean"``: each divided by its target length (at least 1), then
            the mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``pathsum.torch.crf_ctc_loss``.
        InvalidTypeError: As in ``pathsum.torch.crf_ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Example:
        >>> import jax
        >>> from pathsum.jax import crf_ctc_loss
        >>> loss = crf_ctc_loss(jax.numpy.zeros((1, 2, 20)), [[1, 2]], [2], [2], state_len=1)
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 2 of 4 * 5 * 5 paths: the move in either frame
        50.0
    """
    function = "crf_ctc_loss"
    state_len = _checks.check_count(function, "state_len", state_len, 1, LONGEST)
    scores = check_scores(function, "scores", scores, "(N, T, 5*4**k)")
    num_classes = (1 + BASES) * BASES**state_len
    if scores.shape[2] != num_classes:
        rule = f"have 5*4**k = {num_classes} classes with k = {state_len}"
        raise InvalidValueError(function, "scores", rule, f"shape {scores.shape}")
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    batch = check_batch(
        function,
        targets,
        input_lengths,
        target_lengths,
        lengths_name="input_lengths",
        shape=(*scores.shape[:2], 1 + BASES),
        max_labels=None,
        blank=0,
    )
    scores, _ = _apart(scores, batch.integers.input_lengths)
    every = _losses(function, "scores", scores, all_kmers(state_len), batch, None, False, impl)
    solver = ChainSolver(check_impl(function, impl, scores), pose_crf, state_len, False)
    own = solve(solver, (scores,), batch, reduction="none", zero_infinity=False)
    weights = jnp.maximum(batch.integers.target_lengths, 1).astype(own.dtype)
    return _finished(_difference(own, every), reduction, zero_infinity, weights if reduction == "mean" else None)


def _batch(function: str, scores: Array, input_lengths: IntegersLike | None) -> Batch:
    """Lengths alone: there are no targets."""
    nothing = np.zeros((scores.shape[0], 1), np.int64)
    return check_batch(
        function,
        nothing,
        input_lengths,
        nothing[:, 0],
        lengths_name="input_lengths",
        shape=scores.shape,
        max_labels=None,
        blank=None,
    )


def _losses(
    function: str,
    argument: str,
    scores: Array,
    graphs: Graphs,
    batch: Batch,
    weights: Array | None,
    logits: bool,
    impl: str,
) -> Array:
    num_samples, _, num_classes = scores.shape
    single = isinstance(graphs, Graph)
    if not isinstance(graphs, (Graph, Sequence)):
        raise InvalidTypeError(function, argument, "be a Graph or a list of them", type(graphs).__name__)
    each = (graphs,) * num_samples if isinstance(graphs, Graph) else tuple(graphs)
    if len(each) != num_samples:
        raise InvalidValueError(function, argument, f"be one or one a sample, N = {num_samples}", len(each))
    for sample, graph in enumerate(each):
        if not isinstance(graph, Graph):
            raise InvalidTypeError(function, argument, "be a Graph or a list of them", type(graph).__name__)
        if not single or sample == 0:
            graph.check_posed(function, argument, num_classes, None if single else sample)
    solver = GraphSolver(check_impl(function, impl, scores, in_triton=GraphSolver.in_triton), each, weights is not None)
    work = work_dtype(scores)
    table = jnp.asarray(solver.own_weights, work)
    if weights is not None:
        if not isinstance(graphs, Graph):
            raise InvalidTypeError(function, "weights", f"be given with a single Graph as {argument}", "a list")
        given = as_array(function, "weights", weights)
        if given.shape != (graphs.num_arcs,):
            rule = f"have one entry an arc, A = {graphs.num_arcs}"
            raise InvalidValueError(function, "weights", rule, f"shape {given.shape}")
        table = jnp.concatenate([given.astype(work), table[graphs.num_arcs :]])
    if logits:
        scores = log_softmax(scores, batch.integers.input_lengths)
    return solve(solver, (scores, table), batch, reduction="none", zero_infinity=False)


def _apart(scores: Array, input_lengths: Array) -> tuple[Array, Array]:
    """Scores less the greatest of each frame, a constant, and the sum of these (N,).

    Of two sums over paths that have it in common the difference would have what float32 leaves beside it.
    """
    scores = scores.astype(work_dtype(scores))
    greatest = lax.stop_gradient(scores).max(2)
    real = jnp.arange(scores.shape[1]) < input_lengths[:, None]
    greatest = jnp.where(real & jnp.isfinite(greatest), greatest, 0)
    return scores - greatest[:, :, None], greatest.sum(1)


def _difference(own: Array, every: Array) -> Array:
    """Losses of a part of all paths less those of all; infinite where the part has none, whatever the whole has."""
    infeasible = (own == jnp.inf) & ~jnp.isnan(every)
    return jnp.where(infeasible, jnp.inf, own - jnp.where(infeasible, 0, every))


def _finished(losses: Array, reduction: str, zero_infinity: bool, weights: Array | None = None) -> Array:
    losses = jnp.where(losses == jnp.inf, 0, losses) if zero_infinity else losses
    return reduce(losses, reduction, weights)
