"""A client of a CTC loss for JAX with optax's signature: a small model in plain JAX, trained a few steps."""

import numpy as np

STEPS, RATE = 8, 0.05
NUM_SAMPLES, NUM_FRAMES, NUM_FEATURES, NUM_HIDDEN, NUM_CLASSES = 3, 12, 5, 8, 6


def train(ctc_loss):
    """The losses of plain gradient descent on one batch, before each step."""
    import jax
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    features = random.standard_normal((NUM_SAMPLES, NUM_FRAMES, NUM_FEATURES)).astype(np.float32)
    labels = random.integers(1, NUM_CLASSES, (NUM_SAMPLES, 4))
    frame_paddings = (np.arange(NUM_FRAMES) >= np.array([[12], [9], [10]])).astype(np.float32)
    label_paddings = (np.arange(4) >= np.array([[4], [2], [3]])).astype(np.float32)
    shapes = {"hidden": (NUM_FEATURES, NUM_HIDDEN), "output": (NUM_HIDDEN, NUM_CLASSES)}
    weights = {name: jnp.asarray(0.3 * random.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}

    def loss_of(weights):
        logits = jnp.tanh(features @ weights["hidden"]) @ weights["output"]
        return ctc_loss(logits, frame_paddings, labels, label_paddings).mean()

    step = jax.jit(jax.value_and_grad(loss_of))
    losses = []
    for _ in range(STEPS):
        loss, gradient = step(weights)
        losses.append(float(loss))
        weights = {name: weight - RATE * gradient[name] for name, weight in weights.items()}
    return losses
