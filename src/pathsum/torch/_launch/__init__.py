"""Triton kernels launched on tensors, for the classes of ``pathsum.torch._triton``.

Memory, strides, grids and block sizes are decided here, none by a value that is on the device: nothing waits for it.
"""
