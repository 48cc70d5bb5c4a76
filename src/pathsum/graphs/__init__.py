"""Weighted graphs whose arcs emit labels: the lattices of ``lattice_loss``. NumPy alone is imported.

A path of T frames takes T arcs that emit a label each, and any number of epsilon arcs, which emit nothing, between
them. Composition and determinisation are other packages' work, pynini's and kaldifst's: ``Graph.from_fst`` takes what
they make.
"""

from pathsum.graphs.acceptors import linear, star, words
from pathsum.graphs.graph import EPSILON, Graph, Path
from pathsum.graphs.ngrams import ngram
from pathsum.graphs.topologies import ctc_topology, over_ctc

__all__ = [
    "EPSILON",
    "Graph",
    "Path",
    "ctc_topology",
    "linear",
    "ngram",
    "over_ctc",
    "star",
    "words",
]
