"""Beam decoding of CTC: the decoder of ``pathsum.decoding`` on JAX's arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pathsum import _checks, decoding
from pathsum.decoding import Beams, DecoderState, Lexicon, NGram
from pathsum.errors import InvalidTypeError


def ctc_beam_decode(
    log_probs: Any,
    input_lengths: Any = None,
    blank: int = 0,
    *,
    beam_size: int = 50,
    n_best: int = 1,
    lm: NGram | None = None,
    lm_weight: float = 0.0,
    word_score: float = 0.0,
    lexicon: Lexicon | None = None,
    separator: int | None = None,
    hotwords: Mapping[str | tuple[Any, ...], float] | None = None,
    labels: Sequence[str] | None = None,
    token_min: float = -math.inf,
    beam_threshold: float = math.inf,
    exact_scores: bool = True,
    state: DecoderState | None = None,
    batch_first: bool = True,
) -> Beams:
    """The most probable texts of CTC, by prefix beam search, each with its exact probability.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        blank: As in ``pathsum.decoding.ctc_beam_decode``.
        beam_size: As in ``pathsum.decoding.ctc_beam_decode``.
        n_best: As in ``pathsum.decoding.ctc_beam_decode``.
        lm: As in ``pathsum.decoding.ctc_beam_decode``.
        lm_weight: As in ``pathsum.decoding.ctc_beam_decode``.
        word_score: As in ``pathsum.decoding.ctc_beam_decode``.
        lexicon: As in ``pathsum.decoding.ctc_beam_decode``.
        separator: As in ``pathsum.decoding.ctc_beam_decode``.
        hotwords: As in ``pathsum.decoding.ctc_beam_decode``.
        labels: As in ``pathsum.decoding.ctc_beam_decode``.
        token_min: As in ``pathsum.decoding.ctc_beam_decode``.
        beam_threshold: As in ``pathsum.decoding.ctc_beam_decode``.
        exact_scores: As in ``pathsum.decoding.ctc_beam_decode``.
        state: As in ``pathsum.decoding.ctc_beam_decode``.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.

    Returns:
        ``Beams`` of JAX's arrays; they have 64 bits only where ``jax_enable_x64`` is set.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape; the message names it.
        InvalidTypeError: (a TypeError) an argument of a wrong type, and scores that have no values yet.

    Notes:
        This is ``pathsum.decoding.ctc_beam_decode``, which says what is searched for and how. It runs on the CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> from pathsum.jax import ctc_beam_decode
        >>> probs = jnp.array([[[0.6, 0.4], [0.6, 0.4]]])  # blanks are the best path, but 1 is the best text
        >>> ctc_beam_decode(jnp.log(probs)).tokens.tolist()
        [[[1]]]
    """
    found = decoding.ctc_beam_decode(
        _values("log_probs", log_probs),
        None if input_lengths is None else _values("input_lengths", input_lengths),
        blank=blank,
        beam_size=beam_size,
        n_best=n_best,
        lm=lm,
        lm_weight=lm_weight,
        word_score=word_score,
        lexicon=lexicon,
        separator=separator,
        hotwords=hotwords,
        labels=labels,
        token_min=token_min,
        beam_threshold=beam_threshold,
        exact_scores=exact_scores,
        state=state,
        batch_first=batch_first,
    )
    parts = (part if part is None or isinstance(part, list) else jnp.asarray(part) for part in found)
    return Beams(*parts)


def _values(argument: str, array: Any) -> np.ndarray:
    if isinstance(array, Tracer):
        raise InvalidTypeError("ctc_beam_decode", argument, "have values, outside of jax.jit", "a traced array")
    return _checks.as_array("ctc_beam_decode", argument, array)
