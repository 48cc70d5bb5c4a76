"""CTC whose classes or frames are shared out among the devices of a mesh, under ``jax.shard_map``."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.jax._columns import classes_of, largest_of, less_log, log_softmax, masked
from pathsum.jax._inputs import Batch, IntegersLike, check_batch, check_impl, check_scores, finished, solve
from pathsum.jax._solvers import ChainSolver, Integers
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array
from pathsum.options import SHARDS, JAXImpl, ReductionName, Shard
from pathsum.problems.ctc import pose_ctc


def sharded_ctc_loss(
    local_logits: Array,
    targets: IntegersLike,
    logit_lengths: IntegersLike,
    target_lengths: IntegersLike | None = None,
    *,
    axis_name: str,
    shard: Shard = "classes",
    blank: int = 0,
    reduction: ReductionName = "none",
    zero_infinity: bool = False,
    impl: JAXImpl = "auto",
) -> Array:
    """CTC loss of logits whose classes or frames are shared out among devices, inside ``jax.shard_map``.

    The loss of ``ctc_loss`` for the logits of all devices along an axis of the mesh put together.

    Args:
        local_logits: This device's logits: (N, T, C / R) of its classes, or (N, T / R, C) of its frames.
        targets: Labels (N, S), numbered among all classes; the same on every device.
        logit_lengths: Frames of each sample (N,), counted over all devices.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        axis_name: The axis of the mesh.
        shard: What is shared out: ``"classes"`` or ``"frames"``.
        blank: Index of the blank among all classes; negative counts from the end.
        reduction: As in ``ctc_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: As in ``ctc_loss``.

    Returns:
        The reduced loss, the same on every device: ``out_specs=jax.P()``.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        Sent are, for classes, the rows' maxima and sums and the columns of the blank and the S labels,
        ``(S + 3) * N * T`` numbers; the gradient is local. For frames each device solves N / R of the samples and is
        sent their columns, ``N * T * (S + 1) / R`` numbers there and, for the gradient, as many back. Differentiable to
        any order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from pathsum.jax import sharded_ctc_loss
        >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> loss = partial(sharded_ctc_loss, targets=[[1]], logit_lengths=[3], axis_name="x")
        >>> spread = jax.shard_map(loss, mesh=mesh, in_specs=jax.P(None, None, "x"), out_specs=jax.P())
        >>> round(float(jnp.exp(spread(jnp.zeros((1, 3, 2)))[0])), 4)
        1.3333
    """
    function = "sharded_ctc_loss"
    _checks.check_option(function, "shard", shard, SHARDS)
    scores = check_scores(function, "local_logits", local_logits, "(N, T, C)")
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    try:
        size, rank = lax.axis_size(axis_name), lax.axis_index(axis_name)
    except (NameError, TypeError, ValueError) as error:
        rule = "be an axis of the mesh, inside jax.shard_map"
        raise InvalidValueError(function, "axis_name", rule, axis_name) from error
    by_classes = shard == "classes"
    num_samples, num_frames, num_classes = scores.shape
    shape = (num_samples, num_frames * (1 if by_classes else size), num_classes * (size if by_classes else 1))
    blank = _checks.check_blank(function, blank, shape[2])
    chosen = check_impl(function, impl, scores)
    batch = check_batch(
        function, targets, logit_lengths, target_lengths, lengths_name="logit_lengths", shape=shape, max_labels=None,
        blank=blank,
    )  # fmt: skip
    classes, batch = classes_of(batch, blank)
    solver = ChainSolver(chosen, pose_ctc, 0, False)
    options = {"reduction": reduction, "zero_infinity": zero_infinity, "weigh": reduction == "mean"}
    if by_classes:
        columns = _columns_of_classes(scores, classes - rank * num_classes, batch.integers.input_lengths, axis_name)
        return solve(solver, (columns,), batch, **options)
    real = (batch.integers.input_lengths - rank * num_frames).clip(0, num_frames)
    columns = log_softmax(scores, real)
    columns = jnp.take_along_axis(
        columns, jnp.broadcast_to(classes[:, None], (num_samples, num_frames, classes.shape[1])), 2
    )
    # As many samples to each, with some of no frames behind the last.
    missing = -num_samples % size
    columns = jnp.pad(columns, ((0, missing), (0, 0), (0, 0)))
    columns = lax.all_to_all(columns, axis_name, split_axis=0, concat_axis=1, tiled=True)
    own = (num_samples + missing) // size
    mine = Integers(*(
        lax.dynamic_slice_in_dim(jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))), rank * own, own)
        for x in batch.integers
    ))  # fmt: skip
    losses = solve(solver, (columns,), Batch(mine, None), reduction="none", zero_infinity=False)
    spread = jnp.zeros(num_samples + missing, losses.dtype)
    whole = lax.psum(lax.dynamic_update_slice_in_dim(spread, losses, rank * own, 0), axis_name)[:num_samples]
    return finished(whole, batch, **options)


def _columns_of_classes(scores: Array, places: Array, lengths: Array, axis_name: str) -> Array:
    """Log-probabilities (N, T, W), the same on every device, of scores (N, T, C / R) and the places (N, W) in them."""
    num_samples, num_frames, num_classes = scores.shape
    logits = masked(scores, lengths).astype(work_dtype(scores))
    maxima = lax.pmax(largest_of(logits), axis_name)
    inside = (places >= 0) & (places < num_classes)
    index = jnp.broadcast_to(jnp.where(inside, places, 0)[:, None], (num_samples, num_frames, places.shape[1]))
    columns = jnp.where(inside[:, None], jnp.take_along_axis(logits, index, 2) - maxima, 0)
    sums = jnp.exp(logits - maxima).sum(2, keepdims=True)
    whole = lax.psum(jnp.concatenate([sums, columns], 2), axis_name)
    return less_log(whole[:, :, 1:], whole[:, :, :1])
