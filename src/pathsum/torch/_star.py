"""The star: a class of its own behind the others, that stands in a target for what has no class.

It enters by the first of the three doors of a variant: a column more in the scores, which the lattice then reads as it
reads any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import log_softmax, log_sum
from pathsum.torch._ops.arrays import as_tensor, work_dtype


def append_star(scores: Tensor, input_lengths: Any, blank: int, star: str, *, logits: bool) -> Tensor:
    """Log-probabilities (N, T, C+1) of scores (N, T, C), the last column being the star's.

    ``"any"``: 0, the probability of any class at all. ``"label"``: the log-sum of all classes but the blank.
    """
    lengths = as_tensor(input_lengths).to(scores.device)
    real = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
    # Padding is not to be read, and a log-sum would read it.
    scores = torch.where(real[:, :, None], scores.to(work_dtype(scores)), 0.0)
    if logits:
        scores = log_softmax(scores)
    if star == "any":
        column = torch.zeros_like(scores[:, :, :1])
    else:
        column = log_sum(torch.cat([scores[:, :, :blank], scores[:, :, blank + 1 :]], 2), 2).unsqueeze(2)
    return torch.cat([scores, column], 2)
