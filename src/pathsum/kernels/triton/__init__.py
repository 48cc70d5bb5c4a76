"""Kernels in Triton: device functions alone. What launches them is ``pathsum.torch._triton``."""
