"""Collects queries for the back end: what arrives while it is busy is its next batch.

No window is waited for: a query that finds an idle search thread goes at once. Identical queries in flight are computed
once. A batch that fails is tried query by query, so that one bad query fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from search_agent.retrieval.backends.backend import Backend, Hit, search_with
from search_agent.retrieval.coalescer import Coalescer

Terms = tuple[int, str]
"""k, and the options of a request as JSON."""
Outcome = list[Hit] | Exception


class QueueFull(Exception):
    """More queries wait than the server is willing to hold."""


class Batcher:
    """Lives in the event loop; only ``Backend.search`` runs in the search threads."""

    def __init__(self, backend: Backend, threads: int, max_waiting: int) -> None:
        self._backend = backend
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._coalescer: Coalescer[Terms, list[Hit]] = Coalescer(self._ask, backend.max_batch, threads)
        self.batches = 0
        """Calls of the back end so far."""
        self.computed = 0
        """Queries that reached the back end so far."""

    @property
    def waiting(self) -> int:
        """Queries that no search thread has taken yet."""
        return self._coalescer.waiting

    def submit(self, queries: Sequence[str], k: int, options: str = "") -> list[asyncio.Future[list[Hit]]]:
        """A future for each query, which may end in ``Failed``. Raises QueueFull, taking none, if they are too many."""
        terms = (k, options)
        new = {query for query in queries if not self._coalescer.is_in_flight(query, terms)}
        if self.waiting + len(new) > self._max_waiting:
            raise QueueFull
        return [self._coalescer.submit(query, terms) for query in queries]

    def close(self) -> None:
        """Let the search threads go once they have finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, queries: Sequence[str], terms: Terms) -> Sequence[Outcome]:
        self.batches += 1
        self.computed += len(queries)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._search, queries, *terms)

    def _search(self, queries: Sequence[str], k: int, options: str) -> list[Outcome]:
        """In a search thread."""
        try:
            return list(search_with(self._backend, queries, k, options))
        except Exception as error:
            return [error] if len(queries) == 1 else [self._search([query], k, options)[0] for query in queries]
