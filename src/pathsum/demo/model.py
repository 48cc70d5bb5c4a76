"""Two small character recognisers over one kind of encoder: CTC and RNN-T."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .data import BLANK, HOP, MELS, NUM_CLASSES, SAMPLE_RATE, Batch, decode


class Transcript(NamedTuple):
    classes: list[int]
    frames: list[int]  # the encoder frame that emitted each class

    @property
    def text(self) -> str:
        return decode(self.classes)


class Encoder(nn.Module):
    """Two strided convolutions and a bidirectional GRU: features (N, T, MELS) -> (N, T / subsampling, 2 * width)."""

    def __init__(self, width: int, subsampling: int) -> None:
        super().__init__()
        stride = subsampling // 2
        self.subsampling = subsampling
        self.conv1 = nn.Conv1d(MELS, width, kernel_size=5, stride=2, padding=2)
        self.norm1 = nn.LayerNorm(width)
        self.conv2 = nn.Conv1d(width, width, kernel_size=2 * stride + 1, stride=stride, padding=stride)
        self.norm2 = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width, bidirectional=True, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm1(self.conv1(features.transpose(1, 2)).transpose(1, 2)))
        # The second convolution looks over the end of a sample, where it must see nothing of the padding.
        x = x * (torch.arange(x.shape[1]) < ((lengths + 1) // 2)[:, None])[:, :, None]
        x = torch.relu(self.norm2(self.conv2(x.transpose(1, 2)).transpose(1, 2)))
        lengths = (lengths + self.subsampling - 1) // self.subsampling
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.dropout(x), lengths

    @property
    def seconds_per_frame(self) -> float:
        return self.subsampling * HOP / SAMPLE_RATE


class CTCRecogniser(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = Encoder(width, subsampling=4)
        self.head = nn.Linear(2 * width, NUM_CLASSES)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits (T, N, C) and the number of frames of each sample."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        return self.head(x).transpose(0, 1), lengths

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        """The best class of each frame, repeats merged, blanks dropped."""
        logits, lengths = self(batch)
        transcripts = []
        for best, length in zip(logits.argmax(2).T.tolist(), lengths.tolist(), strict=True):
            emitting = [t for t in range(length) if best[t] != BLANK and (t == 0 or best[t] != best[t - 1])]
            transcripts.append(Transcript([best[t] for t in emitting], emitting))
        return transcripts


class RNNTRecogniser(nn.Module):
    # Several labels may leave one frame, so the frames can be longer than CTC's, and the (T, U) grid smaller.
    max_labels_per_frame = 6

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = Encoder(width, subsampling=8)
        self.embedding = nn.Embedding(NUM_CLASSES, width // 2)
        self.predictor = nn.GRU(width // 2, width, batch_first=True)
        self.encoder_to_joint = nn.Linear(2 * width, width)
        self.predictor_to_joint = nn.Linear(width, width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits (N, T, U+1, V) and the number of frames of each sample."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        # The blank's embedding stands for "nothing written yet".
        written = nn.functional.pad(batch.targets, (1, 0), value=BLANK)
        y, _ = self.predict(written)
        return self.join(self.encoder_to_joint(x)[:, :, None], y[:, None]), lengths

    def predict(self, labels: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        y, next_state = self.predictor(self.embedding(labels), state)
        return self.predictor_to_joint(y), next_state

    def join(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(encoded + predicted))

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        """Greedy: in each frame write the best label until it is the blank."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        encoded = self.encoder_to_joint(x)
        predicted, state = self.predict(torch.full((len(x), 1), BLANK))
        transcripts = [Transcript([], []) for _ in range(len(x))]
        for t in range(encoded.shape[1]):
            for _ in range(self.max_labels_per_frame):
                best = self.join(encoded[:, t], predicted[:, 0]).argmax(1)
                writing = (best != BLANK) & (t < lengths)
                if not writing.any():
                    break
                for n in writing.nonzero().flatten().tolist():
                    transcripts[n].classes.append(int(best[n]))
                    transcripts[n].frames.append(t)
                next_predicted, next_state = self.predict(best[:, None], state)
                predicted = torch.where(writing[:, None, None], next_predicted, predicted)
                state = torch.where(writing[None, :, None], next_state, state)
        return transcripts
