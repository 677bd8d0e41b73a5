"""Token boundaries and passages in texts, in the units that a browser counts in."""

from __future__ import annotations

import pytest

from search_agent.viewer.passages import passage_starts
from search_agent.viewer.pieces import Pieces
from verl.trajectory import ToolResult

FACE = "\U0001f600"
BYTES = {0: b"who ", 1: b"wrote", 2: FACE.encode()[:2], 3: FACE.encode()[2:], 4: "é".encode(), 5: b" it"}


class ByteDecoder:
    """Decodes as byte-level tokenizers do: what is cut inside a character is a replacement character."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return b"".join(BYTES[identifier] for identifier in ids).decode(errors="replace")


class SpaceDroppingDecoder:
    """Decodes as SentencePiece does: the first token loses its space."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join([" who", " wrote", " it"][identifier] for identifier in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("ids", "text", "lengths"),
    [
        ([0, 1], "who wrote", [4, 5]),
        ([4, 5], "é it", [1, 3]),
        ([0, 2, 3, 5], f"who {FACE} it", [4, 0, 2, 3]),  # two UTF-16 units, all with the token that ends them
        ([], "", []),
        ([0, 1], "who read", None),
    ],
)
def test_each_token_has_its_part_of_the_text(ids: list[int], text: str, lengths: list[int] | None) -> None:
    assert Pieces(ByteDecoder()).lengths(ids, text) == lengths


def test_tokens_that_read_otherwise_alone_are_placed_by_what_stands_before() -> None:
    assert Pieces(SpaceDroppingDecoder()).lengths([0, 1, 2], "who wrote it") == [3, 6, 3]


def test_without_a_tokenizer_nothing_is_guessed() -> None:
    assert Pieces(None).lengths([1], "x") is None


@pytest.mark.parametrize(
    ("text", "titles", "starts"),
    [
        ("<documents>Doc 1(Title: A) x\nDoc 2(Title: B) y</documents>", ["A", "B"], [11, 29]),
        (f"{FACE}\nDoc 1 A\nDoc 2 A", ["A", "A"], [3, 11]),
        ("Doc 1 A", ["A", "B"], None),
        ("Doc 1 A", [""], None),
        ("none", [], []),
    ],
)
def test_passages_begin_where_their_titles_do(text: str, titles: list[str], starts: list[int] | None) -> None:
    results = [ToolResult(str(number), 1.0, title) for number, title in enumerate(titles)]
    assert passage_starts(text, results) == starts
