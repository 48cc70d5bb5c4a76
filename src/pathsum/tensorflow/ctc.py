"""CTC and simplified CTC."""

from __future__ import annotations

from collections.abc import Callable

from pathsum import _checks
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array, ChainLattice
from pathsum.options import TensorFlowImpl
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.tensorflow._inputs import (
    IntegersLike,
    check_batch,
    check_blank,
    check_impl,
    check_scores,
    outside_autograph,
    solve,
)
from pathsum.tensorflow._solvers import ChainSolver


def ctc_loss(
    labels: IntegersLike,
    logits: Array,
    label_length: IntegersLike | None = None,
    logit_length: IntegersLike | None = None,
    blank_index: int = 0,
    *,
    fused_log_softmax: bool = True,
    zero_infinity: bool = False,
    impl: TensorFlowImpl = "auto",
) -> Array:
    """Connectionist temporal classification loss. ``classic_ctc_loss`` is another name of it.

    The negative log-sum over all labellings of the frames that read as the label once repeats are merged and blanks
    removed: ``loss[n] = -log sum over pi of prod over t of p(pi[t] | t)``.

    Args:
        labels: Labels (N, L), of any integer dtype. Entries beyond a label's length are never read. Or a
            ``tf.RaggedTensor``, whose rows have their own lengths.
        logits: Unnormalised scores (N, T, C), or with ``fused_log_softmax=False`` log-probabilities. float32, float64,
            bfloat16 or float16.
        label_length: Labels of each sample (N,), at most L; L where ``None``.
        logit_length: Frames of each sample (N,), at most T; T where ``None``.
        blank_index: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        Losses (N,), float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) shapes that do not match, an unknown option; a label out of range or equal to
            the blank or a length out of range, where values can be seen: of lists, NumPy's arrays, and tensors on the
            CPU outside of a ``tf.function``. Elsewhere these give their own sample NaN.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.
        ImplementationError: (a RuntimeError) ``impl="numba"`` on another device than the CPU, or in a program that XLA
            compiles (``jit_compile=True``).

    Notes:
        Differentiable to any order, eagerly and in a ``tf.function``: nested ``tf.GradientTape``, ``tf.hessians``,
        ``jacobian``, ``batch_jacobian``.

        An infeasible sample, whose label does not fit in its frames, has loss infinity and gradient exactly 0. A NaN
        or +inf score makes the loss of its own sample NaN. -inf scores are fine. Padding is never read.

        Cost: O(N*T*L) time and memory beside one pass over the scores, and one more pass in backward; what backward
        needs is computed with the loss, whether it is asked for or not. ``"numba"`` has a
        float32 gradient within 2e-6 of the exact one for ten thousand frames, and is deterministic; ``"tensorflow"``
        computes its recursion in float64, and is deterministic where TensorFlow's own operations are.

    References:
        Graves, Fernández, Gomez, Schmidhuber (2006), Connectionist temporal classification.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.tensorflow import ctc_loss
        >>> logits = tf.zeros([1, 3, 2])  # 1 sample, 3 frames, blank and one label
        >>> loss = ctc_loss([[1]], logits)
        >>> round(float(tf.exp(loss[0])), 4)  # 6 of the 8 labellings read as the label
        1.3333
    """
    return _chain_loss(
        "ctc_loss", pose_ctc, labels, logits, label_length, logit_length, blank_index, fused_log_softmax,
        zero_infinity, impl,
    )  # fmt: skip


def simple_ctc_loss(
    labels: IntegersLike,
    logits: Array,
    label_length: IntegersLike | None = None,
    logit_length: IntegersLike | None = None,
    blank_index: int = 0,
    *,
    fused_log_softmax: bool = True,
    zero_infinity: bool = False,
    impl: TensorFlowImpl = "auto",
) -> Array:
    """Simplified CTC loss: repeats are not merged, each label is emitted on exactly one frame.

    The negative log-sum over the C(T, L) ways of placing the labels on frames, in order, blanks elsewhere. A sample
    is infeasible where its label is longer than its input.

    Args:
        labels: Labels (N, L), of any integer dtype. Entries beyond a label's length are never read. Or a
            ``tf.RaggedTensor``, whose rows have their own lengths.
        logits: As in ``ctc_loss``: (N, T, C).
        label_length: Labels of each sample (N,), at most L; L where ``None``.
        logit_length: Frames of each sample (N,), at most T; T where ``None``.
        blank_index: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"tensorflow"``.

    Returns:
        Losses (N,), float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Cost, accuracy, derivatives and the treatment of infeasible samples and of NaN are those of ``ctc_loss``.

    References:
        Sak, Shannon, Rao, Beaufays (2017), Recurrent neural aligner; the loss of tf_seq2seq_losses (Tochin, 2021).

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.tensorflow import simple_ctc_loss
        >>> loss = simple_ctc_loss([[1]], tf.zeros([1, 3, 2]))
        >>> round(float(tf.exp(loss[0])), 4)  # 3 of the 8 labellings
        2.6667
    """
    return _chain_loss(
        "simple_ctc_loss", pose_simple_ctc, labels, logits, label_length, logit_length, blank_index,
        fused_log_softmax, zero_infinity, impl,
    )  # fmt: skip


classic_ctc_loss = ctc_loss


@outside_autograph
def _chain_loss(
    function: str,
    pose: Callable[..., ChainLattice],
    labels: IntegersLike,
    logits: Array,
    label_length: IntegersLike | None,
    logit_length: IntegersLike | None,
    blank_index: int,
    fused_log_softmax: bool,
    zero_infinity: bool,
    impl: str,
) -> Array:
    scores = check_scores(function, "logits", logits, "(N, T, C)")
    blank = check_blank(function, blank_index, scores.shape[2])
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    fused = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    solver = ChainSolver(check_impl(function, impl, scores), pose, blank, fused)
    batch = check_batch(function, labels, label_length, logit_length, shape=sizes(scores), blank=blank, problem=pose)
    return solve(solver, [scores], batch, zero_infinity=zero_infinity)
