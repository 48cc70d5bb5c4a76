"""Log-domain sums whose values and derivatives of any order survive -inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMPOSSIBLE = -torch.inf


def log_sum(terms: Tensor, dim: int) -> Tensor:
    """log(sum(exp(terms))), -inf with zero derivative where every term is -inf."""
    if terms.shape[dim] == 0:
        return terms.sum(dim) + IMPOSSIBLE
    largest = common(terms, dim)
    total = (terms - largest).exp().sum(dim)
    possible = total != 0
    return torch.where(possible, torch.where(possible, total, 1.0).log() + largest.squeeze(dim), IMPOSSIBLE)


def log_add(*terms: Tensor) -> Tensor:
    return log_sum(torch.stack(torch.broadcast_tensors(*terms)), 0)


def log_softmax(scores: Tensor) -> Tensor:
    """Log-probabilities over the last axis; a row of nothing but -inf stays so."""
    # The largest is taken off first: beside 1e17 the log of the sum would be lost.
    scores = scores - common(scores, -1)
    normaliser = log_sum(scores, -1).unsqueeze(-1)
    return scores - torch.where(normaliser == IMPOSSIBLE, 0.0, normaliser)


def common(scores: Tensor, *dims: int) -> Tensor:
    """The largest score along some axes, which stay, as a constant; 0 where all are -inf, and where there is none."""
    if not all(scores.shape[dim] for dim in dims):
        return scores.detach().sum(dims, keepdim=True)
    largest = scores.detach().amax(dims, keepdim=True)
    return torch.where(largest == IMPOSSIBLE, 0.0, largest)


def not_negative(losses: Tensor) -> Tensor:
    """Losses whose paths share a probability of 1: what rounding has left below 0 is 0, and has a gradient still."""
    return torch.where(losses < 0, losses - losses.detach(), losses)


def choose(parts: Sequence[float], left: float) -> tuple[int, float]:
    """Which part of a whole a number in [0, 1) falls in, and what is left of the number, spread over [0, 1) again.

    Rounding may leave a little of a number behind the last part, which takes it.
    """
    possible = [place for place, part in enumerate(parts) if part > 0]
    for place in possible:
        if left < parts[place] or place == possible[-1]:
            return place, min(left / parts[place], 1.0)
        left -= parts[place]
    raise AssertionError("a whole without parts")


def tied(losses: Tensor, *scores: Tensor) -> Tensor:
    """The losses with a graph to the scores, to any order, also where there is no path and they depend on none."""
    nothing = [score.flatten()[:0].exp().sum() for score in scores]
    return losses + sum(nothing)


def exact(scores: Tensor) -> Tensor:
    """The scores in float64, or float32 where the device has no float64."""
    return scores.to(torch.float64 if has_float64(scores.device) else torch.float32)


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"
