"""``torchaudio.functional.rnnt_loss`` and ``forced_align``, ``transforms.RNNTLoss``, ``models.decoder.ctc_decoder``.

The peer's quirks that are kept: the mean is over N, lengths not counted; the loss of half precision has its dtype;
``clamp`` acts before the upstream gradient; the blank may be among the labels of ``rnnt_loss``, where its column
lacks the label's share of the gradient but in the last frame; a target that does not fit stops ``forced_align``. Not
kept: the loss of an infeasible sample is infinity with gradient 0, where the peer has NaN or, without frames, what
was in memory; ``clamp`` bounds both sides on every device; T and U need not be reached, integers may be int64, scores
float64 and strided; ``forced_align`` takes any number of samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathsum import decoding
from pathsum import torch as pathsum_torch
from pathsum.compat.conventions import Integers, checked, reduced, transducer_losses
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.options import TorchImpl


@checked
def rnnt_loss(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    corrected: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """``torchaudio.functional.rnnt_loss``.

    Args:
        logits: Joiner output (N, T, U+1, V); log-probabilities with ``fused_log_softmax=False``.
        targets: Labels (N, U), the blank allowed.
        logit_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank class; negative counts from the end.
        clamp: As in ``pathsum.torch.rnnt_loss``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        fused_log_softmax: Take the log-softmax inside.
        corrected: The loss of half precision is float32; a blank among the labels gets the gradients of both its arcs.
        impl: As in ``pathsum.torch.rnnt_loss``.

    Returns:
        The reduced loss, in the dtype of ``logits``.

    Raises:
        InvalidValueError: As in ``pathsum.torch.rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import rnnt_loss
        >>> logits = torch.zeros(1, 2, 2, 2)
        >>> round(rnnt_loss(logits, torch.tensor([[0]]), torch.tensor([2]), torch.tensor([1])).item(), 4)
        1.3863
    """
    losses = transducer_losses(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        clamp=clamp,
        fused_log_softmax=fused_log_softmax,
        arcs="both" if corrected else "blank",
        impl=impl,
    )
    return reduced("rnnt_loss", losses if corrected else losses.to(logits.dtype), reduction)


class RNNTLoss(nn.Module):
    """``torchaudio.transforms.RNNTLoss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import RNNTLoss
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(RNNTLoss(blank=0)(torch.zeros(1, 2, 2, 2), *integers).item(), 4)
        1.3863
    """

    def __init__(
        self, blank: int = -1, clamp: float = -1.0, reduction: str = "mean", fused_log_softmax: bool = True
    ) -> None:
        super().__init__()
        self.blank = blank
        self.clamp = clamp
        self.reduction = reduction
        self.fused_log_softmax = fused_log_softmax

    def forward(self, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers) -> Tensor:
        options = (self.blank, self.clamp, self.reduction, self.fused_log_softmax)
        return rnnt_loss(logits, targets, logit_lengths, target_lengths, *options)


@checked
def forced_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    corrected: bool = False,
    impl: TorchImpl = "auto",
) -> tuple[Tensor, Tensor]:
    """``torchaudio.functional.forced_align``.

    Args:
        log_probs: Log-probabilities (N, T, C), any N.
        targets: Labels (N, L).
        input_lengths: Frames of each sample (N,); T where ``None``.
        target_lengths: Labels of each sample (N,); L where ``None``.
        blank: Index of the blank class.
        corrected: A target that does not fit has the path -1 instead of stopping the whole call.
        impl: As in ``pathsum.torch.forced_align``.

    Returns:
        Paths (N, T), the class of each frame, and scores (N, T), its log-probability.

    Raises:
        RuntimeError: A target does not fit in its frames.
        InvalidValueError: As in ``pathsum.torch.forced_align``.

    Notes:
        Where two paths score the same the peer may return one that is not the best: see ``pathsum.torch.forced_align``.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import forced_align
        >>> probs = torch.tensor([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]])
        >>> forced_align(probs.log(), torch.tensor([[1, 2]]))[0].tolist()
        [[1, 0, 2]]
    """
    paths, scores = pathsum_torch.forced_align(log_probs, targets, input_lengths, target_lengths, blank, impl=impl)
    if not corrected:
        # A path of NaN scores is -1 too, but there is one.
        without = (paths == -1).all(1) & (scores == -torch.inf).any(1)
        if without.any():
            raise RuntimeError(f"targets length is too long for CTC, at sample {int(without.nonzero()[0])}")
    return paths, scores


class CTCHypothesis(NamedTuple):
    """``torchaudio.models.decoder.CTCHypothesis``.

    Attributes:
        tokens: (L,) int64.
        words: The words; none without a lexicon.
        score: What the order goes by.
        timesteps: (L,) int32, the frame in which each token begins.
    """

    tokens: Tensor
    words: list[str]
    score: float
    timesteps: Tensor


class CTCDecoder:
    """``torchaudio.models.decoder.CTCDecoder``, as ``ctc_decoder`` makes it."""

    def __init__(self, tokens: Sequence[str], n_best: int, **options: Any) -> None:
        self.tokens = list(tokens)
        self._n_best = n_best
        self._options = options

    def __call__(self, emissions: Tensor, lengths: Tensor | None = None) -> list[list[CTCHypothesis]]:
        """The hypotheses of each sample, the best first.

        Args:
            emissions: Log-probabilities (N, T, C), float32, on the CPU.
            lengths: Frames of each sample (N,).
        """
        if emissions.dtype != torch.float32:
            raise ValueError("emissions must be float32.")
        if not emissions.is_cpu:
            raise RuntimeError("emissions must be a CPU tensor.")
        if lengths is not None and not lengths.is_cpu:
            raise RuntimeError("lengths must be a CPU tensor.")
        # There may be more classes than tokens have names.
        labels = self.tokens + [""] * max(0, emissions.shape[-1] - len(self.tokens))
        found = pathsum_torch.ctc_beam_decode(emissions, lengths, n_best=self._n_best, labels=labels, **self._options)
        return [
            [
                CTCHypothesis(
                    found.tokens[n, k, :length],
                    [] if found.words is None else found.words[n][k],
                    float(found.scores[n, k]),
                    found.frames[n, k, :length].int(),
                )
                for k, length in enumerate(found.lengths[n].tolist())
                if found.scores[n, k] > -math.inf
            ]
            for n in range(len(emissions))
        ]

    def idxs_to_tokens(self, idxs: Tensor) -> list[str]:
        """The texts of tokens (L,)."""
        return [self.tokens[index] for index in idxs.tolist()]


def ctc_decoder(
    lexicon: str | None,
    tokens: str | list[str],
    lm: str | decoding.NGram | None = None,
    lm_dict: str | None = None,
    nbest: int = 1,
    beam_size: int = 50,
    beam_size_token: int | None = None,
    beam_threshold: float = 50,
    lm_weight: float = 2,
    word_score: float = 0,
    unk_score: float = -math.inf,
    sil_score: float = 0,
    log_add: bool = False,
    blank_token: str = "-",
    sil_token: str = "|",
    unk_word: str = "<unk>",
) -> CTCDecoder:
    """``torchaudio.models.decoder.ctc_decoder``.

    Args:
        lexicon: A file of lines ``word token token ...``; ``None``: any tokens.
        tokens: The classes' tokens, or a file of them, one a line.
        lm: An ARPA file of words, of tokens without a lexicon; or an ``NGram``. No binary file of KenLM's.
        lm_dict: Not needed: the model's words are looked up by their texts.
        nbest: Hypotheses of each sample at most.
        beam_size: How many labellings are kept after each frame.
        beam_size_token: Changes nothing.
        beam_threshold: A labelling goes no further that is so much less than the best.
        lm_weight: What the language model's logarithm to base 10 counts.
        word_score: What each word counts.
        unk_score: -inf alone: no other words than the lexicon's.
        sil_score: 0 alone.
        log_add: Changes nothing: alignments are always added up.
        blank_token: The blank.
        sil_token: The token between words.
        unk_word: Not needed: a word that the model lacks is its "<unk>".

    Returns:
        A decoder: ``decoder(emissions, lengths)`` are a list of ``CTCHypothesis`` for each sample.

    Raises:
        InvalidValueError: (a ValueError) a token that is not there, a file that is not as said, an option that there is
            no equal to.

    Example:
        >>> import torch
        >>> from pathsum.compat.torchaudio import ctc_decoder
        >>> decoder = ctc_decoder(None, ["-", "|", "a"])
        >>> best = decoder(torch.tensor([[[0.1, 0.1, 0.8], [0.7, 0.1, 0.2], [0.1, 0.2, 0.7]]]).log())[0][0]
        >>> decoder.idxs_to_tokens(best.tokens), best.timesteps.tolist()
        (['a', 'a'], [0, 2])
    """
    function = "ctc_decoder"
    if isinstance(tokens, str):
        with open(tokens, encoding="utf-8") as file:
            tokens = [line.strip() for line in file if line.strip()]
    numbers = {token: number for number, token in enumerate(tokens)}
    for name, token in (("blank_token", blank_token), ("sil_token", sil_token)):
        if token not in numbers and (name == "blank_token" or lexicon is not None):
            raise InvalidValueError(function, name, "be among the tokens", repr(token))
    for name, value, only in (("unk_score", unk_score, -math.inf), ("sil_score", sil_score, 0)):
        if value != only:
            raise InvalidValueError(function, name, f"be {only}", value)
    if isinstance(lm, (str, os.PathLike)):
        lm = decoding.NGram.read(lm)
    elif lm is not None and not isinstance(lm, decoding.NGram):
        raise InvalidTypeError(function, "lm", "be an ARPA file or an NGram", type(lm).__name__)
    return CTCDecoder(
        tokens,
        nbest,
        blank=numbers[blank_token],
        beam_size=beam_size,
        beam_threshold=beam_threshold,
        lm=lm,
        lm_weight=lm_weight / math.log(10.0),
        word_score=word_score,
        lexicon=None if lexicon is None else decoding.Lexicon.read(lexicon, numbers),
        separator=None if lexicon is None else numbers[sil_token],
    )


_DECODERS = {"ctc_decoder": ctc_decoder, "CTCDecoder": CTCDecoder, "CTCHypothesis": CTCHypothesis}
PLACES = {
    "torchaudio.functional": {"rnnt_loss": rnnt_loss, "forced_align": forced_align},
    "torchaudio.transforms": {"RNNTLoss": RNNTLoss},
    "torchaudio.models.decoder": _DECODERS,
}
