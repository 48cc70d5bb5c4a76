"""The demo on a very small scale: its data, its recognisers, its report."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for extra in ("jiwer", "matplotlib", "rich", "soundfile"):
    pytest.importorskip(extra)

from rich.console import Console  # noqa: E402

from pathsum import demo  # noqa: E402
from pathsum.demo import data, picture, report  # noqa: E402
from pathsum.demo.model import CTCRecogniser, Encoder, RNNTRecogniser  # noqa: E402
from pathsum.demo.train import OBJECTIVES, train  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small run no faster on more threads, and much slower on busy ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recordings():
    return data.load_recordings()


@pytest.fixture
def stream(recordings):
    return data.WordSequences(recordings, seed=3)


def test_recordings_are_enough_number_words_with_speech_in_them(recordings):
    assert len(recordings) >= 37
    assert {"zero", "seven", "seventh", "twenty", "ninetieth", "hundred", "million"} <= recordings.keys()
    for word, samples in recordings.items():
        assert set(word) <= set(data.CHARACTERS)
        assert 0.3 < len(samples) / data.SAMPLE_RATE < 1.2
        assert samples.dtype == np.float32
        assert 0.1 < np.abs(samples).max() <= 1


def test_recordings_come_with_licence_and_attribution():
    folder = data.resources.files("pathsum.demo") / "recordings"
    assert "Attribution-ShareAlike 3.0" in (folder / "LICENSE").read_text()
    assert "Allison Smith" in (folder / "ATTRIBUTION.md").read_text()


def test_a_seed_gives_the_same_batches(recordings):
    first, again, other = (data.WordSequences(recordings, seed).batch(4) for seed in (1, 1, 2))
    assert first.texts == again.texts != other.texts
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.targets, again.targets)


def test_targets_spell_the_texts_and_frames_fit_the_sound(stream):
    batch = stream.batch(8)
    assert batch.features.shape == (8, int(batch.feature_lengths.max()), data.MELS)
    for n, text in enumerate(batch.texts):
        assert data.decode(batch.targets[n, : batch.target_lengths[n]].tolist()) == text
        assert 2 <= len(text.split()) <= 5
        assert set(text.split()) <= stream.recordings.keys()
        spoken = batch.features[n, : batch.feature_lengths[n]]
        assert spoken.mean().item() == pytest.approx(0, abs=1e-4)
        assert spoken.square().mean().item() == pytest.approx(1, abs=1e-4)
        assert not batch.features[n, batch.feature_lengths[n] :].any()


def test_excluded_texts_never_come(recordings):
    two_words = {"one": recordings["one"], "two": recordings["two"]}
    stream = data.WordSequences(two_words, seed=0, exclude=frozenset({"one two", "two one", "one one"}))
    assert set(stream.batch(20, 2, 2).texts) == {"two two"}


def test_mel_filters_hear_a_tone_in_one_place():
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / data.SAMPLE_RATE).astype(np.float32)
    energies, lengths = data.log_mel([tone])
    assert energies.shape == (1, 51, data.MELS)
    assert lengths.tolist() == [51]
    loudest = int(energies[0, 25].argmax())
    peak = int(data.mel_filters()[:, loudest].argmax()) * data.SAMPLE_RATE / data.FFT
    assert peak == pytest.approx(1000, abs=80)


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_training_lowers_the_loss(name, recordings):
    two_words = {word: recordings[word] for word in ("one", "two")}
    batch = data.WordSequences(two_words, seed=1).batch(8)
    losses = []
    for steps in (1, 12):
        stream = data.WordSequences(two_words, seed=0)
        recogniser, log = train(name, stream, steps=steps, seconds=60, seed=0, console=Console(quiet=True), width=16)
        assert not recogniser.training
        assert len(log.losses) == len(log.step_seconds) == len(log.loss_seconds) == steps
        assert all(map(math.isfinite, log.losses))
        with torch.no_grad():
            losses.append(float(OBJECTIVES[name].loss(*recogniser(batch), batch)))
    assert losses[1] < 0.9 * losses[0]
    assert len(log.torch_seconds) == len(log.own_again_seconds) == (1 if name == "ctc" else 0)


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_training_stops_when_its_time_is_up(name, stream):
    _, log = train(name, stream, steps=10**6, seconds=0.2, seed=0, console=Console(quiet=True), width=8)
    assert 1 < len(log.losses) < 100


@pytest.mark.parametrize("subsampling", [4, 8])
def test_padding_and_neighbours_do_not_change_what_the_encoder_hears(subsampling, stream):
    torch.manual_seed(0)
    encoder = Encoder(16, subsampling).eval()
    batch = stream.batch(5)
    together, lengths = encoder(batch.features, batch.feature_lengths)
    for n, length in enumerate(lengths.tolist()):
        alone, _ = encoder(*picture.pick(batch, n)[:2])
        assert alone.shape[1] == length
        torch.testing.assert_close(together[n, :length], alone[0], atol=1e-5, rtol=0)


class Fixed(torch.nn.Module):
    """Stands for a network that gives these logits, whatever it hears."""

    def __init__(self, classes, lengths):
        super().__init__()
        self.logits = torch.nn.functional.one_hot(torch.tensor(classes), data.NUM_CLASSES).float().transpose(0, 1)
        self.lengths = torch.tensor(lengths)

    def forward(self, batch):
        return self.logits, self.lengths


def test_ctc_decoding_merges_repeats_and_drops_blanks():
    a, b = data.encode("ab")
    network = Fixed([[0, a, a, 0, a, b, b], [b, b, 0, 0, a, a, a]], [7, 4])
    assert CTCRecogniser.transcribe(network, None) == [([a, a, b], [1, 4, 5]), ([b], [0])]


def test_rnnt_decoding_stops_at_each_samples_end_and_writes_in_order(stream):
    torch.manual_seed(0)
    recogniser = RNNTRecogniser(width=16).eval()
    with torch.no_grad():
        recogniser.head.bias[data.BLANK] -= 0.5  # an untrained recogniser that writes something
    batch = stream.batch(5)
    transcripts = recogniser.transcribe(batch)
    assert any(transcript.text for transcript in transcripts)
    for transcript, length in zip(transcripts, recogniser(batch)[1].tolist(), strict=True):
        assert len(transcript.classes) == len(transcript.frames)
        assert transcript.frames == sorted(transcript.frames)
        assert all(0 <= t < length for t in transcript.frames)
        assert data.BLANK not in transcript.classes


def test_rnnt_node_posteriors_are_a_distribution_over_labels_written(stream):
    batch = picture.pick(stream.batch(1), 0)
    posteriors = picture.node_posteriors(RNNTRecogniser(width=16).eval(), batch)
    # Every alignment leaves each frame by one blank, and writes each label once.
    assert posteriors.shape[1] == 1 + int(batch.target_lengths[0])
    assert posteriors.min() >= -1e-6
    assert posteriors[0, 0].item() == pytest.approx(1, abs=1e-5)
    assert posteriors[-1, -1].item() == pytest.approx(1, abs=1e-5)
    assert posteriors.sum().item() == pytest.approx(sum(posteriors.shape) - 1, rel=1e-4)


def test_error_rates():
    rates = report.error_rates(["one two three", "four five"], ["one too three", "four five"])
    assert rates["word_error_rate"] == pytest.approx(1 / 5)
    assert rates["character_error_rate"] == pytest.approx(1 / 22)
    assert rates["wrong_sequences"] == 1
    assert rates["first_wrong"] == [{"spoken": "one two three", "written": "one too three"}]


def test_sparkline_falls_with_the_values():
    assert report.sparkline([100.0, 10.0, 1.0]) == "█▄▁"
    assert report.sparkline([2.0]) == "▁"


def test_run_writes_the_metrics_and_the_picture(tmp_path, capsys):
    threads = torch.get_num_threads()
    metrics = demo.run(losses=("ctc", "rnnt"), out=tmp_path / "out", steps=3, seconds=60)
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert metrics["held_out_sequences"] == 200
    assert metrics["losses"].keys() == {"ctc", "rnnt"}
    for of in metrics["losses"].values():
        assert of["steps"] == len(of["loss_curve"]) == 3
        assert 0 < of["loss_share"] < 1
        assert 0 < of["word_error_rate"]
    assert "one voice; unseen sequences of seen recordings" in capsys.readouterr().out


@pytest.mark.parametrize("losses", [(), ("ctc", "asg")])
def test_run_names_the_losses_it_knows(losses, tmp_path):
    with pytest.raises(ValueError, match=r"demo: losses must be some of \['ctc', 'rnnt'\]; got"):
        demo.run(losses=losses, out=tmp_path)


def test_every_objective_has_a_title_and_a_colour():
    assert OBJECTIVES.keys() == report.TITLES.keys() == picture.COLOURS.keys()
