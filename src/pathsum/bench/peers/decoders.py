"""The decoders that are measured, ours among them."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .problem import LETTERS, Problem, Step, Stepper

# Of every decoder's search; what pyctcdecode is set to where it has words to go by is its own default.
BEAM_OF_LABELS, BEAM_OF_WORDS, BEAM_OF_PYCTCDECODE, BEAM_OF_LIST = 25, 20, 100, 1000
LM_WEIGHT, WORD_SCORE = 0.8, 0.5

_SEPARATOR = 1 + LETTERS.index(" ")


@contextmanager
def _model_file(problem: Problem) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pathsum-bench-") as folder:
        path = Path(folder) / "words.arpa"
        path.write_text(problem.arpa)
        yield str(path)


def _words(problem: Problem) -> list[str]:
    """The words of the model."""
    section = problem.arpa.partition("\\1-grams:\n")[2].partition("\n\n")[0]
    words = [line.split()[1] for line in section.splitlines()]
    return [word for word in words if not word.startswith("<")]


def _spelled(text: str) -> list[int]:
    return [1 + LETTERS.index(letter) for letter in text]


def _samples(problem: Problem) -> list[np.ndarray]:
    """(T, C) of each sample."""
    pairs = zip(problem.input_lengths.tolist(), problem.scores.swapaxes(0, 1))  # noqa: B905 (Python 3.9 has no strict)
    return [np.ascontiguousarray(scores[:length]) for length, scores in pairs]


def _step_of(decode: Callable[[], Any], read: Callable[[Any], tuple[list[list[int]], float]]) -> Stepper:
    def step() -> Step:
        start = perf_counter()
        found = decode()
        end = perf_counter()
        labels, loss = read(found)
        return Step({"both": 1e3 * (end - start)}, loss, None, labels)

    return step


def _step_of_texts(problem: Problem, decode: Callable[[np.ndarray], str]) -> Stepper:
    """A step of a decoder that takes one sample and tells a text."""
    samples = _samples(problem)
    return _step_of(
        lambda: [decode(scores) for scores in samples], lambda texts: ([_spelled(text) for text in texts], math.nan)
    )


def prepare_pathsum(problem: Problem) -> Stepper:
    import torch

    from pathsum.decoding import Lexicon, NGram
    from pathsum.torch import ctc_beam_decode

    options: dict[str, Any] = {"beam_size": BEAM_OF_LABELS}
    if problem.kind == "list":
        options = {"beam_size": BEAM_OF_LIST, "n_best": BEAM_OF_LIST}
    if problem.kind == "words":
        with _model_file(problem) as path:
            options = {"beam_size": BEAM_OF_WORDS, "lm": NGram.read(path), "lm_weight": LM_WEIGHT}
        lexicon = Lexicon.from_words(_words(problem), _spelled)
        options |= {"lexicon": lexicon, "separator": _SEPARATOR, "word_score": WORD_SCORE}
    scores, lengths = torch.from_numpy(problem.scores), torch.from_numpy(problem.input_lengths)

    def read(found: Any) -> tuple[list[list[int]], float]:
        best = zip(found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist(), strict=True)
        return [tokens[:length] for tokens, length in best], -float(found.ctc_scores[:, 0].sum())

    return _step_of(lambda: ctc_beam_decode(scores, lengths, problem.blank, batch_first=False, **options), read)


def prepare_pyctcdecode(problem: Problem) -> Stepper:
    return _pyctcdecode("pyctcdecode", problem)


def prepare_pathsum_pyctcdecode(problem: Problem) -> Stepper:
    return _pyctcdecode("pathsum.compat.pyctcdecode", problem)


def _pyctcdecode(module: str, problem: Problem) -> Stepper:
    """pyctcdecode, or what takes its place."""
    build = importlib.import_module(module).build_ctcdecoder
    labels, width = ["", *LETTERS], BEAM_OF_LABELS
    if problem.kind == "words":
        width = BEAM_OF_PYCTCDECODE
        with _model_file(problem) as path:
            decoder = build(labels, path, _words(problem), alpha=LM_WEIGHT, beta=WORD_SCORE)
    else:
        decoder = build(labels)
    return _step_of_texts(problem, lambda scores: decoder.decode(scores, beam_width=width))


def prepare_fast_ctc_decode(problem: Problem) -> Stepper:
    from fast_ctc_decode import beam_search  # pyright: ignore[reportMissingImports]

    # The blank's letter is never told; any that is no other's will do.
    alphabet = f"\0{LETTERS}"
    options = {"beam_size": BEAM_OF_LABELS, "beam_cut_threshold": 0.0}
    return _step_of_texts(problem, lambda scores: beam_search(np.exp(scores), alphabet, **options)[0])


def prepare_flashlight(problem: Problem) -> Stepper:
    from flashlight.lib.text import decoder as text  # pyright: ignore[reportMissingImports]

    size, options = 1 + len(LETTERS), {"beam_threshold": 1e9, "sil_score": 0.0, "log_add": True}
    options["criterion_type"] = text.CriterionType.CTC
    if problem.kind == "labels":
        free = text.LexiconFreeDecoderOptions(
            beam_size=BEAM_OF_LABELS, beam_size_token=size, lm_weight=0.0, **options
        )  # fmt: skip
        decoder = text.LexiconFreeDecoder(free, text.ZeroLM(), _SEPARATOR, problem.blank, [])
        return _step_of_texts(
            problem, lambda scores: _merged(decoder.decode(scores.ctypes.data, *scores.shape)[0].tokens)
        )

    from flashlight.lib.text.decoder.kenlm import KenLM  # pyright: ignore[reportMissingImports]
    from flashlight.lib.text.dictionary import Dictionary  # pyright: ignore[reportMissingImports]

    known = Dictionary()
    for word in [*_words(problem), "<unk>"]:
        known.add_entry(word)
    with _model_file(problem) as path:
        model = KenLM(path, known)
    trie, start = text.Trie(size, _SEPARATOR), model.start(False)
    for word in _words(problem):
        index = known.get_index(word)
        trie.insert([*_spelled(word), _SEPARATOR], index, model.score(start, index)[1])
    trie.smear(text.SmearingMode.MAX)
    # Its model counts in logarithms to base 10.
    led = text.LexiconDecoderOptions(
        beam_size=BEAM_OF_WORDS, beam_size_token=size, lm_weight=LM_WEIGHT * math.log(10), word_score=WORD_SCORE,
        unk_score=-math.inf, **options,
    )  # fmt: skip
    decoder = text.LexiconDecoder(led, trie, model, _SEPARATOR, problem.blank, known.get_index("<unk>"), [], False)
    # A word ends with the separator: one more frame of it, behind one of the blank.
    ending = np.full((2, size), -20.0, np.float32)
    ending[0, problem.blank], ending[1, _SEPARATOR] = 0.0, 0.0

    def decode(scores: np.ndarray) -> str:
        longer = np.concatenate([scores, ending])
        found = decoder.decode(longer.ctypes.data, *longer.shape)
        return " ".join(known.get_entry(index) for index in found[0].words if index >= 0)

    return _step_of_texts(problem, decode)


def _merged(tokens: list[int]) -> str:
    """The text of an alignment, at whose ends flashlight has a separator of its own."""
    own = list(tokens)[1:-1]
    kept = [token for place, token in enumerate(own) if token != 0 and (place == 0 or token != own[place - 1])]
    return "".join(LETTERS[token - 1] for token in kept)
