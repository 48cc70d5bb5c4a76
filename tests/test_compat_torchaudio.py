"""The drop-in for torchaudio: its stored answers, and itself where it is installed."""

import itertools
import math

import numpy as np
import pytest
import torch

from pathsum.compat import torchaudio
from pathsum.testing import assert_close, grid_inputs
from transducer_example import INTEGERS, example, integers_of, load


@pytest.mark.parametrize("vector", load("torchaudio"))
def test_torchaudio_vectors(vector):
    logits = torch.tensor(vector["logits"])
    if vector["options"].get("fused_log_softmax") is False:
        logits = logits.log_softmax(-1)
    logits.requires_grad_()
    losses = torchaudio.RNNTLoss(vector["blank"], reduction="none", **vector["options"])(logits, *integers_of(vector))
    losses.sum().backward()
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def test_torchaudio_half_precision_has_its_own_dtype():
    acts = example().detach().half()
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0).item() == 4.49609375  # what the peer returns
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0, corrected=True).dtype == torch.float32


@pytest.mark.peer
@pytest.mark.parametrize("clamp", [-1.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torchaudio_itself(reduction, clamp):
    peer = pytest.importorskip("torchaudio").functional
    inputs = grid_inputs(3, 7, 3, 5, seed=1)
    inputs.logit_lengths[0], inputs.target_lengths[0] = 7, 3  # it wants one sample of the padded size
    # The last label becomes the blank: neither complains.
    inputs.targets[inputs.targets < 0] = 0
    inputs.targets[0, 2] = 4
    logits = torch.from_numpy(inputs.logits).float()
    integers = [torch.from_numpy(array).int() for array in inputs[1:]]
    (ours, gradient), (theirs, expected) = (
        differentiated(loss, logits, integers, reduction=reduction, clamp=clamp)
        for loss in (torchaudio.rnnt_loss, peer.rnnt_loss)
    )
    assert_close(ours, theirs, relative=2e-6)
    assert_close(gradient, expected, absolute=2e-6)


def differentiated(loss, logits, integers, **options):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, *integers, **options)
    value.backward(torch.linspace(-2, 2, value.numel()).reshape(value.shape))
    return value.detach(), leaf.grad


def test_the_blank_among_the_labels_is_clamped_before_the_upstream_gradient():
    inputs = grid_inputs(2, 5, 2, 4, seed=2, ragged=False)
    integers = torch.tensor([[3, 1], [0, 2]]), *(torch.from_numpy(array) for array in inputs[2:])
    logits = torch.from_numpy(inputs.logits)
    losses, gradient = differentiated(torchaudio.rnnt_loss, logits, integers, reduction="none")
    bounded_losses, bounded = differentiated(torchaudio.rnnt_loss, logits, integers, reduction="none", clamp=0.1)
    assert_close(bounded_losses, losses, relative=1e-12)
    upstream = torch.tensor([-2.0, 2.0])[:, None, None, None]
    assert_close(bounded, upstream * (gradient / upstream).clamp(-0.1, 0.1), absolute=1e-12)
    assert bounded.abs().max() > 0.1


def test_forced_align_stops_where_the_peer_does():
    log_probs = torch.zeros(2, 3, 4).log_softmax(2)
    targets = torch.tensor([[1, 2], [3, 3]])
    assert torchaudio.forced_align(log_probs, targets)[0].shape == (2, 3)
    lengths = torch.tensor([3, 2])
    with pytest.raises(RuntimeError, match="targets length is too long for CTC, at sample 1"):
        torchaudio.forced_align(log_probs, targets, lengths)
    paths, _ = torchaudio.forced_align(log_probs, targets, lengths, corrected=True)
    assert paths[1].tolist() == [-1, -1, -1]


def test_the_column_of_a_blank_among_the_labels_lacks_the_labels_share():
    inputs = grid_inputs(2, 5, 2, 4, seed=2, ragged=False)
    integers = torch.tensor([[3, 1], [0, 2]]), *(torch.from_numpy(array) for array in inputs[2:])
    logits = torch.from_numpy(inputs.logits)
    (loss, quirk), (corrected_loss, corrected) = (
        differentiated(torchaudio.rnnt_loss, logits, integers, reduction="sum", corrected=flag)
        for flag in (False, True)
    )
    assert_close(loss, corrected_loss, relative=1e-12)
    # The first label of the first sample is the blank, class 3: in every frame but the last.
    differs = ((quirk - corrected).abs() > 1e-12).nonzero().tolist()
    assert differs == [[0, t, 0, 3] for t in range(4)]
    assert_close(corrected.sum(3), torch.zeros(2, 5, 3), absolute=1e-12)


TOKENS = ["-", "|", "a", "b"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (tmp_path / "lexicon.txt").write_text("ab a b |\nb b |\n", encoding="utf-8")
    grams = "-0.7\t<s>\n-0.4\t</s>\n-0.3\tab\n-1.1\tb\n"
    (tmp_path / "lm.arpa").write_text(f"\\data\\\nngram 1=4\n\n\\1-grams:\n{grams}\n\\end\\\n", encoding="utf-8")
    return tmp_path


def probabilities_of(log_probs, words):
    """The log-probability of all sequences of classes that read as some words, one by one."""
    total = -math.inf
    for path in itertools.product(range(len(TOKENS)), repeat=len(log_probs)):
        text = "".join(TOKENS[c] for c, _ in itertools.groupby(path) if c != 0)
        if [word for word in text.split("|") if word] == words:
            total = np.logaddexp(total, sum(float(log_probs[t, c]) for t, c in enumerate(path)))
    return float(total)


def test_the_decoder_sums_all_alignments(files):
    emissions = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    decoder = torchaudio.ctc_decoder(
        str(files / "lexicon.txt"), str(files / "tokens.txt"), str(files / "lm.arpa"), nbest=3, lm_weight=0.8,
        word_score=0.3,
    )  # fmt: skip
    found = decoder(emissions, torch.tensor([5, 4]))
    log10 = {"ab": -0.3, "b": -1.1}
    for n, length in enumerate((5, 4)):
        assert len(found[n]) == 3
        for hypothesis in found[n]:
            own = probabilities_of(emissions[n, :length].double(), hypothesis.words)
            value = own + 0.8 * (sum(log10[word] for word in hypothesis.words) - 0.4) + 0.3 * len(hypothesis.words)
            assert hypothesis.score == pytest.approx(value, abs=1e-6)
            text = "".join(decoder.idxs_to_tokens(hypothesis.tokens))
            assert text == "|".join(hypothesis.words)
            assert hypothesis.tokens.dtype == torch.int64
            assert hypothesis.timesteps.dtype == torch.int32
            assert len(hypothesis.tokens) == len(hypothesis.timesteps)
    free = torchaudio.ctc_decoder(None, TOKENS, beam_size=500)(emissions)[0][0]
    assert free.words == []


def test_what_the_decoder_refuses(files):
    for message, options in (
        ("blank_token must be among the tokens; got '_'", {"blank_token": "_"}),
        ("sil_score must be 0; got 1", {"sil_score": 1}),
        ("unk_score must be -inf; got -5", {"unk_score": -5}),
    ):
        with pytest.raises(ValueError) as caught:
            torchaudio.ctc_decoder(str(files / "lexicon.txt"), TOKENS, **options)
        assert str(caught.value) == f"ctc_decoder: {message}"
    with pytest.raises(ValueError, match="emissions must be float32"):
        torchaudio.ctc_decoder(None, TOKENS)(torch.zeros(1, 2, 4).double())
