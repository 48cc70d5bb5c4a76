"""CTC of a linear layer's output, which is never held as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError
from pathsum.kernels.protocol import Call, LinearOptions
from pathsum.options import Check, ReductionName, TorchImpl
from pathsum.torch._inputs import Integers, as_scores, check_operand, check_shape, dtype_of, samples_first
from pathsum.torch._linear import columns_of
from pathsum.torch.joiner import autocast_dtype
from pathsum.torch.paths.ctc import CTC, chain_paths
from pathsum.torch.paths.frames import ChainPaths


def ctc_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    *,
    batch_first: bool = False,
    chunk: int | None = None,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Connectionist temporal classification loss of a linear layer's output, which is never held.

    The loss of ``ctc_loss`` for ``logits[t, n] = weight @ hidden[t, n] + bias``, for vocabularies of a hundred thousand
    classes. The logits exist some classes at a time, in forward and once more in backward.

    Args:
        hidden: What the linear layer is given (T, N, H), or (T, H) for one sample; a tensor or, as all operands, a
            NumPy array. float32, float64, bfloat16 or float16, like the other operands; under autocast in any of them,
            and taken in autocast's but for float64.
        weight: The layer's weight (C, H).
        bias: Its bias (C,), or ``None``.
        targets: Labels (N, S) or (sum of target_lengths,), as in ``ctc_loss``.
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: As in ``ctc_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        batch_first: ``hidden`` is (N, T, H).
        chunk: How many classes' logits are held at a time, of 2048 frames at most. ``None``: as many as fill 16 MiB in
            float32 on the CPU, 128 MiB on a GPU.
        check: As in ``ctc_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"``, or ``"reference"``, which holds all
            logits. The products are torch's with each of them.

    Returns:
        The reduced loss, float64 for float64 operands and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where the operands' shapes do not fit.
        InvalidTypeError: A dtype that is not accepted, or operands of different dtypes or devices.

    Notes:
        The gradients by hidden, weight and bias are exact; products of half precision are summed in float32, and so are
        the rows. Padding is neither computed nor read.

        Memory beyond operands and gradients: a tile, twice hidden at most, and O(N*T*S) for the lattice. Time: one
        product of (frames, H) by (H, C) in forward and three in backward.

        Twice differentiable, a tile at a time as well, in nine products more; a third derivative is had with
        ``impl="reference"`` alone. Deterministic for any number of threads up to the matrix products, whose order is
        the BLAS library's.

    References:
        Graves, Fernández, Gomez, Schmidhuber (2006), Connectionist temporal classification.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_linear_loss
        >>> hidden, weight = torch.zeros(3, 1, 4, requires_grad=True), torch.zeros(2, 4)
        >>> loss = ctc_linear_loss(hidden, weight, None, [[1]], [3], [1], reduction="none")
        >>> round(loss.exp().item(), 4)  # 6 of the 8 labellings read as the target
        1.3333
    """
    function = "ctc_linear_loss"
    operands, batched = check_operands(function, hidden, weight, bias, batch_first)
    if chunk is not None:
        chunk = _checks.check_count(function, "chunk", chunk, 1)
    integers = (targets, input_lengths, target_lengths)
    options = LinearOptions(chunk=min(chunk or 0, 2**31 - 1))
    paths = linear_paths(function, operands, batched, integers, blank, options, check=check, impl=impl)
    return paths.loss(reduction, zero_infinity)


def check_operands(
    function: str, hidden: Any, weight: Any, bias: Any, batch_first: bool, prefix: str = ""
) -> tuple[tuple[Tensor, Tensor, Tensor | None], bool]:
    """The operands, checked and cast, hidden as (N, T, H); and whether it had a batch axis.

    ``prefix``: as of ``check_joiner``.
    """
    hidden, batched = samples_first(function, "hidden", hidden, batch_first, classes="H")
    weight, bias = as_scores(weight), as_scores(bias)
    check_operand(function, prefix + "weight", weight, "(C, H)")
    if bias is not None:
        check_operand(function, prefix + "bias", bias, "(C)")
    target = autocast_dtype(hidden.device.type)
    hidden, weight, bias = (
        operand if operand is None or target is None or operand.dtype == torch.float64 else operand.to(target)
        for operand in (hidden, weight, bias)
    )
    for name, operand in (("weight", weight), ("bias", bias)):
        if operand is not None and (operand.dtype != hidden.dtype or operand.device != hidden.device):
            rule = f"have hidden's dtype and device, {dtype_of(hidden)} on {hidden.device}"
            raise InvalidTypeError(function, prefix + name, rule, f"{dtype_of(operand)} on {operand.device}")
    check_shape(function, prefix + "weight", weight, (None, hidden.shape[2]), "(C, H)")
    if bias is not None:
        check_shape(function, prefix + "bias", bias, (len(weight),), "(C)")
    return (hidden, weight, bias), batched


def linear_paths(
    function: str,
    operands: tuple[Tensor, Tensor, Tensor | None],
    batched: bool,
    integers: tuple[Any, Any, Any],
    blank: int,
    options: LinearOptions,
    *,
    num_classes: int | None = None,
    check: Check,
    impl: str,
) -> ChainPaths:
    """The paths of CTC over the columns of a linear layer's log-softmax that its target reads."""
    hidden, weight, _ = operands
    # Of the shape of the logits, and of one element: what the arguments are checked against.
    shape = (*hidden.shape[:2], len(weight) if num_classes is None else num_classes)
    stand_in = hidden.detach().new_zeros(1).expand(shape)
    stand_in = stand_in if batched else stand_in[0]
    paths = chain_paths(function, CTC, stand_in, *integers, blank, batch_first=True, check=check, impl=impl)
    columns, paths.lattice = columns_of(paths.lattice)
    impl = paths.impl
    if options.group and not paths.kernels.own_derivatives:  # whose logits would be of all classes
        impl = "numba" if hidden.is_cpu else "triton"
    paths.scores = dispatch.kernels_of(impl, "linear").losses(Call(operands, columns, options))
    return paths
