"""The transducer's loss of logits that exist."""

from __future__ import annotations

from pathsum import _checks
from pathsum.jax._inputs import IntegersLike, check_batch, check_impl, check_scores, solve
from pathsum.jax._solvers import GridSolver
from pathsum.lattice import Array
from pathsum.options import JAXImpl, ReductionName


def rnnt_loss(
    logits: Array,
    targets: IntegersLike,
    logit_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    blank: int = -1,
    clamp: float = -1,
    reduction: ReductionName = "none",
    fused_log_softmax: bool = True,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    impl: JAXImpl = "auto",
) -> Array:
    """Recurrent neural network transducer loss.

    The negative log-sum over all walks through T frames and U labels, blanks moving to the next frame and labels to
    the next label: ``loss[n] = -log sum over walks of prod over arcs of p(class of arc | t, u)``.

    Args:
        logits: Output of the joiner (N, T, U+1, V); with ``fused_log_softmax=False`` log-probabilities. float32,
            float64, bfloat16 or float16.
        targets: Labels (N, U), of any integer dtype. Entries beyond a target's length are never read.
        logit_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most U; the width of ``targets`` where ``None``.
        blank: Index of the blank class; negative counts from the end.
        clamp: Where positive, bound every entry of a sample's gradient with respect to ``logits`` to [-clamp, clamp],
            before the upstream gradient multiplies it.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        fastemit_lambda: FastEmit: multiply the posterior of every label arc by 1 + lambda in the gradient. The loss
            stays the negative log-likelihood.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.
        NotDifferentiableError: (a RuntimeError) a second derivative with ``fastemit_lambda`` or ``clamp``, whose
            gradient is not the gradient of anything.

    Notes:
        Transformations, infeasible samples (those without frames), NaN and padding are as in ``ctc_loss``. ``"jax"``
        visits the T+U anti-diagonals of the grid one after another, all nodes of a diagonal at once.

    References:
        Graves (2012), Sequence transduction with recurrent neural networks, arXiv 1211.3711. Yu et al. (2021),
        FastEmit, arXiv 2010.11148.

    Example:
        >>> import jax
        >>> from pathsum.jax import rnnt_loss
        >>> loss = rnnt_loss(jax.numpy.zeros((1, 2, 2, 2)), [[0]])  # 2 frames, 1 label
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 2 walks of 3 arcs, each of probability 1/2
        4.0
    """
    scores = check_scores("rnnt_loss", "logits", logits, "(N, T, U+1, V)")
    blank = _checks.check_blank("rnnt_loss", blank, scores.shape[3])
    _checks.check_reduction("rnnt_loss", reduction)
    zero_infinity = _checks.check_flag("rnnt_loss", "zero_infinity", zero_infinity)
    fused = _checks.check_flag("rnnt_loss", "fused_log_softmax", fused_log_softmax)
    clamp = _checks.check_number("rnnt_loss", "clamp", clamp)
    fastemit_lambda = _checks.check_number("rnnt_loss", "fastemit_lambda", fastemit_lambda, minimum=0.0)
    chosen = check_impl("rnnt_loss", impl, scores)
    batch = check_batch(
        "rnnt_loss",
        targets,
        logit_lengths,
        target_lengths,
        lengths_name="logit_lengths",
        shape=scores.shape,
        max_labels=scores.shape[2] - 1,
        blank=blank,
    )
    solver = GridSolver(chosen, blank, fused, fastemit_lambda, clamp)
    return solve(solver, (scores,), batch, reduction=reduction, zero_infinity=zero_infinity)
