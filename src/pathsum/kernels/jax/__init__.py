"""JAX operations alone: for every device, differentiable to any order."""
