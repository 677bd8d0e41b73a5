"""How likely the policy finds the accepted answer after what an episode found: a score that nothing sampled.

The learner scores spliced trajectories (``verl.data.splice``) between SCORE and ASSIGN, as it does for a KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from verl.cluster.learners import LearnerGroup
from verl.data.samples import TrainingSample
from verl.data.splice import splice
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trainer.config import GoldLogprobConfig
from verl.trajectory import Trajectory

Encode = Callable[[str], Sequence[int]]
"""Ids of a text in which a special token is ordinary characters."""


def splice_gold(task: Task, trajectory: Trajectory, config: GoldLogprobConfig, encode: Encode) -> TrainingSample:
    """The episode with the task's first accepted answer where its last turn was; only the answer's tokens count.

    An episode that ends with an observation keeps all it has: there the policy was to write next.
    """
    segments = trajectory.segments[:-1] if trajectory.segments[-1].is_policy else trajectory.segments
    context = [token for segment in segments for token in segment.token_ids.tolist()]
    return splice([*context, *encode(config.opening)], encode(task.golden_answers[0]))


class GoldScorer:
    """Log-prob of the accepted answer, for each usable episode."""

    def __init__(self, learners: LearnerGroup, config: GoldLogprobConfig, encode: Encode, *, longest: int) -> None:
        """Episodes that would come to more than ``longest`` tokens have no score."""
        self._learners = learners
        self._config = config
        self._encode = encode
        self._longest = longest

    async def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """Mean log-prob of the answer's tokens (nats), one for each usable episode of all groups, in order."""
        pairs = [(group.task, trajectory) for group in groups for trajectory in group.usable]
        samples = [splice_gold(task, trajectory, self._config, self._encode) for task, trajectory in pairs]
        fitting = [sample for sample in samples if len(sample) <= self._longest]
        sums = iter(await self._learners.sum_logprobs(fitting) if fitting else [])
        return [next(sums) / s.num_policy_tokens if len(s) <= self._longest else None for s in samples]
