"""Text to terms, the same for passages and queries.

Lower case, words of two or more letters or digits, English stop words out, Snowball English stems: what ``bm25s`` does
by default with a stemmer, so that an index made by either is searched in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import Stemmer

_STOP = "a an and are as at be but by for if in into is it no not of on or such that the their then there these they"
STOP_WORDS = frozenset(f"{_STOP} this to was will with".split())
"""Lucene's English list, which bm25s uses too."""

_words: Callable[[str], list[str]] = re.compile(r"\b\w\w+\b").findall


class Analyzer:
    """Holds a stemmer, which is not safe to share: one for each thread."""

    def __init__(self) -> None:
        self._stem = Stemmer.Stemmer("english").stemWord

    def words(self, text: str) -> list[str]:
        """The words of a text, stop words included, unstemmed."""
        return _words(text.lower())

    def term(self, word: str) -> str | None:
        """The term that a word stands for, None for a stop word."""
        return None if word in STOP_WORDS else self._stem(word)

    def terms(self, text: str) -> list[str]:
        """The terms of a text in order, repeats included."""
        return [self._stem(word) for word in _words(text.lower()) if word not in STOP_WORDS]
