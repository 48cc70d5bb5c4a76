"""``warprnnt_pytorch`` (HawkAaron's warp-transducer, and ESPnet's branch of it): ``rnnt_loss`` and ``RNNTLoss``.

The peer's quirks that are kept: the sum and the mean have shape (1,); the mean is over N, though its documentation
speaks of target lengths; the blank may be among the labels, and its column then gets the gradient of both arcs, on the
CPU the label's alone (``corrected=True``: of both). Not kept: T and U need not be reached, integers may be int64, U
above 1023. ESPnet's branch takes ``fastemit_lambda``, 0.001 if not told otherwise; here it is 0 and named by keyword.
"""

from __future__ import annotations

from torch import Tensor, nn

from pathsum.compat.conventions import Integers, as_one, checked, transducer_losses


@checked
def rnnt_loss(
    acts: Tensor,
    labels: Integers,
    act_lens: Integers,
    label_lens: Integers,
    blank: int = 0,
    reduction: str | None = "mean",
    *,
    fastemit_lambda: float = 0.0,
    corrected: bool = False,
    impl: str = "auto",
) -> Tensor:
    """``warprnnt_pytorch.rnnt_loss``.

    Args:
        acts: Joiner output (N, T, U+1, V).
        labels: Labels (N, U), the blank allowed.
        act_lens: Frames of each sample (N,).
        label_lens: Labels of each sample (N,).
        blank: Index of the blank class.
        reduction: ``"sum"``, ``"mean"``; anything else is none, as in the peer.
        fastemit_lambda: As in ``pathsum.torch.rnnt_loss``: of the gradient alone.
        corrected: See the head of this module.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        Losses (N,), or their sum or mean (1,).

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.warp_transducer import rnnt_loss
        >>> loss = rnnt_loss(torch.zeros(1, 2, 2, 2), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
        >>> [round(x, 4) for x in loss.tolist()]
        [1.3863]
    """
    losses = transducer_losses(
        acts,
        labels,
        act_lens,
        label_lens,
        blank,
        fastemit_lambda=fastemit_lambda,
        arcs="both" if corrected or getattr(acts, "is_cuda", False) else "label",
        impl=impl,
    )
    return as_one(losses, reduction)


class RNNTLoss(nn.Module):
    """``warprnnt_pytorch.RNNTLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.warp_transducer import RNNTLoss
        >>> loss = RNNTLoss()(torch.zeros(1, 2, 2, 2), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
        >>> [round(x, 4) for x in loss.tolist()]
        [1.3863]
    """

    @checked
    def __init__(self, blank: int = 0, reduction: str | None = "mean", *, fastemit_lambda: float = 0.0) -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction
        self.fastemit_lambda = fastemit_lambda

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        options = {"blank": self.blank, "reduction": self.reduction, "fastemit_lambda": self.fastemit_lambda}
        return rnnt_loss(acts, labels, act_lens, label_lens, **options)


PLACES = {"warprnnt_pytorch": {"rnnt_loss": rnnt_loss, "RNNTLoss": RNNTLoss}}
