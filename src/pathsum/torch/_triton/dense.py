"""Dense lattices on a GPU."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, DensePath, DenseSaved
from pathsum.lattice import DenseLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import DenseOperators
from pathsum.torch._launch import best_path, dense, posteriors


class Dense(DenseOperators):
    name = "triton_dense"
    reads_on_device = True

    def sent(self, lattice: DenseLattice, device: torch.device) -> DenseLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> DenseSaved:
        return DenseSaved(*dense.dense_forward(*call.scores, call.lattice.input_lengths, need_gradient))

    def backward(self, call: Call, saved: DenseSaved, upstream: Tensor, needed: Sequence[bool]) -> Sequence[Tensor]:
        return dense.dense_backward(upstream, *call.scores, call.lattice.input_lengths, *saved, needed)

    def second(
        self, call: Call, saved: DenseSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        lengths = call.lattice.input_lengths
        slopes, *products = dense.dense_hvp(*tangents, upstream, *call.scores, lengths, *saved, needed)
        return slopes, products

    def best(self, call: Call) -> DensePath:
        (scores, transitions), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        return best_path.dense(scores, lattice, transitions)

    def posteriors(self, call: Call) -> Any:
        (scores, transitions), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        return posteriors.dense_posteriors(scores, lattice, transitions)
