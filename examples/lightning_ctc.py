"""CTC in Lightning: the loss is a call in `training_step`, decoding and error rates one in `validation_step`.

pip install lightning
python examples/lightning_ctc.py
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pathsum.torch import ctc_beam_decode, ctc_loss, edit_distances

Sample = tuple[Tensor, Tensor]  # features (T, F), labels (S,)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Recogniser(lightning.LightningModule):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(features, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.encoder(features)[0])

    def training_step(self, batch: Batch, _: int) -> Tensor:
        features, input_lengths, targets, target_lengths = batch
        logits = self(features)
        loss = ctc_loss(logits, targets, input_lengths, target_lengths, fused_log_softmax=True, batch_first=True)
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        features, input_lengths, targets, target_lengths = batch
        found = ctc_beam_decode(self(features).log_softmax(2), input_lengths, beam_size=8)
        wrong = edit_distances(found.tokens[:, 0], found.lengths[:, 0], targets, target_lengths)
        self.log("label_error_rate", wrong.sum() / target_lengths.sum(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def spoken(count: int, seed: int, classes: int = 6, features: int = 12) -> list[Sample]:
    """Samples that can be learned: each label sounds for two to four frames, in noise, and silence parts them."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(classes, features, generator=torch.Generator().manual_seed(0))
    sounds[0] = 0
    samples = []
    for _ in range(count):
        labels = torch.randint(1, classes, (5,), generator=generator)
        times = torch.randint(2, 5, (10,), generator=generator)
        frames = torch.stack([labels, torch.zeros_like(labels)], 1).flatten().repeat_interleave(times)
        samples.append((sounds[frames] + 0.3 * torch.randn(len(frames), features, generator=generator), labels))
    return samples


def together(samples: list[Sample]) -> Batch:
    features, labels = ([*part] for part in zip(*samples, strict=True))
    pad = nn.utils.rnn.pad_sequence
    lengths = (torch.tensor([len(row) for row in rows]) for rows in (features, labels))
    input_lengths, target_lengths = lengths
    return pad(features, batch_first=True), input_lengths, pad(labels, batch_first=True), target_lengths


def main() -> float:
    """Returns the share of labels that are wrong in the end."""
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    loaders = (DataLoader(spoken(n, n), batch_size=16, collate_fn=together) for n in (128, 32))
    trainer.fit(Recogniser(12, 6), *loaders)
    return float(trainer.callback_metrics["label_error_rate"])


if __name__ == "__main__":
    print(f"labels wrong: {main():.1%}")
