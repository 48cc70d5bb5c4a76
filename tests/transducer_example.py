"""The example that transducer losses share, and the stored answers of peers, as the tests of the drop-ins read them."""

import json
from pathlib import Path

import pytest
import torch

VECTORS = Path(__file__).parent / "vectors"

# The example that warp-transducer's README and tests have, and after it those of torchaudio, warprnnt_numba,
# SpeechBrain and NeMo: 2 frames, 2 labels, 5 classes, the blank 0.
ACTS = [
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
]
COST = 4.495666
GRADIENT = [
    [
        [-0.13116688, -0.3999269, 0.17703125, 0.17703125, 0.17703125],
        [-0.18572757, 0.12247056, -0.18168412, 0.12247056, 0.12247056],
        [-0.32091254, 0.06269141, 0.06928472, 0.12624499, 0.06269141],
    ],
    [
        [0.05456069, -0.21824276, 0.05456069, 0.05456069, 0.05456069],
        [0.12073959, 0.12073959, -0.48295835, 0.12073959, 0.12073959],
        [-0.6925882, 0.16871116, 0.18645467, 0.16871116, 0.16871116],
    ],
]
INTEGERS = torch.tensor([[1, 2]]).int(), torch.tensor([2]).int(), torch.tensor([2]).int()


def example():
    return torch.tensor([ACTS], requires_grad=True)


def load(peer):
    vectors = json.loads((VECTORS / f"{peer}.json").read_text())["vectors"]
    return [pytest.param(vector, id=f"{i}-{vector['options']}") for i, vector in enumerate(vectors)]


def integers_of(vector):
    names = ("targets", "logit_lengths", "target_lengths")
    return [torch.tensor(vector[name], dtype=torch.int32) for name in names]
