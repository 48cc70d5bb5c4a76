"""Beam decoders over frames: CTC's, simplified CTC's and ASG's."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathsum import _checks
from pathsum.decoding._strings import Strings, grown
from pathsum.decoding._units import Units, check_hotwords, check_labels, find_rules, find_units
from pathsum.decoding.lexicon import Lexicon, Spelling
from pathsum.decoding.ngram import NGram, as_ngram
from pathsum.display import hypotheses, shown
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.prefix_beam import CLOSED, FREE, SPELLED, Rules, Search, advance, closed, start, trace
from pathsum.kernels.numba.string_graph import Graph, align, score

# How far a hypothesis' best alignment may at first be behind the best classes of all frames; then as much again.
_SLACK = 16.0


@shown(hypotheses)
class Beams(NamedTuple):
    """The best hypotheses of each sample, the best first. Without the axis N for one sample given as (T, C).

    K is the greatest number found in a sample, ``n_best`` at most; a sample with fewer has -inf scores behind its last,
    and a sample with a NaN among its scores has NaN in their place.

    Attributes:
        tokens: (N, K, L) classes, -1 in padding; L is the greatest length. With a separator it stands between words.
        lengths: (N, K) how many tokens.
        scores: (N, K) what the order goes by: ``ctc_scores + lm_weight * lm_scores + word_score * words``, and the
            weights of hotwords.
        ctc_scores: (N, K) log-probability of all frames that read as the hypothesis; those of the frames that the
            search has met where ``exact_scores=False``.
        lm_scores: (N, K) ln P(words, "</s>"); 0 without a language model.
        frames: (N, K, L) the frame in which each token begins, in the best alignment; -1 in padding.
        words: of each sample a list of words for each hypothesis; ``None`` where there are no words.
        mass: (N,) log of the share of all probability that the listed hypotheses have together.
    """

    tokens: Any
    lengths: Any
    scores: Any
    ctc_scores: Any
    lm_scores: Any
    frames: Any
    words: Any
    mass: Any


class DecoderState:
    """Where decoding is between two chunks of the same samples: made empty, given to each call, and changed by it.

    Example:
        >>> import numpy as np
        >>> from pathsum.decoding import DecoderState, ctc_beam_decode
        >>> log_probs = np.log([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
        >>> state = DecoderState()
        >>> for chunk in np.split(log_probs, 2, axis=1):
        ...     found = ctc_beam_decode(chunk, state=state)
        >>> found.tokens.tolist(), found.frames.tolist()  # as of all frames at once
        ([[[1, 1]]], [[[0, 3]]])
    """

    def __init__(self) -> None:
        self.samples: list[_Sample] | None = None
        self.setting: tuple[Any, ...] = ()


class _Sample:
    """A sample on its way: its frames so far, and the search through them."""

    def __init__(self, num_classes: int, search: Search):
        self.frames = np.zeros((0, num_classes))
        self.search = search
        self.broken = False


class _Hypothesis(NamedTuple):
    """What was found in a sample.

    Attributes:
        words: Its words, by number or spelled; of tokens alone one word, spelled.
        score, mass, lm_score: As ``Beams`` has them.
    """

    words: tuple[Any, ...]
    score: float
    mass: float
    lm_score: float


class _Ending(NamedTuple):
    """What the beam has of a sequence of words.

    Attributes:
        bonus: What it is worth besides its mass.
        lm_score: ln P of its words, and of the end.
        mass: Its log-mass as far as the search has met it.
        node: A labelling that reads as it.
    """

    bonus: float
    lm_score: float
    mass: float
    node: int


class _Found(NamedTuple):
    """The list of a sample: hypotheses, and of each its tokens and their frames."""

    hypotheses: list[_Hypothesis]
    tokens: list[np.ndarray]
    frames: list[np.ndarray]
    mass: float


_BROKEN = _Found([_Hypothesis((), math.nan, math.nan, math.nan)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)],
                 math.nan)  # fmt: skip


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
    num_threads: int | None = None,
) -> Beams:
    """The most probable texts of CTC, by prefix beam search, each with its exact probability.

    ``score = log P(all labellings that read as the words) + lm_weight * ln P(words, "</s>") + word_score * words``

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample; float32, float64, bfloat16 or float16.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        beam_size: How many labellings are kept after each frame, at least: the next power of two. At most 2**20.
        n_best: How many hypotheses are returned at most, and ``beam_size`` at most.
        lm: Language model of the words; of the tokens where there are neither lexicon nor separator.
        lm_weight: What ln P of the language model counts.
        word_score: What each word counts; each token where there are no words.
        lexicon: The words that there are. Nothing else is decoded.
        separator: Class between words: any number of it in a row, and before and behind all words, reads the same.
        hotwords: Weight of each word or phrase, added each time that it occurs: a text, words apart by white space, or
            a tuple of words.
        labels: The classes' texts. ``words`` are then texts; a language model or hotwords need them where there is a
            separator and no lexicon, and spell words by them, the longest label that fits first. Without words they
            are the words of the language model (the numbers of the classes where not given).
        token_min: A labelling grows by no class whose score in the frame is less.
        beam_threshold: An entry goes no further that is so much less than the best.
        exact_scores: Each hypothesis is scored anew, over all its alignments. Else by those that the search met.
        state: Where decoding goes on from, and is left: see ``DecoderState``. The result is that of all frames so far.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        num_threads: Threads over the samples; as many as there are cores where ``None``.

    Returns:
        ``Beams``: tokens, lengths, scores, ctc_scores, lm_scores, frames, words and mass. Scores are float64.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape; the message names it.
        InvalidTypeError: (a TypeError) an argument of a wrong type.

    Notes:
        With a separator or a lexicon hypotheses are told apart by their words: the probabilities of all labellings that
        read as the same words are added up. Without they are labellings. Where the last word of a lexicon is not
        spelled out by the last frame, the words before it are a hypothesis.

        A wider beam holds all that a narrower one holds, so that its best exact score is never worse; but with a
        ``beam_threshold``, which a wider beam applies to more mass, it may be. With a beam that holds everything the
        list is that of all texts in order. A NaN among the scores makes those of its sample NaN.

        Cost: O(T * beam_size * log beam_size) and what a lexicon or ``labels`` branch to. Deterministic for any number
        of threads.

    References:
        Graves and Jaitly (2014), Towards end-to-end speech recognition with recurrent neural networks;
        Lemons et al. (2022), Beam search: faster and monotonic.

    Example:
        >>> import numpy as np
        >>> from pathsum.decoding import ctc_beam_decode
        >>> probs = np.array([[[0.6, 0.4], [0.6, 0.4]]])  # blanks are the best path, but 1 is the best text
        >>> found = ctc_beam_decode(np.log(probs), n_best=3)
        >>> found.tokens.tolist(), np.exp(found.ctc_scores).round(2).tolist(), np.exp(found.mass).round(2).tolist()
        ([[[1], [-1]]], [[0.64, 0.36]], [1.0])
    """
    return _decode(
        "ctc_beam_decode", log_probs, input_lengths, blank, True, beam_size, n_best, lm, lm_weight, word_score, lexicon,
        separator, hotwords, labels, token_min, beam_threshold, exact_scores, state, batch_first, num_threads,
    )  # fmt: skip


def simple_ctc_beam_decode(
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
    num_threads: int | None = None,
) -> Beams:
    """The most probable texts of simplified CTC, in which each label is on one frame: see ``ctc_beam_decode``.

    Args:
        log_probs: As in ``ctc_beam_decode``.
        input_lengths: As in ``ctc_beam_decode``.
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
        batch_first: As in ``ctc_beam_decode``.
        num_threads: As in ``ctc_beam_decode``.

    Returns:
        ``Beams``, as ``ctc_beam_decode``.

    Raises:
        InvalidValueError: As in ``ctc_beam_decode``.
        InvalidTypeError: As in ``ctc_beam_decode``.

    Example:
        >>> import numpy as np
        >>> from pathsum.decoding import simple_ctc_beam_decode
        >>> probs = np.array([[[0.1, 0.9], [0.2, 0.8]]])
        >>> simple_ctc_beam_decode(np.log(probs)).tokens.tolist()  # two labels; in CTC they would be one
        [[[1, 1]]]
    """
    return _decode(
        "simple_ctc_beam_decode", log_probs, input_lengths, blank, False, beam_size, n_best, lm, lm_weight, word_score,
        lexicon, separator, hotwords, labels, token_min, beam_threshold, exact_scores, state, batch_first, num_threads,
    )  # fmt: skip


def asg_beam_decode(
    inputs: Any,
    transitions: Any,
    input_lengths: Any = None,
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
    num_threads: int | None = None,
) -> Beams:
    """The most probable texts of the auto segmentation criterion: see ``ctc_beam_decode``.

    Each label is stretched over one frame or more, and equal neighbours are one; there is no blank. ``ctc_scores`` are
    the negated ``asg_loss`` of each text: its share of the scores of all sequences.

    Args:
        inputs: Unnormalised scores (N, T, C), or (T, C) for one sample.
        transitions: Scores (C, C) of passing from one label to the next: ``transitions[i, j]`` from j to i.
        input_lengths: As in ``ctc_beam_decode``.
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
        batch_first: As in ``ctc_beam_decode``.
        num_threads: As in ``ctc_beam_decode``.

    Returns:
        ``Beams``, as ``ctc_beam_decode``.

    Raises:
        InvalidValueError: As in ``ctc_beam_decode``.
        InvalidTypeError: As in ``ctc_beam_decode``.

    Example:
        >>> import numpy as np
        >>> from pathsum.decoding import asg_beam_decode
        >>> inputs = np.array([[[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]])
        >>> asg_beam_decode(inputs, np.zeros((2, 2))).tokens.tolist()
        [[[0, 1]]]
    """
    return _decode(
        "asg_beam_decode", inputs, input_lengths, None, True, beam_size, n_best, lm, lm_weight, word_score, lexicon,
        separator, hotwords, labels, token_min, beam_threshold, exact_scores, state, batch_first, num_threads,
        transitions,
    )  # fmt: skip


def _decode(
    function: str,
    scores: Any,
    input_lengths: Any,
    blank: int | None,
    collapses: bool,
    beam_size: int,
    n_best: int,
    lm: NGram | None,
    lm_weight: float,
    word_score: float,
    lexicon: Lexicon | None,
    separator: int | None,
    hotwords: Mapping[Any, float] | None,
    labels: Sequence[str] | None,
    token_min: float,
    beam_threshold: float,
    exact_scores: bool,
    state: DecoderState | None,
    batch_first: bool,
    num_threads: int | None,
    transitions: Any = None,
) -> Beams:
    argument = "log_probs" if transitions is None else "inputs"
    array, batched = _samples_first(function, argument, scores, batch_first)
    num_samples, num_frames, num_classes = array.shape
    lengths = _lengths(function, input_lengths, num_samples, num_frames, batched)
    own_blank = -1 if blank is None else _checks.check_blank(function, blank, num_classes)
    own_separator = -1 if separator is None else _separator(function, separator, num_classes, own_blank)
    beam_size = _checks.check_beam_size(function, beam_size)
    n_best = _checks.check_count(function, "n_best", n_best, 1)
    lm = as_ngram(function, "lm", lm)
    lm_weight = _checks.check_number(function, "lm_weight", lm_weight)
    word_score = _checks.check_number(function, "word_score", word_score)
    exact_scores = _checks.check_flag(function, "exact_scores", exact_scores)
    own_labels = check_labels(function, labels, num_classes)
    phrases = check_hotwords(function, hotwords)
    units = find_units(
        function, num_classes, own_blank, own_separator, lexicon, lm, phrases, own_labels, word_score
    )  # fmt: skip
    rules, held = find_rules(
        function,
        units,
        num_classes=num_classes,
        blank=own_blank,
        separator=own_separator,
        collapses=collapses,
        beam_size=beam_size,
        token_min=_bound(function, "token_min", token_min, -math.inf),
        beam_threshold=_bound(function, "beam_threshold", beam_threshold, math.inf),
        lm=lm,
        lm_weight=lm_weight,
        word_score=word_score,
        hotwords=phrases,
        transitions=_transitions(function, transitions, num_classes),
    )
    if num_threads is not None:
        num_threads = _checks.check_count(function, "num_threads", num_threads, 1)
    samples = _samples(function, state, num_samples, num_classes, own_separator, 0 if lm is None else lm.start)

    found: list[_Found] = [_BROKEN] * num_samples

    def solve(n: int) -> None:
        sample = samples[n]
        frames = array[n, : lengths[n]].astype(np.float64)
        sample.broken = sample.broken or not bool((frames < np.inf).all())
        sample.frames = np.concatenate([sample.frames, frames]) if len(sample.frames) else frames
        if not sample.broken:
            sample.search = advance(frames, rules, sample.search)
            found[n] = _finish(sample, rules, units, held, lm, min(n_best, beam_size), exact_scores)

    threads = parallel.worthwhile(num_threads or os.cpu_count() or 1, int(lengths.sum()) * min(beam_size, 1000) * 50)
    parallel.run(solve, [(int(n),) for n in np.argsort(-lengths, kind="stable")], threads)
    return _pack(found, units, own_separator, batched)


def _samples_first(function: str, argument: str, scores: Any, batch_first: bool) -> tuple[np.ndarray, bool]:
    batch_first = _checks.check_flag(function, "batch_first", batch_first)
    if not isinstance(scores, np.ndarray) or isinstance(scores, np.ma.MaskedArray):
        raise InvalidTypeError(function, argument, "be a NumPy array", type(scores).__name__)
    axes = "(N, T, C)" if batch_first else "(T, N, C)"
    _checks.check_scores(function, argument, scores.dtype.name, scores.shape, (axes, "(T, C)"))
    if scores.ndim == 2:
        return scores[None], False
    return (scores if batch_first else scores.swapaxes(0, 1)), True


def _lengths(function: str, lengths: Any, num_samples: int, num_frames: int, batched: bool) -> np.ndarray:
    if lengths is None:
        return np.full(num_samples, num_frames)
    array = np.asarray(lengths)
    array = array if batched else np.atleast_1d(array)
    array = _checks.check_integers(function, "input_lengths", array, (1,))
    if len(array) != num_samples:
        rule = f"have one entry a sample, N = {num_samples}"
        raise InvalidValueError(function, "input_lengths", rule, f"{len(array)} entries")
    _checks.check_range(function, "input_lengths", array, "T", num_frames)
    return array


def _separator(function: str, separator: Any, num_classes: int, blank: int) -> int:
    separator = _checks.check_count(function, "separator", separator, -num_classes)
    if separator >= num_classes or separator % num_classes == blank:
        rule = f"be a class, C = {num_classes}" + ("" if blank < 0 else f", other than the blank, {blank}")
        raise InvalidValueError(function, "separator", rule, separator)
    return separator % num_classes


def _bound(function: str, argument: str, value: Any, unbounded: float) -> float:
    if isinstance(value, (float, np.floating)) and value == unbounded:
        return unbounded
    return _checks.check_number(function, argument, value, *([0.0] if unbounded > 0 else []))


def _transitions(function: str, transitions: Any, num_classes: int) -> np.ndarray:
    if transitions is None:
        return np.zeros((0, 0))
    if not isinstance(transitions, np.ndarray):
        raise InvalidTypeError(function, "transitions", "be a NumPy array", type(transitions).__name__)
    _checks.check_scores(function, "transitions", transitions.dtype.name, transitions.shape, ("(C, C)",))
    if transitions.shape != (num_classes, num_classes):
        rule = f"have shape (C, C) = {(num_classes, num_classes)}"
        raise InvalidValueError(function, "transitions", rule, f"shape {transitions.shape}")
    table = np.ascontiguousarray(transitions, np.float64)
    if not (table < np.inf).all():
        raise InvalidValueError(function, "transitions", "be numbers below infinity", "NaN or infinity")
    return table


def _samples(
    function: str, state: DecoderState | None, num_samples: int, num_classes: int, separator: int, lm_state: int
) -> list[_Sample]:
    """The samples, new or where a state left them."""
    if state is not None and not isinstance(state, DecoderState):
        raise InvalidTypeError(function, "state", "be a DecoderState", type(state).__name__)
    setting = (function, num_samples, num_classes, separator)
    if state is not None and state.samples is not None:
        if state.setting != setting:
            rule = f"be of {state.setting[0]} with N = {state.setting[1]}, C = {state.setting[2]}, as it began"
            raise InvalidValueError(function, "state", rule, f"N = {num_samples}, C = {num_classes}")
        return state.samples
    samples = [_Sample(num_classes, start(separator, lm_state)) for _ in range(num_samples)]
    if state is not None:
        state.samples, state.setting = samples, setting
    return samples


def _finish(
    sample: _Sample, rules: Rules, units: Units, held: np.ndarray, lm: NGram | None, n_best: int, exact_scores: bool
) -> _Found:
    """The list of a sample, as if its frames ended here."""
    found = _endings(sample.search, rules, units, held, lm)
    words = list(found)
    masses = [ending.mass for ending in found.values()]
    strings = None
    if exact_scores and found:
        strings = _strings(sample.search, rules, units, found)
        graph, offsets, finals = strings
        least = np.full(len(graph.tokens), np.inf)
        np.minimum.at(least, finals, np.repeat(masses, np.diff(offsets)))
        mass = score(sample.frames, graph, rules.blank, rules.collapses, rules.transitions, least)
        masses = np.logaddexp.reduceat(np.logaddexp(*mass[:, finals]), offsets[:-1]).tolist()
    total = _total(sample.frames, rules)
    if rules.transitions.size:
        masses = [mass - total for mass in masses]
        total = 0.0
    endings = list(found.values())
    scores = [mass + ending.bonus if mass > -math.inf else mass for mass, ending in zip(masses, endings, strict=True)]
    best = sorted((k for k, value in enumerate(scores) if value > -math.inf), key=lambda k: -scores[k])[:n_best]
    listed = [_Hypothesis(words[k], scores[k], masses[k], endings[k].lm_score) for k in best]
    if strings is None:
        strings, best = _strings(sample.search, rules, units, {words[k]: endings[k] for k in best}), range(len(best))
    tokens, frames = _alignments(sample.frames, rules, strings, best)
    share = float(np.logaddexp.reduce([each.mass for each in listed])) - total if listed else -math.inf
    return _Found(listed, tokens, frames, share)


def _endings(
    search: Search, rules: Rules, units: Units, held: np.ndarray, lm: NGram | None
) -> dict[tuple[Any, ...], _Ending]:
    """The sequences of words that the beam reads as."""
    kept = search.slots >= 0
    nodes = search.slots[kept]
    masses = np.logaddexp(search.masses[kept, 0], search.masses[kept, 1])
    places, histories = search.places[nodes].tolist(), search.histories[nodes]
    rows, lengths = trace(search.parents, search.tokens, nodes)
    strings = [tuple(row[:length]) for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]
    if rules.mode == SPELLED:
        rows, lengths = trace(search.word_parents, search.words, histories)
        sequences = [tuple(row[:length]) for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]
    elif rules.separator >= 0:
        sequences = [_split(string, rules.separator) for string in strings]
    else:
        sequences = [(string,) if string else () for string in strings]

    # Each with the word that ends with it: -1 one without a number, -2 none.
    read: list[tuple[int, tuple[Any, ...], float, int]] = []
    offsets, numbers = rules.trie.word_offsets, rules.trie.words
    for k, (place, string, words, mass) in enumerate(zip(places, strings, sequences, masses.tolist(), strict=True)):
        own = numbers[offsets[place] : offsets[place + 1]].tolist() if place >= 0 else []
        if rules.mode == SPELLED:
            whole = place in (0, CLOSED)
            read.append((k, words, mass if whole else -math.inf, -2))
            read += [(k, (*words, word), mass, word) for word in own if not whole]
        else:
            ends = rules.separator >= 0 and bool(string) and string[-1] != rules.separator
            read.append((k, words, mass, (own[0] if own and rules.mode != FREE else -1) if ends else -2))

    kept_by = np.array([each[0] for each in read], np.int64)
    after = closed(rules, search, histories[kept_by], np.array([each[3] for each in read], np.int64))
    lm_ends = {} if lm is None else {state: lm.end(state) for state in set(after[0].tolist())}
    found: dict[tuple[Any, ...], _Ending] = {}
    for (k, words, mass, _), lm_state, hot_state, lm_score, bonus in zip(
        read, *(each.tolist() for each in after), strict=True
    ):
        if lm is not None:
            end = lm_ends[lm_state]
            lm_score += end
            if rules.lm_weight != 0.0:
                bonus += rules.lm_weight * end if end > -math.inf else -math.inf
        before = found.get(words)
        mass = mass if before is None else float(np.logaddexp(mass, before.mass))
        found[words] = _Ending(bonus - float(held[hot_state]), lm_score, mass, int(nodes[k]))
    return found


def _split(string: tuple[int, ...], separator: int) -> tuple[Spelling, ...]:
    words, begin = [], 0
    for place, token in enumerate((*string, separator)):
        if token == separator:
            if place > begin:
                words.append(string[begin:place])
            begin = place + 1
    return tuple(words)


def _spellings(words: tuple[Any, ...], units: Units) -> list[Sequence[Spelling]]:
    if units.mode == SPELLED and units.tree is not None:
        return [units.tree.spellings[word] for word in words]
    return [(word,) for word in words]


def _total(frames: np.ndarray, rules: Rules) -> float:
    """The log-mass of all sequences of classes."""
    if not len(frames):
        return 0.0
    if not rules.transitions.size:
        highest = frames.max(1)
        if not (highest > -math.inf).all():
            return -math.inf
        return float((highest + np.log(np.exp(frames - highest[:, None]).sum(1))).sum())
    alpha = frames[0]
    for row in frames[1:]:
        alpha = row + np.logaddexp.reduce(rules.transitions + alpha, axis=1)
    return float(np.logaddexp.reduce(alpha))


class _Strings(NamedTuple):
    """The strings of hypotheses: those of hypothesis k end in ``finals[offsets[k] : offsets[k + 1]]``."""

    graph: Graph
    offsets: np.ndarray
    finals: np.ndarray


def _strings(search: Search, rules: Rules, units: Units, found: dict[tuple[Any, ...], _Ending]) -> _Strings:
    if rules.mode == SPELLED:
        strings = Strings(rules.separator)
        finals = [strings.add(_spellings(words, units)) for words in found]
        graph = strings.graph()
    else:
        nodes = np.array([ending.node for ending in found.values()], np.int64)
        graph, finals = grown(search.parents, search.tokens, nodes, rules.separator)
    offsets = np.cumsum([0, *map(len, finals)])
    return _Strings(graph, offsets, np.array([node for each in finals for node in each], np.int32))


def _alignments(
    frames: np.ndarray, rules: Rules, strings: _Strings, wanted: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The tokens of some hypotheses in their best alignments, and the frame in which each begins."""
    all_tokens = [np.zeros(0, np.int64)] * len(wanted)
    all_frames = list(all_tokens)
    graph, places, slack = strings.graph, np.arange(len(wanted)), _SLACK
    while len(places):
        own = [
            strings.finals[strings.offsets[k] : strings.offsets[k + 1]]
            for k in (wanted[int(place)] for place in places)
        ]
        offsets = np.cumsum([0, *map(len, own)])
        paths, found = align(
            frames, graph, rules.blank, rules.collapses, rules.transitions, offsets, np.concatenate(own), slack
        )
        for place, path in zip(places[found].tolist(), np.where(paths < 0, -1 - paths, paths)[found], strict=True):
            begins = np.flatnonzero(np.diff(path, prepend=0))
            tokens = graph.tokens[path[begins]].astype(np.int64)
            if rules.separator >= 0 and len(tokens) and tokens[-1] == rules.separator:
                tokens, begins = tokens[:-1], begins[:-1]
            all_tokens[place], all_frames[place] = tokens, begins
        places, slack = places[~found], 2 * slack
    return all_tokens, all_frames


def _pack(found: list[_Found], units: Units, separator: int, batched: bool) -> Beams:
    most = max((len(each.hypotheses) for each in found), default=0)
    longest = max((len(row) for each in found for row in each.tokens), default=0)
    shape = (len(found), most)
    tokens, frames = (np.full((*shape, longest), -1, np.int64) for _ in range(2))
    lengths = np.zeros(shape, np.int64)
    scores, ctc_scores = (np.full(shape, -np.inf) for _ in range(2))
    lm_scores = np.zeros(shape)
    mass = np.array([each.mass for each in found], np.float64)
    words: list[list[Any]] | None = [] if units.has_words else None
    for n, each in enumerate(found):
        for k, (hypothesis, row, begins) in enumerate(zip(*each[:3], strict=True)):
            tokens[n, k, : len(row)], frames[n, k, : len(row)], lengths[n, k] = row, begins, len(row)
            scores[n, k], ctc_scores[n, k], lm_scores[n, k] = hypothesis.score, hypothesis.mass, hypothesis.lm_score
        if words is not None:
            kept = [hypothesis for hypothesis in each.hypotheses if not math.isnan(hypothesis.score)]
            words.append([_texts(hypothesis.words, units) for hypothesis in kept])
        if len(each.hypotheses) == 1 and math.isnan(each.mass):
            scores[n], ctc_scores[n], lm_scores[n] = math.nan, math.nan, math.nan
    beams = Beams(tokens, lengths, scores, ctc_scores, lm_scores, frames, words, mass)
    return beams if batched else Beams(*(None if each is None else each[0] for each in beams))


def _texts(words: tuple[Any, ...], units: Units) -> list[Any]:
    """The words' texts; without labels those that were spelled without a lexicon are tuples of classes."""
    if units.mode == SPELLED:
        return [units.names[word] for word in words]
    if units.labels is None:
        return list(words)
    labels = units.labels
    return ["".join(labels[token] for token in word) for word in words]
