"""A rollout worker: one engine and its episodes, all on one event loop. Ray is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.admission import OrderedAdmission
from verl.rollout.engine_config import EngineConfig
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Agent, Engine, Generation, Sampling, Turn
from verl.rollout.progress import EpisodeProgress, Progress, WorkerStatus
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from verl.sync.update import WeightUpdate

AgentFactory = Callable[[Any], Agent]
"""Makes the agent from the model's tokenizer, inside the worker's process."""


GREEDY = Sampling(temperature=0.0)


class RolloutWorker:
    """Plays groups with the newest weights it was given. Every call raises EngineDiedError if its engine died."""

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        agent: AgentFactory,
        *,
        run_seed: int,
        deterministic: bool = False,
        sleeps: bool = False,
    ) -> None:
        """Load the model and start the engine (seconds to minutes). Raises UserError on a model it cannot serve."""
        from transformers import AutoTokenizer

        from verl.rollout.engine import VllmEngine

        self._engine = VllmEngine(model_path, config, seed=run_seed, sleeps=sleeps)
        self._agent = agent(AutoTokenizer.from_pretrained(model_path))
        self._run_seed = run_seed
        self._deterministic = deterministic
        self._progress = Progress()

    async def open(self) -> None:
        """Connect the agent; after this the worker is ready."""
        await self._agent.open()

    async def run_groups(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Play every episode of the requests at the same time; groups come back in the order of the requests.

        Raises EngineDiedError if the engine died meanwhile: the requests can be played again on another worker.
        """
        total = sum(request.samples + request.greedy for request in requests)
        admission = OrderedAdmission(self._engine, total) if self._deterministic else None
        episodes = [
            self._play(request, sample, admission)
            for request in requests
            for sample in range(request.samples + request.greedy)
        ]
        trajectories = iter(await asyncio.gather(*episodes))
        self._engine.check()
        return [
            Group(
                request.number,
                request.task,
                [next(trajectories) for _ in range(request.samples)],
                next(trajectories) if request.greedy else None,
            )
            for request in requests
        ]

    async def update_weights(self, update: WeightUpdate, version: int) -> None:
        """Replace the weights in place, between two engine steps; tokens sampled from now on carry ``version``."""
        await self._engine.update_weights(update, version)

    async def pause(self) -> None:
        """Hold all episodes while a GPU transfer replaces the weights."""
        await self._engine.pause()

    async def transfer(self, method: str, arguments: dict[str, Any]) -> None:
        """A call of the learner's, while the weights are replaced: see ``VllmEngine.transfer``."""
        await self._engine.transfer(method, arguments)

    async def commit_received(self, version: int, checksum: int) -> None:
        """The weights are ``version``, if they are what was sent; episodes go on."""
        await self._engine.commit_received(version, checksum)
        await self._engine.resume()

    async def sleep(self) -> None:
        """Hold all episodes and give a GPU's memory to the learner beside it; on CPU the engine only pauses."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take the memory back; episodes go on where they were."""
        await self._engine.wake()

    async def probe(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float, float]]:
        """The greedy next token of each prompt, its log-prob, and 0: this side of the canary knows no margin."""
        turn, greedy = Turn(max_tokens=1), Sampling(temperature=0.0)
        answers = await asyncio.gather(*(self._engine.generate(p, turn, greedy, seed=0) for p in prompts))
        return [(int(answer.token_ids[0]), float(answer.logprobs[0]), 0.0) for answer in answers]

    async def status(self) -> WorkerStatus:
        """What the open episodes wait for. Answers while the worker's event loop is free, whatever the engine does."""
        return self._progress.status(self._engine.busy_s)

    def stats(self) -> dict[str, float]:
        """Counters of the engine and of the agent since the start."""
        return {**asdict(self._engine.stats()), **self._agent.stats()}

    async def close(self) -> None:
        """Stop the engine and the agent."""
        await self._agent.close()
        await self._engine.close()

    async def _play(self, request: GroupRequest, sample: int, admission: OrderedAdmission | None) -> Trajectory:
        sampling = GREEDY if sample == request.samples else request.sampling
        key = EpisodeKey(self._run_seed, request.stage, request.step, request.task.id, sample)
        environment = self._agent.environment(request.task, request.split)
        engine: Engine = admission.episode(request.task.id, sample) if admission else self._engine
        with self._progress.episode(request.number) as progress:
            try:
                watched = _WatchedEngine(engine, progress)
                trajectory = await run_episode(request.task, key, environment, watched, sampling)
            finally:
                if admission:
                    admission.end_episode()
            if trajectory.outcome != "aborted":
                progress.enter("reward")
                await self._score(request.task, trajectory)
        return trajectory

    async def _score(self, task: Task, trajectory: Trajectory) -> None:
        """What could not be scored for a reason outside is aborted: it is counted, and never trained on."""
        try:
            score = await self._agent.score(task, trajectory)
        except InfrastructureError as error:
            trajectory.outcome, trajectory.reason = "aborted", f"reward: {error}"
        else:
            trajectory.reward, trajectory.reward_parts = score.reward, score.parts
            trajectory.turn_gains = score.turn_gains


class _WatchedEngine:
    """The engine as one episode sees it; notes when the episode waits for it."""

    def __init__(self, engine: Engine, progress: EpisodeProgress) -> None:
        self._engine = engine
        self._progress = progress

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """See ``Engine.generate``."""
        self._progress.enter("engine")
        try:
            return await self._engine.generate(token_ids, turn, sampling, seed)
        finally:
            self._progress.enter("environment")
