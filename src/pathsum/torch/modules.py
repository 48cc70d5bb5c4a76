"""The public modules: each stores the options of its function."""

from __future__ import annotations

from torch import Tensor, nn

from pathsum.torch.losses import Integers, ctc_loss, rnnt_loss, rnnt_packed_loss, simple_ctc_loss


class _Loss(nn.Module):
    """Options by name, shown by ``repr`` and passed to the function as they are."""

    def __init__(self, **options: object):
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class CTCLoss(_Loss):
    """``ctc_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import CTCLoss
        >>> criterion = CTCLoss(blank=0, reduction="sum", fused_log_softmax=True)
        >>> round(float(criterion(torch.zeros(3, 1, 2), [[1]], [3], [1])), 4)
        0.2877
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        *,
        fused_log_softmax: bool = False,
        batch_first: bool = False,
        impl: str = "auto",
    ):
        super().__init__(
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
            fused_log_softmax=fused_log_softmax,
            batch_first=batch_first,
            impl=impl,
        )

    def forward(
        self, log_probs: Tensor, targets: Integers, input_lengths: Integers, target_lengths: Integers
    ) -> Tensor:
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, **self.options)  # pyright: ignore[reportArgumentType]


class SimpleCTCLoss(_Loss):
    """``simple_ctc_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import SimpleCTCLoss
        >>> criterion = SimpleCTCLoss(reduction="sum", fused_log_softmax=True)
        >>> round(float(criterion(torch.zeros(3, 1, 2), [[1]], [3], [1])), 4)
        0.9808
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        *,
        fused_log_softmax: bool = False,
        batch_first: bool = False,
        impl: str = "auto",
    ):
        super().__init__(
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
            fused_log_softmax=fused_log_softmax,
            batch_first=batch_first,
            impl=impl,
        )

    def forward(
        self, log_probs: Tensor, targets: Integers, input_lengths: Integers, target_lengths: Integers
    ) -> Tensor:
        return simple_ctc_loss(log_probs, targets, input_lengths, target_lengths, **self.options)  # pyright: ignore[reportArgumentType]


class RNNTLoss(_Loss):
    """``rnnt_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import RNNTLoss
        >>> criterion = RNNTLoss(blank=-1)
        >>> round(float(criterion(torch.zeros(1, 2, 2, 2), [[0]], [2], [1])), 4)
        1.3863
    """

    def __init__(
        self,
        blank: int = -1,
        clamp: float = -1,
        reduction: str = "mean",
        fused_log_softmax: bool = True,
        *,
        fastemit_lambda: float = 0.0,
        zero_infinity: bool = False,
        overwrite_logits: bool = False,
        impl: str = "auto",
    ):
        super().__init__(
            blank=blank,
            clamp=clamp,
            reduction=reduction,
            fused_log_softmax=fused_log_softmax,
            fastemit_lambda=fastemit_lambda,
            zero_infinity=zero_infinity,
            overwrite_logits=overwrite_logits,
            impl=impl,
        )

    def forward(self, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers) -> Tensor:
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, **self.options)  # pyright: ignore[reportArgumentType]


class RNNTPackedLoss(RNNTLoss):
    """``rnnt_packed_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import RNNTPackedLoss
        >>> criterion = RNNTPackedLoss(reduction="sum")
        >>> round(float(criterion(torch.zeros(5, 2), [[0], [0]], [2, 1], [1, 0])), 4)
        2.0794
    """

    def forward(self, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers) -> Tensor:
        return rnnt_packed_loss(logits, targets, logit_lengths, target_lengths, **self.options)  # pyright: ignore[reportArgumentType]
