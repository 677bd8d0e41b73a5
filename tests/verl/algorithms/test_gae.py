"""Returns and GAE against hand-worked cases and a plain recursion that walks over observations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verl.algorithms.advantages import whiten
from verl.algorithms.config import AdvantageConfig
from verl.algorithms.gae import discounted_returns, gae, gae_advantages


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TWO = torch.tensor([5, 5, 5, 1, 1])


def test_gae_worked_by_hand() -> None:
    rewards, values = tensor(0, 0, 1, 2, 3), tensor(0.5, 0.2, 0.4, 1, 1)
    advantages, returns = gae(rewards, values, TWO, gamma=0.9, lam=0.5)
    last = 1 - 0.4
    middle = 0.9 * 0.4 - 0.2 + 0.45 * last
    first = 0.9 * 0.2 - 0.5 + 0.45 * middle
    other = 3 - 1.0
    assert advantages.tolist() == pytest.approx([first, middle, last, 2 + 0.9 - 1 + 0.45 * other, other])
    torch.testing.assert_close(returns, advantages + values)


def test_lambda_one_is_return_less_value_and_lambda_zero_is_the_td_error() -> None:
    rewards, values = tensor(1, 0, 2, 0, 1), tensor(0.1, 0.2, 0.3, 0.4, 0.5)
    advantages, returns = gae(rewards, values, TWO, gamma=0.8, lam=1.0)
    torch.testing.assert_close(returns, discounted_returns(rewards, TWO, 0.8))
    advantages, _ = gae(rewards, values, TWO, gamma=0.8, lam=0.0)
    assert advantages.tolist() == pytest.approx([1 + 0.16 - 0.1, 0.24 - 0.2, 2 - 0.3, 0.4 - 0.4, 1 - 0.5])


def test_discounted_returns_stay_within_their_sequence() -> None:
    assert discounted_returns(tensor(1, 0, 4, 2, 6), TWO, 0.5).tolist() == [2.0, 2.0, 4.0, 5.0, 6.0]


def test_whitened_values_have_mean_zero_and_unbiased_deviation_one() -> None:
    white = whiten(tensor(1, 2, 4, 9), epsilon=1e-12)
    assert float(white.mean()) == pytest.approx(0, abs=1e-12)
    assert float(white.std()) == pytest.approx(1)
    assert whiten(tensor(3), 1e-6).tolist() == [0.0]
    assert whiten(tensor(2, 2), 1e-6).tolist() == [0.0, 0.0]


def test_ppo_trains_on_white_advantages_and_plain_returns() -> None:
    rewards, values = tensor(1, 0, 2, 0, 1), tensor(0.1, 0.2, 0.3, 0.4, 0.5)
    config = AdvantageConfig("gae", gamma=0.9, lam=0.8, epsilon=1e-3)
    plain, returns = gae(rewards, values, TWO, gamma=0.9, lam=0.8)
    white, same = gae_advantages(rewards, values, TWO, config)
    torch.testing.assert_close(white, (plain - plain.mean()) / (plain.std() + 1e-3))
    torch.testing.assert_close(same, returns)


def test_empty_input() -> None:
    empty, ids = tensor(), torch.tensor([], dtype=torch.int64)
    assert gae(empty, empty, ids, gamma=1.0, lam=1.0)[0].shape == (0,)


def carry_through(rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float) -> list[float]:
    """GAE of one sequence over all tokens, where observations pass the next value and the running sum unchanged."""
    advantages = [0.0] * len(mask)
    following = running = 0.0
    for t in reversed(range(len(mask))):
        if mask[t]:
            running = rewards[t] + gamma * following - values[t] + gamma * lam * running
            following = values[t]
            advantages[t] = running
    return advantages


number = st.floats(-2, 2, allow_nan=False)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.booleans(), number, number), min_size=1, max_size=8), min_size=1, max_size=4),
    st.floats(0.1, 1),
    st.floats(0, 1),
)
def test_gae_through_the_door_is_gae_that_walks_over_observations(
    sequences: list[list[tuple[bool, float, float]]], gamma: float, lam: float
) -> None:
    flat = [token for sequence in sequences for token in sequence]
    mask = torch.tensor([token[0] for token in flat])
    ids = torch.tensor([i for i, sequence in enumerate(sequences) for _ in sequence])
    rewards, values = tensor(*(t[1] for t in flat))[mask], tensor(*(t[2] for t in flat))[mask]
    advantages, _ = gae(rewards, values, ids[mask], gamma=gamma, lam=lam)
    expected = [
        value
        for tokens in sequences
        for value in carry_through([t[1] for t in tokens], [t[2] for t in tokens], [t[0] for t in tokens], gamma, lam)
    ]
    assert torch.zeros(len(flat), dtype=torch.float64).masked_scatter(mask, advantages).tolist() == pytest.approx(
        expected, abs=1e-9
    )
