"""A retrieval server that takes its time: ``POST /retrieve`` as the real one speaks it, answered after the latency.

A request of several queries is answered when the slowest of them is, as a batch search is.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.harness import ROOT
from bench.rollout.latency import latency_s
from bench.rollout.proxy import until_input_ends

PASSAGES, PASSAGE_WORDS = 3, 172
"""Three passages of so many one-token words, and what frames them, are an observation of about 500 tokens."""


@contextmanager
def serving(median_s: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    code = f"import asyncio; from bench.rollout.retriever import serve; asyncio.run(serve({median_s}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def passages(query: str, inventory: list[str]) -> list[dict[str, Any]]:
    """Three passages of words that depend on the query."""
    draw = random.Random(query)
    return [
        {
            "document": {"id": f"{rank}", "contents": f'"{draw.choice(inventory)}"\n{" ".join(words)}'},
            "score": float(PASSAGES - rank),
        }
        for rank in range(PASSAGES)
        for words in [draw.choices(inventory, k=PASSAGE_WORDS)]
    ]


async def serve(median_s: float) -> None:
    """Print the address, and answer until standard input ends."""
    from aiohttp import web

    from bench.retrieval.world import words
    from bench.rollout.model import WORDS

    inventory = words()[:WORDS]

    async def retrieve(request: web.Request) -> web.Response:
        queries = (await request.json())["queries"]
        await asyncio.sleep(max(latency_s(query, median_s) for query in queries))
        return web.json_response({"result": [passages(query, inventory) for query in queries]})

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/retrieve", retrieve)
    await until_input_ends(app)
