"""The Triton kernels on tensors.

Memory, strides, grids and block sizes are decided here, none by a value that is on the device: nothing waits for it.
"""
