"""Sums over the entries of sorted lists that share a key, in a fixed order and by no atomic addition."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _continue(total, head, value, is_head):
    return tl.where(is_head != 0, value, total + value), head | is_head


@triton.jit
def segment_sums(values, heads, carry):
    """Along the last axis of (R, B): the sum since the last head, from ``carry`` (R, 1) on where there was none yet."""
    sums, seen = tl.associative_scan((values, heads.to(tl.int32)), 1, _continue)
    return tl.where(seen != 0, sums, sums + carry)


@triton.jit
def last_column(values, BLOCK: tl.constexpr):
    """(R, 1)"""
    is_last = (tl.arange(0, BLOCK) == BLOCK - 1)[None, :]
    return tl.sum(tl.where(is_last, values, 0.0), 1)[:, None]
