"""Expected risks: what a cost of arcs comes to under the distribution of paths, differentiable by scores and cost."""

from __future__ import annotations

from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._expectations import (
    asg_expectation,
    chain_expectation,
    chain_log_probs,
    pose_rnnt,
    rnnt_expectation,
)
from pathsum.torch._inputs import Integers, as_scores, check_table, dtype_of, finish, shape_of
from pathsum.torch.asg import PATHS, pose_asg_call
from pathsum.torch.ctc import pose_chain


def ctc_expected_risk(
    log_probs: Tensor,
    costs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: str = "mean",
    *,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: str = "auto",
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
        batch_first: ``log_probs`` and ``costs`` are (N, T, C).
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
    return _chain_risk(
        "ctc_expected_risk",
        pose_ctc,
        costs,
        (log_probs, targets, input_lengths, target_lengths, blank, reduction, batch_first, impl),
        reduction,
        fused_log_softmax,
        batch_first,
    )


def simple_ctc_expected_risk(
    log_probs: Tensor,
    costs: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: str = "mean",
    *,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: str = "auto",
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
        batch_first: ``log_probs`` and ``costs`` are (N, T, C).
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
    return _chain_risk(
        "simple_ctc_expected_risk",
        pose_simple_ctc,
        costs,
        (log_probs, targets, input_lengths, target_lengths, blank, reduction, batch_first, impl),
        reduction,
        fused_log_softmax,
        batch_first,
    )


def rnnt_expected_risk(
    logits: Tensor,
    costs: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    rnnt_type: str = "regular",
    impl: str = "auto",
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
    function = "rnnt_expected_risk"
    logits, costs = as_scores(logits), as_scores(costs)
    posed = pose_rnnt(
        function,
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        reduction,
        fused_log_softmax,
        rnnt_type,
        impl,
    )
    _check_costs(function, costs, (*logits.shape[:-1], 2), "(N, T, U+1, 2), (T, U+1, 2) or (rows, 2)", logits)
    costs = posed.read(costs if posed.batched else costs[None])
    return posed.reduce(finish(rnnt_expectation(posed, costs).costs, logits, False), reduction)


def asg_expected_risk(
    inputs: Tensor,
    costs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    reduction: str = "mean",
    *,
    transition_costs: Tensor | None = None,
    paths: str = "target",
    batch_first: bool = False,
    impl: str = "auto",
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
    posed = pose_asg_call(
        function, inputs, targets, transitions, input_lengths, target_lengths, reduction, batch_first, impl
    )
    costs, transition_costs = as_scores(costs), as_scores(transition_costs)
    _check_costs(function, costs, tuple(inputs.shape), "of inputs", posed.scores)
    if transition_costs is not None:
        check_table(function, "transition_costs", transition_costs, posed.scores, "(C, C)")
    expected = asg_expectation(posed, paths, _samples_first(costs, batch_first), transition_costs)
    return posed.reduce(finish(expected.costs, posed.scores, False), reduction)


def _chain_risk(function, pose, costs, arguments, reduction: str, logits: bool, batch_first: bool) -> Tensor:
    logits = _checks.check_flag(function, "fused_log_softmax", logits)
    posed = pose_chain(function, pose, *arguments)
    costs = as_scores(costs)
    _check_costs(function, costs, tuple(arguments[0].shape), "of log_probs", posed.scores)
    expected = chain_expectation(posed, chain_log_probs(posed, logits), _samples_first(costs, batch_first))
    return posed.reduce(finish(expected.costs, posed.scores, False), reduction)


def _check_costs(function: str, costs: Tensor, expected: tuple[int, ...], shape: str, scores: Tensor) -> None:
    _checks.check_scores(function, "costs", dtype_of(costs), shape_of(costs), (",".join("n" * len(expected)),))
    if tuple(costs.shape) != expected:
        raise InvalidValueError(function, "costs", f"have shape {shape} = {expected}", f"shape {tuple(costs.shape)}")
    _checks.check_device(function, "costs", str(costs.device), str(scores.device))


def _samples_first(costs: Tensor, batch_first: bool) -> Tensor:
    if costs.ndim == 2:
        return costs.unsqueeze(0)
    return costs if batch_first else costs.transpose(0, 1)
