"""Weights from the learner to the engines: publish, load everywhere, and make sure that both sides agree.

The newest version's file stays until the next version is loaded: a worker that joins meanwhile starts from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from verl.cluster.carriers import Carriers, this_node
from verl.cluster.groups import LearnerGroup
from verl.cluster.pool import RolloutPool
from verl.cluster.replica import Canary
from verl.sync.canary import Probe, Reading, check

if TYPE_CHECKING:
    from verl.sync.update import WeightUpdate


class WeightSync:
    """Gives the rollout workers new weights, in place."""

    def __init__(
        self,
        learners: LearnerGroup,
        pool: RolloutPool,
        *,
        dtype: str,
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
        self._dtype = dtype
        self._folder = folder
        self._probes = probes
        self._tolerance = tolerance
        self._carriers = carriers
        self._held: WeightUpdate | None = None

    async def push(self, version: int) -> None:
        """Give every engine the learner's weights. Raises InfrastructureError if one of them then disagrees."""
        update = await self._learners.publish(version, self._dtype, self._folder)
        expected, _ = await asyncio.gather(self._learners.probe(self._probes), self._load(update, version))
        learner = _reading(expected, [[margin] for _, _, margin in expected])

        def agree(answer: Probe) -> None:
            check(_reading(answer), learner, version, max_diff=self._tolerance)

        await self._pool.confirm(Canary(self._probes, agree))

    async def push_saved(self, folder: Path, version: int) -> None:
        """Give every engine the weights of a Hugging Face folder; the learner is not involved."""
        import torch

        from verl.learner.saved_weights import read_weights
        from verl.sync.carrier import publish

        update = publish(read_weights(folder, getattr(torch, self._dtype)), version, self._folder)
        await self._load(replace(update, node=this_node()), version)

    async def _load(self, update: WeightUpdate, version: int) -> None:
        await self._pool.update_weights(update, version)
        if self._held is not None and self._held.path != update.path:
            await self._carriers.release(self._held)
        self._held = update


def _reading(answers: Probe, margins: Sequence[Sequence[float]] = ()) -> Reading:
    """Greedy next tokens with their log-probs; the canary skips each row's first entry, which has no context."""
    return Reading([[0.0, logprob] for _, logprob, _ in answers], [[token] for token, _, _ in answers], margins)
