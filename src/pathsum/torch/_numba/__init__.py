"""The compiled kernels on the memory of tensors."""
