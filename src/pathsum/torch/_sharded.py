"""What CTC of several processes is made of: the columns of all, of what each process has."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.lattice import Columns
from pathsum.torch._autograd.columns import columns_of as own_columns_of
from pathsum.torch._autograd.shared import exchanged, shares_of, sum_of
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
    """Losses (N,), whole, of scores (N, T_r, C) of this process's frames: each process solves some of the samples."""
    lengths, classes = (as_tensor(integers).cpu() for integers in (columns.input_lengths, columns.classes))
    num_samples, num_frames, width = len(classes), scores.shape[1], classes.shape[1]
    real = (lengths - share.first).clamp(0, num_frames)
    own = own_columns_of(scores, classes.long()[:, None], real, logits)  # (N, T_r, W)
    bounds = [num_samples * rank // processes.size for rank in range(processes.size + 1)]
    counts = [bounds[rank + 1] - bounds[rank] for rank in range(processes.size)]
    mine = counts[processes.rank]
    sizes = [count * num_frames * width for count in counts]
    received = exchanged(own.flatten(), sizes, [mine * frames * width for frames in share.sizes], processes)
    parts = received.split([mine * frames * width for frames in share.sizes])
    parts = [part.view(mine, frames, width) for part, frames in zip(parts, share.sizes, strict=True)]
    samples = slice(bounds[processes.rank], bounds[processes.rank + 1])
    part = ChainPaths(paths.function, torch.cat(parts, 1), None, part_of(paths.lattice, samples), paths.kernels, True)
    losses = part.losses()
    before, after = samples.start, num_samples - samples.stop
    return sum_of(torch.cat([losses.new_zeros(before), losses, losses.new_zeros(after)]), processes)
