"""``tf.nn.ctc_loss``, of dense and of sparse labels.

The peer's quirks that are kept: scores come frames first; the blank is class 0 for dense labels, and has to be given
with sparse ones, which have their own lengths; half precision has its loss in half precision. Not kept: where a label
does not fit in its frames, the peer stops (sparse labels) or has a large finite loss (dense labels), and here the loss
is infinite with gradient 0; there float64 is refused with dense labels, and an empty label with sparse ones; ``unique``
saves memory there, has nothing to save here, and is not read.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from pathsum.compat.doors import array, checked
from pathsum.errors import InvalidValueError
from pathsum.options import TensorFlowImpl
from pathsum.tensorflow import ctc_loss as _ctc_loss


@checked
def ctc_loss(
    labels: Any,
    logits: Any,
    label_length: Any,
    logit_length: Any,
    logits_time_major: bool = True,
    unique: Any = None,
    blank_index: int | None = None,
    name: str | None = None,
    *,
    impl: TensorFlowImpl = "auto",
) -> Any:
    """``tf.nn.ctc_loss``.

    Args:
        labels: Labels (N, L), or a ``tf.SparseTensor`` of that shape, whose rows are the labels of the samples.
        logits: Unnormalised scores (T, N, C), or (N, T, C) without ``logits_time_major``.
        label_length: Labels of each sample (N,); not read where labels are sparse.
        logit_length: Frames of each sample (N,).
        logits_time_major: Whether frames come first.
        unique: Not read.
        blank_index: Index of the blank class; negative counts from the end. 0 where ``None``.
        name: A name for the operations.
        impl: As in ``pathsum.tensorflow.ctc_loss``.

    Returns:
        Losses (N,), in the dtype of ``logits``.

    Raises:
        InvalidValueError: No ``blank_index`` beside sparse labels; also as in ``pathsum.tensorflow.ctc_loss``.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat.tensorflow import ctc_loss
        >>> logits, lengths = tf.zeros([3, 1, 2]), tf.constant([3])  # 3 frames, 1 sample, blank and one label
        >>> round(float(tf.exp(ctc_loss([[1]], logits, [1], lengths)[0])), 4)  # 6 of the 8 labellings read as it
        1.3333
        >>> labels = tf.sparse.from_dense([[1]])
        >>> round(float(tf.exp(ctc_loss(labels, logits, None, lengths, blank_index=0)[0])), 4)
        1.3333
    """
    with tf.name_scope(name or "ctc_loss"):
        scores = array("ctc_loss", "logits", logits, tf.convert_to_tensor)
        if scores.shape.rank not in (3, None):
            axes = "(T, N, C)" if logits_time_major else "(N, T, C)"
            raise InvalidValueError("ctc_loss", "logits", f"have shape {axes}", f"shape {scores.shape}")
        if isinstance(labels, tf.SparseTensor):
            if blank_index is None:
                raise InvalidValueError("ctc_loss", "blank_index", "be given where labels are sparse", None)
            ordered = tf.sparse.reorder(labels)
            samples = ordered.indices[:, 0]
            labels = tf.RaggedTensor.from_value_rowids(  # pyright: ignore[reportAttributeAccessIssue]
                ordered.values, samples, ordered.dense_shape[0]
            )
            label_length = None
        losses = _ctc_loss(
            labels,
            tf.transpose(scores, [1, 0, 2]) if logits_time_major else scores,
            label_length,
            logit_length,
            blank_index or 0,
            impl=impl,
        )
        return tf.cast(losses, scores.dtype)


PLACES: dict[str, dict[str, Any]] = {"tensorflow.nn": {"ctc_loss": ctc_loss}}
