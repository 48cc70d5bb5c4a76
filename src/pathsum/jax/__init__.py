"""The losses for JAX: batch first, one loss a sample, under every transformation."""

from pathsum.errors import name_extra

try:
    from pathsum.jax.asg import asg_loss
except ModuleNotFoundError as error:
    raise name_extra(error, "jax") from error
from pathsum.jax.beam import ctc_beam_decode
from pathsum.jax.ctc import ctc_loss, simple_ctc_loss
from pathsum.jax.graphs import crf_ctc_loss, lattice_loss, lfmmi_loss
from pathsum.jax.linear import ctc_linear_loss
from pathsum.jax.mwer import ctc_mwer_loss
from pathsum.jax.rnnt import rnnt_loss
from pathsum.jax.sharded import sharded_ctc_loss

__all__ = [
    "asg_loss",
    "crf_ctc_loss",
    "ctc_beam_decode",
    "ctc_linear_loss",
    "ctc_loss",
    "ctc_mwer_loss",
    "lattice_loss",
    "lfmmi_loss",
    "rnnt_loss",
    "sharded_ctc_loss",
    "simple_ctc_loss",
]
