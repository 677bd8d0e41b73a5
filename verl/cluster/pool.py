"""All rollout workers as one thing that plays groups: routed, played again when a worker dies, with the right weights.

Invariants: a request comes back once, however many workers die under it; a worker serves only with the newest weights
that the pool was given (``roster``); the samples of a task are together on one worker. With ``fixed_shares`` (a
deterministic run) a share is never moved: it waits for its own worker and is played again whole, so that every batch
is what it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.calls import all_or_first_error
from verl.cluster.ray_runtime import has_died
from verl.cluster.replica import Replica
from verl.cluster.roster import Roster, Start
from verl.cluster.watchdog import Stall
from verl.errors import UserError
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.router import Router

if TYPE_CHECKING:
    from verl.sync.manager import Newest

Call = Callable[[Any], Awaitable[Any]]
"""What to ask of a worker, given its actor."""

EPISODES_PER_CALL = 64
"""Episodes that travel as one call where shares may move: what a dying worker takes with it at most, a call."""


class RolloutPool:
    """Plays groups on the workers that are there."""

    def __init__(
        self,
        start: Start,
        logs: Sequence[Path],
        newest: Newest,
        *,
        open_timeout_s: float,
        max_restarts: int = 0,
        fixed_shares: bool = False,
        sleeps: bool = False,
    ) -> None:
        """Start one worker for each log, without waiting for any. ``newest``: the weights that who joins must have.

        ``sleeps``: the learner shares their GPUs.
        """
        self._fixed_shares = fixed_shares
        self._sleeps = sleeps
        self._router: Router[int] = Router()
        self._roster = Roster(
            start,
            logs,
            self._router,
            newest,
            open_timeout_s=open_timeout_s,
            max_restarts=max_restarts,
            fixed_shares=fixed_shares,
        )

    # -- life --

    def check(self) -> None:
        """Raise at once if the workers are known to have failed to start; never waits."""
        self._roster.check()

    async def ready(self) -> None:
        """Wait until every worker is ready. Raises what kept it from starting."""
        await self._roster.ready()

    def stop_starting(self) -> None:
        """Wait for no worker any more: the run ends."""
        self._roster.stop_starting()

    # -- work --

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Play all groups; they come back in the order of the requests.

        An episode that infrastructure outside the worker ended comes back as aborted; a dead worker's are played again.
        Raises InfrastructureError if no worker is left for them.
        """
        await self._roster.ready()
        if not self._fixed_shares:
            await self._roster.until_any()
        shares: dict[int, list[GroupRequest]] = {}
        for request in requests:
            shares.setdefault(self._route(request), []).append(request)
        calls = [self._play(worker, bundle) for worker, share in shares.items() for bundle in self._bundles(share)]
        by_number = {group.number: group for groups in await all_or_first_error(calls) for group in groups}
        return [by_number[request.number] for request in requests]

    async def _play(self, worker: int, bundle: list[GroupRequest]) -> list[Group]:
        """On its worker; if that dies, on the others (or on the process that takes its place)."""
        replica = self._roster.all[worker]
        try:
            while self._fixed_shares or replica.serving:
                if self._fixed_shares:
                    await self._roster.until_serving(replica)
                groups = await self._try(replica, bundle)
                if groups is not None:
                    return groups
        finally:
            self._close(bundle)
        return await self.run(bundle)

    async def _try(self, replica: Replica, bundle: list[GroupRequest]) -> list[Group] | None:
        """None if the worker died over it."""
        actor = replica.actor
        try:
            groups: list[Group] = await actor.run_groups.remote(bundle)
        except Exception as error:
            if not has_died(error):
                raise replica.explain(error) from error
            self._roster.lose(replica, actor, error, "the groups it played are played again")
            return None
        return groups

    def _route(self, request: GroupRequest) -> int:
        """The worker of a group's episodes, which are open from now until ``_close``."""
        return [self._router.route(_key(request), sample) for sample in request.numbers][-1]

    def _close(self, bundle: Sequence[GroupRequest]) -> None:
        for request in bundle:
            for sample in request.numbers:
                if self._router.is_open(_key(request), sample):  # a worker that left closed its own
                    self._router.done(_key(request), sample)

    def _bundles(self, share: list[GroupRequest]) -> Iterator[list[GroupRequest]]:
        """A share as the calls it is sent in: one, where batches must be what they were, else several."""
        bundle: list[GroupRequest] = []
        episodes = 0
        for request in share:
            if bundle and not self._fixed_shares and episodes + request.samples > EPISODES_PER_CALL:
                yield bundle
                bundle, episodes = [], 0
            bundle.append(request)
            episodes += request.samples
        yield bundle

    # -- what all are asked --

    async def on_all(self, what: str, call: Call) -> dict[str, Any]:
        """The answers of the workers in service, by name. One that fails is left out, and started again.

        Whatever failed, it is that worker's: a run ends when it failed too often, with that as the cause. Raises the
        UserError of a mistake, which another process would repeat.
        """
        answers: dict[str, Any] = {}

        async def ask(replica: Replica) -> None:
            actor = replica.actor
            replica.asked[what] = time.monotonic()
            try:
                answers[replica.name] = await call(actor)
            except Exception as error:
                if isinstance(explained := replica.explain(error, what), UserError):
                    raise explained from error
                self._roster.lose(replica, actor, error, f"it failed in {what}")
            finally:
                replica.asked.pop(what, None)

        await all_or_first_error([ask(replica) for replica in self._roster.serving])
        return answers

    def processes(self, names: Collection[str]) -> dict[str, Any]:
        """The actors of these workers, where they are in service, by the name of their process."""
        return {replica.process: replica.actor for replica in self._roster.serving if replica.name in names}

    def replace(self, names: Collection[str], error: Exception, consequence: str) -> None:
        """Start these workers again."""
        for replica in [replica for replica in self._roster.serving if replica.name in names]:
            self._roster.lose(replica, replica.actor, error, consequence)

    async def prepare_joins(self) -> None:
        """Weights were given out: who waits to join must be able to have them before the learner goes on."""
        await self._roster.prepare_joins()

    async def stats(self) -> dict[str, dict[str, float]]:
        """The counters of each worker that answers, by its name."""
        return await self.on_all("stats", lambda actor: actor.stats.remote())

    @contextlib.asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """The learner's turn: inside the block engines that share its GPUs sleep. Where nothing is shared: nothing.

        Nobody joins and no weights are given out meanwhile. Afterwards engines wait for new weights; theirs are gone.
        """
        if not self._sleeps:
            yield
            return
        async with self._roster.freeze():
            await self.on_all("sleep", lambda actor: actor.sleep.remote())
            yield
            await self.on_all("wake", lambda actor: actor.wake.remote())

    async def stalls(self) -> list[Stall]:
        """What each worker's episodes wait for, and how long nothing has moved for one of them: for the watchdog.

        A worker that is starting is told of as well, others may wait for it; and of a call to all that is not answered.
        In the learner's turn episodes stand still, and there is nothing else to tell.
        """
        frozen = self._roster.frozen
        watched = [replica for replica in self._roster.watched if replica.asked or not frozen]
        return list(await asyncio.gather(*(replica.stall() for replica in watched)))


def _key(request: GroupRequest) -> str:
    """What the router knows a group by: unique among what is under way."""
    return f"{request.stage}/{request.number}/{request.task.id}"
