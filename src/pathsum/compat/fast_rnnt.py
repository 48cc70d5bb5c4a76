"""``fast_rnnt``: the transducer's pruned losses, which k2 has under the same names.

Functions, quirks and what is not kept are those of ``pathsum.compat.k2``. They are fast_rnnt's from 1.1 on, with
``rnnt_type``; its first releases had ``modified`` in its place. Nothing else of the peer is here:
``monotonic_lower_bound_`` and the extension ``_fast_rnnt`` are not.

Example:
    >>> import torch
    >>> from pathsum.compat import fast_rnnt
    >>> lm, am, symbols = torch.zeros(1, 3, 4), torch.zeros(1, 5, 4), torch.tensor([[1, 2]])
    >>> boundary = torch.tensor([[0, 0, 2, 5]])
    >>> simple, (labels, blanks) = fast_rnnt.rnnt_loss_simple(lm, am, symbols, 0, boundary, return_grad=True)
    >>> ranges = fast_rnnt.get_rnnt_prune_ranges(labels, blanks, boundary, s_range=2)
    >>> am_pruned, lm_pruned = fast_rnnt.do_rnnt_pruning(am, lm, ranges)
    >>> pruned = fast_rnnt.rnnt_loss_pruned(am_pruned + lm_pruned, symbols, ranges, 0, boundary)
    >>> [round(4**7 / loss.exp().item()) for loss in (simple, pruned)]  # walks, and those of them in the band
    [15, 6]
"""

from __future__ import annotations

from typing import Any

import torch

from pathsum.compat.k2.pruning import do_rnnt_pruning as do_rnnt_pruning
from pathsum.compat.k2.pruning import get_rnnt_logprobs_pruned as get_rnnt_logprobs_pruned
from pathsum.compat.k2.pruning import get_rnnt_prune_ranges as get_rnnt_prune_ranges
from pathsum.compat.k2.pruning import rnnt_loss_pruned as rnnt_loss_pruned
from pathsum.compat.k2.transducer import get_rnnt_logprobs as get_rnnt_logprobs
from pathsum.compat.k2.transducer import get_rnnt_logprobs_joint as get_rnnt_logprobs_joint
from pathsum.compat.k2.transducer import get_rnnt_logprobs_smoothed as get_rnnt_logprobs_smoothed
from pathsum.compat.k2.transducer import joint_mutual_information_recursion as joint_mutual_information_recursion
from pathsum.compat.k2.transducer import mutual_information_recursion as mutual_information_recursion
from pathsum.compat.k2.transducer import rnnt_loss as rnnt_loss
from pathsum.compat.k2.transducer import rnnt_loss_simple as rnnt_loss_simple
from pathsum.compat.k2.transducer import rnnt_loss_smoothed as rnnt_loss_smoothed


def with_cuda() -> bool:
    """``fast_rnnt.with_cuda``: whether the functions run on a GPU, which here takes no more than the GPU."""
    return torch.cuda.is_available()


PLACES: dict[str, dict[str, Any]] = {
    "fast_rnnt": {
        "rnnt_loss": rnnt_loss,
        "rnnt_loss_simple": rnnt_loss_simple,
        "rnnt_loss_smoothed": rnnt_loss_smoothed,
        "rnnt_loss_pruned": rnnt_loss_pruned,
        "get_rnnt_logprobs": get_rnnt_logprobs,
        "get_rnnt_logprobs_joint": get_rnnt_logprobs_joint,
        "get_rnnt_logprobs_pruned": get_rnnt_logprobs_pruned,
        "get_rnnt_logprobs_smoothed": get_rnnt_logprobs_smoothed,
        "get_rnnt_prune_ranges": get_rnnt_prune_ranges,
        "do_rnnt_pruning": do_rnnt_pruning,
        "mutual_information_recursion": mutual_information_recursion,
        "joint_mutual_information_recursion": joint_mutual_information_recursion,
    }
}
HELPERS = {"fast_rnnt": {"with_cuda": with_cuda}}
