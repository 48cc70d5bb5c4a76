"""The public comparison's batches and a joiner's operands for them.

It is github.com/csukuangfj/transducer-loss-benchmarking. Its step is the joiner ``linear(tanh(encoder + predictor))``
with 512 hidden units and 500 classes, the loss, summed, and the gradients; its lengths are those of 30 utterances of
LibriSpeech at a time, 20 times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUM_BATCHES, BATCH_SIZE = 20, 30
HIDDEN_SIZE, NUM_CLASSES = 512, 500

# Log-odds by which a peaky joiner prefers the arc of its alignment; at 6 about 0.2 % of every step's mass go astray.
_MARGIN = 6.0


def batch_lengths(batch: int, utterances: int) -> np.ndarray:
    """(utterances, 2) frames and labels of the first utterances of a batch."""
    first = BATCH_SIZE * batch
    file = Path(__file__).with_name("librispeech_lengths.csv")
    return np.loadtxt(file, np.int64, delimiter=",", skiprows=4)[first : first + utterances]


def make_operands(
    rng: np.random.Generator, frames: np.ndarray, targets: np.ndarray, labels: np.ndarray, num_classes: int, peaky: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encoder (N, T, H), predictor (N, U+1, H), weight (V, H) and bias (V,), the blank being the last class.

    Normal outputs and a linear layer as at initialisation. With ``peaky`` as after training: the posteriors follow one
    alignment, each target spread evenly over its frames. Half of the hidden units tell whether the frame is before that
    of the next label, which raises or lowers the blank; the other half spell the next label, which raises its class.
    """
    encoder = rng.standard_normal((len(frames), frames.max(), HIDDEN_SIZE), dtype=np.float32)
    predictor = rng.standard_normal((len(frames), labels.max() + 1, HIDDEN_SIZE), dtype=np.float32)
    bound = HIDDEN_SIZE**-0.5
    weight, bias = (rng.uniform(-bound, bound, size) for size in ((num_classes, HIDDEN_SIZE), num_classes))
    if peaky:
        half = HIDDEN_SIZE // 2
        clock, spelling = np.s_[..., :half], np.s_[..., half:]
        codes = rng.choice([-1.0, 1.0], (num_classes, half))
        codes[-1] = 0.0
        due = (np.arange(labels.max() + 1) + 0.5) * (frames / np.maximum(labels, 1))[:, None]
        due[np.arange(labels.max() + 1) >= labels[:, None]] = 1e6
        following = np.pad(targets, ((0, 0), (0, 1)))
        encoder[clock] = np.arange(frames.max())[:, None]
        predictor[clock] = -due[..., None]
        encoder[spelling] *= 0.1
        predictor[spelling] = 2 * codes[following]
        # After tanh a clock unit is -1 before and 1 behind, and a spelling unit nearly its code.
        weight[spelling] += codes * (2 * _MARGIN / half)
        weight[-1, :half] -= _MARGIN / half
        bias[-1] += 2 * _MARGIN
    return encoder, predictor, weight.astype(np.float32), bias.astype(np.float32)
