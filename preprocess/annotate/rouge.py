"""ROUGE-L (Lin 2004) of two texts: how long their longest common subsequence of words is."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+")


class RougeL(NamedTuple):
    """Shares of the common subsequence, in [0, 1]."""

    recall: float
    """In the first text."""
    precision: float
    """In the second."""
    f: float
    """Their harmonic mean, as ``rouge_score`` has it (no stemming)."""


def rouge_l(wanted: str, text: str) -> RougeL:
    """Of ``wanted`` in ``text``; words are runs of letters and digits, in lower case. 0 where one has none."""
    ours, theirs = _WORD.findall(wanted.lower()), _WORD.findall(text.lower())
    common = common_length(ours, theirs)
    if not common:
        return RougeL(0.0, 0.0, 0.0)
    recall, precision = common / len(ours), common / len(theirs)
    return RougeL(recall, precision, 2 * recall * precision / (recall + precision))


def common_length(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, a row of its table as the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << number
    full = (1 << len(left)) - 1
    row = full
    for word in right:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & full
    return len(left) - row.bit_count()
