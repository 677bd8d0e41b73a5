"""From a configuration to live processes: data, retrieval servers, Ray, rollout workers, learner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from search_agent.agent import AgentSpec
from search_agent.config import RunConfig
from search_agent.data.source import Source
from search_agent.retrievers import Retrievers, start_retrievers, while_serving
from verl.cluster.actors import LearnerActor, LearnerPlace, make_rollout_actor_class
from verl.cluster.config import ClusterConfig
from verl.cluster.learners import LearnerGroup
from verl.cluster.placement import Places, places
from verl.cluster.pool import RolloutPool
from verl.cluster.ray_runtime import RayRuntime, first_cause, has_died, on_node, ready, this_machine, this_node
from verl.cluster.watchdog import Look, Watchdog
from verl.errors import UserError
from verl.model_shape import read_shape
from verl.sync.canary import Canary
from verl.sync.manager import Newest, WeightManager
from verl.sync.relay import Relay, RelayActor

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Live:
    """What a run or an evaluation works with."""

    retrievers: Retrievers
    watchdog: Watchdog
    pool: RolloutPool
    learners: LearnerGroup | None
    sync: WeightManager | None

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, or one error that says which server ended, or who waits for whom."""
        return await while_serving(self.retrievers, self.watchdog.watch(work))


@asynccontextmanager
async def processes(
    config: RunConfig,
    source: Source,
    model: str,
    logs: Path,
    scratch: Path,
    *,
    learn: bool,
    probes: Callable[[], list[list[int]]],
) -> AsyncIterator[Live]:
    """Everything that the controller talks to, ready; it ends with the block."""
    cluster, engine = config.cluster, config.rollout.engine
    ranks = cluster.learner_ranks if learn else 0
    with ExitStack() as stack:
        runtime = RayRuntime(cluster, ranks + config.rollout.workers, scratch / "ray")
        servers = asyncio.create_task(
            start_retrievers(
                config, {name: split.corpus for name, split in source.splits.items()}, logs, stack, source.server
            )
        )
        learner_logs = [logs / f"learner_{rank}.log" for rank in range(ranks)]
        place = places(cluster, ranks, config.rollout.workers, engine.tensor_parallel_size)
        await asyncio.to_thread(runtime.__enter__)
        stack.push(runtime)
        machines = await asyncio.to_thread(runtime.reserve, place.bundles, cluster.start_timeout_s)
        place = place.by_machine(machines)
        check_reach(config, {machines[index] for index in place.rollout}, this_machine())
        retrievers = await servers
        spec = AgentSpec(
            config.protocol,
            config.environment,
            config.reward,
            config.client,
            retrievers.urls,
            engine.max_context_tokens,
        )
        learner_actors = [
            runtime.actor(
                LearnerActor,
                cluster.learner_threads,
                place=place.learner[rank],
                gpus=cluster.gpus_per_process,
                log=learner_logs[rank],
            )
            for rank in range(ranks)
        ]
        sleeps = learn and cluster.placement == "shared"
        relay = Relay(
            lambda node: on_node(RelayActor, node, scratch.name, node),
            here=this_node(),
            has_died=has_died,
            explain=lambda error: first_cause(error, "weights", []),
        )
        newest = Newest(relay)
        pool = start_rollout(config, runtime, place, model, spec, logs, stack, newest, sleeps=sleeps)
        if not learn:
            await pool.ready()
            yield Live(retrievers, _watchdog(cluster, [pool.stalls]), pool, None, None)
            return
        start = partial(start_learner, config, learner_actors, model, learner_logs)
        learners = await (after_engines(pool, start) if sleeps and cluster.gpus_per_process else start())
        sync = WeightManager(
            newest,
            learners,
            pool,
            engine=engine,
            folder=f"/dev/shm/{scratch.name}",
            node=this_node(),
            canary=Canary(
                probes(),
                dtypes=(engine.dtype, config.learner.compute_dtype),
                vocabulary=read_shape(model).vocabulary,
            ),
            read_saved=read_saved,
        )
        watchdog = _watchdog(cluster, [learners.stalls, pool.stalls])
        try:
            yield Live(retrievers, watchdog, pool, learners, sync)
        finally:
            await newest.close()
            await relay.close()


async def after_engines(pool: RolloutPool, start: Callable[[], Awaitable[T]]) -> T:
    """``start`` a learner on the engines' own cards: vLLM measures the memory that is free while it starts.

    The learner then has what engines that sleep leave, as in each of its turns.
    """
    await pool.ready()
    async with pool.resting():
        return await start()


def check_reach(config: RunConfig, machines: AbstractSet[str], here: str) -> None:
    """Raises UserError if rollout workers on other machines would have to search on this machine's loopback."""
    if config.retriever == "embedded" and (far := machines - {here}):
        raise UserError(
            f"retriever=embedded serves on this machine alone, and rollout workers run on {', '.join(sorted(far))}: "
            "start one that they reach (bash retrieval_launch.sh corpus=FILE host=0.0.0.0 port=N) and write "
            "retriever=http://HOST:N"
        )


def read_saved(folder: Path, dtype: str) -> Iterable[tuple[str, Tensor]]:
    """The weights of a Hugging Face folder by name."""
    import torch

    from verl.learner.saved_weights import read_weights

    return read_weights(folder, getattr(torch, dtype))


def _watchdog(cluster: ClusterConfig, looks: Sequence[Look]) -> Watchdog:
    return Watchdog(looks, warn_s=cluster.stall_warning_s, fail_s=cluster.stall_error_s)


def start_rollout(
    config: RunConfig,
    runtime: RayRuntime,
    place: Places,
    model: str,
    spec: AgentSpec,
    logs: Path,
    stack: ExitStack,
    newest: Newest,
    *,
    sleeps: bool,
) -> RolloutPool:
    """Start the rollout workers without waiting for them: a warm-up needs none, so their engines start meanwhile."""
    engine = config.rollout.engine
    actors: dict[int, Any] = {}

    def start(worker: int) -> Any:
        if worker in actors:
            runtime.kill(actors.pop(worker))
        actors[worker] = runtime.actor(
            make_rollout_actor_class(),
            engine.threads,
            model,
            engine,
            spec,
            place=place.rollout[worker],
            gpus=config.cluster.gpus_per_process * engine.tensor_parallel_size,
            log=logs / f"rollout_{worker}.log",
            run_seed=config.seed,
            deterministic=config.deterministic,
            sleeps=sleeps,
        )
        return actors[worker]

    pool = RolloutPool(
        start,
        [logs / f"rollout_{worker}.log" for worker in range(config.rollout.workers)],
        newest,
        open_timeout_s=config.rollout.start_timeout_s,
        max_restarts=config.cluster.max_worker_restarts,
        fixed_shares=config.deterministic,
        sleeps=sleeps,
    )
    stack.callback(pool.stop_starting)
    return pool


async def start_learner(config: RunConfig, actors: Sequence[Any], model: str, logs: Sequence[Path]) -> LearnerGroup:
    """Let the ranks meet where rank 0 is, and wait until all have loaded the model."""
    device = "cuda" if config.cluster.gpus_per_process else "cpu"
    timeout_s = config.cluster.start_timeout_s
    [(address, port)] = await ready("learner", [actors[0].meeting_point.remote()], timeout_s, logs)
    shared = config.cluster.placement == "shared"
    places = [
        LearnerPlace(rank, len(actors), address, port, device, shared, config.deterministic)
        for rank in range(len(actors))
    ]
    answers = [
        actor.start.remote(place, model, config.learner, seed=config.seed, rejected=logs[0].parent.parent / "rejected")
        for actor, place in zip(actors, places, strict=True)
    ]
    await ready("learner", answers, timeout_s, logs)
    return LearnerGroup(actors, logs)
