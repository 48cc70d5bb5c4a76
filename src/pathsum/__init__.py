"""pathsum: sequence-transduction losses as log-sums over all paths of a small lattice.

Importing this package imports NumPy and nothing else; each framework has a subpackage of its own
(``pathsum.torch``), imported only when asked for.
"""

from pathsum.errors import (
    FrameworkMissingError,
    GradientConsumedError,
    ImplementationError,
    InvalidTypeError,
    InvalidValueError,
    NotDifferentiableError,
)
from pathsum.lattice import ChainLattice, GridLattice

__all__ = [
    "FrameworkMissingError",
    "GradientConsumedError",
    "ImplementationError",
    "InvalidTypeError",
    "InvalidValueError",
    "NotDifferentiableError",
    "ChainLattice",
    "GridLattice",
]

__version__ = "0.2.0"
