"""Columns of a linear layer's log-softmax on a GPU, in products of torch's."""

from __future__ import annotations

from pathsum.torch._linear import LinearOperators


class Linear(LinearOperators):
    name = "triton_linear"
