"""Where each passage of a search stands in the observation that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_agent.protocols.base import SearchProtocol
from search_agent.viewer.pieces import utf16_length
from verl.trajectory import ToolResult

_TEXT = "\ue000"
"""Stands for a passage's text: a private character, which no text is likely to hold."""


@dataclass(frozen=True, slots=True)
class _Named:
    title: str
    text: str = _TEXT


def passage_bounds(text: str, results: Sequence[ToolResult], protocol: SearchProtocol) -> list[int] | None:
    """Where each passage begins, and where the last one ends, in UTF-16 units; None unless all are found, in order.

    Only titles are recorded of passages. The protocol renders them again, so that what stands between two texts is
    known whole, and a title that another passage mentions is not taken for the passage. What is not found is not
    guessed.
    """
    pieces = protocol.observe_results([_Named(result.title) for result in results])
    cut = [piece.split(_TEXT) for piece in pieces[1:-1]]
    if len(cut) != len(results) or not cut or any(len(parts) != 2 for parts in cut):
        return None
    bounds, position, before = [], 0, ""
    for head, tail in cut:
        found = text.find(before + head, position)
        if found < 0:
            return None
        bounds.append(found + len(before))
        position, before = found + len(before + head), tail
    end = text.rfind((before + pieces[-1]).rstrip(), position)
    bounds.append(end if end >= 0 else len(text))
    return [utf16_length(text[:bound]) for bound in bounds]
