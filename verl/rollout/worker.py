"""A rollout worker: one engine and its episodes, all on one event loop. Ray is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from verl.rollout.admission import OrderedAdmission
from verl.rollout.engine_config import EngineConfig
from verl.rollout.episode import EpisodeKey
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Agent, Engine, Turn
from verl.rollout.play import GREEDY, EpisodeRequest, Seat, play
from verl.rollout.progress import EpisodeProgress, Progress, WorkerStatus

if TYPE_CHECKING:
    from verl.sync import Sent, WeightUpdate

AgentFactory = Callable[[Any], Agent]
"""Makes the agent from the model's tokenizer, inside the worker's process."""


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
        episodes = [
            EpisodeRequest(
                request.task,
                request.split,
                EpisodeKey(self._run_seed, request.stage, request.step, request.task.id, sample),
                request.sampling if sample in request.numbers else GREEDY,
                request.number,
            )
            for request in requests
            for sample in (*request.numbers, *[request.numbers.stop] * request.greedy)
        ]
        seat = self._seats(len(episodes)) if self._deterministic else None
        playing = play(episodes, self._agent, self._engine, watch=self._watch, seat=seat)
        done = {id(episode): trajectory async for episode, trajectory in playing}
        self._engine.check()
        trajectories = iter([done[id(episode)] for episode in episodes])
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
        """Replace the weights in place, between two engine steps; tokens sampled from now on carry ``version``.

        An engine that was woken steps again.
        """
        await self._engine.update_weights(update, version)

    async def pause(self) -> None:
        """Hold all episodes while a GPU transfer replaces the weights."""
        await self._engine.pause()

    async def transfer(self, method: str, arguments: dict[str, Any]) -> None:
        """A call of the learner's, while the weights are replaced: see ``VllmEngine.transfer``."""
        await self._engine.transfer(method, arguments)

    async def commit_received(self, version: int, sent: Sent) -> None:
        """The weights are ``version``, if they are what was sent; episodes go on."""
        await self._engine.commit_received(version, sent)

    async def sleep(self) -> None:
        """Hold all episodes and give a GPU's memory to the learner beside it; on CPU the engine only pauses."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take the memory back; episodes go on where they were once the next weights came."""
        await self._engine.wake()

    async def probe(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float, float]]:
        """The greedy next token of each prompt, its log-prob, and 0: this side of the canary knows no margin."""
        turn = Turn(max_tokens=1)
        answers = await asyncio.gather(*(self._engine.generate(p, turn, GREEDY, seed=0) for p in prompts))
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

    def _watch(self, episode: EpisodeRequest) -> AbstractContextManager[EpisodeProgress]:
        return self._progress.episode(episode.group)

    def _seats(self, episodes: int) -> Seat:
        """Fixed-order admission for so many episodes."""
        admission = OrderedAdmission(self._engine, episodes)

        @contextmanager
        def seat(episode: EpisodeRequest) -> Iterator[Engine]:
            try:
                yield admission.episode(episode.task.id, episode.key.sample)
            finally:
                admission.end_episode()

        return seat
