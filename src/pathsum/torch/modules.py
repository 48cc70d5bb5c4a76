"""The public modules: each stores the options of its function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathsum.torch._inputs import Integers
from pathsum.torch.asg import asg_loss
from pathsum.torch.ctc import ctc_loss, simple_ctc_loss
from pathsum.torch.joint import rnnt_joint_loss
from pathsum.torch.rnnt import rnnt_loss, rnnt_packed_loss


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
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        hat: bool = False,
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
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            hat=hat,
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


class ASGLoss(_Loss):
    """``asg_loss`` with its transitions as a parameter and its options stored.

    Args:
        num_labels: How many classes C the inputs have.
        reduction: As in ``asg_loss``; so are the options below that are not named here.
        learn_start: Also have a parameter ``start_scores``.
        learn_final: Also have a parameter ``final_scores``.

    Attributes:
        transition: (C, C), zeros at first; ``transition[i, j]`` scores passing from label j to label i.
        start_scores, final_scores: (C,), zeros at first, or ``None``.

    Example:
        >>> import torch
        >>> from pathsum.torch import ASGLoss
        >>> criterion = ASGLoss(2, reduction="sum")
        >>> round(float(criterion(torch.zeros(3, 1, 2), [[0, 1]])), 4)
        1.3863
    """

    def __init__(
        self,
        num_labels: int,
        reduction: str = "mean",
        *,
        scale_mode: str = "none",
        learn_start: bool = False,
        learn_final: bool = False,
        batch_first: bool = False,
        zero_infinity: bool = False,
        impl: str = "auto",
    ):
        super().__init__(
            reduction=reduction,
            scale_mode=scale_mode,
            batch_first=batch_first,
            zero_infinity=zero_infinity,
            impl=impl,
        )
        self.num_labels = num_labels
        self.transition = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.start_scores = nn.Parameter(torch.zeros(num_labels)) if learn_start else None
        self.final_scores = nn.Parameter(torch.zeros(num_labels)) if learn_final else None

    def extra_repr(self) -> str:
        return f"{self.num_labels}, {super().extra_repr()}"

    def forward(
        self,
        inputs: Tensor,
        targets: Integers,
        input_lengths: Integers | None = None,
        target_lengths: Integers | None = None,
    ) -> Tensor:
        return asg_loss(
            inputs,
            targets,
            self.transition,
            input_lengths,
            target_lengths,
            start_scores=self.start_scores,
            final_scores=self.final_scores,
            **self.options,  # pyright: ignore[reportArgumentType]
        )


class RNNTJointLoss(_Loss):
    """``rnnt_joint_loss`` with its options stored; the joiner's weight and bias stay the caller's.

    Example:
        >>> import torch
        >>> from pathsum.torch import RNNTJointLoss
        >>> criterion = RNNTJointLoss(activation="relu")
        >>> output = torch.nn.Linear(3, 2, bias=False)
        >>> loss = criterion(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), output.weight, None, [[0]], [2], [1])
        >>> round(loss.item(), 4)
        1.3863
    """

    def __init__(
        self,
        blank: int = -1,
        *,
        activation: str = "tanh",
        reduction: str = "mean",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        zero_infinity: bool = False,
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        gate: float | None = None,
        tile_memory: int = 2**25,
        impl: str = "auto",
    ):
        super().__init__(
            blank=blank,
            activation=activation,
            reduction=reduction,
            fastemit_lambda=fastemit_lambda,
            clamp=clamp,
            zero_infinity=zero_infinity,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            gate=gate,
            tile_memory=tile_memory,
            impl=impl,
        )

    def forward(
        self,
        encoder_out: Tensor,
        predictor_out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Integers,
        logit_lengths: Integers,
        target_lengths: Integers,
    ) -> Tensor:
        given = (encoder_out, predictor_out, weight, bias, targets, logit_lengths, target_lengths)
        return rnnt_joint_loss(*given, **self.options)  # pyright: ignore[reportArgumentType]
