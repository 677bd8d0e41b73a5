"""How likely the policy finds the accepted answer after what an episode found, and training on that answer instead.

The learner scores spliced trajectories (``verl.data.splice``) between SCORE and ASSIGN, as it does for a KL. With the
advantage ``softmax`` the scores are the E-step of an expectation-maximisation, and what is trained on are the spliced
trajectories: the policy's searches as it sampled them, and the accepted answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig
from verl.cluster.learners import LearnerGroup
from verl.data.samples import TrainingSample
from verl.data.splice import splice
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trainer.config import GoldLogprobConfig
from verl.trainer.shaping import group_index, rewards_of, usable_episodes
from verl.trajectory import Segment, Trajectory

Encode = Callable[[str], Sequence[int]]
"""Ids of a text in which a special token is ordinary characters."""


def splice_gold(task: Task, trajectory: Trajectory, config: GoldLogprobConfig, encode: Encode) -> TrainingSample:
    """The episode with the task's first accepted answer where its last turn was; only the answer's tokens count.

    An episode that ends with an observation keeps all it has: there the policy was to write next.
    """
    context = [token for segment in _before(trajectory) for token in segment.token_ids.tolist()]
    return splice([*context, *encode(config.opening)], encode(task.golden_answers[0]))


def gold_sample(
    task: Task, trajectory: Trajectory, weight: float, config: GoldLogprobConfig, encode: Encode, end: Sequence[int]
) -> TrainingSample:
    """What is learned from: the policy's turns, and for the last one the accepted answer with what stands around it.

    ``end`` are the ids that end a turn. Log-probs of the rollout are left out: nobody sampled the last turn.
    """
    before = _before(trajectory)
    ids = [segment.token_ids for segment in before]
    turn = [*encode(config.opening), *encode(task.golden_answers[0]), *encode(config.closing), *end]
    lengths = [*map(len, before), len(turn)]
    mask = np.repeat([*(segment.is_policy for segment in before), True], lengths)
    tokens = np.concatenate([*ids, np.asarray(turn, dtype=np.int32)])
    return TrainingSample(
        tokens, mask, np.where(mask, np.float32(weight), np.float32(0)), np.zeros(len(tokens), np.float32)
    )


def _before(trajectory: Trajectory) -> list[Segment]:
    """What stands before the policy's last turn, or before the one that it was to write next."""
    segments = trajectory.main.segments
    return segments[:-1] if segments[-1].is_policy else segments


@dataclass(frozen=True)
class GoldScorer:
    """Log-prob of the accepted answer, for each usable episode."""

    learners: LearnerGroup
    config: GoldLogprobConfig
    encode: Encode
    longest: int
    """Episodes that would come to more tokens have no score."""
    end: Sequence[int] = ()
    """What ends a turn (token ids)."""

    async def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """Log-prob of the answer (nats), the mean of its tokens or their sum, one for each usable episode of all
        groups, in order."""
        pairs = [(group.task, trajectory) for group in groups for trajectory in group.usable]
        samples = [splice_gold(task, trajectory, self.config, self.encode) for task, trajectory in pairs]
        fitting = [sample for sample in samples if len(sample) <= self.longest]
        sums = iter(await self.learners.sum_logprobs(fitting) if fitting else [])
        return [self._reduced(next(sums), s) if len(s) <= self.longest else None for s in samples]

    def _reduced(self, total: float, sample: TrainingSample) -> float:
        return total if self.config.reduction == "sum" else total / sample.num_policy_tokens

    def samples(
        self, groups: Sequence[Group], scores: Sequence[float | None], config: AdvantageConfig
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """What ``weighted_nll`` learns from, ordered by (group, sample), with the weights that ``config`` makes of the
        scores, and what was left out.

        Left out are episodes without a score, those that did not come to an answer (the accepted one would stand where
        none was asked for), and those whose answer does not fit.
        """
        pairs = zip(usable_episodes(groups), scores, strict=True)
        kept = [(e, score) for e, score in pairs if score is not None and e.trajectory.outcome == "finished"]
        episodes = [episode for episode, _ in kept]
        index = group_index(episodes)
        weights = group_advantages(
            rewards_of(episodes), index, config, gold_logprobs=torch.tensor([score for _, score in kept])
        ).tolist()
        trained: list[TrainingSample] = []
        trained_episodes = 0
        for e, weight in zip(episodes, weights, strict=True):
            own = gold_sample(groups[e.group].task, e.trajectory, weight, self.config, self.encode, self.end)
            if len(own) <= self.longest:
                trained_episodes += 1
                _, *beside = TrainingSample.of_each_text(e.trajectory, weight)  # chats beside it weigh as it does
                trained += [own, *(replace(one, rollout_logprobs=one.rollout_logprobs * 0) for one in beside)]
        by_group = [
            [w for e, w in zip(episodes, weights, strict=True) if e.group == place] for place in range(len(groups))
        ]
        largest = [max(own) / sum(own) for own in by_group if sum(own) > 0]
        metrics = {
            "aborted": float(sum(group.num_aborted for group in groups)),
            "trained_episodes": float(trained_episodes),
            "unanswered_episodes": float(len(scores) - len(kept)),
        }
        return trained, {**metrics, "largest_weight": sum(largest) / len(largest)} if largest else metrics
