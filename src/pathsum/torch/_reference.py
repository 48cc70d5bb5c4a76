"""The specification on tensors of any device: plain torch, differentiated by torch, to any order."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pathsum.kernels.protocol import Call, ChainPath, DensePath, Kernels
from pathsum.kernels.reference import chain, chain_best_path, dense, dense_best_path, posteriors
from pathsum.torch._inputs import on_device
from pathsum.torch._operators import Reduction, reduced


class Chain(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        scores, transitions = call.scores
        return reduced(chain.forward(scores, _lattice(call), transitions, logits=call.options.softmax), reduction)

    def best(self, call: Call) -> ChainPath:
        scores, transitions = call.scores
        return chain_best_path.best_path(scores, _lattice(call), transitions)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        scores, transitions = call.scores
        return posteriors.chain_posteriors(scores, _lattice(call), transitions, logits=call.options.softmax)


class Dense(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        scores, transitions = call.scores
        return reduced(dense.forward(scores, _lattice(call), transitions), reduction)

    def best(self, call: Call) -> DensePath:
        scores, transitions = call.scores
        return dense_best_path.best_path(scores, _lattice(call), transitions)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        scores, transitions = call.scores
        return posteriors.dense_posteriors(scores, _lattice(call), transitions)


def _lattice(call: Call) -> Any:
    return on_device(call.lattice, call.scores[0].device)
