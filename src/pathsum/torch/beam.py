"""Beam decoding of frames: the decoders of ``pathsum.decoding`` on tensors.

Scores have the samples first, (N, T, C), unless ``batch_first=False``; results always have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import decoding
from pathsum.decoding import Beams, DecoderState, Lexicon, NGram
from pathsum.torch._inputs import Integers, as_integers, as_scores, check_table, check_values, samples_first


def ctc_beam_decode(
    log_probs: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
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
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample: a tensor on any device, or an array.
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
        ``Beams`` of tensors on the device of ``log_probs``; scores are float64.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape; the message names it.
        InvalidTypeError: (a TypeError) an argument of a wrong type.

    Notes:
        This is ``pathsum.decoding.ctc_beam_decode``, which says what is searched for and how. It runs on the CPU, on as
        many threads as torch is set to use, and without gradients.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_beam_decode
        >>> probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]])  # blanks are the best path, but 1 is the best text
        >>> found = ctc_beam_decode(probs.log(), n_best=2)
        >>> found.tokens.tolist(), [[round(x, 2) for x in row] for row in found.ctc_scores.exp().tolist()]
        ([[[1], [-1]]], [[0.64, 0.36]])
    """
    scores, batched = samples_first("ctc_beam_decode", "log_probs", log_probs, batch_first)
    check_values("ctc_beam_decode", "log_probs", scores)
    return _decoded(
        decoding.ctc_beam_decode,
        scores,
        batched,
        input_lengths,
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
    )


def simple_ctc_beam_decode(
    log_probs: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
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
    """The most probable texts of simplified CTC, in which each label is on one frame.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample: a tensor on any device, or an array.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        blank: As in ``ctc_beam_decode``.
        beam_size: As in ``ctc_beam_decode``.
        n_best: As in ``ctc_beam_decode``.
        lm: As in ``ctc_beam_decode``.
        lm_weight: As in ``ctc_beam_decode``.
        word_score: As in ``ctc_beam_decode``.
        lexicon: As in ``ctc_beam_decode``.
        separator: As in ``ctc_beam_decode``.
        hotwords: As in ``ctc_beam_decode``.
        labels: As in ``ctc_beam_decode``.
        token_min: As in ``ctc_beam_decode``.
        beam_threshold: As in ``ctc_beam_decode``.
        exact_scores: As in ``ctc_beam_decode``.
        state: As in ``ctc_beam_decode``.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.

    Returns:
        ``Beams`` of tensors on the device of ``log_probs``; scores are float64.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape; the message names it.
        InvalidTypeError: (a TypeError) an argument of a wrong type.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_beam_decode
        >>> probs = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
        >>> simple_ctc_beam_decode(probs.log()).tokens.tolist()  # two labels; in CTC they would be one
        [[[1, 1]]]
    """
    scores, batched = samples_first("simple_ctc_beam_decode", "log_probs", log_probs, batch_first)
    check_values("simple_ctc_beam_decode", "log_probs", scores)
    return _decoded(
        decoding.simple_ctc_beam_decode,
        scores,
        batched,
        input_lengths,
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
    )


def asg_beam_decode(
    inputs: Tensor | np.ndarray,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
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
    """The most probable texts of the auto segmentation criterion.

    Args:
        inputs: Unnormalised scores (N, T, C), or (T, C) for one sample: a tensor on any device, or an array.
        transitions: Scores (C, C) of passing from one label to the next: ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        beam_size: As in ``ctc_beam_decode``.
        n_best: As in ``ctc_beam_decode``.
        lm: As in ``ctc_beam_decode``.
        lm_weight: As in ``ctc_beam_decode``.
        word_score: As in ``ctc_beam_decode``.
        lexicon: As in ``ctc_beam_decode``.
        separator: As in ``ctc_beam_decode``.
        hotwords: As in ``ctc_beam_decode``.
        labels: As in ``ctc_beam_decode``.
        token_min: As in ``ctc_beam_decode``.
        beam_threshold: As in ``ctc_beam_decode``.
        exact_scores: As in ``ctc_beam_decode``.
        state: As in ``ctc_beam_decode``.
        batch_first: ``inputs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.

    Returns:
        ``Beams`` of tensors on the device of ``inputs``; scores are float64.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape; the message names it.
        InvalidTypeError: (a TypeError) an argument of a wrong type.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_beam_decode
        >>> inputs = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]])
        >>> asg_beam_decode(inputs, torch.zeros(2, 2)).tokens.tolist()
        [[[0, 1]]]
    """
    function = "asg_beam_decode"
    scores, batched = samples_first(function, "inputs", inputs, batch_first)
    check_values(function, "inputs", scores)
    table = as_scores(transitions)
    check_table(function, "transitions", table, scores, "(C, C)")
    return _decoded(
        decoding.asg_beam_decode,
        scores,
        batched,
        input_lengths,
        _array(table),
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
    )


def _decoded(
    decode: Callable[..., Beams], scores: Tensor, batched: bool, lengths: Any, *tables: np.ndarray, **options: Any
) -> Beams:
    """The beams of a decoder of ``pathsum.decoding``, as tensors on the device of the scores (N, T, C)."""
    if lengths is not None:
        lengths = as_integers(decode.__name__, "input_lengths", lengths)
    array = _array(scores)
    found = decode(
        array if batched else array[0], *tables, input_lengths=lengths, num_threads=torch.get_num_threads(), **options
    )
    values = (
        value if value is None or isinstance(value, list) else torch.as_tensor(value, device=scores.device)
        for value in found
    )
    return Beams(*values)


def _array(scores: Tensor) -> np.ndarray:
    scores = scores.detach().cpu()
    return (scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores).numpy()
