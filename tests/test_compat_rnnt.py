"""What the transducer drop-ins have in common: the example of all their peers."""

import pytest

from pathsum.compat import nemo, torchaudio, warp_transducer
from pathsum.compat import warprnnt_numba as wn
from pathsum.testing import assert_close
from transducer_example import COST, GRADIENT, INTEGERS, example


@pytest.mark.parametrize("criterion", [
    torchaudio.RNNTLoss(blank=0), warp_transducer.RNNTLoss(), wn.RNNTLossNumba(), wn.rnnt_numpy.RNNTLoss(),
    nemo.RNNTLoss(0, loss_name="pytorch"), nemo.RNNTLoss(0, loss_name="warprnnt"), nemo.RNNTLoss(0),
    nemo.RNNTLoss(0, loss_name="graph_rnnt"), nemo.RNNTLossPytorch(0, "sum"),
], ids=lambda criterion: type(criterion).__module__)  # fmt: skip
def test_the_example_of_them_all(criterion):
    acts = example()
    loss = criterion(acts, *INTEGERS)
    loss.backward()
    assert_close(loss.sum(), COST, absolute=1e-6)
    assert_close(acts.grad[0], GRADIENT, absolute=1e-6)
