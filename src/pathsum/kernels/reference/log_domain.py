"""Log-domain sums whose values and derivatives of any order survive -inf."""

from __future__ import annotations

import torch
from torch import Tensor

IMPOSSIBLE = -torch.inf


def log_sum(terms: Tensor, dim: int) -> Tensor:
    """log(sum(exp(terms))), -inf with zero derivative where every term is -inf."""
    if terms.shape[dim] == 0:
        return terms.sum(dim) + IMPOSSIBLE
    largest = terms.detach().amax(dim, keepdim=True)
    largest = torch.where(largest == IMPOSSIBLE, 0.0, largest)
    total = (terms - largest).exp().sum(dim)
    possible = total != 0
    return torch.where(possible, torch.where(possible, total, 1.0).log() + largest.squeeze(dim), IMPOSSIBLE)


def log_add(*terms: Tensor) -> Tensor:
    return log_sum(torch.stack(torch.broadcast_tensors(*terms)), 0)


def log_softmax(scores: Tensor) -> Tensor:
    """Log-probabilities over the last axis; a row of nothing but -inf stays so."""
    normaliser = log_sum(scores, -1).unsqueeze(-1)
    return scores - torch.where(normaliser == IMPOSSIBLE, 0.0, normaliser)


def exact(scores: Tensor) -> Tensor:
    """The scores in float64, or float32 where the device has no float64."""
    return scores.to(torch.float32 if scores.device.type == "mps" else torch.float64)
