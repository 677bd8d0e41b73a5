"""Collects queries for the back end: what arrives while it is busy is its next batch.

No window is waited for: a query that finds an idle search thread goes at once. Identical queries in flight are computed
once. A batch that fails is tried query by query, so that one bad query fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from search_agent.retrieval.backends.backend import Backend, Hit, search_with

Key = tuple[str, int, str]
"""A query, k, and the options of its request as JSON."""
Outcome = list[Hit] | Exception


class QueueFull(Exception):
    """More queries wait than the server is willing to hold."""


class Batcher:
    """Lives in the event loop; only ``Backend.search`` runs in the search threads."""

    def __init__(self, backend: Backend, threads: int, max_waiting: int) -> None:
        self._backend = backend
        self._threads = threads
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._busy: set[asyncio.Task[None]] = set()
        self._waiting: deque[Key] = deque()
        self._in_flight: dict[Key, asyncio.Future[list[Hit]]] = {}
        self.batches = 0
        """Calls of the back end so far."""
        self.computed = 0
        """Queries that reached the back end so far."""

    @property
    def waiting(self) -> int:
        """Queries that no search thread has taken yet."""
        return len(self._waiting)

    def submit(self, queries: list[str], k: int, options: str = "") -> list[asyncio.Future[list[Hit]]]:
        """A future for each query. Raises QueueFull, taking none, if they are too many for now."""
        keys = [(query, k, options) for query in queries]
        new = {key for key in keys if key not in self._in_flight}
        if len(self._waiting) + len(new) > self._max_waiting:
            raise QueueFull
        futures = [self._future(key) for key in keys]
        self._pump()
        return futures

    def close(self) -> None:
        """Let the search threads go once they have finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _future(self, key: Key) -> asyncio.Future[list[Hit]]:
        future = self._in_flight.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(_look_at)
            self._in_flight[key] = future
            self._waiting.append(key)
        return future

    def _pump(self) -> None:
        while self._waiting and len(self._busy) < self._threads:
            task = asyncio.get_running_loop().create_task(self._run(self._take_batch()))
            self._busy.add(task)
            task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._pump()

    def _take_batch(self) -> list[Key]:
        """The oldest queries that share k and options with the very oldest, leaving the others where they are."""
        shared = self._waiting[0][1:]
        batch: list[Key] = []
        while self._waiting and self._waiting[0][1:] == shared and len(batch) < self._backend.max_batch:
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: list[Key]) -> None:
        loop = asyncio.get_running_loop()
        self.batches += 1
        self.computed += len(batch)
        queries, (_, k, options) = [query for query, *_ in batch], batch[0]
        try:
            outcomes = await loop.run_in_executor(self._pool, self._search, queries, k, options)
        except Exception as error:  # the pool itself: those who wait must hear of it
            outcomes = [error] * len(batch)
        for key, outcome in zip(batch, outcomes, strict=True):
            future = self._in_flight.pop(key)
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _search(self, queries: list[str], k: int, options: str) -> list[Outcome]:
        """In a search thread."""
        try:
            return list(search_with(self._backend, queries, k, options))
        except Exception as error:
            return [error] if len(queries) == 1 else [self._search([query], k, options)[0] for query in queries]


def _look_at(future: asyncio.Future[list[Hit]]) -> None:
    """Mark a failure as seen, for the case that the client has gone."""
    if not future.cancelled():
        future.exception()
