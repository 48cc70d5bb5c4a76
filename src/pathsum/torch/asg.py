"""The auto segmentation criterion."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from pathsum import _checks
from pathsum.kernels.numba.posing import repeat_in
from pathsum.kernels.reference.log_domain import exact
from pathsum.options import SCALE_MODES, Check, ReductionName, ScaleMode, TorchImpl
from pathsum.reductions import scales
from pathsum.torch._autograd.difference import difference, losses_apart
from pathsum.torch._inputs import Integers
from pathsum.torch._operators import Reduction
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch.paths.asg import both_paths
from pathsum.torch.paths.frames import ChainPaths, DensePaths, centred


def asg_loss(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    reduction: ReductionName = "mean",
    *,
    scale_mode: ScaleMode = "none",
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    batch_first: bool = False,
    zero_infinity: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
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
    every, target = both_paths(
        "asg_loss", inputs, targets, transitions, input_lengths, target_lengths, start_scores, final_scores,
        batch_first=batch_first, check=check, centre=True, impl=impl,
    )  # fmt: skip
    wanted = every.wanted(reduction, zero_infinity)
    _checks.check_option("asg_loss", "scale_mode", scale_mode, SCALE_MODES)
    _warn_of_repeats(target)
    if scale_mode == "none":
        return _differences(every, target, wanted)
    sizes = scales(scale_mode, target.lattice.input_lengths, target.lattice.num_states)
    losses = _differences(every, target, wanted._replace(reduction="none"))
    return every.reduce(losses / as_tensor(sizes).to(losses), reduction)


def _differences(every: DensePaths, target: ChainPaths, wanted: Reduction) -> Tensor:
    """The losses of the target's paths less those of all, reduced; inf where no path spells the target."""
    if every.kernels.own_derivatives:
        return losses_apart((target.kernels, target.call()), (every.kernels, every.call()), wanted)
    # The difference of two log-sums: what they have in common would cost it all digits.
    scores, transitions = centred(exact(every.scores), 2), centred(exact(every.transitions), 0, 1)
    of_all, of_target = (paths.solve(scores, transitions) for paths in (every, target))
    return wanted.of(difference(of_target, of_all))


_repeats_warned = False


def _warn_of_repeats(paths: ChainPaths) -> None:
    global _repeats_warned
    labels, lengths = paths.lattice.step_labels, paths.lattice.num_states
    known = not _repeats_warned and isinstance(labels, np.ndarray) and paths.given.is_cpu
    sample = repeat_in(labels, lengths) if known else -1
    if sample >= 0:
        _repeats_warned = True
        warnings.warn(
            f"asg_loss: the target at sample {sample} has two equal neighbours, which ASG cannot tell from one long "
            "label: the loss may be negative. pathsum.replabels writes targets without them. Warned of only once.",
            stacklevel=3,
        )
