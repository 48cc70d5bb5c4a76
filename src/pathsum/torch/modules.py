"""The public modules: each stores the options of its function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pathsum import _checks
from pathsum.errors import ImplementationError
from pathsum.options import Activation, Check, Final, ReductionName, RNNTType, ScaleMode, Star, TorchImpl
from pathsum.torch._inputs import Integers
from pathsum.torch.asg import asg_loss
from pathsum.torch.ctc import ctc_loss, simple_ctc_loss
from pathsum.torch.graphs import lattice_loss
from pathsum.torch.joiner import Joiner
from pathsum.torch.joint import rnnt_joint_loss
from pathsum.torch.linear import ctc_linear_loss
from pathsum.torch.paths.graphs import MEMORY, Graphs
from pathsum.torch.rnnt import rnnt_loss, rnnt_packed_loss
from pathsum.torch.variants import ar_rnnt_loss, multi_blank_rnnt_loss, tdt_loss, wildcard_rnnt_loss


def refuse_script(name: str) -> NoReturn:
    """Raise what ``torch.jit.script`` is answered with: it compiles Python's source, and a loss is not all of that."""
    raise ImplementationError(
        f"{name}: TorchScript cannot compile it; script the model without its loss, "
        "which takes what the model returns, or use torch.compile or torch.export"
    )


class _Loss(nn.Module):
    """Options by name, shown by ``repr`` and passed to the function as they are.

    Args:
        options: The ``locals()`` of a module's ``__init__``, of which ``self`` and what is not passed on are left out.
    """

    def __init__(self, options: dict[str, Any], *, without: tuple[str, ...] = ()):
        super().__init__()
        left_out = ("self", "__class__", *without)
        self.options = {name: value for name, value in options.items() if name not in left_out}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)


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
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        *,
        fused_log_softmax: bool = False,
        star: Star | None = None,
        batch_first: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self, log_probs: Tensor, targets: Integers, input_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, **self.options)


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
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        *,
        fused_log_softmax: bool = False,
        star: Star | None = None,
        batch_first: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self, log_probs: Tensor, targets: Integers, input_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return simple_ctc_loss(log_probs, targets, input_lengths, target_lengths, **self.options)


class LatticeLoss(_Loss):
    """``lattice_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.graphs import ctc_topology
        >>> from pathsum.torch import LatticeLoss
        >>> criterion = LatticeLoss(fused_log_softmax=True)
        >>> abs(round(criterion(torch.zeros(3, 1, 2), ctc_topology(2)).item(), 4))
        0.0
    """

    def __init__(
        self,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        *,
        fused_log_softmax: bool = False,
        batch_first: bool = False,
        memory_limit: int = MEMORY,
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self,
        log_probs: Tensor,
        graphs: Graphs,
        input_lengths: Integers | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        return lattice_loss(log_probs, graphs, input_lengths, weights=weights, **self.options)


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
        reduction: ReductionName = "mean",
        fused_log_softmax: bool = True,
        *,
        fastemit_lambda: float = 0.0,
        zero_infinity: bool = False,
        overwrite_logits: bool = False,
        rnnt_type: RNNTType = "regular",
        delay_penalty: float = 0.0,
        hat: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self, logits: Tensor, targets: Integers, logit_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, **self.options)


class RNNTPackedLoss(RNNTLoss):
    """``rnnt_packed_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import RNNTPackedLoss
        >>> criterion = RNNTPackedLoss(reduction="sum")
        >>> round(float(criterion(torch.zeros(5, 2), [[0], [0]], [2, 1], [1, 0])), 4)
        2.0794
    """

    def forward(
        self, logits: Tensor, targets: Integers, logit_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return rnnt_packed_loss(logits, targets, logit_lengths, target_lengths, **self.options)


class TDTLoss(_Loss):
    """``tdt_loss`` with its durations and options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import TDTLoss
        >>> criterion = TDTLoss([0, 1, 2])
        >>> token_logits, duration_logits = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 3)
        >>> round(float(criterion(token_logits, duration_logits, [[0]], [2], [1])), 4)
        2.7362
    """

    def __init__(
        self,
        durations: Sequence[int],
        blank: int = -1,
        *,
        sigma: float = 0.0,
        final: Final = "blank",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self,
        token_logits: Tensor | Joiner,
        duration_logits: Tensor | Joiner,
        targets: Integers,
        logit_lengths: Integers | int,
        target_lengths: Integers | int,
    ) -> Tensor:
        return tdt_loss(token_logits, duration_logits, targets, logit_lengths, target_lengths, **self.options)


class MultiBlankRNNTLoss(_Loss):
    """``multi_blank_rnnt_loss`` with its big blanks and options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import MultiBlankRNNTLoss
        >>> criterion = MultiBlankRNNTLoss([2], [-2])
        >>> round(float(criterion(torch.zeros(1, 2, 1, 4), [[]], [2], [0])), 4)
        1.1632
    """

    def __init__(
        self,
        big_blank_durations: Sequence[int],
        big_blanks: Sequence[int],
        blank: int = -1,
        *,
        sigma: float = 0.0,
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self, logits: Tensor | Joiner, targets: Integers, logit_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return multi_blank_rnnt_loss(logits, targets, logit_lengths, target_lengths, **self.options)


class ARRNNTLoss(_Loss):
    """``ar_rnnt_loss`` with its buffers and options stored; the alignment comes with each batch.

    Example:
        >>> import torch
        >>> from pathsum.torch import ARRNNTLoss
        >>> criterion = ARRNNTLoss(left=1, right=0)
        >>> round(float(criterion(torch.zeros(1, 4, 2, 2), [[0]], [4], [1], [[1]])), 4)
        2.7726
    """

    def __init__(
        self,
        left: int,
        right: int,
        blank: int = -1,
        *,
        rnnt_type: RNNTType = "regular",
        delay_penalty: float = 0.0,
        hat: bool = False,
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor | Joiner,
        targets: Integers,
        logit_lengths: Integers | int,
        target_lengths: Integers | int,
        alignment: Integers,
    ) -> Tensor:
        return ar_rnnt_loss(logits, targets, logit_lengths, target_lengths, alignment, **self.options)


class WildcardRNNTLoss(_Loss):
    """``wildcard_rnnt_loss`` with its options stored.

    Example:
        >>> import torch
        >>> from pathsum.torch import WildcardRNNTLoss
        >>> criterion = WildcardRNNTLoss(skip_score=-1.0)
        >>> round(float(criterion(torch.zeros(1, 2, 2, 2), [[0]], [2], [1])), 4)
        0.8348
    """

    def __init__(
        self,
        blank: int = -1,
        *,
        skip_score: float = 0.0,
        final: Final = "blank",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self, logits: Tensor | Joiner, targets: Integers, logit_lengths: Integers | int, target_lengths: Integers | int
    ) -> Tensor:
        return wildcard_rnnt_loss(logits, targets, logit_lengths, target_lengths, **self.options)


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
        >>> round(criterion(torch.zeros(3, 1, 2), [[0, 1]]).item(), 4)
        1.3863
    """

    def __init__(
        self,
        num_labels: int,
        reduction: ReductionName = "mean",
        *,
        scale_mode: ScaleMode = "none",
        learn_start: bool = False,
        learn_final: bool = False,
        batch_first: bool = False,
        zero_infinity: bool = False,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals(), without=("num_labels", "learn_start", "learn_final"))
        self.num_labels = num_labels
        self.transition = nn.Parameter(torch.empty(num_labels, num_labels))
        self.start_scores, self.final_scores = (
            nn.Parameter(torch.empty(num_labels)) if _checks.check_flag("ASGLoss", name, learn) else None
            for name, learn in (("learn_start", learn_start), ("learn_final", learn_final))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every parameter to zeros, as at first; what was made on the meta device needs it after ``to_empty``."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        return f"{self.num_labels}, {super().extra_repr()}"

    def forward(
        self,
        inputs: Tensor,
        targets: Integers,
        input_lengths: Integers | int | None = None,
        target_lengths: Integers | int | None = None,
    ) -> Tensor:
        return asg_loss(
            inputs,
            targets,
            self.transition,
            input_lengths,
            target_lengths,
            start_scores=self.start_scores,
            final_scores=self.final_scores,
            **self.options,
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
        activation: Activation = "tanh",
        reduction: ReductionName = "mean",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        zero_infinity: bool = False,
        rnnt_type: RNNTType = "regular",
        delay_penalty: float = 0.0,
        hat: bool = False,
        gate: float | None = None,
        tile_memory: int | None = None,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self,
        encoder_out: Tensor,
        predictor_out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Integers,
        logit_lengths: Integers | int,
        target_lengths: Integers | int,
    ) -> Tensor:
        given = (encoder_out, predictor_out, weight, bias, targets, logit_lengths, target_lengths)
        return rnnt_joint_loss(*given, **self.options)


class CTCLinearLoss(_Loss):
    """``ctc_linear_loss`` with its options stored; the layer's weight and bias stay the caller's.

    Example:
        >>> import torch
        >>> from pathsum.torch import CTCLinearLoss
        >>> criterion = CTCLinearLoss(reduction="sum")
        >>> output = torch.nn.Linear(4, 2)
        >>> torch.nn.init.zeros_(output.weight), torch.nn.init.zeros_(output.bias)  # doctest: +ELLIPSIS
        (...)
        >>> loss = criterion(torch.zeros(3, 1, 4), output.weight, output.bias, [[1]], [3], [1])
        >>> round(loss.item(), 4)
        0.2877
    """

    def __init__(
        self,
        blank: int = 0,
        reduction: ReductionName = "mean",
        zero_infinity: bool = False,
        *,
        batch_first: bool = False,
        chunk: int | None = None,
        check: Check = "async",
        impl: TorchImpl = "auto",
    ):
        super().__init__(locals())

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Integers,
        input_lengths: Integers | int,
        target_lengths: Integers | int,
    ) -> Tensor:
        return ctc_linear_loss(hidden, weight, bias, targets, input_lengths, target_lengths, **self.options)
