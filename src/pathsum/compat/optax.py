"""``optax.ctc_loss`` and ``optax.ctc_loss_with_forward_probs``.

The peer's quirks that are kept: what is impossible has the log-probability ``log_epsilon``, so that a target which does
not fit its frames has a loss of about ``-log_epsilon``, with a gradient, and no loss is much above that; a label out of
range is emitted with probability 1; the blank may be among the labels; padded frames may lie between others. With
``corrected=True`` only the last is. Not kept: scores of -inf give NaN there; half precision is computed in half
precision, float32 beside 64-bit numbers in float64; no frames, no samples and a blank of -1 raise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathsum import jax as pathsum_jax
from pathsum.compat.doors import array, checked
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.jax.extended import varying_as
from pathsum.kernels.jax.rows import work_dtype
from pathsum.options import JAXImpl

Array = jax.Array

# What paths over impossible arcs may add to a loss this far below -log_epsilon is nothing in float64.
_MARGIN = 80.0


class _Options(NamedTuple):
    """What a program is compiled for."""

    num_classes: int
    blank: int
    corrected: bool
    impl: JAXImpl


class _Batch(NamedTuple):
    """Which frames are real (N, T), labels (N, S), their number (N,), and the log of what is impossible."""

    real: Array
    labels: Array
    lengths: Array
    log_epsilon: Array


@checked
def ctc_loss(
    logits: jax.typing.ArrayLike,
    logit_paddings: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    label_paddings: jax.typing.ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: jax.typing.ArrayLike = -1e5,
    corrected: bool = False,
    impl: JAXImpl = "auto",
) -> Array:
    """``optax.ctc_loss``.

    Args:
        logits: Unnormalised scores (N, T, C).
        logit_paddings: 1 for each padded frame (N, T), 0 for the others.
        labels: Labels (N, S).
        label_paddings: 1 for each padded label (N, S), 0 for those in front of them.
        blank_id: Index of the blank class; negative counts from the end.
        log_epsilon: Log-probability of what is impossible.
        corrected: What is impossible is so: a target that does not fit its frames has loss infinity and gradient 0, and
            losses have no bound. A label that is out of range or the blank gives its sample NaN.
        impl: As in ``pathsum.jax.ctc_loss``.

    Returns:
        Losses (N,).

    Raises:
        InvalidValueError: (a ValueError) shapes that do not match, a blank out of range.
        InvalidTypeError: (a TypeError) logits that are no floats.

    Notes:
        The losses are those of ``pathsum.jax.ctc_loss``. A batch with a sample for which these are not the peer's runs
        the peer's recursion too, for that sample, in logarithms and by JAX's operations, at the peer's cost.

    Example:
        >>> import jax.numpy as jnp
        >>> from pathsum.compat.optax import ctc_loss
        >>> arguments = jnp.zeros((1, 3, 2)), jnp.zeros((1, 3)), jnp.array([[1]]), jnp.zeros((1, 1))
        >>> round(float(ctc_loss(*arguments)[0]), 4)  # 6 of the 8 labellings read as the target
        0.2877
    """
    scores, batch = _inputs("ctc_loss", logits, logit_paddings, labels, label_paddings, log_epsilon, corrected)
    return _compiled_losses(_options("ctc_loss", scores, blank_id, corrected, impl), scores, batch)


@checked
def ctc_loss_with_forward_probs(
    logits: jax.typing.ArrayLike,
    logit_paddings: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    label_paddings: jax.typing.ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: jax.typing.ArrayLike = -1e5,
    corrected: bool = False,
    impl: JAXImpl = "auto",
) -> tuple[Array, Array, Array]:
    """``optax.ctc_loss_with_forward_probs``.

    Args:
        logits: As in ``ctc_loss``.
        logit_paddings: As in ``ctc_loss``.
        labels: As in ``ctc_loss``.
        label_paddings: As in ``ctc_loss``.
        blank_id: As in ``ctc_loss``.
        log_epsilon: As in ``ctc_loss``.
        corrected: As in ``ctc_loss``; log-probabilities of what is impossible are -inf.
        impl: As in ``ctc_loss``, of the losses.

    Returns:
        Losses (N,), and the logs of the forward probabilities: of all paths through frame t that end in the blank
        behind s labels (T, N, S+1), and of those that end in label s (T, N, S). In the last frame the former count
        those of label s-1 too.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        The forward probabilities are the peer's recursion in logarithms, whose error grows with the number of frames.
        Where they are not used, a compiled program does not compute them.

    Example:
        >>> import jax.numpy as jnp
        >>> from pathsum.compat.optax import ctc_loss_with_forward_probs
        >>> arguments = jnp.zeros((1, 3, 2)), jnp.zeros((1, 3)), jnp.array([[1]]), jnp.zeros((1, 1))
        >>> loss, blank, label = ctc_loss_with_forward_probs(*arguments)
        >>> bool(jnp.isclose(loss[0], -blank[-1, 0, 1])), blank.shape, label.shape
        (True, (3, 1, 2), (3, 1, 1))
    """
    function = "ctc_loss_with_forward_probs"
    scores, batch = _inputs(function, logits, logit_paddings, labels, label_paddings, log_epsilon, corrected)
    options = _options(function, scores, blank_id, corrected, impl)
    return _compiled_losses(options, scores, batch), *_compiled_forward_probs(options, batch, scores)


def _inputs(
    function: str, logits: Any, logit_paddings: Any, labels: Any, label_paddings: Any, log_epsilon: Any, corrected: bool
) -> tuple[Array, _Batch]:
    scores, paddings, labels, label_paddings, log_epsilon = (
        array(function, name, value, jnp.asarray)
        for name, value in (
            ("logits", logits),
            ("logit_paddings", logit_paddings),
            ("labels", labels),
            ("label_paddings", label_paddings),
            ("log_epsilon", log_epsilon),
        )
    )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise InvalidTypeError(function, "logits", "be floats", scores.dtype.name)
    if scores.ndim != 3:
        raise InvalidValueError(function, "logits", "have shape (N, T, C)", f"shape {scores.shape}")
    if labels.ndim != 2 or len(labels) != len(scores):
        raise InvalidValueError(
            function, "labels", f"have shape (N, S) with N = {len(scores)}", f"shape {labels.shape}"
        )
    if label_paddings.shape != labels.shape:
        raise InvalidValueError(function, "label_paddings", f"have shape {labels.shape}", label_paddings.shape)
    if paddings.shape != scores.shape[:2]:
        raise InvalidValueError(function, "logit_paddings", f"have shape {scores.shape[:2]}", paddings.shape)
    if log_epsilon.ndim or jnp.iscomplexobj(log_epsilon):
        raise InvalidValueError(function, "log_epsilon", "be a number", f"shape {log_epsilon.shape}")
    lengths = (label_paddings == 0).sum(1)
    epsilon = jnp.asarray(-jnp.inf if corrected else log_epsilon, work_dtype(scores))
    return scores, _Batch(paddings == 0, labels.astype(jnp.int32), lengths.astype(jnp.int32), epsilon)


def _options(function: str, scores: Array, blank: int, corrected: bool, impl: JAXImpl) -> _Options:
    num_classes = scores.shape[2]
    if not -num_classes <= blank < num_classes:
        raise InvalidValueError(function, "blank_id", f"lie in [-C, C) with C = {num_classes}", blank)
    return _Options(num_classes, blank % num_classes, corrected, impl)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _losses(options: _Options, logits: Array, batch: _Batch) -> Array:
    return _answers(lambda loss: (loss(logits),), options, batch)[0]


@_losses.defjvp
def _(options: _Options, primals: Any, tangents: Any) -> tuple[Array, Array]:
    logits, batch = primals

    def with_gradient(loss: Callable[[Array], Array]) -> tuple[Array, Array]:
        losses, pull = jax.vjp(loss, logits)
        return losses, pull(jnp.ones_like(losses))[0]

    losses, gradient = _answers(with_gradient, options, batch)
    # Where the gradient is 0, an infinite change of the scores has no part in the loss.
    changes = jnp.where(gradient == 0, 0, gradient.astype(losses.dtype) * tangents[0].astype(losses.dtype))
    return losses, changes.sum((1, 2))


def _answers(compute: Callable[[Callable[[Array], Array]], Any], options: _Options, batch: _Batch) -> Any:
    """What is computed from the losses as a function of the logits, the losses first: by the kernels for the samples
    whose loss by them is the peer's, in another way for the others.
    """
    same = _same_problem(options, batch)
    found = compute(partial(_by_kernels, options, batch._replace(lengths=jnp.where(same, batch.lengths, 0))))
    other = ~same | (found[0] > -batch.log_epsilon - _MARGIN)
    in_another_way = _without_gaps if options.corrected else _by_recursion

    def mended() -> Any:
        return jax.tree.map(
            lambda own, peer: jnp.where(other.reshape(-1, *[1] * (own.ndim - 1)), peer, own),
            found,
            compute(partial(in_another_way, options, batch)),
        )

    return lax.cond(other.any(), mended, lambda: found)


def _same_problem(options: _Options, batch: _Batch) -> Array:
    """Whether the kernels solve the peer's problem (N,)."""
    without_gaps = (batch.real[:, :-1] >= batch.real[:, 1:]).all(1)
    if options.corrected:
        return without_gaps
    used = jnp.arange(batch.labels.shape[1]) < batch.lengths[:, None]
    known = (batch.labels >= 0) & (batch.labels < options.num_classes) & (batch.labels != options.blank)
    return without_gaps & (known | ~used).all(1)


def _by_kernels(options: _Options, batch: _Batch, logits: Array) -> Array:
    """Losses (N,), the real frames being the first."""
    return pathsum_jax.ctc_loss(
        logits,
        batch.labels,
        batch.real.sum(1, dtype=jnp.int32),
        batch.lengths,
        blank=options.blank,
        impl=options.impl,
    )


def _without_gaps(options: _Options, batch: _Batch, logits: Array) -> Array:
    order = jnp.argsort(~batch.real, axis=1, stable=True)
    return _by_kernels(options, batch, jnp.take_along_axis(logits, order[:, :, None], 1))


def _by_recursion(options: _Options, batch: _Batch, logits: Array) -> Array:
    """Losses (N,) by the peer's recursion."""
    last, _ = _scan(options, batch, logits)
    return -jnp.take_along_axis(last, batch.lengths[:, None], 1)[:, 0]


def _forward_probs(options: _Options, batch: _Batch, logits: Array) -> tuple[Array, Array]:
    """The logs of the forward probabilities, of the blanks (T, N, S+1) and of the labels (T, N, S)."""
    last, (blanks, labels) = _scan(options, batch, logits)
    return jnp.concatenate([blanks[:-1], last[None]])[: len(blanks)], labels


def _scan(options: _Options, batch: _Batch, logits: Array) -> tuple[Array, tuple[Array, Array]]:
    """Log-probabilities of all paths that end behind s labels (N, S+1), and those of each frame's ends."""
    num_labels = batch.labels.shape[1]
    impossible = batch.log_epsilon
    repeated = jnp.pad(batch.labels[:, :-1] == batch.labels[:, 1:], ((0, 0), (0, min(num_labels, 1))))
    # Between two labels that are the same there is a blank; else the way past the blank counts the way through it too.
    past, through = jnp.where(repeated, impossible, 0), jnp.where(repeated, 0, impossible)

    def advance(before: tuple[Array, Array], frame: tuple[Array, Array, Array]) -> Any:
        blanks, labels = before
        log_blank, log_labels, real = frame
        ready = _entered(blanks, labels + past)
        after = (
            _entered(ready + log_blank, labels + log_blank + through),
            _log_add(ready[:, :-1], labels) + log_labels,
        )
        ends = tuple(jnp.where(real, new, old) for new, old in zip(after, before, strict=True))
        return ends, ends

    frames = _frames(options, batch, logits)
    start = jnp.where(jnp.arange(num_labels + 1) == 0, 0, impossible)
    first = varying_as(tuple(jnp.broadcast_to(ends, (len(logits), len(ends))) for ends in (start, start[1:])), frames)
    last, ends = lax.scan(advance, first, frames)
    return _entered(*last), ends


def _frames(options: _Options, batch: _Batch, logits: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities of the blank (T, N, 1) and of the labels (T, N, S), and which frames are real (T, N, 1)."""
    log_probs = jax.nn.log_softmax(jnp.where(batch.real[:, :, None], logits.astype(work_dtype(logits)), 0))
    inside = (batch.labels >= 0) & (batch.labels < options.num_classes)
    index = jnp.where(inside, batch.labels, 0)[:, None]
    log_labels = jnp.where(inside[:, None], jnp.take_along_axis(log_probs, index, 2), 0)
    log_blank = log_probs[:, :, options.blank, None]
    return log_blank.swapaxes(0, 1), log_labels.swapaxes(0, 1), batch.real.T[:, :, None]


def _entered(blanks: Array, labels: Array) -> Array:
    """The ends behind s labels (N, S+1), those in label s (N, S) added."""
    return jnp.concatenate([blanks[:, :1], _log_add(blanks[:, 1:], labels)], 1)


def _log_add(a: Array, b: Array) -> Array:
    """log(exp(a) + exp(b)), whose derivative is 0 where both are -inf."""
    neither = (a == -jnp.inf) & (b == -jnp.inf)
    return jnp.where(neither, -jnp.inf, jnp.logaddexp(jnp.where(neither, 0, a), b))


_compiled_losses = jax.jit(_losses, static_argnums=0)
_compiled_forward_probs = jax.jit(_forward_probs, static_argnums=0)

_FUNCTIONS = {"ctc_loss": ctc_loss, "ctc_loss_with_forward_probs": ctc_loss_with_forward_probs}
PLACES = {"optax": _FUNCTIONS, "optax.losses": _FUNCTIONS, "optax.losses._classification": _FUNCTIONS}
