"""Load on an HTTP server: so many connections, each with one request under way, as cheap as Python allows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What came back."""

    seconds: float
    latencies_s: Sequence[float]
    failed: int

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return len(self.latencies_s) / self.seconds

    def quantile_s(self, q: float) -> float:
        """Latency quantile, seconds."""
        return float(np.quantile(self.latencies_s, q))


def run(url: str, queries: Sequence[str], connections: int, seconds: float, k: int = 3) -> Load:
    """Ask single queries by ``POST /retrieve`` for so long, after a warm-up of a fifth of it."""
    requests = [_request(url, query, k) for query in queries]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(url, requests, connections, seconds))


def _request(url: str, query: str, k: int) -> bytes:
    body = orjson.dumps({"queries": [query], "topk": k, "return_scores": True})
    host = urlsplit(url).netloc.encode()
    head = b"POST /retrieve HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (host, len(body)) + body


async def _drive(url: str, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    parts = urlsplit(url)
    source, latencies, failures = cycle(requests), list[float](), [0]
    begin = time.perf_counter() + seconds / 5
    end = begin + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (asked := time.perf_counter()) < end:
            writer.write(next(source))
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
            answered = time.perf_counter()
            if asked >= begin:
                if head.startswith(b"HTTP/1.1 200"):
                    latencies.append(answered - asked)
                else:
                    failures[0] += 1
        writer.close()

    await asyncio.gather(*[one() for _ in range(connections)])
    return Load(time.perf_counter() - begin, latencies, failures[0])
