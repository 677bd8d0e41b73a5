"""``evaluation.metric``: any number of the dev results picks the best checkpoint; a wrong one is refused early."""

from __future__ import annotations

import pytest

from search_agent.console.command import load_config
from search_agent.data.inputs import check_metric
from verl.data.tasks import Task
from verl.errors import UserError

TASKS = [
    Task("1", "q", ("a",), metadata={"hops": 2, "data_source": "nq"}),
    Task("2", "q", ("a",), metadata={"hops": 1, "data_source": "popqa"}),
]


@pytest.mark.parametrize("reward", ["em", "f1", "autorefine", "search_r1"])
@pytest.mark.parametrize("metric", ["em", "f1", "cover", "reward", "em_two_hop", "f1/popqa", "em/mean", "searches"])
def test_what_a_reward_of_ours_measures_may_choose(reward: str, metric: str) -> None:
    check_metric(load_config([f"reward={reward}", f"evaluation.metric={metric}"]), TASKS)


@pytest.mark.parametrize(("metric", "nearest"), [("f2", "f1"), ("em_three_hop", "em_two_hop"), ("f1/nqs", "f1/nq")])
def test_what_it_does_not_measure_is_refused_before_anything_is_started(metric: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        check_metric(load_config([f"evaluation.metric={metric}"]), TASKS)
    assert str(error.value).startswith(f"evaluation.metric={metric}: dev has no such number; did you mean {nearest}?")


def test_a_reward_of_the_users_own_is_held_to_it_at_the_first_evaluation() -> None:
    own = ["reward.plugin=search_agent.rewards.pool", "+reward.reward={plugin: search_agent.rewards.em}"]
    check_metric(load_config(["reward=em", *own, "evaluation.metric=my_part"]), TASKS)


def test_a_part_that_gdpo_is_to_compare_is_known_at_the_start() -> None:
    check_metric(load_config(["recipe=quickstart_gdpo"]), TASKS)
    with pytest.raises(UserError, match=r"trainer\.advantage\.parts\.style: .* no such part; its reward has em, f1"):
        check_metric(load_config(["recipe=quickstart_gdpo", "trainer.advantage.parts.style=1.0"]), TASKS)
