"""The Triton kernels on JAX's arrays: jax-triton makes calls of them in programs that are compiled for CUDA devices."""
