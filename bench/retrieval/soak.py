"""A thousand connections, a server that is killed and started again twice: no answer lost, none wrong, memory flat."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import aiohttp
import psutil

from bench.harness import ROOT, Figure, main
from bench.retrieval import world
from search_agent.retrieval.client.transport import Transport

KILLS = 2
DOWN_S = 1.0


class Server:
    """A server process on a fixed port, which can be killed."""

    def __init__(self, corpus: Path, index: Path, port: int) -> None:
        self._arguments = [f"corpus={corpus}", f"index={index}", f"port={port}"]
        self.url = f"http://127.0.0.1:{port}"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "search_agent.retrieval.server", *self._arguments], cwd=ROOT)

    async def kill_and_start(self) -> None:
        """SIGKILL, a second of nothing, and a new process at the same address."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        await asyncio.sleep(DOWN_S)
        self.process = self._start()

    def memory_mb(self) -> float:
        """Resident memory now."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` takes 30 s and 200 connections instead of 10 min and 1,000."""
    seconds, connections = (30, 200) if quick else (600, 1000)
    corpus, index = world.indexed(20_000 if quick else 100_000)
    server = Server(corpus, index, port=20_000 + os.getpid() % 20_000)
    try:
        answered, wrong, lost, early, late = asyncio.run(_soak(server, seconds, connections))
    finally:
        server.process.terminate()
        server.process.wait(60)
    yield Figure.at_most("wrong answers", wrong, "", 0)
    yield Figure.at_most("lost answers", lost, "", 0)
    yield Figure.at_most("memory at the end / soon after the last start", late / early, "x", 1.1)
    yield Figure("answers", answered, "")
    yield Figure("memory at the end", late, "MB")


async def _soak(server: Server, seconds: float, connections: int) -> tuple[int, int, int, float, float]:
    queries = world.queries(2_000)
    answered = wrong = lost = 0
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        transport = Transport(session, [server.url], retries=60)
        expected = await _ask_all(transport, queries)
        end = time.monotonic() + seconds

        async def one(seed: int) -> None:
            nonlocal answered, wrong, lost
            rng = Random(seed)
            while time.monotonic() < end:
                number = rng.randrange(len(queries))
                try:
                    reply = await _ask(transport, queries[number])
                except Exception as error:  # counted, and shown: the figure is that there is none
                    lost += 1
                    print(f"lost: {error}", file=sys.stderr)
                else:
                    answered += 1
                    wrong += reply != expected[number]

        tasks = [asyncio.create_task(one(seed)) for seed in range(connections)]
        for _ in range(KILLS):
            await asyncio.sleep(seconds / (KILLS + 2))
            await server.kill_and_start()
        await asyncio.sleep(seconds / (KILLS + 2) * 0.5)
        early = server.memory_mb()
        await asyncio.sleep(max(0.0, end - time.monotonic() - 1))
        late = server.memory_mb()
        await asyncio.gather(*tasks)
    return answered, wrong, lost, early, late


async def _ask_all(transport: Transport, queries: list[str]) -> list[object]:
    return [await _ask(transport, query) for query in queries]


async def _ask(transport: Transport, query: str) -> object:
    body = {"queries": [query], "topk": 3, "return_scores": True}
    reply: object = await transport.request("POST", "/retrieve", body)
    return reply


if __name__ == "__main__":
    main(figures)
