"""The joiner fused with the loss, on the CPU: encoder (N, T, H), predictor (N, U+1, H), weight (V, H), bias (V,)."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid, grid_arcs, joint, joint_hvp
from pathsum.kernels.numba.grid_arcs_hvp import BLANK_AND_LABEL
from pathsum.kernels.protocol import Call, JointSaved
from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._lattices import JointOperators
from pathsum.torch._operators import ArrayKernels
from pathsum.torch._ops.arrays import as_joiner, gradients_as_tensors


class Joint(ArrayKernels, JointOperators):
    name = "joint"

    def forward(self, call: Call, need_gradient: bool) -> JointSaved:
        options, matmul = call.options, matmul_of(call.scores[2].dtype)
        solve = _solve_of(call.lattice, options.delay_penalty)
        joiner = as_joiner(*call.scores, options.activation)
        losses, posteriors = joint.forward(
            joiner,
            call.lattice,
            matmul,
            rows_per_tile=joint.tile_rows(joiner, options.tile_memory),
            need_gradient=need_gradient,
            num_threads=torch.get_num_threads(),
            solve=solve,
        )
        if not options.delay_penalty:
            # The paths share a probability of 1: what rounding has left below 0 is 0.
            np.maximum(losses, 0.0, out=losses)
        return JointSaved(losses, posteriors)

    def backward(self, call: Call, saved: JointSaved, upstream: np.ndarray, needed: Sequence[bool]) -> Sequence[Tensor]:
        options, matmul, follows = call.options, matmul_of(call.scores[2].dtype), _blank_follows(call.lattice)
        joiner = as_joiner(*call.scores, options.activation)
        gradients = joint.backward(
            upstream,
            joiner,
            call.lattice,
            saved.losses,
            *saved.posteriors,
            matmul,
            rows_per_tile=joint.tile_rows(joiner, options.tile_memory),
            fastemit_lambda=options.fastemit_lambda,
            clamp=options.clamp,
            gate=options.gate,
            num_threads=torch.get_num_threads(),
            blank_follows=follows,
        )
        return gradients_as_tensors(gradients, call.scores[2].dtype)

    def second(
        self, call: Call, saved: JointSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
        joiner, options = as_joiner(*call.scores, call.options.activation), call.options
        along = [
            torch.zeros_like(operand) if tangent is None else tangent
            for tangent, operand in zip(tangents, call.scores, strict=True)
        ]
        slopes, products = joint_hvp.hvp(
            as_joiner(*along, options.activation),
            upstream,
            joiner,
            call.lattice,
            saved.losses,
            *saved.posteriors,
            matmul_of(call.scores[2].dtype),
            arcs=call.lattice,
            rows_per_tile=joint_hvp.tile_rows(joiner, options.tile_memory),
            gate=options.gate,
            num_threads=torch.get_num_threads(),
            blank_follows=_blank_follows(call.lattice),
        )
        return torch.from_numpy(slopes), gradients_as_tensors(products, call.scores[2].dtype)


def matmul_of(dtype: torch.dtype) -> joint.Matmul:
    """torch's own product; of bfloat16 operands where the input is bfloat16."""

    def product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        factors = torch.from_numpy(left), torch.from_numpy(right)
        if dtype == torch.bfloat16:
            torch.from_numpy(out).copy_(torch.mm(factors[0].bfloat16(), factors[1].bfloat16()))
        else:
            torch.mm(*factors, out=torch.from_numpy(out))

    return product


def _blank_follows(lattice: ArcLattice) -> bool:
    """Whether a label arc has also emitted the blank of the next row."""
    return any(ahead for terms in lattice.terms for _, ahead in terms)


def _solve_of(lattice: ArcLattice, delay_penalty: float) -> Any:
    """How the planes of a type of transducer are solved: by the grid of two kinds where that is it."""
    if lattice.arcs == BLANK_AND_LABEL and not delay_penalty:
        return grid.solve
    bonus = delay_penalty / 2 * earliness(lattice, int(lattice.row_offsets[-1])) if delay_penalty else None
    return functools.partial(grid_arcs.solve_two, label_bonus=bonus)
