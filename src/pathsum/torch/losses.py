"""The public functions: each checks its words, poses its lattice, chooses an implementation, solves and reduces."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.reference import chain as reference_chain
from pathsum.kernels.reference import dense as reference_dense
from pathsum.kernels.reference import grid as reference_grid
from pathsum.lattice import ChainLattice, GridLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.rnnt_types import RNNT_TYPES, pose_rnnt_type
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.reductions import SCALE_MODES, reduce, scales
from pathsum.torch._arcs import on_device as _on_device
from pathsum.torch._arcs import rnnt_planes, solve
from pathsum.torch._autograd.chain import chain_losses
from pathsum.torch._autograd.dense import dense_losses
from pathsum.torch._autograd.grid import grid_losses

Integers = Tensor | Sequence[int]


def ctc_loss(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Connectionist temporal classification loss.

    The negative log-sum over all labellings of the frames that read as the target once repeats are merged and blanks
    removed: ``loss[n] = -log sum over pi of prod over t of p(pi[t] | t)``.

    Args:
        log_probs: Log-probabilities (T, N, C), or (T, C) for one sample; with ``fused_log_softmax`` logits, which is
            faster and takes less memory. float32, float64, bfloat16 or float16, any strides.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. int32 or int64, a tensor on any
            device or a list. Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T. A number for one sample without a batch axis.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: each divided by its target length (at
            least 1), then the mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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

        Cost: O(N*T*L) time and memory beside one pass over the scores in forward and one in backward. The recursion
        is in extended range: a float32 gradient stays within 2e-6 of the exact one for ten thousand frames.
        Deterministic for any number of threads.

    References:
        Graves, Fernández, Gomez, Schmidhuber (2006), Connectionist temporal classification.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_loss
        >>> logits = torch.zeros(3, 1, 2, requires_grad=True)  # 3 frames, 1 sample, blank and one label
        >>> loss = ctc_loss(logits, [[1]], [3], [1], fused_log_softmax=True, reduction="none")
        >>> round(loss.exp().item(), 4)  # 6 of the 8 labellings read as the target
        1.3333
    """
    return _chain_loss(
        "ctc_loss",
        pose_ctc,
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        fused_log_softmax,
        batch_first,
        impl,
    )


def simple_ctc_loss(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    *,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: str = "auto",
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
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    return _chain_loss(
        "simple_ctc_loss",
        pose_simple_ctc,
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        reduction,
        zero_infinity,
        fused_log_softmax,
        batch_first,
        impl,
    )


def rnnt_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    overwrite_logits: bool = False,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Recurrent neural network transducer loss.

    The negative log-sum over all walks through T frames and U labels, blanks moving to the next frame and labels to
    the next label: ``loss[n] = -log sum over walks of prod over arcs of p(class of arc | t, u)``.

    Args:
        logits: Output of the joiner (N, T, U+1, V); with ``fused_log_softmax=False`` log-probabilities. float32,
            float64, bfloat16 or float16, any strides.
        targets: Labels (N, U), or (sum of target_lengths,) one target after another. int32 or int64, a tensor on any
            device or a list. Entries beyond a target's length are never read.
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        clamp: Where positive, bound every entry of a sample's gradient with respect to ``logits`` to [-clamp, clamp],
            before the upstream gradient multiplies it.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        fastemit_lambda: FastEmit: multiply the posterior of every label arc by 1 + lambda in the gradient. The loss
            stays the negative log-likelihood.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        overwrite_logits: Let backward write the gradient over ``logits`` instead of into new memory. A second
            backward then raises, as does backward through anything else that needs the logits' values.
        rnnt_type: ``"regular"``: a label stays in its frame. ``"modified"``: a label takes its frame, as a blank does,
            the last frame included (k2). ``"one_sym_per_frame"``: the same, but the last frame is a blank
            (optimized_transducer). ``"constrained"``: as modified, the score of a label being that of the label at
            (t, u) and of the blank at (t, u+1) (k2).
        delay_penalty: Add ``delay_penalty * ((T_n - 1) / 2 - t)`` to the score of every label in frame t, so that early
            labels are favoured. Changes the loss.
        hat: Hybrid autoregressive transducer: the blank has the probability ``sigmoid(logit)``, and the other classes
            share the rest by a softmax of their own.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 logits and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) a label out of range or equal to the blank, a length out of range, shapes
            that do not match, an unknown option; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.
        GradientConsumedError: (a RuntimeError) a second backward with ``overwrite_logits``.

    Notes:
        A sample without frames, or one whose every walk is impossible, has loss infinity and gradient exactly 0. A
        NaN or +inf logit makes the loss of its own sample NaN. -inf logits are fine. Padding is never read; the
        lengths may be shorter than the padded sizes in every sample.

        Cost: one pass over the logits in forward and one in backward, beside 24 bytes a node (t, u). The recursion is
        float64 in extended range. Deterministic for any number of threads.

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
    _checks.check_scores("rnnt_loss", "logits", _dtype(logits), _shape(logits), ("(N, T, U+1, V)",))
    num_samples, num_frames, width, _ = logits.shape
    if width < 1:
        raise InvalidValueError("rnnt_loss", "logits", "have shape (N, T, U+1, V)", f"shape {tuple(logits.shape)}")
    lattice = _pose_grid(
        "rnnt_loss",
        targets,
        logit_lengths,
        target_lengths,
        blank,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=width - 1,
        num_classes=logits.shape[-1],
    )
    return _grid_loss(
        "rnnt_loss",
        logits,
        lattice,
        clamp,
        reduction,
        fused_log_softmax,
        fastemit_lambda,
        zero_infinity,
        overwrite_logits,
        rnnt_type,
        delay_penalty,
        hat,
        impl,
    )


def rnnt_packed_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    overwrite_logits: bool = False,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    impl: str = "auto",
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
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    _checks.check_scores("rnnt_packed_loss", "logits", _dtype(logits), _shape(logits), ("(rows, V)",))
    lattice = _pose_grid(
        "rnnt_packed_loss",
        targets,
        logit_lengths,
        target_lengths,
        blank,
        num_samples=None,
        num_frames=None,
        max_labels=None,
        num_classes=logits.shape[-1],
    )
    _checks.check_packed_rows("rnnt_packed_loss", logits.shape[0], int(lattice.row_offsets[-1]))
    return _grid_loss(
        "rnnt_packed_loss",
        logits,
        lattice,
        clamp,
        reduction,
        fused_log_softmax,
        fastemit_lambda,
        zero_infinity,
        overwrite_logits,
        rnnt_type,
        delay_penalty,
        hat,
        impl,
    )


def asg_loss(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    reduction: str = "mean",
    *,
    scale_mode: str = "none",
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    batch_first: bool = False,
    zero_infinity: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Auto segmentation criterion: the target's share among all label sequences, with learned transitions.

    A sequence pi has one label a frame and the score ``sum over t of inputs[t, pi[t]] + transitions[pi[t], pi[t-1]]``.
    ``loss[n] = log sum over all pi of exp(score) - log sum over the pi that stretch the target of exp(score)``, a
    stretched target giving each label one frame or more.

    Args:
        inputs: Unnormalised scores (T, N, C), or (T, C) for one sample; no softmax is taken. float32, float64,
            bfloat16 or float16, any strides.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. int32 or int64, a tensor on any
            device or a list. Entries beyond a target's length are never read.
        transitions: Scores (C, C) of passing from one label to the next: ``transitions[i, j]`` from j to i. The dtype
            of ``inputs``, or float32 beside half precision.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N, lengths not counted.
        scale_mode: What each loss is divided by before the reduction: ``"none"``, ``"input_size"`` (frames),
            ``"input_size_sqrt"``, ``"target_size"`` (labels) or ``"target_size_sqrt"``; a size counts as at least 1.
        start_scores: Scores (C,) of the first label, added in the first frame.
        final_scores: Scores (C,) of the last label, added in the last frame.
        batch_first: ``inputs`` are (N, T, C).
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 inputs and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) a label or a length out of range, shapes that do not match, an unknown
            option; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype or a device that is not accepted.

    Warns:
        UserWarning: Once, on the CPU, where a target has two equal neighbours. A step between them is as good as a
            stay, sequences count more than once and the loss can be negative. It is what torch_asg and wav2letter
            compute; ``pathsum.replabels`` writes such targets without equal neighbours.

    Notes:
        An infeasible sample, whose target is longer than its input, or empty with an input that is not, has loss
        infinity and gradient exactly 0. A NaN or +inf score makes the loss of its own sample NaN. -inf is fine, among
        ``inputs`` and among ``transitions``. Padding is never read.

        Cost: 2*T*C*C multiplications a sample in forward, half of that where no gradient is needed, and T*C*C in
        backward for ``transitions``; O(N*T*C + C*C) memory. Transitions that spread over more than 29 (float32) or
        235 (float64), or scores that far apart beside transitions of -inf, run in extended range, some ten times
        slower. Deterministic for any number of threads.

    References:
        Collobert, Puhrsch, Synnaeve (2016), Wav2Letter, arXiv 1609.03193.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_loss
        >>> loss = asg_loss(torch.zeros(3, 1, 2), [[0, 1]], torch.zeros(2, 2))
        >>> round(loss.exp().item(), 4)  # 2 of the 8 sequences, 0 0 1 and 0 1 1, stretch the target
        4.0
    """
    axes = ("(N, T, C)", "(T, C)") if batch_first else ("(T, N, C)", "(T, C)")
    _checks.check_scores("asg_loss", "inputs", _dtype(inputs), _shape(inputs), axes)
    batched = inputs.ndim == 3
    scores = (inputs if batch_first else inputs.transpose(0, 1)) if batched else inputs.unsqueeze(0)
    _checks.check_reduction("asg_loss", reduction)
    _checks.check_option("asg_loss", "scale_mode", scale_mode, SCALE_MODES)
    _check_table("asg_loss", "transitions", transitions, scores, "(C, C)")
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            _check_table("asg_loss", name, ends, scores, "(C,)")
    chosen = dispatch.select("asg_loss", scores.device.type, impl)

    batch = _asg_batch(targets, input_lengths, target_lengths, scores, batched)
    if scores.device.type == "cpu":
        _warn_of_repeats(batch)
    if scores.dtype in (torch.bfloat16, torch.float16):
        # A gradient is the difference of two posteriors, which are not to be rounded before it is taken.
        scores, transitions = scores.float(), transitions.float()
    if start_scores is not None or final_scores is not None:
        scores = _with_ends(scores, batch.input_lengths, start_scores, final_scores)
    dense, chain = pose_asg(*batch, scores.shape[2])
    if chosen == "numba":
        all_paths = dense_losses(scores, dense, transitions)
        target_paths = chain_losses(scores, chain, transitions, logits=False)
    else:
        all_paths = reference_dense.forward(scores, _on_device(dense, scores.device), transitions)
        target_paths = reference_chain.forward(scores, _on_device(chain, scores.device), transitions, logits=False)
    # Where no path spells the target there may be none at all, and infinities must not meet.
    losses = torch.where(target_paths == torch.inf, torch.inf, target_paths - all_paths)
    losses = _finish(losses, scores, zero_infinity)
    sizes = scales(scale_mode, batch.input_lengths, batch.target_lengths)
    if sizes is not None:
        losses = losses / torch.from_numpy(sizes).to(losses)
    reduced = reduce(losses, reduction)
    return reduced if batched or reduction != "none" else reduced[0]


def _asg_batch(
    targets: Integers, input_lengths: Integers | None, target_lengths: Integers | None, scores: Tensor, batched: bool
) -> _checks.Batch:
    """The integers of a call, checked; where no lengths are given every sample is as long as the padded size."""
    num_samples, num_frames, num_classes = scores.shape
    labels = _integers("asg_loss", "targets", targets)
    labels = labels if batched else np.atleast_2d(labels)
    if target_lengths is None and labels.ndim < 2:
        raise InvalidValueError("asg_loss", "target_lengths", "be given where targets are concatenated", None)
    given = {"input_lengths": (input_lengths, num_frames), "target_lengths": (target_lengths, labels.shape[-1])}
    lengths = [
        np.full(num_samples, size) if lengths is None else np.atleast_1d(_integers("asg_loss", name, lengths))
        for name, (lengths, size) in given.items()
    ]
    return _checks.check_batch(
        "asg_loss",
        labels,
        *lengths,
        lengths_name="input_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=None,
    )


_repeats_warned = False


def _warn_of_repeats(batch: _checks.Batch) -> None:
    global _repeats_warned
    sample = None if _repeats_warned else _checks.find_repeat(batch.targets, batch.target_lengths)
    if sample is not None:
        _repeats_warned = True
        warnings.warn(
            f"asg_loss: the target at sample {sample} has two equal neighbours, which ASG cannot tell from one long "
            "label: the loss may be negative. pathsum.replabels writes targets without them. Warned of only once.",
            stacklevel=3,
        )


def _with_ends(
    scores: Tensor, input_lengths: np.ndarray, start_scores: Tensor | None, final_scores: Tensor | None
) -> Tensor:
    """A copy of scores (N, T, C), the start's added to each first frame and the final ones to each last frame."""
    lengths = torch.from_numpy(input_lengths).to(scores.device)
    sample = (lengths > 0).nonzero()[:, 0]
    for ends, frame in ((start_scores, torch.zeros_like(sample)), (final_scores, lengths[sample] - 1)):
        if ends is not None:
            values = ends.to(scores.dtype).expand(len(sample), -1)
            scores = scores.index_put((sample, frame), values, accumulate=True)
    return scores


def _check_table(function: str, argument: str, table: Any, scores: Tensor, axes: str) -> None:
    expected = (scores.shape[2],) * (axes.count("C"))
    _checks.check_table(function, argument, _dtype(table), _shape(table), axes, expected, _dtype(scores))
    _checks.check_device(function, argument, str(table.device), str(scores.device))


def _chain_loss(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    fused_log_softmax: bool,
    batch_first: bool,
    impl: str,
) -> Tensor:
    axes = ("(N, T, C)", "(T, C)") if batch_first else ("(T, N, C)", "(T, C)")
    _checks.check_scores(function, "log_probs", _dtype(log_probs), _shape(log_probs), axes)
    batched = log_probs.ndim == 3
    if batched:
        scores = log_probs if batch_first else log_probs.transpose(0, 1)
    else:
        scores = log_probs.unsqueeze(0)
    num_classes = scores.shape[2]
    blank = _checks.check_blank(function, blank, num_classes)
    _checks.check_reduction(function, reduction)
    chosen = dispatch.select(function, scores.device.type, impl)

    lengths = [
        _integers(function, "input_lengths", input_lengths),
        _integers(function, "target_lengths", target_lengths),
    ]
    batch = _checks.check_batch(
        function,
        _integers(function, "targets", targets),
        *(lengths if batched else [np.atleast_1d(length) for length in lengths]),
        lengths_name="input_lengths",
        num_samples=scores.shape[0],
        num_frames=scores.shape[1],
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
    )
    lattice = pose(*batch, blank)
    if chosen == "numba":
        losses = chain_losses(scores, lattice, logits=fused_log_softmax)
    else:
        losses = reference_chain.forward(scores, _on_device(lattice, scores.device), logits=fused_log_softmax)
    weights = torch.from_numpy(np.maximum(batch.target_lengths, 1)).to(scores.device)
    losses = _finish(losses, scores, zero_infinity)
    reduced = reduce(losses, reduction, weights)
    return reduced if batched or reduction != "none" else reduced[0]


def _pose_grid(
    function: str,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    *,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
) -> GridLattice:
    blank = _checks.check_blank(function, blank, num_classes)
    batch = _checks.check_batch(
        function,
        _integers(function, "targets", targets),
        _integers(function, "logit_lengths", logit_lengths),
        _integers(function, "target_lengths", target_lengths),
        lengths_name="logit_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank,
    )
    return pose_rnnt(*batch, blank)


def _grid_loss(
    function: str,
    logits: Tensor,
    lattice: GridLattice,
    clamp: float,
    reduction: str,
    fused_log_softmax: bool,
    fastemit_lambda: float,
    zero_infinity: bool,
    overwrite_logits: bool,
    rnnt_type: str,
    delay_penalty: float,
    hat: bool,
    impl: str,
) -> Tensor:
    _checks.check_reduction(function, reduction)
    clamp = _checks.check_number(function, "clamp", clamp)
    fastemit_lambda = _checks.check_number(function, "fastemit_lambda", fastemit_lambda, minimum=0.0)
    _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
    delay_penalty = _checks.check_number(function, "delay_penalty", delay_penalty)
    if hat and not fused_log_softmax:
        raise InvalidValueError(function, "hat", "be False with fused_log_softmax=False", True)
    is_variant = rnnt_type != "regular" or delay_penalty != 0 or hat
    if overwrite_logits and is_variant:
        rule = "be False with another rnnt_type than regular, with delay_penalty and with hat"
        raise InvalidValueError(function, "overwrite_logits", rule, True)
    chosen = dispatch.select(function, logits.device.type, impl)
    if overwrite_logits:
        _check_overwrite(function, logits, fused_log_softmax, chosen)
    if is_variant:
        arcs = pose_rnnt_type(lattice, rnnt_type)
        build = rnnt_planes(
            arcs,
            rnnt_type,
            logits=fused_log_softmax,
            hat=bool(hat),
            delay_penalty=delay_penalty,
            fastemit_lambda=fastemit_lambda,
        )
        losses = solve((logits,), arcs, build, chosen, clamp=clamp)
    elif chosen == "numba":
        losses = grid_losses(
            logits,
            lattice,
            logits=fused_log_softmax,
            fastemit_lambda=fastemit_lambda,
            clamp=clamp,
            overwrite_logits=overwrite_logits,
        )
    else:
        losses = reference_grid.forward(
            logits,
            _on_device(lattice, logits.device),
            logits=fused_log_softmax,
            fastemit_lambda=fastemit_lambda,
            clamp=clamp,
        )
    return reduce(_finish(losses, logits, zero_infinity), reduction)


def _check_overwrite(function: str, logits: Tensor, fused_log_softmax: bool, chosen: str) -> None:
    if chosen != "numba":
        raise InvalidValueError(function, "overwrite_logits", f"be False with impl={chosen!r}", True)
    if not fused_log_softmax:
        raise InvalidValueError(function, "overwrite_logits", "be False with fused_log_softmax=False", True)
    if any(step == 0 and size > 1 for size, step in zip(logits.shape, logits.stride(), strict=True)):
        raise InvalidValueError(function, "overwrite_logits", "be False where logits share memory", True)


def _finish(losses: Tensor, scores: Tensor, zero_infinity: bool) -> Tensor:
    """Losses in the dtype of the result, infeasible ones as asked for."""
    losses = losses.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    return torch.where(losses == torch.inf, 0.0, losses) if zero_infinity else losses


def _dtype(scores: Any) -> str:
    return str(scores.dtype).removeprefix("torch.") if isinstance(scores, Tensor) else type(scores).__name__


def _shape(scores: Any) -> tuple[int, ...]:
    return tuple(scores.shape) if isinstance(scores, Tensor) else ()


def _integers(function: str, argument: str, value: Any) -> np.ndarray:
    """A tensor, array or list of integers as an array, its memory shared where it can be."""
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int32, torch.int64):
            raise InvalidTypeError(function, argument, "have dtype int32 or int64", _dtype(value))
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InvalidValueError(function, argument, "be a rectangular array of integers", value) from error
