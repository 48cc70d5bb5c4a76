"""``warprnnt_numba``: ``RNNTLossNumba``, ``rnnt_loss``, ``numba_utils`` and, in ``rnnt_numpy``, its slow reference.

The peer's quirks that are kept: the sum and the mean over N have shape (1,); with FastEmit the reported loss is the
negative log-likelihood times ``1 + fastemit_lambda``; on the CPU ``clamp`` bounds the gradient behind the upstream one,
the division by N included, elsewhere before it; the blank may be among the labels, and its column then gets the
gradient of both arcs, on the CPU the label's alone. ``corrected=True`` reports the likelihood, clamps before the
upstream gradient and keeps both arcs, on every device. Not kept: of labels wider than U the peer reads, on the CPU,
every sample's but the first's from the wrong place; T and U need not be reached, integers may be int64, scores strided,
U above 1023; the loss of an infeasible sample is infinity with gradient 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from pathsum.compat.conventions import Integers, as_one, bounded, checked, report, transducer_losses
from pathsum.compat.warprnnt_numba import numba_utils as numba_utils
from pathsum.compat.warprnnt_numba import rnnt_numpy as rnnt_numpy

__NUMBA_MINIMUM_VERSION__ = numba_utils.__NUMBA_MINIMUM_VERSION__


@checked
def rnnt_loss(
    acts: Tensor,
    labels: Integers,
    act_lens: Integers,
    label_lens: Integers,
    blank: int = 0,
    reduction: str | None = "mean",
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    *,
    corrected: bool = False,
    impl: str = "auto",
) -> Tensor:
    """``warprnnt_numba.rnnt_loss.rnnt_pytorch.rnnt_loss``.

    Args:
        acts: Joiner output (N, T, U+1, V).
        labels: Labels (N, U), or wider; the blank allowed.
        act_lens: Frames of each sample (N,).
        label_lens: Labels of each sample (N,).
        blank: Index of the blank class.
        reduction: ``"sum"``, ``"mean"``; anything else is none, as in the peer.
        fastemit_lambda: FastEmit; the loss is multiplied too.
        clamp: Where positive, bound the gradient.
        corrected: See the head of this module.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        Losses (N,), or their sum or mean (1,).

    Raises:
        ValueError: ``clamp`` is negative; also as in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.warprnnt_numba import rnnt_loss
        >>> arguments = torch.zeros(1, 2, 2, 2), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(rnnt_loss(*arguments, fastemit_lambda=1.0).item() / rnnt_loss(*arguments).item(), 4)
        2.0
    """
    if clamp < 0:
        raise ValueError("`clamp` must be 0.0 or positive float value.")
    late = not getattr(acts, "is_cuda", False) and not corrected
    losses = transducer_losses(
        bounded(acts, clamp) if late else acts,
        labels,
        act_lens,
        label_lens,
        blank,
        clamp=-1 if late else clamp,
        fastemit_lambda=fastemit_lambda,
        arcs="label" if late else "both",
        impl=impl,
    )
    if fastemit_lambda and not corrected:
        losses = report(losses * (1 + fastemit_lambda), losses)
    return as_one(losses, reduction)


class RNNTLossNumba(nn.Module):
    """``warprnnt_numba.RNNTLossNumba``: ``rnnt_loss`` with its options stored; a ``clamp`` below 0 is off.

    Example:
        >>> import torch
        >>> from pathsum.compat.warprnnt_numba import RNNTLossNumba
        >>> arguments = torch.zeros(1, 2, 2, 2), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> RNNTLossNumba(blank=0, reduction="sum")(*arguments).shape
        torch.Size([1])
    """

    @checked
    def __init__(
        self, blank: int = 0, reduction: str | None = "mean", fastemit_lambda: float = 0.0, clamp: float = -1
    ) -> None:
        super().__init__()
        self.blank = blank
        self.fastemit_lambda = fastemit_lambda
        self.clamp = float(clamp) if clamp > 0 else 0.0
        self.reduction = reduction

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        options = (self.blank, self.reduction, self.fastemit_lambda, self.clamp)
        return rnnt_loss(acts, labels, act_lens, label_lens, *options)


_RNNT_LOSS = "warprnnt_numba.rnnt_loss"
PLACES = {
    "warprnnt_numba": {"RNNTLossNumba": RNNTLossNumba},
    _RNNT_LOSS: {"RNNTLossNumba": RNNTLossNumba},
    f"{_RNNT_LOSS}.rnnt_pytorch": {"RNNTLossNumba": RNNTLossNumba, "rnnt_loss": rnnt_loss},
}
HELPERS = {
    "warprnnt_numba": {"numba_utils": numba_utils, "__NUMBA_MINIMUM_VERSION__": __NUMBA_MINIMUM_VERSION__},
    "warprnnt_numba.numba_utils": numba_utils.NAMES,
    f"{_RNNT_LOSS}.rnnt_numpy": {"RNNTLoss": rnnt_numpy.RNNTLoss},
}
