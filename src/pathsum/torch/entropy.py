"""Entropies of the distribution of paths: how undecided a model is between the alignments of a target."""

from __future__ import annotations

from torch import Tensor

from pathsum import _checks
from pathsum.options import PATHS, Check, PathSet, ReductionName, RNNTType, Star, TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.paths.asg import both_paths
from pathsum.torch.paths.ctc import CTC, SIMPLE_CTC, chain_paths
from pathsum.torch.paths.rnnt import grid_paths


def ctc_entropy(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Entropy, in nats, of CTC's alignments of a target.

    The labellings pi of the frames that read as the target have the posterior ``q(pi) = p(pi) / sum of p`` over all of
    them. ``entropy[n] = -sum over pi of q(pi) log q(pi) = log Z - sum over t and c of gamma[t, c] * log_probs[t, c]``,
    gamma being the posterior of class c in frame t.

    Args:
        log_probs: As in ``ctc_loss``: (T, N, C) or (T, C), log-probabilities or, with ``fused_log_softmax``, logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each entropy divided by its target length (at least 1), then
            the mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the entropy of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced entropy, float64 for float64 scores and float32 for all others; from 0 to the log of the number of
        paths. An infeasible sample has no path, and entropy 0 with gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        Differentiable; the gradient is the Hessian of ``ctc_loss`` times the scores. Cost: that of the loss and its
        gradient, and of a Hessian-vector product in backward.

    References:
        Liu, Jin, Zhang (2018), Connectionist temporal classification with maximum entropy regularization.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_entropy
        >>> entropy = ctc_entropy(torch.zeros(3, 1, 2), [[1]], [3], [1], fused_log_softmax=True)
        >>> round(entropy.exp().item(), 4)  # six alignments, all as likely
        6.0
    """
    paths = chain_paths(
        "ctc_entropy", CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    return paths.reduce(paths.entropy(), reduction)


def simple_ctc_entropy(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Entropy, in nats, of simplified CTC's alignments of a target; see ``ctc_entropy``.

    Args:
        log_probs: (T, N, C) or (T, C), log-probabilities or, with ``fused_log_softmax``, logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each entropy divided by its target length (at least 1), then
            the mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``: here one frame; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the entropy of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        As ``ctc_entropy``.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_entropy
        >>> entropy = simple_ctc_entropy(torch.zeros(3, 1, 2), [[1]], [3], [1], fused_log_softmax=True)
        >>> round(entropy.exp().item(), 4)  # three alignments
        3.0
    """
    paths = chain_paths(
        "simple_ctc_entropy", SIMPLE_CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    return paths.reduce(paths.entropy(), reduction)


def rnnt_entropy(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    reduction: ReductionName = "mean",
    fused_log_softmax: bool = True,
    *,
    rnnt_type: RNNTType = "regular",
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Entropy, in nats, of the transducer's alignments of a target.

    ``entropy[n] = log Z - sum over arcs of gamma(arc) * log p(class of arc | t, u)``, gamma being the posterior of an
    arc among the walks that emit the target.

    Args:
        logits: Joiner output (N, T, U+1, V), or (T, U+1, V) for one sample, or packed as in ``rnnt_packed_loss`` (rows,
            V); with ``fused_log_softmax=False`` log-probabilities.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        rnnt_type: As in ``rnnt_loss``.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the entropy of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced entropy, float64 for float64 logits and float32 for all others. An infeasible sample has entropy 0
        with gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: As in ``rnnt_loss``.

    Notes:
        Differentiable. Cost: one pass over the logits in forward and one in backward; beside them as much as a loss, a
        gradient and a Hessian-vector product on the two planes (t, u) of arc scores.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_entropy
        >>> entropy = rnnt_entropy(torch.zeros(1, 2, 2, 2), [[0]], [2], [1])
        >>> round(entropy.exp().item(), 4)  # two walks
        2.0
    """
    paths = grid_paths(
        "rnnt_entropy", logits, targets, logit_lengths, target_lengths, blank, fused_log_softmax=fused_log_softmax,
        rnnt_type=rnnt_type, check=check, impl=impl,
    )  # fmt: skip
    return paths.reduce(paths.entropy(), reduction)


def asg_entropy(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    reduction: ReductionName = "mean",
    *,
    paths: PathSet = "target",
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Entropy, in nats, of ASG's label sequences: of those that stretch a target, or of all.

    ``entropy[n] = log Z - E[score]`` with the score of ``asg_loss`` and ``q(pi) = exp(score(pi)) / Z``.

    Args:
        inputs: Unnormalised scores (T, N, C) or (T, C).
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C): ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        paths: ``"target"``: of the sequences that stretch the target; ``"all"``: of all.
        batch_first: ``inputs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the entropy of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced entropy, float64 for float64 inputs and float32 for all others. A sample without paths has entropy
        0 with gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``asg_loss``.
        InvalidTypeError: As in ``asg_loss``.

    Notes:
        Differentiable by ``inputs`` and ``transitions``. Cost: as many gradients of the loss with respect to
        ``transitions`` as there are samples, each of one sample.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_entropy
        >>> scores, transitions = torch.zeros(3, 1, 2), torch.zeros(2, 2)
        >>> round(asg_entropy(scores, [[0, 1]], transitions).exp().item(), 4)  # 0 0 1 and 0 1 1
        2.0
        >>> round(asg_entropy(scores, [[0, 1]], transitions, paths="all").exp().item(), 4)
        8.0
    """
    _checks.check_option("asg_entropy", "paths", paths, PATHS)
    every, target = both_paths(
        "asg_entropy", inputs, targets, transitions, input_lengths, target_lengths, batch_first=batch_first,
        check=check, impl=impl,
    )  # fmt: skip
    among = every if paths == "all" else target
    return among.reduce(among.entropy(), reduction)
