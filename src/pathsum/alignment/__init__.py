"""``pathsum align``: log-probabilities and a transcript in, the time of every token out."""

from .inputs import AlignError as AlignError
from .run import FORMATS as FORMATS
from .run import run as run
