"""BM25 over 1,000,000 passages, 64 clients, single queries, top 3 with text: ours against the published shape."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import Figure, main
from bench.retrieval.against import compared, measure


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 50,000 passages and 4 s a server. The first full run also builds the index."""
    ours, theirs = measure(50_000 if quick else 1_000_000, 4 if quick else 20)
    yield from compared(ours, theirs, 4)
    yield Figure.at_most("ready from a warm cache", ours.ready_s, "s", 2)
    yield Figure("memory of our server", ours.memory_mb, "MB")


if __name__ == "__main__":
    main(figures)
