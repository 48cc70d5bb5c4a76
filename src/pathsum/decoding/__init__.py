"""From scores to text: beam decoders with lexicon and language model, on NumPy arrays."""

from pathsum.decoding.beam import Beams, DecoderState, asg_beam_decode, ctc_beam_decode, simple_ctc_beam_decode
from pathsum.decoding.kenlm import KenLM, rescore
from pathsum.decoding.lexicon import Lexicon
from pathsum.decoding.ngram import NGram

__all__ = [
    "Beams",
    "DecoderState",
    "KenLM",
    "Lexicon",
    "NGram",
    "asg_beam_decode",
    "ctc_beam_decode",
    "rescore",
    "simple_ctc_beam_decode",
]
