"""Where each sampled token stands in the text, so that its log-probability can be shown on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: list[int], skip_special_tokens: bool = ...) -> str: ...


class Pieces:
    """Cuts texts into what their tokens decode to. One decoder call for each id of the vocabulary that occurs."""

    def __init__(self, decoder: Decoder | None) -> None:
        self._decoder = decoder
        self._known: dict[int, str] = {}

    def lengths(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Characters (UTF-16 units, as a browser counts) of each token in ``text``; None if they do not make it up.

        A token that ends inside a character has length 0, and the token that completes it has the whole of it.
        """
        if self._decoder is None:
            return None
        pieces = [self._piece(identifier) for identifier in ids]
        if "".join(pieces) != text:
            prefixes = [self._decode(list(ids[: n + 1])) for n in range(len(ids))]
            if not prefixes or prefixes[-1] != text:
                return None
            ends = [len(_common(prefix, text)) for prefix in prefixes]
            pieces = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        return [utf16_length(piece) for piece in pieces]

    def _piece(self, identifier: int) -> str:
        if identifier not in self._known:
            self._known[identifier] = self._decode([identifier])
        return self._known[identifier]

    def _decode(self, ids: list[int]) -> str:
        assert self._decoder is not None
        return self._decoder.decode(ids, skip_special_tokens=False)


def open_tokenizer(folder: Path | None) -> Decoder | None:
    """The tokenizer of a Hugging Face folder; None where there is none to read."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json" if folder is not None else None
    return Tokenizer.from_file(str(file)) if file is not None and file.is_file() else None


def utf16_length(text: str) -> int:
    """How long a browser finds a text."""
    return len(text) + sum(character > "\uffff" for character in text) if not text.isascii() else len(text)


def _common(prefix: str, text: str) -> str:
    """``prefix`` without what a later token changes: the replacement characters of a character cut in two."""
    while prefix and not text.startswith(prefix):
        prefix = prefix[:-1]
    return prefix
