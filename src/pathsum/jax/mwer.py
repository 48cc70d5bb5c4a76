"""Training on the error rate itself: the expected errors of hypotheses, whatever decoder they come from."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.jax._columns import classes_of, log_softmax
from pathsum.jax._inputs import (
    Batch,
    Hypotheses,
    IntegersLike,
    as_array,
    as_integers,
    check_batch,
    check_impl,
    check_scores,
    readable,
    solve,
)
from pathsum.jax._solvers import ChainSolver, Integers
from pathsum.kernels.jax.rows import work_dtype
from pathsum.kernels.numba import edit_distance
from pathsum.lattice import Array
from pathsum.options import BASELINES, Baseline, JAXImpl, ReductionName
from pathsum.problems.ctc import pose_ctc
from pathsum.reductions import reduce


def ctc_mwer_loss(
    logits: Array,
    hypotheses: Hypotheses,
    logit_lengths: IntegersLike | None,
    hypothesis_lengths: IntegersLike,
    errors: Any = None,
    *,
    references: IntegersLike | None = None,
    reference_lengths: IntegersLike | None = None,
    separator: int | None = None,
    blank: int = 0,
    reduction: ReductionName = "none",
    baseline: Baseline = "mean",
    normalise: bool = True,
    temperature: float = 1.0,
    fused_log_softmax: bool = True,
    impl: JAXImpl = "auto",
) -> Array:
    """Minimum word error rate loss of CTC: the expected errors of some hypotheses under the model.

    ``loss[n] = sum over k of q[k] * (errors[n, k] - b)``, q being the softmax over k of ``log P(hypothesis k) /
    temperature``. P sums over all labellings of the frames, as in ``ctc_loss``.

    Args:
        logits: As in ``ctc_loss``: (N, T, C).
        hypotheses: Labels (N, K, S) of K hypotheses a sample, from any decoder. Entries beyond a length are not read.
        logit_lengths: Frames of each sample (N,), at most T; T where ``None``.
        hypothesis_lengths: Labels of each hypothesis (N, K), at most S; -1 where there is no such hypothesis.
        errors: (N, K) what each hypothesis costs, such as its number of wrong words. ``None``: its edit distance from
            the reference.
        references: Labels (N, L), where no errors are given.
        reference_lengths: Labels of each reference (N,), at most L; L where ``None``.
        separator: The label that parts words: errors are counted by words then, and by labels where ``None``.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N.
        baseline: What is taken from the errors: ``"mean"``: their mean over the sample's hypotheses, ``"none"``, or
            ``"leave_one_out"``: for each the mean over the others.
        normalise: Weigh hypotheses by their share among those given. False: ``loss[n] = mean over k of (errors[n, k] -
            b[k]) * log P(hypothesis k)``, the score-function estimate from hypotheses drawn from the model.
        temperature: Divides log P with ``normalise``.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others. 0 for a sample without a possible
        hypothesis, and NaN for one with a NaN score.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where errors or references do not fit the hypotheses.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Every transformation of JAX applies, as to ``ctc_loss``; in a traced function edit distances are computed by a
        callback. Hypotheses that do not fit in their frames drop out, and with ``normalise`` so does one that is there
        before. Cost: the softmax of each row once, and for each hypothesis ``ctc_loss`` of its own columns (T, S+1).

    References:
        Prabhavalkar et al. (2018), Minimum word error rate training for attention-based sequence-to-sequence models,
        arXiv 1712.01818.

    Example:
        >>> import jax
        >>> from pathsum.jax import ctc_mwer_loss
        >>> hypotheses, lengths = [[[1, 2], [2, 0]]], [[2, 1]]  # 1 2, in 5 labellings, and 2, in 6
        >>> logits = jax.numpy.zeros((1, 3, 3))
        >>> loss = ctc_mwer_loss(logits, hypotheses, [3], lengths, references=[[1, 2]], baseline="none")
        >>> round(float(loss[0]), 4)  # one label is missing from the second
        0.5455
    """
    function = "ctc_mwer_loss"
    scores = check_scores(function, "logits", logits, "(N, T, C)")
    num_samples, num_frames, num_classes = scores.shape
    blank = _checks.check_blank(function, blank, num_classes)
    _checks.check_reduction(function, reduction)
    _checks.check_option(function, "baseline", baseline, BASELINES)
    normalise = _checks.check_flag(function, "normalise", normalise)
    fused = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    temperature = _checks.check_number(function, "temperature", temperature)
    if not temperature > 0:
        raise InvalidValueError(function, "temperature", "be above 0", temperature)
    tokens = as_integers(function, "hypotheses", hypotheses)
    counts = as_integers(function, "hypothesis_lengths", hypothesis_lengths)
    if tokens.ndim != 3 or len(tokens) != num_samples:
        rule = f"have shape (N, K, S), N = {num_samples}"
        raise InvalidValueError(function, "hypotheses", rule, f"shape {tokens.shape}")
    if counts.shape != tokens.shape[:2]:
        rule = f"have shape (N, K) = {tokens.shape[:2]}"
        raise InvalidValueError(function, "hypothesis_lengths", rule, f"shape {counts.shape}")
    size, width = tokens.shape[1:]
    frames = np.full(num_samples, num_frames) if logit_lengths is None else logit_lengths
    frames = as_integers(function, "logit_lengths", frames)
    if frames.shape != (num_samples,):
        raise InvalidValueError(function, "logit_lengths", f"have shape ({num_samples},)", f"shape {frames.shape}")
    present = counts != -1
    xp = np if readable(counts) else jnp
    lengths = xp.where(present, counts, 0)
    batch = check_batch(
        function,
        tokens.reshape(num_samples * size, width),
        (np if readable(frames) else jnp).repeat(frames, size),
        lengths.reshape(-1),
        lengths_name="logit_lengths",
        shape=(num_samples * size, num_frames, num_classes),
        max_labels=None,
        blank=blank,
        names=("hypotheses", "hypothesis_lengths"),
    )
    if (errors is None) == (references is None):
        raise InvalidValueError(function, "errors", "be given, or references in their place", None)
    if errors is None:
        costs = _distances(function, tokens, lengths, references, reference_lengths, separator)
    else:
        costs = as_array(function, "errors", errors)
        if costs.shape != (num_samples, size) or jnp.issubdtype(costs.dtype, jnp.complexfloating):
            rule = f"be real numbers of shape (N, K) = {(num_samples, size)}"
            raise InvalidValueError(function, "errors", rule, f"shape {costs.shape}")
    solver = ChainSolver(check_impl(function, impl, scores), pose_ctc, 0, False)
    log_probs = _log_probs(scores, jnp.asarray(frames), batch, blank, solver, softmax=fused)
    log_probs = log_probs.reshape(num_samples, size)
    return _risk(
        log_probs, jnp.asarray(present), batch.integers, costs, baseline=baseline, normalise=normalise,
        temperature=temperature, reduction=reduction,
    )  # fmt: skip


def _distances(
    function: str, tokens: Any, lengths: Any, references: Any, reference_lengths: Any, separator: int | None
) -> Array:
    """(N, K), on the host, where the values are or by a callback."""
    if separator is not None:
        separator = _checks.check_count(function, "separator", separator, 0, 2**63 - 1)
    wanted = as_integers(function, "references", references)
    if wanted.ndim != 2 or len(wanted) != len(tokens):
        rule = f"have shape (N, L), N = {len(tokens)}"
        raise InvalidValueError(function, "references", rule, f"shape {wanted.shape}")
    sizes = np.full(len(wanted), wanted.shape[1]) if reference_lengths is None else reference_lengths
    sizes = as_integers(function, "reference_lengths", sizes)
    if sizes.shape != (len(wanted),):
        rule = f"have shape (N,) = ({len(wanted)},)"
        raise InvalidValueError(function, "reference_lengths", rule, f"shape {sizes.shape}")
    if readable(sizes):
        _checks.check_range(function, "reference_lengths", sizes, "L", wanted.shape[1])

    def distances(tokens: Any, lengths: Any, wanted: Any, sizes: Any) -> np.ndarray:
        tokens, lengths, wanted, sizes = (
            np.ascontiguousarray(array, np.int64) for array in (tokens, lengths, wanted, sizes)
        )
        # What is out of range makes the sample's loss NaN elsewhere.
        lengths, sizes = lengths.clip(0, tokens.shape[2]), sizes.clip(0, wanted.shape[1])
        found = edit_distance.edit_distances(
            tokens, lengths, wanted, sizes, separator=separator, num_threads=os.cpu_count() or 1
        )
        return found.astype(np.int32)

    given = (tokens, lengths, wanted, sizes)
    if all(map(readable, given)):
        return jnp.asarray(distances(*given))
    shape = jax.ShapeDtypeStruct(tokens.shape[:2], np.int32)
    return jax.pure_callback(distances, shape, *given, vmap_method="sequential")


@partial(jax.jit, static_argnames=("solver", "blank", "softmax"))
def _log_probs(scores: Array, frames: Array, batch: Batch, blank: int, solver: ChainSolver, *, softmax: bool) -> Array:
    """(N*K,) of a batch of the hypotheses; each reads its own columns: the blank's, and its labels'."""
    num_samples, num_frames, _ = scores.shape
    scores = log_softmax(scores, frames) if softmax else scores.astype(work_dtype(scores))
    classes, posed = classes_of(batch, blank)
    count, width = classes.shape
    size = count // max(num_samples, 1)
    columns = classes.reshape(num_samples, size, 1, width)
    read = jnp.take_along_axis(scores[:, None], columns, axis=3).reshape(count, num_frames, width)
    losses = solve(solver, (read,), posed, reduction="none", zero_infinity=False)
    return -losses


@partial(jax.jit, static_argnames=("baseline", "normalise", "reduction"))
def _risk(
    log_probs: Array, present: Array, integers: Integers, costs: Array, *, baseline: str, normalise: bool,
    temperature: float, reduction: str,
) -> Array:  # fmt: skip
    """The reduced loss of log P (N, K) of the hypotheses and their errors (N, K)."""
    if normalise:
        present &= ~_repeated(integers, present)
    possible = present & (log_probs > -jnp.inf)
    undefined = jnp.isnan(log_probs).any(1)
    count = possible.sum(1, keepdims=True)
    costs = jnp.where(possible, costs.astype(log_probs.dtype), 0)
    if baseline == "mean":
        costs -= costs.sum(1, keepdims=True) / jnp.maximum(count, 1)
    elif baseline == "leave_one_out":
        costs -= jnp.where(count > 1, costs.sum(1, keepdims=True) - costs, 0) / jnp.maximum(count - 1, 1)
    costs = jnp.where(possible, costs, 0)
    scores = jnp.where(possible, log_probs, 0)
    if normalise:
        scores = jnp.where(possible | (count == 0), scores / temperature, -jnp.inf)
        losses = (jax.nn.softmax(scores, axis=1) * costs).sum(1)
    else:
        losses = (scores * costs).sum(1) / jnp.maximum(count[:, 0], 1)
    return reduce(jnp.where(undefined, jnp.nan, losses), reduction)


def _repeated(integers: Integers, present: Array) -> Array:
    """(N, K) whether the same hypothesis stands before."""
    num_samples, size = present.shape
    used = jnp.arange(integers.targets.shape[1]) < integers.target_lengths[:, None]
    tokens = jnp.where(used, integers.targets, -1).reshape(num_samples, size, integers.targets.shape[1])
    lengths = jnp.where(present, integers.target_lengths.reshape(num_samples, size), -1)
    equal = (tokens[:, :, None] == tokens[:, None]).all(3) & (lengths[:, :, None] == lengths[:, None])
    return jnp.tril(equal, -1).any(2)
