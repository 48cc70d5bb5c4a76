"""CPU kernels over NumPy arrays, compiled by numba at first use and cached on disk; no framework in sight."""
