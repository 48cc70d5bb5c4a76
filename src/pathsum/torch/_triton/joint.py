"""The joiner fused with the loss, on a GPU: the regular transducer. Others go by arcs, whose heads may be joiners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, JointSaved
from pathsum.kernels.triton import grid_arcs
from pathsum.kernels.triton.plan import programs
from pathsum.lattice import LABEL, ArcLattice
from pathsum.torch._lattices import JointOperators
from pathsum.torch._triton.arcs import sent_arcs
from pathsum.torch._triton.grid import move_packed, solve_packed
from pathsum.torch._triton.launching import launch, written
from pathsum.torch._triton.tiles import JoinerTiles

_NODES = 256


class Joint(JointOperators):
    name = "triton_joint"
    reads_on_device = True

    def fuses(self, dtype: torch.dtype, *, regular: bool) -> bool:
        return regular

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return sent_arcs(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> JointSaved:
        tiles = _tiles(call)
        planes, stride = tiles.read(), tiles.stride
        undefined = torch.zeros(tiles.num_samples, dtype=torch.int32, device=planes.device)
        launch(
            grid_arcs.mark_undefined, (programs(stride, _NODES),), planes,
            planes, stride, *tiles.lengths, tiles.num_samples, undefined, NUM_KINDS=2, ROWS=_NODES,
        )  # fmt: skip
        # The paths share a probability of 1: what rounding has left below 0 is 0.
        at_least = -math.inf if call.options.delay_penalty else 0.0
        losses = solve_packed((planes[0], planes[1]), undefined, tiles.lengths, tiles.width, need_gradient, at_least)
        return JointSaved(losses, planes if need_gradient else planes.new_empty(0, 0))

    def backward(
        self, call: Call, saved: JointSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        losses, posteriors = saved
        factors = written(losses.device, torch.float64, -1.0, -1.0 - call.options.fastemit_lambda)
        weights = _weights(upstream, losses)
        return _tiles(call).gradients(posteriors, factors, weights, call.options.clamp, needed)

    def second(
        self, call: Call, saved: JointSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        (losses, posteriors), tiles = saved, _tiles(call)
        factors = written(losses.device, torch.float64, -1.0, -1.0)
        # How a loss moves is asked for also where nothing depends on it yet.
        moving = tiles.slopes(tangents, posteriors, factors, _weights(torch.ones_like(losses), losses))
        slopes = move_packed(posteriors, moving, losses, tiles.lengths, tiles.width)
        return slopes, tiles.products(tangents, posteriors, moving, factors, _weights(upstream, losses), needed)


def _tiles(call: Call) -> JoinerTiles:
    own = call.options
    classes = (call.lattice.blank, LABEL)
    return JoinerTiles(call.scores, call.lattice, classes, -1, own.activation, own.tile_memory, own.gate)


def _weights(upstream: Tensor, losses: Tensor) -> Tensor:
    """The upstream gradient of each sample; 0 where no path is, NaN where the loss is, unless nothing depends on it."""
    known = torch.where(losses == torch.inf, 0.0, upstream)
    return torch.where(losses.isnan() & (upstream != 0), torch.nan, known).contiguous()
