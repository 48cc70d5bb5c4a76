"""``keras.losses.CTC`` and ``ctc``, ``keras.ops.ctc_loss``, on Keras 3 with any backend: TensorFlow, JAX or torch.

The peer's quirks that are kept: class 0 is the blank and the padding of labels, whose length is the number of entries
that are not 0; all frames are a sample's own; half precision has its loss in float32. Not kept: a finite number, which
differs from backend to backend, for a label that does not fit in its frames; float64 computed in float32.

A model that was saved with these losses is loaded where this module has been imported. ``install("keras")`` puts them
behind their names as well: ``model.compile(loss="ctc")``.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="pathsum")
class CTC(keras.losses.Loss):
    """``keras.losses.CTC``, to be given to ``model.compile``.

    Args:
        reduction: As in Keras: ``"sum_over_batch_size"``, ``"sum"``, ``"mean"``, ``None``, ...
        name: Name of the loss.
        dtype: Dtype of the scores that the loss is given; ``keras.config.floatx()`` where ``None``.
        zero_infinity: Make the loss of a sample whose label does not fit in its frames 0 instead of infinity; its
            gradient is 0 either way.
        impl: As in the backend's ``pathsum`` functions. On a CPU with TensorFlow the compiled kernels run where
            ``model.compile`` is told ``jit_compile=False``; left to itself Keras has XLA compile the training step.

    Example:
        >>> import keras, numpy as np
        >>> from pathsum.compat.keras import CTC
        >>> loss = CTC(reduction="sum")(np.array([[1, 0]]), np.zeros((1, 3, 2), np.float32))
        >>> round(float(keras.ops.exp(loss)), 4)  # 6 of the 8 labellings read as the label
        1.3333
    """

    def __init__(
        self,
        reduction: Any = "sum_over_batch_size",
        name: str = "ctc",
        dtype: Any = None,
        *,
        zero_infinity: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.zero_infinity = zero_infinity
        self.impl = impl

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ctc(y_true, y_pred, zero_infinity=self.zero_infinity, impl=self.impl)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "zero_infinity": self.zero_infinity, "impl": self.impl}


@keras.saving.register_keras_serializable(package="pathsum")
def ctc(y_true: Any, y_pred: Any, *, zero_infinity: bool = False, impl: str = "auto") -> Any:
    """``keras.losses.ctc``: losses (N,) of labels (N, L), 0 where padded, and logits (N, T, C).

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.keras import ctc
        >>> round(float(ctc(np.array([[1, 2]]), np.zeros((1, 2, 3), np.float32))[0]), 4)
        2.1972
    """
    labels, sizes = ops.cast(y_true, "int32"), ops.shape(y_pred)
    label_length = ops.sum(ops.cast(labels != 0, "int32"), axis=-1)
    logit_length = sizes[1] * ops.ones((sizes[0],), dtype="int32")  # pyright: ignore
    return ctc_loss(labels, y_pred, label_length, logit_length, zero_infinity=zero_infinity, impl=impl)


def ctc_loss(
    target: Any,
    output: Any,
    target_length: Any,
    output_length: Any,
    mask_index: int = 0,
    *,
    zero_infinity: bool = False,
    impl: str = "auto",
) -> Any:
    """``keras.ops.ctc_loss``: losses (N,) of labels (N, L) and logits (N, T, C).

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.keras import ctc_loss
        >>> loss = ctc_loss(np.array([[1, 2]]), np.zeros((1, 2, 3), np.float32), np.array([2]), np.array([2]))
        >>> round(float(loss[0]), 4)
        2.1972
    """
    logits: Any = ops.convert_to_tensor(output)
    integers: list[Any] = [ops.cast(array, "int32") for array in (target, target_length, output_length)]
    labels, label_length, logit_length = integers
    options: dict[str, Any] = {"zero_infinity": zero_infinity, "impl": impl}
    backend = keras.config.backend()
    if backend == "tensorflow":
        from pathsum import tensorflow

        return tensorflow.ctc_loss(labels, logits, label_length, logit_length, mask_index, **options)
    if backend == "jax":
        from pathsum import jax

        return jax.ctc_loss(logits, labels, logit_length, label_length, blank=mask_index, **options)
    if backend == "torch":
        from pathsum import torch

        return torch.ctc_loss(
            logits, labels, logit_length, label_length, mask_index, "none", fused_log_softmax=True, batch_first=True,
            **options,
        )  # fmt: skip
    raise ValueError(f"ctc_loss: Keras must have the backend tensorflow, jax or torch; got {backend}")


_LOSSES, _OPERATIONS = {"CTC": CTC, "ctc": ctc}, {"ctc_loss": ctc_loss}
PLACES = {
    "keras.losses": _LOSSES,
    "keras.ops": _OPERATIONS,
    # tf.keras
    "keras._tf_keras.keras.losses": _LOSSES,
    "keras._tf_keras.keras.ops": _OPERATIONS,
    # What keras.losses.get, and so model.compile, finds names in.
    "keras.src.losses.ALL_OBJECTS_DICT": _LOSSES,
}
