"""What the operators of each lattice launch, caught before it reaches a device."""

import contextlib
import importlib
from unittest import mock

import torch

from pathsum.lattice import DenseLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import chain_inputs, grid_inputs

# In the second and third axis of a grid; the first has 2**31 - 1.
MOST_PROGRAMS = 65535


def of(lattice):
    """(kernel, arguments, constants) of every launch of the derivatives there are, for some dtypes and layouts."""
    caught = []

    def catch(kernel, grid, beside, *arguments, **constants):
        assert all(programs <= MOST_PROGRAMS for programs in grid[1:]), f"{kernel.__name__}: a grid of {grid}"
        caught.append((kernel, arguments, constants))

    module = importlib.import_module(f"pathsum.torch._launch.{lattice}")
    with contextlib.ExitStack() as stack:
        # One lattice's launches may go through another's module.
        for each in {module, importlib.import_module("pathsum.torch._launch.grid")}:
            stack.enter_context(mock.patch.object(each, "launch", catch))
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
        lattice = (scores, lengths, target_lengths, targets, offsets, 0, True, 0.0, -1.0)
        saved = module.grid_forward(*lattice, True)
        module.grid_backward(saved[0], *lattice, *saved, [True])
        module.grid_hvp(scores, saved[0], *lattice, *saved, [True])


def _chain(module):
    # CTC in bfloat16 that is aligned; simplified CTC, whose arcs differ, in float32; long, in float64; ASG's.
    for size, pose, dtype in (
        ((9, 2, 64, 3), pose_ctc, torch.bfloat16),
        ((9, 2, 33, 90), pose_simple_ctc, torch.float32),
        ((9, 2, 9, 1500), pose_ctc, torch.float64),
        ((9, 2, 9, 3), None, torch.float32),
    ):
        inputs = chain_inputs(*size, ragged=False)
        targets, lengths, target_lengths = integers(*inputs[1:])
        if pose is None:
            chain, transitions = pose_asg(targets, lengths, target_lengths, size[2])[1], torch.empty(size[2], size[2])
        else:
            chain, transitions = pose(targets, lengths, target_lengths, 0), None
        scores = torch.empty(size[1], size[0], size[2], dtype=dtype)
        labels = (chain.input_lengths, chain.num_states, chain.stay_labels, chain.step_labels, chain.skips)
        arcs = (chain.stay_transitions, chain.step_transitions)
        options = (chain.start_state, chain.num_final, chain.shared_labels, pose is not None, False)
        lattice = (scores, transitions, *labels, *arcs, *options)
        saved = module.chain_forward(*lattice, True)
        module.chain_backward(saved[0], *lattice, *saved, [True, True])
        # Beside simplified CTC, of which every kernel is compiled, the first would take long and tell little.
        if dtype != torch.bfloat16:
            module.chain_hvp(scores, transitions, saved[0], *lattice, *saved, [True, True])


def _dense(module):
    for size, dtype in (((2, 5, 30), torch.float32), ((1, 3, 300), torch.bfloat16)):
        scores, transitions = torch.empty(size, dtype=dtype), torch.empty(size[2], size[2])
        (lengths,) = integers([size[1]] * size[0])
        saved = module.dense_forward(scores, transitions, lengths, True)
        module.dense_backward(saved[0], scores, transitions, lengths, *saved, [True, True])
        module.dense_hvp(scores, transitions, saved[0], scores, transitions, lengths, *saved, [True, True])


def _best_path(module):
    inputs = chain_inputs(9, 2, 9, 40, ragged=False)
    targets, lengths, target_lengths = integers(*inputs[1:])
    scores = torch.empty(2, 9, 9)
    module.chain(scores, pose_ctc(targets, lengths, target_lengths, 0))
    dense, chain = pose_asg(targets, lengths, target_lengths, 9)
    module.chain(scores, chain, torch.empty(9, 9))
    module.dense(scores, dense, torch.empty(9, 9))
    module.dense(torch.empty(1, 5, 300), DenseLattice(lengths[:1], 300), torch.empty(300, 300))
    grid = grid_inputs(2, 3, 1500, 4, ragged=False)
    lattice = pose_rnnt(*integers(*grid[1:]), 0)
    module.padded_grid(torch.empty(2, 3, 1501, 4), lattice, num_labels=1500, logits=True)


def _arcs(module):
    # Padded in bfloat16 with a lone class; packed in float32 with skips; Graves' arcs, wide, in float64.
    for shape, packed, dtype, arcs, lone, skips in (
        ((2, 3, 40, 64), False, torch.bfloat16, ((1, 0), (2, 0), (0, 1), (1, 1), (2, 1)), 0, None),
        ((2, 3, 40, 33), True, torch.float32, ((1, 0), (1, 1)), -1, 1),
        ((1, 2, 1500, 2), False, torch.float64, ((1, 0), (0, 1)), -1, None),
    ):
        num_samples, num_frames, width, num_classes = shape
        inputs = grid_inputs(num_samples, num_frames, width - 1, num_classes, ragged=False)
        lengths, target_lengths, targets = integers(*inputs[2:], inputs.targets)
        offsets = torch.arange(num_samples + 1) * num_frames * width
        scores = torch.empty((num_samples * num_frames * width, num_classes) if packed else shape, dtype=dtype)
        rows = (scores, lengths, target_lengths, targets, offsets, targets, targets, [0, -1], lone, True, 0.0)
        saved = module.row_scores_forward(*rows)
        module.row_scores_backward(saved[0], saved[1], *rows, *saved, [True])
        module.row_scores_hvp(scores, saved[0], saved[1], *rows, *saved, [True])
        planes = torch.empty(len(arcs), len(saved[0][0]), dtype=torch.float64)
        steps = ([frames for frames, _ in arcs], [labels for _, labels in arcs])
        lattice = (planes, lengths, target_lengths, offsets, *steps, False, skips, 0.0)
        saved = module.arcs_forward(*lattice, True)
        module.arcs_hvp(planes, saved[0], *lattice, *saved, [True])


def _joint(module):
    # The last has more frames than a grid has programs in any axis but the first.
    for dtype, activation, num_samples, num_frames, width, num_classes, size in (
        (torch.float32, "tanh", 2, 3, 40, 500, 512),
        (torch.bfloat16, "gelu", 2, 3, 40, 500, 512),
        (torch.float32, "tanh", 1, 70_000, 1, 500, 512),
    ):
        inputs = grid_inputs(num_samples, num_frames, width - 1, num_classes, ragged=False)
        lengths, target_lengths, targets = integers(*inputs[2:], inputs.targets)
        offsets = torch.arange(num_samples + 1) * num_frames * width
        shapes = ((num_samples, num_frames, size), (num_samples, width, size), (num_classes, size), (num_classes,))
        operands = [torch.empty(shape, dtype=dtype) for shape in shapes]
        lattice = (*operands, lengths, target_lengths, targets, offsets, 0, activation, 2**20, "regular", 0.0, 0.0)
        saved = module.joint_forward(*lattice, -1.0, None, True)
        module.joint_backward(saved[0], *lattice, -1.0, None, *saved, [True] * 4)
