"""The losses for JAX: batch first, one loss a sample, under every transformation."""

from pathsum.jax.asg import asg_loss as asg_loss
from pathsum.jax.ctc import ctc_loss as ctc_loss
from pathsum.jax.ctc import simple_ctc_loss as simple_ctc_loss
from pathsum.jax.rnnt import rnnt_loss as rnnt_loss
