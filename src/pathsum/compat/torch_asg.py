"""``torch_asg.ASGLoss``, with the two pathsums ``FCC`` and ``FAC`` of ``torch_asg.asg``.

The peer's quirks that are kept: targets wider than T are cut to T labels, for the whole batch; adjacent equal labels
count a path more than once, so that the loss can be negative; ``transition[i, j]`` scores passing from j to i; on a GPU
``forward_only`` and the evaluation mode compute no gradients, on the CPU they change nothing. Not kept: the peer asks
for int64 and computes infeasible samples with infinities under fast-math; here their loss is infinity, the gradient 0.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from pathsum.compat.conventions import check_floats, check_size, checked
from pathsum.errors import InvalidValueError
from pathsum.torch import asg_loss, asg_viterbi


class ASGLoss(nn.Module):
    """``torch_asg.ASGLoss``.

    Args:
        num_labels: Classes C of the inputs.
        reduction: ``"mean"`` over N, ``"sum"``; anything else leaves the losses (N,) as they are, as in the peer.
        forward_only: No gradients, on a GPU; there also in evaluation mode.
        gpu_no_stream_impl: The peer's serial implementation, which heeds neither ``forward_only`` nor the mode.

    Attributes:
        transition: (C, C), zeros at first; ``transition[i, j]`` scores passing from label j to label i.

    Example:
        >>> import torch
        >>> from pathsum.compat.torch_asg import ASGLoss
        >>> criterion = ASGLoss(num_labels=2)
        >>> round(criterion(torch.zeros(3, 1, 2), torch.tensor([[0, 1]])).item(), 4)
        1.3863
    """

    @checked
    def __init__(
        self,
        num_labels: int,
        reduction: str | None = "mean",
        forward_only: bool = False,
        gpu_no_stream_impl: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < num_labels < 2**15:  # a table of 4 GB
            raise InvalidValueError("ASGLoss", "num_labels", "lie in [1, 2**15)", num_labels)
        self.num_labels = num_labels
        self.reduction = reduction
        self.transition = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.forward_only = forward_only
        self.gpu_no_stream_impl = gpu_no_stream_impl

    @checked
    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        check_floats("ASGLoss", "inputs", inputs, "(T, N, C)")
        check_size("ASGLoss", "targets", targets, (inputs.shape[1], None), "(N, S)")
        num_frames = len(inputs)
        if targets.shape[1] > num_frames:
            targets = targets[:, :num_frames]
            target_lengths = None if target_lengths is None else target_lengths.clamp(max=num_frames)
        without = inputs.is_cuda and not self.gpu_no_stream_impl and (self.forward_only or not self.training)
        reduction = self.reduction if self.reduction in ("mean", "sum") else "none"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not without):
            return asg_loss(inputs, targets, self.transition, input_lengths, target_lengths, reduction)


@checked
def full_connect(
    transition: Tensor, inputs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
) -> Tensor:
    """The log-sum (N,) over all label sequences. Targets and their lengths are ignored, as in the peer.

    Example:
        >>> import torch
        >>> from pathsum.compat.torch_asg import FCC
        >>> one = torch.ones(1).long()
        >>> round(FCC.apply(torch.zeros(2, 2), torch.zeros(3, 1, 2), one[None], 3 * one, one).exp().item(), 3)
        8.0
    """
    # A target of as many labels as frames has one path: what the loss lacks to the sum over all is its score.
    check_floats("full_connect", "inputs", inputs, "(T, N, C)")
    best = asg_viterbi(inputs.transpose(0, 1), transition, input_lengths)
    with warnings.catch_warnings():
        # Equal neighbours are no fault in a target that fills its frames.
        warnings.simplefilter("ignore", UserWarning)
        losses = asg_loss(inputs, best.paths, transition, input_lengths, input_lengths, "none")
    return losses + best.scores.sum(1)


@checked
def force_align(
    transition: Tensor, inputs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
) -> Tensor:
    """The log-sum (N,) over the sequences that stretch the target.

    Example:
        >>> import torch
        >>> from pathsum.compat.torch_asg import FAC
        >>> one, target = torch.ones(1).long(), torch.tensor([[0, 1]])
        >>> round(FAC.apply(torch.zeros(2, 2), torch.zeros(3, 1, 2), target, 3 * one, 2 * one).exp().item(), 3)
        2.0
    """
    every = full_connect(transition, inputs, targets, input_lengths, target_lengths)
    return every - asg_loss(inputs, targets, transition, input_lengths, target_lengths, "none")


class FCC:
    """``torch_asg.asg.FCC``: ``apply`` is ``full_connect``."""

    apply = staticmethod(full_connect)


class FAC:
    """``torch_asg.asg.FAC``: ``apply`` is ``force_align``."""

    apply = staticmethod(force_align)


PLACES = {
    "torch_asg": {"ASGLoss": ASGLoss},
    "torch_asg.asg": {"ASGLoss": ASGLoss, "FCC": FCC, "FAC": FAC},
}
