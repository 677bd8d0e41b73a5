"""The life of all rollout workers: started, in service, found dead, started again, or gone for good.

Invariants: a worker is in service only with the newest weights, checked by the newest canary; one whose process or
engine died is started again, at most ``max_restarts`` times, while the others go on; the router knows who is in
service before and after every step of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.ray_runtime import ready
from verl.cluster.replica import Replica
from verl.errors import InfrastructureError
from verl.rollout.router import Router

if TYPE_CHECKING:
    from verl.sync.manager import Newest

log = logging.getLogger(__name__)

Start = Callable[[int], Any]
"""Starts a new process for worker ``n`` and returns its handle at once."""


class Roster:
    """Who is there. It starts workers and replaces them; what they are asked is the pool's."""

    def __init__(
        self,
        start: Start,
        logs: Sequence[Path],
        router: Router[int],
        newest: Newest,
        *,
        open_timeout_s: float,
        max_restarts: int,
        fixed_shares: bool,
    ) -> None:
        """Start one worker for each log, without waiting for any.

        ``router`` is told who joins and leaves. With ``fixed_shares`` nobody leaves it: who died keeps its share.
        """
        self._start = start
        self._router = router
        self._newest = newest
        self._timeout_s = open_timeout_s
        self._max_restarts = max_restarts
        self._fixed_shares = fixed_shares
        self.all = [Replica(number, start(number), logfile) for number, logfile in enumerate(logs)]
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._changed = asyncio.Event()
        self._reviving: set[asyncio.Task[None]] = set()
        self._starting = asyncio.create_task(self._open_all())

    @property
    def serving(self) -> list[Replica]:
        """Those in service now."""
        return [replica for replica in self.all if replica.serving]

    @property
    def watched(self) -> list[Replica]:
        """Those in service or starting now."""
        return [replica for replica in self.all if replica.serving or replica.opening is not None]

    # -- starting and stopping --

    def check(self) -> None:
        """Raise at once if the workers are known to have failed to start; never waits."""
        if self._starting.done():
            self._starting.result()

    async def ready(self) -> None:
        """Wait until every worker is ready. Raises what kept it from starting."""
        await self._starting

    def stop_starting(self) -> None:
        """Wait for no worker any more: the run ends."""
        for task in (self._starting, *self._reviving):
            task.cancel()

    async def _open_all(self) -> None:
        await self._open(self.all)
        for replica in self.all:
            try:
                await self._join(replica)
            except InfrastructureError as error:
                self._start_again(replica, error, "it failed with its first weights")

    async def _open(self, replicas: Sequence[Replica]) -> None:
        """Wait until the workers are ready. Raises InfrastructureError or UserError that says what kept them."""
        for replica in replicas:
            replica.opening = time.monotonic()
        try:
            answers = [replica.actor.open.remote() for replica in replicas]
            await ready("rollout workers", answers, self._timeout_s, [replica.log for replica in replicas])
        finally:
            for replica in replicas:
                replica.opening = None

    # -- dying and coming back --

    def lose(self, replica: Replica, actor: Any, error: Exception, consequence: str) -> None:
        """A call found the worker dead: take it out of service and start it again. Later finders change nothing."""
        if actor is not replica.actor or not replica.serving:
            return
        replica.serving = False
        if not self._fixed_shares:
            self._router.leave(replica.number)
        self._start_again(replica, replica.explain(error), consequence)

    def _start_again(self, replica: Replica, cause: Exception, consequence: str) -> None:
        log.warning("warning: %s; %s", cause, consequence)
        task = asyncio.create_task(self._revive(replica, cause))
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _revive(self, replica: Replica, cause: Exception) -> None:
        while replica.restarts < self._max_restarts:
            await self._thawed.wait()
            replica.restarts += 1
            try:
                replica.actor = self._start(replica.number)
                await self._open([replica])
                await self._join(replica)
            except Exception as error:  # whatever it is, who waits for the worker must learn of it
                cause = error
                log.warning("warning: %s did not come back: %s", replica.name, error)
            else:
                log.warning("warning: %s is back (restart %d)", replica.name, replica.restarts)
                return
        replica.gone = cause
        self._tell()

    async def _join(self, replica: Replica) -> None:
        """Into service, with the newest weights: an update meanwhile waits, and then reaches it too."""
        while not await self._try_join(replica):
            await self._changed.wait()
        self._tell()

    async def _try_join(self, replica: Replica) -> bool:
        """False if the newest weights cannot be had any more: the next version is on its way."""
        async with self._newest.lock:
            try:
                if not await self._newest.available():
                    return False
                await self._newest.bring_up(replica.name, replica.actor)
            except Exception as error:
                raise replica.explain(error) from error
            replica.serving, replica.answered = True, time.monotonic()
            if replica.number not in self._router.engines:
                self._router.join(replica.number)
            return True

    async def prepare_joins(self) -> None:
        """New weights were given out: who waits to join must be able to have them before the learner goes on."""
        if self._reviving:
            await self._newest.available()
        self._tell()

    @property
    def frozen(self) -> bool:
        """Whether ``freeze`` is in force."""
        return not self._thawed.is_set()

    @contextlib.asynccontextmanager
    async def freeze(self) -> AsyncIterator[None]:
        """Inside the block nobody starts or joins, and no weights are given out; who is starting is waited for."""
        await self._starting
        while self._reviving:  # an engine that is starting takes GPU memory too
            await asyncio.wait(self._reviving)
        self._thawed.clear()
        try:
            async with self._newest.lock:
                yield
        finally:
            self._thawed.set()

    # -- waiting for those that come back --

    async def until_serving(self, replica: Replica) -> None:
        """Wait for one worker. Raises InfrastructureError if it will not come back."""
        while not replica.serving:
            if replica.gone is not None:
                raise self._none_left(replica)
            await self._changed.wait()

    async def until_any(self) -> None:
        """Wait for any worker. Raises InfrastructureError if none will come back."""
        while not self.serving:
            if all(replica.gone is not None for replica in self.all):
                raise self._none_left(self.all[0])
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _none_left(self, replica: Replica) -> InfrastructureError:
        what = f"{replica.name} is needed again" if self._fixed_shares else "no rollout worker is left"
        return InfrastructureError(
            f"{what}, and was started again {replica.restarts} times (cluster.max_worker_restarts): {replica.gone}; "
            "the same command goes on from the last checkpoint"
        )
