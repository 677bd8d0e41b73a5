"""JSON to and from retrieval servers that are known to hold one corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from search_agent.retrieval.http import Http, excerpt
from verl.errors import InfrastructureError, UserError

JSON_HEADERS = {"Content-Type": "application/json"}
REFUSED_STATUSES = frozenset({400, 413, 414, 422})
"""What a server says of a request that it will not answer, now or later."""


class NotFound(InfrastructureError):
    """The server has no such route."""


class Refused(InfrastructureError):
    """The server finds fault with the request."""


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
        self._http = Http(session, urls, retries, on_attempt=on_attempt)
        self._fingerprint = fingerprint

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The reply's JSON. Raises InfrastructureError after the last attempt, at once where trying again is vain.

        Raises UserError if a server has come back with another corpus.
        """
        payload = None if body is None else orjson.dumps(body)
        headers = None if payload is None else JSON_HEADERS
        reply = await self._http.exchange(method, path, payload, headers, self._check_corpus)
        if reply.status == 200:
            return reply.json
        kind = Refused if reply.status in REFUSED_STATUSES else NotFound if reply.status == 404 else InfrastructureError
        at = ", ".join(address.url for address in self._http.addresses)
        raise kind(f"{method} {path.partition('?')[0]} at {at}: status {reply.status} {excerpt(reply.raw)}")

    def _check_corpus(self, headers: Mapping[str, str], url: str) -> None:
        """The server may have been started again since it was asked what it serves. Raises UserError."""
        told = headers.get("X-Sleuth-Corpus")
        if self._fingerprint is not None and told is not None and told != self._fingerprint:
            raise UserError(
                f"{url}: the server has come back with another corpus or other settings (fingerprint {told[:8]}, it "
                f"was {self._fingerprint[:8]}): serve what was served before, and run the same command to go on"
            )
