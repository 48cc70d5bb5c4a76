"""Memory of a gradient that died is used again, and never while anyone can see it."""

import gc

import numpy as np
import pytest
import torch

from pathsum.torch import ctc_loss
from pathsum.torch._ops import arrays

LARGE = (3, 1000, 1000)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(arrays, "_kept", [])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [LARGE, (2, 3), (4, 0), ()])
def test_a_tensor_as_asked_for(shape, dtype):
    tensor = arrays.empty(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()


def test_used_again_when_no_one_sees_it():
    first = arrays.empty(LARGE, torch.float32)
    address = first.data_ptr()
    row, array = first[1], first.numpy()
    del first
    gc.collect()
    assert arrays.empty(LARGE, torch.float32).data_ptr() != address
    del row
    assert arrays.empty(LARGE, torch.float32).data_ptr() != address
    array[:] = 1
    del array
    assert arrays.empty(LARGE, torch.float32).data_ptr() == address


def test_two_in_use_at_once_are_two_buffers_and_no_more_are_kept():
    tensors = [arrays.empty(LARGE, torch.float32) for _ in range(3)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    while tensors:
        tensors.pop(0)
    assert len(arrays._kept) == 2
    again = [arrays.empty(LARGE, torch.float32) for _ in range(2)]
    assert [tensor.data_ptr() for tensor in again] == addresses[:0:-1]


def test_another_size_gets_memory_of_its_own():
    address = arrays.empty(LARGE, torch.float32).data_ptr()
    smaller = arrays.empty((1, 1100, 1000), torch.float32)
    assert arrays._kept == []
    assert smaller.data_ptr() != address or smaller.untyped_storage().nbytes() < 4 * np.prod(LARGE)


def test_a_gradient_outlives_the_next():
    scores = torch.randn(500, 20, 200, requires_grad=True)
    targets = torch.randint(1, 200, (20, 10))
    gradients = []
    for scale in (1.0, 2.0):
        loss = ctc_loss(scores, targets, [500] * 20, [10] * 20, fused_log_softmax=True) * scale
        gradients += torch.autograd.grad(loss, scores)
    assert torch.allclose(2 * gradients[0], gradients[1])
