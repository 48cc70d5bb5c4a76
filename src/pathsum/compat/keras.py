"""``keras.losses.CTC`` and ``ctc``, ``keras.ops.ctc_loss``, on Keras 3 with any backend: TensorFlow, JAX or torch.

So is ``keras.backend.ctc_batch_cost``, which Keras 2 had and ``tf.keras.backend`` still has: its ``y_pred`` are
probabilities and its blank is the last class. It is put in ``keras.backend`` too, and in ``tf_keras.backend``.

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

from pathsum.compat.doors import array, checked
from pathsum.errors import InvalidTypeError, InvalidValueError


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
        >>> round(np.asarray(keras.ops.exp(loss)).item(), 4)  # 6 of the 8 labellings read as the label
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
@checked
def ctc(y_true: Any, y_pred: Any, *, zero_infinity: bool = False, impl: str = "auto") -> Any:
    """``keras.losses.ctc``: losses (N,) of labels (N, L), 0 where padded, and logits (N, T, C).

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.keras import ctc
        >>> round(float(ctc(np.array([[1, 2]]), np.zeros((1, 2, 3), np.float32))[0]), 4)
        2.1972
    """
    labels = ops.cast(_numbers("ctc", "y_true", y_true, "(N, L)"), "int32")
    sizes = ops.shape(_numbers("ctc", "y_pred", y_pred, "(N, T, C)"))
    label_length = ops.sum(ops.cast(labels != 0, "int32"), axis=-1)
    logit_length = sizes[1] * ops.ones((sizes[0],), dtype="int32")  # pyright: ignore
    return ctc_loss(labels, y_pred, label_length, logit_length, zero_infinity=zero_infinity, impl=impl)


@checked
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
    logits = _numbers("ctc_loss", "output", output, "(N, T, C)")
    given = (
        ("target", target, "(N, L)"),
        ("target_length", target_length, "(N)"),
        ("output_length", output_length, "(N)"),
    )
    integers: list[Any] = [ops.cast(_numbers("ctc_loss", *argument), "int32") for argument in given]
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


@checked
def ctc_batch_cost(y_true: Any, y_pred: Any, input_length: Any, label_length: Any, *, impl: str = "auto") -> Any:
    """``keras.backend.ctc_batch_cost``: losses (N, 1) of labels and of what a softmax gave.

    Args:
        y_true: Labels (N, L), of any dtype.
        y_pred: Probabilities (N, T, C), the blank's in the last class. ``keras.config.epsilon()`` is added to them, and
            each frame's sum is made 1 again.
        input_length: Frames of each sample (N, 1).
        label_length: Labels of each sample (N, 1).
        impl: As in the backend's ``pathsum`` functions.

    Returns:
        Losses (N, 1); infinity, with gradient 0, where the peer stops because a label does not fit in its frames.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.keras import ctc_batch_cost
        >>> probabilities = np.full((1, 3, 2), 0.5, np.float32)  # 3 frames, one label and the blank
        >>> loss = ctc_batch_cost(np.array([[0]]), probabilities, np.array([[3]]), np.array([[1]]))
        >>> [round(float(x), 4) for x in loss[0]]  # 6 of the 8 labellings read as the label
        [0.2877]
    """
    function = "ctc_batch_cost"
    probabilities = _numbers(function, "y_pred", y_pred, "(N, T, C)", ("float", "bfloat"))
    label_length = _numbers(function, "label_length", label_length, "(N, 1)")
    input_length = _numbers(function, "input_length", input_length, "(N, 1)")
    scores: Any = ops.log(probabilities + keras.config.epsilon())
    label_length, input_length = (ops.squeeze(lengths, axis=-1) for lengths in (label_length, input_length))
    losses = ctc_loss(y_true, scores, label_length, input_length, scores.shape[-1] - 1, impl=impl)
    return ops.expand_dims(losses, 1)


_REAL = ("int", "uint", "float", "bfloat", "bool")


def _numbers(function: str, argument: str, value: Any, axes: str, kinds: tuple[str, ...] = _REAL) -> Any:
    """A tensor of real numbers of so many axes, whose dtype begins as one of the kinds."""
    found: Any = array(function, argument, value, ops.convert_to_tensor)
    if not keras.backend.standardize_dtype(found.dtype).startswith(kinds):
        raise InvalidTypeError(function, argument, f"have a dtype of {', '.join(kinds)}", found.dtype)
    shape: Any = found.shape
    if getattr(shape, "rank", shape) is None:
        return found  # of a rank that only a running graph knows
    if len(shape) != axes.count(",") + 1 or (axes.endswith("1)") and shape[-1] not in (1, None)):
        raise InvalidValueError(function, argument, f"have shape {axes}", f"shape {tuple(shape)}")
    return found


_LOSSES, _OPERATIONS, _BACKEND = {"CTC": CTC, "ctc": ctc}, {"ctc_loss": ctc_loss}, {"ctc_batch_cost": ctc_batch_cost}
PLACES = {
    "keras.losses": _LOSSES,
    "keras.ops": _OPERATIONS,
    "keras.backend": _BACKEND,
    # tf.keras
    "keras._tf_keras.keras.losses": _LOSSES,
    "keras._tf_keras.keras.ops": _OPERATIONS,
    "keras._tf_keras.keras.backend": _BACKEND,
    # Keras 2, where it is beside Keras 3.
    "tf_keras.backend": _BACKEND,
    # What keras.losses.get, and so model.compile, finds names in.
    "keras.src.losses.ALL_OBJECTS_DICT": _LOSSES,
}
