"""The accepted answer after what an episode found: where it is laid, and what is made of its log-probs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from verl.data.samples import TrainingSample
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trainer.config import GoldLogprobConfig
from verl.trainer.gold import GoldScorer, splice_gold
from verl.trajectory import Trajectory

CONFIG = GoldLogprobConfig(opening="A:")
TASK = Task("t", "who?", ("mara", "m. orwin"))


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def episode(*, answered: bool, aborted: bool = False) -> Trajectory:
    trajectory = Trajectory("t", 0, outcome="aborted" if aborted else "finished")
    trajectory.append_prompt([1, 2], "")
    trajectory.append_generated([3, 4, 5], "", [0.0] * 3, [0] * 3, "stop")
    trajectory.append_observation([6, 7], "")
    if answered:
        trajectory.append_generated([8, 9], "", [0.0] * 2, [0] * 2, "stop")
    return trajectory


@pytest.mark.parametrize("answered", [True, False])
def test_the_answer_stands_where_the_last_turn_was_and_alone_counts(answered: bool) -> None:
    sample = splice_gold(TASK, episode(answered=answered), CONFIG, encode)
    assert sample.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, *encode("A:mara")]
    assert sample.token_ids[sample.policy_mask].tolist() == encode("mara")
    assert not sample.advantages.any()


class UniformLearners:
    """Every token has probability 1/10."""

    async def sum_logprobs(self, samples: Sequence[TrainingSample]) -> list[float]:
        return [math.log(0.1) * sample.num_policy_tokens for sample in samples]


def test_a_score_is_the_mean_log_prob_of_the_answer_and_episodes_without_room_have_none() -> None:
    long = episode(answered=True)
    long.append_observation(list(range(50)), "")
    groups = [Group(0, TASK, [episode(answered=True), long]), Group(1, TASK, [episode(answered=False, aborted=True)])]
    learners: Any = UniformLearners()
    scores = asyncio.run(GoldScorer(learners, CONFIG, encode, longest=20).scores(groups))
    assert scores == [pytest.approx(math.log(0.1)), None]
    assert np.isfinite(scores[0] or 0)
