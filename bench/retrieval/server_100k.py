"""BM25 over 100,000 passages, 64 clients, single queries, top 3 with text: ours against the published shape."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import Figure, main
from bench.retrieval.against import compared, measure


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 20,000 passages and 4 s a server."""
    ours, theirs = measure(20_000 if quick else 100_000, 4 if quick else 20)
    yield from compared(ours, theirs, 6)
    p99 = ours.load.quantile_s(0.99) / theirs.load.quantile_s(0.99)
    yield Figure.at_most("p99 latency, ours / theirs", p99, "x", 0.1)
    yield Figure.at_most("memory of our server", ours.memory_mb, "MB", 500)
    yield Figure("memory, theirs", theirs.memory_mb, "MB")


if __name__ == "__main__":
    main(figures)
