"""k2's ``rnnt_loss``, ``rnnt_loss_simple`` and ``rnnt_loss_smoothed``, and the planes and recursion they are made of.

The peer's quirks that are kept: symbols come with S of them and int64 boundaries ``[0, 0, S_n, T_n]``; a
``delay_penalty`` that is not above 0 is none; the smoothed loss takes its unigram from the whole batch, padding
included. Not kept: second derivatives, which the peer drops in silence, are there; where S exceeds T the modified types
have the loss infinity instead of an assertion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum import torch as pathsum_torch
from pathsum.compat.conventions import (
    INTEGERS,
    check_class,
    check_floats,
    check_size,
    checked,
    reduced,
    tensor,
    transducer_losses,
)
from pathsum.errors import InvalidTypeError, InvalidValueError

Planes = tuple[Tensor, Tensor]
RNNT_TYPES = ("regular", "modified", "constrained")


@checked
def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """``k2.rnnt_loss``.

    Args:
        logits: Joiner output (B, T, S+1, C).
        symbols: Labels (B, S).
        termination_symbol: Index of the blank.
        boundary: (B, 4): first symbol, first frame, number of symbols, number of frames; ``[0, 0, S, T]`` where
            ``None``.
        rnnt_type: ``"regular"``, ``"modified"`` or ``"constrained"``.
        delay_penalty: As in ``pathsum.torch.rnnt_loss``, where above 0.
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over B.
        return_grad: Also return the occupations.

    Returns:
        The reduced loss; with ``return_grad`` a pair of it and the occupations of ``get_rnnt_logprobs_joint``'s planes.

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.k2 import rnnt_loss
        >>> round(1 / rnnt_loss(torch.zeros(1, 3, 2, 2), torch.tensor([[0]]), 1, rnnt_type="modified").exp().item(), 4)
        0.375
    """
    check_floats("rnnt_loss", "logits", logits, "(B, T, S+1, C)")
    num_samples, num_frames, width, _ = logits.shape
    boundary = check_boundary("rnnt_loss", boundary, num_samples, width - 1, num_frames)
    if return_grad or (boundary is not None and boundary[:, :2].any()):
        planes = get_rnnt_logprobs_joint(logits, symbols, termination_symbol, rnnt_type, boundary)
        return reduced_planes(planes, boundary, delay_penalty, reduction, return_grad)
    _, _, symbol_counts, frame_counts = _boundary(boundary, width - 1, num_frames, symbols).unbind(1)
    losses = transducer_losses(
        logits,
        symbols,
        frame_counts,
        symbol_counts,
        termination_symbol,
        rnnt_type=rnnt_type,
        delay_penalty=max(delay_penalty, 0.0),
    )
    return reduced("rnnt_loss", losses, reduction)


@checked
def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """``k2.rnnt_loss_simple``: the loss of the logits ``lm[:, None] + am[:, :, None]``, which are never built.

    Args:
        lm: (B, S+1, C).
        am: (B, T, C).
        symbols: As in ``rnnt_loss``; so are the next five.
        termination_symbol: See there.
        boundary: See there.
        rnnt_type: See there.
        delay_penalty: See there.
        reduction: See there.
        return_grad: Also return the occupations.

    Returns:
        The reduced loss; with ``return_grad`` a pair of it and the occupations of ``get_rnnt_logprobs``'s two planes.

    Example:
        >>> import torch
        >>> from pathsum.compat.k2 import rnnt_loss_simple
        >>> loss = rnnt_loss_simple(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([[0]]), 1)
        >>> round(loss.item(), 4)
        1.3863
    """
    planes = get_rnnt_logprobs(lm, am, symbols, termination_symbol, rnnt_type, boundary)
    return reduced_planes(planes, boundary, delay_penalty, reduction, return_grad)


@checked
def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """``k2.rnnt_loss_smoothed``: ``rnnt_loss_simple`` of log-probabilities mixed with those of ``lm`` and ``am`` alone.

    Args:
        lm: As in ``rnnt_loss_simple``; so is all that is not below.
        am: See there.
        symbols: See there.
        termination_symbol: See there.
        lm_only_scale: Share of the log-probabilities of ``lm`` alone.
        am_only_scale: Share of those of ``am`` with the batch's mean of ``lm``'s probabilities.
        boundary: See there.
        rnnt_type: See there.
        delay_penalty: See there.
        reduction: See there.
        return_grad: See there.

    Returns:
        As ``rnnt_loss_simple``.

    Example:
        >>> import torch
        >>> from pathsum.compat.k2 import rnnt_loss_smoothed
        >>> loss = rnnt_loss_smoothed(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([[0]]), 1)
        >>> round(loss.item(), 4)
        1.3863
    """
    scales = lm_only_scale, am_only_scale
    planes = get_rnnt_logprobs_smoothed(lm, am, symbols, termination_symbol, *scales, boundary, rnnt_type)
    return reduced_planes(planes, boundary, delay_penalty, reduction, return_grad)


@checked
def get_rnnt_logprobs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> Planes:
    """``k2.get_rnnt_logprobs``: log-probabilities of labels, (B, S, T+1) or (B, S, T), and of blanks, (B, S+1, T)."""
    return get_rnnt_logprobs_smoothed(lm, am, symbols, termination_symbol, 0.0, 0.0, boundary, rnnt_type)


@checked
def get_rnnt_logprobs_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> Planes:
    """``k2.get_rnnt_logprobs_smoothed``: the planes of ``get_rnnt_logprobs``, smoothed."""
    function = "get_rnnt_logprobs"
    check_floats(function, "lm", lm, "(B, S+1, C)")
    check_floats(function, "am", am, "(B, T, C)")
    num_samples, num_frames, num_classes = am.shape
    check_size(function, "lm", lm, (num_samples, None, num_classes), "(B, S+1, C)")
    blank = check_class(function, "termination_symbol", termination_symbol, num_classes)
    symbols = check_symbols(function, symbols, num_samples, lm.shape[1] - 1, num_classes)
    boundary = check_boundary(function, boundary, num_samples, lm.shape[1] - 1, num_frames)
    am_max, lm_max = am.amax(2, keepdim=True), lm.amax(2, keepdim=True)
    # Where lm and am have their maxima far apart the products get small: down to exp(-700) in float64.
    am_probs, lm_probs = (am - am_max).double().exp(), (lm - lm_max).double().exp()
    both = (lm_probs @ am_probs.mT).log().to(am.dtype) + lm_max + am_max.mT  # (B, S+1, T)
    unigram = (lm_probs / lm_probs.sum(2, keepdim=True)).mean((0, 1))
    am_only = (am_probs @ unigram).log().to(am.dtype)[:, None] + am_max.mT  # (B, 1, T)
    lm_only = lm_probs.sum(2, keepdim=True).log().to(lm.dtype) + lm_max  # (B, S+1, 1)
    rest = 1 - lm_only_scale - am_only_scale

    def mixed(am_scores: Tensor, lm_scores: Tensor, unigram_scores: Tensor, rows: slice) -> Tensor:
        plane = rest * (am_scores + lm_scores - both[:, rows])
        if lm_only_scale:
            plane = plane + lm_only_scale * (lm_scores - lm_only[:, rows])
        if am_only_scale:
            plane = plane + am_only_scale * (am_scores + unigram_scores - am_only)
        return plane

    log_unigram = unigram.log().to(lm.dtype)
    label_am = am.mT.gather(1, symbols[..., None].expand(-1, -1, am.shape[1]))
    label_lm = lm[:, :-1].gather(2, symbols[..., None])
    px = mixed(label_am, label_lm, log_unigram[symbols][..., None], slice(None, -1))
    py = mixed(am[:, None, :, blank], lm[:, :, blank, None], log_unigram[blank], slice(None))
    return typed_planes(px, py, rnnt_type, boundary)


@checked
def get_rnnt_logprobs_joint(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> Planes:
    """``k2.get_rnnt_logprobs_joint``: the two planes of logits (B, T, S+1, C)."""
    function = "get_rnnt_logprobs_joint"
    check_floats(function, "logits", logits, "(B, T, S+1, C)")
    num_samples, num_frames, width, num_classes = logits.shape
    blank = check_class(function, "termination_symbol", termination_symbol, num_classes)
    symbols = check_symbols(function, symbols, num_samples, width - 1, num_classes)
    boundary = check_boundary(function, boundary, num_samples, width - 1, num_frames)
    log_probs = logits.log_softmax(-1)
    labels = symbols[:, None, :, None].expand(-1, logits.shape[1], -1, -1)
    px = log_probs[:, :, :-1].gather(3, labels)[..., 0].transpose(1, 2)
    return typed_planes(px, log_probs[..., blank].transpose(1, 2), rnnt_type, boundary)


@checked
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> Any:
    """``k2.mutual_information_recursion``: the log-sum (B,) over the walks from the first to the last node of a grid.

    Args:
        px: Scores (B, S, T+1) of the steps to the next s, or (B, S, T) of steps that go to the next t as well.
        py: Scores (B, S+1, T) of the steps to the next t.
        boundary: As in ``rnnt_loss``.
        return_grad: Also return the occupations.

    Returns:
        The log-sums; with ``return_grad`` a pair of them and the occupations, shaped as ``px`` and ``py``.

    Example:
        >>> import torch
        >>> from pathsum.compat.k2 import mutual_information_recursion
        >>> round(mutual_information_recursion(torch.zeros(1, 2, 4), torch.zeros(1, 3, 3)).exp().item(), 3)
        10.0
    """
    scores = _log_sums(px, py, boundary)
    if not return_grad:
        return scores
    with torch.enable_grad():
        leaves = px.detach().requires_grad_(), py.detach().requires_grad_()
        return scores, torch.autograd.grad(_log_sums(*leaves, boundary).sum(), leaves)


def joint_mutual_information_recursion(
    px: Sequence[Tensor], py: Sequence[Tensor], boundary: Tensor | None = None
) -> Tensor:
    """``k2.joint_mutual_information_recursion``: what each of K pairs of planes adds to the log-sum of their sum.

    Args:
        px: K planes as in ``mutual_information_recursion``.
        py: K planes.
        boundary: As in ``rnnt_loss``.

    Returns:
        (K, B): the scores of each pair, expected over the walks; in the first also the walks' entropy. They add up to
        the log-sums, and their gradients by the planes to its gradient; the occupations are constants to them.
    """
    function = "joint_mutual_information_recursion"
    px, py = ([tensor(function, name, plane) for plane in planes] for name, planes in (("px", px), ("py", py)))
    for pair in zip(px, py, strict=True):
        check_planes(function, *pair)
    planes = torch.stack(list(px)).sum(0), torch.stack(list(py)).sum(0)
    scores, occupations = mutual_information_recursion(*planes, boundary, return_grad=True)
    # An impossible step has the score -inf and the occupation 0.
    expected = [
        [(occupied * plane.where(occupied > 0, 0)).sum((1, 2)) for plane in pair]
        for occupied, pair in zip(occupations, (px, py), strict=True)
    ]
    each = torch.stack([by_labels + by_blanks for by_labels, by_blanks in zip(*expected, strict=True)])
    rest = (scores - each.sum(0)).detach()
    return torch.cat([each[:1] + rest, each[1:]])


def _log_sums(px: Tensor, py: Tensor, boundary: Tensor | None) -> Tensor:
    function = "mutual_information_recursion"
    num_symbols, num_frames = check_planes(function, px, py)
    num_samples, width = len(px), px.shape[2]
    boundary = check_boundary(function, boundary, num_samples, num_symbols, num_frames)
    bounds = _boundary(boundary, num_symbols, num_frames, px)
    first_symbol, first_frame, last_symbol, last_frame = (bound[:, None, None] for bound in bounds.unbind(1))
    # One frame more, behind the last, whose blank costs nothing and ends every walk.
    labels = torch.nn.functional.pad(px, (0, num_frames + 1 - width, 0, 1), value=-torch.inf)
    frames = torch.arange(num_frames + 1, device=px.device)
    blanks = torch.nn.functional.pad(py, (0, 1)).masked_fill(frames == last_frame, 0.0)
    if bounds[:, :2].any():
        # A walk that begins elsewhere begins at the first node of planes that are moved there.
        t = (frames + first_frame).clamp(max=num_frames).expand(-1, num_symbols + 1, -1)
        s = (torch.arange(num_symbols + 1, device=px.device)[:, None] + first_symbol).clamp(max=num_symbols)
        blanks, labels = (plane.gather(2, t).gather(1, s.expand_as(t)) for plane in (blanks, labels))
    losses = pathsum_torch.rnnt_loss(
        torch.stack([blanks, labels], -1).transpose(1, 2),
        torch.ones(num_samples, num_symbols, dtype=torch.int64),
        (last_frame - first_frame)[:, 0, 0] + 1,
        (last_symbol - first_symbol)[:, 0, 0],
        blank=0,
        reduction="none",
        fused_log_softmax=False,
        rnnt_type="regular" if width > num_frames else "one_sym_per_frame",
    )
    return -losses


def _boundary(boundary: Tensor | None, num_symbols: int, num_frames: int, beside: Tensor) -> Tensor:
    if boundary is not None:
        return boundary
    return torch.tensor([[0, 0, num_symbols, num_frames]], device=beside.device).expand(len(beside), 4)


def check_planes(function: str, px: Tensor, py: Tensor, names: tuple[str, str] = ("px", "py")) -> tuple[int, int]:
    """S and T of two planes, (B, S, T+1) or (B, S, T), and (B, S+1, T)."""
    check_floats(function, names[0], px, "(B, S, T+1)")
    check_floats(function, names[1], py, "(B, S+1, T)")
    num_symbols, num_frames = px.shape[1], py.shape[2]
    check_size(function, names[1], py, (len(px), num_symbols + 1, None), "(B, S+1, T)")
    if px.shape[2] - num_frames not in (0, 1):
        rule = f"have T+1 or T frames with T = {num_frames}"
        raise InvalidValueError(function, names[0], rule, f"shape {tuple(px.shape)}")
    return num_symbols, num_frames


def check_symbols(
    function: str, symbols: Tensor, num_samples: int, num_symbols: int | None, num_classes: int
) -> Tensor:
    """Labels (B, S) as int64. Values are looked at where that is free: on the CPU."""
    check_size(function, "symbols", symbols, (num_samples, num_symbols), "(B, S)")
    symbols = as_int64(function, "symbols", symbols)
    if symbols.is_cpu and ((symbols < 0) | (symbols >= num_classes)).any():
        raise InvalidValueError(function, "symbols", f"lie in [0, C) with C = {num_classes}", symbols.tolist())
    return symbols


def check_boundary(
    function: str, boundary: Tensor | None, num_samples: int, num_symbols: int, num_frames: int
) -> Tensor | None:
    """Bounds (B, 4) as int64, and within the planes, which is looked at as the labels are."""
    if boundary is None:
        return None
    check_size(function, "boundary", boundary, (num_samples, 4), "(B, 4)")
    boundary = as_int64(function, "boundary", boundary)
    if boundary.is_cpu:
        first, last = boundary[:, :2], boundary[:, 2:]
        if ((first < 0) | (first > last) | (last > torch.tensor([num_symbols, num_frames], device="cpu"))).any():
            rule = f"have 0 <= first <= last, at most S = {num_symbols} and T = {num_frames}"
            raise InvalidValueError(function, "boundary", rule, boundary.tolist())
    return boundary


def as_int64(function: str, name: str, value: Tensor) -> Tensor:
    if value.dtype not in INTEGERS:
        raise InvalidTypeError(function, name, "have an integer dtype", value.dtype)
    return value.long()


@checked
def typed_planes(px: Tensor, py: Tensor, rnnt_type: str, boundary: Tensor | None) -> Planes:
    """The planes of a type, from label scores (B, S, T): no label behind the last frame, or two arcs in one."""
    if rnnt_type not in RNNT_TYPES:
        raise InvalidValueError("rnnt_loss", "rnnt_type", f"be one of {', '.join(RNNT_TYPES)}", repr(rnnt_type))
    if rnnt_type == "constrained":
        return px + py[:, 1:], py
    if rnnt_type == "modified":
        return px, py
    last = px.shape[2] if boundary is None else boundary[:, 3, None, None]
    px = torch.nn.functional.pad(px, (0, 1), value=-torch.inf)
    return px.masked_fill(torch.arange(px.shape[2], device=px.device) == last, -torch.inf), py


@checked
def reduced_planes(
    planes: Planes, boundary: Tensor | None, delay_penalty: float, reduction: str, return_grad: bool = False
) -> Any:
    """The reduced loss of planes; with ``return_grad`` also their occupations."""
    px, py = planes
    if delay_penalty > 0:
        last = torch.tensor(py.shape[2]) if boundary is None else boundary[:, 3, None, None]
        px = px + delay_penalty * ((last - 1) / 2 - torch.arange(px.shape[2], device=px.device)).to(px.dtype)
    scores = mutual_information_recursion(px, py, boundary)
    loss = reduced("rnnt_loss", -scores, reduction)
    return (loss, mutual_information_recursion(px, py, boundary, True)[1]) if return_grad else loss
