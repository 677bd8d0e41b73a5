"""Load on an HTTP server: so many connections, each with one request under way, as cheap as Python allows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import psutil
import uvloop

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What came back."""

    seconds: float
    latencies_s: Sequence[float]
    failed: int
    cpu_s: float
    """CPU seconds of the server in that time: what the machine's other work disturbs least."""

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return len(self.latencies_s) / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Good answers a CPU second of the server."""
        return len(self.latencies_s) / self.cpu_s

    def quantile_s(self, q: float) -> float:
        """Latency quantile, seconds."""
        return float(np.quantile(self.latencies_s, q))


def together(loads: Sequence[Load]) -> Load:
    """Several turns as one load."""
    return Load(
        seconds=sum(load.seconds for load in loads),
        latencies_s=[latency for load in loads for latency in load.latencies_s],
        failed=sum(load.failed for load in loads),
        cpu_s=sum(load.cpu_s for load in loads),
    )


def run(url: str, pid: int, queries: Sequence[str], connections: int, seconds: float, k: int = 3) -> Load:
    """Ask the server ``pid`` single queries by ``POST /retrieve`` for so long, after a warm-up of a fifth of it.

    Raises OSError if it cannot be reached, ConnectionError if it closes a connection.
    """
    requests = [_request(url, query, k) for query in queries]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(url, pid, requests, connections, seconds))


def _request(url: str, query: str, k: int) -> bytes:
    body = orjson.dumps({"queries": [query], "topk": k, "return_scores": True})
    host = urlsplit(url).netloc.encode()
    head = b"POST /retrieve HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (host, len(body)) + body


async def _drive(url: str, pid: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    warm = time.perf_counter() + seconds / 5
    shared = _Shared(cycle(requests), warm, warm + seconds)
    opened = [
        await loop.create_connection(lambda: _Connection(shared, loop.create_future()), host, port)
        for _ in range(connections)
    ]
    await asyncio.sleep(warm - time.perf_counter())
    before = _cpu_s(pid)
    await asyncio.sleep(shared.end - time.perf_counter())
    cpu_s = _cpu_s(pid) - before
    await asyncio.gather(*[protocol.done for _, protocol in opened])
    return Load(seconds, shared.latencies_s, shared.failed, cpu_s)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(slots=True)
class _Shared:
    """What all connections share."""

    requests: Iterator[bytes]
    begin: float
    end: float
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0


class _Connection(asyncio.Protocol):
    """Asks, reads the whole reply, and asks again until the end. Counts what is answered from begin to end."""

    def __init__(self, shared: _Shared, done: asyncio.Future[None]) -> None:
        self._shared = shared
        self.done = done
        self._received = bytearray()
        self._needed = 0
        self._asked = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed a connection"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._needed:
            head_end = received.find(_HEAD_END)
            if head_end < 0:
                return
            length = _LENGTH.search(received, 0, head_end)
            self._needed = head_end + len(_HEAD_END) + (int(length[1]) if length else 0)
        if len(received) >= self._needed:
            self._answered(received.startswith(b"HTTP/1.1 200"))

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(next(self._shared.requests))

    def _answered(self, good: bool) -> None:
        now, shared = time.perf_counter(), self._shared
        if shared.begin <= now < shared.end:
            if good:
                shared.latencies_s.append(now - self._asked)
            else:
                shared.failed += 1
        self._received.clear()
        self._needed = 0
        if now < shared.end:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()
