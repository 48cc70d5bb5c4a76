"""Planes of log-probabilities, read on a GPU from rows of scores, padded (N, T, U+1, V) or packed (rows, V).

Integers come from the host, where transducers' variants are posed, and are sent without waiting for it: so the sizes of
the planes, a word for each node, are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, RowsSaved
from pathsum.kernels.triton import row_scores
from pathsum.torch._triton.launching import (
    empties,
    in_triton,
    launch,
    layout,
    programs,
    sent,
    tiles,
    work_dtype,
    written,
)


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
        wanted = options.classes
        self._scores, self._num_nodes = scores, int(own.row_offsets[-1])
        self._shape = (len(wanted), self._num_nodes)
        # All rows, which are no tile of a joiner's.
        self._integers = (
            num_rows, *lengths, None, 0, None, len(own.logit_lengths), frames, labels, own.targets.shape[1],
            num_classes, written(device, torch.int32, *wanted), len(wanted), lone, self._num_nodes, None,
        )  # fmt: skip
        rows, block = tiles(num_classes, work)
        self._grid = (programs(num_rows, rows),)
        self._constants: dict[str, Any] = {
            "LOGITS": options.softmax, "LONE": lone >= 0, "PACKED": packed, "WORK": in_triton(work), "ROWS": rows,
            "BLOCK": block,
        }  # fmt: skip

    def read(self) -> RowsSaved:
        scores, empty = self._scores, empties(self._scores)
        planes = empty(*self._shape)
        size, work = self._num_nodes if self._constants["LOGITS"] else 0, work_dtype(scores)
        saved = RowsSaved(planes, empty(size, dtype=work), empty(size, dtype=work))
        launch(
            row_scores.score_rows, self._grid, scores,
            scores, *_strides(scores), *self._integers, *saved[1:], planes, **self._constants, **layout(scores),
        )  # fmt: skip
        return saved

    def gradient(
        self, by_planes: Tensor, upstream: Tensor, statistics: Sequence[Tensor], clamp: float = -1.0
    ) -> Tensor:
        """The gradient by the scores, from that by the planes: upstream[n] times it, clamped."""
        scores = self._scores
        gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
        launch(
            row_scores.write_gradient, self._grid, scores,
            by_planes.contiguous(), None, upstream.contiguous(), scores, *_strides(scores), *self._integers,
            *statistics, clamp, gradient, *_strides(gradient), **self._constants, **layout(scores, gradient),
        )  # fmt: skip
        return gradient

    def move(
        self, tangent: Tensor, by_planes: Tensor, upstream: Tensor, statistics: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """How the planes move along a tangent, and how the gradient does while that by the planes stays."""
        scores = self._scores
        slopes = torch.empty(self._shape, dtype=torch.float64, device=scores.device)
        product = torch.empty_like(scores, memory_format=torch.contiguous_format)
        launch(
            row_scores.write_product, self._grid, scores,
            tangent, *_strides(tangent), by_planes.contiguous(), None, upstream.contiguous(), scores,
            *_strides(scores), *self._integers, *statistics, slopes, product, *_strides(product), **self._constants,
            **layout(scores, tangent, product),
        )  # fmt: skip
        return slopes, product


def _strides(scores: Tensor) -> tuple[int, ...]:
    return (0, 0, *scores.stride()) if scores.ndim == 2 else scores.stride()
