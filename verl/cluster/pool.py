"""All rollout workers as one thing that plays groups: routed, played again when a worker dies, with the right weights.

Invariants: a request comes back once, however many workers die under it; a worker serves only with the newest weights
that the pool was given; the samples of a task are together on one worker. A worker whose process or engine died is
started again, at most ``max_restarts`` times; the others go on meanwhile. With ``fixed_shares`` (a deterministic run) a
share is never moved: it waits for its own worker and is played again whole, so that every batch is what it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.ray_runtime import first_cause, has_died, ready
from verl.cluster.watchdog import Stall
from verl.errors import InfrastructureError
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.router import Router

if TYPE_CHECKING:
    from verl.cluster.carriers import Carriers
    from verl.sync.update import WeightUpdate

log = logging.getLogger(__name__)

Probe = list[tuple[int, float, float]]
Start = Callable[[int], Any]
"""Starts a new process for worker ``n`` and returns its handle at once."""

Arguments = Callable[["Replica"], Awaitable[tuple[Any, ...]]]

EPISODES_PER_CALL = 64
"""Episodes that travel as one call where shares may move: what a dying worker takes with it at most, a call."""

STATUS_TIMEOUT_S = 5.0
"""A worker whose event loop is free answers at once."""


@dataclass(frozen=True)
class Canary:
    """What shows that an engine holds the weights it was given."""

    prompts: Sequence[Sequence[int]]
    check: Callable[[Probe], None]
    """Raises InfrastructureError on an answer that the learner would not give."""


class Replica:
    """One place in the pool, and the process that fills it at the moment."""

    def __init__(self, number: int, actor: Any, logfile: Path) -> None:
        self.number = number
        self.name = f"rollout_{number}"
        self.actor = actor
        self.log = logfile
        self.restarts = 0
        self.answered = time.monotonic()
        """When it was last heard of, by the watchdog."""
        self.serving = False
        """Whether it can be given work."""
        self.gone: Exception | None = None
        """Why it will not come back."""


class RolloutPool:
    """Plays groups on the workers that are there."""

    def __init__(
        self,
        start: Start,
        logs: Sequence[Path],
        *,
        open_timeout_s: float,
        max_restarts: int = 0,
        fixed_shares: bool = False,
        sleeps: bool = False,
        carriers: Carriers | None = None,
    ) -> None:
        """Start one worker for each log, without waiting for any. ``sleeps``: the learner shares their GPUs.

        ``carriers`` bring weights to workers of other nodes; without them all are on one.
        """
        self._start = start
        self._timeout_s = open_timeout_s
        self._max_restarts = max_restarts
        self._fixed_shares = fixed_shares
        self._sleeps = sleeps
        self._carriers = carriers
        self._awake = asyncio.Event()
        self._awake.set()
        self._replicas = [Replica(number, start(number), logfile) for number, logfile in enumerate(logs)]
        self._router: Router[int] = Router()
        self._weights: tuple[WeightUpdate, int] | None = None
        self._canary: Canary | None = None
        self._lock = asyncio.Lock()
        """Held while weights are given out: who joins does so before or after, never in between."""
        self._changed = asyncio.Event()
        self._reviving: set[asyncio.Task[None]] = set()
        self._starting = asyncio.create_task(self._open_all())

    # -- life --

    def check(self) -> None:
        """Raise at once if the workers are known to have failed to start; never waits."""
        if self._starting.done():
            self._starting.result()

    async def ready(self) -> None:
        """Wait until every worker is ready. Raises what kept it from starting."""
        await self._starting

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return sum(replica.restarts for replica in self._replicas)

    def stop_starting(self) -> None:
        """Wait for no worker any more: the run ends."""
        for task in (self._starting, *self._reviving):
            task.cancel()

    async def close(self) -> None:
        """Stop engines and agents."""
        await self._on_all("close")
        self.stop_starting()

    # -- work --

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Play all groups; they come back in the order of the requests.

        An episode that infrastructure outside the worker ended comes back as aborted; a dead worker's are played again.
        Raises InfrastructureError if no worker is left for them.
        """
        await self._starting
        if not self._fixed_shares:
            await self._until_any()
        shares: dict[int, list[GroupRequest]] = {}
        for request in requests:
            shares.setdefault(self._route(request), []).append(request)
        calls = [self._play(worker, bundle) for worker, share in shares.items() for bundle in self._bundles(share)]
        by_number = {group.number: group for groups in await _all_or_first_error(calls) for group in groups}
        return [by_number[request.number] for request in requests]

    async def _play(self, worker: int, bundle: list[GroupRequest]) -> list[Group]:
        """On its worker; if that dies, on the others (or on the process that takes its place)."""
        replica = self._replicas[worker]
        try:
            while self._fixed_shares or replica.serving:
                if self._fixed_shares:
                    await self._until_serving(replica)
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
                raise first_cause(error, replica.name, [replica.log]) from error
            self._lose(replica, actor, error, "the groups it played are played again")
            return None
        return groups

    def _route(self, request: GroupRequest) -> int:
        """The worker of a group's episodes, which are open from now until ``_close``."""
        return [self._router.route(_key(request), sample) for sample in range(request.samples)][-1]

    def _close(self, bundle: Sequence[GroupRequest]) -> None:
        for request in bundle:
            for sample in range(request.samples):
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

    # -- weights, and what all are asked --

    async def update_weights(self, update: WeightUpdate, version: int) -> None:
        """Give every engine this version; who joins later gets it first, so keep its file until the next version."""
        async with self._lock:
            self._weights, self._canary = (update, version), None
            await self._on_all("update_weights", of=self._arguments)

    async def confirm(self, canary: Canary) -> None:
        """Let every engine answer the canary's prompts, and ``check`` each answer; who joins later is checked first."""
        async with self._lock:
            self._canary = canary
            for answer in (await self._on_all("probe", canary.prompts)).values():
                canary.check(answer)

    async def stats(self) -> dict[str, dict[str, float]]:
        """The counters of each worker that answers, by its name."""
        return {self._replicas[number].name: answer for number, answer in (await self._on_all("stats")).items()}

    async def _arguments(self, replica: Replica) -> tuple[WeightUpdate, int]:
        """The newest weights as the worker's node has them."""
        assert self._weights is not None
        update, version = self._weights
        if self._carriers is None:
            return update, version
        return await self._carriers.at(update, await replica.actor.node.remote()), version

    async def _on_all(self, method: str, *args: Any, of: Arguments | None = None) -> dict[int, Any]:
        """The answers of the workers in service, by number. One that dies meanwhile is left out, and started again.

        ``of`` makes the arguments of each worker, where they differ.
        """
        answers: dict[int, Any] = {}

        async def ask(replica: Replica) -> None:
            actor = replica.actor
            try:
                own = args if of is None else await of(replica)
                answers[replica.number] = await getattr(actor, method).remote(*own)
            except Exception as error:
                if not has_died(error):
                    raise first_cause(error, f"{replica.name} {method}", [replica.log]) from error
                self._lose(replica, actor, error, f"it died in {method}")

        await _all_or_first_error([ask(replica) for replica in self._replicas if replica.serving])
        return answers

    @contextlib.asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """The learner's turn: inside the block engines that share its GPUs sleep. Episodes go on afterwards.

        Nobody joins and no weights are given out meanwhile. Where nothing is shared this does nothing.
        """
        if not self._sleeps:
            yield
            return
        await self._starting
        while self._reviving:  # an engine that is starting takes GPU memory too
            await asyncio.wait(self._reviving)
        self._awake.clear()
        try:
            async with self._lock:
                await self._on_all("sleep")
                yield
                await self._on_all("wake")
        finally:
            self._awake.set()

    async def stalls(self) -> list[Stall]:
        """What each worker's episodes wait for, and how long nothing has moved for one of them: for the watchdog."""
        if not self._awake.is_set():
            return []
        return list(await asyncio.gather(*(self._stall(replica) for replica in self._replicas if replica.serving)))

    async def _stall(self, replica: Replica) -> Stall:
        try:
            status = await asyncio.wait_for(_answer(replica.actor.status.remote()), STATUS_TIMEOUT_S)
        except TimeoutError:
            silent = time.monotonic() - replica.answered
            return Stall(replica.name, silent, f"it does not answer (log: {replica.log})")
        except Exception as error:
            if not has_died(error):
                raise
            return Stall(replica.name, 0.0, "it died")  # whoever waits for its work finds that out
        replica.answered = time.monotonic()
        return Stall(replica.name, status.still_s, f"{status.text()} (log: {replica.log})")

    # -- dying and coming back --

    def _lose(self, replica: Replica, actor: Any, error: Exception, consequence: str) -> None:
        """A call found the worker dead: take it out of service and start it again. Later finders change nothing."""
        if actor is not replica.actor or not replica.serving:
            return
        replica.serving = False
        if not self._fixed_shares:
            self._router.leave(replica.number)
        cause = first_cause(error, replica.name, [replica.log])
        log.warning("warning: %s; %s", cause, consequence)
        task = asyncio.create_task(self._revive(replica, cause))
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _revive(self, replica: Replica, cause: Exception) -> None:
        while replica.restarts < self._max_restarts:
            await self._awake.wait()
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
        async with self._lock:
            try:
                if self._weights is not None:
                    await replica.actor.update_weights.remote(*await self._arguments(replica))
                if self._canary is not None:
                    self._canary.check(await replica.actor.probe.remote(self._canary.prompts))
            except Exception as error:
                raise first_cause(error, replica.name, [replica.log]) from error
            replica.serving, replica.answered = True, time.monotonic()
            if replica.number not in self._router.engines:
                self._router.join(replica.number)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until_serving(self, replica: Replica) -> None:
        while not replica.serving:
            if replica.gone is not None:
                raise self._none_left(replica)
            await self._changed.wait()

    async def _until_any(self) -> None:
        while not any(replica.serving for replica in self._replicas):
            if all(replica.gone is not None for replica in self._replicas):
                raise self._none_left(self._replicas[0])
            await self._changed.wait()

    def _none_left(self, replica: Replica) -> InfrastructureError:
        what = f"{replica.name} is needed again" if self._fixed_shares else "no rollout worker is left"
        return InfrastructureError(
            f"{what}, and was started again {replica.restarts} times (cluster.max_worker_restarts): {replica.gone}; "
            "the same command goes on from the last checkpoint"
        )

    # -- starting --

    async def _open_all(self) -> None:
        await self._open(self._replicas)
        for replica in self._replicas:
            await self._join(replica)

    async def _open(self, replicas: Sequence[Replica]) -> None:
        """Wait until the workers are ready. Raises InfrastructureError or UserError that says what kept them."""
        answers = [replica.actor.open.remote() for replica in replicas]
        await ready("rollout workers", answers, self._timeout_s, [replica.log for replica in replicas])


async def _all_or_first_error(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """The answers in order. At the first error the other calls are cancelled, awaited, and it is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(call: Awaitable[Any]) -> Any:
    return await call


def _key(request: GroupRequest) -> str:
    """What the router knows a group by: unique among what is under way."""
    return f"{request.stage}/{request.number}/{request.task.id}"
