"""The compiled kernels as foreign functions of XLA, a file a problem."""
