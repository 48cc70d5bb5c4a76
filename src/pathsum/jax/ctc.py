"""CTC and simplified CTC."""

from __future__ import annotations

from collections.abc import Callable

from pathsum import _checks
from pathsum.jax._inputs import IntegersLike, check_batch, check_impl, check_scores, solve
from pathsum.jax._solvers import ChainSolver
from pathsum.lattice import Array, ChainLattice
from pathsum.options import JAXImpl, ReductionName
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc


def ctc_loss(
    logits: Array,
    targets: IntegersLike,
    logit_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    blank: int = 0,
    reduction: ReductionName = "none",
    zero_infinity: bool = False,
    fused_log_softmax: bool = True,
    impl: JAXImpl = "auto",
) -> Array:
    """Connectionist temporal classification loss.

    The negative log-sum over all labellings of the frames that read as the target once repeats are merged and blanks
    removed: ``loss[n] = -log sum over pi of prod over t of p(pi[t] | t)``.

    Args:
        logits: Unnormalised scores (N, T, C), or with ``fused_log_softmax=False`` log-probabilities. float32, float64,
            bfloat16 or float16.
        targets: Labels (N, S), of any integer dtype. Entries beyond a target's length are never read.
        logit_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: each divided by its target length (at
            least 1), then the mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) shapes that do not match, an unknown option; a label out of range or equal to
            the blank or a length out of range, where values can be seen: of lists, NumPy's arrays, and JAX's on the
            CPU outside of traced functions. Elsewhere these give their own sample NaN.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.
        ImplementationError: (a RuntimeError) ``impl="numba"`` for scores on another device than the CPU, ``"triton"``
            for scores on another than a CUDA device or where jax-triton is missing.

    Notes:
        Every transformation of JAX applies: jit, vmap, grad, jvp, hessian and their compositions, shard_map; batches
        sharded over devices are solved where they are.

        An infeasible sample, whose target does not fit in its frames, has loss infinity and gradient exactly 0. A NaN
        or +inf score makes the loss of its own sample NaN. -inf scores are fine. Padding is never read.

        Cost: O(N*T*S) time and memory beside one pass over the scores, and the gradient, computed with the loss and
        scaled in the backward pass. The recursion is in extended range: a float32 gradient stays within 2e-6 of the
        exact one for ten thousand frames. ``"jax"`` takes scores below -1e30 for impossible in float32. Deterministic.

    References:
        Graves, Fernández, Gomez, Schmidhuber (2006), Connectionist temporal classification.

    Example:
        >>> import jax
        >>> from pathsum.jax import ctc_loss
        >>> logits = jax.numpy.zeros((1, 3, 2))  # 1 sample, 3 frames, blank and one label
        >>> loss = ctc_loss(logits, [[1]])
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 6 of the 8 labellings read as the target
        1.3333
    """
    return _chain_loss(
        "ctc_loss",
        pose_ctc,
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        fused_log_softmax,
        impl,
    )


def simple_ctc_loss(
    logits: Array,
    targets: IntegersLike,
    logit_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    blank: int = 0,
    reduction: ReductionName = "none",
    zero_infinity: bool = False,
    fused_log_softmax: bool = True,
    impl: JAXImpl = "auto",
) -> Array:
    """Simplified CTC loss: repeats are not merged, each label is emitted on exactly one frame.

    The negative log-sum over the C(T, L) ways of placing the labels on frames, in order, blanks elsewhere. A sample
    is infeasible where its target is longer than its input.

    Args:
        logits: As in ``ctc_loss``: (N, T, C).
        targets: Labels (N, S), of any integer dtype. Entries beyond a target's length are never read.
        logit_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each loss divided by its target length (at least 1), then the
            mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Cost, accuracy, transformations and the treatment of infeasible samples and of NaN are those of ``ctc_loss``.

    References:
        Sak, Shannon, Rao, Beaufays (2017), Recurrent neural aligner; the loss of tf_seq2seq_losses (Tochin, 2021).

    Example:
        >>> import jax
        >>> from pathsum.jax import simple_ctc_loss
        >>> loss = simple_ctc_loss(jax.numpy.zeros((1, 3, 2)), [[1]])
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 3 of the 8 labellings
        2.6667
    """
    return _chain_loss(
        "simple_ctc_loss",
        pose_simple_ctc,
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        fused_log_softmax,
        impl,
    )


def _chain_loss(
    function: str,
    pose: Callable[..., ChainLattice],
    logits: Array,
    targets: IntegersLike,
    logit_lengths: IntegersLike | None,
    target_lengths: IntegersLike | None,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    fused_log_softmax: bool,
    impl: str,
) -> Array:
    scores = check_scores(function, "logits", logits, "(N, T, C)")
    blank = _checks.check_blank(function, blank, scores.shape[2])
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    fused = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    solver = ChainSolver(check_impl(function, impl, scores), pose, blank, fused)
    batch = check_batch(
        function,
        targets,
        logit_lengths,
        target_lengths,
        lengths_name="logit_lengths",
        shape=scores.shape,
        max_labels=None,
        blank=blank,
    )
    return solve(solver, (scores,), batch, reduction=reduction, zero_infinity=zero_infinity, weigh=reduction == "mean")
