"""Dynamic sampling: a step is completed within a bound, with tasks and numbers that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl.algorithms.control_config import BudgetConfig, DynamicSamplingConfig
from verl.data.tasks import Task
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.config import TrainerConfig
from verl.trainer.refill import Refill
from verl.trainer.shaping import Shaping
from verl.trajectory import Trajectory

TASKS = [Task(str(number), "q", ("a",)) for number in range(30)]


def played(number: int, task: Task, *rewards: float) -> Group:
    return Group(number, task, [Trajectory(task.id, i, outcome="finished", reward=r) for i, r in enumerate(rewards)])


class FakePool:
    """Every third task it is asked for has rewards that differ (``always`` says which, if not these)."""

    def __init__(self, always: bool | None = None) -> None:
        self.requests: list[GroupRequest] = []
        self._always = always

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        self.requests += requests
        useful = [len(self.requests) % 3 == 0 if self._always is None else self._always for _ in requests]
        return [played(r.number, r.task, 1.0, float(not u)) for r, u in zip(requests, useful, strict=True)]


def refill(pool: Any, *, enabled: bool = True) -> Refill:
    sampling = DynamicSamplingConfig(enabled=enabled, max_refills=3)
    config = TrainerConfig(steps=10, prompts_per_step=4, dynamic_sampling=sampling)
    return Refill(pool, TASKS, config, Shaping(), Sampling(), seed=0)


STEP = [played(n, TASKS[n], 1.0, float(n % 2)) for n in range(4)]  # 0 and 2 say something


async def test_it_asks_for_as_many_groups_as_are_lacking() -> None:
    pool = FakePool(always=True)
    groups, counts = await refill(pool).complete(STEP, 5)
    assert groups[:4] == STEP
    assert len(groups) == 6
    assert counts == {"refills": 1.0, "refilled_groups": 2.0, "lacking_groups": 0.0}


async def test_it_gives_up_after_the_last_round_and_counts_what_is_lacking() -> None:
    pool = FakePool(always=False)
    groups, counts = await refill(pool).complete(STEP, 5)
    assert counts == {"refills": 3.0, "refilled_groups": 6.0, "lacking_groups": 2.0}
    assert len(groups) == 10, "what was played is counted and kept, trained on or not"


async def test_a_step_with_enough_groups_is_not_refilled() -> None:
    pool, enough = FakePool(), [played(n, TASKS[n], 1.0, 0.0) for n in range(4)]
    assert (await refill(pool).complete(enough, 0))[0] == enough
    assert not pool.requests


async def test_rounds_of_all_steps_have_numbers_and_seeds_of_their_own() -> None:
    pool = FakePool(always=False)
    for step in range(10):
        await refill(pool).complete(STEP, step)
    numbers = [request.number for request in pool.requests]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 40, "behind the numbers of the steps"
    assert len({(r.step, r.task.id) for r in pool.requests}) == len(numbers)
    assert {request.stage for request in pool.requests} == {"refill"}


async def test_a_resumed_run_draws_the_same_refills() -> None:
    first, again = FakePool(always=False), FakePool(always=False)
    whole = refill(first)
    for step in (3, 4, 5):
        await whole.complete(STEP, step)
    await refill(again).complete(STEP, 5)
    assert again.requests == first.requests[-6:]


async def test_switched_off_it_plays_nothing() -> None:
    pool = FakePool()
    assert await refill(pool, enabled=False).complete(STEP, 0) == (STEP, {})
    assert not pool.requests


async def test_groups_that_differ_in_what_they_spent_say_something_once_that_has_a_price() -> None:
    step = [played(n, TASKS[n], 1.0, 1.0) for n in range(4)]
    for group in step:
        for number, episode in enumerate(group.trajectories):
            episode.reward_parts = {"searches": float(number)}
    budget = BudgetConfig(part="searches", rate=0.1, limit=1.0)
    config = TrainerConfig(
        steps=10, prompts_per_step=4, budget=budget, dynamic_sampling=DynamicSamplingConfig(enabled=True)
    )
    free, priced = FakePool(always=True), FakePool(always=True)
    await Refill(free, TASKS, config, Shaping(budget=budget), Sampling(), seed=0).complete(step, 0)  # type: ignore[arg-type]
    await Refill(priced, TASKS, config, Shaping(budget=budget), Sampling(), seed=0).complete(step, 0, 0.1)  # type: ignore[arg-type]
    assert (len(free.requests), len(priced.requests)) == (4, 0)
