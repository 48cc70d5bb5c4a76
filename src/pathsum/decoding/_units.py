"""What a labelling may be and what its words are worth, made of a caller's lexicon, language model and hotwords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathsum import _checks
from pathsum.decoding.lexicon import Lexicon, Spelling, _Tree
from pathsum.decoding.ngram import EMPTY, NGram, phrases
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.prefix_beam import FREE, SPELLED, WATCHED, Automaton, Rules, Trie, width_of

_NONE, _OFFSETS = np.zeros(0, np.int32), np.zeros(2, np.int64)
_NO_TRIE = Trie(_OFFSETS, _NONE, _NONE, _OFFSETS, _NONE, np.full(1, -1, np.int32), np.zeros(2))


class Units(NamedTuple):
    """The words of a search.

    Attributes:
        mode: How a labelling may grow: see ``kernels.numba.prefix_beam``.
        tree: Their spellings, by number; ``None`` where words have no numbers.
        names: Their texts, by number.
        has_words: Whether the caller is told of words; else a token is one.
        labels: The classes' texts, or ``None``.
    """

    mode: int
    tree: _Tree | None
    names: Sequence[str]
    has_words: bool
    labels: tuple[str, ...] | None


def check_labels(function: str, labels: Any, num_classes: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not isinstance(labels, (list, tuple, str)) or not all(isinstance(label, str) for label in labels):
        raise InvalidTypeError(function, "labels", "be a list of texts", type(labels).__name__)
    labels = tuple(labels)
    if len(labels) != num_classes:
        raise InvalidValueError(function, "labels", f"be a text for each class, C = {num_classes}", list(labels))
    return labels


def check_hotwords(function: str, hotwords: Any) -> dict[Any, float]:
    """Hotwords with their weights, as texts or tuples."""
    if hotwords is None:
        return {}
    if not isinstance(hotwords, Mapping):
        raise InvalidTypeError(function, "hotwords", "be a mapping of phrases to weights", type(hotwords).__name__)
    found = {}
    for phrase, weight in hotwords.items():
        if not isinstance(phrase, (str, tuple)) or not phrase or (isinstance(phrase, str) and not phrase.strip()):
            raise InvalidValueError(function, "hotwords", "be texts, or tuples of words", repr(phrase))
        found[phrase] = _checks.check_number(function, "hotwords", weight)
    return found


def find_units(
    function: str,
    num_classes: int,
    blank: int,
    separator: int,
    lexicon: Lexicon | None,
    lm: NGram | None,
    hotwords: dict[Any, float],
    labels: tuple[str, ...] | None,
    word_score: float,
) -> Units:
    if lexicon is not None:
        if not isinstance(lexicon, Lexicon):
            raise InvalidTypeError(function, "lexicon", "be a Lexicon", type(lexicon).__name__)
        lexicon.check(function, num_classes, blank, separator)
        return Units(SPELLED, lexicon.tree(separator), lexicon.words, True, labels)
    if lm is None and not hotwords and (separator >= 0 or word_score == 0.0):
        return Units(FREE, None, (), separator >= 0, labels)
    if separator < 0:
        names = labels or tuple(map(str, range(num_classes)))
        spellings = [[(c,)] if c != blank else [] for c in range(num_classes)]
        return Units(SPELLED, _Tree(spellings), names, False, labels)
    if labels is None:
        raise InvalidValueError(function, "labels", "be given where words are to be spelled without a lexicon", None)
    speller = Speller(labels, (blank, separator))
    watched = _vocabulary(lm, speller)
    more = [word for phrase in hotwords for word in _words(phrase) if word not in watched]
    entries = [(word, speller.spell(word)) for word in more]
    for word, spelling in entries:
        if spelling is None:
            raise InvalidValueError(function, "hotwords", "have words that the labels can spell", repr(word))
    lexicon = watched if not more else Lexicon([*watched.entries(), *entries])  # type: ignore[list-item]
    return Units(WATCHED, lexicon.tree(separator), lexicon.words, True, labels)


def _vocabulary(lm: NGram | None, speller: Speller) -> Lexicon:
    """The words of a language model that labels can spell."""
    if lm is None:
        return Lexicon([])
    if speller.key not in lm.spelled:
        spelled = ((word, speller.spell(word)) for word in lm.words)
        lm.spelled[speller.key] = Lexicon([(word, spelling) for word, spelling in spelled if spelling])
    return lm.spelled[speller.key]


class Speller:
    """Spells texts in labels, the longest that fits first."""

    def __init__(self, labels: tuple[str, ...], without: tuple[int, ...]):
        self.key = (labels, without)
        self._classes = {label: c for c, label in enumerate(labels) if label and c not in without}
        self._longest = max(map(len, self._classes), default=0)

    def spell(self, text: str) -> Spelling | None:
        """The classes of a text; ``None`` where they do not make it up."""
        spelling, place = [], 0
        while place < len(text):
            for end in range(min(len(text), place + self._longest), place, -1):
                if text[place:end] in self._classes:
                    spelling.append(self._classes[text[place:end]])
                    place = end
                    break
            else:
                return None
        return tuple(spelling)


def _words(phrase: str | tuple[Any, ...]) -> list[str]:
    return phrase.split() if isinstance(phrase, str) else [str(word) for word in phrase]


def find_phrases(
    function: str, hotwords: dict[Any, float], units: Units, speller: Speller | None
) -> tuple[Automaton, np.ndarray, np.ndarray]:
    """The automaton of hotwords, what its states hold of promises, and the weight of each word that is one alone."""
    alone = np.zeros(len(units.names))
    if not hotwords:
        return EMPTY, np.zeros(1), alone
    numbers = {name: number for number, name in enumerate(units.names)}
    weighted: dict[tuple[int, ...], float] = {}
    for phrase, weight in hotwords.items():
        spelling = None
        if not units.has_words and speller is not None and isinstance(phrase, str):
            spelling = speller.spell(phrase)
        if spelling is None:
            words = _words(phrase)
            missing = [word for word in words if word not in numbers]
            if missing:
                rule = "have words of the lexicon" if units.has_words else "be made of labels"
                raise InvalidValueError(function, "hotwords", rule, repr(missing[0]))
            spelling = tuple(numbers[word] for word in words)
        weighted[spelling] = weighted.get(spelling, 0.0) + weight
        if len(spelling) == 1:
            alone[spelling[0]] += weight
    return *phrases(weighted), alone


def find_rules(
    function: str,
    units: Units,
    *,
    num_classes: int,
    blank: int,
    separator: int,
    collapses: bool,
    beam_size: int,
    token_min: float,
    beam_threshold: float,
    lm: NGram | None,
    lm_weight: float,
    word_score: float,
    hotwords: dict[Any, float],
    transitions: np.ndarray,
) -> tuple[Rules, np.ndarray]:
    """The rules of a search, and what states of the hotwords' automaton hold of promises."""
    speller = None if units.labels is None else Speller(units.labels, (blank, separator))
    hot, held, alone = find_phrases(function, hotwords, units, speller)
    lm_words, trie = np.full(1, -1, np.int32), _NO_TRIE
    if units.tree is not None:
        scores, unknown = np.full(len(units.names), word_score), word_score
        if lm is not None:
            lm_words = lm.numbers(units.names)
            if lm_weight != 0.0:
                # A word that is impossible stays so, whatever the weight.
                alike = np.append(lm.advance([0])[0][0], -np.inf)[lm_words]
                alike = np.where(alike > -np.inf, lm_weight * alike, -np.inf)
                scores, unknown = scores + alike[:-1], word_score + float(alike[-1])
        if units.mode == WATCHED:
            scores = np.maximum(scores, unknown)
        trie = units.tree.worth(scores, alone, unknown)
    rules = Rules(
        units.mode, blank, separator, collapses, width_of(beam_size), token_min, beam_threshold, lm_weight,
        word_score, lm_words, EMPTY if lm is None else lm.automaton, hot, trie, transitions,
    )  # fmt: skip
    return rules, held
