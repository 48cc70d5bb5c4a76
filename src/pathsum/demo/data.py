"""Random word sequences cut from real recordings, as log-mel features."""

from __future__ import annotations

from importlib import resources
from io import BytesIO
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from pathsum.errors import CommandError
from pathsum.replabels import decode_replabels, encode_replabels

SAMPLE_RATE = 8000
WINDOW = 200  # samples: 25 ms
HOP = 80  # samples: 10 ms
FFT = 256
MELS = 40
MAX_SECONDS = 60
BLANK = 0
CHARACTERS = " abcdefghijklmnopqrstuvwxyz"  # class c is CHARACTERS[c - 1]
NUM_CLASSES = 1 + len(CHARACTERS)
SPACE = 1 + CHARACTERS.index(" ")


class Batch(NamedTuple):
    features: torch.Tensor  # (N, T, MELS), 0 beyond each length
    feature_lengths: torch.Tensor  # (N,)
    targets: torch.Tensor  # (N, S), BLANK beyond each length
    target_lengths: torch.Tensor  # (N,)
    texts: list[str]
    word_seconds: list[list[tuple[float, float]]]  # when each word begins and ends

    def part(self, first: int, end: int) -> Batch:
        """Some of the samples, padded no further than they need."""
        own = slice(first, end)
        frames, labels = int(self.feature_lengths[own].max()), int(self.target_lengths[own].max())
        return Batch(
            self.features[own, :frames],
            self.feature_lengths[own],
            self.targets[own, :labels],
            self.target_lengths[own],
            self.texts[own],
            self.word_seconds[own],
        )


def encode(text: str) -> list[int]:
    return [1 + CHARACTERS.index(character) for character in text]


def decode(classes: list[int]) -> str:
    return "".join(CHARACTERS[c - 1] for c in classes)


def encode_segments(text: str) -> list[int]:
    """ASG's labels of a text. They have to fill all frames, so that the silences at both ends are spaces too.

    There is no blank, hence label c is CHARACTERS[c], and the one after them all repeats the character before it.
    """
    return encode_replabels([c - 1 for c in encode(f" {text} ")], len(CHARACTERS))


def decode_segments(labels: list[int]) -> list[int]:
    """Returns the classes that ASG's labels stand for, as `encode` numbers them, a repeated one twice."""
    return [1 + label for label in decode_replabels(labels, len(CHARACTERS))]


def pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (N, S) and the length of each row."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
    return padded, torch.tensor([len(row) for row in rows])


def load_recordings() -> dict[str, np.ndarray]:
    """Returns word -> samples (float32 in [-1, 1]), the silence at both ends cut off. The file name is the word."""
    recordings = {}
    folder = resources.files("pathsum.demo") / "recordings"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".wav"):
            samples, rate = soundfile.read(BytesIO(file.read_bytes()), dtype="float32")
            if rate != SAMPLE_RATE:
                raise ValueError(f"{file.name} must be sampled at {SAMPLE_RATE} Hz; got {rate}")
            recordings[file.name.removesuffix(".wav")] = _trim(samples)
    return recordings


def load_recording(path: str) -> np.ndarray:
    """Returns the samples of a sound file of any rate at SAMPLE_RATE; of several channels the mean.

    Raises:
        CommandError: (a ValueError) no sound file, one without sound, or one of more than MAX_SECONDS.
    """
    with open(path, "rb") as file:
        try:
            sound = soundfile.SoundFile(file)
            if sound.frames > MAX_SECONDS * sound.samplerate:
                raise CommandError(
                    f"{path}: must last at most {MAX_SECONDS} s; lasts {sound.frames / sound.samplerate:.0f}"
                )
            samples = sound.read(dtype="float32", always_2d=True).mean(1)
        except soundfile.LibsndfileError as error:
            raise CommandError(f"{path}: cannot be read as a sound file: {error.error_string}") from error
    if not samples.any():
        raise CommandError(f"{path}: must hold a sound; has {len(samples)} samples of silence")
    return resample(samples, sound.samplerate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns the samples at SAMPLE_RATE: the same frequencies, as far as the new rate has them."""
    count = max(round(len(samples) * SAMPLE_RATE / rate), 1)
    spectrum = np.fft.rfft(samples.astype(np.float64))[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def one_recording(samples: np.ndarray) -> Batch:
    """Returns a recording as a batch of which nobody knows what was said."""
    nothing = pad([[BLANK]], BLANK)[0][:, :0], torch.tensor([0])
    return Batch(*log_mel([samples]), *nothing, [""], [[]])


def _trim(samples: np.ndarray, threshold: float = 0.02, margin: int = HOP) -> np.ndarray:
    energy = np.sqrt(np.convolve(samples**2, np.full(WINDOW, 1 / WINDOW), mode="same"))
    loud = np.flatnonzero(energy > threshold * energy.max())
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


class WordSequences:
    """An endless, seeded stream of batches; `exclude` holds the texts that must never come."""

    def __init__(self, recordings: dict[str, np.ndarray], seed: int, exclude: frozenset[str] = frozenset()) -> None:
        self.recordings = recordings
        self.words = list(recordings)
        self.exclude = exclude
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int, min_words: int = 2, max_words: int = 5) -> Batch:
        texts = self.texts(size, min_words, max_words)
        waveforms, word_seconds = zip(*[self._speak(text) for text in texts], strict=True)
        targets = pad([encode(text) for text in texts], BLANK)
        return Batch(*log_mel(list(waveforms)), *targets, texts, list(word_seconds))

    def texts(self, count: int, min_words: int = 2, max_words: int = 5) -> list[str]:
        return [self._text(min_words, max_words) for _ in range(count)]

    def _text(self, min_words: int, max_words: int) -> str:
        while True:
            text = " ".join(self.rng.choice(self.words, self.rng.integers(min_words, max_words + 1)))
            if text not in self.exclude:
                return text

    def _speak(self, text: str) -> tuple[np.ndarray, list[tuple[float, float]]]:
        rng = self.rng
        pieces = [self._gap()]
        word_seconds = []
        for word in text.split():
            samples = self.recordings[word]
            speed, decibels = rng.uniform(0.85, 1.15), rng.uniform(-6, 6)
            positions = np.arange(0, len(samples) - 1, speed)
            begin = sum(map(len, pieces))
            word_seconds.append((begin / SAMPLE_RATE, (begin + len(positions)) / SAMPLE_RATE))
            pieces += [
                10 ** (decibels / 20) * np.interp(positions, np.arange(len(samples)), samples),
                self._gap(),
            ]
        speech = np.concatenate(pieces).astype(np.float32)
        noise = rng.standard_normal(len(speech), dtype=np.float32)
        noise_decibels = rng.uniform(-30, -10)
        noise *= 10 ** (noise_decibels / 20) * np.sqrt(np.mean(speech**2))
        return speech + noise, word_seconds

    def _gap(self) -> np.ndarray:
        return np.zeros(int(SAMPLE_RATE * self.rng.uniform(0.02, 0.25)))


def log_mel(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-mel energies (N, T, MELS), each utterance with mean 0 and deviation 1, and the frame counts (N,)."""
    lengths = torch.tensor([1 + len(waveform) // HOP for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
    spectrum = torch.stft(padded, FFT, HOP, WINDOW, torch.hann_window(WINDOW), return_complex=True, pad_mode="constant")
    energies = torch.log(spectrum.abs().square().transpose(1, 2) @ mel_filters() + 1e-6)
    valid = (torch.arange(energies.shape[1]) < lengths[:, None])[:, :, None]
    count = lengths[:, None, None] * MELS
    centred = (energies - (energies * valid).sum((1, 2), keepdim=True) / count) * valid
    return centred / (centred.square().sum((1, 2), keepdim=True) / count).sqrt(), lengths


def mel_filters() -> torch.Tensor:
    """Returns (FFT // 2 + 1, MELS): triangles that overlap by half, evenly spaced on the mel scale."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
