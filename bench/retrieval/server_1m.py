"""BM25 over 1,000,000 passages, 64 clients, single queries, top 3 with text: ours against the published shape."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import Figure, main
from bench.retrieval.against import measure


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 50,000 passages and 4 s a server. The first full run also builds the index."""
    ours, theirs = measure(50_000 if quick else 1_000_000, 4 if quick else 20)
    yield Figure.at_least("queries per second, ours / theirs", ours.load.per_second / theirs.load.per_second, "x", 4)
    yield Figure.at_most("ready from a warm cache", ours.ready_s, "s", 2)
    per_cpu = ours.load.per_cpu_second / theirs.load.per_cpu_second
    yield Figure("queries per CPU second of the server, ours / theirs", per_cpu, "x")
    yield Figure("queries per second, ours", ours.load.per_second, "1/s")
    yield Figure("queries per second, theirs", theirs.load.per_second, "1/s")
    yield Figure("p99 latency, ours", ours.load.quantile_s(0.99) * 1e3, "ms")
    yield Figure("p99 latency, theirs", theirs.load.quantile_s(0.99) * 1e3, "ms")
    yield Figure("memory of our server", ours.memory_mb, "MB")


if __name__ == "__main__":
    main(figures)
