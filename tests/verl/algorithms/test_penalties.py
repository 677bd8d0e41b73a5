"""What is taken off a reward: for length, and for KL with a coefficient that is controlled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from verl.algorithms.control_config import BudgetConfig, KlRewardConfig, OverlongConfig
from verl.algorithms.penalties import next_coefficient, next_price, overlong_penalty
from verl.errors import UserError


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    lengths = torch.tensor([10, 80, 90, 95, 100, 140])
    penalty = overlong_penalty(lengths, 100, OverlongConfig(buffer_tokens=20, penalty=2.0))
    assert penalty.tolist() == pytest.approx([0, 0, -1.0, -1.5, -2.0, -2.0])
    assert overlong_penalty(lengths, 100, OverlongConfig()).tolist() == [0.0] * 6


def test_a_buffer_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="above the limit of 10"):
        overlong_penalty(torch.tensor([1]), 10, OverlongConfig(buffer_tokens=20))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.01), (0.11, 0.01 * (1 + 0.1 * 0.05)), (9.0, 0.01 * (1 + 0.2 * 0.05)), (0.0, 0.01 * (1 - 0.2 * 0.05))],
)
def test_the_adaptive_coefficient_moves_against_the_error(kl: float, expected: float) -> None:
    config = KlRewardConfig(coefficient=0.01, controller="adaptive", target=0.1, horizon_sequences=10_000)
    assert next_coefficient(0.01, kl, 500, config) == pytest.approx(expected, rel=1e-12)


def test_a_fixed_coefficient_stays() -> None:
    assert next_coefficient(0.02, 9.0, 500, KlRewardConfig(coefficient=0.02)) == 0.02


def test_the_controller_brings_a_drifting_policy_to_its_target() -> None:
    """A toy policy whose KL is inversely proportional to the coefficient settles at the target."""
    config = KlRewardConfig(coefficient=0.001, controller="adaptive", target=0.1, horizon_sequences=1_000)
    coefficient = config.coefficient
    for _ in range(200):
        coefficient = next_coefficient(coefficient, 0.002 / coefficient, 500, config)
    assert 0.002 / coefficient == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("sequences", [10_000, 50_000, 1_000_000])
def test_a_step_longer_than_the_horizon_moves_the_coefficient_by_a_fifth_at_most(sequences: int) -> None:
    config = KlRewardConfig(coefficient=0.001, controller="adaptive", target=0.1, horizon_sequences=10_000)
    assert next_coefficient(0.001, 0.0, sequences, config) == pytest.approx(0.0008)
    assert next_coefficient(0.001, 9.0, sequences, config) == pytest.approx(0.0012)


BUDGET = BudgetConfig(part="searches", rate=0.05, limit=1.5, max_price=0.4)


@pytest.mark.parametrize(
    ("price", "spent", "expected"),
    [(0.1, 2.5, 0.15), (0.1, 1.5, 0.1), (0.1, 1.0, 0.075), (0.01, 0.0, 0.0), (0.39, 9.0, 0.4)],
)
def test_the_price_of_a_budget_rises_above_its_limit_and_falls_below(
    price: float, spent: float, expected: float
) -> None:
    assert next_price(price, spent, BUDGET) == pytest.approx(expected, rel=1e-12)


def test_a_fixed_price_stays() -> None:
    assert next_price(0.02, 9.0, BudgetConfig(part="searches", price=0.02)) == 0.02


def test_the_price_brings_a_policy_that_spends_too_much_to_its_limit() -> None:
    """A toy policy that spends 3 less ten for each unit of price settles where it spends the limit."""
    price = BUDGET.price
    for _ in range(200):
        price = next_price(price, 3 - 10 * price, BUDGET)
    assert price == pytest.approx(0.15)
    assert 3 - 10 * price == pytest.approx(BUDGET.limit)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"part": "searches"}, r"budget\.part=searches"),
        ({"price": 0.1}, r"budget\.part="),
        ({"part": "searches", "price": 2.0}, r"budget\.price=2\.0"),
        ({"part": "searches", "rate": -0.1}, r"^rate=-0.1"),
        ({"part": "searches", "rate": 0.1, "limit": -1.0}, r"^limit=-1.0"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        BudgetConfig(**keys)
