"""Losses for PyTorch."""

from functools import partial
from types import FunctionType

from pathsum.decoding import Beams, DecoderState, Lexicon, NGram
from pathsum.errors import name_extra

try:
    from pathsum.torch import second_order
except ModuleNotFoundError as error:
    raise name_extra(error, "torch") from error
from pathsum.torch.align.asg import ASGAlignment, asg_align, asg_viterbi
from pathsum.torch.align.ctc import forced_align, simple_ctc_align
from pathsum.torch.align.rnnt import rnnt_align
from pathsum.torch.align.spans import TokenSpan, WordSpan, token_spans, word_spans
from pathsum.torch.asg import asg_loss
from pathsum.torch.beam import asg_beam_decode, ctc_beam_decode, simple_ctc_beam_decode
from pathsum.torch.crf import crf_ctc_loss
from pathsum.torch.ctc import ctc_loss, simple_ctc_loss
from pathsum.torch.entropy import asg_entropy, ctc_entropy, rnnt_entropy, simple_ctc_entropy
from pathsum.torch.expected_risk import (
    asg_expected_risk,
    ctc_expected_risk,
    rnnt_expected_risk,
    simple_ctc_expected_risk,
)
from pathsum.torch.graphs import (
    lattice_align,
    lattice_entropy,
    lattice_expected_risk,
    lattice_loss,
    lattice_posteriors,
    lattice_sample,
    lattice_score,
    lfmmi_loss,
)
from pathsum.torch.greedy import (
    Decoded,
    TDTDecoded,
    ctc_greedy_decode,
    multi_blank_rnnt_greedy_decode,
    rnnt_greedy_decode,
    tdt_greedy_decode,
)
from pathsum.torch.infeasible import Infeasible, infeasible
from pathsum.torch.joiner import Joiner
from pathsum.torch.joint import rnnt_joint_loss, rnnt_loss_from_joint
from pathsum.torch.linear import ctc_linear_loss
from pathsum.torch.modules import (
    ARRNNTLoss,
    ASGLoss,
    CTCLinearLoss,
    CTCLoss,
    LatticeLoss,
    MultiBlankRNNTLoss,
    RNNTJointLoss,
    RNNTLoss,
    RNNTPackedLoss,
    SimpleCTCLoss,
    TDTLoss,
    WildcardRNNTLoss,
    refuse_script,
)
from pathsum.torch.mwer import ctc_mwer_loss, edit_distances, rnnt_mwer_loss, sample_labellings
from pathsum.torch.paths.base import Paths
from pathsum.torch.paths.frames import Alignment, BestPath, ChainPosteriors
from pathsum.torch.paths.graphs import LatticeAlignment
from pathsum.torch.paths.grid import GridPosteriors, RNNTAlignment
from pathsum.torch.posteriors import (
    ASGPosteriors,
    asg_posteriors,
    ctc_posteriors,
    rnnt_posteriors,
    simple_ctc_posteriors,
)
from pathsum.torch.rnnt import rnnt_loss, rnnt_packed_loss
from pathsum.torch.transducer_beam import rnnt_beam_decode
from pathsum.torch.variants import ar_rnnt_loss, multi_blank_rnnt_loss, tdt_loss, wildcard_rnnt_loss

__all__ = [
    "ARRNNTLoss",
    "ASGAlignment",
    "ASGLoss",
    "ASGPosteriors",
    "Alignment",
    "Beams",
    "BestPath",
    "CTCLinearLoss",
    "CTCLoss",
    "ChainPosteriors",
    "Decoded",
    "DecoderState",
    "GridPosteriors",
    "Infeasible",
    "Joiner",
    "Lexicon",
    "LatticeAlignment",
    "LatticeLoss",
    "MultiBlankRNNTLoss",
    "NGram",
    "Paths",
    "RNNTAlignment",
    "RNNTJointLoss",
    "RNNTLoss",
    "RNNTPackedLoss",
    "SimpleCTCLoss",
    "TDTDecoded",
    "TDTLoss",
    "TokenSpan",
    "WildcardRNNTLoss",
    "WordSpan",
    "ar_rnnt_loss",
    "asg_align",
    "asg_beam_decode",
    "asg_entropy",
    "asg_expected_risk",
    "asg_loss",
    "asg_posteriors",
    "asg_viterbi",
    "ctc_beam_decode",
    "crf_ctc_loss",
    "ctc_entropy",
    "ctc_expected_risk",
    "ctc_greedy_decode",
    "ctc_linear_loss",
    "ctc_loss",
    "ctc_mwer_loss",
    "ctc_posteriors",
    "edit_distances",
    "forced_align",
    "infeasible",
    "lattice_align",
    "lattice_entropy",
    "lattice_expected_risk",
    "lattice_loss",
    "lattice_posteriors",
    "lattice_sample",
    "lattice_score",
    "lfmmi_loss",
    "multi_blank_rnnt_greedy_decode",
    "multi_blank_rnnt_loss",
    "rnnt_align",
    "rnnt_beam_decode",
    "rnnt_entropy",
    "rnnt_expected_risk",
    "rnnt_greedy_decode",
    "rnnt_joint_loss",
    "rnnt_loss",
    "rnnt_loss_from_joint",
    "rnnt_mwer_loss",
    "rnnt_packed_loss",
    "rnnt_posteriors",
    "sample_labellings",
    "second_order",
    "simple_ctc_align",
    "simple_ctc_beam_decode",
    "simple_ctc_entropy",
    "simple_ctc_expected_risk",
    "simple_ctc_loss",
    "simple_ctc_posteriors",
    "tdt_greedy_decode",
    "tdt_loss",
    "token_spans",
    "wildcard_rnnt_loss",
    "word_spans",
]

# Where torch.jit.script looks before it reads a function's source.
for _function in [value for value in map(globals().get, __all__) if isinstance(value, FunctionType)]:
    _function.__prepare_scriptable__ = partial(refuse_script, _function.__name__)  # pyright: ignore
