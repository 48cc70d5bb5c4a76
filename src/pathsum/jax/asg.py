"""The auto segmentation criterion."""

from __future__ import annotations

from pathsum import _checks
from pathsum.jax._inputs import IntegersLike, as_array, check_batch, check_impl, check_scores, solve
from pathsum.jax._solvers import ASGSolver
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array
from pathsum.options import JAXImpl, ReductionName


def asg_loss(
    inputs: Array,
    targets: IntegersLike,
    transitions: Array,
    input_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    reduction: ReductionName = "none",
    zero_infinity: bool = False,
    impl: JAXImpl = "auto",
) -> Array:
    """Auto segmentation criterion: the target's share among all label sequences, with learned transitions.

    A sequence pi has one label a frame and the score ``sum over t of inputs[t, pi[t]] + transitions[pi[t], pi[t-1]]``.
    ``loss[n] = log sum over all pi of exp(score) - log sum over the pi that stretch the target of exp(score)``, a
    stretched target giving each label one frame or more.

    Args:
        inputs: Unnormalised scores (N, T, C); no softmax is taken. float32, float64, bfloat16 or float16.
        targets: Labels (N, S), of any integer dtype. Entries beyond a target's length are never read.
        transitions: Scores (C, C) of passing from one label to the next: ``transitions[i, j]`` from j to i. The dtype
            of ``inputs``, or float32 beside half precision.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N, lengths not counted.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"jax"``.

    Returns:
        The reduced loss, float64 for float64 inputs and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Transformations, NaN and padding are as in ``ctc_loss``. Infeasible is a sample whose target is longer than its
        input, or empty with an input that is not. A target with two equal neighbours counts sequences more than once,
        and its loss may be negative; ``pathsum.replabels`` writes such targets without.

        Cost: T*C*C for each sample, in ``"jax"`` as so many additions of extended range, not as a product of
        matrices. The gradient with respect to ``transitions`` is kept for each sample, N*C*C numbers.

    References:
        Collobert, Puhrsch, Synnaeve (2016), Wav2Letter, arXiv 1609.03193.

    Example:
        >>> import jax
        >>> from pathsum.jax import asg_loss
        >>> loss = asg_loss(jax.numpy.zeros((1, 3, 2)), [[0, 1]], jax.numpy.zeros((2, 2)))
        >>> round(float(jax.numpy.exp(loss[0])), 4)  # 2 of the 8 sequences, 0 0 1 and 0 1 1, stretch the target
        4.0
    """
    scores = check_scores("asg_loss", "inputs", inputs, "(N, T, C)")
    table = as_array("asg_loss", "transitions", transitions)
    expected = (scores.shape[2],) * 2
    _checks.check_table("asg_loss", "transitions", table.dtype.name, table.shape, "(C, C)", expected, scores.dtype.name)
    _checks.check_reduction("asg_loss", reduction)
    zero_infinity = _checks.check_flag("asg_loss", "zero_infinity", zero_infinity)
    chosen = check_impl("asg_loss", impl, scores, in_triton=ASGSolver.in_triton)
    batch = check_batch(
        "asg_loss",
        targets,
        input_lengths,
        target_lengths,
        lengths_name="input_lengths",
        shape=scores.shape,
        max_labels=None,
        blank=None,
    )
    # A gradient is the difference of two posteriors, which are not to be rounded before it is taken.
    work = work_dtype(scores)
    scores = scores.astype(work), table.astype(work)
    return solve(ASGSolver(chosen), scores, batch, reduction=reduction, zero_infinity=zero_infinity)
