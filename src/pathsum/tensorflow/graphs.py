"""Losses over any weighted graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.tensorflow._columns import log_softmax
from pathsum.tensorflow._inputs import (
    IntegersLike,
    as_tensor,
    check_batch,
    check_impl,
    check_scores,
    outside_autograph,
    solve,
)
from pathsum.tensorflow._solvers import GraphSolver


@outside_autograph
def lattice_loss(
    log_probs: Array,
    graphs: Graph | Sequence[Graph],
    input_lengths: IntegersLike | None = None,
    *,
    weights: Array | None = None,
    zero_infinity: bool = False,
    fused_log_softmax: bool = False,
    impl: str = "auto",
) -> Array:
    """Minus the log-sum over all paths of a graph that emit as many labels as there are frames.

    ``loss[n] = -log sum over paths of exp(start + sum of weights + sum over t of log_probs[n, t, label[t]] + final)``.

    Args:
        log_probs: Scores (N, T, C) of a known number of samples and classes; they need not be normalised. float32,
            float64, bfloat16 or float16.
        graphs: A ``pathsum.graphs.Graph`` for all samples, or a list of N.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        weights: (A,) weights of the arcs in place of a single graph's own; differentiable.
        zero_infinity: Make the loss of a sample without a path 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        The losses (N,), float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As ``pathsum.torch.lattice_score``.
        InvalidTypeError: As ``pathsum.torch.lattice_score``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Graphs are constants of a ``tf.function``. NaN, padding and derivatives are as in ``ctc_loss``; a sample without
        a path has loss infinity and gradient exactly 0.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.graphs import linear, over_ctc
        >>> from pathsum.tensorflow import lattice_loss
        >>> loss = lattice_loss(tf.zeros([1, 3, 2]), over_ctc(linear([1]), 2))
        >>> round(float(tf.exp(-loss[0])), 4)  # six labellings
        6.0
    """
    function = "lattice_loss"
    scores = check_scores(function, "log_probs", log_probs, "(N, T, C)")
    num_samples, _, num_classes = scores.shape
    if num_samples is None or num_classes is None:
        raise InvalidValueError(function, "log_probs", "have a known number of samples and classes", scores.shape)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    if not isinstance(graphs, (Graph, Sequence)):
        raise InvalidTypeError(function, "graphs", "be a Graph or a list of them", type(graphs).__name__)
    each = (graphs,) * num_samples if isinstance(graphs, Graph) else tuple(graphs)
    if len(each) != num_samples:
        raise InvalidValueError(function, "graphs", f"be one or one a sample, N = {num_samples}", len(each))
    for sample, graph in enumerate(each):
        if not isinstance(graph, Graph):
            raise InvalidTypeError(function, "graphs", "be a Graph or a list of them", type(graph).__name__)
        if not isinstance(graphs, Graph) or sample == 0:
            graph.check_posed(function, "graphs", num_classes, None if isinstance(graphs, Graph) else sample)
    nothing = np.zeros((num_samples, 1), np.int64)
    batch = check_batch(function, nothing, nothing[:, 0], input_lengths, shape=sizes(scores), blank=None)
    solver = GraphSolver(check_impl(function, impl, scores), each)
    work = tf.float64 if scores.dtype == tf.float64 else tf.float32
    table = tf.constant(solver.own_weights, work)
    if weights is not None:
        if not isinstance(graphs, Graph):
            raise InvalidTypeError(function, "weights", "be given with a single Graph as graphs", "a list")
        given = as_tensor(function, "weights", weights)
        if given.shape != (graphs.num_arcs,):
            rule = f"have one entry an arc, A = {graphs.num_arcs}"
            raise InvalidValueError(function, "weights", rule, f"shape {given.shape}")
        table = tf.concat([tf.cast(given, work), table[graphs.num_arcs :]], 0)
    if _checks.check_flag(function, "fused_log_softmax", fused_log_softmax):
        scores = log_softmax(scores, batch.integers.input_lengths)
    return solve(solver, [scores, table], batch, zero_infinity=zero_infinity)
