"""Expected risks: what a cost of arcs comes to under the distribution of paths, differentiable by scores and cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.options import PATHS, Check, PathSet, ReductionName, RNNTType, Star, TorchImpl
from pathsum.torch._inputs import Integers, as_scores, check_table, dtype_of, shape_of
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.asg import both_paths
from pathsum.torch.paths.base import Paths
from pathsum.torch.paths.ctc import CTC, SIMPLE_CTC, chain_paths
from pathsum.torch.paths.frames import FramePaths
from pathsum.torch.paths.rnnt import grid_paths


def ctc_expected_risk(
    log_probs: Tensor,
    costs: Tensor,
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
    """Expected cost of CTC's alignments of a target.

    A labelling pi of the frames costs ``sum over t of costs[t, pi[t]]``; the expectation is over the labellings that
    read as the target, with the posterior ``q(pi) = p(pi) / sum of p``:
    ``risk[n] = sum over pi of q(pi) cost(pi) = sum over t and c of gamma[t, c] * costs[t, c]``.

    Args:
        log_probs: As in ``ctc_loss``: (T, N, C) or (T, C), log-probabilities or, with ``fused_log_softmax``, logits.
        costs: Of a class in a frame, in the shape of ``log_probs``. Where a class is on no path its cost is not read.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each risk divided by its target length (at least 1), then the
            mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``; ``None``: no such label. With a star ``costs``
            have its column too, (T, N, C+1).
        batch_first: ``log_probs`` and ``costs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the risk of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced risk, float64 for float64 scores and float32 for all others. An infeasible sample has no path, and
        risk 0 with gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where the shape of ``costs`` is not that of ``log_probs``.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        Differentiable by ``costs``, the gradient being the posterior, and by the scores: with respect to
        log-probabilities it is the covariance of the arcs times the cost, ``fisher_vector_product`` of
        ``pathsum.torch.second_order``. Cost: that of the loss and its gradient, and of a Hessian-vector product in
        backward.

    References:
        Eisner (2002), Parameter estimation for probabilistic finite-state transducers; Li, Eisner (2009), First- and
        second-order expectation semirings.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_expected_risk
        >>> costs = torch.tensor([0.0, 1.0]).expand(3, 1, 2)  # one for each frame of the label
        >>> risk = ctc_expected_risk(torch.zeros(3, 1, 2), costs, [[1]], [3], [1], fused_log_softmax=True)
        >>> round(risk.item(), 4)  # three alignments of one such frame, two of two, one of three
        1.6667
    """
    paths = chain_paths(
        "ctc_expected_risk", CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    costs = _frame_costs(paths, costs, batch_first, "log_probs")
    return paths.reduce(paths.expected(costs), reduction)


def simple_ctc_expected_risk(
    log_probs: Tensor,
    costs: Tensor,
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
    """Expected cost of simplified CTC's alignments of a target; see ``ctc_expected_risk``.

    Args:
        log_probs: (T, N, C) or (T, C), log-probabilities or, with ``fused_log_softmax``, logits.
        costs: Of a class in a frame, in the shape of ``log_probs``.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most S.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each risk divided by its target length (at least 1), then the
            mean over N.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``: here one frame; ``None``: no such label.
            With a star ``costs`` have its column too, (T, N, C+1).
        batch_first: ``log_probs`` and ``costs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the risk of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        As ``ctc_expected_risk``.

    Raises:
        InvalidValueError: As in ``ctc_expected_risk``.
        InvalidTypeError: As in ``ctc_expected_risk``.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_expected_risk
        >>> frame = torch.arange(3.0)[:, None, None] * torch.tensor([0.0, 1.0])  # the frame of the label
        >>> risk = simple_ctc_expected_risk(torch.zeros(3, 1, 2), frame, [[1]], [3], [1], fused_log_softmax=True)
        >>> round(risk.item(), 4)  # as often in frame 0 as in 1 and in 2
        1.0
    """
    paths = chain_paths(
        "simple_ctc_expected_risk", SIMPLE_CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, check=check, impl=impl,
    )  # fmt: skip
    costs = _frame_costs(paths, costs, batch_first, "log_probs")
    return paths.reduce(paths.expected(costs), reduction)


def rnnt_expected_risk(
    logits: Tensor,
    costs: Tensor,
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
    """Expected cost of the transducer's alignments of a target.

    A walk costs the sum of the costs of its arcs; the expectation is over the walks that emit the target, with their
    posterior: ``risk[n] = sum over arcs of gamma(arc) * cost(arc)``.

    Args:
        logits: Joiner output (N, T, U+1, V), or (T, U+1, V) for one sample, or packed as in ``rnnt_packed_loss`` (rows,
            V); with ``fused_log_softmax=False`` log-probabilities.
        costs: Of the blank arc, then of the label arc, out of each node: (N, T, U+1, 2) or (rows, 2). Where an arc is
            on no path its cost is not read.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fused_log_softmax: Take the log-softmax inside.
        rnnt_type: As in ``rnnt_loss``.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the risk of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced risk, float64 for float64 logits and float32 for all others. An infeasible sample has risk 0 with
        gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also where the shape of ``costs`` is not as said.
        InvalidTypeError: As in ``rnnt_loss``.

    Notes:
        Differentiable by ``costs`` and by ``logits``. Cost: as in ``rnnt_entropy``.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_expected_risk
        >>> costs = torch.zeros(1, 2, 2, 2)
        >>> costs[..., 1] = torch.arange(2.0)[:, None]  # the frame of the label
        >>> round(rnnt_expected_risk(torch.zeros(1, 2, 2, 2), costs, [[0]], [2], [1]).item(), 4)
        0.5
    """
    paths = grid_paths(
        "rnnt_expected_risk", logits, targets, logit_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, rnnt_type=rnnt_type, check=check, impl=impl,
    )  # fmt: skip
    (head,), costs = paths.heads, as_scores(costs)
    axes = head.shape[0 if paths.batched else 1 : -1]
    _check_costs(paths, costs, (*axes, 2), "(N, T, U+1, 2), (T, U+1, 2) or (rows, 2)", head)
    costs = costs if paths.batched else costs[None]
    return paths.reduce(paths.expected(costs), reduction)


def asg_expected_risk(
    inputs: Tensor,
    costs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    reduction: ReductionName = "mean",
    *,
    transition_costs: Tensor | None = None,
    paths: PathSet = "target",
    batch_first: bool = False,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Expected cost of ASG's label sequences: of those that stretch a target, or of all.

    A sequence pi costs ``sum over t of costs[t, pi[t]] + transition_costs[pi[t], pi[t-1]]`` and has the posterior
    ``q(pi) = exp(score(pi)) / Z`` with the score of ``asg_loss``; ``risk[n] = sum over pi of q(pi) cost(pi)``.

    Args:
        inputs: Unnormalised scores (T, N, C) or (T, C).
        costs: Of a label in a frame, in the shape of ``inputs``.
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C): ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        transition_costs: Of the transitions (C, C), in the order of ``transitions``; none where ``None``.
        paths: ``"target"``: of the sequences that stretch the target; ``"all"``: of all.
        batch_first: ``inputs`` and ``costs`` are (N, T, C).
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the risk of its sample NaN. ``"sync"``: they raise, as elsewhere.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced risk, float64 for float64 inputs and float32 for all others. A sample without paths has risk 0
        with gradient 0; one with a NaN score has NaN.

    Raises:
        InvalidValueError: As in ``asg_loss``; also where costs do not have the shapes of the scores.
        InvalidTypeError: As in ``asg_loss``.

    Notes:
        Differentiable by ``inputs``, ``transitions`` and both costs. Cost: with ``transition_costs`` as in
        ``asg_entropy``; without, one gradient of the loss.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_expected_risk
        >>> costs = torch.tensor([0.0, 1.0]).expand(3, 1, 2)  # one for each frame of label 1
        >>> round(asg_expected_risk(torch.zeros(3, 1, 2), costs, [[0, 1]], torch.zeros(2, 2)).item(), 4)
        1.5
    """
    function = "asg_expected_risk"
    _checks.check_option(function, "paths", paths, PATHS)
    every, target = both_paths(
        function, inputs, targets, transitions, input_lengths, target_lengths, batch_first=batch_first,
        check=check, impl=impl,
    )  # fmt: skip
    among = every if paths == "all" else target
    costs, transition_costs = _frame_costs(among, costs, batch_first, "inputs"), as_scores(transition_costs)
    if transition_costs is not None:
        check_table(function, "transition_costs", transition_costs, among.scores, "(C, C)")
    return among.reduce(among.expected(costs, transition_costs), reduction)


def _check_costs(paths: Paths, costs: Tensor, expected: tuple[int, ...], shape: str, scores: Tensor | Joiner) -> None:
    function = paths.function
    _checks.check_scores(function, "costs", dtype_of(costs), shape_of(costs), (",".join("n" * len(expected)),))
    if tuple(costs.shape) != expected:
        raise InvalidValueError(function, "costs", f"have shape {shape} = {expected}", f"shape {tuple(costs.shape)}")
    _checks.check_device(function, "costs", str(costs.device), str(scores.device))


def _frame_costs(paths: FramePaths, costs: Any, batch_first: bool, argument: str) -> Tensor:
    """Costs (N, T, C) of those that the caller gave in the shape of his scores."""
    costs, (num_samples, num_frames, num_classes) = as_scores(costs), paths.scores.shape
    expected = (num_samples, num_frames) if batch_first else (num_frames, num_samples)
    expected = (*expected, num_classes) if paths.batched else (num_frames, num_classes)
    _check_costs(paths, costs, expected, f"of {argument}", paths.scores)
    if not paths.batched:
        return costs.unsqueeze(0)
    return costs if batch_first else costs.transpose(0, 1)
