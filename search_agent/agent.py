"""The search agent as a rollout worker sees it: environments over a protocol and a retriever, and a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.types import SearchResult
from search_agent.rewards.checked import name_scoring, score_here
from search_agent.rewards.evidence import evidence_gains
from search_agent.rewards.parts import measure
from search_agent.rewards.pool import RewardPool, reward_function
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.interfaces import Environment, Score
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class AgentSpec:
    """All that a worker needs to make its agent; plain data, so that it travels between processes."""

    protocol: Plugin
    environment: Plugin
    reward: Plugin
    client: ClientConfig
    urls: Mapping[str, Sequence[str]]
    """Addresses of the retrieval servers of each split."""
    max_context_tokens: int

    def __call__(self, tokenizer: Any) -> SearchAgent:
        """Make the agent: this is ``verl.rollout.worker.AgentFactory``."""
        return SearchAgent(self, tokenizer)


class Episodes(Protocol):
    """What an environment plug-in's ``build`` makes: the shared part of the episodes of one split.

    The module's ``Config`` says the episodes' bounds: see ``search_agent.config.Bounds``.
    """

    async def open(self) -> None:
        """Connect to what the episodes use; called once, on their event loop."""

    def __call__(self, task: Task) -> Environment:
        """A new episode of a task."""

    async def close(self) -> None:
        """Release what ``open`` took."""


class NoRetriever:
    """What stands where ``retriever=none`` was written."""

    async def search(self, query: str, k: int, **terms: Any) -> SearchResult:
        """Raises UserError: a tool searched after all."""
        raise UserError("retriever=none, and a tool searches: write retriever=embedded, or retriever=http://HOST:PORT")


class SearchAgent:
    """Implements ``verl.rollout.interfaces.Agent``."""

    def __init__(self, spec: AgentSpec, tokenizer: Any) -> None:
        """Raises UserError if protocol, framing and tokenizer do not fit together."""
        protocol = self._protocol = spec.protocol.build()
        self._plugin, self._reward = spec.reward, reward_function(spec.reward, protocol)
        # Splits that share their servers share a client, and with it coalescing and connections.
        given = {tuple(urls) for urls in spec.urls.values()}
        by_urls = {urls: RetrievalClient(replace(spec.client, urls=urls)) for urls in given if urls}
        self._clients = list(by_urls.values())
        self._episodes: dict[str, Episodes] = {
            split: spec.environment.build(
                protocol=protocol,
                tokenizer=tokenizer,
                retriever=by_urls.get(tuple(urls), NoRetriever()),
                max_context_tokens=spec.max_context_tokens,
            )
            for split, urls in spec.urls.items()
        }

    async def open(self) -> None:
        """Open the clients' connection pools, and what the environments use besides."""
        for client in self._clients:
            await client.__aenter__()
        for episodes in self._episodes.values():
            await episodes.open()

    def environment(self, task: Task, split: str) -> Environment:
        """A new episode of a task of ``split``."""
        return self._episodes[split](task)

    async def score(self, task: Task, trajectory: Trajectory) -> Score:
        """The reward and its parts; a user's reward need not measure what every run reports (``em``, ``searches``).

        Raises UserError if the reward fails, InfrastructureError if it says that something outside did.
        """
        if isinstance(self._reward, RewardPool):
            score = await self._reward.score_aside(task, trajectory)
        else:
            score = score_here(self._reward, name_scoring(self._plugin, task, trajectory), task, trajectory)
        measured = {} if "answered" in score.parts else measure(task, self._protocol.read(trajectory))
        return Score(score.reward, {**measured, **score.parts}, evidence_gains(task, trajectory))

    def stats(self) -> dict[str, float]:
        """The clients' counters, added up."""
        total: dict[str, float] = {}
        for client in self._clients:
            for name, value in client.stats().items():
                if isinstance(value, int | float):
                    total[f"search/{name}"] = total.get(f"search/{name}", 0.0) + value
        return total

    async def close(self) -> None:
        """Release what ``open`` took, and end the processes of a pooled reward."""
        for episodes in self._episodes.values():
            await episodes.close()
        for client in self._clients:
            await client.close()
        if isinstance(self._reward, RewardPool):
            self._reward.close()
