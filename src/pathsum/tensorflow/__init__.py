"""The losses for TensorFlow, in its conventions: labels first, batch first, one loss a sample."""

from pathsum.errors import name_extra

try:
    from pathsum.tensorflow.asg import asg_loss
except ModuleNotFoundError as error:
    raise name_extra(error, "tensorflow") from error
from pathsum.tensorflow.beam import ctc_beam_decode
from pathsum.tensorflow.ctc import classic_ctc_loss, ctc_loss, simple_ctc_loss
from pathsum.tensorflow.graphs import lattice_loss
from pathsum.tensorflow.mwer import ctc_mwer_loss
from pathsum.tensorflow.rnnt import rnnt_loss

__all__ = [
    "asg_loss",
    "classic_ctc_loss",
    "ctc_beam_decode",
    "ctc_loss",
    "ctc_mwer_loss",
    "lattice_loss",
    "rnnt_loss",
    "simple_ctc_loss",
]
