"""Scores that are alike but for what they all have in common, exactly."""

import numpy as np

# Those of another dtype than the scores' are no numbers there. Past 1e16 the scores are all the same, or nearly alone
# on their path.
OFFSETS = {"float64": [1e15, -1e15, 1e17, -1e17, 1e300], "float32": [1e7, -1e7, 1e30]}
CASES = [(dtype, offset) for dtype, offsets in OFFSETS.items() for offset in offsets]


def alike(shape, dtype, offset, seed=0):
    """Scores, and the same at an offset: that less up to 2 units of its last place, or where these are much, itself."""
    unit = float(np.spacing(np.dtype(dtype).type(abs(offset))))
    unit = unit if unit < 20 else 0.0
    scores = unit * np.random.default_rng(seed).integers(-2, 1, shape)
    scores, shifted = scores.astype(dtype), (scores + np.dtype(dtype).type(offset)).astype(dtype)
    assert (shifted - np.dtype(dtype).type(offset) == scores).all()
    return scores, shifted
