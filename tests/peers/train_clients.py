"""Train a few steps with a peer's client, as it is and with ``pathsum.compat`` installed: ``train_clients.py CLIENT``.

Nothing is downloaded; models are small and random. CLIENT is one of

* ``doctr``: a text recogniser of docTR, ``crnn_mobilenet_v3_small``;
* ``espnet``: the CTC of ESPnet, ``ctc_type="builtin2"``, with a sample that does not fit;
* ``huggingface``: ``Wav2Vec2ForCTC`` of transformers;
* ``parakeet``: ``ParakeetForTDT`` of transformers, from 5.24 on;
* ``keras``, ``keras-batch-cost``: a recurrent recogniser on TensorFlow, its loss ``"ctc"`` or ``ctc_batch_cost``;
* ``speechbrain``: ``Brain.fit_batch`` with its joiner and its transducer loss; needs numba as well;
* ``nemo``, ``nemo-fused``, ``nemo-tdt``, ``nemo-multiblank``: joiner and loss of nemo_toolkit 3, the last three fused;
* ``nemo-hybrid``, ``nemo-hybrid-tdt``: ``EncDecHybridRNNTCTCModel`` and its ``training_step``, torch's CTC beside it.
"""

import argparse
import os
import sys
import types
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


def parakeet():
    from transformers import ParakeetEncoderConfig, ParakeetForTDT, ParakeetTDTConfig
    from transformers.loss import loss_tdt

    def losses():
        torch.manual_seed(0)
        encoder = ParakeetEncoderConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_mel_bins=16,
            subsampling_conv_channels=8, dropout=0.0, layerdrop=0.0, activation_dropout=0.0, attention_dropout=0.0,
            dropout_positions=0.0,
        )  # fmt: skip
        sizes = {"vocab_size": 21, "blank_token_id": 20, "pad_token_id": 2, "decoder_hidden_size": 32}
        model = ParakeetForTDT(ParakeetTDTConfig(encoder_config=encoder, num_decoder_layers=1, **sizes)).train()
        features, labels = torch.randn(2, 96, 16), torch.randint(3, 20, (2, 5))
        batch = {"input_features": features, "attention_mask": torch.ones(2, 96).long(), "labels": labels}
        batch["decoder_input_ids"] = torch.nn.functional.pad(labels, (1, 0), value=20)
        return train(model.parameters(), lambda: model(**batch).loss)

    own = losses()
    with install("transformers") as installation:
        print(installation)
        assert loss_tdt.tdt_loss.__module__ == "pathsum.compat.transformers"
        ours = losses()
    return own, ours


def nemo(model, name, **loss_options):
    """NeMo's loss, and its joiner in parts of the batch (fused) where the model says so."""
    # NeMo's own TDT loss in plain torch asks for a GPU; here the CPU stands for one.
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    from nemo.collections.asr.losses.rnnt import RNNTLoss
    from nemo.collections.asr.modules import RNNTJoint

    durations = loss_options.get("durations", [])
    big_blanks = loss_options.get("big_blank_durations", [])

    def losses():
        torch.manual_seed(0)
        criterion = RNNTLoss(10 + len(big_blanks), "mean_batch", name, dict(loss_options))
        network = {"encoder_hidden": 16, "pred_hidden": 16, "joint_hidden": 16, "activation": "relu"}
        joint = RNNTJoint(
            network, num_classes=10, num_extra_outputs=len(durations) + len(big_blanks), fuse_loss_wer=model == "fused",
            fused_batch_size=2 if model == "fused" else None,
        )  # fmt: skip
        if model == "fused":
            joint.set_loss(criterion)
            joint.set_wer(torch.nn.Identity())
        encoded, predicted = torch.randn(3, 16, 20), torch.randn(3, 16, 7)
        labels = torch.randint(0, 10, (3, 6))
        frames, lengths = torch.tensor([20, 15, 9]), torch.tensor([6, 4, 3])

        def step():
            scores = {"encoder_outputs": encoded, "decoder_outputs": predicted}
            if model == "fused":
                integers = {"encoder_lengths": frames, "transcripts": labels, "transcript_lengths": lengths}
                return joint(**scores, **integers, compute_wer=False)[0]
            integers = {"targets": labels, "input_lengths": frames, "target_lengths": lengths}
            return criterion(log_probs=joint(**scores), **integers)

        return train(joint.parameters(), step)

    own = losses()
    with install("nemo") as installation:
        print(installation)
        ours = losses()
    return own, ours


def doctr():
    from doctr.models import crnn_mobilenet_v3_small

    def losses():
        torch.manual_seed(0)
        model = crnn_mobilenet_v3_small(pretrained=False, pretrained_backbone=False).train()
        images, words = torch.randn(3, 3, 32, 128), ["speech", "aa", "transducer"]
        return train(model.parameters(), lambda: model(images, words)["loss"])

    own = losses()
    with install("torch_functional") as installation:
        print(installation)
        ours = losses()
    return own, ours


def keras(by_batch_cost=False):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import numpy as np
    import tensorflow as tf

    layers = keras.layers

    class Cost(layers.Layer):
        """The layer of Keras's examples that adds the loss."""

        def call(self, labels, probabilities, frames, lengths):
            losses = tf.keras.backend.ctc_batch_cost(labels, probabilities, frames, lengths)
            self.add_loss(tf.reduce_mean(losses))
            return probabilities

    def losses():
        keras.utils.set_random_seed(0)
        random = np.random.default_rng(0)
        features, labels = random.standard_normal((4, 30, 8)).astype("float32"), random.integers(1, 10, (4, 6))
        labels[1, 4:] = labels[2, 2:] = 0
        inputs = keras.Input((30, 8))
        hidden = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(inputs)
        if by_batch_cost:
            frames, lengths = np.array([[30], [25], [20], [30]]), (labels > 0).sum(1, keepdims=True)
            integers = [keras.Input((6,), dtype="int64"), *(keras.Input((1,), dtype="int64") for _ in range(2))]
            probabilities = layers.Dense(11, activation="softmax")(hidden)
            output = Cost()(integers[0], probabilities, *integers[1:])
            model, batch = keras.Model([inputs, *integers], output), ([features, labels, frames, lengths],)
        else:
            model, batch = keras.Model(inputs, layers.Dense(11)(hidden)), (features, labels)
        model.compile(keras.optimizers.SGD(0.01, clipnorm=1.0), loss=None if by_batch_cost else "ctc")
        steps = []
        for _ in range(STEPS):
            model.reset_metrics()  # or else a mean over the steps is reported
            steps.append(float(np.ravel(model.train_on_batch(*batch))[0]))
        return steps

    own = losses()
    with install("keras") as installation:
        print(installation)
        ours = losses()
    return own, ours


def nemo_hybrid(**loss_options):
    """NeMo's model of a transducer with CTC beside it, its joiner fused, by its own ``training_step``."""
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    from nemo.collections.asr.losses.rnnt import RNNTLoss
    from nemo.collections.asr.models import EncDecHybridRNNTCTCModel
    from omegaconf import OmegaConf

    durations = loss_options.get("durations", [])
    name = "tdt" if durations else "warprnnt_numba"
    labels, asr = list("abcdefgh"), "nemo.collections.asr.modules"
    config = {
        "labels": labels,
        "model_defaults": {"enc_hidden": 16, "pred_hidden": 16},
        "preprocessor": {"_target_": f"{asr}.AudioToMelSpectrogramPreprocessor", "features": 16, "dither": 0.0},
        "encoder": {
            "_target_": f"{asr}.ConformerEncoder", "feat_in": 16, "n_layers": 1, "d_model": 16, "n_heads": 2,
            "subsampling_conv_channels": 8, "conv_kernel_size": 9, "dropout": 0.0, "dropout_pre_encoder": 0.0,
            "dropout_emb": 0.0, "dropout_att": 0.0,
        },
        "decoder": {
            "_target_": f"{asr}.RNNTDecoder", "normalization_mode": None, "random_state_sampling": False,
            "blank_as_pad": True, "prednet": {"pred_hidden": 16, "pred_rnn_layers": 1},
        },
        "joint": {
            "_target_": f"{asr}.RNNTJoint", "log_softmax": None, "fuse_loss_wer": True, "fused_batch_size": 2,
            "num_extra_outputs": len(durations), "jointnet": {"joint_hidden": 16, "activation": "relu"},
        },
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "decoder": {
                "_target_": f"{asr}.ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": labels,
            },
        },
        "decoding": {"strategy": "greedy", "greedy": {"max_symbols": 5}, "durations": durations},
        "loss": {"loss_name": name, f"{name}_kwargs": loss_options},
        "optim": {"name": "sgd", "lr": 0.01},
    }  # fmt: skip

    def losses():
        torch.manual_seed(0)
        model = EncDecHybridRNNTCTCModel(cfg=OmegaConf.create(config)).train()
        if durations:
            # NeMo's own "tdt" needs a GPU, and its model knows "tdt" alone to have durations.
            model.loss = RNNTLoss(len(labels), "mean_batch", "tdt_pytorch", dict(loss_options))
            model.joint.set_loss(model.loss)
        model.log_dict = lambda *_, **__: None
        model._optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        model._trainer = types.SimpleNamespace(log_every_n_steps=10**6, global_step=0)
        waves, transcripts = torch.randn(3, 16000), torch.randint(0, 8, (3, 5))
        batch = waves, torch.tensor([16000, 12000, 9000]), transcripts, torch.tensor([5, 3, 4])
        return train(model.parameters(), lambda: model.training_step(batch, 0)["loss"])

    own = losses()
    with install("nemo", "torch_functional") as installation:
        print(installation)
        ours = losses()
    return own, ours


def espnet():
    from espnet2.asr.ctc import CTC

    def losses():
        torch.manual_seed(0)
        criterion = CTC(odim=10, encoder_output_size=16, ctc_type="builtin2")
        hidden, labels = torch.randn(3, 12, 16), torch.randint(1, 10, (3, 5))
        # The last sample has too few frames: builtin2 leaves it out.
        frames, lengths = torch.tensor([12, 10, 2]), torch.tensor([5, 3, 4])
        return train(criterion.parameters(), lambda: criterion(hidden, frames, labels, lengths))

    own = losses()
    with install("torch_functional") as installation:
        print(installation)
        ours = losses()
    return own, ours


CLIENTS = {
    "doctr": doctr,
    "espnet": espnet,
    "huggingface": huggingface,
    "keras": keras,
    "keras-batch-cost": lambda: keras(by_batch_cost=True),
    "speechbrain": speechbrain,
    "parakeet": parakeet,
    "nemo": lambda: nemo("plain", "warprnnt_numba"),
    "nemo-fused": lambda: nemo("fused", "warprnnt_numba"),
    "nemo-tdt": lambda: nemo("fused", "tdt_pytorch", durations=[0, 1, 2], sigma=0.05),
    "nemo-multiblank": lambda: nemo("fused", "multiblank_rnnt_pytorch", big_blank_durations=[2, 4], sigma=0.05),
    "nemo-hybrid": nemo_hybrid,
    "nemo-hybrid-tdt": lambda: nemo_hybrid(durations=[0, 1, 2], sigma=0.05),
}


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
