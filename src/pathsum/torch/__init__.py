"""Losses for PyTorch."""

from pathsum.torch.losses import asg_loss as asg_loss
from pathsum.torch.losses import ctc_loss as ctc_loss
from pathsum.torch.losses import rnnt_loss as rnnt_loss
from pathsum.torch.losses import rnnt_packed_loss as rnnt_packed_loss
from pathsum.torch.losses import simple_ctc_loss as simple_ctc_loss
from pathsum.torch.modules import ASGLoss as ASGLoss
from pathsum.torch.modules import CTCLoss as CTCLoss
from pathsum.torch.modules import RNNTLoss as RNNTLoss
from pathsum.torch.modules import RNNTPackedLoss as RNNTPackedLoss
from pathsum.torch.modules import SimpleCTCLoss as SimpleCTCLoss
