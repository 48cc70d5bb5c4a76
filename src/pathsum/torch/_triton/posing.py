"""Integers on a GPU, bounded and posed there by one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.triton import posing
from pathsum.kernels.triton.plan import bucket
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._bounded import Unread
from pathsum.torch._triton.launching import empties, launch


def posed(pose: Callable[..., Any], given: Unread, last: int) -> Any:
    """What a function of ``problems`` poses, of integers that nobody looks at, and the last of its arguments."""
    return _POSED[pose](given, last)


class _Posed:
    """A batch posed for a lattice; planes are (N, width), those that it has not of no width.

    Attributes:
        lengths, sizes: (N,) frames, and states or labels.
        labels: (N, width) of the arcs that enter; the targets of a grid.
        others: Two more planes of integers.
        skips: (N, width)
        rows: (N+1,) where each sample's rows begin, of a grid.
    """

    def __init__(self, given: Unread, lattice: str, filler: int, width: int, others: tuple[int, int] = (0, 0)):
        num_samples, empty = len(given.input_lengths), empties(given.targets)

        def plane(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return empty(*shape, dtype=dtype)

        self.lengths, self.sizes, self.labels = plane(num_samples), plane(num_samples), plane(num_samples, width)
        self.others = plane(num_samples, others[0]), plane(num_samples, others[1])
        self.skips = plane(num_samples, 0 if lattice == "grid" else width, dtype=torch.bool)
        self.rows = plane(num_samples + 1) if num_samples else given.input_lengths.new_zeros(1)
        launch(
            posing.pose, (num_samples,), self.lengths,
            given.targets, given.input_lengths, given.target_lengths, num_samples, given.targets.shape[-1],
            given.width, given.most_frames, given.most_labels, given.num_classes, given.blank, filler, self.lengths,
            self.sizes, self.labels, *self.others, self.skips, self.rows,
            -1 if given.num_rows is None else given.num_rows, OTHERS=given.others, LATTICE=lattice,
            FLAT=given.targets.ndim == 1, BLOCK=bucket(given.width, 32, 256), num_warps=1,
        )  # fmt: skip


def _ctc(given: Unread, blank: int) -> ChainLattice:
    own = _Posed(given, "ctc", blank, 2 * given.width + 1)
    return ChainLattice(own.lengths, own.sizes, own.labels, own.labels, own.skips, -1, 2, shared_labels=True)


def _simple_ctc(given: Unread, blank: int) -> ChainLattice:
    own = _Posed(given, "simple_ctc", blank, given.width + 1, (given.width + 1, 0))
    return ChainLattice(own.lengths, own.sizes, own.others[0], own.labels, own.skips, 0, 1)


def _asg(given: Unread, num_classes: int) -> tuple[DenseLattice, ChainLattice]:
    own = _Posed(given, "asg", 0, given.width, (given.width, given.width))
    chain = ChainLattice(
        own.lengths, own.sizes, own.labels, own.labels, own.skips, -1, 1, *own.others, shared_labels=True
    )
    return DenseLattice(input_lengths=own.lengths, num_states=num_classes), chain


def _rnnt(given: Unread, blank: int) -> GridLattice:
    own = _Posed(given, "grid", blank, given.width)
    return GridLattice(own.lengths, own.sizes, own.labels, blank, own.rows)


_POSED = {pose_ctc: _ctc, pose_simple_ctc: _simple_ctc, pose_asg: _asg, pose_rnnt: _rnnt}
