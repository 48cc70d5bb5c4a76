"""Trains the demo's CTC recogniser for a few steps of Hessian-free optimisation.

Each step solves ``(G + damping * I) step = -gradient`` by conjugate gradients, G being the generalised Gauss-Newton
matrix ``J^T H J`` of the network's Jacobian J and the Hessian H of ``ctc_loss``. G is never built: a product with it is
three passes through the network and one Hessian-vector product of the loss.

    python examples/hessian_free.py --steps 6

needs ``pip install pathsum[demo]`` and takes under a minute on two cores.

Sources: Martens (2010), Deep learning via Hessian-free optimization; Levenberg and Marquardt's rule for the damping.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pathsum.demo.data import BLANK, Batch, WordSequences, load_recordings
from pathsum.demo.model import CTCRecogniser
from pathsum.torch import ctc_loss
from pathsum.torch.second_order import gauss_newton_product


class Step(NamedTuple):
    """What a step did: the batch's loss before and after it, the products it took, and the damping it ended with."""

    before: float
    after: float
    products: int
    damping: float


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int, tolerance: float = 1e-4
) -> tuple[Tensor, int]:
    """An approximate solution of ``A x = target`` and the products with A it took.

    CTC's loss is not convex in its logits, so a direction of negative curvature may be met: there it ends.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, norm = residual.clone(), residual @ residual
    for iteration in range(iterations):
        curved = product(direction)
        curvature = direction @ curved
        if curvature <= 0:
            return (solution if iteration else target.clone()), iteration + 1
        length = norm / curvature
        solution += length * direction
        residual -= length * curved
        norm, last = residual @ residual, norm
        if norm <= tolerance**2 * (target @ target):
            return solution, iteration + 1
        direction = residual + (norm / last) * direction
    return solution, iterations


def train_step(recogniser: CTCRecogniser, batch: Batch, damping: float, iterations: int) -> Step:
    """Takes one step on a batch: as far along the solution as the loss falls, or not at all."""
    parameters = tuple(recogniser.parameters())
    (logits,), lengths, targets, target_lengths = recogniser(batch)

    def loss_of(logits: Tensor) -> Tensor:
        return ctc_loss(
            logits, targets, lengths, target_lengths, BLANK, fused_log_softmax=True, batch_first=True, impl="reference"
        )

    loss = loss_of(logits)
    gradient = parameters_to_vector(torch.autograd.grad(loss, parameters, retain_graph=True))

    def damped_product(vector: Tensor) -> Tensor:
        pieces = vector.split([parameter.numel() for parameter in parameters])
        shaped = tuple(p.view_as(parameter) for p, parameter in zip(pieces, parameters, strict=True))
        return parameters_to_vector(gauss_newton_product(loss_of, logits, parameters, shaped)) + damping * vector

    step, products = conjugate_gradients(damped_product, -gradient, iterations)
    promised = -(gradient @ step + 0.5 * step @ damped_product(step)).item()

    start, before = parameters_to_vector(parameters).detach(), loss.item()
    with torch.no_grad():
        for halvings in range(8):
            vector_to_parameters(start + step / 2**halvings, parameters)
            after = loss_of(recogniser(batch).scores[0]).item()
            if after < before:
                break
        else:
            vector_to_parameters(start, parameters)
            after = before
    # What the loss fell by, of what the quadratic model promised: it is to be trusted more, or less.
    kept = (before - after) / max(promised, 1e-12)
    damping *= 2 / 3 if kept > 0.75 and halvings == 0 else 3 / 2 if kept < 0.25 else 1
    return Step(before, after, products + 1, damping)


def train(
    steps: int = 6, batch_size: int = 16, width: int = 64, iterations: int = 20, damping: float = 1.0, seed: int = 0
) -> list[Step]:
    """Trains on sequences of one or two words and returns what each step did."""
    torch.manual_seed(seed)
    recogniser = CTCRecogniser(width).eval()  # without dropout: every product has to be with the same matrix
    stream = WordSequences(load_recordings(), seed)
    batch = stream.batch(batch_size, min_words=1, max_words=2)
    taken = []
    for _ in range(steps):
        taken.append(train_step(recogniser, batch, damping, iterations))
        damping = taken[-1].damping
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=20, help="conjugate gradient iterations a step, at most")
    options = parser.parse_args()
    taken = train(options.steps, options.batch_size, iterations=options.iterations)
    for number, step in enumerate(taken, 1):
        print(f"step {number}: loss {step.before:7.3f} -> {step.after:7.3f}  products {step.products:3d}")


if __name__ == "__main__":
    main()
