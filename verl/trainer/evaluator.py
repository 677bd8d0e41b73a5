"""Playing a set of tasks once in each way of decoding, all side by side, and saying what came out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl.cluster.pool import RolloutPool
from verl.config.nearest import nearest
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.episodes import episodes_of
from verl.rollout.groups import Group, GroupRequest
from verl.trainer.config import DecodingConfig, EvaluationConfig
from verl.trainer.run_folder import RunFolder

Describe = Callable[[Sequence[Group]], dict[str, Any]]
"""Turns the groups of an evaluation into what ``summary.json`` says of it: numbers, and how sure they are."""


Observe = Callable[[Sequence[Group]], dict[str, float]]
"""What is measured of the groups of each training step, besides their rewards."""


class Evaluator:
    """Measures whatever weights the pool's engines hold."""

    def __init__(self, pool: RolloutPool, describe: Describe, decodings: Sequence[DecodingConfig]) -> None:
        self._pool = pool
        self._describe = describe
        self._decodings = decodings

    async def measure(
        self, tasks: Sequence[Task], split: str, stage: str, step: int, keep_in: RunFolder | None = None
    ) -> dict[str, dict[str, Any]]:
        """What came out by decoding; the episodes go to ``keep_in`` as ``<stage>-<decoding>``.

        Raises InfrastructureError if no episode of a decoding survived: an outage is not a score of zero.
        """
        requests = [
            GroupRequest(number, task, decoding.samples, split, f"{stage}-{decoding.name}", step, decoding.sampling)
            for number, (decoding, task) in enumerate((way, task) for way in self._decodings for task in tasks)
        ]
        played = await self._pool.run(requests)  # one call: the slow episodes of one way do not hold up the next
        results = {}
        for number, decoding in enumerate(self._decodings):
            groups = played[number * len(tasks) : (number + 1) * len(tasks)]
            check_alive(groups)
            results[decoding.name] = self._describe(groups)
            if keep_in is not None:
                name, rows = f"{stage}-{decoding.name}", episodes_of(groups, split)
                await asyncio.to_thread(keep_in.write_trajectories, name, step, rows, keep=1)
        return results


def chosen_score(results: Mapping[str, Mapping[str, Any]], config: EvaluationConfig) -> float:
    """The number that the best checkpoint is chosen by. Raises UserError, with what there is, if there is none."""
    result = results[config.select_by]
    score = result.get(config.metric)
    if isinstance(score, int | float):
        return float(score)
    known = sorted(name for name, value in result.items() if isinstance(value, int | float))
    raise UserError(
        f"evaluation.metric={config.metric}: dev has no such number{nearest(config.metric, known)}; "
        f"there are: {', '.join(known)}"
    )


def check_alive(groups: Sequence[Group]) -> None:
    """Raises InfrastructureError, with the commonest reason, if infrastructure ended every episode."""
    if any(group.usable for group in groups):
        return
    reasons = Counter(trajectory.reason for group in groups for trajectory in group.trajectories)
    told = [f"{reason} ({count} episodes)" for reason, count in reasons.most_common(1)]
    first = told[0] if told else "no episode was played"
    raise InfrastructureError(f"every episode was aborted: {first}; mend it and run the same command to go on")
