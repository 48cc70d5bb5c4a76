"""The auto segmentation criterion."""

from __future__ import annotations

import tensorflow as tf

from pathsum import _checks
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.options import TensorFlowImpl
from pathsum.problems.asg import pose_asg
from pathsum.tensorflow._inputs import (
    IntegersLike,
    as_tensor,
    assertions,
    check_batch,
    check_impl,
    check_scores,
    outside_autograph,
    solve,
)
from pathsum.tensorflow._solvers import ASGSolver


@outside_autograph
def asg_loss(
    labels: IntegersLike,
    logits: Array,
    transitions: Array,
    label_length: IntegersLike | None = None,
    logit_length: IntegersLike | None = None,
    *,
    zero_infinity: bool = False,
    impl: TensorFlowImpl = "auto",
) -> Array:
    """Auto segmentation criterion: the label's share among all label sequences, with learned transitions.

    A sequence pi has one label a frame and the score ``sum over t of logits[t, pi[t]] + transitions[pi[t], pi[t-1]]``.
    ``loss[n] = log sum over all pi of exp(score) - log sum over the pi that stretch the label of exp(score)``, a
    stretched label sequence giving each of its labels one frame or more.

    Args:
        labels: Labels (N, L), of any integer dtype. Entries beyond a label's length are never read. Or a
            ``tf.RaggedTensor``, whose rows have their own lengths.
        logits: Unnormalised scores (N, T, C); no softmax is taken. float32, float64, bfloat16 or float16.
        transitions: Scores (C, C) of passing from one label to the next: ``transitions[i, j]`` from j to i. The dtype
            of ``logits``, or float32 beside half precision.
        label_length: Labels of each sample (N,), at most L; L where ``None``.
        logit_length: Frames of each sample (N,), at most T; T where ``None``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        Losses (N,), float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Derivatives, NaN and padding are as in ``ctc_loss``. Infeasible is a sample whose label is longer than its
        input, or empty with an input that is not. A label with two equal neighbours counts sequences more than once,
        and its loss may be negative; ``pathsum.replabels`` writes such labels without.

        Cost: 2*T*C*C multiplications a sample; in ``"tensorflow"`` so many exponentials, and N*C*C numbers a frame.

    References:
        Collobert, Puhrsch, Synnaeve (2016), Wav2Letter, arXiv 1609.03193.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.tensorflow import asg_loss
        >>> loss = asg_loss([[0, 1]], tf.zeros([1, 3, 2]), tf.zeros([2, 2]))
        >>> round(float(tf.exp(loss[0])), 4)  # 2 of the 8 sequences, 0 0 1 and 0 1 1, stretch the label
        4.0
    """
    scores = check_scores("asg_loss", "logits", logits, "(N, T, C)")
    table = as_tensor("asg_loss", "transitions", transitions)
    num_classes = next((size for size in (scores.shape[2], *table.shape) if size is not None), 1)
    shape = tuple(num_classes if size is None else size for size in table.shape)
    _checks.check_table(
        "asg_loss", "transitions", table.dtype.name, shape, "(C, C)", (num_classes,) * 2, scores.dtype.name
    )
    claims = [(size == sizes(scores)[2], "transitions must have shape (C, C)") for size in sizes(table)]
    with tf.control_dependencies(assertions("asg_loss", claims)):
        table = tf.identity(table)
    zero_infinity = _checks.check_flag("asg_loss", "zero_infinity", zero_infinity)
    chosen = check_impl("asg_loss", impl, scores)
    integers = labels, label_length, logit_length
    batch = check_batch("asg_loss", *integers, shape=sizes(scores), blank=None, problem=pose_asg)
    # A gradient is the difference of two posteriors, which are not to be rounded before it is taken.
    work = tf.float64 if scores.dtype == tf.float64 else tf.float32
    return solve(ASGSolver(chosen), [tf.cast(scores, work), tf.cast(table, work)], batch, zero_infinity=zero_infinity)
