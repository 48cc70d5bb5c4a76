"""The losses for TensorFlow, in its conventions: labels first, batch first, one loss a sample."""

from pathsum.tensorflow.asg import asg_loss as asg_loss
from pathsum.tensorflow.ctc import classic_ctc_loss as classic_ctc_loss
from pathsum.tensorflow.ctc import ctc_loss as ctc_loss
from pathsum.tensorflow.ctc import simple_ctc_loss as simple_ctc_loss
from pathsum.tensorflow.rnnt import rnnt_loss as rnnt_loss
