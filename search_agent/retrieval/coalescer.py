"""Turns many small questions into few larger ones, without a time window.

A query leaves at once while fewer than the allowed requests are under way; what is asked in the meantime travels
together in the next request. Identical queries in flight are asked once. So the client asks servers, and a server its
back end.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
T = TypeVar("T", bound=Hashable)
"""The terms of a request, of which it has one: k, options."""
Ask = Callable[[Sequence[str], T], Awaitable[Sequence[A | Exception]]]
"""Answers several queries on the same terms, in order; an exception in place of an answer fails that query alone."""


class Coalescer(Generic[T, A]):
    """Belongs to one event loop."""

    def __init__(self, ask: Ask[T, A], max_queries_per_request: int, max_requests_in_flight: int) -> None:
        self._ask = ask
        self._max_queries = max_queries_per_request
        self._max_requests = max_requests_in_flight
        self._waiting: deque[tuple[str, T]] = deque()
        self._in_flight: dict[tuple[str, T], asyncio.Future[A]] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._pump_is_due = False
        self._closed: Exception | None = None

    @property
    def waiting(self) -> int:
        """Queries that no request has taken yet."""
        return len(self._waiting)

    def is_in_flight(self, query: str, terms: T) -> bool:
        """Whether somebody waits for this very query already."""
        return (query, terms) in self._in_flight

    async def get(self, query: str, terms: T) -> A:
        """The answer to one query; raises what ``ask`` raised, a new exception for each who waits."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        try:
            return await asyncio.shield(self.submit(query, terms))
        except Failed as failed:
            raise copy.copy(failed.error) from failed.error.__cause__

    def submit(self, query: str, terms: T) -> asyncio.Future[A]:
        """The future of one query's answer, shared by all who ask the same; it may end in ``Failed``."""
        key = (query, terms)
        future = self._in_flight.get(key)
        if future is None:
            future = self._in_flight[key] = asyncio.get_running_loop().create_future()
            self._waiting.append(key)
            self._schedule()
        return future

    async def close(self, error: Exception) -> None:
        """Give up what is under way; those who wait, and all who ask later, get ``error``."""
        self._closed = error
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for key in list(self._in_flight):
            self._fail(key, error)
        self._waiting.clear()

    def _schedule(self) -> None:
        """Send in the next round of the event loop, so that what is asked in this round travels together."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        while self._waiting and len(self._requests) < self._max_requests and self._closed is None:
            task = asyncio.get_running_loop().create_task(self._send(self._take_batch()))
            self._requests.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._pump()

    def _take_batch(self) -> list[tuple[str, T]]:
        """The oldest waiting query and, in order, those on the same terms, up to the bound."""
        terms = self._waiting[0][1]
        batch: list[tuple[str, T]] = []
        passed_over: deque[tuple[str, T]] = deque()
        while self._waiting and len(batch) < self._max_queries:
            key = self._waiting.popleft()
            (batch if key[1] == terms else passed_over).append(key)
        self._waiting.extendleft(reversed(passed_over))
        return batch

    async def _send(self, batch: list[tuple[str, T]]) -> None:
        try:
            answers = await self._ask([query for query, _ in batch], batch[0][1])
        except Exception as error:  # whatever it was, those who wait must hear of it
            for key in batch:
                self._fail(key, error)
        else:
            for key, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    self._fail(key, answer)
                else:
                    self._in_flight.pop(key).set_result(answer)

    def _fail(self, key: tuple[str, T], error: Exception) -> None:
        future = self._in_flight.pop(key)
        future.set_exception(Failed(error))
        future.exception()  # marks it as seen: everyone who waited may have been cancelled


class Failed(Exception):
    """Carries a failure to several waiters: a raised exception collects the traceback of one coroutine."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
