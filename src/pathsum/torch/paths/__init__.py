"""The distribution over the paths of a lattice, given scores: what every loss, aligner and entropy is made of."""

from pathsum.torch.paths.asg import asg_paths
from pathsum.torch.paths.base import Paths
from pathsum.torch.paths.ctc import ctc_paths, simple_ctc_paths
from pathsum.torch.paths.graphs import graph_paths
from pathsum.torch.paths.rnnt import rnnt_paths
from pathsum.torch.paths.variants import ar_rnnt_paths, multi_blank_rnnt_paths, tdt_paths, wildcard_rnnt_paths

__all__ = [
    "Paths",
    "ar_rnnt_paths",
    "asg_paths",
    "ctc_paths",
    "graph_paths",
    "multi_blank_rnnt_paths",
    "rnnt_paths",
    "simple_ctc_paths",
    "tdt_paths",
    "wildcard_rnnt_paths",
]
