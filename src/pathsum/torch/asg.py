"""The auto segmentation criterion."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import Call, ChainOptions, NoOptions
from pathsum.kernels.reference.log_domain import common, exact, tied
from pathsum.lattice import ChainLattice, DenseLattice
from pathsum.problems.asg import pose_asg
from pathsum.reductions import SCALE_MODES, reduce, scales
from pathsum.torch._autograd.addition import fork
from pathsum.torch._bounded import unread_on
from pathsum.torch._inputs import (
    Integers,
    as_batch,
    as_given,
    as_integer_tensor,
    as_scores,
    as_values,
    check_table,
    finish,
    samples_first,
)
from pathsum.torch._operators import kernels_of
from pathsum.torch._ops.arrays import as_tensor


def asg_loss(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    reduction: str = "mean",
    *,
    scale_mode: str = "none",
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    batch_first: bool = False,
    zero_infinity: bool = False,
    check: str = "async",
    impl: str = "auto",
) -> Tensor:
    """Auto segmentation criterion: the target's share among all label sequences, with learned transitions.

    A sequence pi has one label a frame and the score ``sum over t of inputs[t, pi[t]] + transitions[pi[t], pi[t-1]]``.
    ``loss[n] = log sum over all pi of exp(score) - log sum over the pi that stretch the target of exp(score)``, a
    stretched target giving each label one frame or more.

    Args:
        inputs: Unnormalised scores (T, N, C), or (T, C) for one sample; no softmax is taken. float32, float64,
            bfloat16 or float16, any strides.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. Any integer dtype, a tensor on any
            device, an array or a list. Entries beyond a target's length are never read.
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
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the loss of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

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

        Twice differentiable (``create_graph=True``), by the transitions too, at the cost of 2*T*C*C multiplications a
        Hessian-vector product, of 6*T*C*C with the transitions. A third derivative is had with ``impl="reference"``
        alone.

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
    _checks.check_option("asg_loss", "scale_mode", scale_mode, SCALE_MODES)
    zero_infinity = _checks.check_flag("asg_loss", "zero_infinity", zero_infinity)
    posed = pose_asg_call(
        "asg_loss",
        inputs,
        targets,
        transitions,
        input_lengths,
        target_lengths,
        reduction,
        batch_first,
        impl,
        start_scores=start_scores,
        final_scores=final_scores,
        check=check,
    )
    batch = posed.batch
    if posed.scores.device.type == "cpu" and isinstance(batch.targets, np.ndarray):
        _warn_of_repeats(batch)
    scores, transitions = posed.scores, posed.transitions
    if posed.impl == "reference":
        # The difference of two log-sums: what they have in common would cost it all digits.
        scores, transitions = centred(exact(scores), 2), centred(exact(transitions), 0, 1)
    branches = fork(scores)
    all_paths, target_paths = (
        posed.solve(paths, scores, transitions) for paths, scores in zip(PATHS, branches, strict=True)
    )
    # Where no path spells the target there may be none at all, and infinities must not meet; NaN is NaN there too.
    infeasible = (target_paths == torch.inf) & ~all_paths.isnan()
    losses = torch.where(infeasible, torch.inf, target_paths - all_paths)
    losses = finish(losses, posed.scores, zero_infinity)
    sizes = scales(scale_mode, batch.input_lengths, batch.target_lengths)
    if sizes is not None:
        losses = losses / as_tensor(sizes).to(losses)
    return posed.reduce(losses, reduction)


PATHS = ("all", "target")


class PosedASG(NamedTuple):
    """The arguments of a function on ASG's lattices, checked; no score in half precision any more.

    Attributes:
        scores: (N, T, C), those of the ends added; then less a constant a frame, which all paths have in common.
        transitions: (C, C)
        batch: targets and lengths: NumPy arrays, or tensors where values are unknown.
        all_paths, target_paths: the lattices of ``PATHS``.
        batched: whether the caller's scores had a batch axis.
        impl: the implementation chosen.
    """

    scores: Tensor
    transitions: Tensor
    batch: _checks.Batch
    all_paths: DenseLattice
    target_paths: ChainLattice
    batched: bool
    impl: str

    def solve(self, paths: str, scores: Tensor, transitions: Tensor) -> Tensor:
        """Minus the log-sums (N,) over one of ``PATHS``, in float64."""
        lattice: Any = self.all_paths if paths == "all" else self.target_paths
        name, options = ("dense", NoOptions()) if paths == "all" else ("chain", ChainOptions())
        return kernels_of(self.impl, name).losses(Call((scores, transitions), lattice, options))

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return as_given(reduce(values, reduction), self.batched, reduction)


def pose_asg_call(
    function: str,
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    reduction: str,
    batch_first: bool,
    impl: str,
    *,
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    check: str = "sync",
) -> PosedASG:
    scores, batched = samples_first(function, "inputs", inputs, batch_first)
    transitions, start_scores, final_scores = map(as_scores, (transitions, start_scores, final_scores))
    _checks.check_reduction(function, reduction)
    check_table(function, "transitions", transitions, scores, "(C, C)")
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            check_table(function, name, ends, scores, "(C,)")
    chosen = dispatch.select(function, scores.device.type, impl)
    device = unread_on(function, check, kernels_of(chosen, "dense"), scores, targets, input_lengths, target_lengths)
    batch = _asg_batch(function, targets, input_lengths, target_lengths, scores, batched, device)
    if scores.dtype in (torch.bfloat16, torch.float16):
        # A gradient is the difference of two posteriors, which are not to be rounded before it is taken.
        scores, transitions = scores.float(), transitions.float()
    if start_scores is not None or final_scores is not None:
        ends = (None if table is None else centred(table.to(scores.dtype), 0) for table in (start_scores, final_scores))
        scores = with_ends(centred(scores, 2), batch.input_lengths, *ends)
    return PosedASG(scores, transitions, batch, *pose_asg(*batch, scores.shape[2]), batched, chosen)


def _asg_batch(
    function: str,
    targets: Integers,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    scores: Tensor,
    batched: bool,
    device: torch.device | None,
) -> _checks.Batch:
    """The integers of a call, checked; where no lengths are given every sample is as long as the padded size."""
    num_samples, num_frames, num_classes = scores.shape
    labels = (as_values if device is None else as_integer_tensor)(function, "targets", targets)
    labels = labels if batched or labels.ndim != 1 else labels[None]
    if target_lengths is None and labels.ndim < 2:
        raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
    return as_batch(
        function,
        labels,
        [num_frames] * num_samples if input_lengths is None else input_lengths,
        [labels.shape[-1]] * num_samples if target_lengths is None else target_lengths,
        batched=batched,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=None,
        device=device,
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


def centred(table: Tensor, *dims: int) -> Tensor:
    """Scores less the largest along some axes, a constant: where all paths take one of them it changes no share."""
    return table - common(table, *dims)


def with_ends(scores: Tensor, input_lengths: Any, start_scores: Tensor | None, final_scores: Tensor | None) -> Tensor:
    """A copy of scores (N, T, C), the start's added to each first frame and the final ones to each last frame."""
    if scores.shape[1] == 0:
        return tied(scores, *(ends for ends in (start_scores, final_scores) if ends is not None))
    lengths = as_tensor(input_lengths).to(scores.device)
    sample = torch.arange(len(lengths), device=scores.device)
    for ends, frame in ((start_scores, torch.zeros_like(lengths)), (final_scores, (lengths - 1).clamp(min=0))):
        if ends is not None:
            values = torch.where((lengths > 0)[:, None], ends.to(scores.dtype), 0.0)
            scores = scores.index_put((sample, frame), values, accumulate=True)
    return scores
