"""Small character recognisers over one kind of encoder: CTC, LF-MMI, RNN-T and ASG.

Each poses its loss (`forward`), writes what it hears (`transcribe`), and aligns a text that is known: the frames of
each character on the best path (`align`), and how probable each row of its lattice is in each frame (`posteriors`).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pathsum.graphs import Graph, over_ctc
from pathsum.torch import (
    TokenSpan,
    asg_align,
    asg_posteriors,
    asg_viterbi,
    ctc_greedy_decode,
    ctc_posteriors,
    forced_align,
    lattice_align,
    rnnt_align,
    rnnt_greedy_decode,
    rnnt_posteriors,
    token_spans,
)
from pathsum.torch.greedy import Decoded

from .data import (
    BLANK,
    CHARACTERS,
    HOP,
    MELS,
    NUM_CLASSES,
    SAMPLE_RATE,
    SPACE,
    Batch,
    decode,
    decode_segments,
    encode,
    encode_segments,
    load_recordings,
    pad,
)


class Posed(NamedTuple):
    """What a loss takes: the tensors that it is differentiated by, and the integers."""

    scores: tuple[torch.Tensor, ...]
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor


class Transcript(NamedTuple):
    classes: list[int]
    frames: list[int]  # the encoder frame in which each class begins

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

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm1(self.conv1(features.transpose(1, 2)).transpose(1, 2)))
        # The second convolution looks over the end of a sample, where it must see nothing of the padding.
        x = x * (torch.arange(x.shape[1]) < ((lengths + 1) // 2)[:, None])[:, :, None]
        x = torch.relu(self.norm2(self.conv2(x.transpose(1, 2)).transpose(1, 2)))
        lengths = (lengths + self.subsampling - 1) // self.subsampling
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return x, lengths

    @property
    def seconds_per_frame(self) -> float:
        return self.subsampling * HOP / SAMPLE_RATE


class CTCRecogniser(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = Encoder(width, subsampling=4)
        self.head = nn.Linear(2 * width, NUM_CLASSES)

    def forward(self, batch: Batch) -> Posed:
        """Poses the logits (N, T, C)."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        return Posed((self.head(x),), lengths, batch.targets, batch.target_lengths)

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        (logits,), lengths, *_ = self(batch)
        return transcripts(ctc_greedy_decode(logits, lengths, BLANK))

    @torch.no_grad()
    def align(self, batch: Batch) -> list[list[TokenSpan]]:
        (logits,), lengths, targets, target_lengths = self(batch)
        found = forced_align(logits.log_softmax(2), targets, lengths, target_lengths, BLANK)
        return [token_spans(path, scores, BLANK) for path, scores in zip(*found, strict=True)]

    @torch.no_grad()
    def posteriors(self, batch: Batch) -> tuple[torch.Tensor, list[str]]:
        """Returns (T, 2S+1) of the one sample, and the rows' names: those of the blanks are empty."""
        (logits,), lengths, targets, target_lengths = self(batch)
        found = ctc_posteriors(logits, targets, lengths, target_lengths, BLANK, fused_log_softmax=True)
        return found.nodes[0], ["", *(part for c in batch.texts[0] for part in (c, ""))]


@cache
def any_words() -> Graph:
    """CTC's labellings of all sequences of the words, as the denominator of LF-MMI and what its decoder may write."""
    arcs, last = [], 1
    for word in load_recordings():
        state = 0
        for place, label in enumerate(encode(word)):
            last += place < len(word) - 1
            to = last if place < len(word) - 1 else 1
            arcs.append((state, to, label))
            state = to
    arcs.append((1, 0, SPACE))
    sources, destinations, labels = zip(*arcs, strict=True)
    return over_ctc(Graph(sources, destinations, labels, final=1), NUM_CLASSES, BLANK)


class LFMMIRecogniser(CTCRecogniser):
    """As CTC's; its scores are normalised over the sequences of words alone, which are all that it writes."""

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        (scores,), lengths, *_ = self(batch)
        outputs = lattice_align(scores, any_words(), lengths, batch_first=True).outputs
        frames = [torch.nonzero(row >= 0).flatten() for row in outputs]
        return [Transcript(row[own].tolist(), own.tolist()) for row, own in zip(outputs, frames, strict=True)]


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

    def forward(self, batch: Batch) -> Posed:
        """Poses the operands of the joiner: encoder (N, T, H), predictor (N, U+1, H), weight (V, H) and bias (V,)."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        # The blank's embedding stands for "nothing written yet".
        y, _ = self.predict(nn.functional.pad(batch.targets, (1, 0), value=BLANK))
        operands = (self.encoder_to_joint(x), y, self.head.weight, self.head.bias)
        return Posed(operands, lengths, batch.targets, batch.target_lengths)

    def predict(self, labels: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        y, next_state = self.predictor(self.embedding(labels), state)
        return self.predictor_to_joint(y), next_state

    def join(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(encoded + predicted))

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        def predict(labels: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
            y, next_state = self.predict(labels[:, None], state)
            return y[:, 0], next_state

        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        decoded = rnnt_greedy_decode(
            self.encoder_to_joint(x),
            lengths,
            predict,
            self.join,
            BLANK,
            max_symbols=self.max_labels_per_frame,
            state_axis=1,
        )
        return transcripts(decoded)

    @torch.no_grad()
    def align(self, batch: Batch) -> list[list[TokenSpan]]:
        found = rnnt_align(*self._logits(batch), BLANK)
        return [
            [
                TokenSpan(c, t, t + 1, score)
                for c, t, score in zip(*(row[:length].tolist() for row in rows), strict=True)
                if t >= 0
            ]
            for length, *rows in zip(batch.target_lengths.tolist(), batch.targets, *found[:2], strict=True)
        ]

    @torch.no_grad()
    def posteriors(self, batch: Batch) -> tuple[torch.Tensor, list[str]]:
        """Returns (T, U+1) of the one sample, and the rows' names."""
        return rnnt_posteriors(*self._logits(batch), BLANK).nodes[0], ["start", *batch.texts[0]]

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        (encoded, predicted, *_), lengths, targets, target_lengths = self(batch)
        return self.join(encoded[:, :, None], predicted[:, None]), targets, lengths, target_lengths


class ASGRecogniser(nn.Module):
    """Without a blank every frame belongs to a character: silence to the space, the second of a double letter to a
    label of its own."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = Encoder(width, subsampling=4)
        num_labels = len(CHARACTERS) + 1
        self.head = nn.Linear(2 * width, num_labels)
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))

    def forward(self, batch: Batch) -> Posed:
        """Poses the scores of the labels (N, T, C), not normalised, and of the transitions (C, C)."""
        x, lengths = self.encoder(batch.features, batch.feature_lengths)
        return Posed((self.head(x), self.transitions), lengths, *pad([encode_segments(t) for t in batch.texts], 0))

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[Transcript]:
        (scores, transitions), lengths, *_ = self(batch)
        found = asg_viterbi(scores, transitions, lengths)
        return [trim(characters(token_spans(path, scores, blank=None))) for path, scores in zip(*found, strict=True)]

    @torch.no_grad()
    def align(self, batch: Batch) -> list[list[TokenSpan]]:
        (scores, transitions), lengths, targets, target_lengths = self(batch)
        found = asg_align(scores, targets, transitions, lengths, target_lengths)
        return [
            characters(token_spans(path, scores, blank=None))[1:-1]
            for path, scores in zip(found.paths, found.scores, strict=True)
        ]

    @torch.no_grad()
    def posteriors(self, batch: Batch) -> tuple[torch.Tensor, list[str]]:
        """Returns (T, S) of the one sample, and the rows' names."""
        (scores, transitions), lengths, targets, target_lengths = self(batch)
        found = asg_posteriors(scores, targets, transitions, lengths, target_lengths)
        return found.nodes[0], [f"{CHARACTERS}1"[c] for c in targets[0].tolist()]


Recogniser = CTCRecogniser | RNNTRecogniser | ASGRecogniser


def transcripts(decoded: Decoded) -> list[Transcript]:
    return [
        Transcript(tokens[:length], frames[:length])
        for tokens, frames, length in zip(
            decoded.tokens.tolist(), decoded.frames.tolist(), decoded.lengths.tolist(), strict=True
        )
    ]


def characters(segments: list[TokenSpan]) -> list[TokenSpan]:
    """Segments of ASG's labels as the characters they stand for."""
    classes = decode_segments([segment.token for segment in segments])
    # A replabel with nothing before it stands for nothing.
    return [
        segment._replace(token=c) for c, segment in zip(classes, segments[len(segments) - len(classes) :], strict=True)
    ]


def trim(spans: list[TokenSpan]) -> Transcript:
    """The characters without the silence around them."""
    spoken = [k for k, span in enumerate(spans) if span.token != SPACE]
    spans = spans[spoken[0] : spoken[-1] + 1] if spoken else []
    return Transcript([span.token for span in spans], [span.start for span in spans])


def words(spans: list[TokenSpan]) -> list[list[TokenSpan]]:
    """The characters of each word."""
    found: list[list[TokenSpan]] = [[]]
    for span in spans:
        if span.token == SPACE:
            found.append([])
        else:
            found[-1].append(span)
    return [word for word in found if word]


def word_seconds(word: list[TokenSpan], recogniser: Recogniser) -> tuple[float, float]:
    """When the word's first frame begins and its last ends: an encoder frame is the stretch around its time."""
    step = recogniser.encoder.seconds_per_frame
    return (word[0].start - 0.5) * step, (word[-1].end - 0.5) * step
