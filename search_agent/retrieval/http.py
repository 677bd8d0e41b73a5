"""Requests to one of several addresses, tried again within bounds: the client's, and those of back ends of others.

Retry and circuit breaker are one thing here: an address that fails rests, longer with every failure in a row, and
requests go to an address that does not rest. After a rest one request goes ahead as a probe; those who wait share its
fate, so that a dead server is asked once a rest, however many wait, and all of them have given up after as many rests
as they may try again. A living address beside it takes over at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from verl.errors import InfrastructureError

REST_FIRST_S = 0.2
REST_MAX_S = 5.0
MAX_REPLY_BYTES = 64 * 2**20
"""64 queries with 100 passages of 10,000 characters each; what is longer is no answer, and would fill the memory."""
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """What an address said in the end: a status that is not tried again."""

    status: int
    raw: bytes
    json: Any
    """None unless the status is 200: what else is said need not be JSON."""


class AttemptFailed(Exception):
    """An attempt failed in a way that another may not: ``what`` in our words, ``detail`` perhaps in the server's."""

    def __init__(self, what: str, detail: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(f"{what} {detail}".strip())
        self.what = what
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Address:
    """One server and how it has been doing."""

    url: str
    failures: int = 0
    """In a row."""
    rests_since: float = 0.0
    rests_until: float = 0.0
    probe: asyncio.Future[AttemptFailed | None] | None = None
    """The one request that may go there after a rest, while it is under way; what it failed of."""

    def begin_probe(self) -> asyncio.Future[AttemptFailed | None] | None:
        """Keep others away while one request finds out whether it is well again; None if it is not known to be ill."""
        if self.failures:
            self.probe = asyncio.get_running_loop().create_future()
        return self.probe

    def succeeded(self) -> None:
        """Forget its failures."""
        self.failures = 0
        self.rests_until = 0.0

    def failed(self, started: float, now: float, retry_after_s: float, jitter: float) -> None:
        """Let it rest; requests that were already under way when the rest began do not make it longer."""
        if started < self.rests_since:
            return
        self.failures += 1
        rest_s = max(REST_FIRST_S * 2 ** min(self.failures - 1, 30), retry_after_s)
        self.rests_since = now
        self.rests_until = now + min(REST_MAX_S, rest_s) * jitter


class Http:
    """Belongs to the event loop of its session, which it does not close."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        retries: int,
        *,
        on_attempt: Callable[[int], None] = lambda attempt: None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        """``on_attempt`` hears of every request that leaves, 0 for the first."""
        self._session = session
        self.addresses = [Address(url.rstrip("/")) for url in urls]
        self._attempts = retries + 1
        self._on_attempt = on_attempt
        self._max_reply_bytes = max_reply_bytes
        self._turn = 0
        self._random = random.Random()

    async def exchange(
        self,
        method: str,
        path: str,
        payload: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        check: Callable[[Mapping[str, str], str], None] = lambda headers, url: None,
    ) -> Reply:
        """The reply. ``check`` may raise on its headers and address; that ends the exchange.

        Raises InfrastructureError, caused by the last failure, after the last attempt.
        """
        last: Exception | None = None
        clock = asyncio.get_running_loop().time
        for attempt in range(self._attempts):
            address = await self._free_address()
            if isinstance(address, AttemptFailed):  # somebody else's
                last = address
                continue
            probe = address.begin_probe()
            self._on_attempt(attempt)
            started, failed = clock(), None
            try:
                reply = await self._once(method, address.url + path, payload, headers, check)
                address.succeeded()
                return reply
            except (AttemptFailed, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                last = error
                failed = error if isinstance(error, AttemptFailed) else AttemptFailed(type(error).__name__, str(error))
                jitter = self._random.uniform(0.75, 1.25)
                address.failed(started, clock(), failed.retry_after_s, jitter)
            finally:
                if probe is not None:  # also where it was cancelled: then one of those who wait is the next
                    address.probe = None
                    probe.set_result(failed)
        urls = ", ".join(address.url for address in self.addresses)
        raise InfrastructureError(
            f"{method} {path} failed {self._attempts} times at {urls}; last: {reason(last)}"
        ) from last

    async def _free_address(self) -> Address | AttemptFailed:
        """One that may be asked now, or what a probe that was waited for has failed of."""
        while True:
            now = asyncio.get_running_loop().time()
            in_turn = self.addresses[self._turn :] + self.addresses[: self._turn]
            for address in in_turn:
                if address.probe is None and address.rests_until <= now:
                    self._turn = (self.addresses.index(address) + 1) % len(self.addresses)
                    return address
            probes = [address.probe for address in in_turn if address.probe is not None]
            rests = [address.rests_until - now for address in in_turn if address.probe is None]
            if not probes:
                await asyncio.sleep(min(rests))
                continue
            ended, _ = await asyncio.wait(probes, timeout=min(rests, default=None), return_when="FIRST_COMPLETED")
            if failure := next(filter(None, (probe.result() for probe in ended)), None):
                return failure

    async def _once(
        self,
        method: str,
        url: str,
        payload: bytes | None,
        headers: Mapping[str, str] | None,
        check: Callable[[Mapping[str, str], str], None],
    ) -> Reply:
        sent = self._session.request(method, url, data=payload, headers=headers, allow_redirects=False)
        async with sent as response:
            raw = await self._read(response)
            check(response.headers, url)
            if response.status in RETRIED_STATUSES:
                raise AttemptFailed(f"status {response.status}", excerpt(raw), _retry_after(response.headers))
            try:
                return Reply(response.status, raw, orjson.loads(raw) if response.status == 200 else None)
            except orjson.JSONDecodeError as error:
                raise AttemptFailed("the reply is not JSON:", excerpt(raw)) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The body. Raises AttemptFailed if it is longer than any answer can be."""
        limit = self._max_reply_bytes
        too_long = AttemptFailed(f"the reply is above {limit >> 20} MiB")
        if (response.content_length or 0) > limit:  # unread: memory that was once taken is not all given back
            raise too_long
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > limit:
                parts.clear()  # the error's traceback would keep them
                raise too_long
        return b"".join(parts)


def reason(error: BaseException | None) -> str:
    """One line about an exception, also for those whose text is empty."""
    if error is None:
        return "no attempt was made"
    text = str(error).strip().splitlines()
    name = "" if isinstance(error, AttemptFailed) else type(error).__name__
    return ": ".join(part for part in (name, text[0] if text else "") if part)


def excerpt(said: bytes | str) -> str:
    """The beginning of what a server said, fit for a message: one line without control characters."""
    text = said[:EXCERPT_CHARS]
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return 0.0
