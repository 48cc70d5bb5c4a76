"""CTC's recogniser with a beam, a lexicon and a language model, and trained on its own wrong words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pathsum.torch import Beams, Lexicon, NGram, ctc_beam_decode, ctc_loss, ctc_mwer_loss

from .data import BLANK, SPACE, Batch, WordSequences, decode, encode
from .model import CTCRecogniser

BEAM_SIZE = 20
LM_WEIGHT = 0.5
LM_TEXTS = 2000  # as many as the language model is made of
DISCOUNT = 0.5  # taken from the count of each bigram, for those that never came

MWER_BEAM_SIZE = 8
MWER_HYPOTHESES = 4
MWER_BATCH_SIZE = 16
MWER_LEARNING_RATE = 2e-4
CTC_SHARE = 0.5  # of CTC's loss beside MWER's, which alone forgets what is not in the lists


def language_model(texts: Sequence[str], words: Sequence[str]) -> str:
    """Returns a bigram model in ARPA's format: of all words, each counted once more than it came."""
    sentences = [["<s>", *text.split(), "</s>"] for text in texts]
    unigrams = Counter([*words, "</s>", *(word for sentence in sentences for word in sentence[1:])])
    bigrams = Counter(pair for sentence in sentences for pair in pairwise(sentence))
    contexts = Counter(word for sentence in sentences for word in sentence[:-1])
    total = sum(unigrams.values())
    followers: dict[str, list[str]] = {}
    for before, after in bigrams:
        followers.setdefault(before, []).append(after)
    backoffs = {
        # What the bigrams of a word leave, spread over the words that never came behind it.
        before: DISCOUNT * len(own) / contexts[before] / (1 - sum(unigrams[after] for after in own) / total)
        for before, own in followers.items()
        if len(own) < len(unigrams)
    }
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 1}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    scores = {"<s>": -99.0} | {word: math.log10(count / total) for word, count in sorted(unigrams.items())}
    lines += [f"{score:.6f}\t{word}\t{math.log10(backoffs.get(word, 1.0)):.6f}" for word, score in scores.items()]
    lines += ["", "\\2-grams:"]
    for (before, after), count in sorted(bigrams.items()):
        taken = DISCOUNT if before in backoffs else 0.0
        lines.append(f"{math.log10((count - taken) / contexts[before]):.6f}\t{before} {after}")
    return "\n".join([*lines, "", "\\end\\", ""])


Decoder = Callable[[torch.Tensor, torch.Tensor], Beams]


def decoders(arpa: str, words: Sequence[str]) -> dict[str, Decoder]:
    """Returns what there is beyond greedy decoding: of logits (N, T, C) and lengths the texts."""
    options: dict[str, dict[str, Any]] = {
        "beam": {},
        "beam + LM": {
            "lexicon": Lexicon.from_words(words, encode),
            "lm": NGram.parse(arpa.splitlines()),
            "lm_weight": LM_WEIGHT,
        },
    }

    def decoder(own: dict[str, Any]) -> Decoder:
        return lambda logits, lengths: ctc_beam_decode(
            logits.log_softmax(2), lengths, BLANK, beam_size=BEAM_SIZE, separator=SPACE, **own
        )

    return {name: decoder(own) for name, own in options.items()}


@torch.no_grad()
def transcribe(recogniser: CTCRecogniser, batch: Batch, decoder: Decoder) -> list[str]:
    (logits,), lengths, *_ = recogniser(batch)
    found = decoder(logits, lengths)
    return [texts_of(found, n) for n in range(len(lengths))]


def texts_of(found: Beams, n: int) -> str:
    """Returns the best text of a sample: its characters, which words without labels are tuples of."""

    if not found.words[n]:
        return ""
    return " ".join(word if isinstance(word, str) else decode(list(word)) for word in found.words[n][0])


def sharpen(recogniser: CTCRecogniser, stream: WordSequences, steps: int, console: Console) -> list[float]:
    """Trains a recogniser further on the number of wrong words to expect; returns those of each step."""
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=MWER_LEARNING_RATE, weight_decay=0.01)
    expected = []
    columns = (TextColumn("[bold]mwer"), BarColumn(), TextColumn("step {task.completed:>4}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        for step in bar.track(range(steps)):
            optimizer.param_groups[0]["lr"] = MWER_LEARNING_RATE * (1 - step / steps)
            batch = stream.batch(MWER_BATCH_SIZE)
            (logits,), lengths, targets, target_lengths = recogniser(batch)
            found = ctc_beam_decode(
                logits.detach().log_softmax(2),
                lengths,
                BLANK,
                beam_size=MWER_BEAM_SIZE,
                n_best=MWER_HYPOTHESES,
                separator=SPACE,
                exact_scores=False,
            )
            arguments = {"blank": BLANK, "fused_log_softmax": True, "batch_first": True}
            risk = ctc_mwer_loss(
                logits,
                found.tokens,
                lengths,
                found.lengths.masked_fill(found.scores == -math.inf, -1),
                references=targets,
                reference_lengths=target_lengths,
                separator=SPACE,
                baseline="none",
                **arguments,
            )
            loss = risk + CTC_SHARE * ctc_loss(logits, targets, lengths, target_lengths, **arguments)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(recogniser.parameters(), 1.0)
            optimizer.step()
            expected.append(float(risk.detach()))
    return expected
