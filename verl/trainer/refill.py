"""DAPO's dynamic sampling (Yu et al. 2025): more tasks for a step whose groups do not say enough, within a bound.

Refills are not part of the group buffer: they are asked for when a step is about to be trained, with the newest
weights, and waited for. Their tasks come from an order of their own and their numbers lie behind those of all steps, so
that a number still means one place of one order, and a resumed run draws the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl.cluster.pool import RolloutPool
from verl.data.order import EpochOrder
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.rollout.interfaces import Sampling
from verl.trainer.config import TrainerConfig
from verl.trainer.producer import train_request
from verl.trainer.shaping import Shaping, informative_groups


class Refill:
    """Completes the groups of a step."""

    def __init__(
        self,
        pool: RolloutPool,
        tasks: Sequence[Task],
        config: TrainerConfig,
        shaping: Shaping,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self._pool = pool
        self._shaping = shaping
        self._config = config
        self._sampling = sampling
        self._order = EpochOrder(tasks, seed, "refill", distinct=config.prompts_per_step)

    async def complete(
        self, groups: list[Group], step: int, price: float | None = None
    ) -> tuple[list[Group], dict[str, float]]:
        """``groups`` with those of the refills after them, and the counts; ``step`` counts from 0. ``price`` is where
        that of a budget stands.

        A round asks for as many groups as are lacking. After the last one the step goes ahead with what there is.
        """
        config, wanted = self._config.dynamic_sampling, self._config.prompts_per_step
        if not config.enabled:
            return groups, {}
        found, rounds, first = list(groups), 0, len(groups)
        shaping = self._shaping.at(price)
        useful = self._useful(found, shaping)
        while useful < wanted and rounds < config.max_refills:
            more = await self._play(step * config.max_refills + rounds, wanted - useful)
            useful += self._useful(more, shaping)
            found += more
            rounds += 1
        counts = {"refills": rounds, "refilled_groups": len(found) - first, "lacking_groups": max(0, wanted - useful)}
        return found, {name: float(count) for name, count in counts.items()}

    def _useful(self, groups: Sequence[Group], shaping: Shaping) -> int:
        return sum(informative_groups(groups, self._config.advantage, shaping))

    async def _play(self, place: int, count: int) -> list[Group]:
        """Round ``place`` of all rounds of the run; each has room for a whole step."""
        start = place * self._config.prompts_per_step
        behind = self._config.steps * self._config.prompts_per_step
        return await self._pool.run(
            [
                train_request(self._config, self._sampling, behind + n, self._order[n], stage="refill", step=place)
                for n in range(start, start + count)
            ]
        )
