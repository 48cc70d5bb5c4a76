"""Beams of transducers beside the enumeration of all their walks."""

import itertools
import math
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import pathsum
from pathsum.decoding import NGram
from pathsum.torch import rnnt_beam_decode, rnnt_greedy_decode, tdt_greedy_decode

V, H, MOST = 3, 4, 2
GENERATOR = np.random.default_rng(0)
EMBEDDING, MIX = GENERATOR.normal(size=(V, H)), GENERATOR.normal(size=(H, H))


def weights(out):
    return np.random.default_rng(out).normal(size=(H, out)) * 1.5


def predict(tokens, state):
    """A predictor that hears the order of all tokens so far."""
    state = torch.zeros(len(tokens), H, dtype=torch.float64) if state is None else state["h"]
    hidden = torch.tanh(state @ torch.from_numpy(MIX) + torch.from_numpy(EMBEDDING)[tokens])
    return hidden, {"h": hidden}


def joiner(num_labels, num_durations=0):
    first, second = weights(num_labels), weights(num_durations + 20)[:, :num_durations]

    def join(frames, outputs):
        hidden = torch.tanh(frames + outputs)
        logits = hidden @ torch.from_numpy(first)
        return (logits, hidden @ torch.from_numpy(second)) if num_durations else logits

    return join


def output_of(tokens):
    hidden = np.zeros(H)
    for token in (0, *tokens):
        hidden = np.tanh(hidden @ MIX + EMBEDDING[token])
    return hidden


def log_softmax(x):
    return x - np.log(np.exp(x).sum())


def walks(encoder_out, arcs, most, tokens=(), t=0, here=0, score=0.0, label_ends=False):
    """Every walk: what it reads and its log-probability. ``arcs(frame, tokens)`` are (label or None, frames, score)."""
    if t == len(encoder_out):
        yield tokens, score
        return
    for label, frames, own in arcs(encoder_out[t], tokens):
        end = t + frames
        if end > len(encoder_out) or (label is not None and end == len(encoder_out) and not label_ends):
            continue
        if label is not None and frames == 0 and here == most:
            continue
        after = tokens if label is None else (*tokens, label)
        more = here + 1 if frames == 0 else 0
        yield from walks(encoder_out, arcs, most, after, end, more, score + own, label_ends)


def log_prob(encoder_out, arcs, tokens, label_ends):
    """The log-probability of a text over all walks, however many labels they have in a frame."""
    num_frames = len(encoder_out)

    @cache
    def rest(t, u):
        if t == num_frames:
            return 0.0 if u == len(tokens) else -np.inf
        total = -np.inf
        for label, frames, own in arcs(encoder_out[t], tokens[:u]):
            if label is None and t + frames <= num_frames:
                total = np.logaddexp(total, own + rest(t + frames, u))
            elif label is not None and u < len(tokens) and label == tokens[u]:
                end = t + frames
                if end < num_frames or (end == num_frames and label_ends):
                    total = np.logaddexp(total, own + rest(end, u + 1))
        return total

    return float(rest(0, 0))


def regular(frame, tokens, label_frames=0):
    scores = log_softmax(np.tanh(frame + output_of(tokens)) @ weights(V))
    yield None, 1, scores[0]
    yield from ((k, label_frames, scores[k]) for k in range(1, V))


def modified(frame, tokens):
    return regular(frame, tokens, 1)


def multi_blank(frame, tokens):
    scores = log_softmax(np.tanh(frame + output_of(tokens)) @ weights(V + 1))
    yield None, 1, scores[0]
    yield None, 2, scores[V]
    yield from ((k, 0, scores[k]) for k in range(1, V))


def tdt(frame, tokens):
    hidden = np.tanh(frame + output_of(tokens))
    scores, steps = log_softmax(hidden @ weights(V)), log_softmax(hidden @ weights(23)[:, :3])
    for d, frames in enumerate((0, 1, 2)):
        if frames:
            yield None, frames, scores[0] + steps[d]
        yield from ((k, frames, scores[k] + steps[d]) for k in range(1, V))


KINDS = {
    "regular": (regular, joiner(V), {}, False),
    "modified": (modified, joiner(V), {"rnnt_type": "modified"}, True),
    "one_sym_per_frame": (modified, joiner(V), {"rnnt_type": "one_sym_per_frame"}, False),
    "multi_blank": (multi_blank, joiner(V + 1), {"big_blanks": [-1], "big_blank_durations": [2]}, False),
    "tdt": (tdt, joiner(V, 3), {"durations": [0, 1, 2]}, False),
}


def summed(pairs):
    found = {}
    for tokens, score in pairs:
        found[tokens] = np.logaddexp(found.get(tokens, -np.inf), score)
    return found


def texts_of(found, n=0):
    return [tuple(row[:size]) for row, size in zip(found.tokens[n].tolist(), found.lengths[n], strict=True)]


def encoded(seed, frames, samples=1):
    return np.random.default_rng(seed).normal(size=(samples, frames, H)) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_that_holds_everything_is_the_enumeration(kind):
    arcs, join, options, label_ends = KINDS[kind]
    encoder_out = encoded(1, 2 if kind == "regular" else 3)
    options = {"beam_size": 10**4, "n_best": 10**4, "max_symbols": MOST} | options
    met = summed(walks(encoder_out[0], arcs, MOST, label_ends=label_ends))
    found = rnnt_beam_decode(encoder_out, None, predict, join, exact_scores=False, **options)
    assert texts_of(found) == sorted(met, key=lambda tokens: -met[tokens])
    np.testing.assert_allclose(found.scores[0], sorted(met.values(), reverse=True), rtol=0, atol=1e-9)
    everything = {tokens: log_prob(encoder_out[0], arcs, tokens, label_ends) for tokens in met}
    found = rnnt_beam_decode(encoder_out, None, predict, join, **options)
    assert set(texts_of(found)) == set(met)
    np.testing.assert_allclose(found.scores[0], [everything[t] for t in texts_of(found)], rtol=0, atol=1e-9)
    assert (np.diff(found.scores[0]) <= 0).all()
    assert float(found.mass[0]) == pytest.approx(np.logaddexp.reduce([everything[t] for t in met]), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_beam_is_never_worse(kind):
    _, join, options, _ = KINDS[kind]
    for seed, exact in itertools.product(range(3), (True, False)):
        best = [
            float(
                rnnt_beam_decode(
                    encoded(seed, 4), None, predict, join, beam_size=size, max_symbols=2, exact_scores=exact, **options
                ).scores[0, 0]
            )
            for size in (1, 2, 3, 4, 6)
        ]
        assert best == sorted(best)


def test_a_batch_is_its_samples():
    encoder_out = encoded(3, 4, samples=3)
    lengths = [4, 3, 1]
    for kind in ("regular", "tdt"):
        _, join, options, _ = KINDS[kind]
        batch = rnnt_beam_decode(encoder_out, lengths, predict, join, beam_size=3, n_best=2, **options)
        for n, length in enumerate(lengths):
            one = rnnt_beam_decode(encoder_out[n, :length], length, predict, join, beam_size=3, n_best=2, **options)
            size = one.tokens.shape[1]
            assert torch.equal(batch.tokens[n, :, :size], one.tokens)
            torch.testing.assert_close(batch.scores[n], one.scores, rtol=0, atol=1e-12)


def test_where_one_class_is_sure_it_is_greedy():
    best = torch.tensor([[1, 0, 2, 2, 0], [0, 1, 0, 2, 1]])
    heard = 40.0 * torch.nn.functional.one_hot(best, V).double()
    heard[..., 0] += 20.0

    def once(tokens, state):  # a label is not said twice
        return -80.0 * torch.nn.functional.one_hot(tokens, V) * (tokens > 0)[:, None], state

    found = rnnt_beam_decode(heard, [5, 4], once, torch.add, beam_size=3)
    greedy = rnnt_greedy_decode(heard, [5, 4], once, torch.add, 0)
    for part in ("tokens", "frames"):
        assert torch.equal(getattr(found, part)[:, 0], getattr(greedy, part))
    assert torch.equal(found.lengths[:, 0], greedy.lengths)


def test_a_language_model_weighs_tokens():
    lm = NGram.parse("\\data\\\nngram 1=3\n\n\\1-grams:\n-0.3 1\n-0.9 2\n-0.4 </s>\n\n\\end\\".splitlines())
    arcs, join, _, _ = KINDS["regular"]
    options = {"lm": lm, "lm_weight": 0.6, "word_score": 0.2}
    encoder_out = encoded(4, 3)
    found = rnnt_beam_decode(
        encoder_out, None, predict, join, beam_size=999, n_best=99, max_symbols=2, exact_scores=False, **options
    )  # fmt: skip
    met = summed(walks(encoder_out[0], arcs, 2))
    lm_scores = {t: math.log(10) * (sum({1: -0.3, 2: -0.9}[k] for k in t) - 0.4) for t in met}
    value = {t: met[t] + 0.6 * lm_scores[t] + 0.2 * len(t) for t in met}
    assert texts_of(found) == sorted(met, key=lambda tokens: -value[tokens])[:99]
    np.testing.assert_allclose(found.scores[0], [value[t] for t in texts_of(found)], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.lm_scores[0], [lm_scores[t] for t in texts_of(found)], rtol=0, atol=1e-9)


def test_a_nan_spoils_its_sample_and_no_frames_are_no_text():
    encoder_out = encoded(5, 3, samples=3)
    clean = rnnt_beam_decode(encoder_out, [3, 3, 0], predict, joiner(V))
    encoder_out[1, 1] = np.nan
    found = rnnt_beam_decode(encoder_out, [3, 3, 0], predict, joiner(V))
    assert torch.equal(found.scores[0], clean.scores[0])
    assert found.scores[1].isnan().all()
    assert found.scores[2].tolist() == [-math.inf]


@pytest.mark.parametrize("message, changes", [
    ("beam_size must be at least 1; got 0", {"beam_size": 0}),
    ("max_symbols must be at least 1; got 0", {"max_symbols": 0}),
    ("rnnt_type must be one of regular, modified, one_sym_per_frame; got 'x'", {"rnnt_type": "x"}),
    ("big_blank_durations must be given, as the other is; got None", {"big_blanks": [2]}),
    ("big_blanks must have one class a duration, 2; got [2]", {"big_blanks": [2], "big_blank_durations": [2, 3]}),
    ("durations must have one above 0; got [0]", {"durations": [0]}),
    ("beam_threshold must be finite and at least 0; got -1.0", {"beam_threshold": -1.0}),
    ("lm must be an NGram; got str", {"lm": "x"}),
    ("labels must be a text for each class, V = 3; got ('a', 'b')", {"labels": "ab"}),
    ("labels must be a list of texts; got 5", {"labels": 5}),
    ("rnnt_type must be of one kind: durations, big_blanks or rnnt_type; got modified",
     {"rnnt_type": "modified", "durations": [0, 1]}),
])  # fmt: skip
def test_what_is_wrong_is_named(message, changes):
    with pytest.raises((pathsum.InvalidValueError, pathsum.InvalidTypeError)) as caught:
        rnnt_beam_decode(encoded(0, 2), None, predict, joiner(V), **changes)
    assert str(caught.value) == f"rnnt_beam_decode: {message}"


def test_what_a_joiner_returns_is_named():
    with pytest.raises(pathsum.InvalidValueError, match=r"join must return logits \(N, V\) and \(N, D\), D = 2"):
        rnnt_beam_decode(encoded(0, 2), None, predict, joiner(V), durations=[0, 1])
    assert tdt_greedy_decode(encoded(0, 2), None, predict, joiner(V, 2), [0, 1], 0).lengths.shape == (1,)


@pytest.mark.parametrize("axis", [1, 5, -7, 2**63 - 1, np.uint8(1)])
def test_an_axis_that_states_have_no_samples_on_is_named(axis):
    def predict_with_state(tokens, state):
        return predict(tokens, None)[0], torch.zeros(len(tokens), 9)

    with pytest.raises(pathsum.InvalidValueError, match="rnnt_beam_decode: state_axis must be"):
        rnnt_beam_decode(encoded(0, 2), None, predict_with_state, joiner(V), state_axis=axis)


def test_a_frame_that_is_never_left_ends():
    def join(frames, outputs):
        return torch.tensor([-30.0, 0.0, 0.0]).expand(len(frames), 3)

    with pytest.raises(pathsum.InvalidValueError, match=r"join must leave each frame at last.*1000 labels in a frame"):
        rnnt_beam_decode(encoded(0, 2), None, predict, join, beam_size=1, max_symbols=2**63 - 1)
