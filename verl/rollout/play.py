"""The one loop that plays episodes: rollout workers, evaluation and ``ask`` go through it.

Any agent, any engine, any number of episodes at once on one event loop; neither Ray nor vLLM is known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Agent, Engine, Sampling
from verl.rollout.progress import Unwatched, Watcher
from verl.trajectory import Trajectory

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to play."""

    task: Task
    split: str
    """The data the task comes from; it picks the retriever."""
    key: EpisodeKey
    sampling: Sampling
    group: int = 0
    """A number for whoever watches."""


Watch = Callable[[EpisodeRequest], AbstractContextManager[Watcher]]
Seat = Callable[[EpisodeRequest], AbstractContextManager[Engine]]


def requests_for(
    tasks: Iterable[Task], split: str, stage: str, *, seed: int, samples: int = 1, sampling: Sampling = GREEDY
) -> Iterator[EpisodeRequest]:
    """``samples`` episodes of each task, in order."""
    for group, task in enumerate(tasks):
        for sample in range(samples):
            yield EpisodeRequest(task, split, EpisodeKey(seed, stage, 0, task.id, sample), sampling, group)


async def play(
    requests: Iterable[EpisodeRequest],
    agent: Agent,
    engine: Engine,
    concurrency: int | None = None,
    *,
    score: bool = True,
    watch: Watch | None = None,
    seat: Seat | None = None,
) -> AsyncGenerator[tuple[EpisodeRequest, Trajectory], None]:
    """Play the episodes, at most ``concurrency`` at a time, and yield each as it ends; the agent must be open.

    ``score=False`` leaves them unscored. ``watch`` is told what an episode does; ``seat`` gives an episode its own view
    of the engine for as long as it plays. Episodes that are open when the caller leaves, or when one raises (a bug or
    a UserError: outages end an episode as ``aborted``), are cancelled.
    """
    waiting, running = iter(requests), set[asyncio.Task[tuple[EpisodeRequest, Trajectory]]]()
    finished: asyncio.Queue[asyncio.Task[tuple[EpisodeRequest, Trajectory]]] = asyncio.Queue()

    async def one(request: EpisodeRequest) -> tuple[EpisodeRequest, Trajectory]:
        with nullcontext(Unwatched()) if watch is None else watch(request) as watcher:
            with nullcontext(engine) if seat is None else seat(request) as own:
                environment = agent.environment(request.task, request.split)
                trajectory = await run_episode(request.task, request.key, environment, own, request.sampling, watcher)
            if score and trajectory.outcome != "aborted":
                watcher.enter("reward")
                await _score(agent, request.task, trajectory)
        return request, trajectory

    def begin() -> bool:
        if (request := next(waiting, None)) is None:
            return False
        task = asyncio.create_task(one(request))
        running.add(task)
        task.add_done_callback(finished.put_nowait)
        return True

    try:
        while (concurrency is None or len(running) < concurrency) and begin():
            pass
        while running:
            task = await finished.get()
            running.discard(task)
            begin()
            yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _score(agent: Agent, task: Task, trajectory: Trajectory) -> None:
    """What could not be scored for a reason outside is aborted: it is counted, and never trained on."""
    try:
        score = await agent.score(task, trajectory)
    except InfrastructureError as error:
        trajectory.outcome, trajectory.reason = "aborted", f"reward: {error}"
    else:
        trajectory.reward, trajectory.reward_parts = score.reward, score.parts
        trajectory.turn_gains = score.turn_gains
