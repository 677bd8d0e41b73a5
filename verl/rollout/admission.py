"""Fixed admission order: what makes a synchronous run bit-for-bit repeatable.

A request's seed fixes its draws, but log-probs also depend, in the last bits, on which requests share its batch. Here
requests wait until every live episode either waits too or has ended, and are then admitted together, ordered by key.
What the engine computes then depends on the requests alone, not on how fast a search or a process was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from verl.rollout.engine_vllm import GenerateRequest
from verl.rollout.interfaces import Engine, Generation, Sampling, Turn


class BatchEngine(Engine, Protocol):
    """An engine that admits a list of requests in one go, in order, between two of its steps."""

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[asyncio.Future[Generation]]:
        """Futures in the order of ``requests``."""


class OrderedAdmission:
    """Collects one request from each live episode, then admits them in order of episode key."""

    def __init__(self, engine: BatchEngine, episodes: int) -> None:
        """``episodes`` will play, and all of them count as live from now until each one's ``end_episode``."""
        self._engine = engine
        self._live = episodes
        self._waiting: list[tuple[tuple[str, int], GenerateRequest, asyncio.Future[Generation]]] = []

    def episode(self, task_id: str, sample: int) -> OrderedEpisodeEngine:
        """The engine as one of the episodes sees it."""
        return OrderedEpisodeEngine(self, (task_id, sample))

    def end_episode(self) -> None:
        """An episode has ended: the others need not wait for it."""
        self._live -= 1
        self._admit_if_complete()

    async def submit(self, key: tuple[str, int], request: GenerateRequest) -> Generation:
        """Wait for the barrier, then for the generation."""
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, request, future))
        self._admit_if_complete()
        return await future

    def _admit_if_complete(self) -> None:
        if not self._waiting or len(self._waiting) < self._live:
            return
        batch, self._waiting = sorted(self._waiting, key=lambda item: item[0]), []
        inner = self._engine.generate_many([request for _, request, _ in batch])
        for (_, _, outer), future in zip(batch, inner, strict=True):
            future.add_done_callback(lambda done, outer=outer: _copy_result(done, outer))  # type: ignore[misc]


@dataclass(frozen=True)
class OrderedEpisodeEngine(Engine):
    """The engine as one episode sees it."""

    admission: OrderedAdmission
    key: tuple[str, int]

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        return await self.admission.submit(self.key, GenerateRequest(token_ids, turn, sampling, seed))


def _copy_result(done: asyncio.Future[Generation], outer: asyncio.Future[Generation]) -> None:
    if outer.cancelled():
        return
    if done.cancelled():
        outer.cancel()
    elif (error := done.exception()) is not None:
        outer.set_exception(error)
    else:
        outer.set_result(done.result())
