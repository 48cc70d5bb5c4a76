"""The CRF over k-mers of nanopore base callers."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.options import ReductionName, TorchImpl
from pathsum.problems.crf import BASES, LONGEST, all_kmers, pose_crf
from pathsum.torch._autograd.difference import difference
from pathsum.torch._inputs import Integers, as_batch, finish, samples_first
from pathsum.torch.paths.frames import ChainPaths
from pathsum.torch.paths.graphs import paths_of_graphs


def crf_ctc_loss(
    scores: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers,
    target_lengths: Integers,
    state_len: int,
    reduction: ReductionName = "mean",
    *,
    zero_infinity: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """The CTC-CRF loss of nanopore base callers: the target's share among all sequences of bases.

    The states are the 4**k sequences of k bases, the first base the highest digit. ``scores[t, n, 5*s]`` is that of a
    stay in state s, ``scores[t, n, 5*s + 1 + b]`` that of the move into s that drops base b, counted from 0.
    ``loss[n] = log sum over all paths of exp(score) - log sum over the paths through the target's states of
    exp(score)``.

    Args:
        scores: Unnormalised scores (T, N, 5*4**k), or (T, 5*4**k) for one sample.
        targets: Bases 1 to 4, (N, S) or (sum of target_lengths,). Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T.
        target_lengths: Bases of each sample (N,), at most S.
        state_len: k, at least 1.
        reduction: ``"none"``: losses (N,). ``"sum"``. ``"mean"``: each divided by its target length (at least 1), then
            the mean over N.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        batch_first: ``scores`` are (N, T, 5*4**k).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: (a ValueError) a number of classes that is not 5*4**k, a base that is not 1 to 4, a length
            out of range.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        All sequences start and end in any state; the target's paths start in its first state before the first frame, so
        that T frames have room for T + k bases. A target of fewer bases than k has no state, and is infeasible: loss
        infinity, gradient exactly 0. Twice differentiable. Cost: T*5*4**k a sample.

    References:
        Oxford Nanopore Technologies, bonito, ``bonito.crf``; SeqdistModel (2020), seqdist.

    Example:
        >>> import torch
        >>> from pathsum.torch import crf_ctc_loss
        >>> loss = crf_ctc_loss(torch.zeros(2, 1, 20), [[1, 2]], [2], [2], state_len=1, reduction="none")
        >>> round(loss.exp().item(), 4)  # 2 of 4 * 5 * 5 paths: the move in either frame
        50.0
    """
    function = "crf_ctc_loss"
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    state_len = _checks.check_count(function, "state_len", state_len, 1, LONGEST)
    given, batched = samples_first(function, "scores", scores, batch_first, "5*4**k")
    num_classes = (1 + BASES) * BASES**state_len
    if given.shape[2] != num_classes:
        rule = f"have 5*4**k = {num_classes} classes with k = {state_len}"
        raise InvalidValueError(function, "scores", rule, f"shape {tuple(given.shape)}")
    lengths = input_lengths if batched else np.atleast_1d(np.asarray(input_lengths))
    every = paths_of_graphs(
        function, given, all_kmers(state_len), lengths, batch_first=True, impl=impl, scores_name="scores"
    )
    batch = as_batch(
        function,
        targets,
        input_lengths,
        target_lengths,
        batched=batched,
        num_samples=given.shape[0],
        num_frames=given.shape[1],
        max_labels=None,
        num_classes=1 + BASES,
        blank=0,
    )
    assert isinstance(batch, _checks.Batch)
    target = ChainPaths(
        function, given, None, pose_crf(*batch, state_len), dispatch.kernels_of(every.impl, "chain"), batched
    )
    target.target_lengths = batch.target_lengths
    losses = difference(target.exact_losses(), every.exact_losses())
    return target.reduce(finish(losses, given, zero_infinity), reduction)
