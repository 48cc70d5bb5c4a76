"""Greedy decoding: in every frame, or in every node, the most probable class. Samples come first, (N, T, C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.torch._batch_first import check_lengths
from pathsum.torch._inputs import Integers, dtype_of, shape_of


class Decoded(NamedTuple):
    """What was decoded.

    Attributes:
        tokens: (N, L) classes, -1 in padding; L is the greatest length.
        lengths: (N,) how many tokens.
        frames: (N, L) frame in which each begins; -1 in padding.
        scores: (N, L) log-probability of each in that frame; 0 in padding.
    """

    tokens: Tensor
    lengths: Tensor
    frames: Tensor
    scores: Tensor


def ctc_greedy_decode(log_probs: Tensor, input_lengths: Integers | None = None, blank: int = 0) -> Decoded:
    """The most probable class of every frame, runs merged and blanks removed.

    Args:
        log_probs: Log-probabilities, or any scores, (N, T, C).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        blank: Index of the blank class; negative counts from the end.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores``, on the device of ``log_probs``.

    Raises:
        InvalidValueError: (a ValueError) a length or the blank out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Of equal classes the lowest. This is the best path of CTC, which need not spell the most probable target.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_greedy_decode
        >>> probs = torch.tensor([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
        >>> tokens, lengths, frames, scores = ctc_greedy_decode(probs.log())
        >>> tokens.tolist(), frames.tolist()
        ([[1, 1]], [[0, 3]])
    """
    function = "ctc_greedy_decode"
    _checks.check_scores(function, "log_probs", dtype_of(log_probs), shape_of(log_probs), ("(N, T, C)",))
    num_samples, num_frames, num_classes = log_probs.shape
    blank = _checks.check_blank(function, blank, num_classes)
    lengths = check_lengths(function, "input_lengths", input_lengths, num_samples, num_frames).to(log_probs.device)
    scores, classes = log_probs.detach().max(2)
    before = torch.cat([torch.full_like(classes[:, :1], blank), classes[:, :-1]], 1)
    real = torch.arange(num_frames, device=log_probs.device) < lengths[:, None]
    begins = real & (classes != blank) & (classes != before)
    sample, frame = begins.nonzero(as_tuple=True)
    return _pack(sample, classes[sample, frame], frame, scores[sample, frame], num_samples)


def rnnt_greedy_decode(
    encoder_out: Tensor,
    encoder_lengths: Integers | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], Tensor],
    blank: int,
    *,
    max_symbols: int = 10,
    state_axis: int = 0,
) -> Decoded:
    """Greedy decoding of a transducer, all samples at once: in every node the most probable class.

    Args:
        encoder_out: Output of the encoder (N, T, H).
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``.
        predict: The predictor, one step: ``predict(tokens, state) -> (output, state)``, of tokens (N,), int64, to an
            output (N, P). The first call has the blank for tokens and ``None`` for state. A state is a tensor, or
            tuples, lists and dicts of tensors.
        join: The joiner: ``join(frames, outputs) -> logits``, of (N, H) and (N, P) to (N, V).
        blank: Index of the blank among the V classes, from 0: how many there are is not known at the first call.
        max_symbols: After so many labels in one frame the next frame is taken without a blank.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores`` (log-softmax of the logits), on the encoder's device.

    Raises:
        InvalidValueError: (a ValueError) a length or the blank out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Every step advances each sample by a frame or by a label: at most ``T + (labels)`` calls of ``join``, and as
        many of ``predict`` as there are steps in which some sample emits a label. Runs without gradients.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_greedy_decode
        >>> heard = torch.tensor([[[0.0, 3.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])  # blank is 0
        >>> def predict(tokens, state):  # a label is not said twice
        ...     return -9.0 * torch.nn.functional.one_hot(tokens, 3) * (tokens > 0)[:, None], state
        >>> tokens, lengths, frames, scores = rnnt_greedy_decode(heard, None, predict, torch.add, blank=0)
        >>> tokens.tolist(), frames.tolist()
        ([[1, 2]], [[0, 2]])
    """
    function = "rnnt_greedy_decode"
    _checks.check_scores(function, "encoder_out", dtype_of(encoder_out), shape_of(encoder_out), ("(N, T, H)",))
    for name, value, least in (("blank", blank, 0), ("max_symbols", max_symbols, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidValueError(function, name, f"be an int, at least {least}", value)
    num_samples, num_frames, _ = encoder_out.shape
    lengths = check_lengths(function, "encoder_lengths", encoder_lengths, num_samples, num_frames).to(
        encoder_out.device
    )
    batch = torch.arange(num_samples, device=encoder_out.device)
    frame, in_frame = torch.zeros_like(lengths), torch.zeros_like(lengths)
    emitted = [(batch[:0], batch[:0], batch[:0], encoder_out.new_empty(0))]
    with torch.no_grad():
        output, state = predict(torch.full_like(lengths, blank), None)
        while bool((frame < lengths).any()):
            logits = join(encoder_out[batch, frame.clamp(max=num_frames - 1)], output)
            scores, classes = logits.log_softmax(1).max(1)
            writes = (frame < lengths) & (classes != blank)
            emitted.append((batch[writes], classes[writes], frame[writes], scores[writes].to(encoder_out.dtype)))
            in_frame = torch.where(writes, in_frame + 1, 0)
            advances = ~writes | (in_frame == max_symbols)
            frame, in_frame = torch.where(advances, frame + 1, frame), torch.where(advances, 0, in_frame)
            if bool(writes.any()):
                new_output, new_state = predict(torch.where(writes, classes, blank), state)
                output = torch.where(writes[:, None], new_output, output)
                state = _choose(writes, new_state, state, state_axis)
    sample, tokens, frames, scores = map(torch.cat, zip(*emitted, strict=True))
    return _pack(sample, tokens, frames, scores, num_samples)


def _choose(mask: Tensor, new: Any, old: Any, axis: int) -> Any:
    """The new state for the samples of the mask, the old one for the others."""
    if isinstance(new, Tensor):
        shape = [1] * new.ndim
        shape[axis] = -1
        return torch.where(mask.reshape(shape), new, old)
    if isinstance(new, dict):
        return {name: _choose(mask, value, old[name], axis) for name, value in new.items()}
    if isinstance(new, (tuple, list)):
        chosen = [_choose(mask, *values, axis) for values in zip(new, old, strict=True)]
        return type(new)(*chosen) if hasattr(new, "_fields") else type(new)(chosen)
    return new


def _pack(sample: Tensor, tokens: Tensor, frames: Tensor, scores: Tensor, num_samples: int) -> Decoded:
    """Tokens in the order in which each sample has them, the samples in any order, as padded rows."""
    order = torch.sort(sample, stable=True).indices
    sample, tokens, frames, scores = sample[order], tokens[order], frames[order], scores[order]
    lengths = torch.bincount(sample, minlength=num_samples)
    position = torch.arange(len(sample), device=sample.device) - (lengths.cumsum(0) - lengths)[sample]
    shape = (num_samples, int(lengths.max()) if num_samples else 0)
    padded = [tokens.new_full(shape, -1), frames.new_full(shape, -1), scores.new_zeros(shape)]
    for row, values in zip(padded, (tokens, frames, scores), strict=True):
        row[sample, position] = values
    return Decoded(padded[0], lengths, padded[1], padded[2])
