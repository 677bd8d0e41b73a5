"""Requests to one of several addresses, tried again within bounds.

Retry and circuit breaker are one thing here: an address that fails rests, longer with every failure in a row, and
requests go to an address that does not rest; where all rest, a request waits for the first to come back. So a dead
server is asked once a rest, however many requests wait, and a living one beside it takes over at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from verl.errors import InfrastructureError, UserError

REST_FIRST_S = 0.2
REST_MAX_S = 5.0
MAX_REPLY_BYTES = 64 * 2**20
"""64 queries with 100 passages of 10,000 characters each; what is longer is no answer, and would fill the memory."""
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(slots=True)
class Address:
    """One server and how it has been doing."""

    url: str
    failures: int = 0
    """In a row."""
    rests_since: float = 0.0
    rests_until: float = 0.0

    def succeeded(self) -> None:
        """Forget its failures."""
        self.failures = 0
        self.rests_until = 0.0

    def failed(self, started: float, now: float, retry_after_s: float | None, jitter: float) -> None:
        """Let it rest; requests that were already under way when the rest began do not make it longer."""
        if started < self.rests_since:
            return
        self.failures += 1
        rest_s = min(REST_MAX_S, REST_FIRST_S * 2 ** (self.failures - 1)) * jitter
        self.rests_since = now
        self.rests_until = now + (rest_s if retry_after_s is None else min(retry_after_s, REST_MAX_S))


class NotFound(InfrastructureError):
    """The server has no such route."""


class _Retry(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Transport:
    """Sends JSON to addresses in turn. Belongs to the event loop of its session, which it does not close."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        retries: int,
        on_attempt: Callable[[int], None] = lambda attempt: None,
        fingerprint: str | None = None,
    ) -> None:
        """``fingerprint`` is that of the corpus the servers are known for, None if they tell none."""
        self._session = session
        self.addresses = [Address(url.rstrip("/")) for url in urls]
        self._attempts = retries + 1
        self._on_attempt = on_attempt
        self._fingerprint = fingerprint
        self._turn = 0
        self._random = random.Random()

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The reply's JSON. Raises InfrastructureError after the last attempt, at once where trying again is vain.

        Raises UserError if a server has come back with another corpus.
        """
        payload = None if body is None else orjson.dumps(body)
        last: Exception | None = None
        for attempt in range(self._attempts):
            address = await self._next_address()
            self._on_attempt(attempt)
            started = time.monotonic()
            try:
                reply = await self._once(method, address.url + path, payload)
            except (_Retry, aiohttp.ClientError, TimeoutError, OSError) as error:
                last = error
                retry_after_s = error.retry_after_s if isinstance(error, _Retry) else None
                address.failed(started, time.monotonic(), retry_after_s, self._random.uniform(0.75, 1.25))
            else:
                address.succeeded()
                return reply
        urls = ", ".join(address.url for address in self.addresses)
        raise InfrastructureError(
            f"{method} {path} failed {self._attempts} times at {urls}; last: {reason(last)}"
        ) from last

    async def _once(self, method: str, url: str, payload: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"} if payload is not None else None
        async with self._session.request(method, url, data=payload, headers=headers) as response:
            raw = await _read(response)
            self._check_corpus(response.headers, url)
            if response.status in RETRIED_STATUSES:
                raise _Retry(f"status {response.status} {_excerpt(raw)}", _retry_after(response.headers))
            if response.status == 404:
                raise NotFound(f"{method} {url}: status 404")
            if response.status != 200:
                raise InfrastructureError(f"{method} {url}: status {response.status} {_excerpt(raw)}")
            try:
                return orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                raise _Retry(f"the reply is not JSON: {_excerpt(raw)}") from error

    def _check_corpus(self, headers: Mapping[str, str], url: str) -> None:
        """The server may have been started again since it was asked what it serves. Raises UserError."""
        told = headers.get("X-Sleuth-Corpus")
        if self._fingerprint is not None and told is not None and told != self._fingerprint:
            raise UserError(
                f"{url}: the server has come back with another corpus or other settings (fingerprint {told[:8]}, it "
                f"was {self._fingerprint[:8]}): serve what was served before, and run the same command to go on"
            )

    async def _next_address(self) -> Address:
        while True:
            now = time.monotonic()
            in_turn = self.addresses[self._turn :] + self.addresses[: self._turn]
            address = min(in_turn, key=lambda a: max(0.0, a.rests_until - now))
            if address.rests_until <= now:
                self._turn = (self.addresses.index(address) + 1) % len(self.addresses)
                return address
            await asyncio.sleep(address.rests_until - now)


def reason(error: BaseException | None) -> str:
    """One line about an exception, also for those whose text is empty."""
    if error is None:
        return "no attempt was made"
    text = str(error).strip().splitlines()
    name = "" if isinstance(error, _Retry) else type(error).__name__
    return ": ".join(part for part in (name, text[0] if text else "") if part)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises _Retry if it is longer than any answer can be."""
    if (response.content_length or 0) > MAX_REPLY_BYTES:  # unread: memory that was once taken is not all given back
        raise _Retry(f"the reply is above {MAX_REPLY_BYTES >> 20} MiB")
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            parts.clear()  # the error's traceback would keep them
            raise _Retry(f"the reply is above {MAX_REPLY_BYTES >> 20} MiB")
    return b"".join(parts)


def _excerpt(raw: bytes) -> str:
    return raw[:200].decode("utf-8", "replace").strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None
