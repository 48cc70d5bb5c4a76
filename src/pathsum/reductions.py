"""From one loss a sample to what the caller asked for: the formula of each reduction, in one place."""

from __future__ import annotations

from typing import Any


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


def spread(upstream: Any, reduction: str, count: int, weights: Any = None) -> Any:
    """The transpose of ``reduce``: the upstream gradient of each of so many losses, of that of the reduced loss."""
    if reduction == "none":
        return upstream
    if reduction == "sum":
        return upstream.expand(count)
    each = upstream.expand(count) / count
    return each if weights is None else each / weights


def scales(scale_mode: str, input_lengths: Any, target_lengths: Any) -> Any:
    """What each loss (N,) is divided by before the reduction: T_n or L_n, at least 1, or its square root."""
    if scale_mode == "none":
        return None
    lengths = input_lengths if scale_mode.startswith("input") else target_lengths
    sizes = lengths.clip(1) * 1.0
    return sizes**0.5 if scale_mode.endswith("sqrt") else sizes
