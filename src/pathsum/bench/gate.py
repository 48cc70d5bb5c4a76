"""Nothing is measured that is not right: losses and gradients against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathsum.bench.peers import OURS, Problem, Step
from pathsum.bench.peers.losses import mwer_by_torch
from pathsum.bench.peers.problem import LETTERS

# What pathsum promises of float32 input, for chains and grids.
GRADIENT_BARS = {
    "ctc_loss": 2e-6,
    "simple_ctc_loss": 2e-6,
    "rnnt_loss": 5e-6,
    "rnnt_packed_loss": 5e-6,
    "asg_loss": 2e-6,
    "tdt_loss": 5e-6,
    "lattice_loss": 2e-6,
    # Of errors up to three, less their mean.
    "ctc_mwer_loss": 6e-6,
}

# Half the distance from 1, which no entry is beyond, to the next smaller number.
ROUNDING = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": 2.0**-9}

# A peer only has to solve the same problem: recursions on float32 logarithms lose digits with the number of frames.
PEER_GRADIENT_BAR = 2e-2
PEER_LOSS_BAR = 1e-4

# Of a text's log-probability, where a decoder tells one; and of its words, above which it has solved another problem.
DECODER_BAR, DECODER_WORD_BAR = 1e-6, 0.5

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
        words: Wrong words of a decoder's texts, a share of those that are right; it has no gradient.
    """

    loss: float
    gradient: float
    norm: float
    words: float | None = None

    def __str__(self) -> str:
        if self.words is not None:
            return f"off by {self.loss:.1e} of the log-probability of its texts"
        return f"off by {self.loss:.1e} of the loss and {self.gradient:.1e} in the gradient"


class Truth:
    """Loss and gradient of a problem in float64.

    CTC's, and those made of several CTCs, come from torch's own loss, which shares no code with ours; those of a random
    graph from a recursion here; those of the other losses from pathsum's reference implementation; those of a joiner
    from ``rnnt_loss`` of its logits, whose gate is the ``rnnt`` group's. Of decoders it has the log-probabilities of
    what they find: torch's of labels, and of words those of the graph that reads as them.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self._of_ctc: tuple[float, np.ndarray] | None = None
        if problem.op != "ctc_beam_decode":
            self.loss, self._gradient = _SOLVE[problem.op](problem)

    def gradient(self, name: str) -> np.ndarray:
        """The gradient as the contender defines it."""
        problem = self.problem
        if name == "torch" or problem.op != "ctc_loss" or problem.kind == "logits":
            return self._gradient
        return _by_log_probs(problem, self._gradient)

    def errors(self, name: str, step: Step) -> Errors:
        """How far a contender's result is from the truth."""
        if self.problem.op == "ctc_beam_decode":
            return _errors_of_texts(self.problem, step)
        assert step.gradient is not None
        loss, expected = self.loss, self.gradient(name)
        if name == "pathsum-ctc" and self.problem.op == "ctc_mwer_loss":
            self._of_ctc = self._of_ctc or _ctc(_first_hypotheses(self.problem))
            loss, expected = self._of_ctc
        difference = step.gradient - expected
        return Errors(
            abs(step.loss - loss) / max(1.0, abs(loss)),
            float(np.abs(difference).max()),
            float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        )

    def accepts(self, name: str, errors: Errors) -> bool:
        """Whether the errors are within what is asked of the contender; NaN is not."""
        if errors.words is not None:
            # A text that the scores cannot have is no text of theirs: its log-probability is -inf.
            return errors.loss <= DECODER_BAR and errors.words <= DECODER_WORD_BAR
        joint, rounding = self.problem.op == "rnnt_joint_loss", ROUNDING[self.problem.dtype]
        if name not in OURS:
            bar = PEER_GRADIENT_BAR + rounding
            return errors.loss <= PEER_LOSS_BAR and (errors.norm if joint else errors.gradient) <= bar
        num_samples, frames = len(self.problem.targets), int(self.problem.input_lengths.max())
        # 1e-7 of the loss and 1e-6 * sqrt(T) a sample; 1e-7 more since their sum is rounded to float32.
        loss_bar = 2e-7 + num_samples * 1e-6 * frames**0.5 / max(1.0, abs(self.loss))
        if joint:
            near = errors.norm <= JOINT_NORM_BAR or errors.gradient <= JOINT_GRADIENT_BAR
            return errors.loss <= loss_bar and near
        bar = GRADIENT_BARS["ctc_loss" if name == "pathsum-ctc" else self.problem.op]
        return errors.loss <= loss_bar and errors.gradient <= bar + rounding


def _ctc(problem: Problem) -> tuple[float, np.ndarray]:
    import torch
    from torch.nn import functional

    scores = torch.from_numpy(problem.scores).double().requires_grad_()
    log_probs = functional.log_softmax(scores, -1) if problem.kind == "logits" else scores
    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = functional.ctc_loss(log_probs, *integers, blank=problem.blank, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.item(), gradient.numpy()


def _by_log_probs(problem: Problem, gradient: np.ndarray) -> np.ndarray:
    """Of log-probabilities torch returns the gradient with respect to logits; this is the true one."""
    probabilities = np.exp(problem.scores.astype(np.float64))
    inside = np.arange(len(probabilities))[:, None] < problem.input_lengths
    return gradient - probabilities * inside[..., None]


def _first_hypotheses(problem: Problem) -> Problem:
    return problem._replace(
        op="ctc_loss", targets=problem.targets[:, 0], target_lengths=np.ascontiguousarray(problem.target_lengths[:, 0])
    )


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


def _asg(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import asg_loss

    scores, transitions = (torch.from_numpy(operand).double() for operand in problem.operands)
    labels, *lengths = (torch.from_numpy(array) for array in problem.integers)
    loss = asg_loss(scores.requires_grad_(), labels, transitions, *lengths, reduction="sum", impl="reference")
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.item(), gradient.numpy()


def _tdt(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import tdt_loss

    tokens, durations = (torch.from_numpy(operand).double() for operand in problem.operands)
    integers = [torch.from_numpy(array) for array in problem.integers]
    steps = range(durations.shape[-1])
    options = {"reduction": "sum", "impl": "reference"}
    loss = tdt_loss(tokens.requires_grad_(), durations, *integers, durations=steps, blank=problem.blank, **options)
    (gradient,) = torch.autograd.grad(loss, tokens)
    return loss.item(), gradient.numpy()


def _joint(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    from pathsum.torch import rnnt_loss

    # One sample at a time: the logits of one are some hundred MB.
    gradient = np.zeros(problem.scores.shape)
    predictor, weight, bias = (torch.from_numpy(operand).double() for operand in problem.beside)
    total = 0.0
    for n, (frames, labels) in enumerate(zip(problem.input_lengths, problem.target_lengths, strict=True)):
        encoder = torch.from_numpy(problem.scores[n, :frames]).double().requires_grad_()
        logits = torch.tanh(encoder[:, None] + predictor[n, : labels + 1]) @ weight.T + bias
        targets = torch.from_numpy(problem.targets[n : n + 1, :labels])
        loss = rnnt_loss(logits[None], targets, [frames], [labels], blank=problem.blank, reduction="sum")
        gradient[n, :frames] = torch.autograd.grad(loss, encoder)[0].numpy()
        total += loss.item()
    return total, gradient


def _mwer(problem: Problem) -> tuple[float, np.ndarray]:
    import torch

    scores = torch.from_numpy(problem.scores).double().requires_grad_()
    loss = mwer_by_torch(problem, scores)
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.item(), gradient.numpy()


def _graph(problem: Problem) -> tuple[float, np.ndarray]:
    if problem.kind == "ctc":
        loss, gradient = _ctc(problem)
        return loss, _by_log_probs(problem, gradient)
    gradient, total = np.zeros(problem.scores.shape), 0.0
    for n, frames in enumerate(problem.input_lengths.tolist()):
        loss, gradient[:frames, n] = _of_graph(np.exp(problem.scores[:frames, n].astype(np.float64)), problem.graph)
        total += loss
    return total, gradient


def _of_graph(probabilities: np.ndarray, graph: tuple[np.ndarray, ...]) -> tuple[float, np.ndarray]:
    """Alpha and beta of one sample in plain float64, each frame's alpha summing to 1: for scores that are not peaky."""
    (sources, destinations, labels), weights, final = graph[0].T, np.exp(graph[1].astype(np.float64)), graph[2]
    num_states = int(graph[0][:, :2].max()) + 1
    alpha, sums = np.zeros((len(probabilities) + 1, num_states)), np.ones(len(probabilities) + 1)
    alpha[0, 0] = 1.0
    for t, row in enumerate(probabilities):
        arriving = alpha[t, sources] * weights * row[labels]
        alpha[t + 1] = np.bincount(destinations, arriving, num_states)
        sums[t + 1] = alpha[t + 1].sum()
        alpha[t + 1] /= sums[t + 1]
    beta, gradient = np.zeros(num_states), np.zeros(probabilities.shape)
    ending = alpha[-1, final].sum()
    beta[final] = 1 / ending
    for t in range(len(probabilities) - 1, -1, -1):
        leaving = weights * probabilities[t, labels] * beta[destinations] / sums[t + 1]
        gradient[t] = -np.bincount(labels, alpha[t, sources] * leaving, probabilities.shape[1])
        beta = np.bincount(sources, leaving, num_states)
    return -float(np.log(sums).sum() + np.log(ending)), gradient


def _errors_of_texts(problem: Problem, step: Step) -> Errors:
    import torch

    from pathsum.torch import edit_distances

    assert step.labels is not None
    lengths = np.array([len(labels) for labels in step.labels])
    found = np.zeros((len(lengths), max(int(lengths.max()), 1)), np.int64)
    for own, labels in zip(found, step.labels, strict=True):
        own[: len(labels)] = labels
    separator = 1 + LETTERS.index(" ")
    loss = (
        _of_words(problem, step.labels, separator) if problem.kind == "words" else _of_labels(problem, found, lengths)
    )
    # A decoder that tells no log-probability has to have found something that has one.
    told = loss if np.isnan(step.loss) else step.loss
    wrong = edit_distances(found, lengths, problem.targets, problem.target_lengths, separator)
    spoken = sum(
        1 + list(targets[:size]).count(separator)
        for targets, size in zip(problem.targets, problem.target_lengths, strict=True)
    )
    relative = abs(told - loss) / max(1.0, abs(loss)) if np.isfinite(loss) else np.inf
    return Errors(float(relative), 0.0, 0.0, float(torch.as_tensor(wrong).sum()) / spoken)


def _of_labels(problem: Problem, labels: np.ndarray, lengths: np.ndarray) -> float:
    return _ctc(problem._replace(op="ctc_loss", kind="log_probs", targets=labels, target_lengths=lengths))[0]


def _of_words(problem: Problem, texts: list[list[int]], separator: int) -> float:
    """The loss of all labellings that read as the words: separators are one or more, and at the ends any number."""
    import torch

    from pathsum.graphs import Graph, over_ctc
    from pathsum.torch import lattice_loss

    total = 0.0
    for n, (labels, frames) in enumerate(zip(texts, problem.input_lengths.tolist(), strict=True)):
        # Before each word a state with any number of separators, behind the last word one more.
        arcs, state = [(0, 0, separator)], 0
        for label, before in zip(labels, [separator, *labels], strict=False):
            if label == separator and before == separator:
                continue
            arcs.append((state, state + 1, label))
            state += 1
            arcs += [(state, state, separator)] if label == separator else []
        final = {state: 0.0}
        if labels and labels[-1] != separator:
            arcs += [(state, state + 1, separator), (state + 1, state + 1, separator)]
            final[state + 1] = 0.0
        elif labels:
            final[state - 1] = 0.0
        sources, destinations, classes = np.array(arcs).T
        graph = over_ctc(Graph(sources, destinations, classes, final=final), problem.scores.shape[2], problem.blank)
        scores = torch.from_numpy(problem.scores[:frames, n]).double()
        total += lattice_loss(scores, graph, reduction="sum", impl="reference").item()
    return total


_SOLVE = {
    "ctc_loss": _ctc,
    "simple_ctc_loss": _simple_ctc,
    "rnnt_loss": _rnnt,
    "rnnt_packed_loss": _rnnt,
    "asg_loss": _asg,
    "tdt_loss": _tdt,
    "rnnt_joint_loss": _joint,
    "ctc_mwer_loss": _mwer,
    "lattice_loss": _graph,
}
