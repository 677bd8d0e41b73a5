"""One thread that owns an engine and steps it; every other thread only leaves messages.

    submit / call / cancel ──► inbox ──► [ messages ] ─► [ step ] ─► [ messages ] ─► ... ──► futures

Invariants: the engine is touched by this thread alone; a message (a batch of requests, a weight update, a pause) runs
between two steps, whole and in order of arrival; a future always ends: if a step or a fatal call fails, every waiting
future fails with an EngineDiedError that names the cause, and so does every later call at once. It knows nothing of
vLLM, so its faults are tested without one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from verl.errors import EngineDiedError, InfrastructureError

RequestT = TypeVar("RequestT", contravariant=True)
ResultT = TypeVar("ResultT", covariant=True)
T = TypeVar("T")


class Steppable(Protocol[RequestT, ResultT]):
    """What the thread drives."""

    def add(self, key: str, request: RequestT) -> None:
        """Queue a request. Raises on one that cannot be served; the engine lives on."""

    def abort(self, keys: Sequence[str]) -> None:
        """Forget these requests; unknown keys are ignored."""

    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def step(self) -> Sequence[tuple[str, ResultT]]:
        """Advance every running request by a token; return those that ended. Raising means that the engine is dead."""

    def close(self) -> None:
        """Free what the engine holds."""


class EngineThread(Generic[RequestT, ResultT]):
    """Builds an engine on its own thread and serves it to any number of event loops."""

    def __init__(self, build: Callable[[], Steppable[RequestT, ResultT]]) -> None:
        """Return once the engine stands. Raises what ``build`` raised."""
        self.busy_s = 0.0
        """Seconds spent inside steps."""
        self._changed = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._open: set[asyncio.Future[Any]] = set()
        self._keys = itertools.count()
        self._paused = False
        self._closing = False
        self._death: BaseException | None = None
        self._engine: Steppable[RequestT, ResultT]
        built = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(build, built), name="engine", daemon=True)
        self._thread.start()
        built.wait()
        if self._death is not None:
            self._thread.join()
            raise self._death
        # A thread that the interpreter's exit finds inside native code would abort the process.
        atexit.register(self.close)

    def check(self) -> None:
        """Raises EngineDiedError, with the cause, if the engine cannot step any more."""
        if self._death is not None:
            raise self._reason()

    # -- from any event loop --

    def submit(self, requests: Sequence[RequestT]) -> list[asyncio.Future[Any]]:
        """Admit the requests in one go, in order, between two steps. Cancelling a future aborts its request."""
        loop = asyncio.get_running_loop()
        admitted = [(f"{next(self._keys)}", request, loop.create_future()) for request in requests]
        for key, _, future in admitted:
            future.add_done_callback(partial(self._cancel, key))
        self._post(partial(self._admit, admitted), [future for _, _, future in admitted])
        return [future for _, _, future in admitted]

    def call(self, action: Callable[[], T], *, fatal: bool = False) -> asyncio.Future[T]:
        """Run ``action`` on the engine's thread between two steps; the future carries its result or its exception.

        ``fatal`` says that an engine on which the action failed cannot go on: it dies as if a step had failed.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._post(partial(self._act, action, future, fatal), [future])
        return future

    def pause(self) -> asyncio.Future[None]:
        """Done once no step runs; requests keep their place. Messages are still served."""
        return self.call(lambda: setattr(self, "_paused", True))

    def resume(self) -> asyncio.Future[None]:
        """Step again."""
        return self.call(lambda: setattr(self, "_paused", False))

    def close(self) -> None:
        """End the thread and free the engine; waiting calls fail. Safe to call twice."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the thread --

    def _run(self, build: Callable[[], Steppable[RequestT, ResultT]], built: threading.Event) -> None:
        try:
            self._engine = build()
        except BaseException as error:
            self._death = error
            return
        finally:
            built.set()
        try:
            self._serve()
            self._die(InfrastructureError("the engine was closed"))
        except BaseException as error:
            self._die(error)
        finally:
            self._engine.close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._closing or self._can_step())
                if self._closing:
                    return
                inbox, self._inbox = self._inbox, []
            for message in inbox:
                message()
            if self._can_step():
                began = time.perf_counter()
                ended = self._engine.step()
                self.busy_s += time.perf_counter() - began
                self._deliver(ended)

    def _can_step(self) -> bool:
        return not self._paused and self._engine.has_work()

    def _admit(self, admitted: Sequence[tuple[str, RequestT, asyncio.Future[Any]]]) -> None:
        for key, request, future in admitted:
            if future.cancelled():
                continue
            try:
                self._engine.add(key, request)
            except Exception as error:
                _post_to(future, partial(_fail, future, error))
            else:
                self._waiting[key] = future

    def _act(self, action: Callable[[], T], future: asyncio.Future[T], fatal: bool) -> None:
        try:
            result = action()
        except Exception as error:
            if fatal:
                raise  # its caller is told by the engine's death, as all that wait are
            _post_to(future, partial(_fail, future, error))
        else:
            _post_to(future, partial(_succeed, [(future, result)]))

    def _deliver(self, ended: Sequence[tuple[str, ResultT]]) -> None:
        # One wake-up of the event loop for a whole step, not one for each request.
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], ResultT]]] = {}
        for key, result in ended:
            if (future := self._waiting.pop(key, None)) is not None:
                by_loop.setdefault(future.get_loop(), []).append((future, result))
        for pairs in by_loop.values():
            _post_to(pairs[0][0], partial(_succeed, pairs))

    def _cancel(self, key: str, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self._post(partial(self._forget, [key]), [])

    def _forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._waiting.pop(key, None)
        self._engine.abort(keys)

    # -- between them --

    def _post(self, message: Callable[[], None], futures: Sequence[asyncio.Future[Any]]) -> None:
        with self._changed:
            if self._death is not None or self._closing:
                for future in futures:
                    future.set_exception(self._reason())
                return
            self._open.update(futures)
            self._inbox.append(message)
            self._changed.notify()
        for future in futures:
            future.add_done_callback(self._settled)

    def _settled(self, future: asyncio.Future[Any]) -> None:
        with self._changed:
            self._open.discard(future)

    def _die(self, cause: BaseException) -> None:
        with self._changed:
            self._death = cause
            left, self._open, self._inbox = self._open, set(), []
        self._waiting.clear()
        for future in left:
            _post_to(future, partial(_fail, future, self._reason()))

    def _reason(self) -> EngineDiedError:
        cause = self._death
        if cause is None or isinstance(cause, InfrastructureError):
            return EngineDiedError(str(cause or "the engine was closed"))
        error = EngineDiedError(f"the engine died: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error


def _post_to(future: asyncio.Future[Any], settle: Callable[[], Any]) -> None:
    # RuntimeError means that the event loop is closed: nobody waits for the future any more.
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(settle)


def _succeed(outcomes: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in outcomes:
        if not future.done():
            future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
