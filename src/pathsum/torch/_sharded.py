"""What CTC of several processes is made of: the columns of all, of what each process has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, common, log_sum
from pathsum.lattice import ChainLattice, Columns
from pathsum.torch._autograd.columns import columns_of as own_columns_of
from pathsum.torch._autograd.shared import exchanged, received, sent, shares_of, sum_of
from pathsum.torch._ops.arrays import as_tensor, work_dtype
from pathsum.torch._processes import Processes, Share
from pathsum.torch.paths.frames import ChainPaths, part_of


def columns_of_classes(scores: Tensor, columns: Columns, share: Share, processes: Processes, *, logits: bool) -> Tensor:
    """Log-probabilities (N, T, W) of the columns, whole, of scores (N, T, C_r) of this process's classes."""
    device = scores.device
    lengths, classes = (as_tensor(integers).to(device) for integers in (columns.input_lengths, columns.classes))
    real = torch.arange(scores.shape[1], device=device) < lengths[:, None]
    places = classes.long() - share.first
    inside = (places >= 0) & (places < scores.shape[2])
    places = torch.where(inside, places, 0)
    if not logits:
        return sum_of(shares_of(scores, places, inside, real, None), processes)
    with torch.no_grad():
        work = work_dtype(scores)
        least = torch.finfo(work).min
        maxima = scores.new_full((*scores.shape[:2], 1), least, dtype=work)
        if scores.shape[2]:
            largest = scores.amax(2, keepdim=True).to(work).clamp(min=least)
            maxima = torch.where(real[..., None], largest, least)
        maxima = processes.largest(maxima.contiguous())
    # A column less the maximum is a sum of one such and zeros.
    whole = sum_of(shares_of(scores, places, inside, real, maxima), processes)
    sums = whole[..., :1]
    return whole[..., 1:] - torch.where(sums == 0, 1.0, sums).log()


def losses_of_frames(
    paths: ChainPaths, columns: Columns, scores: Tensor, share: Share, processes: Processes, *, logits: bool
) -> Tensor:
    """Losses (N,), whole, of scores (N, T_r, C) of this process's frames.

    Each process solves some of the samples. Where there are fewer than processes each solves all in its own frames,
    between the processes before and after it.
    """
    lengths, classes = (as_tensor(integers).cpu() for integers in (columns.input_lengths, columns.classes))
    real = (lengths - share.first).clamp(0, scores.shape[1])
    own = own_columns_of(scores, classes.long()[:, None], real, logits)  # (N, T_r, W)
    if 0 < len(own) < processes.size and paths.kernels.advances:
        return _by_stages(paths, own, real, processes)
    return _by_samples(paths, own, share, processes)


def _by_samples(paths: ChainPaths, own: Tensor, share: Share, processes: Processes) -> Tensor:
    num_samples, num_frames, width = own.shape
    bounds = [num_samples * rank // processes.size for rank in range(processes.size + 1)]
    counts = [bounds[rank + 1] - bounds[rank] for rank in range(processes.size)]
    mine = counts[processes.rank]
    sizes = [count * num_frames * width for count in counts]
    received_sizes = [mine * frames * width for frames in share.sizes]
    parts = exchanged(own.flatten(), sizes, received_sizes, processes).split(received_sizes)
    parts = [part.view(mine, frames, width) for part, frames in zip(parts, share.sizes, strict=True)]
    samples = slice(bounds[processes.rank], bounds[processes.rank + 1])
    part = ChainPaths(paths.function, torch.cat(parts, 1), None, part_of(paths.lattice, samples), paths.kernels, True)
    losses = part.losses()
    before, after = samples.start, num_samples - samples.stop
    return sum_of(torch.cat([losses.new_zeros(before), losses, losses.new_zeros(after)]), processes)


def _by_stages(paths: ChainPaths, own: Tensor, real: Tensor, processes: Processes) -> Tensor:
    """Alpha goes from each process to the next, 2S + 2 numbers a sample, and in backward as many come back."""
    lattice: ChainLattice = replace(paths.lattice, input_lengths=real.numpy())
    states = as_tensor(lattice.num_states).to(own.device)[:, None]
    state = torch.arange(-1, lattice.step_labels.shape[1], device=own.device)
    scores, offsets = _scores_of_states(own, lattice, real.to(own.device))
    first = torch.where(state == lattice.start_state, 0.0, IMPOSSIBLE).to(scores).expand(len(own), -1)
    alpha = received(scores.flatten()[:0], first, 1, processes)
    alpha = paths.kernels.advance(Call((scores, None), lattice), alpha)
    token = sent(alpha, 1, processes)
    losses = token.sum() - offsets
    if processes.rank == processes.size - 1:
        undefined = alpha[:, 1].isnan()
        final = (state >= states - lattice.num_final) & (state < states) & ~undefined[:, None]
        log_z = log_sum(torch.where(final, alpha, IMPOSSIBLE), 1)
        losses = losses - torch.where(undefined, alpha[:, 1], log_z)
    return sum_of(losses, processes)


def _scores_of_states(own: Tensor, lattice: Any, real: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T_r, S') the score of each state's class less a frame's greatest, and the sum of these (N,), in float64.

    A frame with a score that is NaN or +inf has NaN in all states.
    """
    labels, num_states = (as_tensor(x).to(own.device) for x in (lattice.step_labels, lattice.num_states))
    frame, state = (torch.arange(size, device=own.device) for size in (own.shape[1], labels.shape[1]))
    is_real = (frame < real[:, None])[:, :, None]
    is_used = is_real & (state < num_states[:, None])[:, None]
    scores = own.double().gather(2, labels.long()[:, None].expand(-1, own.shape[1], -1))
    scores = torch.where(is_used, scores, IMPOSSIBLE)
    largest = common(scores, 2)
    largest = torch.where(largest < torch.inf, largest, torch.nan)
    scores = torch.where(is_used | largest.isnan(), scores - largest, IMPOSSIBLE)
    return scores, torch.where(is_real, largest, 0.0).sum((1, 2))
