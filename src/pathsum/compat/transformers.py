"""``tdt_loss`` of transformers (``transformers.loss.loss_tdt``), which trains ``ParakeetForTDT``.

The peer's quirks that are kept: ``"mean"`` divides by target lengths, so that an empty target makes it infinite; half
precision has its loss in float32. Not kept: float64 computed in float32; NaN gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pathsum.compat.conventions import Integers, checked
from pathsum.compat.nemo import reduce
from pathsum.errors import InvalidValueError
from pathsum.torch import tdt_loss as _tdt_loss

REDUCTIONS = ("mean_volume", "mean_batch", "mean", "sum", "none")


@checked
def tdt_loss(
    token_logits: Tensor,
    duration_logits: Tensor,
    targets: Integers,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank_token_id: int,
    durations: Sequence[int],
    sigma: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """``transformers.loss.loss_tdt.tdt_loss``.

    Args:
        token_logits: Logits of labels and blank (N, T, U+1, V).
        duration_logits: Logits of durations (N, T, U+1, D).
        targets: Labels (N, U).
        logit_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank_token_id: Index of the blank.
        durations: Frames that each of the D durations advances.
        sigma: Taken from every log-probability of labels and blank.
        reduction: ``"mean_volume"``, ``"mean_batch"``, ``"mean"``, ``"sum"`` or ``"none"``: NeMo's.

    Returns:
        The reduced loss.

    Raises:
        ValueError: Another reduction; as in ``pathsum.torch.tdt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.transformers import tdt_loss
        >>> heads, integers = (torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 2, 3)), torch.tensor([[0]])
        >>> round(tdt_loss(*heads, integers, torch.tensor([3]), torch.tensor([1]), 3, [0, 1, 2], sigma=0.05).item(), 6)
        4.155739
    """
    if reduction not in REDUCTIONS:
        raise InvalidValueError("tdt_loss", "reduction", f"be one of {', '.join(REDUCTIONS)}", repr(reduction))
    losses = _tdt_loss(
        token_logits, duration_logits, targets, logit_lengths, target_lengths, durations, blank_token_id,
        sigma=sigma, reduction="none",
    )  # fmt: skip
    return reduce(losses, target_lengths, reduction)


PLACES: dict[str, dict[str, Any]] = {"transformers.loss.loss_tdt": {"tdt_loss": tdt_loss}}
