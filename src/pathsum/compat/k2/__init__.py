"""k2's losses: the transducer's (``transducer``), pruned (``pruning``), CTC's (``ctc``), and acceptors (``fsa``)."""

from pathsum.compat.k2.ctc import CtcLoss as CtcLoss
from pathsum.compat.k2.ctc import DenseFsaVec as DenseFsaVec
from pathsum.compat.k2.ctc import compose as compose
from pathsum.compat.k2.ctc import ctc_graph as ctc_graph
from pathsum.compat.k2.ctc import ctc_loss as ctc_loss
from pathsum.compat.k2.ctc import ctc_topo as ctc_topo
from pathsum.compat.k2.ctc import linear_fsa as linear_fsa
from pathsum.compat.k2.fsa import Fsa as Fsa
from pathsum.compat.k2.fsa import create_fsa_vec as create_fsa_vec
from pathsum.compat.k2.fsa import intersect_dense as intersect_dense
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

PLACES = {
    "k2": {
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
# Where k2 is, its graphs are acceptors that more than the loss reads.
HELPERS = {
    "k2": {
        "CtcLoss": CtcLoss,
        "DenseFsaVec": DenseFsaVec,
        "Fsa": Fsa,
        "compose": compose,
        "create_fsa_vec": create_fsa_vec,
        "ctc_graph": ctc_graph,
        "ctc_loss": ctc_loss,
        "ctc_topo": ctc_topo,
        "intersect_dense": intersect_dense,
        "linear_fsa": linear_fsa,
    }
}
