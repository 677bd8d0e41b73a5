"""BM25 over 100,000 passages, 64 clients, single queries, top 3 with text: ours against the published shape."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import Figure, main
from bench.retrieval.against import measure


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 20,000 passages and 4 s a server."""
    ours, theirs = measure(20_000 if quick else 100_000, 4 if quick else 20)
    p99_ours, p99_theirs = ours.load.quantile_s(0.99), theirs.load.quantile_s(0.99)
    yield Figure.at_least("queries per second, ours / theirs", ours.load.per_second / theirs.load.per_second, "x", 6)
    yield Figure.at_most("p99 latency, ours / theirs", p99_ours / p99_theirs, "x", 0.1)
    yield Figure.at_most("memory of our server", ours.memory_mb, "MB", 500)
    per_cpu = ours.load.per_cpu_second / theirs.load.per_cpu_second
    yield Figure("queries per CPU second of the server, ours / theirs", per_cpu, "x")
    yield Figure("queries per second, ours", ours.load.per_second, "1/s")
    yield Figure("queries per second, theirs", theirs.load.per_second, "1/s")
    yield Figure("p99 latency, ours", p99_ours * 1e3, "ms")
    yield Figure("p99 latency, theirs", p99_theirs * 1e3, "ms")
    yield Figure("memory, theirs", theirs.memory_mb, "MB")


if __name__ == "__main__":
    main(figures)
