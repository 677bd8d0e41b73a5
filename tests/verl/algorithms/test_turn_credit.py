"""Turn credit against a hand-worked group."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.config import TurnCreditConfig
from verl.algorithms.turn_credit import turn_advantages

# Task 0: sample a finds half the evidence, then the rest; b finds nothing, then half; c all of it at once.
GAINS = torch.tensor([0.5, 0.5, 0.0, 0.5, 1.0, 1.0], dtype=torch.float64)
SEQUENCE = torch.tensor([0, 0, 1, 1, 2, 3])
TURN = torch.tensor([0, 1, 0, 1, 0, 0])
GROUPS = torch.tensor([0, 0, 0, 0, 0, 1])


def test_returns_are_compared_at_the_same_turn_of_the_same_task() -> None:
    result = turn_advantages(GAINS, SEQUENCE, TURN, GROUPS, TurnCreditConfig(coefficient=2.0, gamma=0.5))
    first_turns = [0.75, 0.25, 1.0]  # 0.5 + 0.5 x 0.5, 0 + 0.5 x 0.5, 1
    mean = sum(first_turns) / 3
    expected = [2 * (0.75 - mean), 0.0, 2 * (0.25 - mean), 0.0, 2 * (1.0 - mean), 0.0]
    assert result.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_credit_of_a_group_sums_to_zero() -> None:
    result = turn_advantages(GAINS, SEQUENCE, TURN, GROUPS, TurnCreditConfig(coefficient=1.0))
    assert float(result.sum()) == pytest.approx(0.0, abs=1e-12)


def test_a_turn_that_no_sibling_reached_gets_nothing() -> None:
    result = turn_advantages(GAINS, SEQUENCE, TURN, GROUPS, TurnCreditConfig(coefficient=1.0))
    assert float(result[-1]) == 0.0


def test_no_turns() -> None:
    empty = SEQUENCE[:0]
    assert turn_advantages(GAINS[:0], empty, empty, empty, TurnCreditConfig()).shape == (0,)
