"""The specification: plain torch, float64 inside, differentiable to any order, written to be read beside problems/."""
