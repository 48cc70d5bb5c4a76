"""The Triton kernels on tensors: who decides on memory, strides, grids and block sizes."""
