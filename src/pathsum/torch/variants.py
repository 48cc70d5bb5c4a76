"""Relatives of the transducer's loss with arcs or inputs of their own; for ``rnnt_loss``'s options see rnnt.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pathsum.options import Check, Final, ReductionName, RNNTType, TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.variants import ar_rnnt_paths, multi_blank_rnnt_paths, tdt_paths, wildcard_rnnt_paths


def tdt_loss(
    token_logits: Tensor | Joiner,
    duration_logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    durations: Sequence[int],
    blank: int = -1,
    *,
    sigma: float = 0.0,
    final: Final = "blank",
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Token-and-duration transducer loss.

    Every symbol comes with a duration and goes that many frames on: a label may have any of ``durations``, a blank
    those above 0. The loss is the negative log-sum over all walks that read as the target and end exactly behind the
    last frame, ``p(symbol | t, u) * p(duration | t, u)`` multiplied over their arcs.

    Args:
        token_logits: Joiner output for the labels and the blank (N, T, U+1, V), (T, U+1, V) for one sample, or packed
            as in ``rnnt_packed_loss`` (rows, V). float32, float64, bfloat16 or float16, any strides. Or the ``Joiner``
            itself.
        duration_logits: Joiner output for the durations (N, T, U+1, D) or (rows, D), of any of these dtypes; has a
            softmax of its own. One tensor with both heads may be given as two slices. Or a second ``Joiner``.
        targets: Labels (N, U), or (sum of target_lengths,) one target after another.
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        durations: How many frames each of the D durations is: different numbers from 0, one of them above 0.
        blank: Index of the blank among the V classes; negative counts from the end.
        sigma: Taken from every log-probability of a label or blank (logit under-normalisation), so that fewer symbols
            of longer durations are favoured. Changes the loss.
        final: ``"blank"``: a walk ends with a blank, as in NeMo. ``"any"``: a label may also end it.
        fastemit_lambda: FastEmit: multiply the posterior of every label arc by 1 + lambda in the gradients of both
            heads. The loss stays the negative log-likelihood.
        clamp: Where positive, bound every entry of a sample's gradients with respect to both logits to
            [-clamp, clamp], before the upstream gradient multiplies it.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N, lengths not counted.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 token logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also for durations that are not as said, or not one a column.
        InvalidTypeError: A dtype or device that is not accepted.

    Notes:
        A sample is infeasible, with loss infinity and gradient exactly 0, where no sum of durations fits its frames.
        The blank's share of a duration of 0 is lost: its durations are not renormalised. NeMo's loss is this one with
        ``final="blank"``; its CUDA kernel leaves clamp and FastEmit out of the durations' gradient.

        Cost: one pass over the logits in forward and one in backward, beside 40 bytes a node (t, u) for every arc.

    References:
        Xu et al. (2023), Efficient sequence transduction by jointly predicting tokens and durations, arXiv 2304.06795.

    Example:
        >>> import torch
        >>> from pathsum.torch import tdt_loss
        >>> token_logits, duration_logits = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 3)
        >>> loss = tdt_loss(token_logits, duration_logits, [[0]], [2], [1], durations=[0, 1, 2])
        >>> round(1 / loss.exp().item(), 4)  # 1/6 an arc: 2 walks of 2 arcs and 2 of 3
        0.0648
    """
    paths = tdt_paths(
        token_logits, duration_logits, targets, logit_lengths, target_lengths, durations, blank,
        sigma=sigma, final=final, fastemit_lambda=fastemit_lambda, clamp=clamp, check=check, impl=impl,
        function="tdt_loss",
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


def multi_blank_rnnt_loss(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    big_blank_durations: Sequence[int],
    big_blanks: Sequence[int],
    blank: int = -1,
    *,
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Multi-blank transducer loss: beside the blank there are big blanks, which go several frames on.

    The loss of ``rnnt_loss`` over all walks in which a big blank may stand for as many blanks as it has frames; none
    passes the last frame.

    Args:
        logits: Joiner output (N, T, U+1, V), or (T, U+1, V) for one sample, or packed as in ``rnnt_packed_loss`` (rows,
            V); one softmax over the labels, the blank and the big blanks. float32, float64, bfloat16 or float16, any
            strides. Or the ``Joiner`` itself.
        targets: Labels (N, U) or (sum of target_lengths,); neither the blank nor a big blank.
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        big_blank_durations: Frames of each big blank, at least 1.
        big_blanks: Class of each big blank, in the same order; negative counts from the end. NeMo, whose blank is the
            last class, has them before it in falling order: ``[-2, -3, ...]``.
        blank: Index of the blank; negative counts from the end.
        sigma: Taken from every log-probability (logit under-normalisation), so that big blanks are favoured. Changes
            the loss.
        fastemit_lambda: As in ``rnnt_loss``.
        clamp: As in ``rnnt_loss``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also for big blanks or durations that are not as said.
        InvalidTypeError: A dtype that is not accepted.

    Notes:
        Infeasible samples, NaN, padding and cost are treated as in ``rnnt_loss``.

    References:
        Xu et al. (2022), Multi-blank transducers for speech recognition, arXiv 2211.03541.

    Example:
        >>> import torch
        >>> from pathsum.torch import multi_blank_rnnt_loss
        >>> logits = torch.zeros(1, 2, 1, 4)  # 2 frames, no label; 2 labels, a big blank of 2 frames, the blank
        >>> loss = multi_blank_rnnt_loss(logits, [[]], [2], [0], [2], [-2])
        >>> round(1 / loss.exp().item(), 4)  # 1/4 + 1/4 * 1/4
        0.3125
    """
    paths = multi_blank_rnnt_paths(
        logits, targets, logit_lengths, target_lengths, big_blank_durations, big_blanks, blank,
        sigma=sigma, fastemit_lambda=fastemit_lambda, clamp=clamp, check=check, impl=impl,
        function="multi_blank_rnnt_loss",
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


def ar_rnnt_loss(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    alignment: Integers,
    left: int,
    right: int,
    blank: int = -1,
    *,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Alignment-restricted transducer loss: each label is emitted near the frame that an alignment gives it.

    The loss of ``rnnt_loss`` over the walks that emit label u in frames ``alignment[n, u] - left`` to
    ``alignment[n, u] + right`` only.

    Args:
        logits: Joiner output (N, T, U+1, V), or (T, U+1, V) for one sample, or packed as in ``rnnt_packed_loss`` (rows,
            V). float32, float64, bfloat16 or float16, any strides. Or the ``Joiner`` itself.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        alignment: Frame of each label, counted from 0, in the layout of ``targets``. What stands behind a target's
            length is not read. ``forced_align`` and ``rnnt_align`` give such frames.
        left: How many frames before its own a label may be emitted.
        right: How many frames behind its own.
        blank: Index of the blank class; negative counts from the end.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        fastemit_lambda: As in ``rnnt_loss``.
        clamp: As in ``rnnt_loss``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also for an alignment whose shape is not that of the targets, and for
            negative buffers.
        InvalidTypeError: A dtype that is not accepted.

    Notes:
        A sample whose bands cannot be kept in order is infeasible: loss infinity, gradient exactly 0. With
        ``rnnt_type="modified"`` and equal buffers this is the restricted loss of SimBe195/monotonic-rnnt, whose
        alignment has one entry a frame.

    References:
        Mahadeokar et al. (2020), Alignment restricted streaming recurrent neural network transducer, arXiv 2011.03072.

    Example:
        >>> import torch
        >>> from pathsum.torch import ar_rnnt_loss
        >>> logits = torch.zeros(1, 4, 2, 2)  # 4 frames, 1 label, 2 classes
        >>> loss = ar_rnnt_loss(logits, [[0]], [4], [1], alignment=[[1]], left=1, right=0)
        >>> round(2**5 / loss.exp().item(), 4)  # 2 of the 4 walks of 5 arcs: the label in frame 0 or 1
        2.0
    """
    paths = ar_rnnt_paths(
        logits, targets, logit_lengths, target_lengths, alignment, left, right, blank,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, hat=hat, fastemit_lambda=fastemit_lambda, clamp=clamp,
        check=check, impl=impl, function="ar_rnnt_loss",
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


def wildcard_rnnt_loss(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    skip_score: float = 0.0,
    final: Final = "blank",
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Wildcard transducer loss, for targets that may lack words at their beginning or end.

    The loss of ``rnnt_loss`` over all walks, which may besides leave out frames before the first label and behind the
    last, each by one skip that emits nothing. A skip is no probability: the loss can be negative.

    Args:
        logits: Joiner output (N, T, U+1, V), or (T, U+1, V) for one sample, or packed as in ``rnnt_packed_loss`` (rows,
            V). float32, float64, bfloat16 or float16, any strides. Or the ``Joiner`` itself.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        skip_score: Log-score of a skip, whatever its length; 0 is no penalty.
        final: Where the skip of the last frames leads: ``"blank"``: to the last frame, whose blank ends every walk
            (NeMo's "force_final", its default). ``"any"``: behind the last frame (NeMo's "allow_ignore").
        fastemit_lambda: As in ``rnnt_loss``.
        clamp: As in ``rnnt_loss``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: A dtype that is not accepted.

    Notes:
        The skips lead from (0, 0) to any later frame, and from any frame but the last. Infeasible samples, NaN and
        padding are treated as in ``rnnt_loss``.

    References:
        Laptev et al. (2023), Powerful and extensible WFST framework for RNN-transducer losses, arXiv 2303.10384.

    Example:
        >>> import torch
        >>> from pathsum.torch import wildcard_rnnt_loss
        >>> logits = torch.zeros(1, 2, 2, 2)  # 2 frames, 1 label, 2 classes
        >>> loss = wildcard_rnnt_loss(logits, [[0]], [2], [1])
        >>> round(1 / loss.exp().item(), 4)  # 2 walks of 3 arcs, 1 with the first and 1 with the last blank skipped
        0.75
    """
    paths = wildcard_rnnt_paths(
        logits, targets, logit_lengths, target_lengths, blank,
        skip_score=skip_score, final=final, fastemit_lambda=fastemit_lambda, clamp=clamp, check=check, impl=impl,
        function="wildcard_rnnt_loss",
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)
