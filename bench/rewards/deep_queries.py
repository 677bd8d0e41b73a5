"""Rewards of 2,560 queries at depth 1,000 over 100,000 passages: ids alone and many at a time, against one blocking
request a sample with whole passages, as DeepRetrieval's reward manager asks.

Both sides search the same index, in turns, and score nDCG of every ranking. ``--quick`` uses 20,000 passages.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness import Figure, main
from bench.retrieval import world
from bench.retrieval.against import peer
from search_agent.evaluation.metrics import ndcg
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server

QUERIES, DEPTH = 2560, 1000
BLOCKING = 128
"""Samples of a turn of the published shape, whose rate does not depend on how many follow."""
TURNS = 2


def figures(quick: bool) -> Iterator[Figure]:
    """The rate of each side, over all its turns."""
    corpus, index = world.indexed(20_000 if quick else 100_000)
    asked = world.queries(QUERIES)
    grades = {"0": 1.0}
    with tempfile.TemporaryDirectory() as scratch:
        log, announce = Path(scratch) / "log", Path(scratch) / "announce"
        with start_server(corpus, log=log, index=index) as server, peer(corpus, announce) as (url, _):
            many, one = [], []
            for turn in range(TURNS):
                many.append(asyncio.run(together(server.url, asked, grades)))
                one.append(blocking(url, asked[turn * BLOCKING : (turn + 1) * BLOCKING], grades))
    ours, theirs = QUERIES * TURNS / sum(many), BLOCKING * TURNS / sum(one)
    yield Figure.at_least("rewards per second, ours / published shape", ours / theirs, "x", 8)
    yield Figure("rewards per second, ours", ours, "1/s")
    yield Figure("rewards per second, published shape", theirs, "1/s")
    yield Figure(f"seconds for {QUERIES} rewards, ours", QUERIES / ours, "s")


async def together(url: str, asked: Sequence[str], grades: dict[str, float]) -> float:
    """Seconds to score all queries, all in flight."""
    began = time.perf_counter()
    async with RetrievalClient(ClientConfig(urls=(url,))) as client:

        async def reward(query: str) -> float:
            result = await client.search(query, DEPTH, ids_only=True)
            return ndcg([document.id for document in result.documents], grades, DEPTH)

        await asyncio.gather(*(reward(query) for query in asked))
    return time.perf_counter() - began


def blocking(url: str, asked: Sequence[str], grades: dict[str, float]) -> float:
    """Seconds to score the queries one after another."""
    began = time.perf_counter()
    for query in asked:
        body = json.dumps({"queries": [query], "topk": DEPTH, "return_scores": True}).encode()
        request = urllib.request.Request(f"{url}/retrieve", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            (row,) = json.load(reply)["result"]
        ndcg([hit["document"]["id"] for hit in row], grades, DEPTH)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(figures)
