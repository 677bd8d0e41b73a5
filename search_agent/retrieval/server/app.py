"""The HTTP service as a plain ASGI application: reads, bounds, hands to the back end and renders; never blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from search_agent.retrieval.backends.backend import Backend, Hit, selective
from search_agent.retrieval.coalescer import Failed
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.server import access, metrics, reading, replies, wire
from search_agent.retrieval.server.batcher import Batcher, QueueFull
from search_agent.retrieval.server.loading import Served
from search_agent.retrieval.server.openapi import document
from search_agent.retrieval.server.reading import Receive, Scope
from search_agent.retrieval.server.replies import Answer
from search_agent.retrieval.server.wire import BadRequest, Bounds, Request
from search_agent.retrieval.types import QueryRefused

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Render = Callable[[Request, Sequence[Answer], Documents], bytes]
Reply = tuple[bytes, bytes]
"""Content type and body."""

MAX_WAITING_QUERIES = 8192
SLICE_QUERIES = 1024
"""Of a larger request so many are searched at a time, so that those of others come in between."""
RETRY_AFTER = [(b"retry-after", b"1")]
"""Seconds after which a refused client may try again."""
FULL_S = 0.05
"""Between two looks at a full queue, by a request of which a slice has been answered."""
NO_STRING = Answer((), "a query is a string", 422)
CORPUS_HEADER = b"x-sleuth-corpus"
"""Carries the fingerprint of what is served with every reply: a client notices a server that came back with another."""
JSON = b"application/json"
OPEN_ROUTES = ("/health", "/ready", "/")
"""Answered without a token: they say nothing about the corpus. The page asks its reader for the token."""


class App:
    """Answers 503 until ``start`` has been called with something to serve."""

    def __init__(
        self, bounds: Bounds, threads: int, hosts: Collection[str] = (), max_waiting: int = MAX_WAITING_QUERIES
    ) -> None:
        self._bounds = bounds
        self._threads = threads
        self._hosts = hosts
        self._max_waiting = max_waiting
        self._token = access.token()
        self._served: Served | None = None
        self._batcher: Batcher | None = None
        self._metrics = metrics.Metrics()
        self._routes: dict[tuple[str, str], Callable[[Scope, Receive], Awaitable[Reply]]] = {
            ("POST", "/retrieve"): self._retrieve,
            ("POST", "/search"): self._search,
            ("POST", "/batch_search"): self._batch_search,
            ("GET", "/api/search"): self._api_search,
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._is_ready,
            ("GET", "/info"): self._info,
            ("GET", "/metrics"): self._show_metrics,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/"): self._page,
        }
        self.draining = False

    def start(self, served: Served) -> None:
        """Begin to answer."""
        self._batcher = Batcher(served.backend, self._threads, self._max_waiting)
        self._served = served

    def close(self) -> None:
        """Let the search threads go."""
        if self._batcher is not None:
            self._batcher.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request (the server runs without ASGI lifespan)."""
        started = time.perf_counter()
        route, headers = scope["path"], list[tuple[bytes, bytes]]()
        try:
            content_type, body = await self._route(scope, receive)
            status = 200
        except BadRequest as error:
            content_type, body = JSON, orjson.dumps({"detail": str(error)})
            status, headers = error.status, list(error.headers)
            route = route if status != 404 else "unknown"
        if self._served is not None and (fingerprint := self._served.manifest.get("fingerprint")):
            headers.append((CORPUS_HEADER, str(fingerprint).encode()))
        headers += [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.count_request(route, status, time.perf_counter() - started)

    async def _route(self, scope: Scope, receive: Receive) -> Reply:
        method, path = scope["method"], scope["path"]
        host = reading.header(scope, b"host")
        if self._hosts and host is not None and access.name_of(host) not in self._hosts:
            raise BadRequest(403, f"this server does not go by the name {host[:100]!r}; see its key hosts")
        handler = self._routes.get((method, path))
        if handler is None:
            allowed = ", ".join(known for known, other in self._routes if other == path)
            detail = f"no such route: {method} {path}; see /openapi.json"
            raise BadRequest(405, detail, [(b"allow", allowed.encode())]) if allowed else BadRequest(404, detail)
        token = self._token
        if token and path not in OPEN_ROUTES and not access.allows(reading.header(scope, b"authorization"), token):
            raise BadRequest(401, "a bearer token is needed", [(b"www-authenticate", b"Bearer")])
        return await handler(scope, receive)

    async def _retrieve(self, scope: Scope, receive: Receive) -> Reply:
        request = wire.retrieve(await reading.body(scope, receive), self._bounds)
        return await self._answer(request, replies.retrieve)

    async def _search(self, scope: Scope, receive: Receive) -> Reply:
        request = wire.search(await reading.body(scope, receive), self._bounds)
        return await self._answer(request, replies.search)

    async def _batch_search(self, scope: Scope, receive: Receive) -> Reply:
        request = wire.batch_search(await reading.body(scope, receive), self._bounds)
        return await self._answer(request, replies.batch_search)

    async def _api_search(self, scope: Scope, receive: Receive) -> Reply:
        return await self._answer(wire.api_search(scope["query_string"], self._bounds), replies.api_search)

    async def _health(self, scope: Scope, receive: Receive) -> Reply:
        return JSON, b'{"status":"alive"}'

    async def _is_ready(self, scope: Scope, receive: Receive) -> Reply:
        self._ready()
        return JSON, b'{"status":"ready"}'

    async def _info(self, scope: Scope, receive: Receive) -> Reply:
        served, _ = self._ready()
        options = wire.info(scope["query_string"])
        if not options:
            return JSON, orjson.dumps(served.manifest)
        told = _checked(served.backend, options)
        try:
            selected = await asyncio.to_thread(selective(served.backend).count, told)
        except ValueError as error:
            raise BadRequest(422, str(error)) from error
        return JSON, orjson.dumps({**served.manifest, "options": told, "selected": selected})

    async def _show_metrics(self, scope: Scope, receive: Receive) -> Reply:
        return metrics.CONTENT_TYPE, self._metrics.render(self._batcher)

    async def _openapi(self, scope: Scope, receive: Receive) -> Reply:
        return JSON, orjson.dumps(document(self._bounds, self._served.filters if self._served else ()))

    async def _page(self, scope: Scope, receive: Receive) -> Reply:
        return b"text/html; charset=utf-8", Path(__file__).with_name("page.html").read_bytes()

    def _ready(self) -> tuple[Served, Batcher]:
        if self._served is None or self._batcher is None or self.draining:
            raise BadRequest(503, "stopping" if self.draining else "the index is being loaded", RETRY_AFTER)
        return self._served, self._batcher

    async def _answer(self, request: Request, render: Render) -> Reply:
        """Search all queries of a request; one that fails fails alone."""
        served, batcher = self._ready()
        if request.options:
            _checked(served.backend, request.options)
        sound = [query for query in request.queries if query is not None and query.strip()]
        self._metrics.count_queries(len(request.queries) - request.queries.count(None))
        step, done = min(SLICE_QUERIES, self._max_waiting), list[asyncio.Future[list[Hit]]]()
        while len(done) < len(sound):
            try:
                futures = batcher.submit(sound[len(done) : len(done) + step], request.k, request.options)
            except QueueFull as error:
                if not done:
                    detail = f"{batcher.waiting} queries are waiting; come back later"
                    raise BadRequest(429, detail, RETRY_AFTER) from error
                await asyncio.sleep(FULL_S)  # what was found would be lost
                continue
            await _settled(futures)
            done += futures
        found = iter(done)
        answers = [
            NO_STRING if query is None else _as_answer(next(found)) if query.strip() else Answer()
            for query in request.queries
        ]
        return JSON, render(request, answers, served.documents)


async def _settled(futures: Sequence[asyncio.Future[list[Hit]]]) -> None:
    """Wait for all. Unlike ``gather`` it leaves them alone if the waiting is cancelled: others may wait for them."""
    for future in futures:
        if not future.done():
            waiter = asyncio.get_running_loop().create_future()
            future.add_done_callback(partial(_wake, waiter))
            await waiter


def _wake(waiter: asyncio.Future[None], done: asyncio.Future[list[Hit]]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _checked(backend: Backend, options: str) -> dict[str, Any]:
    """The options as an object. Raises BadRequest if the back end does not understand them."""
    told: dict[str, Any] = orjson.loads(options)
    try:
        selective(backend).check(told)
    except ValueError as error:
        raise BadRequest(422, str(error)) from error
    return told


def _as_answer(done: asyncio.Future[list[Hit]]) -> Answer:
    failed = done.exception()
    if isinstance(failed, Failed):
        error = failed.error
        if isinstance(error, QueryRefused):
            return Answer((), str(error), 422, refused=True)
        return Answer((), f"the back end failed: {type(error).__name__}: {error}", 500)
    return Answer(done.result())
