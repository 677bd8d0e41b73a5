"""A retrieval server's front that fails on request: everything that a network and a sick server do to a client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import statistics
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal

import aiohttp
from aiohttp import web

from verl.cluster.processes import free_port

Fault = Literal[
    "none", "refused", "hang", "slow", "status_500", "garbage", "half_body", "empty", "other_shape", "huge", "endless"
]
HUGE_BYTES = 100 * 2**20
HANG_S = 120.0
"""Longer than any client waits for an attempt."""


def no_latency(body: bytes) -> float:
    """Answers go out as soon as they are there."""
    return 0.0


def drawn_latency(median_s: float, tail_s: float = 5.0, tail_share: float = 0.02) -> Callable[[bytes], float]:
    """Seconds drawn for each request from a hash of its body: log-normal around the median, with a long tail."""

    def latency(body: bytes) -> float:
        draws = hashlib.blake2b(body, digest_size=16).digest()
        first, second = (int.from_bytes(part) / 2**64 for part in (draws[:8], draws[8:]))
        if first < tail_share:
            return tail_s
        spread = math.exp(0.5 * statistics.NormalDist().inv_cdf(min(max(second, 1e-9), 1 - 1e-9)))
        return min(median_s * spread, tail_s)

    return latency


class Proxy:
    """Passes requests on to ``upstream``, except while ``fault`` says otherwise. Use with ``async with``."""

    def __init__(
        self, upstream: str, *, latency: Callable[[bytes], float] = no_latency, slow_s: float = 1.0, port: int = 0
    ) -> None:
        self.upstream = upstream
        self.fault: Fault = "none"
        self.slow_s = slow_s
        """How long an answer takes while ``fault`` is ``slow``."""
        self.requests = 0
        """Searches that came in."""
        self._latency = latency
        self._port = port or free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Proxy:
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += request.path == "/retrieve"
        if self.fault == "hang":
            await asyncio.sleep(HANG_S)
        if self.fault == "slow":
            await asyncio.sleep(self.slow_s)
        if self.fault == "refused":
            return _hang_up(request)
        if self.fault == "status_500":
            return web.Response(status=500, text="the disk is on fire")
        if self.fault == "garbage":
            return web.Response(text="<html>we are sorry</html>")
        if self.fault == "other_shape":
            return web.json_response({"detail": "moved"})
        if self.fault in ("huge", "endless"):
            return await _huge(request, announced=self.fault == "huge")
        if request.path == "/retrieve":
            await asyncio.sleep(self._latency(body))
        return await self._pass_on(request, body)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in ("Content-Type", "Authorization") if name in request.headers}
        if self._session.closed:  # the front was closed while this request waited
            return _hang_up(request)
        try:
            url = self.upstream + request.raw_path
            async with self._session.request(request.method, url, data=body, headers=headers) as reply:
                content, status = await reply.read(), reply.status
                kept = {name: value for name, value in reply.headers.items() if name.lower() not in _HOP_HEADERS}
        except (aiohttp.ClientError, OSError, TimeoutError):
            return _hang_up(request)
        if self.fault == "half_body" and request.path == "/retrieve":
            response = web.StreamResponse(status=status, headers={**kept, "Content-Length": str(len(content))})
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            return _hang_up(request)
        if self.fault == "empty" and request.path == "/retrieve":
            nothing: dict[str, list[list[str]]] = {"result": [[] for _ in (await request.json())["queries"]]}
            return web.Response(status=status, text=json.dumps(nothing), headers=kept)
        return web.Response(status=status, body=content, headers=kept)


_HOP_HEADERS = ("content-length", "transfer-encoding", "connection", "content-encoding")


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)


async def _huge(request: web.Request, *, announced: bool) -> web.StreamResponse:
    """Blanks, which are JSON so far; ``announced`` says beforehand how many."""
    length = {"Content-Length": str(HUGE_BYTES)} if announced else {}
    response = web.StreamResponse(headers={"Content-Type": "application/json", **length})
    await response.prepare(request)
    with suppress(ConnectionError):  # what a client that has had enough is expected to do
        for _ in range(HUGE_BYTES // 2**20):
            await response.write(b" " * 2**20)
    return response
