"""A rollout worker without an engine and a learner without a model, as Ray actors: what is left is the controller's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.controller import episodes
from search_agent.protocols.autorefine import AutoRefine
from search_agent.protocols.autorefine import Config as ProtocolConfig
from search_agent.rewards.autorefine import Config as RewardConfig
from search_agent.rewards.autorefine import build as build_reward
from verl.data.batch import pack_samples
from verl.data.packing import pack
from verl.data.samples import TrainingSample
from verl.learner.flops import FlopsModel
from verl.rollout.groups import Group, GroupRequest

# The matmuls of a Qwen2.5-1.5B: what packing balances.
SIZES = FlopsModel(layer_weights=1_310_000_000, attention_width=28 * 1536, head_weights=1536 * 151_936)
CAP = 16_384


@dataclass
class Spent:
    """Seconds of an actor."""

    making: float = 0.0
    """Episodes out of nothing: an engine's work, not counted."""
    scoring: float = 0.0
    packing: float = 0.0


class StubRollout:
    """Its episodes are there at once; it scores them as a worker does."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._reward = build_reward(RewardConfig(), AutoRefine(ProtocolConfig()))
        self._spent = Spent()

    async def run_groups(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Every episode of the requests, scored."""
        began = time.perf_counter()
        groups = [episodes.group(request, self._tokens) for request in requests]
        made = time.perf_counter()
        for group in groups:
            for trajectory in group.trajectories:
                score = self._reward(group.task, trajectory)
                trajectory.reward, trajectory.reward_parts = score.reward, score.parts
        self._spent.making += made - began
        self._spent.scoring += time.perf_counter() - made
        return groups

    async def spent(self) -> Spent:
        """So far."""
        return self._spent


class StubLearner:
    """Packs what it is given, rank 0's share of ``ranks``, and drops it."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._spent = Spent()

    def update(self, samples: Sequence[TrainingSample], temperature: float) -> dict[str, float]:
        """The number of tokens that were laid into micro-batches."""
        began = time.perf_counter()
        lengths, costs = [len(sample) for sample in samples], [SIZES.cost(sample) for sample in samples]
        plan = pack(lengths, CAP, self._ranks, costs)
        tokens = sum(pack_samples([samples[i] for i in members]).num_tokens for members in plan[0])
        self._spent.packing += time.perf_counter() - began
        return {"tokens": float(tokens), "samples": float(len(samples))}

    def spent(self) -> Spent:
        """So far."""
        return self._spent
