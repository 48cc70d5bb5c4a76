"""k2's pruned transducer loss: a band of positions for each frame, the loss in it, and how the band is chosen.

Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training" (2022), section 3.2. The peer's quirk that is kept:
a band too narrow for its samples is widened, with a warning. Not kept: where S exceeds T the modified types have the
loss infinity instead of an assertion; ``get_rnnt_prune_ranges_deprecated``, an older rule, is not here.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pathsum.compat.conventions import check_class, check_floats, check_size, checked
from pathsum.compat.k2.transducer import (
    Planes,
    as_int64,
    check_boundary,
    check_planes,
    check_symbols,
    reduced_planes,
    typed_planes,
)
from pathsum.errors import InvalidValueError


@checked
def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """``k2.get_rnnt_prune_ranges``: for each frame the band of positions that most of the occupation is in.

    Args:
        px_grad: Occupations (B, S, T+1) of labels, or (B, S, T) of the types whose labels advance the frame.
        py_grad: Occupations (B, S+1, T) of blanks.
        boundary: (B, 4), as in ``rnnt_loss``.
        s_range: Positions R of a band; as many more as a sample with regular arcs needs, and at most S+1.

    Returns:
        Positions (B, T, R), those of a frame in a row. They begin at 0, end at each sample's last position, never
        fall, and rise so slowly that a walk can stay in them.

    Example:
        >>> import torch
        >>> from pathsum.compat import k2
        >>> planes = torch.zeros(1, 4, 9).requires_grad_(), torch.zeros(1, 5, 8).requires_grad_()
        >>> boundary = torch.tensor([[0, 0, 4, 8]])
        >>> _, (labels, blanks) = k2.mutual_information_recursion(*planes, boundary, return_grad=True)
        >>> k2.get_rnnt_prune_ranges(labels, blanks, boundary, s_range=2)[0, :, 0].tolist()
        [0, 0, 0, 1, 1, 2, 3, 3]
    """
    function = "get_rnnt_prune_ranges"
    num_symbols, num_frames = check_planes(function, px_grad, py_grad, ("px_grad", "py_grad"))
    bounds = check_boundary(function, boundary, len(px_grad), num_symbols, num_frames)
    assert bounds is not None
    if s_range < 1:
        raise InvalidValueError(function, "s_range", "be at least 1", s_range)
    regular = px_grad.shape[2] > num_frames
    symbol_counts, frame_counts = bounds[:, 2, None], bounds[:, 3, None]
    width = _width(s_range, symbol_counts, frame_counts) if regular else s_range
    width = min(width, num_symbols + 1)
    # What is occupied in a band, but for the walks that enter it in this frame from below.
    entered = torch.nn.functional.pad(px_grad[:, :, :num_frames], (0, 0, 1, 0))
    inside = py_grad.unfold(1, width, 1).sum(-1)
    first = (inside - entered[:, : inside.shape[1]]).argmax(1)
    frames = torch.arange(num_frames, device=first.device)
    last = (symbol_counts - width + 1).clamp(min=0)
    first = _never_falling(torch.where(frames < frame_counts - 1, first, last))
    # A walk gets up to the last position of its frame's band, or by one label a frame.
    reach = frames * (width - 1 if regular else 1)
    first = reach - _never_falling(reach - first).clamp(min=0)
    return first[..., None] + torch.arange(width, device=first.device)


@checked
def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """``k2.do_rnnt_pruning``: encoder (B, T, H) and predictor (B, S+1, H) output in a band, both (B, T, R, H)."""
    function = "do_rnnt_pruning"
    check_floats(function, "am", am, "(B, T, H)")
    check_floats(function, "lm", lm, "(B, S+1, H)")
    check_size(function, "lm", lm, (len(am), None, am.shape[2]), "(B, S+1, H)")
    ranges = check_ranges(function, ranges, len(am), am.shape[1], lm.shape[1] - 1)
    samples = torch.arange(len(lm), device=lm.device)[:, None, None]
    return am[:, :, None].expand(-1, -1, ranges.shape[2], -1), lm[samples, ranges]


@checked
def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    return_grad: bool = False,
) -> Any:
    """``k2.rnnt_loss_pruned``: the loss over the walks in a band of positions, all else impossible.

    Args:
        logits: Joiner output (B, T, R, C) at the positions of ``ranges``.
        symbols: As in ``rnnt_loss``; so is all that is not below.
        ranges: (B, T, R) positions among the S+1, those of a frame in a row.
        termination_symbol: See there.
        boundary: See there.
        rnnt_type: See there.
        delay_penalty: See there.
        reduction: See there.
        use_hat_loss: The blank has the probability ``sigmoid(logit)``, the others share the rest.
        return_grad: Also return the occupations.

    Returns:
        The reduced loss; with ``return_grad`` a pair of it and the occupations of all planes, 0 outside of the band.

    Example:
        >>> import torch
        >>> from pathsum.compat.k2 import rnnt_loss_pruned
        >>> everything = torch.tensor([[[0, 1], [0, 1]]])
        >>> round(rnnt_loss_pruned(torch.zeros(1, 2, 2, 2), torch.tensor([[0]]), everything, 1).item(), 4)
        1.3863
    """
    planes = get_rnnt_logprobs_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, use_hat_loss)
    return reduced_planes(planes, boundary, delay_penalty, reduction, return_grad)


@checked
def get_rnnt_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    use_hat_loss: bool = False,
) -> Planes:
    """``k2.get_rnnt_logprobs_pruned``: the two planes of logits (B, T, R, C) in a band, -inf outside of it."""
    function = "get_rnnt_logprobs_pruned"
    check_floats(function, "logits", logits, "(B, T, R, C)")
    num_samples, num_frames, width, num_classes = logits.shape
    blank = check_class(function, "termination_symbol", termination_symbol, num_classes)
    symbols = check_symbols(function, symbols, num_samples, None, num_classes)
    boundary = check_boundary(function, boundary, num_samples, symbols.shape[1], num_frames)
    ranges = check_ranges(function, ranges, num_samples, num_frames, symbols.shape[1], width)
    log_probs = _hat(logits, blank) if use_hat_loss else logits.log_softmax(-1)
    padded = torch.nn.functional.pad(symbols, (0, 1), value=blank)
    labels = padded[:, None].expand(-1, num_frames, -1).gather(2, ranges)
    banded = log_probs.gather(3, labels[..., None])[..., 0], log_probs[..., blank]
    impossible = logits.new_full((*logits.shape[:2], padded.shape[1]), -torch.inf)
    px, py = (impossible.scatter(2, ranges, plane).transpose(1, 2) for plane in banded)
    return typed_planes(px[:, :-1], py, rnnt_type, boundary)


def check_ranges(
    function: str, ranges: Tensor, num_samples: int, num_frames: int, num_symbols: int, width: int | None = None
) -> Tensor:
    """Positions (B, T, R) as int64, among the S+1."""
    check_size(function, "ranges", ranges, (num_samples, num_frames, width), "(B, T, R)")
    ranges = as_int64(function, "ranges", ranges)
    if ranges.is_cpu and ((ranges < 0) | (ranges > num_symbols)).any():
        raise InvalidValueError(function, "ranges", f"lie in [0, S] with S = {num_symbols}", ranges.tolist())
    return ranges


def _hat(logits: Tensor, blank: int) -> Tensor:
    is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank
    blank_logit = logits[..., blank : blank + 1]
    others = logits.masked_fill(is_blank, -torch.inf).log_softmax(-1) + torch.nn.functional.logsigmoid(-blank_logit)
    return torch.where(is_blank, torch.nn.functional.logsigmoid(blank_logit), others)


def _width(s_range: int, symbol_counts: Tensor, frame_counts: Tensor) -> int:
    """The width asked for, or the least that lets every sample's walk get to its last position."""
    least = (symbol_counts - 1).clamp(min=0) // frame_counts.clamp(min=1) + 2
    least = int(least.max()) if len(least) else 1
    if s_range < least:
        warnings.warn(f"get_rnnt_prune_ranges: s_range must be {least} at least; got {s_range}; widened.", stacklevel=3)
    return max(s_range, least)


def _never_falling(positions: Tensor) -> Tensor:
    """The highest sequence (B, T) below one that never falls."""
    return positions.flip(1).cummin(1).values.flip(1)
