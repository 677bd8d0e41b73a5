"""The lock-step rollout of Search-R1 and AutoRefine, over our engine: the batch takes each turn together.

    all episodes generate -> wait for the slowest -> one blocking batch search -> wait for its slowest -> next turn

Environments, prompts, seeds and retriever are those of the real worker; only who waits for whom differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from search_agent.retrieval.client.reply import parse_reply
from search_agent.retrieval.types import SearchResult
from verl.rollout.engine import GenerateRequest, VllmEngine
from verl.rollout.episode import EpisodeKey
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Environment, Generation
from verl.trajectory import Trajectory


class BatchSearch:
    """Collects the queries of a turn, and asks them all in one request. Implements the environment's ``Retriever``."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session
        self._waiting: list[tuple[str, int, asyncio.Future[SearchResult]]] = []

    async def search(self, query: str, k: int) -> SearchResult:
        """The answer, once ``flush`` was called."""
        future: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, k, future))
        return await future

    async def flush(self) -> None:
        """One request for all that was asked."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        body = {"queries": [query for query, _, _ in waiting], "topk": waiting[0][1], "return_scores": True}
        async with self._session.post(f"{self._url}/retrieve", json=body) as response:
            replies = parse_reply(await response.json(), len(waiting))
        for (_, _, future), documents in zip(waiting, replies, strict=True):
            assert not isinstance(documents, Exception)
            future.set_result(SearchResult(documents, 0.0, False))


async def play(
    engine: VllmEngine,
    search: BatchSearch,
    environments: Sequence[Environment],
    keys: Sequence[EpisodeKey],
    requests: Sequence[GroupRequest],
) -> list[Trajectory]:
    """One batch of episodes, each with its environment, key and request."""
    trajectories = [Trajectory(key.task_id, key.sample) for key in keys]
    for trajectory, environment in zip(trajectories, environments, strict=True):
        prompt = await environment.start()
        trajectory.append_prompt(prompt.token_ids, prompt.text)
    while active := [
        (index, turn) for index, environment in enumerate(environments) if (turn := environment.next_turn()) is not None
    ]:
        asked = [
            GenerateRequest(
                trajectories[index].token_ids().tolist(),
                turn,
                requests[index].sampling,
                keys[index].turn_seed(trajectories[index].num_turns),
            )
            for index, turn in active
        ]
        generations = await asyncio.gather(*engine.generate_many(asked))
        await _observe(search, [(environments[i], trajectories[i]) for i, _ in active], generations)
    for trajectory, environment in zip(trajectories, environments, strict=True):
        trajectory.outcome, trajectory.reason = environment.outcome()
    return trajectories


async def _observe(
    search: BatchSearch, episodes: Sequence[tuple[Environment, Trajectory]], generations: Sequence[Generation]
) -> None:
    observing = []
    for (environment, trajectory), generation in zip(episodes, generations, strict=True):
        trajectory.append_generated(
            generation.token_ids, generation.text, generation.logprobs, generation.versions, generation.finish_reason
        )
        observing.append(asyncio.ensure_future(environment.observe(generation)))
    await asyncio.sleep(0)  # every episode has asked by now
    await search.flush()
    for (_, trajectory), observation in zip(episodes, await asyncio.gather(*observing), strict=True):
        if observation is not None:
            trajectory.append_observation(observation.token_ids, observation.text, observation.calls)
