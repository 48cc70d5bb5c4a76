"""``optimized_transducer.transducer_loss`` and ``TransducerLoss``.

The peer's quirks that are kept: there is no reduction "none"; with ``one_sym_per_frame`` the last frame is a blank. Not
kept: the peer writes the gradient over the logits, here they stay, except where ``overwrite_logits`` asks for it; its
module cannot be made (its initialiser does not call that of ``Module``), here it can; integers may be int64.
"""

from __future__ import annotations

from torch import Tensor, nn

from pathsum.compat.conventions import Integers, checked, reduced, transducer_losses


@checked
def transducer_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int,
    from_log_softmax: bool,
    one_sym_per_frame: bool = False,
    reduction: str = "mean",
    *,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """``optimized_transducer.transducer_loss``.

    Args:
        logits: (sum of T_n*(U_n+1), V), the rows of each sample in turn.
        targets: Labels (N, U).
        logit_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank class.
        from_log_softmax: ``logits`` are log-probabilities.
        one_sym_per_frame: A label takes its frame; the last frame is a blank.
        reduction: ``"mean"`` over N, or ``"sum"``.
        overwrite_logits: As in ``pathsum.torch.rnnt_packed_loss``: backward writes the gradient over the logits.
        impl: As in ``pathsum.torch.rnnt_packed_loss``.

    Returns:
        The reduced loss.

    Raises:
        AssertionError: Another reduction.
        InvalidValueError: As in ``pathsum.torch.rnnt_packed_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.optimized_transducer import transducer_loss
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> loss = transducer_loss(torch.zeros(4, 2), torch.tensor([[1]]), *lengths, 0, from_log_softmax=False)
        >>> round(loss.item(), 4)
        1.3863
    """
    assert reduction in ("mean", "sum")
    losses = transducer_losses(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        fused_log_softmax=not from_log_softmax,
        rnnt_type="one_sym_per_frame" if one_sym_per_frame else "regular",
        overwrite_logits=overwrite_logits,
        impl=impl,
    )
    return reduced("transducer_loss", losses, reduction)


class TransducerLoss(nn.Module):
    """``optimized_transducer.TransducerLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.optimized_transducer import TransducerLoss
        >>> criterion = TransducerLoss(blank=0)
        >>> lengths = torch.tensor([2]), torch.tensor([1])
        >>> round(criterion(torch.zeros(4, 2), torch.tensor([[1]]), *lengths, from_log_softmax=False).item(), 4)
        1.3863
    """

    @checked
    def __init__(self, blank: int, reduction: str = "mean") -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction

    @checked
    def forward(
        self,
        logits: Tensor,
        targets: Integers,
        logit_lengths: Integers,
        target_lengths: Integers,
        from_log_softmax: bool,
        one_sym_per_frame: bool = False,
    ) -> Tensor:
        options = (self.blank, from_log_softmax, one_sym_per_frame, self.reduction)
        return transducer_loss(logits, targets, logit_lengths, target_lengths, *options)


PLACES = {"optimized_transducer": {"transducer_loss": transducer_loss, "TransducerLoss": TransducerLoss}}
