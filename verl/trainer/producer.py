"""Keeps rollout busy within the bound of the group buffer, and hands a step's groups to the trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from verl.cluster.pool import RolloutPool
from verl.data.order import EpochOrder
from verl.data.tasks import Task
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.buffer import GroupBuffer
from verl.trainer.config import TrainerConfig


class GroupProducer:
    """Use with ``async with``: a rollout that fails ends the block with its error."""

    def __init__(
        self, pool: RolloutPool, tasks: Sequence[Task], config: TrainerConfig, sampling: Sampling, seed: int
    ) -> None:
        self._pool = pool
        self._config = config
        self._sampling = sampling
        self._order = EpochOrder(tasks, seed, "train", distinct=config.prompts_per_step)
        self._wake = asyncio.Event()
        self._rollouts = asyncio.TaskGroup()
        self.buffer: GroupBuffer[Group] = GroupBuffer(config.prompts_per_step)

    async def __aenter__(self) -> GroupProducer:
        await self._rollouts.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._rollouts.__aexit__(*error)  # type: ignore[arg-type]

    def resume(self, version: int, outstanding: Sequence[int], next_number: int) -> None:
        """Begin at a version of the weights; groups that an earlier process started and lost start again."""
        config = self._config
        self.buffer = GroupBuffer(
            config.prompts_per_step,
            config.max_staleness,
            version=version,
            total=config.steps * config.prompts_per_step,
        )
        self._start(self.buffer.restore(outstanding, max(next_number, self.buffer.next_number)))

    async def next_groups(self) -> list[Group]:
        """Start what may start, and wait until a step's groups are complete."""
        self._start(self.buffer.startable())
        while not self.buffer.ready():
            self._wake.clear()
            await self._wake.wait()
        return [group for _, group in self.buffer.take()]

    def _start(self, numbers: Sequence[int]) -> None:
        requests = [
            train_request(
                self._config,
                self._sampling,
                number,
                self._order[number],
                stage="train",
                step=number // self._config.prompts_per_step,
            )
            for number in numbers
        ]
        # On-policy, a step's groups start together and are needed together: one call. Otherwise each comes alone.
        batches = [[request] for request in requests] if self._config.max_staleness else [requests]
        for batch in batches:
            if batch:
                self._rollouts.create_task(self._play(batch))

    async def _play(self, batch: list[GroupRequest]) -> None:
        for group in await self._pool.run(batch):
            self.buffer.finish(group.number, group)
        self._wake.set()


def train_request(
    config: TrainerConfig, sampling: Sampling, number: int, task: Task, *, stage: str, step: int
) -> GroupRequest:
    """A group to train on; ``stage`` and ``step`` enter its seeds."""
    return GroupRequest(
        number=number,
        task=task,
        samples=config.samples_per_prompt,
        split="train",
        stage=stage,
        step=step,
        sampling=sampling,
        greedy=config.advantage.needs_greedy,
    )
