"""Playing a set of tasks once, greedily and sampled, and saying what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from verl.cluster.pool import RolloutPool
from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.episodes import episodes_of
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.run_folder import RunFolder
from verl.trainer.summary import abort_reasons

DECODINGS = {"greedy": Sampling(temperature=0.0), "sampled": Sampling()}

Describe = Callable[[Sequence[Group]], dict[str, Any]]
"""Turns the groups of an evaluation into what ``summary.json`` says of it; ``em`` among the rest."""


class Evaluator:
    """Measures whatever weights the pool's engines hold."""

    def __init__(self, pool: RolloutPool, describe: Describe) -> None:
        self._pool = pool
        self._describe = describe

    async def measure(
        self, tasks: Sequence[Task], split: str, stage: str, step: int, keep_in: RunFolder | None = None
    ) -> dict[str, dict[str, Any]]:
        """``{"greedy": ..., "sampled": ...}``; the episodes go to ``keep_in`` as ``<stage>-greedy`` and so on.

        Raises InfrastructureError if no episode survived: an outage is not a score of zero.
        """
        results = {}
        for name, sampling in DECODINGS.items():
            requests = [
                GroupRequest(number, task, 1, split, f"{stage}-{name}", step, sampling)
                for number, task in enumerate(tasks)
            ]
            groups = await self._pool.run(requests)
            check_alive(groups)
            results[name] = self._describe(groups)
            if keep_in is not None:
                keep_in.write_trajectories(f"{stage}-{name}", step, episodes_of(groups, split), keep=1)
        return results


def check_alive(groups: Sequence[Group]) -> None:
    """Raises InfrastructureError, with the commonest reason, if infrastructure ended every episode."""
    if any(group.usable for group in groups):
        return
    reasons = sorted(abort_reasons(groups).items(), key=lambda item: -item[1])
    first = f"{reasons[0][0]} ({reasons[0][1]} episodes)" if reasons else "no episode was played"
    raise InfrastructureError(f"every episode was aborted: {first}; mend it and run the same command to go on")
