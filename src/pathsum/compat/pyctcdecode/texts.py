"""What a decoder is given, and what it has found, as texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathsum.compat.pyctcdecode.alphabet import BPE_TOKEN
from pathsum.compat.pyctcdecode.constants import MIN_TOKEN_CLIP_P


@dataclass
class Text:
    """A text on its list, as the search has it."""

    words: list[tuple[str, tuple[int, int]]]
    logit_score: float
    score: float


def log_probs_of(logits: Any, size: int) -> np.ndarray:
    """(T, C) log-probabilities of logits, log-probabilities or probabilities of so many classes."""
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] != size:
        raise ValueError(f"Input logits must be (time, vocabulary), vocabulary {size}; got shape {logits.shape}")
    logits = logits.astype(np.float64)
    least = math.log(MIN_TOKEN_CLIP_P)
    with np.errstate(divide="ignore", invalid="ignore"):
        if len(logits) and math.isclose(logits.sum(1).mean(), 1):
            return np.log(np.clip(logits, MIN_TOKEN_CLIP_P, 1))
        above = logits - np.where(np.isfinite(logits.max(1)), logits.max(1), 0.0)[:, None]
        return np.clip(above - np.log(np.exp(above).sum(1, keepdims=True)), least, 0)


def texts_of(found: Any, n: int, log_probs: np.ndarray, labels: list[str], separator: int | None) -> list[Text]:
    """The texts of a sample, each once."""
    texts: dict[str, Text] = {}
    for k in np.flatnonzero(found.scores[n] > -np.inf):
        length = int(found.lengths[n, k])
        tokens, begins = found.tokens[n, k, :length], found.frames[n, k, :length]
        ends = _ends(tokens, begins, log_probs, labels.index(""))
        words, opened = [], True
        for token, begin, end in zip(tokens.tolist(), begins.tolist(), ends, strict=True):
            label = labels[token]
            opened = opened or (separator is None and label.startswith(BPE_TOKEN))
            piece = label.strip(BPE_TOKEN) if separator is None else label
            if token == separator:
                opened = True
                continue
            if opened or not words:
                words.append((piece, (begin, end)))
            else:
                words[-1] = (words[-1][0] + piece, (words[-1][1][0], end))
            opened = separator is None and len(label) > 1 and label.endswith(BPE_TOKEN)
        words = [word for word in words if word[0]]
        own = Text(words, float(found.ctc_scores[n, k]), float(found.scores[n, k]))
        text = " ".join(word for word, _ in words)
        if text in texts:
            texts[text].logit_score = float(np.logaddexp(texts[text].logit_score, own.logit_score))
        else:
            texts[text] = own
    return list(texts.values())


def _ends(tokens: np.ndarray, begins: np.ndarray, log_probs: np.ndarray, blank: int) -> list[int]:
    """The frame behind each token, in the best alignment in which they begin where they do."""
    ends = []
    for place, (token, begin) in enumerate(zip(tokens, begins, strict=True)):
        last = place + 1 == len(tokens)
        until = len(log_probs) if last else int(begins[place + 1])
        # Equal neighbours have a blank between them.
        longest = until - begin - (0 if last or tokens[place + 1] != token else 1)
        gains = log_probs[begin + 1 : begin + longest, token] - log_probs[begin + 1 : begin + longest, blank]
        ends.append(int(begin) + 1 + int(np.argmax(np.concatenate([[0.0], np.cumsum(gains)]))))
    return ends
