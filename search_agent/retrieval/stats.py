"""Counters of a retrieval client or server: whole numbers that only grow, and a histogram of latencies."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any

LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram's buckets, seconds; one more bucket holds what is above the last."""


@dataclass(slots=True)
class Histogram:
    """How many values fell at or under each bound of ``LATENCY_BOUNDS_S``."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self.counts)


@dataclass(slots=True)
class ClientStats:
    """What a client did since it was opened."""

    queries: int = 0
    """Calls of ``search``."""
    coalesced: int = 0
    """Of those, calls that waited for an identical query already in flight."""
    cache_hits: int = 0
    """Of those, calls answered from the cache."""
    empty: int = 0
    """Of those, answers without a document."""
    failures: int = 0
    """Of those, calls that failed for good."""
    requests: int = 0
    """POSTs sent, retries included."""
    sent_queries: int = 0
    """Queries that those POSTs carried."""
    retries: int = 0
    """POSTs sent again after a failure."""
    latency: Histogram = field(default_factory=Histogram)
    """Of answered calls, from call to answer."""

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dict of the counters, with the mean latency in seconds (0 if nothing was answered)."""
        record = asdict(self)
        latency = record.pop("latency")
        mean_s = self.latency.total_s / max(1, self.latency.count)
        return {**record, "latency_mean_s": mean_s, "latency_counts": latency["counts"]}
