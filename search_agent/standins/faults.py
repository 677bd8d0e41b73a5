"""What the stand-ins can be told to do wrong, and how often they may be asked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse


@dataclass
class Faults:
    """Set any of these while the server runs; counts go down as they are used."""

    latency_s: float = 0.0
    """Before every reply."""
    errors: int = 0
    """So many of the next replies are 500."""
    hangs: int = 0
    """So many of the next requests are not answered within a minute."""
    truncated: int = 0
    """So many of the next replies are half of what they should be."""
    requests_per_second: int | None = None
    """More than this in any second is answered by 429; None is no limit."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=10_000))
    """The last requests, in order: method, path and what was asked."""
    _times: deque[float] = field(default_factory=deque)

    async def before(self, request: str) -> Response | None:
        """Note a request and wait; the reply to give in place of the right one, if there is one."""
        self.log.append(request)
        await asyncio.sleep(self.latency_s)
        if self.hangs:
            self.hangs -= 1
            await asyncio.sleep(60)
        if self.errors:
            self.errors -= 1
            return PlainTextResponse("internal error", 500)
        now = time.monotonic()
        while self._times and self._times[0] <= now - 1:
            self._times.popleft()
        if self.requests_per_second is not None and len(self._times) >= self.requests_per_second:
            refusal = {"error": "API rate limit exceeded", "count": str(len(self._times))}
            return JSONResponse(refusal, 429, {"Retry-After": "1"})
        self._times.append(now)
        return None

    def after(self, body: bytes) -> bytes:
        """The body as it is sent."""
        if self.truncated:
            self.truncated -= 1
            return body[: len(body) // 2]
        return body
