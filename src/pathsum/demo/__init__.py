"""The demo: small recognisers of spoken number words, trained with `ctc_loss` and with `rnnt_loss`, and a report.

`data` makes the sequences, `model` holds the recognisers, `train` the losses and the loop, `report` the table,
`picture` the picture; `experiment` puts them together. Everything here uses pathsum's public functions only.
"""

from .experiment import run

__all__ = ["run"]
