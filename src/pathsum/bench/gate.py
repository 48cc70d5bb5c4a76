"""Nothing is measured that is not right: losses and gradients against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathsum.bench.peers import OURS, Problem, Step

# What pathsum promises of float32 input, for chains and grids.
GRADIENT_BARS = {"ctc_loss": 2e-6, "simple_ctc_loss": 2e-6, "rnnt_loss": 5e-6, "rnnt_packed_loss": 5e-6}

# A peer only has to solve the same problem: recursions on float32 logarithms lose digits with the number of frames.
PEER_GRADIENT_BAR = 2e-2
PEER_LOSS_BAR = 1e-4

# An encoder's gradient adds up those of a frame's nodes, times the weights: its bar is of the norm. Peaky posteriors
# leave next to no gradient, of which float32 rounds the probabilities of nearly 1 that it is made of.
JOINT_NORM_BAR, JOINT_GRADIENT_BAR = 1e-5, 1e-6


@dataclass(frozen=True)
class Errors:
    """How far a result is from float64.

    Attributes:
        loss: Relative error of the summed loss.
        gradient: Largest absolute error of the gradient.
        norm: Norm of the gradient's error over the gradient's norm.
    """

    loss: float
    gradient: float
    norm: float


class Truth:
    """Loss and gradient of a problem in float64.

    CTC's come from torch's own loss, which shares no code with ours; those of the other losses from pathsum's
    reference implementation; those of a joiner from ``rnnt_loss`` of its logits, whose gate is the ``rnnt`` group's.
    """

    def __init__(self, problem: Problem):
        solve = {"ctc_loss": _ctc, "simple_ctc_loss": _simple_ctc, "rnnt_joint_loss": _joint}.get(problem.op, _rnnt)
        self.problem = problem
        self.loss, self._gradient = solve(problem)

    def gradient(self, name: str) -> np.ndarray:
        """The gradient as the contender defines it."""
        problem = self.problem
        if name == "torch" or problem.op != "ctc_loss" or problem.kind == "logits":
            return self._gradient
        # Of log-probabilities torch returns the gradient with respect to logits, ours the true one.
        probabilities = np.exp(problem.scores.astype(np.float64))
        inside = np.arange(len(probabilities))[:, None] < problem.input_lengths
        return self._gradient - probabilities * inside[..., None]

    def errors(self, name: str, step: Step) -> Errors:
        """How far a contender's result is from the truth."""
        assert step.gradient is not None
        expected = self.gradient(name)
        difference = step.gradient - expected
        return Errors(
            abs(step.loss - self.loss) / max(1.0, abs(self.loss)),
            float(np.abs(difference).max()),
            float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        )

    def accepts(self, name: str, errors: Errors) -> bool:
        """Whether the errors are within what is asked of the contender; NaN is not."""
        joint = bool(self.problem.joiner)
        if name not in OURS:
            return errors.loss <= PEER_LOSS_BAR and (errors.norm if joint else errors.gradient) <= PEER_GRADIENT_BAR
        num_samples, frames = len(self.problem.targets), int(self.problem.input_lengths.max())
        # 1e-7 of the loss and 1e-6 * sqrt(T) a sample; 1e-7 more since their sum is rounded to float32.
        loss_bar = 2e-7 + num_samples * 1e-6 * frames**0.5 / max(1.0, abs(self.loss))
        if joint:
            near = errors.norm <= JOINT_NORM_BAR or errors.gradient <= JOINT_GRADIENT_BAR
            return errors.loss <= loss_bar and near
        return errors.loss <= loss_bar and errors.gradient <= GRADIENT_BARS[self.problem.op]


def _ctc(problem: Problem) -> tuple[float, np.ndarray]:
    import torch
    from torch.nn import functional

    scores = torch.from_numpy(problem.scores).double().requires_grad_()
    log_probs = functional.log_softmax(scores, -1) if problem.kind == "logits" else scores
    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = functional.ctc_loss(log_probs, *integers, blank=problem.blank, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.item(), gradient.numpy()


def _simple_ctc(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import simple_ctc_loss

    scores = torch.from_numpy(problem.scores).double().requires_grad_()
    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = simple_ctc_loss(
        scores, *integers, blank=problem.blank, reduction="sum", fused_log_softmax=True, impl="reference"
    )
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.item(), gradient.numpy()


def _rnnt(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import rnnt_loss

    # One sample at a time: the reference keeps several float64 copies of what it is given.
    gradient = np.zeros(problem.scores.shape)
    total, first_row = 0.0, 0
    for n, (frames, labels) in enumerate(zip(problem.input_lengths, problem.target_lengths, strict=True)):
        width = labels + 1
        if problem.scores.ndim == 4:
            where = np.s_[n, :frames, :width]
        else:
            where = np.s_[first_row : first_row + frames * width]
            first_row += frames * width
        sample = problem.scores[where].reshape(1, frames, width, -1)
        logits = torch.from_numpy(sample).double().requires_grad_()
        targets = torch.from_numpy(problem.targets[n : n + 1, :labels])
        loss = rnnt_loss(logits, targets, [frames], [labels], blank=problem.blank, reduction="sum", impl="reference")
        (sample_gradient,) = torch.autograd.grad(loss, logits)
        gradient[where] = sample_gradient.numpy().reshape(gradient[where].shape)
        total += loss.item()
    return total, gradient


def _joint(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import rnnt_loss

    # One sample at a time: the logits of one are some hundred MB.
    gradient = np.zeros(problem.scores.shape)
    predictor, weight, bias = (torch.from_numpy(operand).double() for operand in problem.joiner)
    total = 0.0
    for n, (frames, labels) in enumerate(zip(problem.input_lengths, problem.target_lengths, strict=True)):
        encoder = torch.from_numpy(problem.scores[n, :frames]).double().requires_grad_()
        logits = torch.tanh(encoder[:, None] + predictor[n, : labels + 1]) @ weight.T + bias
        targets = torch.from_numpy(problem.targets[n : n + 1, :labels])
        loss = rnnt_loss(logits[None], targets, [frames], [labels], blank=problem.blank, reduction="sum")
        gradient[n, :frames] = torch.autograd.grad(loss, encoder)[0].numpy()
        total += loss.item()
    return total, gradient
