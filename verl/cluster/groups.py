"""The learner's ranks and the rollout workers as the controller calls them: one object each, errors explained."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.ray_runtime import first_cause
from verl.rollout.groups import Group, GroupRequest

if TYPE_CHECKING:
    from verl.algorithms.config import AdvantageConfig, LossConfig
    from verl.data.samples import TrainingSample
    from verl.learner.config import OptimizerConfig
    from verl.sync.update import WeightUpdate

Probe = list[tuple[int, float, float]]


class LearnerGroup:
    """All ranks of the learner."""

    def __init__(self, ranks: Sequence[Any], logs: Sequence[Path]) -> None:
        self._ranks = ranks
        self._logs = logs

    async def begin_phase(
        self,
        optimizer: OptimizerConfig,
        loss: LossConfig,
        total_steps: int,
        advantage: AdvantageConfig | None = None,
    ) -> None:
        """A fresh optimizer and schedule for a new phase; an ``advantage`` that needs a critic gets one."""
        await self._all("begin_phase", optimizer, loss, total_steps, advantage)

    async def update(self, samples: Sequence[TrainingSample], temperature: float) -> dict[str, float]:
        """One batch: each rank takes its share. Returns the metrics of the global batch."""
        import ray

        return await self._all("update", ray.put(list(samples)), temperature)

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        """Write this version of the weights where the engines can map it."""
        return await self._all("publish", version, dtype, folder)

    async def probe(self, prompts: Sequence[Sequence[int]]) -> Probe:
        """The learner's side of the canary."""
        return await self._all("probe", prompts)

    async def save(self, folder: Path, *, hugging_face: bool) -> str:
        """Write a checkpoint; returns the hash of the weights."""
        return await self._all("save", str(folder), hugging_face=hugging_face)

    async def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        await self._all("load", str(folder))

    async def _all(self, method: str, *args: Any, **kwargs: Any) -> Any:
        calls = [getattr(rank, method).remote(*args, **kwargs) for rank in self._ranks]
        try:
            return (await asyncio.gather(*calls))[0]
        except Exception as error:
            raise first_cause(error, f"learner {method}", self._logs) from error


class RolloutPool:
    """All rollout workers; a group goes, whole, to the worker with the fewest episodes under way."""

    def __init__(self, workers: Sequence[Any], logs: Sequence[Path], starting: asyncio.Task[list[Any]]) -> None:
        """``starting`` ends when every worker is ready, or with the reason why not."""
        self._workers = workers
        self._logs = logs
        self._starting = starting
        self._load = [0] * len(workers)

    def check(self) -> None:
        """Raise at once if the workers are known to have failed to start; never waits."""
        if self._starting.done():
            self._starting.result()

    async def ready(self) -> None:
        """Wait until every worker is ready. Raises what kept it from starting."""
        await self._starting

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Play all groups; they come back in the order of the requests."""
        shares: list[list[GroupRequest]] = [[] for _ in self._workers]
        for request in requests:
            worker = min(range(len(self._workers)), key=lambda w: self._load[w])
            shares[worker].append(request)
            self._load[worker] += request.samples
        answers = await asyncio.gather(*(self._run_on(w, share) for w, share in enumerate(shares) if share))
        by_number = {group.number: group for groups in answers for group in groups}
        return [by_number[request.number] for request in requests]

    async def update_weights(self, update: WeightUpdate, version: int) -> None:
        """Give every engine this version."""
        await self._all("update_weights", update, version)

    async def probe(self, prompts: Sequence[Sequence[int]]) -> list[Probe]:
        """Every engine's side of the canary."""
        return await self._all("probe", prompts)

    async def stats(self) -> dict[str, float]:
        """The workers' counters, added up."""
        total: dict[str, float] = {}
        for stats in await self._all("stats"):
            for key, value in stats.items():
                total[key] = total.get(key, 0.0) + value
        return total

    async def close(self) -> None:
        """Stop engines and agents."""
        await self._all("close")

    async def _run_on(self, worker: int, share: list[GroupRequest]) -> list[Group]:
        try:
            return await self._workers[worker].run_groups.remote(share)
        except Exception as error:
            raise first_cause(error, f"rollout worker {worker}", self._logs[worker : worker + 1]) from error
        finally:
            self._load[worker] -= sum(request.samples for request in share)

    async def _all(self, method: str, *args: Any) -> Any:
        calls = [getattr(worker, method).remote(*args) for worker in self._workers]
        try:
            return await asyncio.gather(*calls)
        except Exception as error:
            raise first_cause(error, f"rollout worker {method}", self._logs) from error
