"""The retrieval client: many coroutines search, few requests leave, and a run can be replayed without a server.

What is asked at the same time shares one ``POST /retrieve`` (see ``coalescer``), failures are tried again at living
addresses (``transport``), shards are merged (``layout``), answers may be kept on disk (``cache``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from search_agent.retrieval.client.cache import AnswerStore
from search_agent.retrieval.client.layout import Layout, arrange, manifest_of
from search_agent.retrieval.client.reply import Documents, Terms, ask, clean, merge_replies
from search_agent.retrieval.client.transport import NotFound, Refused, Transport
from search_agent.retrieval.coalescer import Coalescer
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.access import token_headers
from search_agent.retrieval.stats import ClientStats
from search_agent.retrieval.types import SearchResult
from verl.errors import InfrastructureError, UserError

READY_POLL_S = 0.05


class RetrievalClient:
    """Searches by HTTP. Open it with ``async with`` in the event loop that uses it; one a process is enough."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._stats = ClientStats()
        self._session: aiohttp.ClientSession | None = None
        self._store: AnswerStore | None = None

    async def __aenter__(self) -> RetrievalClient:
        """Connect to nothing yet, and know nothing of the servers: one that is opened again may meet others."""
        config = self._config
        if config.cache_file is not None and config.cache != "off":
            self._store = AnswerStore(config.cache_file)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=config.timeout_s),
            headers=token_headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._layout: Layout | None = None
        self._shards: list[Transport] = []
        self._layout_lock = asyncio.Lock()
        in_flight = config.max_requests_in_flight * len(config.urls)
        self._coalescer: Coalescer[Terms, Documents] = Coalescer(self._ask, config.max_queries_per_request, in_flight)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up what is under way (those who wait get InfrastructureError), close connections and cache."""
        if self._session is not None:
            await self._coalescer.close(InfrastructureError("the retrieval client was closed"))
            await self._session.close()
            self._session = None
        if self._store is not None:
            self._store.close()
            self._store = None

    async def search(
        self, query: str, k: int, options: Mapping[str, Any] | None = None, ids_only: bool = False
    ) -> SearchResult:
        """The k best documents for the query, cut and cleaned as far as it must be; none for one that is blank.

        ``options`` are the server's (dates, filters); with ``ids_only`` documents have neither title nor text.
        Raises InfrastructureError after the last retry, QueryRefused for a query that cannot be read, UserError if a
        replay has no answer to this query, servers contradict each other or speak a dialect without options,
        ValueError if k < 1.
        """
        if k < 1:
            raise ValueError(f"k = {k}: at least 1")
        if (options or ids_only) and self._config.dialect != "retrieve":
            raise UserError(f"client.dialect={self._config.dialect} knows no options and no replies of ids alone")
        terms = Terms(k, orjson.dumps(options, option=orjson.OPT_SORT_KEYS).decode() if options else "", ids_only)
        self._opened()
        started = time.monotonic()
        self._stats.queries += 1
        try:
            documents, cached = await self._find(clean(query, self._config.max_query_bytes), terms)
        except InfrastructureError:
            self._stats.failures += 1
            raise
        latency_s = time.monotonic() - started
        self._stats.latency.add(latency_s)
        self._stats.empty += not documents
        return SearchResult(documents, latency_s, cached)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once every address answers ``/ready``; a server of others, which has none, once it answers a search.

        Raises InfrastructureError with the last reason after ``timeout_s``. In a replay there is nothing to wait for.
        """
        session, deadline = self._opened(), time.monotonic() + timeout_s
        for url in () if self._config.cache == "replay" else self._config.urls:
            while True:
                transport = Transport(session, [url], retries=0)
                try:
                    await self._check_ready(transport)
                    break
                except (NotFound, Refused) as error:
                    raise InfrastructureError(f"no retriever of dialect={self._config.dialect}: {error}") from error
                except InfrastructureError as error:
                    if time.monotonic() >= deadline:
                        raise InfrastructureError(f"not ready after {timeout_s:g} s: {error}") from error
                await asyncio.sleep(READY_POLL_S)

    async def info(self) -> dict[str, Any]:
        """The manifest of the first server that answers: corpus, back end, number of documents, fingerprint.

        Empty for a server of others, which has none. In a replay without a server, the recording's fingerprint alone.
        """
        if self._store is not None and self._config.cache == "replay":
            return {"fingerprint": await self._fingerprint()}
        transport = Transport(self._opened(), self._config.urls, self._config.retries)
        return await _manifest(transport) or {}

    def stats(self) -> dict[str, Any]:
        """Counters since it was opened, JSON-ready."""
        return self._stats.to_record()

    # -- inside --

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("open the client first: async with RetrievalClient(config) as client")
        return self._session

    async def _check_ready(self, transport: Transport) -> None:
        """Raises NotFound or Refused if nothing there speaks the dialect, InfrastructureError if it is not ready."""
        try:
            await transport.request("GET", "/ready")
        except NotFound:
            (answer,) = await ask(transport, self._config.dialect, ["ready"], Terms(1))
            if isinstance(answer, InfrastructureError):
                raise answer from None

    async def _find(self, query: str, terms: Terms) -> tuple[Documents, bool]:
        if not query:
            return (), False
        store, mode = self._store, self._config.cache
        if store is not None and mode in ("cache", "replay"):
            stored = store.get(await self._fingerprint(), terms, query)
            if stored is not None:
                self._stats.cache_hits += 1
                return stored, True
            if mode == "replay":
                raise UserError(
                    f"cache_file: {self._config.cache_file} has no answer for {query!r} (k={terms.k}): this run "
                    "differs from the recorded one; record it with cache=record"
                )
        self._stats.coalesced += self._coalescer.is_in_flight(query, terms)
        return await self._coalescer.get(query, terms), False

    async def _fingerprint(self) -> str:
        layout = self._layout or await self._arrange()
        if layout.fingerprint is None:
            raise UserError(f"cache: {self._config.urls[0]} has no /info and so no fingerprint; write cache=off")
        return layout.fingerprint

    async def _ask(self, queries: Sequence[str], terms: Terms) -> Sequence[Documents | Exception]:
        """Ask every shard, merge, and store."""
        await self._arrange()
        self._stats.sent_queries += len(queries)
        parts = await asyncio.gather(*[ask(shard, self._config.dialect, queries, terms) for shard in self._shards])
        answers = [merge_replies(found, terms.k) for found in zip(*parts, strict=True)]
        if self._store is not None:
            pairs = zip(queries, answers, strict=True)
            found = [(query, answer) for query, answer in pairs if not isinstance(answer, Exception)]
            await self._store.put(await self._fingerprint(), terms, found)
        return answers

    async def _arrange(self) -> Layout:
        """Learn once which address serves which shard; every reply then tells whether that still holds."""
        async with self._layout_lock:
            if self._layout is None:
                layout = await self._discover()
                self._shards = [
                    Transport(self._opened(), urls, self._config.retries, self._count_attempt, layout.fingerprint)
                    for urls in layout.shards
                ]
                self._layout = layout
            return self._layout

    async def _discover(self) -> Layout:
        """A replay needs no server; where one answers nevertheless, it tells recordings of several corpora apart."""
        if self._store is None or self._config.cache != "replay":
            return await discover(self._opened(), self._config)
        try:
            return await discover(self._opened(), replace(self._config, retries=0))
        except InfrastructureError:
            return Layout((), self._store.only_fingerprint())

    def _count_attempt(self, attempt: int) -> None:
        self._stats.requests += 1
        self._stats.retries += attempt > 0


async def _manifest(transport: Transport) -> dict[str, Any] | None:
    try:
        return manifest_of(await transport.request("GET", "/info"))
    except NotFound:
        return None


async def discover(session: aiohttp.ClientSession, config: ClientConfig) -> Layout:
    """Ask every address what it serves; one that cannot be reached is passed over if others are complete without it."""

    async def info(url: str, retries: int) -> dict[str, Any] | InfrastructureError | None:
        try:
            return await _manifest(Transport(session, [url], retries))
        except InfrastructureError as error:
            return error

    retries = config.retries if len(config.urls) == 1 else 0
    found = dict(zip(config.urls, await asyncio.gather(*[info(url, retries) for url in config.urls]), strict=True))
    infos = {url: info for url, info in found.items() if not isinstance(info, InfrastructureError)}
    failed = {url: info for url, info in found.items() if isinstance(info, InfrastructureError)}
    if not infos:
        raise next(iter(failed.values()))
    return arrange(infos, list(failed))
