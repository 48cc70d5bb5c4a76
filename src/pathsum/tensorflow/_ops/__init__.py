"""The compiled kernels as operations of TensorFlow on the CPU."""
