"""The kernels as registered operators: tensors and integers in, tensors out.

A lattice crosses as its tensors, so that an operator knows nothing of the loss that posed it.
"""
