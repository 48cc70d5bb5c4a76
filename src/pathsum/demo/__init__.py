"""The demo: small recognisers of spoken number words, trained with `ctc_loss`, `rnnt_joint_loss` and `asg_loss`.

`data` makes the sequences, `model` holds the recognisers and their alignments, `train` the losses and the loop,
`report` the table, `picture` the picture; `experiment` puts them together. Everything here uses pathsum's public
functions only.
"""

from .experiment import run

__all__ = ["run"]
