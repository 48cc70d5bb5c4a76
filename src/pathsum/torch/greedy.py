"""Greedy decoding: in every frame, or in every node, the most probable class.

Scores have the samples first, (N, T, C), unless ``batch_first=False``; results always have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.display import decoded, shown
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.lattice import BEYOND
from pathsum.torch._inputs import (
    Integers,
    check_lengths,
    check_values,
    dtype_of,
    of_samples,
    own_blank,
    samples_first,
    shape_of,
    tdt_durations,
)

# No frame has so many labels: where max_symbols is above it, a model that goes on for so long never leaves its frame.
ENDLESS = 1000


@shown(decoded)
class Decoded(NamedTuple):
    """What was decoded. Without the axis N for one sample given as (T, C).

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


@shown(decoded)
class TDTDecoded(NamedTuple):
    """What was decoded by a token-and-duration transducer.

    Attributes:
        tokens, lengths, frames, scores: As of ``Decoded``.
        durations: (N, L) how many frames each token goes on; -1 in padding.
    """

    tokens: Tensor
    lengths: Tensor
    frames: Tensor
    scores: Tensor
    durations: Tensor


def ctc_greedy_decode(
    log_probs: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    batch_first: bool = True,
) -> Decoded:
    """The most probable class of every frame, runs merged and blanks removed.

    Args:
        log_probs: Log-probabilities, or any scores, (N, T, C), or (T, C) for one sample.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores``, on the device of ``log_probs``; those of one sample given as
        (T, C) are (L,) and a length without axes.

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
    log_probs, batched = samples_first(function, "log_probs", log_probs, batch_first)
    check_values(function, "log_probs", log_probs)
    num_samples, num_frames, num_classes = log_probs.shape
    blank = _checks.check_blank(function, blank, num_classes)
    lengths = check_lengths(function, "input_lengths", input_lengths, num_samples, num_frames, batched)
    scores, classes = log_probs.detach().max(2)
    before = torch.cat([torch.full_like(classes[:, :1], blank), classes[:, :-1]], 1)
    real = torch.arange(num_frames, device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    begins = real & (classes != blank) & (classes != before)
    sample, frame = begins.nonzero(as_tuple=True)
    tokens = (classes[sample, frame], frame, scores[sample, frame])
    return Decoded(*of_samples(batched, *_pack(sample, tokens, num_samples)))


def rnnt_greedy_decode(
    encoder_out: Tensor | np.ndarray,
    encoder_lengths: Integers | int | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], Tensor],
    blank: int,
    *,
    max_symbols: int = 10,
    state_axis: int = 0,
    batch_first: bool = True,
    num_classes: int | None = None,
) -> Decoded:
    """Greedy decoding of a transducer, all samples at once: in every node the most probable class.

    Args:
        encoder_out: Output of the encoder (N, T, H), or (T, H) for one sample.
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        predict: The predictor, one step: ``predict(tokens, state) -> (output, state)``, of tokens (N,), int64, to an
            output (N, P). The first call has the blank for tokens and ``None`` for state. A state is a tensor, or
            tuples, lists and dicts of tensors.
        join: The joiner: ``join(frames, outputs) -> logits``, of (N, H) and (N, P) to (N, V).
        blank: Index of the blank among the V classes. The first call of ``predict`` has it before any logits tell how
            many there are, so that one counted from the end needs ``num_classes``.
        max_symbols: After so many labels in one frame the next frame is taken without a blank. Above 1000 a frame
            of 1000 labels raises.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.
        batch_first: ``encoder_out`` is (N, T, H); where False (T, N, H). Results have the samples first in any case.
        num_classes: V, of which a negative blank counts from the end.

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
    blank = own_blank(function, blank, num_classes)

    def read(logits: Tensor) -> Symbols:
        return _one_head(function, logits, blank, (), ())

    walk = _Walk(function, predict, join, blank, *_limits(function, max_symbols, state_axis))
    return Decoded(*walk.decode(encoder_out, encoder_lengths, batch_first, read)[:4])


def multi_blank_rnnt_greedy_decode(
    encoder_out: Tensor | np.ndarray,
    encoder_lengths: Integers | int | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], Tensor],
    big_blank_durations: Sequence[int],
    big_blanks: Sequence[int],
    blank: int,
    *,
    max_symbols: int = 10,
    state_axis: int = 0,
    batch_first: bool = True,
    num_classes: int | None = None,
) -> Decoded:
    """Greedy decoding of a multi-blank transducer: a big blank goes on by as many frames as it stands for.

    Args:
        encoder_out: Output of the encoder (N, T, H), or (T, H) for one sample.
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``.
        predict: As in ``rnnt_greedy_decode``.
        join: The joiner: ``join(frames, outputs) -> logits``, of (N, H) and (N, P) to (N, V).
        big_blank_durations: Frames of each big blank, at least 1.
        big_blanks: Class of each big blank, in the same order; negative counts from the end.
        blank: As in ``rnnt_greedy_decode``.
        max_symbols: After so many labels in one frame the next frame is taken without a blank. Above 1000 a frame
            of 1000 labels raises.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.
        batch_first: ``encoder_out`` is (N, T, H); where False (T, N, H). Results have the samples first in any case.
        num_classes: V, of which a negative blank counts from the end.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores`` as ``rnnt_greedy_decode``, without blanks of any size.

    Raises:
        InvalidValueError: As ``rnnt_greedy_decode``; also for big blanks or durations that are not as said.
        InvalidTypeError: As ``rnnt_greedy_decode``.

    Notes:
        A big blank near the end may pass it: decoding ends there.

    References:
        Xu et al. (2022), Multi-blank transducers for speech recognition, arXiv 2211.03541.

    Example:
        >>> import torch
        >>> from pathsum.torch import multi_blank_rnnt_greedy_decode
        >>> best = torch.tensor([[1, 3, 1, 2]])  # 3 is a blank of two frames, so that frame 2 is never heard
        >>> heard = 9.0 * torch.nn.functional.one_hot(best, 4)
        >>> def predict(tokens, state):  # a label is not said twice
        ...     return -18.0 * torch.nn.functional.one_hot(tokens, 4) * (tokens > 0)[:, None], state
        >>> multi_blank_rnnt_greedy_decode(heard, None, predict, torch.add, [2], [3], blank=0).frames.tolist()
        [[0, 3]]
    """
    function = "multi_blank_rnnt_greedy_decode"
    blank = own_blank(function, blank, num_classes)
    durations = _checks.check_durations(function, "big_blank_durations", big_blank_durations, minimum=1, distinct=False)
    classes = tuple(_checks.check_counts(function, "big_blanks", big_blanks, -(2**31)))
    if len(classes) != len(durations):
        rule = f"have one class a duration, {len(durations)}"
        raise InvalidValueError(function, "big_blanks", rule, list(classes))

    def read(logits: Tensor) -> Symbols:
        return _one_head(function, logits, blank, durations, classes)

    walk = _Walk(function, predict, join, blank, *_limits(function, max_symbols, state_axis))
    return Decoded(*walk.decode(encoder_out, encoder_lengths, batch_first, read)[:4])


def tdt_greedy_decode(
    encoder_out: Tensor | np.ndarray,
    encoder_lengths: Integers | int | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    durations: Sequence[int],
    blank: int,
    *,
    max_symbols: int = 10,
    state_axis: int = 0,
    batch_first: bool = True,
    num_classes: int | None = None,
) -> TDTDecoded:
    """Greedy decoding of a token-and-duration transducer: each symbol goes on by its most probable duration.

    Args:
        encoder_out: Output of the encoder (N, T, H), or (T, H) for one sample.
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``.
        predict: As in ``rnnt_greedy_decode``.
        join: The joiner: ``join(frames, outputs) -> (token_logits, duration_logits)``, of (N, H) and (N, P) to (N, V)
            and (N, D).
        durations: How many frames each of the D durations is: different numbers from 0, one of them above 0.
        blank: As in ``rnnt_greedy_decode``.
        max_symbols: After so many labels of duration 0 in one frame the next frame is taken. Above 1000 a frame of
            1000 such labels raises.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.
        batch_first: ``encoder_out`` is (N, T, H); where False (T, N, H). Results have the samples first in any case.
        num_classes: V, of which a negative blank counts from the end.

    Returns:
        ``tokens``, ``lengths``, ``frames``, ``scores`` (log-softmax of the token logits) and ``durations`` (N, L), on
        the encoder's device.

    Raises:
        InvalidValueError: As ``rnnt_greedy_decode``; also for durations that are not as said, or not one a column.
        InvalidTypeError: As ``rnnt_greedy_decode``.

    Notes:
        In each node the most probable token is taken, then the most probable of the durations that it may have: a
        label any, a blank one above 0, as in ``tdt_loss``. (NeMo goes one frame on where a blank's is 0.)

    References:
        Xu et al. (2023), Efficient sequence transduction by jointly predicting tokens and durations, arXiv 2304.06795.

    Example:
        >>> import torch
        >>> from pathsum.torch import tdt_greedy_decode
        >>> tokens = 9.0 * torch.nn.functional.one_hot(torch.tensor([[1, 1, 2, 0]]), 3)
        >>> steps = 9.0 * torch.nn.functional.one_hot(torch.tensor([[2, 0, 1, 1]]), 3)
        >>> def join(frames, outputs):  # frames tell both
        ...     return frames[:, :3], frames[:, 3:]
        >>> def predict(tokens, state):
        ...     return tokens[:, None], state
        >>> found = tdt_greedy_decode(torch.cat([tokens, steps], 2), None, predict, join, [0, 1, 2], blank=0)
        >>> found.tokens.tolist(), found.frames.tolist(), found.durations.tolist()
        ([[1, 2]], [[0, 2]], [[2, 1]])
    """
    function = "tdt_greedy_decode"
    blank = own_blank(function, blank, num_classes)
    steps = tdt_durations(function, durations)

    def read(logits: Any) -> Symbols:
        shapes = [shape_of(part) for part in logits] if isinstance(logits, tuple) else []
        if len(shapes) != 2 or shapes[1][-1] != len(steps):
            got = shapes if isinstance(logits, tuple) else type(logits).__name__
            raise InvalidValueError(function, "join", f"return logits (N, V) and (N, D), D = {len(steps)}", got)
        scores, classes = logits[0].log_softmax(1).max(1)
        is_label = classes != _checks.check_blank(function, blank, logits[0].shape[1])
        frames = torch.tensor(steps, device=classes.device)
        allowed = is_label[:, None] | (frames > 0)
        chosen = torch.where(allowed, logits[1], -torch.inf).argmax(1)
        return Symbols(scores, classes, is_label, frames[chosen])

    walk = _Walk(function, predict, join, blank, *_limits(function, max_symbols, state_axis))
    return TDTDecoded(*walk.decode(encoder_out, encoder_lengths, batch_first, read))


class Symbols(NamedTuple):
    """The symbols that the samples emit in a step.

    Attributes:
        scores, classes: (N,) log-probability and class.
        is_label: (N,) whether it is written.
        steps: (N,) how many frames it goes on.
    """

    scores: Tensor
    classes: Tensor
    is_label: Tensor
    steps: Tensor


def _one_head(
    function: str, logits: Tensor, blank: int, durations: tuple[int, ...], big_blanks: tuple[int, ...]
) -> Symbols:
    """The most probable class of each sample: a blank goes one frame on, a big blank its own, a label none."""
    num_classes = logits.shape[1]
    blank = _checks.check_blank(function, blank, num_classes)
    steps = torch.zeros(num_classes, dtype=torch.int64, device=logits.device)
    steps[[blank, *_checks.check_classes(function, "big_blanks", big_blanks, num_classes, blank)]] = torch.tensor(
        [1, *durations], dtype=torch.int64, device=logits.device
    )
    scores, classes = logits.log_softmax(1).max(1)
    own = steps[classes]
    return Symbols(scores, classes, own == 0, own)


class _Walk(NamedTuple):
    """The greedy walk of a batch through a transducer's grid."""

    function: str
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]]
    join: Callable[[Tensor, Tensor], Any]
    blank: int
    max_symbols: int
    state_axis: int

    def decode(
        self,
        encoder_out: Any,
        encoder_lengths: Integers | int | None,
        batch_first: bool,
        read: Callable[[Any], Symbols],
    ) -> tuple[Tensor, ...]:
        """Tokens, lengths, frames, scores and steps; ``read`` tells the symbols of what ``join`` returns."""
        encoder_out, batched = samples_first(self.function, "encoder_out", encoder_out, batch_first, "H")
        check_values(self.function, "encoder_out", encoder_out)
        num_samples, num_frames, _ = encoder_out.shape
        lengths = check_lengths(self.function, "encoder_lengths", encoder_lengths, num_samples, num_frames, batched).to(
            encoder_out.device
        )
        batch = torch.arange(num_samples, device=encoder_out.device)
        frame, in_frame = torch.zeros_like(lengths), torch.zeros_like(lengths)
        emitted: list[tuple[Tensor, ...]] = [(batch[:0], batch[:0], batch[:0], encoder_out.new_empty(0), batch[:0])]
        with torch.no_grad():
            output, state = self.predicted(torch.full_like(lengths, self.blank), None)
            while bool((frame < lengths).any()):
                symbols = read(self.joined(encoder_out[batch, frame.clamp(max=num_frames - 1)], output))
                writes = (frame < lengths) & symbols.is_label
                scores = symbols.scores.to(encoder_out.dtype)
                values = (batch, symbols.classes, frame, scores, symbols.steps)
                emitted.append(tuple(value[writes] for value in values))
                in_frame = torch.where(writes & (symbols.steps == 0), in_frame + 1, 0)
                if self.max_symbols > ENDLESS and bool((in_frame >= ENDLESS).any()):
                    rule, got = "score another symbol than labels best at last", f"{ENDLESS} labels in a frame"
                    raise InvalidValueError(self.function, "join", rule, got, int(in_frame.argmax()))
                leaves = in_frame == self.max_symbols
                frame, in_frame = frame + torch.where(leaves, 1, symbols.steps), torch.where(leaves, 0, in_frame)
                if bool(writes.any()):
                    new_output, new_state = self.predicted(torch.where(writes, symbols.classes, self.blank), state)
                    output = torch.where(writes[:, None], new_output, output)
                    state = self.chosen(writes, new_state, state)
        sample, *values = map(torch.cat, zip(*emitted, strict=True))
        return of_samples(batched, *_pack(sample, tuple(values), num_samples))

    def predicted(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the predictor returns, checked."""
        found = self.predict(tokens, state)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise InvalidTypeError(self.function, "predict", "return an output and a state", type(found).__name__)
        self.check_output("predict", found[0], len(tokens), "(N, P)")
        return found[0], found[1]

    def joined(self, frames: Tensor, outputs: Tensor) -> Any:
        """What the joiner returns, checked: logits, or a tuple of them."""
        found = self.join(frames, outputs)
        for logits in found if isinstance(found, tuple) else (found,):
            self.check_output("join", logits, len(frames), "(N, V)")
        return found

    def check_output(self, argument: str, output: Any, num_samples: int, axes: str) -> None:
        shape = shape_of(output)
        if len(shape) != 2 or shape[0] != num_samples or shape[1] < 1:
            got = f"shape {shape}" if isinstance(output, Tensor) else dtype_of(output)
            raise InvalidValueError(self.function, argument, f"return a tensor {axes} with N = {num_samples}", got)

    def chosen(self, mask: Tensor, new: Any, old: Any) -> Any:
        """The new state for the samples of the mask, the old one for the others."""
        if isinstance(new, Tensor):
            axis = self.state_axis
            if not -new.ndim <= axis < new.ndim or new.shape[axis] != len(mask):
                rule = f"be the axis of the N = {len(mask)} samples in the tensors of a state"
                raise InvalidValueError(self.function, "state_axis", rule, f"{axis} of shape {tuple(new.shape)}")
            shape = [1] * new.ndim
            shape[axis] = -1
            return torch.where(mask.reshape(shape), new, old)
        if isinstance(new, dict):
            return {name: self.chosen(mask, value, old[name]) for name, value in new.items()}
        if isinstance(new, (tuple, list)):
            chosen = [self.chosen(mask, *values) for values in zip(new, old, strict=True)]
            return type(new)(*chosen) if hasattr(new, "_fields") else type(new)(chosen)
        return new


def _limits(function: str, max_symbols: Any, state_axis: Any) -> tuple[int, int]:
    """Both, checked, as ints of 32 bits."""
    symbols = min(_checks.check_count(function, "max_symbols", max_symbols, 1), BEYOND)
    return symbols, _checks.check_count(function, "state_axis", state_axis, -BEYOND, BEYOND)


def _pack(sample: Tensor, values: tuple[Tensor, ...], num_samples: int) -> tuple[Tensor, ...]:
    """Tokens and what they have, in the order in which each sample has them, as padded rows; lengths after tokens.

    Rows of integers are padded with -1, others with 0.
    """
    order = torch.sort(sample, stable=True).indices
    sample = sample[order]
    lengths = torch.bincount(sample, minlength=num_samples)
    position = torch.arange(len(sample), device=sample.device) - (lengths.cumsum(0) - lengths)[sample]
    shape = (num_samples, int(lengths.max()) if num_samples else 0)
    padded = [value.new_full(shape, 0 if value.is_floating_point() else -1) for value in values]
    for row, value in zip(padded, values, strict=True):
        row[sample, position] = value[order]
    return padded[0], lengths, *padded[1:]
