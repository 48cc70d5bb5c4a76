"""fast-ctc-decode: ``beam_search`` and ``viterbi_search``, on probabilities (T, C) whose first class is the blank.

Not kept: the beam does not lose what comes back to a labelling that it holds already, and the path is that of the best
alignment, where the peer's has the frame in which its beam first met each label. The searches over CRFs and over pairs
of reads are not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathsum.compat.doors import array, checked
from pathsum.decoding import ctc_beam_decode, simple_ctc_beam_decode
from pathsum.errors import InvalidTypeError


@checked
def beam_search(
    network_output: np.ndarray,
    alphabet: Sequence[str],
    beam_size: int = 5,
    beam_cut_threshold: float = 0.0,
    collapse_repeats: bool = True,
) -> tuple[str, list[int]]:
    """``fast_ctc_decode.beam_search``.

    Args:
        network_output: Probabilities (T, C), the blank's first; they need not sum to 1.
        alphabet: The classes' texts, the blank's first.
        beam_size: How many labellings are kept after each frame.
        beam_cut_threshold: Least probability of a class that a labelling grows by, below 1/C.
        collapse_repeats: Equal neighbours are one label, as in CTC. Else each is a label of its own.

    Returns:
        The text, and the frame in which each of its labels begins.

    Raises:
        ValueError: The alphabet does not have C entries, or an argument is out of range.
        RuntimeError: A probability is NaN, or a frame leaves nothing to go on by.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.fast_ctc_decode import beam_search
        >>> beam_search(np.array([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]), "NAC")
        ('AA', [0, 2])
    """
    probs = _checked("beam_search", network_output, alphabet)
    if beam_size == 0:
        raise ValueError("beam_size cannot be 0")
    if not 0.0 <= beam_cut_threshold < 1.0 / len(alphabet):
        raise ValueError(f"beam_cut_threshold must be in [0, {1.0 / len(alphabet)})")
    if np.isnan(probs).any():
        raise RuntimeError("Failed to compare values (NaNs in input?)")
    with np.errstate(divide="ignore"):
        scores = np.log(probs)
    least = math.log(beam_cut_threshold) if beam_cut_threshold > 0.0 else -math.inf
    decode: Any = ctc_beam_decode if collapse_repeats else simple_ctc_beam_decode
    found = decode(scores, beam_size=beam_size, token_min=least, exact_scores=beam_size > 1)
    if not found.scores.size or not found.scores[0] > -math.inf:
        raise RuntimeError("Ran out of search space (beam_cut_threshold too high)")
    length = int(found.lengths[0])
    return _text(alphabet, found.tokens[0, :length].tolist()), found.frames[0, :length].tolist()


@checked
def viterbi_search(
    network_output: np.ndarray,
    alphabet: Sequence[str],
    qstring: bool = False,
    qscale: float = 1.0,
    qbias: float = 0.0,
    collapse_repeats: bool = True,
) -> tuple[str, list[int]]:
    """``fast_ctc_decode.viterbi_search``: the most probable class of each frame.

    Args:
        network_output: Probabilities (T, C), the blank's first.
        alphabet: The classes' texts, the blank's first.
        qstring: Append a character of quality for each label: 33 more than -10 log10 of how improbable it is, the mean
            probability of its frames taken.
        qscale: What the quality is multiplied by.
        qbias: What is added to it.
        collapse_repeats: Equal neighbours are one label.

    Returns:
        The text, and the frame in which each of its labels begins.

    Raises:
        ValueError: The alphabet does not have C entries.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.fast_ctc_decode import viterbi_search
        >>> viterbi_search(np.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1], [0.01, 0.99]]), "NA", qstring=True)
        ('AA+5', [0, 3])
    """
    probs = _checked("viterbi_search", network_output, alphabet)
    classes = probs.argmax(1)
    begins = classes != 0
    if collapse_repeats:
        begins &= classes != np.concatenate([[0], classes[:-1]])
    path = np.flatnonzero(begins)
    text = _text(alphabet, classes[path].tolist())
    if qstring and len(path):
        # A frame counts for the label that began last.
        owner = np.cumsum(begins) - 1
        labelled = classes != 0
        sums, counts = (
            np.bincount(owner[labelled], weights, len(path)) for weights in (probs.max(1)[labelled], None)
        )  # fmt: skip
        quality = -10.0 * np.log10(np.maximum(1.0 - sums / counts, 1e-4)) * qscale + qbias
        text += "".join(chr(33 + math.floor(max(value, 0.0) + 0.5)) for value in quality)
    return text, path.tolist()


def _text(alphabet: Sequence[str], classes: list[int]) -> str:
    return "".join(alphabet[c] for c in classes)


def _checked(function: str, network_output: Any, alphabet: Sequence[str]) -> np.ndarray:
    if not isinstance(alphabet, (str, list, tuple)) or not all(isinstance(label, str) for label in alphabet):
        raise InvalidTypeError(function, "alphabet", "be a list of texts", type(alphabet).__name__)
    probs = array(function, "network_output", network_output, np.asarray)
    if probs.dtype.kind not in "fiub":
        raise InvalidTypeError(function, "network_output", "be real numbers", probs.dtype.name)
    if not len(alphabet) or probs.ndim != 2 or probs.shape[1] != len(alphabet):
        rule = f"alphabet size {len(alphabet)} does not match probability matrix inner dimension"
        raise ValueError(f"{rule}, shape {probs.shape}")
    return probs.astype(np.float64)


PLACES = {"fast_ctc_decode": {"beam_search": beam_search, "viterbi_search": viterbi_search}}
