"""The drop-ins for whisperX's and ctc-forced-aligner's alignment: recorded values, enumeration, and the peers."""

import importlib
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch

from pathsum import compat
from pathsum.compat import ctc_forced_aligner, install, whisperx
from pathsum.compat.ctc_forced_aligner import Segment
from pathsum.compat.whisperx import Point, backtrack, get_trellis
from pathsum.testing import assert_close


def emission_of(num_frames, num_classes, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, num_classes, generator=random).mul(2).log_softmax(-1)


def paths_of(num_frames, tokens, blank):
    """All ways of placing the tokens on frames of their own: for each the class of every frame, and the frames."""
    for frames in itertools.combinations(range(num_frames), len(tokens)):
        classes = [blank] * num_frames
        for frame, token in zip(frames, tokens, strict=True):
            classes[frame] = token
        yield classes, frames


def score_of(emission, classes):
    return sum(emission[t, c].item() for t, c in enumerate(classes))


@pytest.mark.parametrize("tokens, blank", [([1, 2], 0), ([2, 2, 1], 0), ([0], 3), ([1, 0, 1], 0)])
def test_whisperx_s_trellis_by_enumeration(tokens, blank):
    emission = emission_of(5, 4)
    trellis = get_trellis(emission, tokens, blank)
    assert trellis.shape == (6, len(tokens) + 1)
    assert trellis.dtype == torch.float32
    for t, j in itertools.product(range(6), range(len(tokens) + 1)):
        if len(tokens) - j > 5 - t:
            assert trellis[t, j] == (math.inf if t >= j else -math.inf)  # the rest would not fit
        elif j > t:
            assert trellis[t, j] == -math.inf
        else:
            expected = max(score_of(emission, classes) for classes, _ in paths_of(t, tokens[:j], blank))
            assert_close(trellis[t, j].item(), expected, absolute=1e-5)


def test_a_trellis_with_impossible_blanks():
    emission = emission_of(5, 3)
    emission[[1, 3], 0] = -math.inf
    trellis = get_trellis(emission, [1, 2])
    best = max(score_of(emission, classes) for classes, _ in paths_of(4, [1, 2], 0))
    assert_close(trellis[4, 2].item(), best, absolute=1e-5)
    assert trellis[:3, 0].tolist() == [0, emission[0, 0].item(), -math.inf]
    assert trellis[5, 2] > -math.inf
    assert backtrack(trellis, emission, [1, 2])[-1].token_index == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens, blank", [([1, 2], 0), ([2, 2, 1], 0), ([0, 1], 3), ([1, 0, 1], 0), ([1] * 6, 0)])
def test_whisperx_s_path_is_the_best_that_ends_anywhere(tokens, blank, seed):
    emission = emission_of(6, 4, seed)
    path = backtrack(get_trellis(emission, tokens, blank), emission, tokens, blank)
    # Where the blank is a token, paths of different frames are alike: the earliest frames.
    classes, frames = max(
        paths_of(6, tokens, blank),
        key=lambda path: (round(score_of(emission, path[0][: path[1][-1] + 1]), 4), [-frame for frame in path[1]]),
    )
    assert [point.time_index for point in path] == list(range(frames[0], frames[-1] + 1))
    assert [point.token_index for point in path] == [sum(f <= p.time_index for f in frames) - 1 for p in path]
    assert_close([p.score for p in path], [emission[p.time_index, classes[p.time_index]].exp().item() for p in path])


def test_whisperx_has_no_path_for_too_many_tokens():
    emission = emission_of(3, 3)
    assert backtrack(get_trellis(emission, [1, 2, 1, 2]), emission, [1, 2, 1, 2]) is None
    emission[:, 2] = -math.inf
    assert backtrack(get_trellis(emission, [1, 2]), emission, [1, 2]) is None


def test_whisperx_s_segments_and_words():
    path = [Point(0, 2, 0.5), Point(0, 3, 0.7), Point(1, 4, 0.2), Point(2, 5, 1.0), Point(3, 6, 0.4), Point(3, 7, 0.8)]
    segments = whisperx.merge_repeats(path, "ab|c")
    assert [(s.label, s.start, s.end, round(s.score, 6)) for s in segments] == [
        ("a", 2, 4, 0.6), ("b", 4, 5, 0.2), ("|", 5, 6, 1.0), ("c", 6, 8, 0.6),
    ]  # fmt: skip
    words = whisperx.merge_words([segments[2], *segments, segments[2]])
    assert [(w.label, w.start, w.end, round(w.score, 6)) for w in words] == [("ab", 2, 5, 0.466667), ("c", 6, 8, 0.6)]
    assert repr(words[1]) == "c\t(0.60): [    6,     8)"


# whisperX in small: align uses the functions of its own module.
def test_whisperx_s_align_runs_by_what_is_installed(monkeypatch):
    package, alignment = types.ModuleType("whisperx"), types.ModuleType("whisperx.alignment")
    package.__path__, package.alignment = [], alignment
    alignment.get_trellis = alignment.backtrack = None
    alignment.align = lambda emission, tokens: alignment.backtrack(
        alignment.get_trellis(emission, tokens), emission, tokens
    )
    monkeypatch.setitem(sys.modules, "whisperx", package)
    monkeypatch.setitem(sys.modules, "whisperx.alignment", alignment)
    emission = emission_of(6, 4)
    with torch.inference_mode():
        path = whisperx.align(emission * 1, [1, 2])
    assert path == backtrack(get_trellis(emission, [1, 2]), emission, [1, 2])
    assert alignment.backtrack is None


@pytest.mark.parametrize("name", ["whisperx", "ctc_forced_aligner"])
def test_aligners_that_are_not_there_are_stood_in_for(monkeypatch, name):
    monkeypatch.setattr(compat, "_module", lambda place: None)
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    with install(name):
        for place, names in importlib.import_module(f"pathsum.compat.{name}").HELPERS.items():
            module = importlib.import_module(place)
            for known, value in names.items():
                assert getattr(module, known) is value


class Tokenizer:
    pad_token_id = 1

    def get_vocab(self):
        return {"<blank>": 0, "<pad>": 1, "A": 2, "b": 3, "c": 4}


def starred(num_frames, seed=0):
    return torch.cat([emission_of(num_frames, 5, seed), torch.zeros(num_frames, 1)], 1)


def test_ctc_forced_aligner_s_path_by_enumeration():
    log_probs = emission_of(6, 4).numpy()[None]
    targets = np.array([[2, 2, 1]])
    best = max(
        (log_probs[0, range(6), path].sum(), path)
        for path in itertools.product(range(4), repeat=6)
        if [label for label, _ in itertools.groupby(path) if label != 3] == [2, 2, 1]
    )
    paths, scores = ctc_forced_aligner.forced_align(log_probs, targets, blank=3)
    assert paths.tolist() == [list(best[1])]
    assert paths.dtype == np.int64
    assert scores.dtype == np.float32
    assert_close(scores, log_probs[0, range(6), best[1]])
    several = ctc_forced_aligner.forced_align(np.repeat(log_probs, 2, 0), np.repeat(targets, 2, 0), blank=3)
    assert [result.shape for result in several] == [(2, 6), (2, 6)]


def test_ctc_forced_aligner_refuses_what_its_peer_refuses():
    log_probs = emission_of(3, 4).numpy()[None]
    with pytest.raises(RuntimeError, match="targets length is too long for CTC"):
        ctc_forced_aligner.forced_align(log_probs, np.array([[1, 1, 2]]))
    for targets in ([[1, 0]], [[4]]):
        with pytest.raises(ValueError, match="targets must"):
            ctc_forced_aligner.forced_align(log_probs, np.array(targets))
    with pytest.raises(ValueError, match="tokens must have a letter of the vocabulary"):
        ctc_forced_aligner.get_alignments(starred(3), ["?"], Tokenizer())
    with pytest.raises(ValueError, match="segments must spell a b"):
        ctc_forced_aligner.get_spans(["a b"], [Segment("a", 0, 3)], "<blank>")


TOKENS = ["<star>", "a b", "", "c", "<star>", "b b a"]
# What the peer's get_spans makes of these runs: (label, start, end), the last frame among them.
RUNS = [
    ("<blank>", 0, 2), ("<star>", 3, 3), ("<blank>", 4, 8), ("a", 9, 10), ("b", 11, 11), ("<blank>", 12, 13),
    ("c", 14, 14), ("<star>", 15, 20), ("<blank>", 21, 22), ("b", 23, 23), ("<blank>", 24, 24), ("b", 25, 26),
    ("a", 27, 27), ("<blank>", 28, 31),
]  # fmt: skip
SPANS = [
    [("<blank>", 0, 3), ("<star>", 3, 3), ("<blank>", 3, 6)],
    [("<blank>", 6, 9), ("a", 9, 10), ("b", 11, 11), ("<blank>", 11, 12)],
    [("b", 11, 11), ("<blank>", 11, 12)],
    [("<blank>", 12, 14), ("c", 14, 14)],
    [("<star>", 15, 20), ("<blank>", 20, 21)],
    [("<blank>", 21, 23), ("b", 23, 23), ("<blank>", 24, 24), ("b", 25, 26), ("a", 27, 27), ("<blank>", 27, 31)],
]


def spans_of(module):
    runs = [module.Segment(*run) for run in RUNS]
    return [[(s.label, s.start, s.end) for s in span] for span in module.get_spans(TOKENS, runs, "<blank>")]


def test_ctc_forced_aligner_s_spans():
    assert spans_of(ctc_forced_aligner) == SPANS


def test_ctc_forced_aligner_s_recipe():
    emissions = starred(30, 3)
    segments, scores, blank = ctc_forced_aligner.get_alignments(emissions, TOKENS, Tokenizer())
    assert blank == "<blank>"
    assert [s.start for s in segments] == [0, *(s.end + 1 for s in segments[:-1])]
    assert segments[-1].end == 29
    names = {"<blank>": 0, "a": 2, "b": 3, "c": 4, "<star>": 5}
    expected = [emissions[t, names[s.label]].item() for s in segments for t in range(s.start, s.end + 1)]
    assert_close(scores, expected)
    spans = ctc_forced_aligner.get_spans(TOKENS, segments, blank)
    spoken = [" ".join(s.label for s in span if s.label != blank) for span in spans]
    assert spoken == ["<star>", "a b", "b", "c", "<star>", "b b a"]


@pytest.mark.peer
def test_ctc_forced_aligner_is_its_peer():
    peer = pytest.importorskip("ctc_forced_aligner")
    assert spans_of(peer) == spans_of(ctc_forced_aligner)
    for seed in range(5):
        emissions = starred(40, seed)
        own = ctc_forced_aligner.get_alignments(emissions, TOKENS, Tokenizer())
        segments, scores, blank = peer.get_alignments(emissions.numpy(), TOKENS, Tokenizer())
        assert [(s.label, s.start, s.end) for s in segments] == [(s.label, s.start, s.end) for s in own[0]]
        assert_close(own[1], scores)
        assert own[2] == blank
        with install("ctc_forced_aligner"):
            assert str(peer.get_alignments(emissions.numpy(), TOKENS, Tokenizer())[0]) == str(own[0])
