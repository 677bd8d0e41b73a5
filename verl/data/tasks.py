"""A task: one row of a data set, the question an episode is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its accepted answers (the FlashRAG row)."""

    id: str
    """Unique within its data set; groups, seeds and records refer to it."""
    question: str
    """Shown to the policy, as the protocol's prompt renders it."""
    golden_answers: tuple[str, ...]
    """Accepted answers, at least one; scoring takes the best match."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything else in the row (``hops``, ``supporting_ids``): for metrics, never shown to the policy."""
    prompt: str | None = None
    """A prompt that the data set rendered beforehand: it opens the episode in place of the protocol's own."""
    images: tuple[str, ...] = ()
    """What the question shows: paths, or ``data:`` URLs that hold the bytes. Engines for text alone
    refuse them."""
