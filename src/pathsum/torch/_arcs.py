"""Calls on arc lattices: what scores their arcs is logits, or a joiner that makes them a tile at a time."""

from __future__ import annotations

import math

from torch import Tensor

from pathsum import _checks
from pathsum.kernels.protocol import ArcOptions, Call, RowOptions
from pathsum.lattice import ArcLattice
from pathsum.torch._operators import Reduction, kernels_of
from pathsum.torch.joiner import Joiner


def check_options(function: str, options: ArcOptions) -> ArcOptions:
    """The same, its flags and numbers checked."""

    def number(name: str, minimum: float = -math.inf) -> float:
        return _checks.check_number(function, name, getattr(options, name), minimum)

    return options._replace(
        softmax=_checks.check_flag(function, "fused_log_softmax", options.softmax),
        hat=_checks.check_flag(function, "hat", options.hat),
        sigma=number("sigma"),
        delay_penalty=number("delay_penalty"),
        skip_score=number("skip_score"),
        fastemit_lambda=number("fastemit_lambda", minimum=0.0),
        clamp=number("clamp"),
    )


def arc_losses(
    heads: tuple[Tensor | Joiner, ...],
    lattice: ArcLattice,
    impl: str,
    options: ArcOptions,
    reduction: Reduction | None = None,
) -> Tensor:
    """What becomes of the losses (N,) of the scores that the lattice reads, or of joiners that make them."""
    scores: list[Tensor | None] = []
    for head in heads:
        scores += head.operands if isinstance(head, Joiner) else (head, None, None, None)
    joiners = [(head.activation, head.tile_bytes, head.gate) if isinstance(head, Joiner) else () for head in heads]
    missing = 2 - len(heads)
    options = options._replace(joiners=(*joiners, *[()] * missing))
    call = Call((*scores, *[None] * (4 * missing)), lattice, options)
    return kernels_of(impl, "arcs").losses(call, reduction)


def plane_losses(planes: Tensor, lattice: ArcLattice, impl: str, options: ArcOptions | None = None) -> Tensor:
    """Losses (N,) in float64 of the planes (K, rows) that the lattice reads."""
    options = (options or ArcOptions())._replace(given=True)
    return kernels_of(impl, "arcs").losses(Call((planes, *[None] * 7), lattice, options))


def read_planes(scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], impl: str, *, softmax: bool) -> Tensor:
    """Planes (K, rows) of the classes of padded or packed scores, differentiable."""
    return kernels_of(impl, "rows").losses(Call((scores,), lattice, RowOptions(classes, softmax)))
