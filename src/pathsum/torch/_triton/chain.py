"""Chains on a GPU."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, ChainPath, ChainSaved
from pathsum.lattice import ChainLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import ChainOperators
from pathsum.torch._launch import best_path, chain, posteriors


class Chain(ChainOperators):
    name = "triton_chain"
    reads_on_device = True

    def sent(self, lattice: ChainLattice, device: torch.device) -> ChainLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> ChainSaved:
        return ChainSaved(*chain.chain_forward(*_flat(call), need_gradient))

    def backward(
        self, call: Call, saved: ChainSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        return chain.chain_backward(upstream, *_flat(call), *saved, needed)

    def second(
        self, call: Call, saved: ChainSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        slopes, *products = chain.chain_hvp(*tangents, upstream, *_flat(call), *saved, needed)
        return slopes, products

    def best(self, call: Call) -> ChainPath:
        (scores, transitions), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        return best_path.chain(scores, lattice, transitions)

    def posteriors(self, call: Call) -> Any:
        (scores, transitions), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        return posteriors.chain_posteriors(scores, lattice, transitions, logits=call.options.softmax)


def _flat(call: Call) -> tuple[Any, ...]:
    own = call.lattice
    integers = (own.input_lengths, own.num_states, own.stay_labels, own.step_labels, own.skips)
    arcs = (own.stay_transitions, own.step_transitions)
    options = (call.options.softmax, call.options.by_logits)
    return *call.scores, *integers, *arcs, own.start_state, own.num_final, own.shared_labels, *options
