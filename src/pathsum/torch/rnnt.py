"""The transducer's losses of logits that exist, padded or packed."""

from __future__ import annotations

from torch import Tensor

from pathsum.options import Check, ReductionName, RNNTType, TorchImpl
from pathsum.torch._inputs import PACKED, PADDED, SINGLE, Integers
from pathsum.torch.paths.rnnt import grid_paths


def rnnt_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    fused_log_softmax: bool = True,
    *,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    overwrite_logits: bool = False,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Recurrent neural network transducer loss.

    The negative log-sum over all walks through T frames and U labels, blanks moving to the next frame and labels to
    the next label: ``loss[n] = -log sum over walks of prod over arcs of p(class of arc | t, u)``.

    Args:
        logits: Output of the joiner (N, T, U+1, V), or (T, U+1, V) for one sample; with ``fused_log_softmax=False``
            log-probabilities. float32, float64, bfloat16 or float16, any strides.
        targets: Labels (N, U), or (sum of target_lengths,) one target after another. Any integer dtype, a tensor on any
            device, an array or a list. Entries beyond a target's length are never read.
        logit_lengths: Frames of each sample (N,), at most T. A number for one sample without a batch axis, whose
            targets may be (U,).
        target_lengths: Labels of each sample (N,), at most U. A number for one sample without a batch axis.
        blank: Index of the blank class; negative counts from the end.
        clamp: Where positive, bound every entry of a sample's gradient with respect to ``logits`` to [-clamp, clamp],
            before the upstream gradient multiplies it.
        reduction: ``"none"``: losses (N,), or that of the one sample. ``"sum"``: their sum. ``"mean"``: their mean over
            N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        fastemit_lambda: FastEmit: multiply the posterior of every label arc by 1 + lambda in the gradient. The loss
            stays the negative log-likelihood.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        overwrite_logits: Let backward write the gradient over ``logits`` instead of into new memory. A second
            backward then raises, as does backward through anything else that needs the logits' values, another such
            loss of the same memory included.
        rnnt_type: ``"regular"``: a label stays in its frame. ``"modified"``: a label takes its frame, as a blank does,
            the last frame included (k2). ``"one_sym_per_frame"``: the same, but the last frame is a blank
            (optimized_transducer). ``"constrained"``: as modified, the score of a label being that of the label at
            (t, u) and of the blank at (t, u+1) (k2).
        delay_penalty: Add ``delay_penalty * ((T_n - 1) / 2 - t)`` to the score of every label in frame t, so that early
            labels are favoured. Changes the loss.
        hat: Hybrid autoregressive transducer: the blank has the probability ``sigmoid(logit)``, and the other classes
            share the rest by a softmax of their own.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) a label out of range or equal to the blank, a length out of range, shapes
            that do not match, an unknown option; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.
        GradientConsumedError: (a RuntimeError) a second backward with ``overwrite_logits``, or one whose logits have
            been written to meanwhile.

    Notes:
        A sample without frames, or one whose every walk is impossible, has loss infinity and gradient exactly 0. A
        NaN or +inf logit makes the loss of its own sample NaN. -inf logits are fine. Padding is never read; the
        lengths may be shorter than the padded sizes in every sample.

        Cost: one pass over the logits in forward and one in backward, beside 24 bytes a node (t, u). The recursion is
        float64 in extended range. Deterministic for any number of threads.

        Twice differentiable by numba, to any order by the reference; not with ``fastemit_lambda``, ``clamp`` or
        ``overwrite_logits``, with which ``create_graph=True`` raises NotDifferentiableError.

    References:
        Graves (2012), Sequence transduction with recurrent neural networks, arXiv 1211.3711. Yu et al. (2021),
        FastEmit, arXiv 2010.11148. Kang et al. (2022), Delay-penalized transducer, arXiv 2211.00490. Variani et
        al. (2020), Hybrid autoregressive transducer, arXiv 2003.07705. The types: ``pathsum.problems.rnnt_types``.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_loss
        >>> logits = torch.zeros(1, 2, 2, 2, requires_grad=True)  # 2 frames, 1 label, 2 classes
        >>> loss = rnnt_loss(logits, [[0]], [2], [1])
        >>> round(loss.exp().item(), 4)  # 2 walks of 3 arcs, each arc of probability 1/2
        4.0
    """
    paths = grid_paths(
        "rnnt_loss", logits, targets, logit_lengths, target_lengths, blank, layouts=(PADDED, SINGLE),
        fused_log_softmax=fused_log_softmax, rnnt_type=rnnt_type, delay_penalty=delay_penalty, hat=hat,
        fastemit_lambda=fastemit_lambda, clamp=clamp, overwrite_logits=overwrite_logits, check=check, impl=impl,
    )  # fmt: skip
    loss = paths.overwriting_loss if paths.overwrite else paths.loss
    return loss(reduction, zero_infinity)


def rnnt_packed_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    clamp: float = -1,
    reduction: ReductionName = "mean",
    fused_log_softmax: bool = True,
    *,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    overwrite_logits: bool = False,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Recurrent neural network transducer loss over logits without padding.

    The loss of ``rnnt_loss``. Sample n has T_n * (U_n + 1) rows, those of a frame together, and the rows of the
    samples follow one another.

    Args:
        logits: Output of the joiner (sum of T_n * (U_n + 1), V); with ``fused_log_softmax=False`` log-probabilities.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames T_n of each sample (N,).
        target_lengths: Labels U_n of each sample (N,).
        blank: Index of the blank class; negative counts from the end.
        clamp: As in ``rnnt_loss``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        fastemit_lambda: As in ``rnnt_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        overwrite_logits: As in ``rnnt_loss``.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also where the number of rows is not that of the lengths.
        InvalidTypeError: As in ``rnnt_loss``.
        GradientConsumedError: A second backward with ``overwrite_logits``.

    Notes:
        As in ``rnnt_loss``.

    References:
        Li et al. (2019), Improving RNN transducer modeling for end-to-end speech recognition, arXiv 1909.12415.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_packed_loss
        >>> logits = torch.zeros(2 * 2 + 1 * 1, 2, requires_grad=True)  # T=2 with U=1, then T=1 with U=0
        >>> losses = rnnt_packed_loss(logits, [[0], [0]], [2, 1], [1, 0], reduction="none")
        >>> [round(loss, 4) for loss in losses.exp().tolist()]
        [4.0, 2.0]
    """
    paths = grid_paths(
        "rnnt_packed_loss", logits, targets, logit_lengths, target_lengths, blank, layouts=(PACKED,),
        fused_log_softmax=fused_log_softmax, rnnt_type=rnnt_type, delay_penalty=delay_penalty, hat=hat,
        fastemit_lambda=fastemit_lambda, clamp=clamp, overwrite_logits=overwrite_logits, check=check, impl=impl,
    )  # fmt: skip
    loss = paths.overwriting_loss if paths.overwrite else paths.loss
    return loss(reduction, zero_infinity)
