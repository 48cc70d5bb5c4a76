"""``tf_seq2seq_losses``: its two losses, and the classes of what they are made of.

The peer's quirks that are kept: the losses take unnormalised scores, the classes log-probabilities ``logprobas``, which
they take for independent; frames behind a sample's own count as blanks of probability 1 in the classes; a
``logit_length`` beyond T is T. Not kept: float32 alone, in logarithms; NaN in the gradient of a frame without any
class; third derivatives that are refused; the memory of the Hessian, O(T²L²) a sample, which ``gamma`` alone still has;
a ``label_length`` beyond L and blanks among the labels, which are errors, or NaN for their sample in a
``tf.function``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import tensorflow as tf

from pathsum.compat.doors import array
from pathsum.tensorflow import ctc_loss as _classic
from pathsum.tensorflow import simple_ctc_loss as _simple


def classic_ctc_loss(labels: Any, logits: Any, label_length: Any, logit_length: Any, blank_index: Any = 0) -> Any:
    """``tf_seq2seq_losses.classic_ctc_loss``.

    Args:
        labels: Labels (N, L).
        logits: Unnormalised scores (N, T, C).
        label_length: Labels of each sample (N,).
        logit_length: Frames of each sample (N,).
        blank_index: Index of the blank class, a number or a tensor whose value is known.

    Returns:
        Losses (N,); infinity, with gradient 0, where a label does not fit in its frames.

    Raises:
        InvalidValueError: As in ``pathsum.tensorflow.ctc_loss``.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat.tf_seq2seq_losses import classic_ctc_loss
        >>> labels, label_length, logit_length = tf.constant([[1, 2, 2, 1]]), tf.constant([4]), tf.constant([5])
        >>> loss = classic_ctc_loss(labels, tf.zeros([1, 5, 3]), label_length, logit_length)
        >>> round(float(loss[0]), 4)  # one of 3**5 labellings
        5.4931
    """
    return _classic(labels, logits, label_length, _at_most_all(logit_length, logits), blank_index)


def simplified_ctc_loss(labels: Any, logits: Any, label_length: Any, logit_length: Any, blank_index: Any = 0) -> Any:
    """``tf_seq2seq_losses.simplified_ctc_loss``: repeats are not merged. Also called ``simple_ctc_loss``.

    Arguments, result and errors are those of ``classic_ctc_loss``.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat.tf_seq2seq_losses import simplified_ctc_loss
        >>> loss = simplified_ctc_loss(tf.constant([[1, 1]]), tf.zeros([1, 3, 2]), tf.constant([2]), tf.constant([3]))
        >>> round(float(tf.exp(-loss[0])), 4)  # 3 of the 8 labellings
        0.375
    """
    return _simple(labels, logits, label_length, _at_most_all(logit_length, logits), blank_index)


simple_ctc_loss = simplified_ctc_loss


class BaseCtcLossData(ABC):
    """What a loss of log-probabilities is made of, each part computed when it is first asked for.

    Args:
        labels: Labels (N, L).
        logprobas: Log-probabilities (N, T, C).
        label_length: Labels of each sample (N,).
        logit_length: Frames of each sample (N,).
        blank_index: Index of the blank class.
        swap_memory: Of no effect.

    A state counts the labels emitted so far, 0 to the longest label's length L'; the classic loss has two of each,
    "closed" behind a blank and "open" behind a label, on one more axis. ``states`` stands for these axes below.
    """

    def __init__(
        self,
        labels: Any,
        logprobas: Any,
        label_length: Any,
        logit_length: Any,
        blank_index: Any,
        swap_memory: bool = False,
    ) -> None:
        self._given = labels, label_length, logit_length, blank_index
        self._logprobas = tf.convert_to_tensor(logprobas)

    _losses: Callable[..., Any]

    @property
    @abstractmethod
    def _first(self) -> Any:
        """(1, states): the log mass before the first frame."""

    @property
    @abstractmethod
    def _last(self) -> Any:
        """(N, states): the log mass behind the last frame."""

    @abstractmethod
    def _advance(self, mass: Any, t: Any) -> Any:
        """Log masses (N, ..., states) that lead to the states, one frame on."""

    @abstractmethod
    def _retreat(self, mass: Any, t: Any) -> Any:
        """Log masses (N, states) that lead on from the states, one frame earlier."""

    def forward_fn(self, logprobas: Any) -> Any:
        """Losses (N,) of log-probabilities, differentiable to any order."""
        labels, label_length, logit_length, blank_index = self._given
        logit_length = _at_most_all(logit_length, logprobas)
        return self._losses(labels, logprobas, label_length, logit_length, blank_index, fused_log_softmax=False)

    def gradient_fn(self, logprobas: Any) -> Any:
        """The gradient (N, T, C) of each loss with respect to its log-probabilities, differentiable."""
        with tf.GradientTape() as tape:
            tape.watch(logprobas)
            losses = self.forward_fn(logprobas)
        return tape.gradient(losses, logprobas)

    @cached_property
    def loss(self) -> Any:
        """(N,)."""
        return self.forward_fn(self._logprobas)

    @cached_property
    def gradient(self) -> Any:
        """(N, T, C), with respect to ``logprobas``."""
        return self.gradient_fn(self._logprobas)

    @cached_property
    def logarithmic_logproba_gradient(self) -> Any:
        """(N, T, C): log(-gradient), the log-posteriors of the classes."""
        return tf.math.log(-self.gradient)

    @cached_property
    def hessian(self) -> Any:
        """(N, T, C, T, C), with respect to ``logprobas``."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(self._logprobas)
            gradient = self.gradient_fn(self._logprobas)
        return tape.batch_jacobian(gradient, self._logprobas, experimental_use_pfor=False)

    @cached_property
    def alpha(self) -> Any:
        """(N, T+1, states): log mass of the frames before t that lead to a state."""
        start = tf.tile(self._first, tf.stack([tf.shape(self._logprobas)[0]] + [1] * (len(self._first.shape) - 1)))
        return _swapped(self._scanned(self._advance, start))

    @cached_property
    def beta(self) -> Any:
        """(N, T+1, states): log mass of the frames from t on that lead from a state to the whole label."""
        return _swapped(self._scanned(self._retreat, self._last, reverse=True))

    @cached_property
    def gamma(self) -> Any:
        """(N, T+1, states, T+1, states): log mass of the frames between two times that lead from state to state.

        O(T²L'²) memory a sample.
        """
        num_samples, num_times = tf.shape(self._logprobas)[0], tf.shape(self._logprobas)[1] + 1
        sizes = tf.shape(self._first)[1:]
        axes = len(self._first.shape) - 1
        ones = [1] * axes
        count = tf.reduce_prod(sizes)
        unit = tf.reshape(tf.eye(count, dtype=self._logprobas.dtype), tf.concat([[1, 1], sizes, sizes], 0))
        unit = tf.math.log(unit)
        first = tf.reshape(tf.range(num_times), [1, -1, *ones, *ones])

        def step(mass: Any, t: Any) -> Any:
            return tf.where(first <= t, self._advance(mass, t), unit)

        masses = self._scanned(step, tf.tile(unit, tf.stack([num_samples, num_times, *ones, *ones])))
        second = tf.reshape(tf.range(num_times), [-1, 1, 1, *ones, *ones])
        masses = tf.where(first <= second, masses, _impossible(masses))
        return tf.transpose(masses, [*range(1, 3 + axes), 0, *range(3 + axes, 3 + 2 * axes)])

    def _scanned(self, step: Callable[..., Any], start: Any, *, reverse: bool = False) -> Any:
        """``start`` and what the steps make of it, by time on a first axis."""
        if self._logprobas.shape[1] == 0:
            return start[None]
        masses = tf.scan(step, tf.range(tf.shape(self._logprobas)[1]), start, reverse=reverse)
        return tf.concat([masses, start[None]] if reverse else [start[None], masses], 0)

    @cached_property
    def _scores(self) -> _Scores:
        return _Scores(self._logprobas, *self._given)


class ClassicCtcLossData(BaseCtcLossData):
    """``tf_seq2seq_losses.classic_ctc_loss.ClassicCtcLossData``; ``states`` are (L'+1, 2), closed and open.

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat.tf_seq2seq_losses import ClassicCtcLossData
        >>> log_probs = tf.math.log(tf.fill([1, 3, 2], 0.5))
        >>> data = ClassicCtcLossData(tf.constant([[1]]), log_probs, tf.constant([1]), tf.constant([3]), 0)
        >>> data.hessian.shape, data.gamma.shape
        (TensorShape([1, 3, 2, 3, 2]), TensorShape([1, 4, 2, 2, 4, 2, 2]))
    """

    _losses = staticmethod(_classic)

    @property
    def _first(self) -> Any:
        counts = self._scores.one_hot(tf.zeros([1], tf.int32))
        return tf.stack([counts, tf.fill(tf.shape(counts), _impossible(counts))], 2)

    @property
    def _last(self) -> Any:
        counts = self._scores.one_hot(self._scores.label_length)
        return tf.stack([counts, counts], 2)

    def _advance(self, mass: Any, t: Any) -> Any:
        blank, enter, stay, apart = self._at(t, len(mass.shape) - 3)
        closed, opened = mass[..., 0], mass[..., 1]
        entered = _shifted(_log_add(closed, opened + apart) + enter)
        return tf.stack([_log_add(closed, opened) + blank, _log_add(opened + stay, entered)], -1)

    def _retreat(self, mass: Any, t: Any) -> Any:
        blank, enter, stay, apart = self._at(t, 0)
        closed, opened = mass[..., 0], mass[..., 1]
        entered = tf.concat([opened[:, 1:], tf.fill(tf.shape(opened[:, :1]), _impossible(opened))], 1) + enter
        by_blank = closed + blank
        return tf.stack([_log_add(by_blank, entered), _log_add(by_blank, opened + stay, entered + apart)], -1)

    def _at(self, t: Any, axes: int) -> tuple[Any, Any, Any, Any]:
        """Scores of one frame, of rank 2 + ``axes``: the blank, the next label, the last label; and 0 where those two
        differ, so that one may follow the other at once.
        """
        scores = self._scores
        planes = scores.blank[:, t, None], scores.next_label[:, t], scores.last_label[:, t], scores.apart
        return tuple(_with_axes(plane, axes) for plane in planes)  # pyright: ignore


class SimplifiedCtcLossData(BaseCtcLossData):
    """``tf_seq2seq_losses.simplified_ctc_loss.SimplifiedCtcLossData``; ``states`` are (L'+1,).

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat.tf_seq2seq_losses import SimplifiedCtcLossData
        >>> log_probs = tf.math.log(tf.fill([1, 3, 2], 0.5))
        >>> data = SimplifiedCtcLossData(tf.constant([[1]]), log_probs, tf.constant([1]), tf.constant([3]), 0)
        >>> tf.exp(data.alpha)[0, 3].numpy().tolist()
        [0.125, 0.375]
    """

    _losses = staticmethod(_simple)

    @property
    def _first(self) -> Any:
        return self._scores.one_hot(tf.zeros([1], tf.int32))

    @property
    def _last(self) -> Any:
        return self._scores.one_hot(self._scores.label_length)

    def _advance(self, mass: Any, t: Any) -> Any:
        planes = self._scores.blank[:, t, None], self._scores.next_label[:, t]
        blank, enter = (_with_axes(plane, len(mass.shape) - 2) for plane in planes)
        return _log_add(mass + blank, _shifted(mass + enter))

    def _retreat(self, mass: Any, t: Any) -> Any:
        following = tf.concat([mass[:, 1:], tf.fill(tf.shape(mass[:, :1]), _impossible(mass))], 1)
        return _log_add(mass + self._scores.blank[:, t, None], following + self._scores.next_label[:, t])


def ctc_loss_from_logproba(
    labels: Any,
    logprobas: Any,
    label_length: Any,
    logit_length: Any,
    blank_index: Any,
    ctc_loss_data_cls: type[BaseCtcLossData],
) -> Any:
    """``tf_seq2seq_losses.base_loss.ctc_loss_from_logproba``: losses (N,) of log-probabilities (N, T, C).

    Example:
        >>> import tensorflow as tf
        >>> from pathsum.compat import tf_seq2seq_losses as compat
        >>> one = tf.constant([1])
        >>> log_probs = tf.math.log(tf.fill([1, 1, 2], 0.5))
        >>> loss = compat.ctc_loss_from_logproba(one[None], log_probs, one, one, 0, compat.ClassicCtcLossData)
        >>> round(float(loss[0]), 4)
        0.6931
    """
    data = ctc_loss_data_cls(labels, logprobas, label_length, logit_length, blank_index)
    return data.forward_fn(logprobas)


def ctc_loss(
    labels: Any,
    logits: Any,
    label_length: Any,
    logit_length: Any,
    blank_index: Any,
    ctc_loss_data_cls: type[BaseCtcLossData],
) -> Any:
    """``tf_seq2seq_losses.base_loss.ctc_loss``: the same of unnormalised scores."""
    return ctc_loss_from_logproba(
        labels, logit_to_logproba(logits, 2), label_length, logit_length, blank_index, ctc_loss_data_cls
    )


def logit_to_logproba(logit: Any, axis: int) -> Any:
    """``tf_seq2seq_losses.tools.logit_to_logproba``: the log-softmax over an axis."""
    return tf.nn.log_softmax(logit, axis)


class _Scores:
    """The scores of the arcs by frame, those of padded frames of a blank that is certain.

    Attributes:
        label_length: (N,)
        blank: (N, T)
        next_label: (N, T, L'+1) of the label that a state waits for; -inf where there is none.
        last_label: (N, T, L'+1) of the label that a state has seen last; -inf where there is none.
        apart: (N, L'+1) 0, or -inf where these two are the same.
    """

    def __init__(self, logprobas: Any, labels: Any, label_length: Any, logit_length: Any, blank_index: Any) -> None:
        self.label_length = tf.cast(label_length, tf.int32)
        impossible, num_classes = _impossible(logprobas), tf.shape(logprobas)[2]
        real = tf.sequence_mask(logit_length, tf.shape(logprobas)[1])[..., None]
        certain = tf.where(tf.range(num_classes) == tf.cast(blank_index, tf.int32), 0, impossible)
        scores = tf.where(real, logprobas, certain)
        self.blank = scores[:, :, blank_index]

        longest = tf.reduce_max(tf.concat([self.label_length, [0]], 0))
        labels = tf.cast(labels, tf.int32)[:, :longest]
        labels = tf.pad(labels, tf.stack([[0, 0], [0, longest + 1 - tf.shape(labels)[1]]]))
        self.next_label = self._of(scores, labels, tf.sequence_mask(self.label_length, longest + 1))
        before = tf.pad(labels, [[0, 0], [1, 0]])[:, :-1]
        has_one = tf.range(longest + 1) > 0
        self.last_label = self._of(scores, before, has_one & tf.sequence_mask(self.label_length + 1, longest + 1))
        self.apart = tf.where((labels != before) | ~has_one, tf.zeros([], logprobas.dtype), impossible)

    def one_hot(self, counts: Any) -> Any:
        """Log masses by number of labels: 1 at the counts."""
        return tf.math.log(tf.one_hot(counts, tf.shape(self.next_label)[2], dtype=self.next_label.dtype))

    @staticmethod
    def _of(scores: Any, labels: Any, real: Any) -> Any:
        labels = tf.where(real, labels, 0)
        return tf.where(real[:, None], tf.gather(scores, labels, axis=2, batch_dims=1), _impossible(scores))


def _at_most_all(logit_length: Any, scores: Any) -> Any:
    """(N,) at most T."""
    lengths = array("ctc_loss", "logit_length", logit_length, tf.convert_to_tensor)
    scores = array("ctc_loss", "logits", scores, tf.convert_to_tensor)
    if not lengths.dtype.is_integer or scores.shape.rank not in (3, None):
        return logit_length  # the loss says what is wrong
    return tf.minimum(lengths, tf.cast(tf.shape(scores)[1], lengths.dtype))


def _log_add(*terms: Any) -> Any:
    """log(sum of exp(term)) of a few tensors."""
    return tf.reduce_logsumexp(tf.stack(terms), 0)


def _impossible(like: Any) -> Any:
    return tf.constant(-math.inf, like.dtype)


def _shifted(mass: Any) -> Any:
    """One state further on, on the last axis."""
    return tf.concat([tf.fill(tf.shape(mass[..., :1]), _impossible(mass)), mass[..., :-1]], -1)


def _with_axes(plane: Any, axes: int) -> Any:
    """(N, L'+1) as (N, 1, ..., 1, L'+1)."""
    sizes = tf.shape(plane)
    return tf.reshape(plane, tf.concat([sizes[:1], [1] * axes, sizes[1:]], 0))


def _swapped(masses: Any) -> Any:
    """Samples first, times second."""
    return tf.transpose(masses, [1, 0, *range(2, len(masses.shape))])


PLACES = {
    "tf_seq2seq_losses": {"classic_ctc_loss": classic_ctc_loss, "simplified_ctc_loss": simplified_ctc_loss},
    "tf_seq2seq_losses.classic_ctc_loss": {
        "classic_ctc_loss": classic_ctc_loss,
        "ClassicCtcLossData": ClassicCtcLossData,
    },
    "tf_seq2seq_losses.simplified_ctc_loss": {
        "simplified_ctc_loss": simplified_ctc_loss,
        "SimplifiedCtcLossData": SimplifiedCtcLossData,
    },
    "tf_seq2seq_losses.base_loss": {
        "BaseCtcLossData": BaseCtcLossData,
        "ctc_loss": ctc_loss,
        "ctc_loss_from_logproba": ctc_loss_from_logproba,
    },
}
HELPERS = {"tf_seq2seq_losses.tools": {"logit_to_logproba": logit_to_logproba}}
