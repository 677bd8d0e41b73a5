"""KL in the reward: taken off before ASSIGN, its coefficient moved by the controller and kept with the loop's state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from verl.algorithms.config import AdvantageConfig, AdvantageName
from verl.algorithms.control_config import AlarmConfig, BudgetConfig, KlRewardConfig
from verl.data.samples import TrainingSample
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trainer.alarms import watch
from verl.trainer.assign import Assigner
from verl.trainer.config import TrainerConfig
from verl.trainer.shaping import Shaping
from verl.trainer.state import LoopState
from verl.trajectory import Trajectory


def episode(reward: float, sample: int) -> Trajectory:
    trajectory = Trajectory("task", sample, outcome="finished", reward=reward)
    trajectory.segments = []
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([4, 5], "a", [-1.0, -2.0], [0, 0], "stop")
    return trajectory


class FakeLearners:
    """Every policy token is 0.5 nats away from the reference in sample 0, none in the others."""

    async def reference_kl(self, samples: Sequence[TrainingSample], temperature: float, estimator: str) -> Any:
        assert (temperature, estimator) == (0.7, "k1")
        return [np.where(s.policy_mask, 0.5 * (i == 0), 0).astype(np.float32) for i, s in enumerate(samples)]


def assigner(kl: KlRewardConfig) -> Assigner:
    config = TrainerConfig(advantage=AdvantageConfig(name="dr_grpo"), kl_reward=kl)
    learners: Any = FakeLearners()
    return Assigner(learners, config, Shaping(), 0.7)


GROUPS = [Group(0, Task("task", "q", ("a",)), [episode(1.0, 0), episode(1.0, 1)])]


async def test_the_kl_of_an_episode_comes_off_its_reward() -> None:
    samples, metrics = await assigner(KlRewardConfig(coefficient=0.1)).samples(GROUPS, LoopState())
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([-0.05, 0.05])  # 0.9 and 1.0
    assert metrics["kl_reward"] == pytest.approx(0.25)
    assert metrics["kl_reward_coefficient"] == 0.1


async def test_an_episode_of_several_texts_has_no_kl_in_its_reward_and_it_is_told() -> None:
    chatted = episode(1.0, 0)
    chatted.append_observation([6], "choose", beside=True)
    chatted.append_generated([7], "1", [-1.0], [0], "stop")
    group = Group(0, Task("task", "q", ("a",)), [chatted, episode(1.0, 1)])
    with pytest.raises(UserError, match=r"trainer\.kl_reward\.coefficient.*select=turn"):
        await assigner(KlRewardConfig(coefficient=0.1)).samples([group], LoopState())


def test_pictures_stand_in_the_text_that_shows_them() -> None:
    chatted = episode(1.0, 0)
    chatted.images = ("a.png",)
    chatted.append_observation([6], "choose", beside=True)
    chatted.append_generated([7], "1", [-1.0], [0], "stop")
    own, beside = TrainingSample.of_each_text(chatted, 1.0)
    assert (own.token_ids.tolist(), own.images) == ([1, 4, 5], ("a.png",))
    assert (beside.token_ids.tolist(), beside.images) == ([6, 7], ())


async def test_the_adaptive_coefficient_goes_on_from_the_loops_state() -> None:
    kl = KlRewardConfig(coefficient=0.1, controller="adaptive", target=0.1, horizon_sequences=10)
    state = LoopState()
    await assigner(kl).samples(GROUPS, state)
    assert state.kl_coefficient == pytest.approx(0.1 * (1 + 0.2 * 2 / 10)), "above target by more than 20 %"
    resumed = LoopState.from_json(state.to_json())
    _, metrics = await assigner(kl).samples(GROUPS, resumed)
    assert metrics["kl_reward_coefficient"] == state.kl_coefficient


async def test_without_it_the_learner_is_not_asked() -> None:
    samples, metrics = await assigner(KlRewardConfig()).samples(GROUPS, LoopState())
    assert "kl_reward" not in metrics
    assert [sample.advantages[-1] for sample in samples] == [0, 0]


def test_an_alarm_warns_once_counts_while_it_sounds_and_survives_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    config = AlarmConfig(entropy_above=1.0, smoothing=0.0, patience_steps=2)
    state = LoopState()
    assert watch({"entropy": 2.0}, state, config) == {}
    state = LoopState.from_json(state.to_json())
    assert watch({"entropy": 2.0}, state, config) == {"alarm/entropy": 1.0}
    assert watch({"entropy": 2.0}, state, config) == {"alarm/entropy": 1.0}
    assert len(caplog.records) == 1
    assert "losing its language" in caplog.text
    assert watch({"entropy": 0.5}, state, config) == {}


async def test_softmax_trains_on_what_the_accepted_answers_weigh_and_on_no_reward() -> None:
    class Gold:
        async def scores(self, groups: Sequence[Group]) -> list[float | None]:
            return [-1.0, None]

        def samples(self, groups: object, scores: object, config: AdvantageConfig) -> Any:
            assert scores == [-1.0, None]
            return ["sample"], {"trained_episodes": 1.0}

    config = TrainerConfig(advantage=AdvantageConfig(name="softmax"))
    learners, gold = FakeLearners(), Gold()
    found = await Assigner(learners, config, Shaping(), 1.0, gold).samples(GROUPS, LoopState())  # type: ignore[arg-type]
    assert found == (["sample"], {"gold_logprob": -1.0, "trained_episodes": 1.0})


BUDGET = BudgetConfig(part="searches", price=0.1, rate=0.5, limit=2.0)


def searching(*counts: int, rewards: Sequence[float] = (1.0, 1.0)) -> list[Group]:
    episodes = [episode(reward, sample) for sample, reward in enumerate(rewards)]
    for one, count in zip(episodes, counts, strict=True):
        one.reward_parts = {"searches": float(count)}
    return [Group(0, Task("task", "q", ("a",)), episodes)]


def with_budget(name: AdvantageName, *, drops: bool = False) -> Assigner:
    config = TrainerConfig(advantage=AdvantageConfig(name=name), budget=BUDGET, drop_uniform_groups=drops)
    return Assigner(None, config, Shaping(budget=BUDGET), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
async def test_what_a_search_costs_is_the_price_whatever_the_deviation(name: AdvantageName) -> None:
    samples, metrics = await with_budget(name, drops=True).samples(searching(2, 4), LoopState())
    assert [sample.advantages[-1] for sample in samples] == pytest.approx([0.1, -0.1])
    assert (metrics["budget/spent"], metrics["budget/price"], metrics["uniform_groups"]) == (3.0, 0.1, 0.0)


async def test_with_a_critic_the_cost_comes_off_the_last_token() -> None:
    samples, _ = await with_budget("gae").samples(searching(2, 4), LoopState())
    assert [sample.advantages.tolist() for sample in samples] == [
        pytest.approx([0, 0, 1.0]),
        pytest.approx([0, 0, 0.8]),
    ]


async def test_the_price_goes_on_from_the_loops_state() -> None:
    state = LoopState()
    await with_budget("grpo").samples(searching(2, 4), state)
    assert state.budget_price == pytest.approx(0.1 + 0.5 * (3 - 2))
    resumed = LoopState.from_json(json.loads(json.dumps(state.to_json())))
    assert resumed.budget_price == state.budget_price, "to the last bit"
    _, metrics = await with_budget("grpo").samples(searching(0, 0), resumed)
    assert metrics["budget/price"] == state.budget_price
    assert resumed.budget_price == 0.0, "never below 0"


async def test_a_budget_of_what_the_reward_does_not_measure_is_told() -> None:
    groups = searching(1, 1)
    groups[0].trajectories[1].reward_parts = {"em": 1.0}
    with pytest.raises(UserError, match=r"trainer\.budget\.part=searches: task task was given no such part; .* em"):
        await with_budget("grpo").samples(groups, LoopState())


@pytest.mark.parametrize(("name", "enough"), [("dr_grpo", 1.0), ("grpo", 3**0.5)])
async def test_a_second_search_that_is_worth_a_right_answer_is_given_up_above_its_worth(
    name: AdvantageName, enough: float
) -> None:
    """Two samples search once and are wrong, two search twice and are right: deviation of the rewards 1 / sqrt(3)."""
    groups = searching(1, 1, 2, 2, rewards=(0, 0, 1, 1))
    for price, worth_it in ((0.99 * enough, True), (1.01 * enough, False)):
        state = LoopState(budget_price=price)
        samples, _ = await with_budget(name).samples(groups, state)
        assert (samples[-1].advantages[-1] > 0) == worth_it
