"""ESPnet's own transducer losses: ``RNNTLossNumba`` and ``MultiblankRNNTLossNumba`` of ``rnnt_multi_blank``.

They are NeMo's at an earlier time; see ``pathsum.compat.nemo`` for what is kept of them. ESPnet's CTC is torch's,
``install("torch_functional")``, and its plain transducer ``warprnnt_pytorch``, ``install("warp_transducer")``.
"""

from __future__ import annotations

from typing import Any

from pathsum.compat.nemo import MultiblankRNNTLossNumba
from pathsum.compat.warprnnt_numba import RNNTLossNumba

# ESPnetASRModel imports the class from the module that defines it when it is made; the package has it by name as well.
_PACKAGE = "espnet2.asr.transducer.rnnt_multi_blank"
PLACES: dict[str, dict[str, Any]] = {
    _PACKAGE: {"MultiblankRNNTLossNumba": MultiblankRNNTLossNumba},
    f"{_PACKAGE}.rnnt_multi_blank": {
        "MultiblankRNNTLossNumba": MultiblankRNNTLossNumba,
        "RNNTLossNumba": RNNTLossNumba,
    },
}
