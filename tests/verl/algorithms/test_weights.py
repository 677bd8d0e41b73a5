"""The E-step's weights: the fixture of the published programs, and what holds for any scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.config import AdvantageConfig, WeightForm
from verl.algorithms.weights import group_weights
from verl.errors import UserError

SCORES = torch.tensor([-0.1, -0.7, -2.3], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
ONE_GROUP = torch.zeros(3, dtype=torch.int64)


def weights(form: WeightForm, scores: torch.Tensor = SCORES, temperature: float = 1.0) -> list[float]:
    config = AdvantageConfig("softmax", weight=form, temperature=temperature)
    return group_weights(scores, REWARDS[: len(scores)], ONE_GROUP[: len(scores)], config).tolist()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("softmax", [0.6025, 0.3307, 0.0668]),
        ("exp", [3.6193, 1.9863, 0.4010]),
        ("cost_share", [0.0323, 0.2258, 0.7419]),
        ("reward", [1.0, 0.0, 0.5]),
        ("uniform", [1 / 3] * 3),
    ],
)
def test_the_published_forms_on_costs_of_a_tenth_seven_tenths_and_two_point_three(
    form: WeightForm, expected: list[float]
) -> None:
    assert weights(form) == pytest.approx(expected, abs=5e-5)


def test_a_low_temperature_trusts_the_likeliest_alone() -> None:
    assert weights("softmax", temperature=0.01) == pytest.approx([1, 0, 0], abs=1e-9)


@pytest.mark.parametrize("form", ["softmax", "cost_share", "uniform"])
def test_the_only_sample_of_a_question_weighs_one(form: WeightForm) -> None:
    assert weights(form, SCORES[:1]) == [1.0]


def test_answers_that_are_all_certain_weigh_the_same_in_the_published_share_too() -> None:
    assert weights("cost_share", torch.zeros(3, dtype=torch.float64)) == pytest.approx([1 / 3] * 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_weights_of_each_question_sum_to_one_and_follow_the_scores(data: st.DataObject) -> None:
    score = st.floats(-1e4, 0)
    scores = torch.tensor(data.draw(st.lists(score, min_size=1, max_size=12)), dtype=torch.float64)
    groups = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores))))
    index = torch.unique(groups, return_inverse=True)[1]
    found = group_weights(scores, scores, index, AdvantageConfig("softmax"))
    for group in index.unique():
        own, its = found[index == group], scores[index == group]
        assert float(own.sum()) == pytest.approx(1)
        assert own[its.argmax()] == own.max()
    assert (found >= 0).all()


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        weights("softmax", torch.tensor([score, -1.0]))


def test_a_negative_reward_is_no_weight() -> None:
    with pytest.raises(ValueError, match="below 0"):
        group_weights(SCORES, -REWARDS, ONE_GROUP, AdvantageConfig("softmax", weight="reward"))


def test_a_form_of_weights_beside_another_advantage_is_refused() -> None:
    with pytest.raises(UserError, match=r"advantage\.weight"):
        AdvantageConfig("grpo", weight="uniform")
