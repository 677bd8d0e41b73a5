"""What a search gives back.

A call to a retriever ends in one of three ways: documents, no documents (a fact about the corpus), or a failure, which
is never a value: it is raised as ``verl.errors.InfrastructureError``, so that nobody can show it to a model as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class QueryRefused(Exception):
    """A query that the engine behind a server cannot read (open parentheses, say): its writer's fault, no outage."""


class Document(NamedTuple):
    """One passage, as the corpus holds it, with the score that one query gave it. A tuple: a deep ranking has
    thousands."""

    id: str
    title: str
    """Empty where the corpus has none."""
    text: str
    """The passage without its title line."""
    score: float
    """Higher is better; comparable within one result only."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one query, best document first."""

    documents: tuple[Document, ...]
    """At most k; may be empty. Equal scores stand in the order of the corpus."""
    latency_s: float
    """From the call to its answer, in seconds; waiting for a batch and retries included."""
    cached: bool
    """Whether the answer came from the client's cache and reached no server."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, by name, for rewards and metrics."""


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of the FlashRAG form ``"Title"<newline>text``; without a newline it is all text."""
    head, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    title = head.strip()
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text
