"""Sums over the strings of hypotheses, and their alignments."""

import numpy as np
import pytest

from pathsum.decoding import Lexicon, ctc_beam_decode


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("apart", [1.0, 30.0, 600.0])
def test_frames_of_words_that_no_frame_is_for_are_those_of_the_aligner(apart):
    # Alignments are looked for near the best classes of the frames first, and each time twice as far.
    torch = pytest.importorskip("torch")
    from pathsum.torch import forced_align

    scores = np.random.default_rng(21).normal(size=(9, 5)) * 2
    scores[:, [1, 4]] += apart
    scores = log_softmax(scores)
    lexicon = Lexicon([("ab", (2, 3)), ("ba", (3, 2)), ("c", (1, 4))])
    found = ctc_beam_decode(scores, beam_size=500, n_best=500, lexicon=lexicon)
    assert ["c"] in found.words
    assert ["ab"] in found.words
    for tokens, size, frames in zip(found.tokens, found.lengths, found.frames, strict=True):
        aligned = forced_align(torch.from_numpy(scores), tokens[:size], len(scores), int(size))
        positions = aligned.positions.numpy()
        assert frames[:size].tolist() == [int(np.flatnonzero(positions == i)[0]) for i in range(size)]


def test_sums_of_logarithms_are_exact():
    from pathsum.kernels.numba.prefix_beam import log_add

    behind = np.concatenate([np.linspace(0, 45, 4567), [0.03125, 39.99, 40.0, 700.0, np.inf]])
    for high in (0.0, -3.5):
        sums = [log_add(*((high, high - each) if k % 2 else (high - each, high))) for k, each in enumerate(behind)]
        assert np.abs(sums - np.logaddexp(high, high - behind)).max() <= 2 * np.spacing(4.0)
    assert log_add(-np.inf, -np.inf) == -np.inf
