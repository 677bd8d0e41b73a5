"""The accepted answer after what an episode found: where it is laid, and what is made of its log-probs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from verl.algorithms.config import AdvantageConfig
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


def scorer(config: GoldLogprobConfig = CONFIG, longest: int = 100) -> GoldScorer:
    learners: Any = UniformLearners()
    return GoldScorer(learners, config, encode, longest=longest, end=[0])


def test_the_sum_of_the_answers_tokens_is_the_papers_score() -> None:
    config = GoldLogprobConfig(opening="A:", reduction="sum")
    scores = asyncio.run(scorer(config).scores([Group(0, TASK, [episode(answered=True)])]))
    assert scores == [pytest.approx(4 * math.log(0.1))]


def rewarded(*, outcome: Any = "finished") -> Trajectory:
    trajectory = episode(answered=True)
    trajectory.outcome, trajectory.reward = outcome, 0.0
    return trajectory


def test_what_is_learned_from_is_what_was_sampled_and_then_the_accepted_answer_with_its_weight() -> None:
    config = GoldLogprobConfig(opening="A:", closing=".")
    samples, metrics = scorer(config).samples(
        [Group(0, TASK, [rewarded(), rewarded()]), Group(1, TASK, [rewarded()])],
        [math.log(0.2), math.log(0.6), -5.0],
        AdvantageConfig("softmax"),
    )
    for sample, weight in zip(samples, [0.25, 0.75, 1.0], strict=True):
        assert sample.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, *encode("A:mara."), 0]
        assert sample.token_ids[sample.policy_mask].tolist() == [3, 4, 5, *encode("A:mara."), 0]
        assert sample.advantages[sample.policy_mask] == pytest.approx(weight)
        assert not sample.advantages[~sample.policy_mask].any()
        assert not sample.rollout_logprobs.any(), "nobody sampled the last turn: no ratio may be made of it"
    assert metrics["largest_weight"] == pytest.approx((0.75 + 1) / 2)
    assert metrics["trained_episodes"] == 3


def test_episodes_that_came_to_no_answer_or_have_no_room_for_it_are_left_out_of_the_weights() -> None:
    groups = [Group(0, TASK, [rewarded(), rewarded(outcome="truncated"), rewarded(), rewarded(outcome="aborted")])]
    samples, metrics = scorer().samples(groups, [-1.0, -0.1, None], AdvantageConfig("softmax"))
    assert [sample.advantages.max() for sample in samples] == [1.0]
    assert (metrics["unanswered_episodes"], metrics["aborted"]) == (2, 1)
    assert scorer().samples(groups, [None] * 3, AdvantageConfig("softmax"))[0] == []


def test_chats_beside_an_episode_are_learned_from_with_its_weight_and_are_no_context_of_the_answer() -> None:
    trajectory = Trajectory("t", 0, outcome="finished", reward=1.0)
    trajectory.append_prompt([1, 2], "")
    trajectory.append_generated([3], "", [-0.1], [0], "stop")
    trajectory.append_observation([20, 21], "", beside=True)
    trajectory.append_generated([22], "", [-0.1], [0], "stop")
    trajectory.append_observation([4], "")
    trajectory.append_generated([5], "", [-0.1], [0], "stop")
    groups = [Group(0, TASK, [trajectory])]
    found = scorer()
    assert splice_gold(TASK, trajectory, CONFIG, encode).token_ids.tolist()[:4] == [1, 2, 3, 4]
    (own, beside), metrics = found.samples(groups, [-0.5], AdvantageConfig(name="softmax"))
    assert own.token_ids.tolist()[:4] == [1, 2, 3, 4]
    assert beside.token_ids.tolist() == [20, 21, 22]
    assert beside.advantages.tolist() == [0, 0, 1]
    assert not beside.rollout_logprobs.any()
    assert metrics["trained_episodes"] == 1
