"""The drop-in for torchaudio's decoder, on what its own tests give it."""

import pytest
import torch

from pathsum.compat.torchaudio import ctc_decoder

TOKENS = ["-", "|", "f", "o", "b", "a", "r"]


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("foo f o o |\nbar b a r |\nfoobar f o o b a r |\n")
    return str(path)


@pytest.mark.parametrize("more", [0, 1, 3])
def test_classes_without_a_name_are_in_no_word(more, lexicon):
    emissions = torch.rand(4, 15, len(TOKENS) + more, generator=torch.Generator().manual_seed(more))
    named = emissions[:, :, : len(TOKENS)]
    decoder = ctc_decoder(lexicon, TOKENS, nbest=5)
    for found, expected in zip(decoder(emissions), decoder(named), strict=True):
        assert len(found) == 5
        for one, other in zip(found, expected, strict=True):
            assert one.words == other.words
            assert one.score == pytest.approx(other.score, abs=1e-9)
            assert one.timesteps.tolist() == other.timesteps.tolist()
            assert one.tokens.shape == one.timesteps.shape
    free = ctc_decoder(None, TOKENS)(emissions)
    assert len(free) == 4
    assert all(int(found[0].tokens.max()) < emissions.shape[2] for found in free)


def test_fewer_classes_than_tokens_are_named(lexicon):
    with pytest.raises(ValueError, match="labels must be a text for each class, C = 6"):
        ctc_decoder(lexicon, TOKENS)(torch.rand(1, 3, 6))
