"""What is taken off a reward: for length, and for KL with a coefficient that is controlled."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.control_config import KlRewardConfig, OverlongConfig
from verl.algorithms.penalties import next_coefficient, overlong_penalty


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
