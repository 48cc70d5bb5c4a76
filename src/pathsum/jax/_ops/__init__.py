"""The compiled kernels as a foreign function of XLA, a file a problem."""
