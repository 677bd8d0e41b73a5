"""Stop strings, found without making text of every token.

Few tokens of a vocabulary can complete a given stop string: those whose text begins with an end of it, or holds it
whole. Only after one of these is the text of the last tokens made and looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

UNFINISHED = "\ufffd"
"""What stands for bytes that are no whole character."""


class StopStrings:
    """The stop strings of one tokenizer's requests."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[str] = []
        self.of = lru_cache(maxsize=64)(self._of)
        """The finder of some stop strings; a run has few different ones."""

    def _of(self, stops: tuple[str, ...]) -> StopFinder:
        if not self._pieces:  # at the first request that has any: a second for a large vocabulary
            ids = range(len(self._tokenizer))
            anchor = self.text(ids[-1:])  # a tokenizer may leave out a space before the first token
            whole = [self.text([ids[-1], number]) for number in ids]
            self._pieces = [text[len(anchor) :] if text.startswith(anchor) else UNFINISHED for text in whole]
        return StopFinder(self, stops, frozenset(i for i, piece in enumerate(self._pieces) if _completes(piece, stops)))

    def text(self, token_ids: Sequence[int]) -> str:
        """What these tokens say, special ones included, as it is."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StopFinder:
    """Looks for some stop strings at the end of what was generated."""

    def __init__(self, strings: StopStrings, stops: tuple[str, ...], completing: frozenset[int]) -> None:
        self._text = strings.text
        self._stops = stops
        self._completing = completing
        # A token holds a byte at least; a few more, for those that hold none at all.
        self._window = max(len(stop.encode()) for stop in stops) + 8

    def found(self, token_ids: Sequence[int]) -> str | None:
        """The stop string that the last of all tokens completes: of several the one that ends first. To be asked after
        each token, for what was complete before is not told apart."""
        if token_ids[-1] not in self._completing:
            return None
        text = self._text(token_ids[-self._window :])
        ends = [(text.index(stop) + len(stop), number) for number, stop in enumerate(self._stops) if stop in text]
        return self._stops[min(ends)[1]] if ends else None


def _completes(piece: str, stops: tuple[str, ...]) -> bool:
    """Whether a token of this text can be the last one of a stop string."""
    if UNFINISHED in piece:  # what it completes depends on the bytes around it
        return True
    return any(stop in piece or any(piece.startswith(stop[i:]) for i in range(len(stop))) for stop in stops)
