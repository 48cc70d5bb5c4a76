"""Train on several processes that each hold a part of the network: FSDP2, with the losses of one process.

Run it with torchrun, or alone:

    torchrun --nproc-per-node 2 examples/fsdp.py
    python examples/fsdp.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from pathsum.torch.distributed import ctc_loss

SAMPLES, FRAMES, FEATURES, CLASSES, LABELS = 8, 20, 12, 6, 4


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.encoder(features)[0])


def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what all processes together train on in a step: features, targets and their lengths."""
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(SAMPLES, FRAMES, FEATURES, generator=generator)
    targets = torch.randint(1, CLASSES, (SAMPLES, LABELS), generator=generator)
    input_lengths = torch.randint(2 * LABELS, FRAMES + 1, (SAMPLES,), generator=generator)
    target_lengths = torch.randint(1, LABELS + 1, (SAMPLES,), generator=generator)
    return features, targets, input_lengths, target_lengths


def train(steps: int) -> list[float]:
    """Returns the loss of each step, the mean over the samples of all processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights everywhere; each process then keeps its part
    network = Network()
    fully_shard(network.encoder)
    fully_shard(network.head)
    fully_shard(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        features, targets, input_lengths, target_lengths = (part[rank::world] for part in batch(step))
        logits = network(features)
        # The mean over the samples of all processes, also where these have different numbers of them.
        loss = ctc_loss(logits, targets, input_lengths, target_lengths, shard="samples", batch_first=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    if "RANK" not in os.environ:  # without torchrun a process is alone
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    dist.init_process_group("gloo")
    losses = train(steps=20)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes: loss {losses[0]:.6f}, after {len(losses)} steps {losses[-1]:.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
