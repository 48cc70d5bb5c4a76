"""The columns of a log-softmax that CTC reads, the blank's and one a label, where not all classes are held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathsum.jax._inputs import Batch
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array

# Logits of a chunk of classes, where nobody says how many.
_ELEMENTS = 2**22


def classes_of(batch: Batch, blank: int) -> tuple[Array, Batch]:
    """The class (N, S + 1) of each column, and the batch whose targets are columns, the blank being column 0.

    Equal labels read the first column that is theirs.
    """
    targets, _, target_lengths = batch.integers
    used = jnp.arange(targets.shape[1]) < target_lengths[:, None]
    classes = jnp.concatenate([jnp.full_like(targets[:, :1], blank), jnp.where(used, targets, blank)], 1)
    places = (classes[:, :, None] == classes[:, None]).argmax(2).astype(targets.dtype)
    return classes, batch._replace(integers=batch.integers._replace(targets=places[:, 1:]))


def columns_of_linear(hidden: Array, weight: Array, bias: Array | None, classes: Array, chunk: int | None) -> Array:
    """Log-probabilities (N, T, W) of hidden (N, T, H) times weight (C, H): some classes' logits exist at a time.

    Their derivatives make them again.
    """
    work = work_dtype(hidden)
    num_samples, num_frames, size = hidden.shape
    num_classes = len(weight)
    wanted = _ELEMENTS // max(num_samples * num_frames, 1) if chunk is None else chunk
    held = max(min(wanted, num_classes), 1)
    steps = -(-num_classes // held)
    offsets = jnp.zeros(num_classes, work) if bias is None else bias.astype(work)
    missing = steps * held - num_classes
    chunks = (
        jnp.pad(weight, ((0, missing), (0, 0))).reshape(steps, held, size),
        jnp.pad(offsets, (0, missing), constant_values=-np.inf).reshape(steps, held),
    )

    @jax.checkpoint
    def add(running: Any, own: Any) -> tuple[Any, None]:
        maxima, sums = running
        logits = _product("nth,ch->ntc", hidden, own[0], work) + own[1]
        largest = jnp.maximum(maxima, lax.stop_gradient(logits).max(2, keepdims=True))
        sums = sums * jnp.exp(maxima - largest) + jnp.exp(logits - largest).sum(2, keepdims=True)
        return (largest, sums), None

    nothing = (hidden[:, :, :1] * 0).astype(work) if size else jnp.zeros((num_samples, num_frames, 1), work)
    least = lax.stop_gradient(jnp.where(nothing == 0, jnp.finfo(work).min, nothing))
    (maxima, sums), _ = lax.scan(add, (least, jnp.zeros_like(nothing)), chunks)
    columns = _product("nth,nwh->ntw", hidden, weight[classes], work) + offsets[classes][:, None]
    return less_log(columns - maxima, sums)


def log_softmax(scores: Array, lengths: Array) -> Array:
    """Of the real frames of scores (N, T, C), in the dtype of arithmetic; a row of nothing but -inf stays so."""
    logits = masked(scores, lengths).astype(work_dtype(scores))
    logits -= largest_of(logits)
    return less_log(logits, jnp.exp(logits).sum(2, keepdims=True))


def largest_of(logits: Array) -> Array:
    """(N, T, 1) what the logits of a row are taken less of: finite in a row of nothing but -inf. A constant."""
    return jnp.maximum(lax.stop_gradient(logits).max(2, keepdims=True), jnp.finfo(logits.dtype).min)


def less_log(columns: Array, sums: Array) -> Array:
    """Columns less the log of the rows' sums; a row of nothing but -inf stays so."""
    return columns - jnp.log(jnp.where(sums == 0, 1, sums))


def masked(scores: Array, lengths: Array) -> Array:
    """Scores (N, T, C) of which padding is zeros, and no NaN."""
    real = jnp.arange(scores.shape[1]) < lengths[:, None]
    return jnp.where(real[:, :, None], scores, 0)


def _product(subscripts: str, left: Array, right: Array, work: Any) -> Array:
    """A product whose sums are in the dtype of arithmetic."""
    return jnp.einsum(subscripts, left, right, preferred_element_type=work, precision=lax.Precision.HIGHEST)
