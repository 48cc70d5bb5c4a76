"""pyctcdecode: ``build_ctcdecoder``, ``BeamSearchDecoderCTC``, ``Alphabet``, ``LanguageModel``, as transformers'
``Wav2Vec2ProcessorWithLM`` needs them.

Kept: names, arguments, defaults, what is returned, files of ``save_to_dir``; alpha, beta, the offset of unknown words
and hotwords count as the peer's. Not kept: a text that ends in a space has no empty last word, which the peer scores as
an unknown one; ``logit_score`` is the exact log-probability of the text, over all its alignments, where the peer has
those that its beam met; frames are those of the best alignment. ARPA files are read without kenlm and lead the search.
A binary file of KenLM's, and any language model behind an alphabet of word pieces ("▁"), orders the list of texts that
the search finds without it: such a model does not lead the search as the peer's does.
"""

from __future__ import annotations

from pathsum.compat.pyctcdecode import alphabet, constants
from pathsum.compat.pyctcdecode.alphabet import Alphabet as Alphabet
from pathsum.compat.pyctcdecode.decoder import BeamSearchDecoderCTC as BeamSearchDecoderCTC
from pathsum.compat.pyctcdecode.decoder import OutputBeam as OutputBeam
from pathsum.compat.pyctcdecode.decoder import OutputBeamMPSafe as OutputBeamMPSafe
from pathsum.compat.pyctcdecode.decoder import build_ctcdecoder as build_ctcdecoder
from pathsum.compat.pyctcdecode.language_model import AbstractLanguageModel as AbstractLanguageModel
from pathsum.compat.pyctcdecode.language_model import LanguageModel as LanguageModel
from pathsum.compat.pyctcdecode.language_model import MultiLanguageModel as MultiLanguageModel

_DECODERS = {"BeamSearchDecoderCTC": BeamSearchDecoderCTC, "build_ctcdecoder": build_ctcdecoder}
_MODELS = {"LanguageModel": LanguageModel}
PLACES = {
    "pyctcdecode": {"Alphabet": Alphabet, **_DECODERS, **_MODELS},
    "pyctcdecode.alphabet": {"Alphabet": Alphabet},
    "pyctcdecode.decoder": {"OutputBeam": OutputBeam, "OutputBeamMPSafe": OutputBeamMPSafe, **_DECODERS},
    "pyctcdecode.language_model": {
        "AbstractLanguageModel": AbstractLanguageModel, "MultiLanguageModel": MultiLanguageModel, **_MODELS,
    },
}  # fmt: skip
_TOKENS = ("BPE_TOKEN", "UNK_TOKEN", "UNK_BPE_TOKEN", "BLANK_TOKEN_PTN", "UNK_TOKEN_PTN")
HELPERS = {
    "pyctcdecode.alphabet": {name: getattr(alphabet, name) for name in _TOKENS},
    "pyctcdecode.constants": {name: value for name, value in vars(constants).items() if name.isupper()},
}
