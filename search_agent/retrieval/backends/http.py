"""Requests to services of others: pooled, timed, tried again, bounded, and silent about keys.

Back ends are called from search threads; one event loop in a thread of its own carries their requests.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from search_agent.retrieval import http
from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.index.corpus import parse_row
from verl.errors import InfrastructureError, UserError

MAX_REPLY_BYTES = 16 * 2**20
MAX_CONNECTIONS = 32


class Http:
    """Safe to call from several threads."""

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._timeout, self._retries = aiohttp.ClientTimeout(total=timeout_s), retries
        self._hosts: dict[str, http.Http] = {}
        self._sessions: list[aiohttp.ClientSession] = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="http", daemon=True).start()
        weakref.finalize(self, _end, self._loop, self._sessions)

    def json(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of a reply. Raises InfrastructureError as ``reply`` does, and where it is no JSON."""
        reply = self.reply(method, url, headers, body)
        try:
            return reply.status, orjson.loads(reply.raw) if reply.json is None else reply.json
        except orjson.JSONDecodeError:
            why = f"status {reply.status}, and no JSON"
            raise InfrastructureError(f"{_host(url)} does not answer: {why}") from None

    def reply(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> http.Reply:
        """What the service said in the end. Raises InfrastructureError if that is nothing, or too much.

        Messages name the host alone: an address, and what is said about it, may hold a key.
        """
        try:
            return asyncio.run_coroutine_threadsafe(self._ask(method, url, headers, body), self._loop).result()
        except InfrastructureError as error:
            failure = error.__cause__
            why = failure.what if isinstance(failure, http.AttemptFailed) else type(failure).__name__
            raise InfrastructureError(f"{_host(url)} does not answer: {why}") from None

    async def _ask(self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None) -> http.Reply:
        parts = urlsplit(url)
        address = f"{parts.scheme}://{parts.netloc}"
        if not self._sessions:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            jar = aiohttp.DummyCookieJar()
            self._sessions.append(aiohttp.ClientSession(connector=connector, timeout=self._timeout, cookie_jar=jar))
        if address not in self._hosts:
            self._hosts[address] = http.Http(
                self._sessions[0], [address], self._retries, max_reply_bytes=MAX_REPLY_BYTES
            )
        return await self._hosts[address].exchange(method, url.removeprefix(address), body, headers)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _end(loop: asyncio.AbstractEventLoop, sessions: list[aiohttp.ClientSession]) -> None:
    """Close what ``Http`` opened, in its thread, which ends with that."""

    async def close() -> None:
        for session in sessions:
            await session.close()
        loop.stop()

    loop.call_soon_threadsafe(lambda: loop.create_task(close()))


def secret(variable: str, key: str) -> str | None:
    """What the environment holds under ``variable``, None where no variable is named.

    Raises UserError if it is named, by the configuration's ``key``, and not set.
    """
    if not variable:
        return None
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{key}: the environment variable {variable} is not set; export it, or name another")
    return value


def passage_hit(place: int, score: float, row: Mapping[str, Any]) -> Hit:
    """A hit that brings its passage along. Raises InfrastructureError if the row is no passage."""
    try:
        return Hit(place, score, parse_row(row).to_json())
    except ValueError as error:
        raise InfrastructureError(f"the back end holds a row {row.get('id')!r} that is no passage: {error}") from error
