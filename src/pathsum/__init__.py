"""pathsum: sequence-transduction losses as log-sums over all paths of a small lattice.

Importing this package imports NumPy and nothing else; each framework has a subpackage of its own
(``pathsum.torch``), imported only when asked for.
"""

from pathsum.errors import (
    GradientConsumedError as GradientConsumedError,
)
from pathsum.errors import (
    ImplementationError as ImplementationError,
)
from pathsum.errors import (
    InvalidTypeError as InvalidTypeError,
)
from pathsum.errors import (
    InvalidValueError as InvalidValueError,
)
from pathsum.errors import (
    NotDifferentiableError as NotDifferentiableError,
)
from pathsum.lattice import ChainLattice as ChainLattice
from pathsum.lattice import GridLattice as GridLattice

__version__ = "0.1.0"
