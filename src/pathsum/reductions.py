"""From one loss a sample to what the caller asked for: the formula of each reduction, in one place."""

from __future__ import annotations

from typing import Any

REDUCTIONS = ("none", "mean", "sum")


def reduce(losses: Any, reduction: str, weights: Any = None) -> Any:
    """Reduce losses (N,).

    none: losses
    sum:  sum over n of losses[n]
    mean: sum over n of losses[n] / weights[n] / N, the weights being 1 where none are given. CTC divides by the
          target length, at least 1.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses if weights is None else losses / weights).mean()
