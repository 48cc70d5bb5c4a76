"""Train a few steps of a Flax model by optax's CTC loss, as it is and with ``pathsum.compat`` installed.

``python train_flax.py``; needs flax and optax. Nothing is downloaded. A bidirectional recurrent encoder as a recogniser
of speech has, small and random; Adam; lengths differ. Prints the losses of both and their largest relative difference.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from pathsum.compat import install

STEPS = 8
NUM_SAMPLES, NUM_FRAMES, NUM_FEATURES, NUM_LABELS, NUM_CLASSES = 4, 60, 13, 12, 20


class Encoder(linen.Module):
    @linen.compact
    def __call__(self, features):
        recurrent = [linen.RNN(linen.GRUCell(32)), linen.RNN(linen.GRUCell(32), reverse=True, keep_order=True)]
        hidden = linen.relu(linen.Dense(32)(features))
        return linen.Dense(NUM_CLASSES)(jnp.concatenate([layer(hidden) for layer in recurrent], -1))


def train():
    """The losses of a few steps on one batch, before each."""
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (NUM_SAMPLES, NUM_FRAMES, NUM_FEATURES))
    labels = jax.random.randint(keys[1], (NUM_SAMPLES, NUM_LABELS), 1, NUM_CLASSES)
    frame_paddings = jnp.arange(NUM_FRAMES) >= jnp.array([[60], [50], [40], [55]])
    label_paddings = jnp.arange(NUM_LABELS) >= jnp.array([[12], [9], [7], [12]])
    model, optimizer = Encoder(), optax.adam(3e-3)
    parameters = model.init(keys[2], features)
    state = optimizer.init(parameters)

    def loss_of(parameters):
        logits = model.apply(parameters, features)
        return optax.ctc_loss(logits, frame_paddings.astype(float), labels, label_paddings.astype(float)).mean()

    @jax.jit
    def step(parameters, state):
        loss, gradient = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradient, state)
        return loss, optax.apply_updates(parameters, updates), state

    losses = []
    for _ in range(STEPS):
        loss, parameters, state = step(parameters, state)
        losses.append(float(loss))
    return losses


def main():
    own = train()
    with install("optax") as installation:
        print(installation)
        ours = train()
    print(f"{'step':>4}{'without':>14}{'with':>14}")
    for step, losses in enumerate(zip(own, ours, strict=True)):
        print(f"{step:4}" + "".join(f"{loss:14.6f}" for loss in losses))
    worst = max(abs(a - b) / abs(a) for a, b in zip(own, ours, strict=True))
    print(f"largest relative difference {worst:.1e}; the loss fell from {own[0]:.4f} to {own[-1]:.4f}")
    return int(worst > 1e-4 or own[-1] >= own[0])


if __name__ == "__main__":
    raise SystemExit(main())
