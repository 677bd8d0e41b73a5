"""The producer keeps rollout within the bound, and a rollout that fails ends the run with its own error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.config import TrainerConfig
from verl.trainer.producer import GroupProducer

TASKS = [Task(str(number), "q", ("a",)) for number in range(10)]


class FakePool:
    """Plays a group in a random, short time; remembers what was asked for."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self._fail_at = fail_at
        self._rng = random.Random(0)

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        self.calls.append([request.number for request in requests])
        await asyncio.sleep(self._rng.random() * 0.005)
        if self._fail_at in self.calls[-1]:
            raise InfrastructureError("the engine died")
        return [Group(request.number, request.task) for request in requests]


def producer(pool: Any, max_staleness: int, steps: int = 6) -> GroupProducer:
    config = TrainerConfig(steps=steps, prompts_per_step=3, max_staleness=max_staleness)
    return GroupProducer(pool, TASKS, config, Sampling(), seed=0)


async def drain(pool: FakePool, max_staleness: int) -> list[int]:
    trained: list[int] = []
    async with producer(pool, max_staleness) as groups:
        groups.resume(0, [], 0)
        for _ in range(6):
            trained += [group.number for group in await groups.next_groups()]
            await asyncio.sleep(0.001)
            groups.buffer.advance()
    return trained


async def test_on_policy_a_step_is_one_call_and_in_order() -> None:
    pool = FakePool()
    assert await drain(pool, 0) == list(range(18))
    assert pool.calls == [list(range(start, start + 3)) for start in range(0, 18, 3)]


async def test_ahead_of_the_trainer_every_group_is_trained_on_once_and_none_is_started_for_nothing() -> None:
    pool = FakePool()
    trained = await drain(pool, 2)
    assert sorted(trained) == list(range(18))
    assert sorted(number for call in pool.calls for number in call) == list(range(18))


async def test_a_resumed_producer_starts_what_was_lost_again() -> None:
    pool = FakePool()
    async with producer(pool, 1) as groups:
        groups.resume(4, [11, 13, 14], 15)  # 12 of 15 were trained on
        numbers = {group.number for group in await groups.next_groups()}
        groups.buffer.advance()
        numbers |= {group.number for group in await groups.next_groups()}
    assert numbers == {11, 13, 14, 15, 16, 17}
    assert sorted(number for call in pool.calls for number in call) == [11, 13, 14, 15, 16, 17]


async def test_a_rollout_that_fails_ends_the_block_with_its_error() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(drain(FakePool(fail_at=4), 0), 5)
    assert caught.group_contains(InfrastructureError, match="engine died")
