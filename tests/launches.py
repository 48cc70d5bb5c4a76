"""What the operators of each lattice launch, caught before it reaches a device."""

import contextlib
import importlib
from unittest import mock

import numpy as np
import torch

from pathsum.dispatch import kernels_of
from pathsum.graphs import Graph, ctc_topology
from pathsum.kernels.protocol import (
    ArcOptions,
    Call,
    ChainOptions,
    DenseOptions,
    GridOptions,
    JointOptions,
    SparseOptions,
)
from pathsum.lattice import LABEL, ArcLattice, DenseLattice, GridLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.graphs import pose_graphs
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import chain_inputs, grid_inputs
from pathsum.torch._bounded import posed, unread_batch

# Which launch; one lattice's launches may go through another's module.
MODULES = ("asg", "chain", "dense", "grid", "rows", "arcs", "joint", "posing", "sparse", "tiles")
# In the second and third axis of a grid; the first has 2**31 - 1.
MOST_PROGRAMS = 65535


def of(lattice):
    """(kernel, arguments, constants) of every launch of the derivatives there are, for some dtypes and layouts."""
    caught = []

    def catch(kernel, grid, beside, *arguments, **constants):
        assert all(programs <= MOST_PROGRAMS for programs in grid[1:]), f"{kernel.__name__}: a grid of {grid}"
        caught.append((kernel, arguments, constants))

    with contextlib.ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(f"pathsum.torch._triton.{name}")
            stack.enter_context(mock.patch.object(module, "launch", catch))
        globals()[f"_{lattice}"]()
    return caught


def integers(*arrays):
    return [torch.as_tensor(array) for array in arrays]


def _derive(kernels, call, tangents=(), second=True):
    """Forward, backward and, where asked for, second derivatives of a call."""
    saved = kernels.forward(call, True)
    upstream, needed = saved[0], [True] * len(call.scores)
    kernels.backward(call, saved, upstream, needed)
    if second:
        kernels.second(call, saved, upstream, tangents or call.scores, needed)


def _expect(kernels, call, costs):
    """Entropies, expected costs and their gradients, and posteriors."""
    for own in (None, costs):
        values, kept = kernels.expect(call, own)
        kernels.expect_gradients(call, own, kept, values, [own is not None, True])
    kernels.list_posteriors(call)


def _expectations():
    # Of transducers in float32; of CTC in bfloat16; of simplified CTC, whose arcs differ, long, in float64.
    scores, lattice = _transducer((2, 3, 40, 33), False, torch.float32)
    costs = torch.empty(*scores.shape[:3], 2)
    _expect(kernels_of("triton", "grid"), Call((scores,), lattice, GridOptions()), costs)
    arcs = ArcLattice(
        **vars(lattice), arcs=((1, 0), (1, 1)), reads=((0, LABEL),), terms=(((0, 0),), ((1, 0),)),
        first_frames=lattice.targets, last_frames=lattice.targets, label_ends=False,
    )  # fmt: skip
    call, kernels = Call((scores, *[None] * 7), arcs, ArcOptions()), kernels_of("triton", "arcs")
    for own in (None, costs):
        values, kept = kernels.expect(call, own)
        kernels.expect_gradients(call, own, kept, values, [own is not None, True, *[False] * 7])
    for size, pose, dtype in (
        ((9, 2, 64, 3), pose_ctc, torch.bfloat16),
        ((9, 1, 9, 1500), pose_simple_ctc, torch.float64),
    ):
        inputs = chain_inputs(*size, ragged=False)
        lattice = pose(*integers(*inputs[1:]), 0)
        scores = torch.empty(size[1], size[0], size[2], dtype=dtype)
        call = Call((scores, None), lattice, ChainOptions(softmax=True))
        _expect(kernels_of("triton", "chain"), call, torch.empty_like(scores))


def _grid():
    # Packed with rows that are aligned, in bfloat16; padded with rows that are not, in float32; wide, in float64.
    for shape, packed, dtype in (
        ((2, 3, 40, 64), True, torch.bfloat16),
        ((2, 3, 40, 33), False, torch.float32),
        ((1, 2, 3000, 2), False, torch.float64),
    ):
        scores, lattice = _transducer(shape, packed, dtype)
        _derive(kernels_of("triton", "grid"), Call((scores,), lattice, GridOptions()))


def _transducer(shape, packed, dtype):
    num_samples, num_frames, width, num_classes = shape
    inputs = grid_inputs(num_samples, num_frames, width - 1, num_classes, ragged=False)
    lengths, target_lengths, targets = integers(*inputs[2:], inputs.targets)
    offsets = torch.arange(num_samples + 1) * num_frames * width
    scores = torch.empty((num_samples * num_frames * width, num_classes) if packed else shape, dtype=dtype)
    return scores, GridLattice(lengths, target_lengths, targets, 0, offsets)


def _chain():
    # CTC in bfloat16 that is aligned; simplified CTC, whose arcs differ, in float32; long, in float64; ASG's.
    for size, pose, dtype in (
        ((9, 2, 64, 3), pose_ctc, torch.bfloat16),
        ((9, 2, 33, 90), pose_simple_ctc, torch.float32),
        ((9, 2, 9, 1500), pose_ctc, torch.float64),
        ((9, 2, 500, 3), None, torch.float32),
    ):
        inputs = chain_inputs(*size, ragged=False)
        targets, lengths, target_lengths = integers(*inputs[1:])
        if pose is None:
            lattice, transitions = pose_asg(targets, lengths, target_lengths, size[2])[1], torch.empty(size[2], size[2])
        else:
            lattice, transitions = pose(targets, lengths, target_lengths, 0), None
        scores = torch.empty(size[1], size[0], size[2], dtype=dtype)
        call = Call((scores, transitions), lattice, ChainOptions(softmax=pose is not None, relative=pose is None))
        # Beside simplified CTC, of which every kernel is compiled, the first would take long and tell little.
        _derive(kernels_of("triton", "chain"), call, second=dtype != torch.bfloat16)


def _dense():
    for size, dtype in (((2, 5, 30), torch.float32), ((1, 3, 300), torch.bfloat16)):
        scores, transitions = torch.empty(size, dtype=dtype), torch.empty(size[2], size[2])
        (lengths,) = integers([size[1]] * size[0])
        _derive(
            kernels_of("triton", "dense"), Call((scores, transitions), DenseLattice(lengths, size[2]), DenseOptions())
        )


def _apart():
    # Both lattices of ASG: a matrix of one tile, in float32; of many, in float64, with a chain in strips.
    kernels = kernels_of("triton", "apart")
    for size, dtype in (((9, 2, 30, 40), torch.float32), ((9, 1, 300, 2500), torch.float64)):
        inputs = chain_inputs(*size, ragged=False)
        targets, lengths, target_lengths = integers(*inputs[1:])
        chain = pose_asg(targets, lengths, target_lengths, size[2])[1]
        scores = (torch.empty(size[1], size[0], size[2], dtype=dtype), torch.empty(size[2], size[2], dtype=dtype))
        call = Call(scores, chain, ChainOptions(relative=True))
        solved = kernels.forward(call, True)
        kernels.backward(call, solved, solved.losses, [True, True])


def _best_path():
    inputs = chain_inputs(9, 2, 9, 40, ragged=False)
    targets, lengths, target_lengths = integers(*inputs[1:])
    scores, transitions = torch.empty(2, 9, 9), torch.empty(9, 9)
    ctc, (dense, chain) = pose_ctc(targets, lengths, target_lengths, 0), pose_asg(targets, lengths, target_lengths, 9)
    kernels_of("triton", "chain").best(Call((scores, None), ctc))
    kernels_of("triton", "chain").best(Call((scores, transitions), chain))
    kernels_of("triton", "dense").best(Call((scores, transitions), dense))
    wide = (torch.empty(1, 5, 300), torch.empty(300, 300))
    kernels_of("triton", "dense").best(Call(wide, DenseLattice(lengths[:1], 300)))
    inputs = grid_inputs(2, 3, 1500, 4, ragged=False)
    lattice = pose_rnnt(*integers(*inputs[1:]), blank=0)
    kernels_of("triton", "grid").best(Call((torch.empty(2, 3, 1501, 4),), lattice, GridOptions()))


def _posing():
    # In every lattice, padded and one target after another.
    lengths = torch.full((2,), 3)
    for pose, last in ((pose_ctc, 0), (pose_simple_ctc, 0), (pose_asg, 5), (pose_rnnt, 0)):
        for targets in (torch.ones(2, 40, dtype=torch.int64), torch.ones(6, dtype=torch.int64)):
            sizes = (2, 9, None, 5, None, None)
            posed(pose, unread_batch("f", "lengths", targets, lengths, lengths, lengths.device, *sizes), last)


def _arcs():
    # Padded in bfloat16 with a lone class; packed in float32 with skips; Graves' arcs, wide, in float64.
    for shape, packed, dtype, arcs, hat, skips in (
        ((2, 3, 40, 64), False, torch.bfloat16, ((1, 0), (2, 0), (0, 1), (1, 1), (2, 1)), True, None),
        ((2, 3, 40, 33), True, torch.float32, ((1, 0), (1, 1)), False, 1),
        ((1, 2, 1500, 2), False, torch.float64, ((1, 0), (0, 1)), False, None),
    ):
        scores, grid = _transducer(shape, packed, dtype)
        terms = tuple(((labels, 0),) for _, labels in arcs)
        lattice = ArcLattice(
            **vars(grid), arcs=arcs, reads=((0, LABEL),), terms=terms, first_frames=grid.targets,
            last_frames=grid.targets, label_ends=False, skips_to=skips,
        )  # fmt: skip
        call = Call((scores, *[None] * 7), lattice, ArcOptions(hat=hat))
        _derive(kernels_of("triton", "arcs"), call)


def _sparse():
    # A few arcs a state, in float32, and weights that have a gradient; many arcs, in bfloat16.
    chain = Graph([0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 1, -1], final=2)
    for graph, num_classes, dtype in ((chain, 2, torch.float32), (ctc_topology(40), 40, torch.bfloat16)):
        lattice, weights = pose_graphs([graph], np.zeros(2, np.int64), np.array([5, 3]))
        call = Call((torch.empty(2, 5, num_classes, dtype=dtype), torch.from_numpy(weights)), lattice,
                    SparseOptions(by_weights=graph is chain))  # fmt: skip
        kernels = kernels_of("triton", "sparse")
        _derive(kernels, call, second=graph is chain)
        if graph is chain:
            kernels.best(call)


def _joint():
    # Classes and units that are no whole pieces of 16 bytes; halves.
    from pathsum.torch._triton import tiles

    for dtype, activation, num_samples, num_frames, width, num_classes, size in (
        (torch.float32, "tanh", 2, 3, 40, 499, 500),
        (torch.bfloat16, "gelu", 2, 3, 40, 500, 512),
    ):
        _, grid = _transducer((num_samples, num_frames, width, 2), True, dtype)
        lattice = pose_rnnt_type(grid, "regular")
        shapes = ((num_samples, num_frames, size), (num_samples, width, size), (num_classes, size), (num_classes,))
        operands = tuple(torch.empty(shape, dtype=dtype) for shape in shapes)
        call = Call(operands, lattice, JointOptions(activation, tile_memory=2**21))
        # What is listed is not known, as no kernel runs.
        with mock.patch.object(tiles, "in_memory", return_value=False):
            _derive(kernels_of("triton", "joint"), call, second=activation == "tanh")
