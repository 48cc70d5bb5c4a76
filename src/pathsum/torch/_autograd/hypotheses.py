"""CTC's log-probability of several hypotheses a sample, by the compiled kernels, under autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import hypotheses as kernels
from pathsum.torch._operators import from_arrays, to_arrays
from pathsum.torch._ops.arrays import as_strided, empty_gradient


class Question(NamedTuple):
    """Hypotheses of the samples of scores (N, T, C).

    Attributes:
        input_lengths: (N,)
        tokens, lengths: (N, K, S) and (N, K), no length below 0.
        blank: The blank's class.
        logits: Whether the log-softmax is to be taken.
    """

    input_lengths: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    blank: int
    logits: bool


def log_probs_of(scores: Tensor, question: Question, differentiable: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, K) in float64. ``differentiable`` gives the same of the scores by operations that have second derivatives."""
    if torch.is_grad_enabled() and scores.requires_grad:
        return _LogProbs.apply(scores, question, differentiable)
    return torch.from_numpy(_forward(scores, question, False).log_probs)


def _forward(scores: Tensor, question: Question, need_gradient: bool) -> kernels.HypothesesSaved:
    lengths, tokens, own_lengths, blank, logits = question
    columns = kernels.columns_of(tokens, own_lengths, blank, scores.shape[2])
    return kernels.forward(
        as_strided(scores), scores.shape[2], lengths, tokens, own_lengths, columns, logits=logits,
        need_gradient=need_gradient, num_threads=torch.get_num_threads(),
    )  # fmt: skip


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, question: Question, differentiable: Any) -> Tensor:
        saved = from_arrays(_forward(scores, question, True))
        ctx.save_for_backward(scores, *saved)
        ctx.question, ctx.differentiable = question, differentiable
        return saved[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        scores, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            (gradient,) = torch.autograd.grad(ctx.differentiable(scores), scores, upstream, create_graph=True)
            return gradient, None, None
        lengths, tokens, own_lengths, blank, logits = ctx.question
        gradient = empty_gradient(scores)
        kernels.backward(
            upstream.numpy(), as_strided(scores), scores.shape[2], lengths, tokens, own_lengths, blank,
            to_arrays(kernels.HypothesesSaved(*saved)), as_strided(gradient), scores.shape[1], logits=logits,
            num_threads=torch.get_num_threads(),
        )  # fmt: skip
        return gradient, None, None
