"""Weights from the learner to the engines: publish, load everywhere, and make sure that both sides agree.

They travel as a file that every engine maps, or from GPU to GPU. The newest version's file stays until the next version
is loaded: a worker that joins meanwhile starts from it. A GPU transfer leaves none; the learner writes one when a
worker joins, and if it has trained on since, the worker waits for the next version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.carriers import Carriers, this_node
from verl.cluster.groups import LearnerGroup
from verl.cluster.pool import RolloutPool
from verl.cluster.replica import Canary
from verl.sync.canary import Probe, Reading, check

if TYPE_CHECKING:
    from verl.rollout.engine_config import EngineConfig
    from verl.sync.update import WeightUpdate


class WeightSync:
    """Gives the rollout workers new weights, in place."""

    def __init__(
        self,
        learners: LearnerGroup,
        pool: RolloutPool,
        *,
        engine: EngineConfig,
        folder: str,
        probes: Sequence[Sequence[int]],
        tolerance: float,
        carriers: Carriers,
    ) -> None:
        """``folder`` is shared memory of the machine that publishes; ``probes`` are the canary's fixed prompts (ids).

        ``tolerance`` bounds the difference in log-prob of the canary's greedy tokens: 1e-4 in float32.
        """
        self._learners = learners
        self._pool = pool
        self._engine = engine
        self._folder = folder
        self._probes = probes
        self._tolerance = tolerance
        self._carriers = carriers
        self._held: WeightUpdate | None = None

    async def push(self, version: int) -> None:
        """Give every engine the learner's weights. Raises InfrastructureError if one of them then disagrees."""
        # In this order: the learner writes a file, then answers the probes while engines load it.
        _, expected = await asyncio.gather(self._give(version), self._learners.probe(self._probes))
        learner = _reading(expected, [[margin] for _, _, margin in expected])

        def agree(answer: Probe) -> None:
            check(_reading(answer), learner, version, max_diff=self._tolerance)

        await self._pool.confirm(Canary(self._probes, agree))

    async def push_saved(self, folder: Path, version: int) -> None:
        """Give every engine the weights of a Hugging Face folder; the learner is not involved."""
        import torch

        from verl.learner.saved_weights import read_weights
        from verl.sync.carrier import publish

        update = publish(read_weights(folder, getattr(torch, self._engine.dtype)), version, self._folder)
        await self._load(replace(update, node=this_node()), version)

    async def _give(self, version: int) -> None:
        if self._engine.weight_transfer == "shm":
            await self._load(await self._publish(version), version)
        else:
            await self._send(version)

    async def _publish(self, version: int) -> WeightUpdate:
        return await self._learners.publish(version, self._engine.dtype, self._folder)

    async def _send(self, version: int) -> None:
        engine, changes = self._engine, self._learners.changes
        assert engine.weight_transfer != "shm"
        backend = engine.weight_transfer
        held, self._held = self._held, None

        async def send(actors: Mapping[str, Any]) -> int:
            return await self._learners.send(backend, engine.dtype, actors, engine.tensor_parallel_size)

        async def as_file() -> WeightUpdate | None:
            if self._learners.changes != changes:
                return None
            self._held = await self._publish(version)
            return self._held

        await self._pool.transfer(send, as_file, version)
        await self._release(held)

    async def _load(self, update: WeightUpdate, version: int) -> None:
        await self._pool.update_weights(update, version)
        held, self._held = self._held, update
        await self._release(held)

    async def _release(self, held: WeightUpdate | None) -> None:
        # A version that is given out twice is one file, and so is the base of all adapters of a phase.
        used = {file.path for file in _files(self._held)}
        for file in _files(held):
            if file.path not in used:
                await self._carriers.release(file)


def _files(update: WeightUpdate | None) -> list[WeightUpdate]:
    return [file for file in (update, update and update.base) if file is not None]


def _reading(answers: Probe, margins: Sequence[Sequence[float]] = ()) -> Reading:
    """Greedy next tokens with their log-probs; the canary skips each row's first entry, which has no context."""
    return Reading([[0.0, logprob] for _, logprob, _ in answers], [[token] for token, _, _ in answers], margins)
