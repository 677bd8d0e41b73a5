"""From a configuration to live processes: data, retrieval servers, Ray, rollout workers, learner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_agent.agent import AgentSpec
from search_agent.config import RunConfig
from search_agent.servers import Retrievers, start_retrievers
from search_agent.source import Source
from verl.cluster.actors import LearnerActor, LearnerPlace, make_rollout_actor_class
from verl.cluster.groups import LearnerGroup
from verl.cluster.pool import RolloutPool
from verl.cluster.ray_runtime import RayRuntime, ready
from verl.trainer.weights import WeightSync


@dataclass(frozen=True)
class Live:
    """What a run or an evaluation works with."""

    retrievers: Retrievers
    pool: RolloutPool
    learners: LearnerGroup | None
    sync: WeightSync | None


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
            start_retrievers(config, {name: split.corpus for name, split in source.splits.items()}, logs, stack)
        )
        learner_logs = [logs / f"learner_{rank}.log" for rank in range(ranks)]
        await asyncio.to_thread(runtime.__enter__)
        stack.push(runtime)
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
            runtime.actor(LearnerActor, cluster.learner_threads, log=learner_logs[rank]) for rank in range(ranks)
        ]
        pool = start_rollout(config, runtime, model, spec, logs, stack)
        if not learn:
            await pool.ready()
            yield Live(retrievers, pool, None, None)
            return
        learners = await start_learner(config, learner_actors, model, learner_logs)
        sync = WeightSync(
            learners,
            pool,
            dtype=engine.dtype,
            folder=f"/dev/shm/{scratch.name}",
            probes=probes(),
            tolerance=1e-4 if engine.dtype == "float32" else 0.1,
        )
        yield Live(retrievers, pool, learners, sync)


def start_rollout(
    config: RunConfig, runtime: RayRuntime, model: str, spec: AgentSpec, logs: Path, stack: ExitStack
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
            log=logs / f"rollout_{worker}.log",
            ranks=engine.tensor_parallel_size,
            run_seed=config.seed,
            deterministic=config.deterministic,
        )
        return actors[worker]

    pool = RolloutPool(
        start,
        [logs / f"rollout_{worker}.log" for worker in range(config.rollout.workers)],
        open_timeout_s=config.rollout.start_timeout_s,
        max_restarts=config.cluster.max_worker_restarts,
        fixed_shares=config.deterministic,
    )
    stack.callback(pool.stop_starting)
    return pool


async def start_learner(config: RunConfig, actors: Sequence[Any], model: str, logs: Sequence[Path]) -> LearnerGroup:
    """Let the ranks meet where rank 0 is, and wait until all have loaded the model."""
    device = "cuda" if config.cluster.gpus_per_process else "cpu"
    timeout_s = config.cluster.start_timeout_s
    [(address, port)] = await ready("learner", [actors[0].meeting_point.remote()], timeout_s, logs)
    places = [LearnerPlace(rank, len(actors), address, port, device) for rank in range(len(actors))]
    answers = [
        actor.start.remote(place, model, config.learner, seed=config.seed, rejected=logs[0].parent.parent / "rejected")
        for actor, place in zip(actors, places, strict=True)
    ]
    await ready("learner", answers, timeout_s, logs)
    return LearnerGroup(actors, logs)
