"""The transducer's loss of logits that exist."""

from __future__ import annotations

from pathsum import _checks
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.options import TensorFlowImpl
from pathsum.problems.rnnt import pose_rnnt
from pathsum.tensorflow._inputs import (
    IntegersLike,
    check_batch,
    check_blank,
    check_impl,
    check_scores,
    outside_autograph,
    solve,
)
from pathsum.tensorflow._solvers import GridSolver


@outside_autograph
def rnnt_loss(
    labels: IntegersLike,
    logits: Array,
    label_length: IntegersLike | None = None,
    logit_length: IntegersLike | None = None,
    blank_index: int = 0,
    *,
    fused_log_softmax: bool = True,
    fastemit_lambda: float = 0.0,
    clamp: float = -1.0,
    zero_infinity: bool = False,
    impl: TensorFlowImpl = "auto",
) -> Array:
    """Recurrent neural network transducer loss.

    The negative log-sum over all walks through T frames and U labels, blanks moving to the next frame and labels to
    the next label: ``loss[n] = -log sum over walks of prod over arcs of p(class of arc | t, u)``.

    Args:
        labels: Labels (N, U), of any integer dtype. Entries beyond a label's length are never read. Or a
            ``tf.RaggedTensor``, whose rows have their own lengths.
        logits: Output of the joiner (N, T, U+1, V); with ``fused_log_softmax=False`` log-probabilities. float32,
            float64, bfloat16 or float16.
        label_length: Labels of each sample (N,), at most U; the width of ``labels`` where ``None``.
        logit_length: Frames of each sample (N,), at most T; T where ``None``.
        blank_index: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        fastemit_lambda: FastEmit: multiply the posterior of every label arc by 1 + lambda in the gradient. The loss
            stays the negative log-likelihood.
        clamp: Where positive, bound every entry of a sample's gradient with respect to ``logits`` to [-clamp, clamp],
            before the upstream gradient multiplies it.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        Losses (N,), float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.
        NotDifferentiableError: (a RuntimeError) a second derivative with ``fastemit_lambda`` or ``clamp``, whose
            gradient is not the gradient of anything.

    Notes:
        Derivatives, infeasible samples (those without frames), NaN and padding are as in ``ctc_loss``.
        ``"tensorflow"`` visits the T+U anti-diagonals of the grid one after another, all nodes of a diagonal at once.

    References:
        Graves (2012), Sequence transduction with recurrent neural networks, arXiv 1211.3711. Yu et al. (2021),
        FastEmit, arXiv 2010.11148.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.tensorflow import rnnt_loss
        >>> loss = rnnt_loss([[1]], tf.zeros([1, 2, 2, 2]))  # 2 frames, 1 label
        >>> round(float(tf.exp(loss[0])), 4)  # 2 walks of 3 arcs, each of probability 1/2
        4.0
    """
    scores = check_scores("rnnt_loss", "logits", logits, "(N, T, U+1, V)")
    blank = check_blank("rnnt_loss", blank_index, scores.shape[3])
    zero_infinity = _checks.check_flag("rnnt_loss", "zero_infinity", zero_infinity)
    fused = _checks.check_flag("rnnt_loss", "fused_log_softmax", fused_log_softmax)
    clamp = _checks.check_number("rnnt_loss", "clamp", clamp)
    fastemit_lambda = _checks.check_number("rnnt_loss", "fastemit_lambda", fastemit_lambda, minimum=0.0)
    chosen = check_impl("rnnt_loss", impl, scores)
    integers = labels, label_length, logit_length
    batch = check_batch("rnnt_loss", *integers, shape=sizes(scores), blank=blank, problem=pose_rnnt)
    solver = GridSolver(chosen, blank, fused, fastemit_lambda, clamp)
    return solve(solver, [scores], batch, zero_infinity=zero_infinity)
