"""CTC of a linear layer's output, which is never held as a whole."""

from __future__ import annotations

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.jax._columns import classes_of, columns_of_linear, masked
from pathsum.jax._inputs import IntegersLike, check_batch, check_impl, check_scores, solve
from pathsum.jax._solvers import ChainSolver
from pathsum.lattice import Array
from pathsum.options import JAXImpl, ReductionName
from pathsum.problems.ctc import pose_ctc


def ctc_linear_loss(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    targets: IntegersLike,
    logit_lengths: IntegersLike | None = None,
    target_lengths: IntegersLike | None = None,
    *,
    blank: int = 0,
    reduction: ReductionName = "none",
    zero_infinity: bool = False,
    chunk: int | None = None,
    impl: JAXImpl = "auto",
) -> Array:
    """Connectionist temporal classification loss of a linear layer's output, which is never held.

    The loss of ``ctc_loss`` for ``logits[n, t] = weight @ hidden[n, t] + bias``: a scan over the classes, some at a
    time, whose derivatives make the logits again.

    Args:
        hidden: What the linear layer is given (N, T, H). float32, float64, bfloat16 or float16, as the others.
        weight: The layer's weight (C, H).
        bias: Its bias (C,), or ``None``.
        targets: Labels (N, S), as in ``ctc_loss``.
        logit_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        reduction: As in ``ctc_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        chunk: How many classes' logits are held at a time; ``None``: as many as make 4 million logits.
        impl: As in ``ctc_loss``, for what sums the paths; the products are JAX's.

    Returns:
        The reduced loss, float64 for float64 operands and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where the operands' shapes do not fit.
        InvalidTypeError: A dtype that is not accepted, or operands of different dtypes.
        ImplementationError: As in ``ctc_loss``.

    Notes:
        Differentiable to any order, under every transformation. Where C is no multiple of ``chunk`` a padded copy of
        the weight is held.

    Example:
        >>> import jax.numpy as jnp
        >>> from pathsum.jax import ctc_linear_loss
        >>> loss = ctc_linear_loss(jnp.zeros((1, 3, 4)), jnp.zeros((2, 4)), None, [[1]])
        >>> round(float(jnp.exp(loss[0])), 4)  # 6 of the 8 labellings read as the target
        1.3333
    """
    function = "ctc_linear_loss"
    hidden = check_scores(function, "hidden", hidden, "(N, T, H)")
    weight = check_scores(function, "weight", weight, "(C, H)")
    operands = {"weight": weight}
    if bias is not None:
        operands["bias"] = bias = check_scores(function, "bias", bias, "(C)")
    for name, operand in operands.items():
        if operand.dtype != hidden.dtype:
            raise InvalidTypeError(function, name, f"have hidden's dtype, {hidden.dtype.name}", operand.dtype.name)
    size, num_classes = hidden.shape[2], len(weight)
    if weight.shape[1] != size or num_classes < 1:
        raise InvalidValueError(function, "weight", f"have shape (C, H) with H = {size}", f"shape {weight.shape}")
    if bias is not None and bias.shape != (num_classes,):
        raise InvalidValueError(function, "bias", f"have shape (C) = ({num_classes},)", f"shape {bias.shape}")
    if chunk is not None:
        chunk = _checks.check_count(function, "chunk", chunk, 1)
    blank = _checks.check_blank(function, blank, num_classes)
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    chosen = check_impl(function, impl, hidden)
    batch = check_batch(
        function, targets, logit_lengths, target_lengths, lengths_name="logit_lengths",
        shape=(*hidden.shape[:2], num_classes), max_labels=None, blank=blank,
    )  # fmt: skip
    classes, batch = classes_of(batch, blank)
    columns = columns_of_linear(masked(hidden, batch.integers.input_lengths), weight, bias, classes, chunk)
    solver = ChainSolver(chosen, pose_ctc, 0, False)
    return solve(solver, (columns,), batch, reduction=reduction, zero_infinity=zero_infinity, weigh=reduction == "mean")
