"""TensorFlow's own operations, differentiable by TensorFlow to any order; XLA compiles them."""
