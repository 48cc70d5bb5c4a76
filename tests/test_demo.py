"""The demo on a very small scale: its data, its recognisers, its report."""

import itertools
import json
import math
import os
import re
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for extra in ("jiwer", "matplotlib", "rich", "soundfile"):
    pytest.importorskip(extra)

import soundfile  # noqa: E402
from rich.console import Console  # noqa: E402

from pathsum import cli, demo  # noqa: E402
from pathsum.demo import data, decoding, experiment, picture, processes, report  # noqa: E402
from pathsum.demo.model import (  # noqa: E402
    ASGRecogniser,
    CTCRecogniser,
    Encoder,
    Posed,
    RNNTRecogniser,
    characters,
    word_seconds,
    words,
)
from pathsum.demo.train import OBJECTIVES, train  # noqa: E402
from pathsum.torch import NGram, TokenSpan, rnnt_loss  # noqa: E402


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


@pytest.mark.parametrize("name", OBJECTIVES)
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
            losses.append(float(OBJECTIVES[name].loss(recogniser(batch))))
    assert losses[1] < 0.9 * losses[0]
    assert len(log.torch_seconds) == len(log.own_again_seconds) == (1 if name == "ctc" else 0)


@pytest.mark.parametrize("name", OBJECTIVES)
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
        alone, _ = encoder(*batch.part(n, n + 1)[:2])
        assert alone.shape[1] == length
        torch.testing.assert_close(together[n, :length], alone[0], atol=1e-5, rtol=0)


class Fixed(torch.nn.Module):
    """Stands for a network that gives these classes the best score, whatever it hears."""

    def __init__(self, classes, lengths, *others):
        super().__init__()
        logits = torch.nn.functional.one_hot(torch.tensor(classes), data.NUM_CLASSES).float()
        self.posed = Posed((logits, *others), torch.tensor(lengths), torch.tensor([]), torch.tensor([]))

    def forward(self, batch):
        return self.posed


def test_ctc_decoding_merges_repeats_and_drops_blanks():
    a, b = data.encode("ab")
    network = Fixed([[0, a, a, 0, a, b, b], [b, b, 0, 0, a, a, a]], [7, 4])
    assert CTCRecogniser.transcribe(network, None) == [([a, a, b], [1, 4, 5]), ([b], [0])]


def test_asg_decoding_merges_frames_repeats_characters_and_drops_the_silence_around():
    a, b, space = (data.CHARACTERS.index(c) for c in "ab ")
    again = len(data.CHARACTERS)
    classes = [[space, space, a, a, again, b, space, a, space], [again, b, b, space, a, a, a, a, a], [space] * 9]
    none = torch.zeros(data.NUM_CLASSES, data.NUM_CLASSES)
    transcripts = ASGRecogniser.transcribe(Fixed(classes, [9, 5, 9], none), None)
    assert [(transcript.text, transcript.frames) for transcript in transcripts] == [
        ("aab a", [2, 4, 5, 6, 7]),
        ("b a", [1, 3, 4]),
        ("", []),
    ]
    # A single b among a's costs two transitions.
    dear = 2 * (torch.eye(data.NUM_CLASSES) - 1)
    assert ASGRecogniser.transcribe(Fixed([[a, a, b, a]], [4], dear), None)[0].text == "a"


def test_asg_segments_spell_the_text_without_equal_neighbours():
    segments = data.encode_segments("three")
    assert len(segments) == len(" thre1 ")
    assert all(x != y for x, y in itertools.pairwise(segments))
    assert data.decode(data.decode_segments(segments)) == " three "
    spans = [TokenSpan(label, k, k + 1, 0.0) for k, label in enumerate(segments)]
    assert data.decode([span.token for span in characters(spans)]) == " three "


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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_sample_is_aligned_with_what_was_spoken(name, stream):
    torch.manual_seed(0)
    recogniser = OBJECTIVES[name].recogniser(16).eval()
    batch = stream.batch(4)
    lengths = recogniser(batch).lengths.tolist()
    for n, spans in enumerate(recogniser.align(batch)):
        assert data.decode([span.token for span in spans]) == batch.texts[n]
        assert all(a.start <= b.start for a, b in itertools.pairwise(spans))
        assert all(0 <= span.start < span.end <= lengths[n] for span in spans)
        assert [len(word) for word in words(spans)] == [len(word) for word in batch.texts[n].split()]
        alone = recogniser.align(batch.part(n, n + 1))[0]
        assert [span[:3] for span in spans] == [span[:3] for span in alone]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_posteriors_have_a_row_for_each_state_and_end_in_the_last(name, stream):
    torch.manual_seed(0)
    batch = stream.batch(1)
    recogniser = OBJECTIVES[name].recogniser(16).eval()
    posteriors, names = recogniser.posteriors(batch)
    assert posteriors.shape == (int(recogniser(batch).lengths), len(names))
    spelled = "".join(names).removeprefix("start").strip()
    assert re.sub("(.)1", r"\1\1", spelled) == batch.texts[0]
    if name == "rnnt":  # every alignment leaves each frame by one blank, and writes each label once
        assert posteriors.sum().item() == pytest.approx(sum(posteriors.shape) - 1, rel=1e-4)
    else:
        torch.testing.assert_close(posteriors.sum(1), torch.ones(len(posteriors)), atol=1e-5, rtol=0)


def test_lfmmi_writes_words_and_nothing_else(stream, recordings):
    torch.manual_seed(0)
    for transcript in OBJECTIVES["lfmmi"].recogniser(16).eval().transcribe(stream.batch(3)):
        assert set(transcript.text.split(" ")) <= set(recordings)


def test_the_fused_joiner_is_the_one_that_decodes(stream):
    torch.manual_seed(0)
    recogniser = RNNTRecogniser(width=16).eval()
    batch = stream.batch(3)
    (encoded, predicted, *_), lengths, targets, target_lengths = posed = recogniser(batch)
    logits = recogniser.join(encoded[:, :, None], predicted[:, None])
    expected = rnnt_loss(logits, targets, lengths, target_lengths, data.BLANK)
    torch.testing.assert_close(OBJECTIVES["rnnt"].loss(posed), expected)


def test_words_begin_and_end_where_the_recordings_were_cut(stream):
    batch = stream.batch(6)
    for n, text in enumerate(batch.texts):
        times = batch.word_seconds[n]
        assert len(times) == len(text.split())
        gaps = [b[0] - a[1] for a, b in itertools.pairwise([(0, 0), *times])]
        assert all(0.02 <= gap + 1e-9 and gap < 0.25 for gap in gaps)
        assert times[-1][1] < int(batch.feature_lengths[n]) * data.HOP / data.SAMPLE_RATE


def test_boundary_errors_are_medians_over_words(stream):
    class Aligned(CTCRecogniser):
        def align(self, batch):
            return [
                [TokenSpan(data.SPACE + 1, 10 * k, 10 * k + 4, 0.0), TokenSpan(data.SPACE, 10 * k + 5, 10 * k + 9, 0.0)]
                for k in range(len(batch.texts))
            ]

    recogniser = Aligned(width=8)
    batch = stream.batch(3, 1, 1)._replace(word_seconds=[[(0.0, 0.2)], [(0.4, 0.5)], [(0.9, 0.9)]])
    spans = recogniser.align(batch)
    begins_ends = [word_seconds(words(row)[0], recogniser) for row in spans]
    assert np.ravel(begins_ends) == pytest.approx([-0.02, 0.14, 0.38, 0.54, 0.78, 0.94])
    assert report.boundary_errors([batch], recogniser) == pytest.approx(
        {"word_begin_error_seconds": 0.02, "word_end_error_seconds": 0.04}
    )


def test_error_rates():
    rates = report.error_rates(["one two three", "four five"], ["one too three", "four five"])
    assert rates["word_error_rate"] == pytest.approx(1 / 5)
    assert rates["character_error_rate"] == pytest.approx(1 / 22)
    assert rates["wrong_sequences"] == 1
    assert rates["first_wrong"] == [{"spoken": "one two three", "written": "one too three"}]


def test_sparkline_falls_with_the_values():
    assert report.sparkline([100.0, 10.0, 1.0]) == "█▄▁"
    assert report.sparkline([2.0]) == "▁"


def test_run_writes_the_metrics_and_the_pictures(tmp_path, capsys, monkeypatch, recordings):
    monkeypatch.setattr(experiment, "HELD_OUT_BATCHES", 1)
    wav = tmp_path / "own [bold].wav"
    soundfile.write(wav, np.tile(recordings["seven"], (2, 1)).T, 11025, subtype="PCM_16")
    threads = torch.get_num_threads()
    metrics = demo.run(out=tmp_path / "out", steps=3, seconds=60, mwer_steps=1, wav=str(wav))
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    for name in ("demo.png", "recording.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert metrics["held_out_sequences"] == 50
    assert metrics["losses"].keys() == {"ctc", "rnnt", "asg"}
    for of in metrics["losses"].values():
        assert of["steps"] == len(of["loss_curve"]) == 3
        assert 0 < of["loss_share"] < 1
        assert 0 < of["word_error_rate"]
        assert 0 < of["word_begin_error_seconds"] < 3
    assert metrics["decoding"].keys() == {"greedy", "beam", "beam + LM"} == metrics["mwer"].keys() - {"expected_errors"}
    assert metrics["decoding"]["greedy"] == metrics["losses"]["ctc"]["word_error_rate"]
    assert metrics["recording"].keys() == {"CTC", "RNN-T", "ASG", "CTC, beam", "CTC, beam + LM"}
    assert NGram.read(tmp_path / "out" / "words.arpa").order == 2
    assert (tmp_path / "out" / "words.txt").read_text().split() == list(recordings)
    printed = capsys.readouterr().out
    assert "one voice; unseen sequences of seen recordings" in printed
    assert printed.count("torch has none") == 2
    assert "steps of MWER" in printed


def test_torch_has_none_is_said_where_it_has_none():
    assert report.beside_torch("ctc", {}) == "not timed in fewer than 10 steps"
    assert [report.beside_torch(name, {}) for name in ("rnnt", "asg", "lfmmi")] == ["torch has none"] * 3


def test_the_language_model_is_one():
    texts = ["a b", "a b", "a c a", "b"]
    model = NGram.parse(decoding.language_model(texts, ["a", "b", "c", "d"]).splitlines())
    words = ["a", "b", "c", "d", "</s>"]
    for before in ([], ["a"], ["b"], ["c"], ["d"]):
        ahead = [model.score([*before, word], eos=False) - model.score(before, eos=False) for word in words[:-1]]
        ahead.append(model.score(before) - model.score(before, eos=False))
        assert np.exp(ahead).sum() == pytest.approx(1, abs=1e-5)
    # Twice of the four times that a came b followed, less what is kept for others.
    behind = model.score(["a", "b"], eos=False) - model.score(["a"], eos=False)
    assert behind == pytest.approx(np.log(1.5 / 4), abs=1e-5)
    # Each of the words may follow each: nothing is left for others.
    every = [f"{x} {y}" for x in "ab" for y in "ab"]
    assert np.isfinite(NGram.parse(decoding.language_model(every, ["a", "b"]).splitlines()).score(["a", "a", "b"]))


def test_a_recording_of_any_rate_is_that_at_ours(tmp_path):
    for rate in (8000, 11025, 44100, 48000):
        seconds = np.arange(rate) / rate
        tones = 0.5 * np.sin(2 * np.pi * 1000 * seconds) + 0.25 * (rate > 20000) * np.sin(2 * np.pi * 9000 * seconds)
        soundfile.write(tmp_path / "tone.wav", np.stack([tones, tones], 1), rate, subtype="PCM_16")
        samples = data.load_recording(str(tmp_path / "tone.wav"))
        expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
        assert samples.shape == (8000,)
        np.testing.assert_allclose(samples, expected, atol=1e-3)


@pytest.mark.parametrize("kind, message", [
    ("text", "cannot be read as a sound file"), ("missing", "No such file"), ("silence", "must hold a sound"),
    ("empty", "must hold a sound; has 0 samples"), ("long", "must last at most 60 s; lasts 61"),
])  # fmt: skip
def test_a_recording_that_is_none_is_one_line(kind, message, tmp_path, capsys):
    path = tmp_path / "own.wav"
    if kind == "text":
        path.write_text("no sound")
    elif kind != "missing":
        soundfile.write(path, np.zeros({"silence": 100, "empty": 0, "long": 61 * 100}[kind]), 100, subtype="PCM_16")
    assert cli.main(["demo", "--wav", str(path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pathsum demo: {path}: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def losses_of(name, steps):
    stream = data.WordSequences(data.load_recordings(), seed=0)
    console = Console(quiet=True)
    return train(name, stream, steps=steps, seconds=1e6, seed=0, console=console, width=8)[1].losses


def in_process(rank, world, name, steps, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(losses_of(name, steps), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform != "linux", reason="needs gloo and forks")
@pytest.mark.parametrize("name, world, steps", [("ctc", 2, 20), ("rnnt", 2, 3), ("lfmmi", 3, 3)])
def test_several_processes_train_as_one(name, world, steps, tmp_path):
    arguments = (world, name, steps, str(tmp_path))
    torch.multiprocessing.start_processes(in_process, arguments, world, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    assert all(losses == found[0] for losses in found)
    assert found[0] == pytest.approx(losses_of(name, steps), rel=1e-5)


def test_the_command_starts_torchrun_with_its_own_options(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(processes.subprocess, "run", lambda command, **_: started.append(command) or Done())
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    assert cli.main(["demo", "--processes", "2", "--steps", "3", "--out", str(tmp_path)]) == 7
    (command,) = started
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-6:] == ["--steps", "3", "--out", str(tmp_path), "--processes", "1"]


class Done:
    returncode = 7


@pytest.mark.parametrize("losses", [(), ("ctc", "mmi")])
def test_run_names_the_losses_it_knows(losses, tmp_path):
    with pytest.raises(ValueError, match=r"demo: losses must be some of \['asg', 'ctc', 'lfmmi', 'rnnt'\]; got"):
        demo.run(losses=losses, out=tmp_path)


def test_every_objective_has_a_title_and_a_colour():
    assert OBJECTIVES.keys() == report.TITLES.keys() == picture.COLOURS.keys()
