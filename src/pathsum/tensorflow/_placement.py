"""Where operations being built will run, as far as that is known then."""

from __future__ import annotations

from functools import cache
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # pyright: ignore
from tensorflow.python.saved_model.save_context import in_save_context  # pyright: ignore


def device_type(tensor: Any) -> str:
    """``"cpu"``, ``"gpu"`` or another; in a graph that of the only kind of device there is, or that asked for."""
    place = tensor.device
    if place:
        return _type_in(place)
    return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"


@cache
def _type_in(place: str) -> str:
    return tf.DeviceSpec.from_string(place).device_type.lower()


def can_call_back() -> bool:
    """Whether what is being built can call functions of this process: not a program of XLA's, nor a saved model."""
    if tf.executing_eagerly():
        return True
    # TensorFlow has no public word for either.
    return not in_save_context() and not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
