"""`pathsum decode`: files in, the most probable texts out, in tables and files."""

import gzip
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

from pathsum import cli

pytest.importorskip("rich")

# blank, space, a, b
TOKENS = "- ab"
OPTIONS = ("--frame-seconds", "0.5", "--tokens", TOKENS)
ARPA = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-99 <s> -0.25
-0.5 </s>
-0.5 ab -0.125
-1.0 a

\\2-grams:
-0.25 ab a

\\end\\
"""


def random_scores(seed=0, num_frames=5):
    scores = torch.randn(num_frames, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.log_softmax(1)


def texts_of(log_probs):
    """P of every text, by all sequences of classes; spaces count for nothing at the ends and once between words."""
    found = {}
    for path in itertools.product(range(4), repeat=len(log_probs)):
        merged = [c for c, _ in itertools.groupby(path)]
        text = " ".join("".join(TOKENS[c] for c in merged if c != 0).split())
        found[text] = found.get(text, 0.0) + math.exp(
            sum(float(row[c]) for row, c in zip(log_probs, path, strict=True))
        )
    return found


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "speech.npy", random_scores().numpy())
    (tmp_path / "words.arpa").write_text(ARPA)
    return tmp_path


def decode(folder, *arguments, scores="speech.npy"):
    return cli.main(["decode", str(folder / scores), *arguments])


def document(folder, *arguments, scores="speech.npy"):
    assert decode(folder, *arguments, "--out", str(folder / "out"), "--formats", "json", scores=scores) == 0
    return json.loads((folder / "out" / scores).with_suffix(".json").read_text(encoding="utf-8"))


def test_the_list_is_that_of_all_texts(folder, capsys):
    expected = sorted(texts_of(random_scores()).items(), key=lambda pair: -pair[1])
    found = document(folder, *OPTIONS, "--beam-size", "2000", "--n-best", "1000")
    assert [each["text"] for each in found["hypotheses"]] == [text for text, _ in expected]
    for each, (_, probability) in zip(found["hypotheses"], expected, strict=True):
        assert each["probability"] == pytest.approx(probability, rel=1e-9)
        assert each["log_prob"] == each["score"] == pytest.approx(math.log(probability))
    assert found["listed"] == pytest.approx(1)
    assert found["text"] == expected[0][0]
    # A table of each; the shorter list tells its share.
    capsys.readouterr()
    assert decode(folder, *OPTIONS, "--n-best", "3") == 0
    printed = capsys.readouterr().out
    assert f"{sum(p for _, p in expected[:3]):.2%} of all probability is in this list" in printed
    for text, probability in expected[:3]:
        assert re.search(rf"│ +{probability:.4g} │ {text} *│", printed)


def test_a_language_model_and_a_lexicon_decide(folder):
    # Of P(words, "</s>") to base 10: ab 0.25 + 0.5 + 0.125 + 0.5, a 0.25 + 1 + 0.5, ab a 0.25 + 0.5 + 0.25 + 0.5.
    lm = {"ab": -1.375, "a": -1.75, "ab a": -1.5}
    # "" is 0.25 + 0.5.
    lm[""] = -0.75
    (folder / "words.txt").write_text("ab\na\n")
    (folder / "spelled.txt").write_text("ab a b\na a\n")
    (folder / "packed.arpa").write_bytes(gzip.compress(ARPA.encode()))
    texts = texts_of(random_scores())
    for lexicon, model in (("words.txt", "words.arpa"), ("spelled.txt", "packed.arpa")):
        options = (
            "--lexicon",
            str(folder / lexicon),
            "--lm",
            str(folder / model),
            "--lm-weight",
            "2",
            "--n-best",
            "99",
        )
        found = document(folder, *OPTIONS, *options, "--word-score", "0.5", "--beam-size", "999")
        scores = {}
        for each in found["hypotheses"]:
            words = each["text"].split()
            assert set(words) <= {"a", "ab"}
            assert each["probability"] == pytest.approx(texts[each["text"]])
            scores[each["text"]] = each["score"]
            if each["text"] in lm:
                assert each["lm_log_prob"] == pytest.approx(lm[each["text"]] * math.log(10))
            assert each["score"] == pytest.approx(each["log_prob"] + 2 * each["lm_log_prob"] + 0.5 * len(words))
        assert {*lm} <= {*scores}
        assert [*scores.values()] == sorted(scores.values(), reverse=True)
    plain = document(folder, *OPTIONS, "--n-best", "99", "--beam-size", "999")["hypotheses"]
    hot = document(folder, *OPTIONS, "--n-best", "99", "--beam-size", "999", "--hotwords", "ab=1.5", "b a=-1")
    by_text = {each["text"]: each["score"] for each in plain}
    for each in hot["hypotheses"]:
        words = each["text"].split()
        more = 1.5 * words.count("ab") - sum(pair == ("b", "a") for pair in itertools.pairwise(words))
        assert each["score"] == pytest.approx(by_text[each["text"]] + more)


def peaky(*classes, num_classes=4):
    return np.log(np.where(np.eye(num_classes)[list(classes)] > 0, 0.91, 0.03)).astype(np.float32)


def test_words_have_the_times_of_their_tokens(folder):
    np.save(folder / "peaky.npy", peaky(0, 2, 2, 3, 1, 0, 2, 0))
    words = [("ab", 0.5, 2.0), ("a", 3.0, 3.5)]
    (folder / "words.txt").write_text("a\nab\nb\n")
    lexicon = ("--lexicon", str(folder / "words.txt"))
    for options in ((), lexicon):
        assert decode(folder, *OPTIONS, *options, "--out", str(folder), scores="peaky.npy") == 0
        found = json.loads((folder / "peaky.json").read_text())
        assert [(word["text"], word["start"], word["end"]) for word in found["words"]] == words
        assert [token["text"] for token in found["tokens"]] == ["a", "b", " ", "a"]
        ctm = [line.split()[:5] for line in (folder / "peaky.ctm").read_text().splitlines()]
        assert ctm == [["peaky", "1", "0.500", "1.500", "ab"], ["peaky", "1", "3.000", "0.500", "a"]]
        assert 'text = "ab"' in (folder / "peaky.TextGrid").read_text()
    # Nothing parts words of a lexicon that stand one behind another, whichever of their spellings they have.
    np.save(folder / "close.npy", peaky(2, 3, 2, 1))
    (folder / "close.txt").write_text("x a b\nx a\ny a c\n")
    options = ("--frame-seconds", "0.5", "--tokens=-cab", "--lexicon", str(folder / "close.txt"))
    found = document(folder, *options, scores="close.npy")
    assert [(word["text"], word["start"], word["end"]) for word in found["words"]] == [("x", 0, 1), ("y", 1, 2)]
    # Pieces: the first of a word begins with a mark.
    (folder / "pieces.txt").write_text("<blank>\n▁\n▁a\nb\n")
    options = ("--frame-seconds", "0.5", "--vocabulary", str(folder / "pieces.txt"))
    np.save(folder / "pieces.npy", peaky(2, 3, 2, 3))
    found = document(folder, *options, scores="pieces.npy")
    assert found["text"] == "ab ab"
    assert [(word["text"], word["start"], word["end"]) for word in found["words"]] == [("ab", 0, 1), ("ab", 1, 2)]
    assert cli.main(["align", str(folder / "pieces.npy"), "ab ab", *options, "--out", str(folder)]) == 0
    assert json.loads((folder / "pieces.json").read_text())["words"] == found["words"]


def test_several_samples_of_any_lengths_and_no_vocabulary(folder, capsys):
    scores = np.stack([peaky(2, 2, 3, 0), peaky(0, 0, 0, 3)])
    np.savez(folder / "two.npz", logits=scores + 3, lengths=[4, 3])
    assert decode(folder, "--logits", "--out", str(folder), scores="two.npz") == 0
    first, second = (json.loads((folder / f"two-{n}.json").read_text()) for n in range(2))
    assert (first["text"], second["text"]) == ("2 3", "")
    assert first["words"] == second["words"] == second["tokens"] == []
    assert second["hypotheses"][0]["probability"] == pytest.approx(0.91**3)
    assert capsys.readouterr().out.count("of all probability") == 2
    np.save(folder / "none.npy", np.zeros((0, 4), np.float32))
    assert document(folder, scores="none.npy")["hypotheses"][0]["probability"] == 1
    impossible = np.full((2, 4), -np.inf, np.float32)
    np.save(folder / "impossible.npy", impossible)
    found = document(folder, *OPTIONS, scores="impossible.npy")
    assert (found["text"], found["hypotheses"], found["listed"]) == ("", [], 0)


WRONG = [
    (("--tokens=-ab",), "the vocabulary must have a token for each of the 4 classes; has 3"),
    (("--blank", "4"), "blank must lie in [-4, 4); got 4"),
    ((*OPTIONS, "--lm", "broken.arpa"), "at line 2"),
    ((*OPTIONS, "--lm", "missing.arpa"), "missing.arpa"),
    ((*OPTIONS, "--lexicon", "missing.txt"), "missing.txt"),
    ((*OPTIONS, "--lexicon", "foreign.txt"), "the vocabulary must spell every word; got 'abc' at line 2"),
    ((*OPTIONS, "--lexicon", "tokens.txt"), "have known tokens"),
    ((*OPTIONS, "--lexicon", "binary.txt"), "must be text in UTF-8"),
    ((*OPTIONS, "--hotwords", "ab"), "hotwords must be words=weight, such as 'new york=3'; got 'ab'"),
    ((*OPTIONS, "--hotwords", "cd=1"), "hotwords must have words that the labels can spell; got 'cd'"),
    ((*OPTIONS, "--lm-weight", "nan"), "lm_weight must be"),
    ((*OPTIONS, "--beam-threshold", "-1"), "beam_threshold must be"),
    ((*OPTIONS, "--space", "_"), "the token for a space, '_', is not in the vocabulary"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_wrong_calls_are_said_in_one_line_and_write_nothing(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "broken.arpa").write_text("\\data\\\nngram one=1\n")
    (folder / "foreign.txt").write_text("ab\nabc\n")
    (folder / "tokens.txt").write_text("ab a b\nac a c\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe")
    assert decode(folder, *arguments, "--out", str(folder / "out")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pathsum decode: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_sample_that_cannot_be_decoded_is_named_and_nothing_is_written(folder, capsys):
    scores = np.stack([peaky(2, 3), peaky(3, 2)])
    scores[1, 0, 0] = np.nan
    np.save(folder / "two.npy", scores)
    assert decode(folder, *OPTIONS, "--out", str(folder / "out"), scores="two.npy") == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "pathsum decode: two-1: a score is NaN or +inf, in 2 frames\n")
    assert not (folder / "out").exists()
    for name, message in (("missing.npy", "no such file"), ("words.arpa", "must be .npy, .npz or .pt")):
        assert decode(folder, scores=name) == 2
        assert message in capsys.readouterr().err
