"""Reads an ASGI request, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from search_agent.retrieval.server.wire import BadRequest

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]

MAX_BODY_BYTES = 8 * 2**20
READ_S = 30.0
"""Within which a request must have arrived whole: one that stays half sent would hold its connection for ever."""


def header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def body(scope: Scope, receive: Receive) -> bytes:
    try:
        async with asyncio.timeout(READ_S):
            return await _read(scope, receive)
    except TimeoutError as error:
        detail = f"the request did not arrive within {READ_S:g} s"
        raise BadRequest(408, detail, [(b"connection", b"close")]) from error


async def _read(scope: Scope, receive: Receive) -> bytes:
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise BadRequest(413, f"the body is above {MAX_BODY_BYTES} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest(400, "the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise BadRequest(413, f"the body is above {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
