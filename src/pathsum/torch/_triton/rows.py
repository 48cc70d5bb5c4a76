"""Planes of log-probabilities, read on a GPU from rows of scores, padded (N, T, U+1, V) or packed (rows, V).

Planes have a word for each node. How many there are is known where the integers come from the host; else there is room
for as many as the scores have rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, RowsSaved
from pathsum.kernels.triton import row_scores
from pathsum.kernels.triton.plan import programs
from pathsum.lattice import ArcLattice
from pathsum.torch._triton.launching import empties, in_memory, in_triton, launch, layout, row_tiles, sent, work_dtype


def room_for(lattice: ArcLattice, num_rows: int) -> int:
    """Nodes that planes are made for, of scores with that many rows."""
    offsets = lattice.row_offsets
    return int(offsets[-1]) if in_memory(offsets) else num_rows


class Reader:
    """The planes of a call's scores, whose options are ``RowOptions``, and their derivatives."""

    def __init__(self, call: Call):
        ((scores,), own, options), work = call, work_dtype(call.scores[0])
        packed, num_classes, device = scores.ndim == 2, scores.shape[-1], scores.device
        num_rows, lone = scores.shape[:-1].numel(), own.blank if options.hat else -1
        lengths = sent(
            device, own.logit_lengths, own.target_lengths, own.targets, own.row_offsets, own.first_frames,
            own.last_frames,
        )  # fmt: skip
        frames, labels = (1, 0) if packed else (scores.shape[1], scores.shape[2] - 1)
        self._scores, self.num_nodes = scores, room_for(own, num_rows)
        self.num_planes = len(options.classes)
        # All rows, which are no tile of a joiner's.
        self._integers = (
            num_rows, *lengths, None, 0, None, len(own.logit_lengths), frames, labels, own.targets.shape[1],
            num_classes, lone,
        )  # fmt: skip
        rows, block = row_tiles(num_classes, work)
        self._grid = (programs(num_rows, rows),)
        self._constants: dict[str, Any] = {
            "CLASSES": tuple(options.classes), "LOGITS": options.softmax, "LONE": lone >= 0, "PACKED": packed,
            "WORK": in_triton(work), "ROWS": rows, "BLOCK": block,
        }  # fmt: skip

    def read(self) -> RowsSaved:
        """Planes (K, nodes), and statistics to be kept."""
        planes = empties(self._scores)(self.num_planes, self.num_nodes)
        return RowsSaved(planes, *self.read_into(planes, None))

    def read_into(
        self, planes: Tensor, undefined: Tensor | None, sigma: float = 0.0, delay_penalty: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Fill planes, and say which samples are undefined; statistics to be kept."""
        scores, empty = self._scores, empties(self._scores)
        size, work = self.num_nodes if self._constants["LOGITS"] else 0, work_dtype(scores)
        statistics = empty(size, dtype=work), empty(size, dtype=work)
        launch(
            row_scores.score_rows, self._grid, scores,
            scores, *_strides(scores), *self._integers, planes.stride(0), None, *statistics, sigma, delay_penalty,
            undefined, planes, **self._constants, **layout(scores),
        )  # fmt: skip
        return statistics

    def gradient(
        self, by_planes: Tensor, upstream: Tensor | None, statistics: Sequence[Tensor], clamp: float = -1.0
    ) -> Tensor:
        """The gradient by the scores, from that by the planes: upstream[n] times it, clamped; ``None`` is ones."""
        scores, by_planes, upstream = self._scores, _in_rows(by_planes), _contiguous(upstream)
        gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
        launch(
            row_scores.write_gradient, self._grid, scores,
            by_planes, None, upstream, scores, *_strides(scores), *self._integers, by_planes.stride(0), None,
            *statistics, clamp, gradient, *_strides(gradient), **self._constants, **layout(scores, gradient),
        )  # fmt: skip
        return gradient

    def move(
        self, tangent: Tensor, by_planes: Tensor, upstream: Tensor | None, statistics: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """How the planes move along a tangent, and how the gradient does while that by the planes stays."""
        scores, by_planes, upstream = self._scores, _in_rows(by_planes), _contiguous(upstream)
        # Rows of the planes that are no nodes have a slope of 0.
        slopes = torch.zeros(self.num_planes, by_planes.stride(0), dtype=torch.float64, device=scores.device)
        product = torch.empty_like(scores, memory_format=torch.contiguous_format)
        launch(
            row_scores.write_product, self._grid, scores,
            tangent, *_strides(tangent), by_planes, None, upstream, scores, *_strides(scores), *self._integers,
            by_planes.stride(0), None, *statistics, slopes, product, *_strides(product), **self._constants,
            **layout(scores, tangent, product),
        )  # fmt: skip
        return slopes[:, : self.num_nodes], product


def _strides(scores: Tensor) -> tuple[int, ...]:
    return (0, 0, *scores.stride()) if scores.ndim == 2 else scores.stride()


def _in_rows(planes: Tensor) -> Tensor:
    """Planes whose nodes lie side by side."""
    return planes if planes.stride(1) == 1 and planes.stride(0) >= planes.shape[1] else planes.contiguous()


def _contiguous(upstream: Tensor | None) -> Tensor | None:
    return None if upstream is None else upstream.contiguous()
