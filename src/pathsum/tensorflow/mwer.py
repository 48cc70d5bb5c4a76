"""Training on the error rate itself: the expected errors of hypotheses, whatever decoder they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba import edit_distance
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.options import BASELINES, Baseline, TensorFlowImpl
from pathsum.problems.ctc import pose_ctc
from pathsum.tensorflow import _placement
from pathsum.tensorflow._columns import classes_of, log_softmax
from pathsum.tensorflow._inputs import (
    Hypotheses,
    IntegersLike,
    as_integers,
    as_tensor,
    check_batch,
    check_blank,
    check_impl,
    check_scores,
    known,
    lengths_of,
    outside_autograph,
    solve,
)
from pathsum.tensorflow._ops import host
from pathsum.tensorflow._solvers import Batch, ChainSolver


@outside_autograph
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
    baseline: Baseline = "mean",
    normalise: bool = True,
    temperature: float = 1.0,
    fused_log_softmax: bool = True,
    impl: TensorFlowImpl = "auto",
) -> Array:
    """Minimum word error rate loss of CTC: the expected errors of some hypotheses under the model.

    ``loss[n] = sum over k of q[k] * (errors[n, k] - b)``, q being the softmax over k of ``log P(hypothesis k) /
    temperature``. P sums over all labellings of the frames, as in ``ctc_loss``. The arguments are those of
    ``ctc_beam_decode`` and of the function of this name for torch and JAX.

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
        baseline: What is taken from the errors: ``"mean"``: their mean over the sample's hypotheses, ``"none"``, or
            ``"leave_one_out"``: for each the mean over the others.
        normalise: Weigh hypotheses by their share among those given. False: ``loss[n] = mean over k of (errors[n, k] -
            b[k]) * log P(hypothesis k)``, the score-function estimate from hypotheses drawn from the model.
        temperature: Divides log P with ``normalise``.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        Losses (N,), float64 for float64 scores and float32 for all others. 0 for a sample without a possible
        hypothesis, and NaN for one with a NaN score.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where errors or references do not fit the hypotheses, and where
            edit distances are asked for in a program that XLA compiles or a model being saved.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Derivatives are those of ``ctc_loss``; errors are constants. Hypotheses that do not fit in their frames drop
        out, and with ``normalise`` so does one that is there before. Cost: the softmax of each row once, and for each
        hypothesis ``ctc_loss`` of its own columns (T, S+1).

    References:
        Prabhavalkar et al. (2018), Minimum word error rate training for attention-based sequence-to-sequence models,
        arXiv 1712.01818.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.tensorflow import ctc_mwer_loss
        >>> hypotheses, lengths = [[[1, 2], [2, 0]]], [[2, 1]]  # 1 2, in 5 labellings, and 2, in 6
        >>> logits = tf.zeros([1, 3, 3])
        >>> loss = ctc_mwer_loss(logits, hypotheses, [3], lengths, references=[[1, 2]], baseline="none")
        >>> round(float(loss[0]), 4)  # one label is missing from the second
        0.5455
    """
    function = "ctc_mwer_loss"
    scores = check_scores(function, "logits", logits, "(N, T, C)")
    num_samples, num_frames, num_classes = sizes(scores)
    blank = check_blank(function, blank, scores.shape[2], "blank")
    _checks.check_option(function, "baseline", baseline, BASELINES)
    normalise = _checks.check_flag(function, "normalise", normalise)
    fused = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    temperature = _checks.check_number(function, "temperature", temperature)
    if not temperature > 0:
        raise InvalidValueError(function, "temperature", "be above 0", temperature)
    tokens = as_integers(function, "hypotheses", hypotheses)
    _check_shape(function, "hypotheses", tokens, (num_samples, None, None), "(N, K, S)")
    _, size, width = sizes(tokens)
    counts = as_integers(function, "hypothesis_lengths", hypothesis_lengths)
    _check_shape(function, "hypothesis_lengths", counts, (num_samples, size), "(N, K)")
    frames = lengths_of(function, "logit_lengths", logit_lengths, num_samples, num_frames)
    _check_shape(function, "logit_lengths", frames, (num_samples,), "(N,)")

    xp: Any = np if isinstance(counts, np.ndarray) else tf
    present = counts != -1
    lengths = xp.where(present, counts, xp.zeros_like(counts))
    every = num_samples * size
    batch = check_batch(
        function,
        _reshape(tokens, every, width),
        _reshape(lengths, every),
        (np if isinstance(frames, np.ndarray) and known(size) is not None else tf).repeat(frames, size, 0),
        shape=(every, num_frames, num_classes),
        blank=blank,
        names=("hypotheses", "hypothesis_lengths", "logit_lengths"),
    )
    if (errors is None) == (references is None):
        raise InvalidValueError(function, "errors", "be given, or references in their place", None)
    if errors is None:
        costs = _distances(function, tokens, lengths, references, reference_lengths, separator)
    else:
        costs = as_tensor(function, "errors", errors)
        if costs.dtype.is_complex or not (costs.dtype.is_floating or costs.dtype.is_integer):
            raise InvalidTypeError(function, "errors", "be real numbers", costs.dtype.name)
        _check_shape(function, "errors", costs, (num_samples, size), "(N, K)")
    work = tf.float64 if scores.dtype == tf.float64 else tf.float32
    scores = log_softmax(scores, tf.cast(frames, tf.int64)) if fused else tf.cast(scores, work)
    solver = ChainSolver(check_impl(function, impl, scores), pose_ctc, 0, False)
    log_probs = _reshape(_log_probs(scores, size, batch, blank, solver), num_samples, size)
    present = tf.convert_to_tensor(present)
    if normalise:
        present &= ~_repeated(batch, present)
    costs = tf.cast(tf.stop_gradient(costs), work)
    return _risk(log_probs, present, costs, baseline=baseline, temperature=temperature if normalise else None)


def _check_shape(function: str, argument: str, array: Any, expected: Sequence[Any], axes: str) -> None:
    """Sizes must be those expected, as far as both are known."""
    if array.shape.rank is None if tf.is_tensor(array) else False:
        raise InvalidValueError(function, argument, "have a known rank", "a tensor of unknown shape")
    shape = tuple(array.shape)
    wanted = [known(size) for size in expected]
    if len(shape) != len(wanted) or any(
        None not in (own, size) and own != size for own, size in zip(shape, wanted, strict=True)
    ):
        sizes_ = ", ".join("any" if size is None else str(size) for size in wanted)
        raise InvalidValueError(function, argument, f"have shape {axes} = ({sizes_})", f"shape {shape}")


def _reshape(array: Any, *shape: Any) -> Any:
    if isinstance(array, np.ndarray) and all(known(size) is not None for size in shape):
        return array.reshape(shape)
    return tf.reshape(array, tf.stack([tf.cast(size, tf.int64) for size in shape]))


def _distances(
    function: str, tokens: Any, lengths: Any, references: Any, reference_lengths: Any, separator: int | None
) -> Array:
    """(N, K), on the host, where the values are or when the graph runs."""
    if separator is not None:
        separator = _checks.check_count(function, "separator", separator, 0, 2**63 - 1)
    num_samples, size, _ = sizes(tokens)
    wanted = as_integers(function, "references", references)
    _check_shape(function, "references", wanted, (num_samples, None), "(N, L)")
    longest = sizes(wanted)[1]
    own = lengths_of(function, "reference_lengths", reference_lengths, num_samples, longest)
    _check_shape(function, "reference_lengths", own, (num_samples,), "(N,)")
    if isinstance(own, np.ndarray) and known(longest) is not None:
        _checks.check_range(function, "reference_lengths", own, "L", longest)

    def distances(*given: np.ndarray) -> np.ndarray:
        tokens, lengths, wanted, own = (np.ascontiguousarray(array, np.int64) for array in given)
        # What is out of range makes the sample's loss NaN elsewhere.
        lengths, own = lengths.clip(0, tokens.shape[2]), own.clip(0, wanted.shape[1])
        return edit_distance.edit_distances(
            tokens, lengths, wanted, own, separator=separator, num_threads=host.num_threads()
        )

    given = (tokens, lengths, wanted, own)
    if all(isinstance(array, np.ndarray) for array in given):
        return tf.constant(distances(*given))
    if not _placement.can_call_back():
        rule = "be given in a program that XLA compiles or that is saved, which cannot count them"
        raise InvalidValueError(function, "errors", rule, None)
    if tf.executing_eagerly():
        return tf.constant(distances(*map(np.asarray, given)))
    found = tf.numpy_function(distances, given, tf.int64, stateful=False)
    found.set_shape((known(num_samples), known(size)))
    return found


def _log_probs(scores: Array, size: Any, batch: Batch, blank: int, solver: ChainSolver) -> Array:
    """(N*K,) of a batch of the hypotheses; each reads its own columns of scores (N, T, C)."""
    num_samples, num_frames, _ = sizes(scores)
    classes, posed = classes_of(batch.integers, blank)
    width = sizes(classes)[1]
    read = tf.gather(scores, _reshape(classes, num_samples, size * width), axis=2, batch_dims=1)
    read = tf.transpose(_reshape(read, num_samples, num_frames, size, width), [0, 2, 1, 3])
    read = _reshape(read, num_samples * size, num_frames, width)
    losses = solve(solver, [read], Batch(posed, posed, None), zero_infinity=False)
    if batch.valid is not None:
        losses = tf.where(batch.valid, losses, tf.constant(math.nan, losses.dtype))
    return -losses


def _risk(log_probs: Array, present: Array, costs: Array, *, baseline: str, temperature: float | None) -> Array:
    """Losses (N,) of log P (N, K) of the hypotheses and their errors; weighed by their share at a temperature."""
    zero = tf.zeros([], log_probs.dtype)
    possible = present & (log_probs > -math.inf)
    undefined = tf.reduce_any(tf.math.is_nan(log_probs), 1)
    own = tf.cast(possible, log_probs.dtype)
    count = tf.reduce_sum(own, 1, keepdims=True)
    costs = tf.where(possible, costs, zero)
    total = tf.reduce_sum(costs, 1, keepdims=True)
    if baseline == "mean":
        costs -= total / tf.maximum(count, 1)
    elif baseline == "leave_one_out":
        costs -= tf.where(count > 1, total - costs, zero) / tf.maximum(count - 1, 1)
    costs = tf.where(possible, costs, zero)
    scores = tf.where(possible, log_probs, zero)
    if temperature is None:
        losses = tf.reduce_sum(scores * costs, 1) / tf.maximum(count[:, 0], 1)
    else:
        impossible = tf.constant(-math.inf, log_probs.dtype)
        weights = tf.nn.softmax(tf.where(possible | (count == 0), scores / temperature, impossible))
        losses = tf.reduce_sum(weights * costs, 1)
    return tf.where(undefined, tf.constant(math.nan, losses.dtype), losses)


def _repeated(batch: Batch, present: Array) -> Array:
    """(N, K) whether the same hypothesis stands before."""
    num_samples, size = sizes(present)
    targets, _, counts = batch.integers
    width = sizes(targets)[1]
    tokens = tf.where(tf.sequence_mask(counts, width), targets, tf.constant(-1, tf.int64))
    tokens = _reshape(tokens, num_samples, size, width)
    lengths = tf.where(present, _reshape(counts, num_samples, size), tf.constant(-1, tf.int64))
    equal = tf.reduce_all(tokens[:, :, None] == tokens[:, None], 3) & (lengths[:, :, None] == lengths[:, None])
    place = tf.range(tf.cast(size, tf.int64))
    return tf.reduce_any(equal & (place[None, :] < place[:, None]), 2)
