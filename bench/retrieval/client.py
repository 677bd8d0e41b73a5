"""The coalescing client against a ``requests.Session`` a thread, with 64 and 512 single queries in flight."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from bench.harness import Figure, main
from bench.retrieval import world
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server

REACH = {64: 6.0, 512: 8.0}


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` asks 1,500 queries of each client instead of 12,000."""
    corpus, index = world.indexed(20_000 if quick else 100_000)
    asked = list(dict.fromkeys(world.queries(1_500 if quick else 12_000)))
    with (
        tempfile.TemporaryDirectory() as scratch,
        start_server(corpus, log=Path(scratch) / "log", index=index) as server,
    ):
        asyncio.run(_coalescing(server.url, asked[:500], 64))
        for in_flight, reach in REACH.items():
            ours = len(asked) / asyncio.run(_coalescing(server.url, asked, in_flight))
            theirs = len(asked) / _threads(server.url, asked, in_flight)
            yield Figure.at_least(
                f"queries per second with {in_flight} in flight, ours / theirs", ours / theirs, "x", reach
            )
            yield Figure(f"queries per second with {in_flight} in flight, ours", ours, "1/s")
            yield Figure(f"queries per second with {in_flight} in flight, theirs", theirs, "1/s")


async def _coalescing(url: str, queries: Sequence[str], in_flight: int) -> float:
    source = iter(queries)
    async with RetrievalClient(ClientConfig(urls=(url,))) as client:

        async def one() -> None:
            for query in source:
                await client.search(query, 3)

        began = time.perf_counter()
        await asyncio.gather(*[one() for _ in range(in_flight)])
        return time.perf_counter() - began


def _threads(url: str, queries: Sequence[str], in_flight: int) -> float:
    local = threading.local()

    def one(query: str) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        body = {"queries": [query], "topk": 3, "return_scores": True}
        reply = local.session.post(f"{url}/retrieve", json=body, timeout=60)
        reply.raise_for_status()
        reply.json()

    with ThreadPoolExecutor(in_flight) as pool:
        began = time.perf_counter()
        list(pool.map(one, queries))
        return time.perf_counter() - began


if __name__ == "__main__":
    main(figures)
