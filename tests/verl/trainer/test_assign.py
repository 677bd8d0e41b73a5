from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.config import AdvantageConfig, AdvantageName, TurnCreditConfig
from verl.algorithms.control_config import OverlongConfig
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trainer.assign import assign
from verl.trainer.shaping import Shaping, informative_groups
from verl.trainer.summary import summarize
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
    samples, metrics = assign([group(0, episode(1.0), episode(0.0))], GRPO, drop_uniform=False)
    # Two rewards 1 and 0: mean 1/2, unbiased deviation sqrt(1/2), so +-1/sqrt(2).
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([2**-0.5, -(2**-0.5)], rel=1e-5)
    assert samples[0].advantages[:3].tolist() == [0, 0, 0]
    assert samples[0].rollout_logprobs.tolist() == [0, 0, 0, -1, -2]
    assert metrics["trained_episodes"] == 2


def test_aborted_episodes_are_counted_and_never_trained_on() -> None:
    groups = [group(0, episode(1.0), episode(None, aborted=True), episode(0.0))]
    samples, metrics = assign(groups, GRPO, drop_uniform=False)
    assert len(samples) == 2
    assert metrics["aborted"] == 1
    assert summarize(groups)["n"] == 2
    assert summarize(groups)["em"] == 0.5, "the aborted episode is no wrong answer"


def test_uniform_groups_are_left_out_only_on_request() -> None:
    groups = [group(0, episode(1.0), episode(1.0)), group(1, episode(1.0), episode(0.0))]
    kept, metrics = assign(groups, GRPO, drop_uniform=False)
    dropped, _ = assign(groups, GRPO, drop_uniform=True)
    assert len(kept) == 4
    assert metrics["uniform_groups"] == 0.5
    assert np.all(kept[0].advantages == 0)
    assert [sample.advantages[-1] for sample in dropped] == [sample.advantages[-1] for sample in kept[2:]]


def test_an_episode_without_a_score_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="never scored"):
        assign([group(0, episode(None))], GRPO, drop_uniform=False)


def test_with_a_critic_a_sample_carries_its_reward_and_uniform_groups_stay() -> None:
    groups = [group(0, episode(1.0), episode(1.0)), group(1, episode(0.25), episode(0.5))]
    samples, metrics = assign(groups, AdvantageConfig(name="gae"), drop_uniform=False)
    assert [sample.advantages[-1] for sample in samples] == [1.0, 1.0, 0.25, 0.5]
    assert metrics["uniform_groups"] == 0.5


def with_greedy(numbered: Group, greedy: Trajectory) -> Group:
    return Group(numbered.number, numbered.task, numbered.trajectories, greedy)


def test_the_greedy_reward_is_the_baseline_of_remax_and_is_not_trained_on() -> None:
    groups = [with_greedy(group(0, episode(1.0), episode(0.0)), episode(0.75))]
    samples, metrics = assign(groups, AdvantageConfig(name="remax"), drop_uniform=False)
    assert [sample.advantages[-1] for sample in samples] == [0.25, -0.75]
    assert metrics["groups_without_baseline"] == 0


def test_a_group_whose_greedy_episode_was_aborted_is_left_out_and_counted() -> None:
    lost = with_greedy(group(0, episode(1.0), episode(0.0)), episode(None, aborted=True))
    groups = [lost, with_greedy(group(1, episode(1.0)), episode(0.0))]
    samples, metrics = assign(groups, AdvantageConfig(name="remax"), drop_uniform=False)
    assert [sample.advantages[-1] for sample in samples] == [1.0]
    assert metrics["groups_without_baseline"] == 1


def test_coming_near_the_token_limit_lowers_the_reward_that_is_compared() -> None:
    groups = [group(0, episode(1.0), longer(1.0))]
    shaping = Shaping(OverlongConfig(buffer_tokens=2, penalty=1.0), max_policy_tokens=4)
    samples, metrics = assign(groups, AdvantageConfig(name="dr_grpo"), drop_uniform=False, shaping=shaping)
    # Two tokens are free, three lose half: rewards 1 and 0.5 around their mean.
    assert [sample.advantages[-1] for sample in samples] == [0.25, -0.25]
    assert metrics["overlong_penalty"] == -0.25


def longer(reward: float) -> Trajectory:
    trajectory = Trajectory("task", 1)
    trajectory.append_prompt([1, 2], "q")
    trajectory.append_generated([4], "a", [-1.0], [7], "stop")
    trajectory.append_observation([9, 9], "o")
    trajectory.append_generated([5, 6], "b", [-1.0, -2.0], [7, 8], "stop")
    trajectory.outcome, trajectory.reward = "finished", reward
    return trajectory


def test_rewards_of_tokens_are_summed_for_a_sequence_and_kept_apart_for_a_critic() -> None:
    groups = [group(0, episode(1.0), longer(1.0))]
    kl = [np.array([0, 0, 0, -0.1, -0.2], np.float32), np.array([0, 0, -0.4, 0, 0, 0, -0.1], np.float32)]
    summed, _ = assign(groups, AdvantageConfig(name="dr_grpo"), drop_uniform=False, token_rewards=kl)
    assert [sample.advantages[-1] for sample in summed] == pytest.approx([0.1, -0.1])  # 0.7 and 0.5
    apart, _ = assign(groups, AdvantageConfig(name="gae"), drop_uniform=False, token_rewards=kl)
    assert apart[0].advantages == pytest.approx([0, 0, 0, -0.1, 0.8])
    assert apart[1].advantages == pytest.approx([0, 0, -0.4, 0, 0, 0, 0.9])


def test_turn_credit_is_added_to_the_tokens_of_each_turn() -> None:
    first, second = longer(1.0), longer(1.0)
    first.turn_gains, second.turn_gains = (0.5, 0.5), (0.0, 0.5)
    shaping = Shaping(turn_credit=TurnCreditConfig(coefficient=2.0))
    samples, _ = assign([group(0, first, second)], GRPO, drop_uniform=False, shaping=shaping)
    # Returns of turn 0: 1 and 0.5; of turn 1: 0.5 and 0.5. The rewards are equal, so nothing else is credited.
    assert samples[0].advantages.tolist() == [0, 0, 0.5, 0, 0, 0, 0]
    assert samples[1].advantages.tolist() == [0, 0, -0.5, 0, 0, 0, 0]


def test_turn_credit_without_gains_is_an_error_that_names_the_task() -> None:
    shaping = Shaping(turn_credit=TurnCreditConfig(coefficient=1.0))
    with pytest.raises(UserError, match="task task: nobody can say what its turns brought"):
        assign([group(0, longer(1.0), longer(0.0))], GRPO, drop_uniform=False, shaping=shaping)


def test_a_group_says_something_only_if_its_usable_rewards_differ() -> None:
    groups = [group(0, episode(1.0), episode(1.0)), group(1, episode(1.0), episode(0.0)), group(2, episode(1.0))]
    lost = group(3, episode(1.0), episode(None, aborted=True))
    assert informative_groups([*groups, lost], GRPO, Shaping()) == [False, True, False, False]
    assert informative_groups([group(0, episode(None, aborted=True))], GRPO, Shaping()) == [False]


def test_a_group_that_differs_by_its_overlong_penalty_alone_is_kept() -> None:
    shaping = Shaping(OverlongConfig(buffer_tokens=2, penalty=1.0), max_policy_tokens=4)
    samples, metrics = assign([group(0, episode(1.0), longer(1.0))], GRPO, drop_uniform=True, shaping=shaping)
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([2**-0.5, -(2**-0.5)], rel=1e-5)
    assert metrics["uniform_groups"] == 0


def test_a_group_that_differs_by_turn_credit_alone_is_kept() -> None:
    first, second, third = longer(1.0), longer(1.0), longer(1.0)
    first.turn_gains, second.turn_gains, third.turn_gains = (0.5, 0.5), (0.0, 0.5), (0.5, 0.5)
    shaping = Shaping(turn_credit=TurnCreditConfig(coefficient=2.0))
    groups = [group(0, first, second), group(1, first, third)]
    samples, metrics = assign(groups, GRPO, drop_uniform=True, shaping=shaping)
    assert len(samples) == 2
    assert metrics["uniform_groups"] == 0.5, "in the other group turns found the same"


def in_parts(reward: float, **parts: float) -> Trajectory:
    trajectory = episode(reward)
    trajectory.reward_parts = parts
    return trajectory


def test_gdpo_compares_the_parts_of_the_reward_and_keeps_groups_that_differ_in_one() -> None:
    gdpo = AdvantageConfig("gdpo", parts={"em": 1.0, "format_valid": 0.5})
    same = group(0, in_parts(1.0, em=1.0, format_valid=1.0), in_parts(1.0, em=1.0, format_valid=1.0))
    other = group(1, in_parts(1.0, em=1.0, format_valid=1.0), in_parts(1.0, em=1.0, format_valid=0.0))
    samples, metrics = assign([same, other], gdpo, drop_uniform=True)
    # Of two samples in the batch, whitened to +-1 / sqrt 2 whatever the weight.
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([2**-0.5, -(2**-0.5)], rel=1e-5)
    assert metrics["uniform_groups"] == 0.5


def test_a_part_that_the_reward_lacks_is_named_with_those_it_has() -> None:
    gdpo = AdvantageConfig("gdpo", parts={"em": 1.0, "style": 1.0})
    with pytest.raises(UserError, match=r"trainer\.advantage\.parts\.style: task task was given no such part.*has em$"):
        assign([group(0, episode(1.0), episode(0.0))], gdpo, drop_uniform=False)


def test_kl_does_not_blow_up_where_all_rewards_are_equal() -> None:
    """An all-wrong group: grpo would divide by the deviation of its KL and give advantages of full size."""
    kl = [np.array([0, 0, 0, -1e-5, -3e-5], np.float32), np.array([0, 0, 0, -1e-5, -1e-5], np.float32)]
    groups = [group(0, episode(0.0), episode(0.0))]
    samples, _ = assign(groups, GRPO, drop_uniform=False, token_rewards=kl)
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([-1e-5, 1e-5], rel=1e-4)


def test_gdpo_takes_the_overlong_penalty_off_after_normalising() -> None:
    short, long = episode(1.0), longer(1.0)
    short.reward_parts, long.reward_parts = {"em": 1.0}, {"em": 1.0}
    shaping = Shaping(OverlongConfig(buffer_tokens=2, penalty=0.2), max_policy_tokens=4)
    gdpo = AdvantageConfig("gdpo", parts={"em": 1.0})
    samples, _ = assign([group(0, short, long)], gdpo, drop_uniform=True, shaping=shaping)
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([0.05, -0.05])  # 0 and -0.1 around their mean


small = st.sampled_from([0.0, 0.1, 0.2, 1.0])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.tuples(small, small, st.integers(1, 4)), min_size=1, max_size=5), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "opo", "gpg", "pass_at_k", "gdpo"])
def test_what_is_dropped_as_uniform_has_no_gradient(
    name: AdvantageName, drawn: list[list[tuple[float, float, int]]]
) -> None:
    """A reward, what the turn found, and a length: of each of a few episodes of a few tasks."""
    groups = []
    for number, episodes in enumerate(drawn):
        played = []
        for sample, (reward, gain, length) in enumerate(episodes):
            trajectory = Trajectory(str(number), sample, outcome="finished", reward=reward, turn_gains=(gain,))
            trajectory.append_prompt([1], "q")
            trajectory.append_generated([4] * length, "a", [-1.0] * length, [0] * length, "stop")
            trajectory.reward_parts = {"em": reward}
            played.append(trajectory)
        groups.append(group(number, *played))
    shaping = Shaping(OverlongConfig(buffer_tokens=2, penalty=0.5), 4, TurnCreditConfig(coefficient=0.3))
    config = AdvantageConfig(name, parts={"em": 1.0} if name == "gdpo" else {})
    useful = informative_groups(groups, config, shaping)
    samples, _ = assign(groups, config, drop_uniform=False, shaping=shaping)
    of_group = [number for number, episodes in enumerate(drawn) for _ in episodes]
    moved = {number for number, sample in zip(of_group, samples, strict=True) if np.abs(sample.advantages).max() > 1e-9}
    assert moved <= {number for number, says in enumerate(useful) if says}
    kept, _ = assign(groups, config, drop_uniform=True, shaping=shaping)
    assert len(kept) == sum(len(episodes) for episodes, says in zip(drawn, useful, strict=True) if says)
