"""What a new implementation and a new lattice have to bring: a class each, and every verb is there."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.testing import assert_close

from pathsum import dispatch
from pathsum.kernels.protocol import Call, ChainPath, DensePath, Kernels, NoOptions
from pathsum.lattice import DenseLattice
from pathsum.problems.single_paths import dense_as_graphs
from pathsum.testing.paths import enumerate_paths
from pathsum.torch._operators import OperatorKernels
from pathsum.torch.paths import ctc_paths
from pathsum.torch.paths.frames import FramePaths

# 4 frames of 3 classes for 2 labels, and 3 frames that a repeat just fills.
SCORES = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
INTEGERS = [[1, 2], [1, 1]], [4, 3], [2, 2]


class Chain(Kernels):
    """Chains by the enumeration of their paths."""

    def _each(self, call: Call) -> Any:
        scores, _ = call.scores
        scores = scores.log_softmax(2) if call.options.softmax else scores
        for n, own in enumerate(scores):
            paths = list(enumerate_paths(call.lattice, n))
            yield paths, torch.stack([own[range(len(path)), [arc.label for arc in path]].sum() for path in paths])

    def losses(self, call: Call, reduction: Any = None) -> torch.Tensor:
        losses = torch.stack([-sums.logsumexp(0) for _, sums in self._each(call)])
        return losses if reduction is None else reduction.of(losses)

    def best(self, call: Call) -> ChainPath:
        log_probs, states = [], torch.full(call.scores[0].shape[:2], -1)
        for n, (paths, sums) in enumerate(self._each(call)):
            log_probs.append(sums.max())
            for arc in paths[int(sums.argmax())]:
                states[n, arc.row[0]] = arc.target[1]
        return ChainPath(torch.stack(log_probs), states)

    def posteriors(self, call: Call) -> tuple[torch.Tensor, ...]:
        stays, entries = torch.zeros(2, *call.scores[0].shape[:2], call.lattice.step_labels.shape[1]).double()
        for n, (paths, sums) in enumerate(self._each(call)):
            for path, share in zip(paths, sums.softmax(0), strict=True):
                for arc in path:
                    (stays if arc.kind == "stay" else entries)[n, arc.row[0], arc.target[1]] += share
        return self.losses(call), stays, entries


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", (*dispatch.IMPLEMENTATIONS, "toy"))
    monkeypatch.setitem(dispatch.TABLE, ("toy", "chain"), f"{__name__}.Chain")
    monkeypatch.setitem(dispatch.TABLE, ("toy", "routes"), dispatch.TABLE["reference", "routes"])
    yield
    for name in ("chain", "routes"):
        dispatch.LOADED.pop(("toy", name), None)


def asked(paths, k):
    """What all verbs answer."""
    generator, costs = torch.Generator().manual_seed(2), torch.ones(2, 4, 3, dtype=torch.float64)
    yield from (paths.losses(), paths.loss("mean"), paths.entropy(), paths.expected(costs))
    yield from (*paths.posteriors(), *paths.best(), *paths.k_best(k), *paths.sample(k, generator))


def test_a_new_implementation_is_a_class_and_lines_of_the_table(toy):
    impls: tuple[Any, ...] = ("toy", "reference")
    kinds = (ctc_paths(SCORES, *INTEGERS, fused_log_softmax=True, impl=impl) for impl in impls)
    for own, expected in zip(*(asked(paths, 2) for paths in kinds), strict=True):
        assert_close(own, expected, check_dtype=False)


@dataclass(frozen=True)
class FreeLattice:
    """Any class in any frame, none weighted by the one before."""

    input_lengths: Any
    num_states: int


class FreeSaved(NamedTuple):
    losses: Any
    shares: Any


class Free(OperatorKernels):
    name, lattice, inputs, options, saved = "free", FreeLattice, ("scores", "transitions?"), NoOptions, FreeSaved

    def forward(self, call: Call, need_gradient: bool) -> FreeSaved:
        scores = call.scores[0].detach().double()
        real = torch.arange(scores.shape[1]) < torch.as_tensor(call.lattice.input_lengths)[:, None]
        losses = -torch.where(real, scores.logsumexp(2), 0.0).sum(1)
        return FreeSaved(losses, torch.where(real[:, :, None], scores.softmax(2), 0.0))

    def backward(self, call: Call, saved: FreeSaved, upstream: torch.Tensor, needed: Any) -> Any:
        return (-upstream[:, None, None] * saved.shares).to(call.scores[0].dtype), None

    def second(self, call: Call, saved: FreeSaved, upstream: torch.Tensor, tangents: Any, needed: Any) -> Any:
        means = (saved.shares * tangents[0]).sum(2, keepdim=True)
        moved = -upstream[:, None, None] * saved.shares * (tangents[0] - means)
        return -means.sum((1, 2)), (moved.to(tangents[0].dtype), None)

    def posteriors(self, call: Call) -> FreeSaved:
        return self.forward(call, True)

    def best(self, call: Call) -> DensePath:
        losses, shares = self.forward(call, True)
        states = torch.where(shares.sum(2) > 0, call.scores[0].argmax(2), -1)
        return DensePath(-losses + torch.where(states < 0, 0.0, shares.amax(2).log()).sum(1), states)


class FreePaths(FramePaths):
    def _options(self, *, softmax: bool) -> NoOptions:
        return NoOptions()

    def _graphs(self, lattice: FreeLattice, transitions: Any) -> Any:
        dense = DenseLattice(lattice.input_lengths, lattice.num_states)
        return dense_as_graphs(dense, np.zeros((lattice.num_states,) * 2))

    def posteriors(self) -> tuple[torch.Tensor]:
        return (self.kernels.posteriors(self.call()).shares.to(self.dtype),)

    def best(self) -> DensePath:
        return self.kernels.best(self.call())


def test_a_new_lattice_is_a_dataclass_its_kernels_and_its_paths(monkeypatch):
    monkeypatch.setitem(dispatch.TABLE, ("numba", "free"), f"{__name__}.Free")
    kernels, lengths = dispatch.choose("free", "cpu", "auto", "free"), np.array([4, 2])
    scores = SCORES.transpose(0, 1).clone().requires_grad_()
    paths = FreePaths("free", scores, None, FreeLattice(lengths, 3), kernels, True)
    losses, mean, entropy, expected, shares, log_probs, states, listed, _, drawn, _ = asked(paths, 3**4)
    log_probs_of_frames, real = scores.log_softmax(2), torch.arange(4) < torch.tensor(lengths)[:, None]
    of_frames = torch.where(real, scores.logsumexp(2), 0.0).sum(1)
    assert_close(losses, -of_frames)
    assert_close(mean, -of_frames.mean())
    by_frame = -(log_probs_of_frames.exp() * log_probs_of_frames).sum(2)
    assert_close(entropy, torch.where(real, by_frame, 0.0).sum(1))
    assert_close(expected, torch.tensor([4.0, 2.0], dtype=torch.float64))
    assert_close(shares, torch.where(real[:, :, None], log_probs_of_frames.exp(), 0.0))
    assert states[1].tolist()[2:] == [-1, -1]
    # All paths that there are: their sum is the loss, and the best is the first.
    assert_close(listed.logsumexp(1), of_frames)
    assert_close(listed[:, 0], log_probs)
    assert torch.isin(drawn[0].detach(), listed[0].detach()).all()
    assert torch.autograd.gradgradcheck(lambda scores: kernels.losses(Call((scores, None), paths.lattice)), scores)
