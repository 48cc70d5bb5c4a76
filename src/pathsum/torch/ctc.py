"""CTC and simplified CTC."""

from __future__ import annotations

from torch import Tensor

from pathsum.options import Check, ReductionName, Star, TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.paths.ctc import CTC, SIMPLE_CTC, chain_paths


def ctc_loss(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Connectionist temporal classification loss.

    The negative log-sum over all labellings of the frames that read as the target once repeats are merged and blanks
    removed: ``loss[n] = -log sum over pi of prod over t of p(pi[t] | t)``.

    Args:
        log_probs: Log-probabilities (T, N, C), or (T, C) for one sample; with ``fused_log_softmax`` logits, which is
            faster and takes less memory. float32, float64, bfloat16 or float16, a tensor of any strides or a NumPy
            array.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. Any integer dtype, a tensor on any
            device, an array or a list. Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T. A number for one sample without a batch axis.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: each divided by its target length (at
            least 1), then the mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C, one more than there are classes, stands for in targets: something that has no class of
            its own. ``"any"``: any classes, the blank included, its log-probability 0 in every frame. ``"label"``: any
            class but the blank, its log-probability ``log sum over c != blank of p(c | t)``. ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) a label out of range or equal to the blank, a length out of range, shapes
            that do not match, an unknown option; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        An infeasible sample, whose target does not fit in its frames, has loss infinity and gradient exactly 0. A NaN
        or +inf score makes the loss of its own sample NaN. -inf scores are fine. Padding is never read.

        With ``fused_log_softmax=False`` the gradient is the true one with respect to ``log_probs``, minus the
        posterior of each class; torch returns the gradient with respect to logits in its place. After a
        ``log_softmax`` the two agree.

        A star is a column of scores more, which the lattice reads as any other: to stay in it, to step to it and to
        leave it are as for a label. ``"any"`` takes in whole words with their pauses. What a star stands for overlaps
        with what its neighbours do, so that labellings count more than once and the loss may be negative. With a star
        a (N, T, C+1) copy of the scores is held.

        Twice differentiable (``create_graph=True``) at linear cost: a Hessian-vector product takes about as long as the
        loss and its gradient. A third derivative is had with ``impl="reference"`` alone.

        Cost: O(N*T*L) time and memory beside one pass over the scores in forward and one in backward. The recursion
        is in extended range: a float32 gradient stays within 2e-6 of the exact one for ten thousand frames.
        Deterministic for any number of threads.

    References:
        Graves, Fernández, Gomez, Schmidhuber (2006), Connectionist temporal classification. Stars: Pratap et al.
        (2022), Star temporal classification, arXiv 2201.12208; Pratap et al. (2023), arXiv 2305.13516.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_loss
        >>> logits = torch.zeros(3, 1, 2, requires_grad=True)  # 3 frames, 1 sample, blank and one label
        >>> loss = ctc_loss(logits, [[1]], [3], [1], fused_log_softmax=True, reduction="none")
        >>> round(loss.exp().item(), 4)  # 6 of the 8 labellings read as the target
        1.3333
        >>> ctc_loss(logits, [[2]], [3], [1], fused_log_softmax=True, star="label").allclose(loss)  # the only label
        True
    """
    paths = chain_paths(
        "ctc_loss", CTC, log_probs, targets, input_lengths, target_lengths, blank, fused_log_softmax=fused_log_softmax,
        star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


def simple_ctc_loss(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Simplified CTC loss: repeats are not merged, each label is emitted on exactly one frame.

    The negative log-sum over the C(T, L) ways of placing the labels on frames, in order, blanks elsewhere. A sample
    is infeasible where its target is longer than its input.

    Args:
        log_probs: As in ``ctc_loss``: (T, N, C) or (T, C), log-probabilities or, with ``fused_log_softmax``, logits.
        targets: As in ``ctc_loss``: labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each loss divided by its target length (at least 1), then the
            mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``: here one frame; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        Cost, accuracy, gradients and the treatment of infeasible samples and of NaN are those of ``ctc_loss``.

    References:
        Sak, Shannon, Rao, Beaufays (2017), Recurrent neural aligner; the loss of tf_seq2seq_losses (Tochin, 2021).

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_loss
        >>> logits = torch.zeros(3, 1, 2, requires_grad=True)
        >>> loss = simple_ctc_loss(logits, [[1]], [3], [1], fused_log_softmax=True, reduction="none")
        >>> round(loss.exp().item(), 4)  # 3 of the 8 labellings
        2.6667
    """
    paths = chain_paths(
        "simple_ctc_loss", SIMPLE_CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)
