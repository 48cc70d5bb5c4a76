"""The losses at work, and the loop that trains a recogniser with any of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.parallel import DistributedDataParallel

from pathsum.graphs import linear, over_ctc
from pathsum.torch import asg_loss, ctc_loss, lfmmi_loss, rnnt_joint_loss

from .data import BLANK, NUM_CLASSES, WordSequences
from .model import ASGRecogniser, CTCRecogniser, LFMMIRecogniser, Posed, Recogniser, RNNTRecogniser, any_words

BATCH_SIZE = 16
LEARNING_RATE = 3e-3
WARM_UP = 0.15  # share of the training in which the learning rate rises
SHORT_SEQUENCES = 0.3  # share of the training on one or two words at a time
COMPARE_EVERY = 10  # steps between timings of torch's own loss


def ctc(posed: Posed) -> torch.Tensor:
    (logits,), lengths, targets, target_lengths = posed
    return ctc_loss(logits, targets, lengths, target_lengths, BLANK, fused_log_softmax=True, batch_first=True)


def torch_ctc(posed: Posed) -> torch.Tensor:
    (logits,), lengths, targets, target_lengths = posed
    log_probs = logits.transpose(0, 1).log_softmax(2)
    return torch.nn.functional.ctc_loss(log_probs, targets, lengths, target_lengths, BLANK)


def rnnt(posed: Posed) -> torch.Tensor:
    (encoded, predicted, weight, bias), lengths, targets, target_lengths = posed
    return rnnt_joint_loss(encoded, predicted, weight, bias, targets, lengths, target_lengths, BLANK)


def asg(posed: Posed) -> torch.Tensor:
    (scores, transitions), lengths, targets, target_lengths = posed
    return asg_loss(scores, targets, transitions, lengths, target_lengths, scale_mode="target_size", batch_first=True)


def lfmmi(posed: Posed) -> torch.Tensor:
    (scores,), lengths, targets, target_lengths = posed
    spoken = [row[:size] for row, size in zip(targets.tolist(), target_lengths.tolist(), strict=True)]
    numerators = [over_ctc(linear(target), NUM_CLASSES, BLANK) for target in spoken]
    return lfmmi_loss(scores, numerators, any_words(), lengths, batch_first=True)


class Objective(NamedTuple):
    recogniser: type[CTCRecogniser] | type[RNNTRecogniser] | type[ASGRecogniser]
    loss: Callable[[Posed], torch.Tensor]
    torch_loss: Callable[[Posed], torch.Tensor] | None  # torch has CTC only
    steps: int
    clip: float  # the largest gradient norm let through; the losses differ in scale
    unit: str  # what the loss is of; one of a frame is the mean over all frames, the others of samples


OBJECTIVES = {
    "ctc": Objective(CTCRecogniser, ctc, torch_ctc, steps=800, clip=1.0, unit="character"),
    "rnnt": Objective(RNNTRecogniser, rnnt, None, steps=700, clip=10.0, unit="sequence"),
    "asg": Objective(ASGRecogniser, asg, None, steps=600, clip=1.0, unit="character"),
    "lfmmi": Objective(LFMMIRecogniser, lfmmi, None, steps=800, clip=1.0, unit="frame"),
}


@dataclass
class Log:
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)  # forward and backward, part of step_seconds
    # Every COMPARE_EVERY steps both losses run once more on what the step posed, outside the step's time.
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
) -> tuple[Recogniser, Log]:
    """Returns a trained recogniser, in evaluation mode, and the log of its training.

    Where torch.distributed has been set up each process trains on its part of every batch. The losses are means over
    the batch's samples, LF-MMI's over its frames, so that the processes' gradients, averaged by their shares of these,
    are the gradients of one process.
    """
    objective = OBJECTIVES[name]
    steps = objective.steps if steps is None else steps
    torch.manual_seed(seed)
    recogniser = objective.recogniser(width)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    network = recogniser if world == 1 else DistributedDataParallel(recogniser)
    own = slice(BATCH_SIZE * rank // world, BATCH_SIZE * (rank + 1) // world)
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
            posed = network(batch.part(own.start, own.stop))
            loss, gradients, loss_seconds = timed(objective.loss, posed)
            share = len(posed.lengths) if objective.unit != "frame" else float(posed.lengths.sum())
            share /= averaged(share)
            loss = averaged(loss * share)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"demo: the {name} loss is {loss} at step {len(log.losses)}; please report this"
                )
            optimizer.zero_grad()
            torch.autograd.backward(posed.scores, [share * gradient for gradient in gradients])
            torch.nn.utils.clip_grad_norm_(recogniser.parameters(), objective.clip)
            optimizer.step()
            log.step_seconds.append(time.perf_counter() - step_began)
            log.loss_seconds.append(loss_seconds)
            log.losses.append(loss)

            if objective.torch_loss is not None and len(log.losses) % COMPARE_EVERY == 0:
                log.own_again_seconds.append(timed(objective.loss, posed)[2])
                log.torch_seconds.append(timed(objective.torch_loss, posed)[2])
            # The first step may compile kernels; counting it would tie the schedule to the state of a cache.
            if len(log.losses) == 1:
                first_step_ended = time.perf_counter()
            progress = max(len(log.losses) / steps, averaged((time.perf_counter() - first_step_ended) / seconds))
            bar.update(task, completed=progress, step=len(log.losses), loss=loss)
    log.seconds = time.perf_counter() - began
    return recogniser.eval(), log


def averaged(value: float) -> float:
    """The mean of a number over all processes, the same for each."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def timed(
    loss_function: Callable[[Posed], torch.Tensor], posed: Posed
) -> tuple[float, tuple[torch.Tensor, ...], float]:
    """Returns the loss, its gradients with respect to the scores, and the seconds both took without the network."""
    leaves = tuple(scores.detach().requires_grad_() for scores in posed.scores)
    began = time.perf_counter()
    loss = loss_function(posed._replace(scores=leaves))
    gradients = torch.autograd.grad(loss, leaves)
    seconds = time.perf_counter() - began
    return float(loss.detach()), gradients, seconds


def _schedule(progress: float) -> float:
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
