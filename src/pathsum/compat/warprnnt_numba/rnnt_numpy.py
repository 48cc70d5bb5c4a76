"""``warprnnt_numba.rnnt_loss.rnnt_numpy``: the peer's loss written with loops over NumPy, to check others against.

Here it is the reference implementation, on any number of samples at once and differentiable to any order.
"""

from __future__ import annotations

from torch import Tensor, nn

from pathsum.compat.conventions import Integers, as_one, bounded, checked, report, transducer_losses


class RNNTLoss(nn.Module):
    """``rnnt_numpy.RNNTLoss``: the sum over the samples, of shape (1,), FastEmit and clamp as in the peer's CPU loss.

    Example:
        >>> import torch
        >>> from pathsum.compat.warprnnt_numba.rnnt_numpy import RNNTLoss
        >>> arguments = torch.zeros(1, 2, 2, 2), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(RNNTLoss()(*arguments).item(), 4)
        1.3863
    """

    @checked
    def __init__(self, blank: int = 0, fastemit_lambda: float = 0.0, clamp: float = -1.0) -> None:
        super().__init__()
        self.blank = blank
        self.fastemit_lambda = fastemit_lambda
        self.clamp = float(clamp) if clamp > 0 else 0.0

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        losses = transducer_losses(
            bounded(acts, self.clamp),
            labels,
            act_lens,
            label_lens,
            self.blank,
            fastemit_lambda=self.fastemit_lambda,
            arcs="label",
            impl="reference",
        )
        return as_one(report(losses * (1 + self.fastemit_lambda), losses), "sum")
