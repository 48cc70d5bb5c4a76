"""The joiner fused with the loss, on a GPU: the regular transducer, in float32 and below."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, JointSaved
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import JointOperators
from pathsum.torch._launch import joint


class Joint(JointOperators):
    name = "triton_joint"
    once_only = "impl='triton' has first derivatives only; impl='reference' is differentiable to any order"
    reads_on_device = True

    def fuses(self, dtype: torch.dtype, *, regular: bool) -> bool:
        return regular and dtype != torch.float64

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> JointSaved:
        return JointSaved(*joint.joint_forward(*_flat(call), need_gradient))

    def backward(self, call: Call, saved: JointSaved, upstream: Tensor, needed: Sequence[bool]) -> Sequence[Tensor]:
        return joint.joint_backward(upstream, *_flat(call), *saved, needed)


def _flat(call: Call) -> tuple[Any, ...]:
    own, options = call.lattice, call.options
    integers = (own.logit_lengths, own.target_lengths, own.targets, own.row_offsets, own.blank)
    numbers = (options.delay_penalty, options.fastemit_lambda, options.clamp, options.gate)
    return *call.scores, *integers, options.activation, options.tile_memory, "regular", *numbers
