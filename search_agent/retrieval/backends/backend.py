"""What every back end behind the server offers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import orjson


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
        """At most k hits a query, best first, equal scores in corpus order; none where nothing matches.

        No query is blank: those have no meaning to rank by, find nothing, and are not asked.
        Raises QueryRefused for a query that it cannot read; others in the batch are then asked by themselves.
        """

    def implementation(self) -> str:
        """Which code answers; does not change the answers."""

    def manifest(self) -> dict[str, Any]:
        """What it is and how it is set, JSON-ready: all that may change an answer."""


def cut(query: str, max_terms: int) -> str:
    """The query up to this many terms, however a server of others counts them: words, and each sign of other scripts.

    They refuse what has more, and a model may write any number.
    """
    ends = [term.end() for term in islice(_terms(query), max_terms)]
    return query[: ends[-1]] if ends else query


_terms = re.compile(r"[a-zA-Z0-9_]+|[^\sa-zA-Z0-9_]").finditer


@runtime_checkable
class Selective(Backend, Protocol):
    """A back end that a request can tell more: which passages it is about."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError if it does not understand an option."""

    def count(self, options: Mapping[str, Any]) -> int:
        """How many passages the options select. Raises ValueError if it cannot tell."""

    def search_selected(self, queries: Sequence[str], k: int, options: Mapping[str, Any]) -> list[list[Hit]]:
        """As ``search``, among the passages that the options select."""


def selective(backend: Backend) -> Selective:
    """The back end, if it takes options. Raises ValueError otherwise."""
    if not isinstance(backend, Selective):
        raise ValueError("options: this server has no filters; start it with filters=FIELD")
    return backend


def search_with(backend: Backend, queries: Sequence[str], k: int, options: str) -> list[list[Hit]]:
    """What the back end finds; ``options`` is a JSON object, empty for none. Raises ValueError if it takes none."""
    if not options:
        return backend.search(queries, k)
    return selective(backend).search_selected(queries, k, orjson.loads(options))
