"""Sentences to decode: made-up words, which of them follow one another, and scores as of a recogniser."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from pathsum.bench.peers import Problem
from pathsum.bench.peers.problem import LETTERS

NUM_WORDS, _SENTENCES, _WORDS, _FOLLOWERS = 500, 2000, 6, 8
# Deviation of the noise, and how far the class of a frame is above it; less noise where no words are known.
_NOISE, _LIFT = {"labels": 1.0, "words": 1.5, "list": 1.0}, 5.0
# ln P of a bigram is of 0.7 of the counts, and backing off costs the rest.
_KEPT, _BACK_OFF = 0.7, -0.5


def labels_of(frames: int) -> int:
    """The most labels of a sentence that has at least so many frames for each of them."""
    return frames // 2


def make_problem(op: str, kind: str, size: int, frames: int, labels: int, rng: np.random.Generator) -> Problem:
    """Sentences of random words, each after one of a few others mostly; blanks before some letters, and noise."""
    letters = list(LETTERS[1:-1])
    spelled: set[str] = set()
    while len(spelled) < NUM_WORDS:
        spelled.add("".join(rng.choice(letters, rng.integers(2, 9))))
    words = sorted(spelled)
    followers = rng.integers(0, NUM_WORDS, (NUM_WORDS, _FOLLOWERS))

    def follow(word: int | None) -> int:
        likely = word is not None and rng.random() < 0.9
        return int(rng.choice(followers[word]) if likely else rng.integers(NUM_WORDS))

    sentences: list[list[int]] = []
    for _ in range(_SENTENCES // 10 if frames < 100 else _SENTENCES):
        own = [follow(None)]
        while len(own) < _WORDS:
            own.append(follow(own[-1]))
        sentences.append(own)
    scores = np.zeros((frames, size, 1 + len(LETTERS)), np.float32)
    targets, lengths = np.zeros((size, labels), np.int64), np.zeros(size, np.int64)
    for n in range(size):
        path: list[int] = []
        spoken: list[int] = []
        word = follow(None)
        # Whole words, as many as there is room for; the rest is silence.
        while True:
            text = (" " if spoken else "") + words[word]
            more = [1 + LETTERS.index(letter) for letter in text]
            own_path = _frames_of(more, spoken[-1:], rng)
            if len(path) + len(own_path) > frames or len(spoken) + len(more) > labels:
                break
            path, spoken, word = path + own_path, spoken + more, follow(word)
        targets[n, : len(spoken)], lengths[n] = spoken, len(spoken)
        path += [0] * (frames - len(path))
        own_scores = rng.standard_normal((frames, scores.shape[2])) * _NOISE[kind]
        own_scores[np.arange(frames), path] += _LIFT
        scores[:, n] = own_scores - np.log(np.exp(own_scores).sum(1, keepdims=True))
    arpa = _bigrams(words, sentences)
    return Problem(op, kind, scores, targets, np.full(size, frames), lengths, 0, arpa=arpa)


def _frames_of(labels: list[int], before: list[int], rng: np.random.Generator) -> list[int]:
    """The class of each frame: a label for one or two, and blanks before half of them and before a repeated one."""
    path: list[int] = []
    for label in labels:
        if [label] == before or rng.random() < 0.5:
            path += [0] * int(rng.integers(1, 3))
        path += [label] * int(rng.integers(1, 3))
        before = [label]
    return path


def _bigrams(words: list[str], sentences: list[list[int]]) -> str:
    """An ARPA file of the words and of which followed which."""
    single = Counter(word for sentence in sentences for word in sentence)
    named = [["<s>", *(words[word] for word in sentence), "</s>"] for sentence in sentences]
    double = Counter(pair for sentence in named for pair in pairwise(sentence))
    before = Counter(first for sentence in named for first in sentence[:-1])
    total = sum(single.values()) + len(sentences) + 0.5 * len(words)
    lines = [f"-99\t<s>\t{_BACK_OFF}", "-4\t<unk>\t0", f"{np.log10(len(sentences) / total):.5f}\t</s>\t0"]
    lines += [f"{np.log10((single[index] + 0.5) / total):.5f}\t{word}\t{_BACK_OFF}" for index, word in enumerate(words)]
    pairs = [
        f"{np.log10(_KEPT * count / before[first]):.5f}\t{first} {second}"
        for (first, second), count in sorted(double.items())
    ]
    head = f"\\data\\\nngram 1={len(lines)}\nngram 2={len(pairs)}\n"
    parts = [head, "\\1-grams:", *lines, "", "\\2-grams:", *pairs, "", "\\end\\"]
    return "\n".join(parts) + "\n"
