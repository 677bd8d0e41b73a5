"""The learner's ranks as the controller calls them: one object, errors explained. (Rollout workers: ``pool``.)"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.ray_runtime import first_cause
from verl.cluster.watchdog import Stall

if TYPE_CHECKING:
    from verl.algorithms.config import KlEstimator
    from verl.data.samples import TrainingSample
    from verl.learner.phase import Phase
    from verl.sync import Sent, WeightUpdate
    from verl.sync.canary import Probe
    from verl.trajectory import FloatArray


class LearnerGroup:
    """All ranks of the learner."""

    def __init__(self, ranks: Sequence[Any], logs: Sequence[Path]) -> None:
        self._ranks = ranks
        self._logs = logs
        self._calls: dict[int, tuple[str, float]] = {}
        self._numbers = itertools.count()
        self._busy_s = 0.0
        self.changes = 0
        """How many calls so far may change the weights. Calls take effect in the order in which they are made."""

    @property
    def busy_s(self) -> float:
        """Seconds that calls to the learner took so far, those under way included."""
        return self._busy_s + sum(time.monotonic() - began for _, began in self._calls.values())

    async def stalls(self) -> list[Stall]:
        """The call that is under way, if one is: for the watchdog."""
        now = time.monotonic()
        ranks = f"{len(self._ranks)} ranks" if len(self._ranks) > 1 else "its rank"
        calls = list(self._calls.values())[:1]  # calls wait for one another
        return [Stall("learner", now - began, f"the run waits for {what} on {ranks}") for what, began in calls]

    async def begin_phase(self, phase: Phase) -> None:
        """A fresh optimizer and schedule for a new phase: see ``Learner.begin_phase``."""
        await self._all("begin_phase", phase)

    async def update(self, samples: Sequence[TrainingSample], temperature: float) -> dict[str, float]:
        """One batch: each rank takes its share. Returns the metrics of the global batch."""
        import ray

        return await self._all("update", ray.put(list(samples)), temperature)

    async def reference_kl(
        self, samples: Sequence[TrainingSample], temperature: float, estimator: KlEstimator
    ) -> list[FloatArray]:
        """KL to the phase's reference of each token of each sample."""
        import ray

        return await self._all("reference_kl", ray.put(list(samples)), temperature, estimator)

    async def sum_logprobs(self, samples: Sequence[TrainingSample]) -> list[float]:
        """Log-prob of each sample's policy tokens together, under the weights as they are."""
        import ray

        return await self._all("sum_logprobs", ray.put(list(samples)))

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        """Write this version of the weights where the engines can map it."""
        return await self._all("publish", version, dtype, folder)

    async def send(self, transport: str, dtype: str, engines: Mapping[str, Any], ranks_per_engine: int) -> Sent:
        """Give these paused engines the weights from GPU to GPU."""
        return await self._all("send", transport, dtype, dict(engines), ranks_per_engine)

    async def probe(self, prompts: Sequence[Sequence[int]]) -> Probe:
        """The learner's side of the canary."""
        return await self._all("probe", prompts)

    async def save(
        self, folder: Path, *, hugging_face: bool, background: bool = False, previous: Path | None = None
    ) -> None:
        """Write a checkpoint, or with ``background`` begin to (see ``saved``); ``previous`` is the one before it."""
        before = None if previous is None else str(previous)
        await self._all("save", str(folder), hugging_face=hugging_face, background=background, previous=before)

    async def weights_hash(self) -> str:
        """Hash of the weights as they are now: every byte is read."""
        return await self._all("weights_hash")

    async def saved(self, *, wait: bool) -> bool:
        """Whether everything that was saved is written; ``wait`` until it is. Raises what kept it from being."""
        return await self._all("saved", wait=wait)

    async def load(self, folder: Path, batches: int | None = None) -> None:
        """Continue from a checkpoint, in a phase of so many batches if that is given."""
        await self._all("load", str(folder), batches)

    async def _all(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.changes += method in ("begin_phase", "update", "load")
        number = next(self._numbers)
        self._calls[number] = (method, time.monotonic())
        calls = [getattr(rank, method).remote(*args, **kwargs) for rank in self._ranks]
        try:
            return (await asyncio.gather(*calls))[0]
        except Exception as error:
            raise first_cause(error, f"learner {method}", self._logs) from error
        finally:
            self._busy_s += time.monotonic() - self._calls.pop(number)[1]
