"""The demo: small recognisers of spoken number words, trained with `ctc_loss` and with `rnnt_loss`, and a report.

`data` makes the sequences, `model` holds the recognisers, `train` the losses and the loop, `report` the tables and the
picture. Everything here uses pathsum's public functions only.
"""

from .run import run

__all__ = ["run"]
