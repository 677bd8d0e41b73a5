"""What every back end behind the server offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found, and its score."""

    doc: int
    """Its number in the corpus; its place in the result where the back end holds the passages itself."""
    score: float
    passage: bytes | None = None
    """The passage as JSON (``id``, ``contents``) where the back end holds it, None where the corpus does."""


class Backend(Protocol):
    """Finds passages by number. Called from search threads, never from the event loop; safe to call from several."""

    max_batch: int
    """Queries that one call may bring: few where they are answered one by one, many where a batch shares work."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most k hits a query, best first, equal scores in corpus order; none where nothing matches."""
        ...

    def implementation(self) -> str:
        """Which code answers; does not change the answers."""
        ...

    def manifest(self) -> dict[str, Any]:
        """What it is and how it is set, JSON-ready: all that may change an answer."""
        ...
