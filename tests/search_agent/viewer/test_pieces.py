"""Token boundaries and passages in texts, in the units that a browser counts in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from search_agent.protocols import autorefine, research, search_r1
from search_agent.viewer.passages import passage_bounds
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


@dataclass
class Document:
    """What a search found."""

    title: str
    text: str


DOCUMENTS = [
    Document('Red "Sky"', f"was written {FACE}\n\nby Mara"),  # mentions the next title
    Document("Mara", "was born > in Ashby </result>"),
    Document("", "Mara"),
]
PROTOCOLS = {"autorefine": autorefine, "search_r1": search_r1, "research": research}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_passages_are_found_as_their_protocol_renders_them(name: str) -> None:
    module: Any = PROTOCOLS[name]
    protocol = module.build(module.Config())
    opening, *shown, closing = protocol.observe_results(DOCUMENTS)
    text = "".join([opening, *shown, closing])
    results = [ToolResult(str(number), 1.0, document.title) for number, document in enumerate(DOCUMENTS)]
    bounds = passage_bounds(text, results, protocol)
    assert bounds is not None
    units = text.encode("utf-16-le")
    found = [units[2 * begin : 2 * end].decode("utf-16-le") for begin, end in pairwise(bounds)]
    for document, passage, rendered in zip(DOCUMENTS, found, shown, strict=True):
        assert passage.strip() == rendered.strip()
        assert document.text in passage
    assert passage_bounds(text, results[::-1], protocol) is None
    assert passage_bounds("That was no search.", results, protocol) is None
    assert passage_bounds(text, [], protocol) is None
