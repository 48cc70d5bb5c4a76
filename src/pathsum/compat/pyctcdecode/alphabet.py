"""``pyctcdecode.alphabet``: the classes' texts."""

from __future__ import annotations

import json
import re

BPE_TOKEN, UNK_TOKEN, UNK_BPE_TOKEN = "▁", "⁇", "▁⁇▁"
BLANK_TOKEN_PTN = re.compile(r"^[<\[]pad[>\]]$", re.IGNORECASE)
UNK_TOKEN_PTN = re.compile(r"^[<\[]unk[>\]]$", re.IGNORECASE)
_SPECIAL = re.compile(r"^[<\[].+[>\]]$")


class Alphabet:
    """``pyctcdecode.Alphabet``: the classes' texts, "" the blank, " " the separator of words."""

    def __init__(self, labels: list[str], is_bpe: bool) -> None:
        self._labels = labels
        self._is_bpe = is_bpe

    @property
    def is_bpe(self) -> bool:
        """Whether the labels are word pieces, of which "▁" begins a word."""
        return self._is_bpe

    @property
    def labels(self) -> list[str]:
        """A copy of the labels."""
        return list(self._labels)

    @classmethod
    def build_alphabet(cls, labels: list[str]) -> Alphabet:
        """Labels as tokenizers have them: the blank may be "[pad]", "<pad>" or "_", or lack; the space "|".

        Args:
            labels: The classes' texts.

        Returns:
            The alphabet. Where there is no blank one is appended.

        Raises:
            ValueError: A label is there twice; a space in word pieces.
        """
        if len(set(labels)) != len(labels):
            raise ValueError("Alphabet contains duplicate entries, this is not allowed.")
        pieces = any(label.startswith("##") for label in labels)
        is_bpe = pieces or any(label.startswith(BPE_TOKEN) for label in labels)
        if is_bpe and any(" " in label for label in labels):
            raise ValueError("Space token ' ' found in vocabulary even though it looks like BPE.")
        own = [_with_boundary(label) for label in labels] if pieces else list(labels)
        if not is_bpe and "|" in own and " " not in own:
            own[own.index("|")] = " "
        own = ["" if BLANK_TOKEN_PTN.match(label) else label for label in own]
        if not is_bpe and "_" in own and "" not in own:
            own[own.index("_")] = ""
        if "" not in own:
            own.append("")
        unknown = UNK_BPE_TOKEN if is_bpe else UNK_TOKEN
        return cls([unknown if UNK_TOKEN_PTN.match(label) else label for label in own], is_bpe)

    def dumps(self) -> str:
        """The alphabet as JSON."""
        return json.dumps({"labels": self._labels, "is_bpe": self._is_bpe})

    @classmethod
    def loads(cls, text: str) -> Alphabet:
        """The alphabet that ``dumps`` has written."""
        found = json.loads(text)
        if set(found) != {"labels", "is_bpe"}:
            raise ValueError(f"unexpected keys found: {sorted(found)}; expected is_bpe, labels")
        return cls(found["labels"], found["is_bpe"])


def _with_boundary(label: str) -> str:
    """A word piece of "##" style as one of "▁" style."""
    if label.startswith("##"):
        return label[2:]
    return label if label in ("", BPE_TOKEN, UNK_BPE_TOKEN) or _SPECIAL.match(label) else BPE_TOKEN + label
