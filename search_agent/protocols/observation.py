"""Observations as ids: pieces that are tokenised one by one, and whole passages left out where they do not fit.

Invariants: the opening, the closing and the frame are always whole; passages are dropped from the last; a dropped
passage is dropped whole; the ids never number more than the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_agent.protocols.framing import Framing, Piece


@dataclass(frozen=True, slots=True)
class Shown:
    """What is appended, and how much of the result it shows."""

    piece: Piece
    passages: int
    """How many of the passages it holds, counted from the first."""


def show(framing: Framing, pieces: Sequence[str], *, last_token_id: int | None, limit: int) -> Shown | None:
    """Frame ``pieces`` (opening, passages, closing; or one text alone) in at most ``limit`` tokens.

    ``last_token_id`` is the last id that the policy sampled. None if not even the pieces without passages fit.
    """
    opening, *rest = pieces
    passages, closing = rest[:-1], rest[-1] if rest else ""
    if framing.turns_end_themselves:  # a message of its own: what would set it apart from raw text is in the way
        opening, closing = opening.lstrip(), closing.rstrip()
    before, after = framing.edges(last_token_id)
    head = [before, _data(framing, opening)]
    tail = [_data(framing, closing), after]
    room = limit - sum(len(piece.token_ids) for piece in (*head, *tail))
    if room < 0:
        return None
    shown: list[Piece] = []
    for text in passages:
        piece = _data(framing, text)
        if len(piece.token_ids) > room:
            break
        room -= len(piece.token_ids)
        shown.append(piece)
    whole = [*head, *shown, *tail]
    ids = [token_id for piece in whole for token_id in piece.token_ids]
    return Shown(Piece(ids, "".join(piece.text for piece in whole)), len(shown))


def _data(framing: Framing, text: str) -> Piece:
    return Piece(framing.data_ids(text), text)
