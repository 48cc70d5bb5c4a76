"""``warpctc_pytorch.CTCLoss``, the binding of warp-ctc.

The peer's quirks that are kept: ``acts`` are logits; labels are concatenated; the reduced loss has shape (1,), the
unreduced losses (N, 1). Not kept: the loss 0 of a target that does not fit, which here is infinite with gradient 0;
float32 and int32 alone; losses of a GPU's scores on the CPU; the extension's ``cpu_ctc`` and ``gpu_ctc``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pathsum.compat.conventions import checked
from pathsum.torch import ctc_loss


class CTCLoss(nn.Module):
    """``warpctc_pytorch.CTCLoss``.

    Args:
        blank: Index of the blank class.
        size_average: Divide the sum by N.
        length_average: Divide the sum by the number of all frames, whatever ``size_average`` says.
        reduce: The sum, or its average; otherwise losses (N, 1).

    Example:
        >>> import torch
        >>> from pathsum.compat.warpctc_pytorch import CTCLoss
        >>> integers = torch.tensor([1]), torch.tensor([3]), torch.tensor([1])
        >>> [round(x, 4) for x in CTCLoss()(torch.zeros(3, 1, 2), *integers).tolist()]
        [0.2877]
    """

    @checked
    def __init__(
        self, blank: int = 0, size_average: bool = False, length_average: bool = False, reduce: bool = True
    ) -> None:
        super().__init__()
        self.blank = blank
        self.size_average = size_average
        self.length_average = length_average
        self.reduce = reduce

    @checked
    def forward(self, acts: Tensor, labels: Tensor, act_lens: Tensor, label_lens: Tensor) -> Tensor:
        losses = ctc_loss(acts, labels, act_lens, label_lens, self.blank, "none", fused_log_softmax=True)
        if not self.reduce:
            return losses[:, None]
        total = losses.sum()[None]
        if self.length_average:
            return total / torch.as_tensor(act_lens).sum().item()
        return total / acts.shape[1] if self.size_average else total


PLACES: dict[str, dict[str, Any]] = {"warpctc_pytorch": {"CTCLoss": CTCLoss}}
