"""What the operators of each lattice launch, caught before it reaches a device."""

import importlib
from unittest import mock

import torch

from pathsum.testing import grid_inputs


def of(lattice):
    """(kernel, arguments, constants) of every launch of one forward and backward, for some dtypes and layouts."""
    caught = []

    def catch(kernel, grid, beside, *arguments, **constants):
        caught.append((kernel, arguments, constants))

    module = importlib.import_module(f"pathsum.torch._launch.{lattice}")
    with mock.patch.object(module, "launch", catch):
        globals()[f"_{lattice}"](module)
    return caught


def integers(*arrays):
    return [torch.as_tensor(array) for array in arrays]


def _grid(module):
    # Padded with rows that are aligned, in bfloat16; packed with rows that are not, in float32; wide, in float64.
    for shape, packed, dtype in (
        ((2, 3, 40, 64), False, torch.bfloat16),
        ((2, 3, 40, 33), True, torch.float32),
        ((1, 2, 3000, 2), False, torch.float64),
    ):
        num_samples, num_frames, width, num_classes = shape
        inputs = grid_inputs(num_samples, num_frames, width - 1, num_classes, ragged=False)
        lengths, target_lengths, targets = integers(*inputs[2:], inputs.targets)
        offsets = torch.arange(num_samples + 1) * num_frames * width
        scores = torch.empty((num_samples * num_frames * width, num_classes) if packed else shape, dtype=dtype)
        lattice = (scores, lengths, target_lengths, targets, offsets, 0)
        saved = module.grid_forward(*lattice, True, True)
        module.grid_backward(saved[0], *lattice, True, 0.0, -1.0, *saved)
