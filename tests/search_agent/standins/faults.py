"""What a stand-in can be told to do wrong, how often it may be asked, and what it was asked."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse


@dataclass
class Faults:
    """Set any of these while the server runs; counts go down as they are used."""

    errors: int = 0
    """So many of the next replies are 500."""
    truncated: int = 0
    """So many of the next replies are half of what they should be."""
    requests_per_second: int | None = None
    """More than this in any second is answered by 429; None is no limit."""
    log: list[str] = field(default_factory=list)
    """The requests, in order: method, path and what was asked."""
    _times: deque[float] = field(default_factory=deque)

    def around(self, app: FastAPI) -> FastAPI:
        """The application with these faults."""

        @app.middleware("http")
        async def faulty(request: Request, answer: Any) -> Response:
            asked = b"&".join([request.url.query.encode(), await request.body()]).decode("utf-8", "replace")
            self.log.append(f"{request.method} {request.url.path} {parse_qsl(asked, keep_blank_values=True)}")
            if (refusal := self._refusal()) is not None:
                return refusal
            response = await answer(request)
            if not self.truncated:
                return response  # type: ignore[no-any-return]
            self.truncated -= 1
            body = b"".join([part async for part in response.body_iterator])
            return Response(body[: len(body) // 2], media_type=response.media_type)

        return app

    def _refusal(self) -> Response | None:
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
