from __future__ import annotations

import numpy as np
import pytest

from verl.algorithms.config import AdvantageConfig
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trainer.assign import assign
from verl.trainer.summary import abort_reasons, summarize
from verl.trajectory import Trajectory

GRPO = AdvantageConfig(name="grpo")


def episode(reward: float | None, sample: int = 0, *, aborted: bool = False) -> Trajectory:
    trajectory = Trajectory("task", sample)
    trajectory.append_prompt([1, 2, 3], "q")
    trajectory.append_generated([4, 5], "a", [-1.0, -2.0], [7, 8], "stop")
    trajectory.outcome = "aborted" if aborted else "finished"
    trajectory.reason = "retriever down" if aborted else ""
    trajectory.reward = reward
    trajectory.reward_parts = {} if reward is None else {"em": reward}
    return trajectory


def group(number: int, *episodes: Trajectory) -> Group:
    return Group(number, Task("task", "q", ("a",)), list(episodes))


def test_a_groups_rewards_become_advantages_of_its_policy_tokens() -> None:
    samples, metrics = assign([group(0, episode(1.0), episode(0.0))], GRPO, drop_uniform=False, version=9)
    # Two rewards 1 and 0: mean 1/2, unbiased deviation sqrt(1/2), so +-1/sqrt(2).
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([2**-0.5, -(2**-0.5)], rel=1e-5)
    assert samples[0].advantages[:3].tolist() == [0, 0, 0]
    assert samples[0].rollout_logprobs.tolist() == [0, 0, 0, -1, -2]
    assert samples[0].staleness == 2, "its oldest token was sampled with version 7"
    assert metrics["trained_episodes"] == 2


def test_aborted_episodes_are_counted_and_never_trained_on() -> None:
    groups = [group(0, episode(1.0), episode(None, aborted=True), episode(0.0))]
    samples, metrics = assign(groups, GRPO, drop_uniform=False, version=8)
    assert len(samples) == 2
    assert metrics["aborted"] == 1
    assert summarize(groups)["n"] == 2
    assert summarize(groups)["em"] == 0.5, "the aborted episode is no wrong answer"
    assert abort_reasons(groups) == {"retriever down": 1}


def test_uniform_groups_are_left_out_only_on_request() -> None:
    groups = [group(0, episode(1.0), episode(1.0)), group(1, episode(1.0), episode(0.0))]
    kept, metrics = assign(groups, GRPO, drop_uniform=False, version=8)
    dropped, _ = assign(groups, GRPO, drop_uniform=True, version=8)
    assert len(kept) == 4
    assert metrics["uniform_groups"] == 0.5
    assert np.all(kept[0].advantages == 0)
    assert [sample.group for sample in dropped] == [1, 1]


def test_an_episode_without_a_score_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="never scored"):
        assign([group(0, episode(None))], GRPO, drop_uniform=False, version=8)


def test_with_a_critic_a_sample_carries_its_reward_and_uniform_groups_stay() -> None:
    groups = [group(0, episode(1.0), episode(1.0)), group(1, episode(0.25), episode(0.5))]
    samples, metrics = assign(groups, AdvantageConfig(name="gae"), drop_uniform=False, version=8)
    assert [sample.advantages[-1] for sample in samples] == [1.0, 1.0, 0.25, 0.5]
    assert metrics["uniform_groups"] == 0.5
