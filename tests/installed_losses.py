"""A loss of each family, as a function of its scores in float64, with value, gradient and Hessian-vector product."""

from __future__ import annotations

from typing import Any

import numpy as np

LABELS = np.array([[1, 2, 2], [3, 1, 1]])
# ASG cannot tell two equal neighbours from one label.
ASG_LABELS = np.array([[1, 2, 1], [3, 1, 0]])
FRAMES, SIZES = np.array([6, 5]), np.array([3, 2])
TRANSITIONS = np.linspace(-1, 1, 16).reshape(4, 4)


def families(front_end: str) -> Any:
    """``(name, shape of the scores, loss, derivatives)``."""
    return {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[front_end]()


def _torch():
    import torch

    from pathsum import torch as losses

    integers = [torch.from_numpy(array) for array in (LABELS, FRAMES, SIZES)]
    asg_labels, frames, sizes = torch.from_numpy(ASG_LABELS), *integers[1:]

    def derivatives(loss, x, v):
        scores = torch.from_numpy(x).requires_grad_()
        value = loss(scores)
        (gradient,) = torch.autograd.grad(value, scores, create_graph=True)
        (product,) = torch.autograd.grad(gradient, scores, torch.from_numpy(v))
        return value.item(), gradient.detach().numpy(), product.numpy()

    def joint(encoder):
        predictor = torch.linspace(-1, 1, 2 * 4 * 3, dtype=torch.float64).view(2, 4, 3)
        weight = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
        return losses.rnnt_joint_loss(encoder, predictor, weight, None, *integers, blank=0)

    def tdt(x):
        return losses.tdt_loss(x[..., :4].contiguous(), x[..., 4:].contiguous(), *integers, [0, 1], blank=0)

    table = torch.from_numpy(TRANSITIONS)
    return [
        ("ctc_loss", (6, 2, 4), lambda x: losses.ctc_loss(x, *integers, fused_log_softmax=True), derivatives),
        (
            "simple_ctc_loss",
            (6, 2, 4),
            lambda x: losses.simple_ctc_loss(x, *integers, fused_log_softmax=True),
            derivatives,
        ),
        (
            "asg_loss",
            (6, 2, 4),
            lambda x: losses.asg_loss(x, asg_labels, table, frames, sizes),
            derivatives,
        ),
        ("rnnt_loss", (2, 6, 4, 4), lambda x: losses.rnnt_loss(x, *integers, blank=0), derivatives),
        ("rnnt_joint_loss", (2, 6, 3), joint, derivatives),
        ("tdt_loss", (2, 6, 4, 6), tdt, derivatives),
        (
            "multi_blank_rnnt_loss",
            (2, 6, 4, 5),
            lambda x: losses.multi_blank_rnnt_loss(x, *integers, [2], [4], blank=0),
            derivatives,
        ),
    ]


def _jax():
    import jax

    from pathsum import jax as losses

    jax.config.update("jax_enable_x64", True)

    def derivatives(loss, x, v):
        value, gradient = jax.value_and_grad(loss)(x)
        _, product = jax.jvp(jax.grad(loss), (x,), (v,))
        return float(value), np.asarray(gradient), np.asarray(product)

    integers = LABELS, FRAMES, SIZES
    return [
        ("ctc_loss", (2, 6, 4), lambda x: losses.ctc_loss(x, *integers).sum(), derivatives),
        ("simple_ctc_loss", (2, 6, 4), lambda x: losses.simple_ctc_loss(x, *integers).sum(), derivatives),
        (
            "asg_loss",
            (2, 6, 4),
            lambda x: losses.asg_loss(x, ASG_LABELS, TRANSITIONS, FRAMES, SIZES).sum(),
            derivatives,
        ),
        ("rnnt_loss", (2, 6, 4, 4), lambda x: losses.rnnt_loss(x, *integers, blank=0).sum(), derivatives),
    ]


def _tensorflow():
    import tensorflow as tf

    from pathsum import tensorflow as losses

    def derivatives(loss, x, v):
        scores, tangent = tf.constant(x), tf.constant(v)
        with tf.GradientTape() as outer:
            outer.watch(scores)
            with tf.GradientTape() as inner:
                inner.watch(scores)
                value = tf.reduce_sum(loss(scores))
            gradient = inner.gradient(value, scores)
            slope = tf.reduce_sum(gradient * tangent)
        return float(value), gradient.numpy(), outer.gradient(slope, scores).numpy()

    table = tf.constant(TRANSITIONS)
    sizes = {"label_length": SIZES, "logit_length": FRAMES}
    return [
        ("ctc_loss", (2, 6, 4), lambda x: losses.ctc_loss(LABELS, x, **sizes), derivatives),
        ("simple_ctc_loss", (2, 6, 4), lambda x: losses.simple_ctc_loss(LABELS, x, **sizes), derivatives),
        (
            "asg_loss",
            (2, 6, 4),
            lambda x: losses.asg_loss(ASG_LABELS, x, table, **sizes),
            derivatives,
        ),
        ("rnnt_loss", (2, 6, 4, 4), lambda x: losses.rnnt_loss(LABELS, x, **sizes, blank_index=0), derivatives),
    ]
