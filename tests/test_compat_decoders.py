"""Drop-ins of decoders: pyctcdecode's, beside enumeration and its formula, and fast-ctc-decode's."""

import importlib
import itertools
import json
import math
import sys
from types import ModuleType

import numpy as np
import pytest

from pathsum.compat import fast_ctc_decode, install
from pathsum.compat import pyctcdecode as drop_in
from pathsum.decoding import KenLM, NGram, ctc_beam_decode, rescore
from pathsum.errors import FrameworkMissingError, InvalidValueError

LN_10 = math.log(10.0)
LABELS = ["", " ", "a", "b"]
# Logarithms to base 10, which the expected scores are taken from by hand.
ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.3
-0.8\t</s>
-0.6\ta\t-0.2
-0.9\tab\t-0.1

\\2-grams:
-0.2\t<s> a
-0.3\ta ab
-0.4\tab </s>

\\end\\
"""


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_text(ARPA)
    return str(path)


def scores(num_frames=4, seed=0, num_classes=4):
    rows = np.random.default_rng(seed).standard_normal((num_frames, num_classes)) * 2
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def texts_of(log_probs, labels=LABELS):
    """Every text and its log-probability, by all labellings of the frames."""
    found = {}
    for labelling in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = " ".join("".join(labels[c] for c, _ in itertools.groupby(labelling)).split())
        score = sum(log_probs[t, c] for t, c in enumerate(labelling))
        found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


def log10_of(words):
    """log10 P of words and the end under ARPA, by the back-off rule."""
    ones = {"<s>": -99.0, "</s>": -0.8, "a": -0.6, "ab": -0.9}
    weights = {"<s>": -0.3, "a": -0.2, "ab": -0.1}
    pairs = {("<s>", "a"): -0.2, ("a", "ab"): -0.3, ("ab", "</s>"): -0.4}
    total, before = 0.0, "<s>"
    for word in (*words, "</s>"):
        total += pairs.get((before, word), weights.get(before, 0.0) + ones.get(word, -2.0))
        before = word if word in ones else None
    return total


EVERYTHING = {"beam_width": 400, "beam_prune_logp": -1e6, "token_min_logp": -1e6}


def test_the_list_is_the_enumeration():
    log_probs = scores()
    beams = drop_in.build_ctcdecoder(LABELS).decode_beams(log_probs, **EVERYTHING)
    wanted = sorted(texts_of(log_probs).items(), key=lambda pair: -pair[1])
    assert [beam.text for beam in beams] == [text for text, _ in wanted]
    np.testing.assert_allclose([beam.logit_score for beam in beams], [score for _, score in wanted], atol=1e-9)
    assert [beam.lm_score for beam in beams] == [beam.logit_score for beam in beams]


@pytest.mark.parametrize("unigrams, known", [(None, {"a", "ab"}), (["ab"], {"ab"})])
@pytest.mark.parametrize("boundary", [True, False])
def test_scores_are_those_of_the_formula(arpa, unigrams, known, boundary):
    log_probs = scores(seed=1)
    options = {"alpha": 0.7, "beta": 0.4, "unk_score_offset": -3.0, "lm_score_boundary": boundary}
    decoder = drop_in.build_ctcdecoder(LABELS, arpa, unigrams, **options)
    beams = decoder.decode_beams(log_probs, hotwords=["ab b"], hotword_weight=1.5, **EVERYTHING)
    wanted = {}
    for text, score in texts_of(log_probs).items():
        words = text.split()
        log10 = log10_of(words)
        if not boundary:
            log10 = sum(
                {("a", "ab"): -0.3}.get((before, word), {"a": -0.2, "ab": -0.1}.get(before, 0.0)
                + {"a": -0.6, "ab": -0.9}.get(word, -2.0)) for before, word in itertools.pairwise((None, *words))
            )  # fmt: skip
        log10 -= 3.0 * sum(word not in known for word in words)
        wanted[text] = score + 0.7 * LN_10 * log10 + 0.4 * len(words) + 1.5 * sum(w in ("ab", "b") for w in words)
    if not boundary:
        assert beams
    found = {beam.text: beam.lm_score for beam in beams}
    assert set(found) == set(wanted)
    if boundary:
        # Without words nothing is asked of the model, as nothing is scored before the first.
        wanted[""] = found[""] = 0.0
    for text, score in wanted.items():
        assert found[text] == pytest.approx(score, abs=1e-9), text
    ordered = [beam.lm_score for beam in beams]
    assert ordered == sorted(ordered, reverse=True)


def test_frames_and_states(arpa):
    log_probs = np.full((7, 4), -20.0)
    for t, c in enumerate([2, 2, 0, 1, 2, 3, 3]):
        log_probs[t, c] = 0.0
    decoder = drop_in.build_ctcdecoder(LABELS, arpa)
    beam = decoder.decode_beams(log_probs)[0]
    assert beam.text_frames == [("a", (0, 2)), ("ab", (4, 7))]
    # "ab" behind "a", whether in one part or in two.
    first, second = log_probs[:4], log_probs[4:]
    state = decoder.decode_beams(first)[0].last_lm_state
    whole = [decoder.decode_beams(each)[0] for each in (first, second)]
    joined = decoder.decode_beams(second, lm_start_state=state)[0]
    gained = joined.lm_score - whole[1].lm_score
    assert gained == pytest.approx(0.5 * LN_10 * (-0.3 - (-0.3 - 0.9)), abs=1e-9)


def test_batches_are_as_each_alone(arpa):
    decoder = drop_in.build_ctcdecoder(LABELS, arpa)
    rows = [scores(5, 2), scores(3, 3), scores(0)]
    alone = [decoder.decode_beams(each) for each in rows]
    batch = decoder.decode_beams_batch(None, rows)
    assert [[tuple(beam) for beam in each] for each in batch] == [
        [(beam.text, *beam[2:]) for beam in each] for each in alone
    ]
    assert decoder.decode_batch(None, rows) == [decoder.decode(each) for each in rows]
    assert decoder.decode_batch(None, []) == []


def test_probabilities_logits_and_shapes():
    decoder = drop_in.build_ctcdecoder(["a", "b", "|"])  # the blank is appended
    log_probs = scores(seed=4)
    best = decoder.decode_beams(log_probs)[0]
    for same in (np.exp(log_probs), log_probs + 3.0):
        found = decoder.decode_beams(same)[0]
        assert found.text == best.text
        assert found.lm_score == pytest.approx(best.lm_score, abs=1e-9)
    with pytest.raises(ValueError, match="vocabulary 4"):
        decoder.decode(np.zeros((3, 5)))
    assert decoder.decode(np.full((3, 4), np.nan)) == ""


def test_word_pieces_read_as_words():
    labels = ["", "▁a", "b", "▁⁇▁"]
    log_probs = scores(seed=5)
    beams = drop_in.build_ctcdecoder(labels).decode_beams(log_probs, **EVERYTHING)
    found = {}
    for labelling in itertools.product(range(4), repeat=4):
        text = "".join(labels[c] for c, _ in itertools.groupby(labelling)).replace("▁", " ")
        score = sum(log_probs[t, c] for t, c in enumerate(labelling))
        found[" ".join(text.split())] = np.logaddexp(found.get(" ".join(text.split()), -np.inf), score)
    assert {beam.text: round(beam.logit_score, 9) for beam in beams} == {t: round(s, 9) for t, s in found.items()}


def test_word_pieces_are_ordered_by_a_model(arpa):
    labels, log_probs = ["", "▁a", "b"], scores(seed=6, num_classes=3)
    plain = {
        beam.text: beam.logit_score for beam in drop_in.build_ctcdecoder(labels).decode_beams(log_probs, **EVERYTHING)
    }
    beams = drop_in.build_ctcdecoder(labels, arpa, alpha=0.7, beta=0.4).decode_beams(log_probs, **EVERYTHING)
    assert {beam.text for beam in beams} == set(plain)
    for beam in beams:
        words = beam.text.split()
        if words:
            unknown = sum(word not in ("a", "ab") for word in words)
            worth = 0.7 * LN_10 * (log10_of(words) - 10.0 * unknown) + 0.4 * len(words)
            assert beam.lm_score == pytest.approx(plain[beam.text] + worth, abs=1e-9)


@pytest.mark.parametrize("labels, wanted, pieces", [
    (["|", "a", "<pad>", "[UNK]"], [" ", "a", "", "⁇"], False),
    (["_", "a", " "], ["", "a", " "], False),
    (["a", " "], ["a", " ", ""], False),
    (["[PAD]", "a", "##b", "<unk>"], ["", "▁a", "b", "▁⁇▁"], True),
    (["▁a", "b", "<unk>"], ["▁a", "b", "▁⁇▁", ""], True),
])  # fmt: skip
def test_alphabets(labels, wanted, pieces):
    alphabet = drop_in.Alphabet.build_alphabet(labels)
    assert (alphabet.labels, alphabet.is_bpe) == (wanted, pieces)
    again = drop_in.Alphabet.loads(alphabet.dumps())
    assert (again.labels, again.is_bpe) == (wanted, pieces)


def test_alphabets_that_are_none():
    for labels in (["a", "a"], ["▁a", " "]):
        with pytest.raises(ValueError):
            drop_in.Alphabet.build_alphabet(labels)
    with pytest.raises(ValueError, match="unexpected keys"):
        drop_in.Alphabet.loads(json.dumps({"labels": []}))


def test_saved_and_loaded_it_decodes_alike(arpa, tmp_path):
    decoder = drop_in.build_ctcdecoder(LABELS, arpa, ["a"], alpha=0.3)
    decoder.reset_params(beta=0.9, lm_score_boundary=False)
    with pytest.raises(ValueError, match="alpha must be a float"):
        decoder.reset_params(alpha="much")  # type: ignore[arg-type]
    folder = tmp_path / "saved"
    folder.mkdir()
    decoder.save_to_dir(str(folder))
    again = drop_in.BeamSearchDecoderCTC.load_from_dir(str(folder))
    rows = scores(6, 7)
    assert again.decode_beams(rows) == decoder.decode_beams(rows)
    (folder / "alphabet.json").unlink()
    with pytest.raises(ValueError, match="alphabet"):
        drop_in.BeamSearchDecoderCTC.load_from_dir(str(folder))


def test_two_models_of_the_same_are_their_mean(arpa):
    alphabet = drop_in.Alphabet.build_alphabet(LABELS)
    model = drop_in.LanguageModel(arpa)
    rows = scores(4, 8)
    one, both = (
        drop_in.BeamSearchDecoderCTC(alphabet, each).decode_beams(rows, **EVERYTHING)
        for each in (model, drop_in.MultiLanguageModel([model, model]))
    )
    found = {beam.text: beam.lm_score for beam in both}
    for beam in one:
        if beam.text:
            assert found[beam.text] == pytest.approx(beam.lm_score, abs=1e-9)


@pytest.fixture
def kenlm(monkeypatch):
    """The package's names, over an ``NGram``."""
    package = ModuleType("kenlm")

    class State:
        value = 0

    class Model:
        def __init__(self, path):
            if "broken" in str(path):
                raise OSError("Cannot read model")
            self.path, self._model = str(path).encode(), NGram.parse(ARPA.splitlines())
            self.order = 2

        def __contains__(self, word):
            return word in self._model

        def BeginSentenceWrite(self, state):
            state.value = self._model.begin()

        def NullContextWrite(self, state):
            state.value = 0

        def BaseScore(self, state, word, after):
            score, after.value = self._model.follow(state.value, word)
            return score / LN_10

    package.Model, package.State = Model, State  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kenlm", package)
    return package


def test_a_binary_model_orders_the_list(kenlm, tmp_path, arpa):
    path = tmp_path / "words.bin"
    path.write_bytes(b"binary")
    model = KenLM.read(path)
    assert (model.order, "ab" in model, "b" in model) == (2, True, False)
    assert model.score(["a", "ab"]) == pytest.approx(LN_10 * log10_of(["a", "ab"]), abs=1e-9)
    rows = scores(4, 9)
    found = ctc_beam_decode(rows[None], n_best=400, beam_size=400, separator=1, labels=LABELS)
    ordered = rescore(found, model, lm_weight=0.7, word_score=0.4)
    wanted = {
        text: score + 0.7 * LN_10 * log10_of(text.split()) + 0.4 * len(text.split())
        for text, score in texts_of(rows).items()
    }
    listed = [" ".join(words) for words in ordered.words[0]]
    assert listed == sorted(wanted, key=lambda text: -wanted[text])
    np.testing.assert_allclose(ordered.scores[0], [wanted[text] for text in listed], atol=1e-9)
    spelled = ["".join(LABELS[c] for c in row if c >= 0) for row in ordered.tokens[0]]
    assert [text.split() for text in spelled] == ordered.words[0]

    read, led = (
        drop_in.BeamSearchDecoderCTC(
            drop_in.Alphabet.build_alphabet(LABELS), drop_in.LanguageModel(each, ["a", "ab"])
        ).decode_beams(rows, hotwords=["ab"], **EVERYTHING)
        for each in (kenlm.Model(path), arpa)
    )  # fmt: skip
    by_text = {beam.text: beam.lm_score for beam in led}
    for beam in read:
        if beam.text:
            assert beam.lm_score == pytest.approx(by_text[beam.text], abs=1e-9)


def test_what_is_no_model_is_named(kenlm, tmp_path, monkeypatch):
    with pytest.raises(OSError):
        KenLM.read(tmp_path / "nothing.bin")
    (tmp_path / "broken.bin").write_bytes(b"")
    with pytest.raises(InvalidValueError, match="path must be a file of kenlm's"):
        KenLM.read(tmp_path / "broken.bin")
    with pytest.raises(InvalidValueError, match="beams must be a batch with words"):
        rescore(ctc_beam_decode(scores()[None]), None, lm_weight=1.0)
    with pytest.raises(InvalidValueError, match="offsets must have one entry a word"):
        NGram.parse(ARPA.splitlines()).changed(offsets=[0.0])
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(FrameworkMissingError, match="needs the package kenlm"):
        KenLM.read(tmp_path / "broken.bin")
    with pytest.raises(ImportError):
        drop_in.build_ctcdecoder(LABELS, str(tmp_path / "broken.bin"))


def test_pyctcdecode_stands_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyctcdecode", None)
    monkeypatch.delitem(sys.modules, "pyctcdecode")
    with install("pyctcdecode"):
        if "pathsum.compat.pyctcdecode" in str(importlib.import_module("pyctcdecode").build_ctcdecoder.__module__):
            constants = importlib.import_module("pyctcdecode.constants")
            assert constants.DEFAULT_BEAM_WIDTH == 100
            assert importlib.import_module("pyctcdecode.alphabet").UNK_TOKEN == "⁇"


# ---- fast-ctc-decode ----


@pytest.mark.parametrize("collapse", [True, False])
def test_a_wide_beam_has_the_most_probable_text(collapse):
    probs = np.exp(scores(5, 10, 3))
    found = {}
    for labelling in itertools.product(range(3), repeat=5):
        kept = [c for c, _ in itertools.groupby(labelling)] if collapse else labelling
        text = "".join("NAB"[c] for c in kept if c)
        found[text] = found.get(text, 0.0) + np.prod(probs[np.arange(5), labelling])
    text, path = fast_ctc_decode.beam_search(probs, "NAB", beam_size=200, collapse_repeats=collapse)
    assert text == max(found, key=found.__getitem__)
    assert len(path) == len(text)


def test_the_path_is_where_labels_begin():
    probs = np.full((12, 3), [0.5, 0.0, 0.0], np.float32)
    for frame in (2, 3, 7):
        probs[frame] = [0.0, 1.0, 0.0]
    for search in (fast_ctc_decode.beam_search, fast_ctc_decode.viterbi_search):
        assert search(probs, ["N", "AA", "C"]) == ("AAAA", [2, 7])


def test_qualities_are_those_of_the_mean_probability():
    probs = np.full((9, 3), [0.9, 0.1, 0.0])
    probs[1] = probs[2] = [0.1, 0.9, 0.0]  # q10
    probs[4] = [0.0, 0.01, 0.99]  # q20
    text, path = fast_ctc_decode.viterbi_search(probs, "NAC", qstring=True)
    assert (text, path) == ("AC" + chr(33 + 10) + chr(33 + 20), [1, 4])
    text, _ = fast_ctc_decode.viterbi_search(probs, "NAC", True, 0.5, 3.0)
    assert text == "AC" + chr(33 + 8) + chr(33 + 13)
    assert fast_ctc_decode.viterbi_search(probs[:1], "NAC", qstring=True) == ("", [])
    assert fast_ctc_decode.viterbi_search(probs, "NAC", collapse_repeats=False)[1] == [1, 2, 4]


def test_what_fast_ctc_decode_refuses():
    probs = np.full((4, 3), 1 / 3)
    for arguments in ((probs, "NA"), (probs, "NAC", 0), (probs, "NAC", 5, -0.1), (probs, "NAC", 5, 1 / 3)):
        with pytest.raises(ValueError):
            fast_ctc_decode.beam_search(*arguments)
    with pytest.raises(ValueError):
        fast_ctc_decode.viterbi_search(probs, "NACG")
    with pytest.raises(RuntimeError, match="NaN"):
        fast_ctc_decode.beam_search(np.full((4, 3), np.nan), "NAC")
    with pytest.raises(RuntimeError, match="search space"):
        fast_ctc_decode.beam_search(np.zeros((4, 3)), "NAC")
