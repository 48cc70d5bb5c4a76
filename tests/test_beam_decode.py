"""Beam decoders beside the enumeration of all sequences of classes, read as texts in plain Python."""

import gzip
import importlib
import itertools
import math
import multiprocessing
import os
import threading
import warnings

import numpy as np
import pytest

import pathsum
from pathsum.bench.peers.problem import LETTERS
from pathsum.bench.texts import make_problem
from pathsum.decoding import (
    DecoderState,
    Lexicon,
    NGram,
    asg_beam_decode,
    ctc_beam_decode,
    simple_ctc_beam_decode,
)

EVERYTHING = 10**6
LN_10 = math.log(10)
ARPA = """
\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-99\t<s>\t-0.3
-0.6\t</s>
-3.0\t<unk>
-0.5\ta\t-0.2
-0.7\tab\t-0.1
-0.9\tba\t-0.4

\\2-grams:
-0.3\t<s> a\t-0.15
-0.2\ta ba
-0.35\tab a\t-0.05
-0.25\tba </s>
-0.45\ta </s>

\\3-grams:
-0.1 <s> a ba
-0.12 ab a </s>

\\end\\
"""
GRAMS = {
    tuple(line.split()[1 : order + 1]): [float(x) for x in (line.split()[0], *line.split()[order + 1 :])]
    for order in (1, 2, 3)
    for line in ARPA.partition(f"\\{order}-grams:\n")[2].partition("\n\n")[0].splitlines()
}
LABELS = ("-", "a", "b", " ")
WORDS = ["a", "ab", "ba"]


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def draw(seed, frames=6, classes=4, scale=1.5):
    return log_softmax(np.random.default_rng(seed).normal(size=(frames, classes)) * scale)


def ln_p(context, word):
    """ln P(word | context) by the definition of a back-off model."""
    word = word if (word,) in GRAMS else "<unk>"
    while True:
        if (*context, word) in GRAMS:
            return GRAMS[(*context, word)][0] * LN_10
        backoff = (*GRAMS.get(context, []), 0.0, 0.0)[1]
        return backoff * LN_10 + ln_p(context[1:], word)


def lm_score(words):
    known = [word if (word,) in GRAMS else "<unk>" for word in words]
    text = ["<s>", *known, "</s>"]
    return sum(ln_p(tuple(text[max(0, i - 2) : i]), text[i]) for i in range(1, len(text)))


def merge(path, blank=0):
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def without_blanks(path):
    return tuple(c for c in path if c != 0)


def no_blank(path):
    return merge(path, None)


def as_tokens(string):
    return [string]


def as_words(string, separator=3):
    return [tuple(tuple(g) for is_gap, g in itertools.groupby(string, lambda c: c == separator) if not is_gap)]


def as_text(string):
    return [tuple("".join(LABELS[c] for c in word) for word in words) for words in as_words(string)]


def by_lexicon(spellings, separator=None):
    """All sequences of words that a string reads as."""

    def read(string):
        if separator is not None:
            choices = [[w for w, own in spellings.items() if word in own] for word in as_words(string, separator)[0]]
            return list(itertools.product(*choices))
        if not string:
            return [()]
        return [
            (word, *rest)
            for word, own in spellings.items()
            for spelling in own
            if string[: len(spelling)] == spelling
            for rest in read(string[len(spelling) :])
        ]

    return read


def enumerate_texts(scores, collapse, read, value=None, transitions=None):
    """Every text with its log-mass and its score, the best first; a string counts once for a text."""
    strings = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        total = sum(scores[t, c] for t, c in enumerate(path))
        if transitions is not None:
            total += sum(transitions[after, before] for before, after in itertools.pairwise(path))
        string = collapse(path)
        strings[string] = np.logaddexp(strings.get(string, -np.inf), total)
    texts = {}
    for string, mass in strings.items():
        for text in set(read(string)):
            texts[text] = np.logaddexp(texts.get(text, -np.inf), mass)
    listed = [(text, mass, mass + (value(text) if value else 0.0)) for text, mass in texts.items() if mass > -np.inf]
    return sorted(listed, key=lambda entry: -entry[2])


def texts_of(found, sample=0):
    if found.words is not None:
        return [tuple(words) for words in found.words[sample]]
    return [tuple(row[:n]) for row, n in zip(found.tokens[sample].tolist(), found.lengths[sample], strict=True)]


def assert_is_enumeration(found, expected):
    """The same texts in the same order, those of the same score in any."""
    texts, scores = texts_of(found), {text: score for text, _, score in expected}
    assert len(texts) == len(set(texts))
    assert set(texts) == set(scores)
    masses = {text: mass for text, mass, _ in expected}
    np.testing.assert_allclose(found.ctc_scores[0], [masses[text] for text in texts], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.scores[0], [scores[text] for text in texts], rtol=0, atol=1e-9)
    assert (np.diff(found.scores[0]) <= 0).all()


@pytest.fixture(scope="module")
def lm():
    return NGram.parse(ARPA.splitlines())


def hot(weights):
    """The weights of all occurrences of phrases."""

    def value(text):
        return sum(
            weight * sum(text[i : i + len(phrase)] == phrase for i in range(len(text)))
            for phrase, weight in weights.items()
        )

    return value


SPELLINGS = {"a": [(1,)], "ab": [(1, 2)], "ba": [(2, 1)]}
SEVERAL = {"x": [(1,), (1, 2)], "y": [(2, 1), (1,)], "z": [(2,)]}
PHRASES = {("a", "ba"): 1.3, ("ba",): 0.4, ("a", "a"): 0.9, ("ab", "a", "a"): -0.7}


def entries(spellings):
    return Lexicon([(word, spelling) for word, own in spellings.items() for spelling in own])


def lexicon_case(spellings, separator, **more):
    return by_lexicon(spellings, separator), {"lexicon": entries(spellings), "separator": separator} | more


LM = {"lm_weight": 0.7, "word_score": 0.3}
CASES = {
    "tokens": (as_tokens, {}, None),
    "tokens, word score": (as_tokens, {"word_score": 0.5}, lambda text: 0.5 * len(text)),
    "tokens, hotwords": (
        as_tokens, {"hotwords": {(1, 2): 2.0, (2, 1, 1): 1.0}}, hot({(1, 2): 2.0, (2, 1, 1): 1.0}),
    ),
    "tokens, hotwords as text": (as_tokens, {"hotwords": {"ab": 2.0}, "labels": LABELS}, hot({(1, 2): 2.0})),
    "separator": (as_words, {"separator": 3}, None),
    "separator, word score": (as_words, {"separator": 3, "word_score": -0.4}, lambda text: -0.4 * len(text)),
    "separator, labels": (as_text, {"separator": 3, "labels": LABELS}, None),
    "separator, lm": (
        as_text, {"separator": 3, "labels": LABELS, "lm": True} | LM,
        lambda text: 0.7 * lm_score(text) + 0.3 * len(text),
    ),
    "separator, hotwords": (
        as_text, {"separator": 3, "labels": LABELS, "hotwords": {"a ba": 1.3, "ba": 0.4, ("bb",): 0.6}},
        hot({("a", "ba"): 1.3, ("ba",): 0.4, ("bb",): 0.6}),
    ),
    "lexicon": (*lexicon_case(SPELLINGS, None), None),
    "lexicon, separator": (*lexicon_case(SPELLINGS, 3), None),
    "lexicon, lm": (
        *lexicon_case(SPELLINGS, None, lm=True, **LM), lambda text: 0.7 * lm_score(text) + 0.3 * len(text),
    ),
    "lexicon, separator, lm, hotwords": (
        *lexicon_case(SPELLINGS, 3, lm=True, hotwords=PHRASES, **LM),
        lambda text: 0.7 * lm_score(text) + 0.3 * len(text) + hot(PHRASES)(text),
    ),
    "several spellings": (*lexicon_case(SEVERAL, None), None),
    "several spellings, separator": (*lexicon_case(SEVERAL, 3), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_a_beam_that_holds_everything_is_the_enumeration(case, seed, lm):
    read, options, value = CASES[case]
    options = options | ({"lm": lm} if options.get("lm") else {})
    scores = draw(seed)
    found = ctc_beam_decode(scores[None], beam_size=EVERYTHING, n_best=EVERYTHING, **options)
    expected = enumerate_texts(scores, merge, read, value)
    assert_is_enumeration(found, expected)
    listed = np.logaddexp.reduce([mass for _, mass, _ in expected])
    assert found.mass[0] == pytest.approx(listed, abs=1e-9)
    met = ctc_beam_decode(scores[None], beam_size=EVERYTHING, n_best=EVERYTHING, exact_scores=False, **options)
    if "lexicon" not in options:  # where strings and labellings are one, the search meets all frames of each
        assert_is_enumeration(met, expected)


@pytest.mark.parametrize("case", ["tokens", "separator, lm", "lexicon, separator, lm, hotwords", "several spellings"])
def test_simple_ctc_is_its_enumeration(case, lm):
    read, options, value = CASES[case]
    options = options | ({"lm": lm} if options.get("lm") else {})
    scores = draw(3, frames=5)
    found = simple_ctc_beam_decode(scores[None], beam_size=EVERYTHING, n_best=EVERYTHING, **options)
    assert_is_enumeration(found, enumerate_texts(scores, without_blanks, read, value))


@pytest.mark.parametrize("case", ["tokens", "separator, lm", "lexicon, separator, lm, hotwords", "lexicon, lm"])
def test_asg_is_its_enumeration(case, lm):
    read, options, value = CASES[case]
    options = options | ({"lm": lm} if options.get("lm") else {})
    rng = np.random.default_rng(4)
    scores, transitions = rng.normal(size=(5, 4)), rng.normal(size=(4, 4))
    found = asg_beam_decode(scores[None], transitions, beam_size=EVERYTHING, n_best=EVERYTHING, **options)
    everything = enumerate_texts(scores, no_blank, as_tokens, None, transitions)
    log_z = np.logaddexp.reduce([mass for _, mass, _ in everything])
    expected = [
        (text, mass - log_z, score - log_z)
        for text, mass, score in enumerate_texts(scores, no_blank, read, value, transitions)
    ]
    assert_is_enumeration(found, expected)


def test_a_blank_anywhere_and_scores_far_apart(lm):
    # The blank is the last class, and the best labelling is e^900 times as probable as some others.
    scores = draw(5, frames=5, classes=3) * 150
    found = ctc_beam_decode(scores[None], blank=-1, beam_size=EVERYTHING, n_best=EVERYTHING)
    assert_is_enumeration(found, enumerate_texts(scores, lambda path: merge(path, 2), as_tokens))


def test_impossible_classes_are_in_no_hypothesis():
    scores = draw(6, frames=4)
    scores[:, 2] = -np.inf
    scores[1] = [-np.inf, 0.0, -np.inf, -np.inf]
    found = ctc_beam_decode(scores[None], beam_size=EVERYTHING, n_best=EVERYTHING)
    assert_is_enumeration(found, enumerate_texts(scores, merge, as_tokens))
    scores[2] = -np.inf
    found = ctc_beam_decode(np.stack([scores, draw(7, frames=4)]), separator=3)
    assert found.scores[0].tolist() == [-np.inf]
    assert found.words[0] == []
    assert found.mass[0] == -np.inf
    assert found.scores[1, 0] > -np.inf


@pytest.mark.parametrize("case", CASES)
def test_a_wider_beam_is_never_worse(case, lm):
    _, options, _ = CASES[case]
    options = options | ({"lm": lm} if options.get("lm") else {})
    for exact in (True, False):
        for seed in range(6):
            scores = draw(seed, frames=9, scale=1.0)[None]
            best = [
                (*ctc_beam_decode(scores, beam_size=size, exact_scores=exact, **options).scores[0], -np.inf)[0]
                for size in (1, 2, 3, 4, 5, 6, 8, 11, 16, 40)
            ]
            assert best == sorted(best), (exact, seed, best)


@pytest.mark.parametrize("separator", [None, 1])
def test_a_wider_beam_holds_a_narrower_one_where_classes_are_left_out(separator):
    rng = np.random.default_rng(2)
    scores = np.log(rng.dirichlet(np.full(5, 0.5), (100, 12)))
    scores[50:, :, 2:][rng.random((50, 12, 3)) < 0.3] = -np.inf
    for least in (-np.inf, -1.0):
        narrow = [set() for _ in scores]
        for size in (1, 2, 4, 8, 16):
            options = {"beam_size": size, "n_best": size, "separator": separator, "token_min": least}
            found = ctc_beam_decode(scores, **options)
            for n in range(len(scores)):
                wide = set(texts_of(found, n))
                assert narrow[n] <= wide, (n, least, size)
                narrow[n] = wide


def test_a_late_entry_has_room_to_go_on():
    """The right words promise most late. Where the last slot is all that follows from it, most sentences are wrong."""
    problem = make_problem("decode", "words", 12, 300, 150, np.random.default_rng(7))
    words = sorted({word for word in problem.arpa.split() if word.isalpha()})
    lexicon = Lexicon.from_words(words, lambda word: [1 + LETTERS.index(letter) for letter in word])
    options = {"lm": NGram.parse(problem.arpa.splitlines()), "lm_weight": 0.8, "word_score": 0.5, "lexicon": lexicon}
    spoken = ["".join(LETTERS[c - 1] for c in own[:n]).split()
              for own, n in zip(problem.targets, problem.target_lengths, strict=True)]  # fmt: skip
    scores, separator = problem.scores.transpose(1, 0, 2), 1 + LETTERS.index(" ")
    found = ctc_beam_decode(scores, beam_size=20, separator=separator, **options)
    wrong = [words[0] != own for words, own in zip(found.words, spoken, strict=True)]
    assert sum(wrong) <= 4, wrong
    for size in (17, 32):
        other = ctc_beam_decode(scores, beam_size=size, separator=separator, **options)
        assert other.words == found.words


@pytest.mark.parametrize("separator", [None, 1])
def test_a_threshold_that_nothing_is_behind_prunes_nothing(separator):
    # A repeated label lives on mass that does not rank its slot, and must not be dropped for that.
    log_probs = np.log(np.random.default_rng(8).dirichlet(np.ones(4), 6))
    options = {"beam_size": 5000, "n_best": 5000, "separator": separator}
    every, pruned = (ctc_beam_decode(log_probs, beam_threshold=each, **options) for each in (np.inf, 1e6))
    assert np.array_equal(every.tokens, pruned.tokens)
    np.testing.assert_allclose(pruned.ctc_scores, every.ctc_scores, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_pruning_leaves_a_subset_with_the_same_scores(threshold, lm):
    scores = draw(8)[None]
    everything = ctc_beam_decode(scores, beam_size=EVERYTHING, n_best=EVERYTHING)
    table = dict(zip(texts_of(everything), everything.scores[0], strict=True))
    for options in ({"beam_threshold": threshold}, {"token_min": -threshold}):
        found = ctc_beam_decode(scores, beam_size=EVERYTHING, n_best=EVERYTHING, **options)
        assert 0 < len(texts_of(found)) < len(table)
        for text, score in zip(texts_of(found), found.scores[0], strict=True):
            assert score == pytest.approx(table[text], abs=1e-12)


def test_scores_and_frames_are_those_of_the_loss_and_the_aligner():
    torch = pytest.importorskip("torch")
    from pathsum.torch import asg_align, asg_loss, ctc_loss, forced_align, simple_ctc_align, simple_ctc_loss

    rng = np.random.default_rng(9)
    scores = log_softmax(rng.normal(size=(3, 12, 5)) * 2)
    lengths = [12, 9, 1]
    transitions = rng.normal(size=(5, 5))
    for decode, loss, align in (
        (ctc_beam_decode, ctc_loss, forced_align),
        (simple_ctc_beam_decode, simple_ctc_loss, simple_ctc_align),
        (asg_beam_decode, asg_loss, asg_align),
    ):
        table = (transitions,) if decode is asg_beam_decode else ()
        found = decode(scores, *table, lengths, beam_size=6, n_best=4)
        table = tuple(map(torch.from_numpy, table))
        for n, length in enumerate(lengths):
            for tokens, size, score, frames in zip(
                found.tokens[n], found.lengths[n], found.ctc_scores[n], found.frames[n], strict=True
            ):
                if score == -np.inf:
                    continue
                target, one = torch.from_numpy(tokens[:size])[None], torch.from_numpy(scores[n : n + 1])
                sizes = ([length], [int(size)])
                expected = loss(one, target, *table, *sizes, reduction="none", batch_first=True)
                assert score == pytest.approx(-float(expected[0]), abs=1e-9)
                aligned = align(one, target, *table, *sizes)
                positions = aligned.positions[0].numpy()[:length]
                begins = [int(np.flatnonzero(positions == i)[0]) for i in range(size)]
                assert frames[:size].tolist() == begins
                assert (frames[size:] == -1).all()


def test_long_sure_samples_lose_no_digit():
    # Here most of the frames are left out for most of the tokens.
    torch = pytest.importorskip("torch")
    from pathsum.torch import ctc_loss

    scores = log_softmax(np.random.default_rng(20).normal(size=(1, 300, 6)) * 8)
    found = ctc_beam_decode(scores, beam_size=12, n_best=12)
    for tokens, size, score in zip(found.tokens[0], found.lengths[0], found.ctc_scores[0], strict=True):
        target = torch.from_numpy(tokens[None, :size])
        expected = ctc_loss(torch.from_numpy(scores), target, [300], [int(size)], reduction="sum", batch_first=True)
        assert score == pytest.approx(-float(expected), abs=1e-9)


def test_frames_with_a_separator_are_those_of_the_best_string():
    scores = draw(10, frames=7)
    found = ctc_beam_decode(scores[None], beam_size=EVERYTHING, n_best=20, separator=3)
    for words, tokens, size, frames in zip(
        found.words[0], found.tokens[0], found.lengths[0], found.frames[0], strict=True
    ):
        best = max(
            (path for path in itertools.product(range(4), repeat=7) if as_words(merge(path)) == [tuple(words)]),
            key=lambda path: sum(scores[t, c] for t, c in enumerate(path)),
        )
        begins = [t for t in range(7) if best[t] != 0 and (t == 0 or best[t] != best[t - 1])]
        # Separators in a row are one, and those before and behind all words are none.
        kept = [t for t in begins if best[t] != 3 or any(best[s] not in (0, 3) for s in range(t))]
        kept = [t for i, t in enumerate(kept) if best[t] != 3 or (best[kept[i - 1]] != 3)]
        while kept and best[kept[-1]] == 3:
            kept.pop()
        assert frames[:size].tolist() == kept
        assert tokens[:size].tolist() == [best[t] for t in kept]


def test_chunks_are_the_whole(lm):
    scores = np.stack([draw(11, frames=9), draw(12, frames=9)])
    for options in ({}, {"separator": 3, "labels": LABELS, "lm": lm, "lm_weight": 0.5}):
        options = {"beam_size": 5, "n_best": 3} | options
        state = DecoderState()
        for chunk, lengths in ((scores[:, :4], [4, 4]), (scores[:, 4:4], None), (scores[:, 4:], [5, 2])):
            found = ctc_beam_decode(chunk, lengths, state=state, **options)
        whole = ctc_beam_decode(scores, [9, 6], **options)
        for part, expected in zip(found, whole, strict=True):
            np.testing.assert_array_equal(part, expected) if isinstance(part, np.ndarray) else part == expected
        with pytest.raises(pathsum.InvalidValueError, match="state must be of ctc_beam_decode with N = 2, C = 4"):
            ctc_beam_decode(scores[:1], state=state, **options)


def test_nothing_to_decode(lm):
    for options, value in (
        ({}, 0.0),
        ({"separator": 3, "labels": LABELS, "lm": lm, "lm_weight": 0.5}, lm_score([]) / 2),
    ):
        blank = np.log(np.full((1, 5, 4), 1e-12))
        blank[..., 0] = 0.0
        for scores in (blank[:, :0], blank):
            found = ctc_beam_decode(scores, **options)
            assert found.tokens.shape == (1, 1, 0)
            assert found.lengths.tolist() == [[0]]
            assert found.scores[0, 0] == pytest.approx(value, abs=1e-9)
            assert found.ctc_scores[0, 0] == pytest.approx(0.0, abs=1e-9)
            assert found.words in (None, [[[]]])
    assert ctc_beam_decode(np.zeros((0, 5, 4))).tokens.shape == (0, 0, 0)


def test_a_nan_spoils_its_sample_alone():
    clean = np.stack([draw(13), draw(14), draw(15)])
    scores = clean.copy()
    scores[1, 3, 2] = np.nan
    found, expected = (ctc_beam_decode(x, n_best=2, separator=3) for x in (scores, clean))
    assert np.isnan(found.scores[1]).all()
    assert np.isnan(found.mass[1])
    assert found.words[1] == []
    for n in (0, 2):
        assert found.words[n] == expected.words[n]
        assert found.scores[n].tolist() == expected.scores[n].tolist()


def test_dtypes_strides_layouts_and_threads_change_nothing():
    scores = np.stack([draw(seed, frames=20).astype(np.float32) for seed in range(4)])
    expected = ctc_beam_decode(scores.astype(np.float64), [20, 11, 0, 7], beam_size=8, n_best=3, num_threads=1)
    strided = np.repeat(scores, 2, 2)[..., ::2].swapaxes(0, 1)
    for found in (
        ctc_beam_decode(scores, np.array([20, 11, 0, 7], np.int8), beam_size=8, n_best=3, num_threads=2),
        ctc_beam_decode(strided, [20, 11, 0, 7], beam_size=8, n_best=3, batch_first=False),
    ):
        for part, other in zip(found, expected, strict=True):
            assert part is other is None or np.array_equal(part, other)
    one = ctc_beam_decode(scores[0], 20, beam_size=8, n_best=3)
    assert np.array_equal(one.scores, expected.scores[0])
    assert one.mass == expected.mass[0]
    results = []
    threads = [threading.Thread(target=lambda: results.append(ctc_beam_decode(scores, beam_size=8))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(np.array_equal(results[0].tokens, found.tokens) for found in results)


SCORES = np.zeros((1, 3, 4))


@pytest.mark.parametrize("error, message, changes", [
    ("Type", "log_probs must be a NumPy array; got list", {"log_probs": [[0.0]]}),
    ("Value", "log_probs must have shape (N, T, C) or (T, C); got shape (4,)", {"log_probs": np.zeros(4)}),
    ("Value", "beam_size must be at least 1; got 0", {"beam_size": 0}),
    ("Type", "beam_size must be an int; got float", {"beam_size": 5.0}),
    ("Value", "n_best must be at least 1; got 0", {"n_best": 0}),
    ("Value", "separator must be a class, C = 4, other than the blank, 0; got 0", {"separator": 0}),
    ("Value", "separator must be a class, C = 4, other than the blank, 0; got 4", {"separator": 4}),
    ("Type", "lm must be an NGram; got str", {"lm": "x.arpa"}),
    ("Type", "lexicon must be a Lexicon; got list", {"lexicon": ["a"]}),
    ("Value", "lm_weight must be finite; got inf", {"lm_weight": np.inf}),
    ("Value", "token_min must be finite; got nan", {"token_min": np.nan}),
    ("Value", "beam_threshold must be finite and at least 0; got -1.0", {"beam_threshold": -1.0}),
    ("Value", "lexicon must have tokens in [0, 4) other than the blank; got 4 in 'x'",
     {"lexicon": Lexicon([("x", [1, 4])])}),
    ("Value", "lexicon must have tokens in [0, 4) other than the blank; got 0 in 'x'",
     {"lexicon": Lexicon([("x", [0])])}),
    ("Value", "lexicon must have the separator, 3, nowhere but at the end of a spelling; got [1, 3, 2] of 'x'",
     {"lexicon": Lexicon([("x", [1, 3, 2])]), "separator": 3}),
    ("Value", "hotwords must have words of the lexicon; got 'q'",
     {"lexicon": Lexicon([("x", [1])]), "hotwords": {"q": 1.0}}),
    ("Value", "hotwords must have words that the labels can spell; got 'q'",
     {"labels": LABELS, "separator": 3, "hotwords": {"q": 1.0}}),
    ("Type", "hotwords must be a mapping of phrases to weights; got list", {"hotwords": ["a"]}),
    ("Value", "labels must be given where words are to be spelled without a lexicon; got None",
     {"separator": 3, "hotwords": {"a": 1.0}}),
    ("Value", "labels must be a text for each class, C = 4; got ['a']", {"labels": ["a"]}),
    ("Value", "input_lengths must lie in [0, T] with T = 3; got 4 at sample 0", {"input_lengths": [4]}),
    ("Type", "state must be a DecoderState; got dict", {"state": {}}),
])  # fmt: skip
def test_what_is_wrong_is_named(error, message, changes):
    with pytest.raises(getattr(pathsum, f"Invalid{error}Error")) as caught:
        ctc_beam_decode(**{"log_probs": SCORES} | changes)
    assert str(caught.value) == f"ctc_beam_decode: {message}"


def test_an_ngram_scores_as_its_definition(lm, tmp_path):
    (tmp_path / "x.arpa").write_text(ARPA, encoding="utf-8")
    with gzip.open(tmp_path / "x.arpa.gz", "wt", encoding="utf-8") as file:
        file.write(ARPA)
    for model in (lm, NGram.read(tmp_path / "x.arpa"), NGram.read(str(tmp_path / "x.arpa.gz"))):
        for count in range(4):
            for words in itertools.product([*WORDS, "other"], repeat=count):
                assert model.score(words) == pytest.approx(lm_score(words), abs=1e-12)
        assert model.order == 3
        assert len(model.words) == 6
        inside = sum(ln_p(("a",)[:i], w) for i, w in enumerate(["a", "ba"]))
        assert model.score(["a", "ba"], bos=False, eos=False) == pytest.approx(inside, abs=1e-12)
    states = [lm.start]
    for word in ("a", "ba", "ab"):
        scores, after = lm.advance(states)
        assert scores.shape == after.shape == (1, 6)
        states = [after[0, lm.words.index(word)]]
    context = {"a": ("<s>",), "ba": ("<s>", "a")}
    first, _ = lm.advance([lm.start])
    for word in [*WORDS, "</s>", "<unk>"]:
        assert first[0, lm.words.index(word)] == pytest.approx(ln_p(context["a"], word), abs=1e-12)


@pytest.mark.parametrize("change, rule, line", [
    (("\\data\\", "data"), "have a line \\data\\", 27),
    (("ngram 2=5", "ngram 3=5"), "have a line 'ngram 2=COUNT'", 4),
    (("ngram 2=5", "ngram 2=4"), "have 4 2-grams, as it says", 22),
    (("\\2-grams:", "\\3-grams:"), "have a line \\2-grams:", 15),
    (("-0.2\ta ba", "-0.2\ta"), "have a log-probability and 2 words in a line", 17),
    (("-0.7\tab\t-0.1", "x\tab\t-0.1"), "have numbers for log-probabilities", 12),
    (("-0.7\tab\t-0.1", "0.7\tab\t-0.1"), "have log-probabilities of at most 0", 12),
    (("-0.35\tab a", "-0.35\tab c"), "have words among its 1-grams", 18),
    (("-0.7\tab", "-0.7\ta"), "have each n-gram once", 12),
    (("\\end\\", ""), "end in a line \\end\\", 27),
])  # fmt: skip
def test_a_broken_arpa_file_names_its_line(change, rule, line, tmp_path):
    (tmp_path / "x.arpa").write_text(ARPA.replace(*change), encoding="utf-8")
    with pytest.raises(pathsum.InvalidValueError) as caught:
        NGram.read(tmp_path / "x.arpa")
    assert str(caught.value).startswith(f"NGram.read: path must {rule}"), caught.value
    assert f"at line {line} of {tmp_path / 'x.arpa'}" in str(caught.value), caught.value


def test_a_lexicon_is_read_from_its_files(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("ab\ta b |\nab a | \n\nba b a\n", encoding="utf-8")
    lexicon = Lexicon.read(path, ["-", "a", "b", "|"])
    assert lexicon.words == ["ab", "ba"]
    assert lexicon.spellings == [[(1, 2, 3), (1, 3)], [(2, 1)]]
    scores = draw(16)
    stripped = Lexicon([("ab", (1, 2)), ("ab", (1,)), ("ba", (2, 1))])
    found, expected = (ctc_beam_decode(scores, separator=3, lexicon=each, n_best=5) for each in (lexicon, stripped))
    assert found.words == expected.words
    assert np.array_equal(found.scores, expected.scores)
    path.write_text("ab 1 2\nba x\n", encoding="utf-8")
    for tokens in (None, {"1": 1, "2": 2}):
        with pytest.raises(pathsum.InvalidValueError, match=r"'x'.* at line 2 of "):
            Lexicon.read(path, tokens)
    with pytest.raises(pathsum.InvalidValueError, match=r"Lexicon.from_words: words must have tokens; got \[\] of 'x'"):
        Lexicon.from_words(["x"], lambda word: [])


def test_tensors_in_tensors_out():
    torch = pytest.importorskip("torch")
    import pathsum.torch as front_end

    scores = np.stack([draw(17), draw(18)])
    transitions = np.random.default_rng(0).normal(size=(4, 4))
    for name, table in (("ctc_beam_decode", ()), ("simple_ctc_beam_decode", ()), ("asg_beam_decode", (transitions,))):
        options = {"beam_size": 7, "n_best": 3, "separator": 3}
        expected = getattr(pathsum.decoding, name)(scores, *table, [6, 4], **options)
        tensors = [torch.from_numpy(each).requires_grad_() for each in (scores, *table)]
        found = getattr(front_end, name)(*tensors, torch.tensor([6, 4]), **options)
        assert found.words == expected.words
        for part, other in zip(found, expected, strict=True):
            if isinstance(other, np.ndarray):
                assert not part.requires_grad
                assert np.array_equal(part.numpy(), other)
        half = getattr(front_end, name)(*(x.bfloat16() for x in tensors), **options)
        rounded = getattr(front_end, name)(*(x.bfloat16().float() for x in tensors), **options)
        assert torch.equal(half.scores, rounded.scores)
        assert half.scores.dtype == torch.float64
        single = getattr(front_end, name)(tensors[0][1], *tensors[1:], 4, **options)
        assert torch.equal(single.scores, found.scores[1])
        assert single.mass == found.mass[1]


def test_other_frameworks_decode_their_arrays():
    scores = np.stack([draw(17), draw(18)]).astype(np.float32)
    expected = ctc_beam_decode(scores, [6, 4], beam_size=7, n_best=3, separator=3)
    for name, kind in (("jax", "Array"), ("tensorflow", "EagerTensor")):
        pytest.importorskip(name)
        front_end = importlib.import_module(f"pathsum.{name}")
        found = front_end.ctc_beam_decode(scores, [6, 4], beam_size=7, n_best=3, separator=3)
        assert found.words == expected.words
        assert kind in type(found.tokens).__name__
        np.testing.assert_array_equal(np.asarray(found.tokens), expected.tokens)
        np.testing.assert_allclose(np.asarray(found.scores), expected.scores, rtol=1e-6)


def test_scores_without_values_are_named():
    jax = pytest.importorskip("jax")
    from pathsum.jax import ctc_beam_decode as decode

    with pytest.raises(pathsum.InvalidTypeError, match=r"log_probs must have values, outside of jax\.jit"):
        jax.jit(decode)(np.zeros((1, 3, 4)))


def _decode_in_child(connection, scores):
    connection.send(ctc_beam_decode(scores, num_threads=2, beam_size=20, n_best=5))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_decodes_after_its_parent():
    scores = np.log(np.random.default_rng(4).dirichlet(np.ones(9), (6, 400)))
    expected = ctc_beam_decode(scores, num_threads=2, beam_size=20, n_best=5)  # the parent has started its threads
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
        child = context.Process(target=_decode_in_child, args=(sender, scores))
        child.start()
    assert receiver.poll(60), "the child hangs"
    found = receiver.recv()
    child.join(60)
    assert child.exitcode == 0
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.scores, expected.scores)
