"""Train a few steps with a peer's client, as it is and with ``pathsum.compat`` installed: ``train_clients.py CLIENT``.

CLIENT is ``huggingface`` (``Wav2Vec2ForCTC`` of a small random configuration; needs transformers) or ``speechbrain``
(``Brain.fit_batch`` with its joiner and its transducer loss; needs speechbrain and numba). Nothing is downloaded.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from pathsum.compat import install

STEPS = 8


def train(parameters, step):
    """The losses of plain gradient descent on one batch."""
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = step()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def huggingface():
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    def losses():
        torch.manual_seed(0)
        config = Wav2Vec2Config(
            vocab_size=20,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=(32, 32, 32),
            conv_stride=(5, 4, 2),
            conv_kernel=(10, 8, 4),
            num_feat_extract_layers=3,
            mask_time_prob=0.0,
            layerdrop=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            ctc_loss_reduction="mean",
            pad_token_id=0,
        )
        model = Wav2Vec2ForCTC(config).train()
        waves = torch.randn(3, 4000)
        labels = torch.randint(1, 20, (3, 12))
        labels[1, 9:] = labels[2, 5:] = -100
        return train(model.parameters(), lambda: model(waves, labels=labels).loss)

    own = losses()
    with install("torch_functional") as installation:
        print(installation)
        ours = losses()
    return own, ours


def speechbrain():
    # Its loss is made of CUDA kernels; numba's simulator runs them on the CPU.
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    from speechbrain.core import Brain
    from speechbrain.nnet.losses import transducer_loss
    from speechbrain.nnet.transducer.transducer_joint import Transducer_joint

    class Recogniser(Brain):
        def compute_forward(self, batch, stage):
            encoded = self.modules.encoder(batch["features"])[0].unsqueeze(2)
            predicted = self.modules.predictor(torch.nn.functional.pad(batch["labels"], (1, 0))).unsqueeze(1)
            return self.modules.output(self.modules.joint(encoded, predicted))

        def compute_objectives(self, logits, batch, stage):
            return transducer_loss(logits, batch["labels"], batch["frames"], batch["lengths"], blank_index=0)

    def losses():
        torch.manual_seed(0)
        modules = {
            "encoder": torch.nn.GRU(8, 16, batch_first=True),
            "predictor": torch.nn.Embedding(12, 16),
            "joint": Transducer_joint(joint="sum", nonlinearity=torch.nn.LeakyReLU),
            "output": torch.nn.Linear(16, 12),
        }
        batch = {
            "features": torch.randn(3, 20, 8),
            "labels": torch.randint(1, 12, (3, 6)),
            "frames": torch.tensor([1.0, 0.75, 0.5]),
            "lengths": torch.tensor([1.0, 0.5, 0.5]),
        }
        brain = Recogniser(modules, lambda parameters: torch.optim.SGD(parameters, lr=0.01), run_opts={"device": "cpu"})
        brain.on_fit_start()
        brain.modules.train()
        return [brain.fit_batch(batch).item() for _ in range(STEPS)]

    own = losses()
    with install("speechbrain") as installation:
        print(installation)
        ours = losses()
    return own, ours


CLIENTS = {"huggingface": huggingface, "speechbrain": speechbrain}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("client", choices=CLIENTS)
    own, ours = CLIENTS[parser.parse_args().client]()
    print(f"{'step':>4}{'without':>14}{'with':>14}")
    for step, losses in enumerate(zip(own, ours, strict=True)):
        print(f"{step:4}" + "".join(f"{loss:14.6f}" for loss in losses))
    worst = max(abs(a - b) / abs(a) for a, b in zip(own, ours, strict=True))
    print(f"largest relative difference {worst:.1e}; the loss fell from {own[0]:.4f} to {own[-1]:.4f}")
    return int(worst > 1e-4 or own[-1] >= own[0])


if __name__ == "__main__":
    raise SystemExit(main())
