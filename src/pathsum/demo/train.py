"""The two losses at work, and the loop that trains a recogniser with either."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pathsum.torch import ctc_loss, rnnt_loss

from .data import BLANK, Batch, WordSequences
from .model import CTCRecogniser, RNNTRecogniser

BATCH_SIZE = 16
LEARNING_RATE = 3e-3
WARM_UP = 0.15  # share of the training in which the learning rate rises
SHORT_SEQUENCES = 0.3  # share of the training on one or two words at a time
COMPARE_EVERY = 10  # steps between timings of torch's own loss


def ctc(logits: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
    return ctc_loss(logits, batch.targets, lengths, batch.target_lengths, blank=BLANK, fused_log_softmax=True)


def rnnt(logits: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
    return rnnt_loss(logits, batch.targets, lengths, batch.target_lengths, blank=BLANK)


def torch_ctc(logits: torch.Tensor, lengths: torch.Tensor, batch: Batch) -> torch.Tensor:
    log_probs = logits.log_softmax(2)
    return torch.nn.functional.ctc_loss(log_probs, batch.targets, lengths, batch.target_lengths, blank=BLANK)


class Objective(NamedTuple):
    recogniser: type[CTCRecogniser] | type[RNNTRecogniser]
    loss: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]
    torch_loss: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor] | None
    steps: int
    clip: float  # the largest gradient norm let through; the two losses differ in scale


OBJECTIVES = {
    "ctc": Objective(CTCRecogniser, ctc, torch_ctc, steps=800, clip=1.0),
    "rnnt": Objective(RNNTRecogniser, rnnt, None, steps=600, clip=10.0),  # torch has no RNN-T loss
}


@dataclass
class Log:
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)  # forward and backward, part of step_seconds
    # Every COMPARE_EVERY steps both losses run once more on the step's logits, outside the step's time.
    own_again_seconds: list[float] = field(default_factory=list)
    torch_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    name: str,
    stream: WordSequences,
    *,
    steps: int | None,
    seconds: float,
    seed: int,
    console: Console,
    width: int = 128,
) -> tuple[CTCRecogniser | RNNTRecogniser, Log]:
    """Returns a trained recogniser, in evaluation mode, and the log of its training."""
    objective = OBJECTIVES[name]
    steps = objective.steps if steps is None else steps
    torch.manual_seed(seed)
    recogniser = objective.recogniser(width)
    optimizer = torch.optim.AdamW(recogniser.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    log = Log()
    columns = (
        TextColumn("[bold]{task.description:>4}"),
        BarColumn(),
        TextColumn("step {task.fields[step]:>4}   loss {task.fields[loss]:7.3f}"),
        TimeElapsedColumn(),
    )
    began = time.perf_counter()
    first_step_ended = began
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=1.0, step=0, loss=math.nan)
        progress = 0.0
        while progress < 1:
            step_began = time.perf_counter()
            batch = stream.batch(BATCH_SIZE, *((1, 2) if progress < SHORT_SEQUENCES else (2, 5)))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _schedule(progress)
            logits, lengths = recogniser(batch)
            loss, grad_logits, loss_seconds = timed(objective.loss, logits, lengths, batch)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"demo: the {name} loss is {loss} at step {len(log.losses)}; please report this"
                )
            optimizer.zero_grad()
            logits.backward(grad_logits)
            torch.nn.utils.clip_grad_norm_(recogniser.parameters(), objective.clip)
            optimizer.step()
            log.step_seconds.append(time.perf_counter() - step_began)
            log.loss_seconds.append(loss_seconds)
            log.losses.append(loss)

            if objective.torch_loss is not None and len(log.losses) % COMPARE_EVERY == 0:
                log.own_again_seconds.append(timed(objective.loss, logits, lengths, batch)[2])
                log.torch_seconds.append(timed(objective.torch_loss, logits, lengths, batch)[2])
            # The first step may compile kernels; counting it would tie the schedule to the state of a cache.
            if len(log.losses) == 1:
                first_step_ended = time.perf_counter()
            progress = max(len(log.losses) / steps, (time.perf_counter() - first_step_ended) / seconds)
            bar.update(task, completed=progress, step=len(log.losses), loss=loss)
    log.seconds = time.perf_counter() - began
    return recogniser.eval(), log


def timed(
    loss_function: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor],
    logits: torch.Tensor,
    lengths: torch.Tensor,
    batch: Batch,
) -> tuple[float, torch.Tensor, float]:
    """Returns the loss, its gradient with respect to the logits, and the seconds the two took without the network."""
    leaf = logits.detach().requires_grad_()
    began = time.perf_counter()
    loss = loss_function(leaf, lengths, batch)
    (grad_logits,) = torch.autograd.grad(loss, leaf)
    seconds = time.perf_counter() - began
    return float(loss.detach()), grad_logits, seconds


def _schedule(progress: float) -> float:
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
