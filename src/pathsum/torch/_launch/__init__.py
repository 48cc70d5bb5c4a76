"""Triton kernels launched on tensors: the operators of ``pathsum.torch._ops`` on a GPU, by the same names.

Memory, strides, grids and block sizes are decided here, none by a value that is on the device: nothing waits for it.
"""
