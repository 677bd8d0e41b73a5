"""The clipped value loss and explained variance."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.config import ValueLossConfig
from verl.algorithms.tokens import Totals
from verl.algorithms.value_loss import explained_variance, value_loss, value_objective


@pytest.mark.parametrize(
    ("value", "loss", "slope", "clipped"),
    [
        (0.3, 0.5 * 0.7**2, -0.7, 0.0),  # inside: half the squared error
        (0.8, 0.5 * 0.5**2, 0.0, 1.0),  # moved more than the clip towards the return: flat
        (-0.8, 0.5 * 1.8**2, -1.8, 0.0),  # moved away: pulled back at full strength
    ],
)
def test_value_and_gradient(value: float, loss: float, slope: float, clipped: float) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    result = value_loss(values, old, returns, ValueLossConfig(clip=0.5))
    assert result.values.item() == pytest.approx(loss)
    assert torch.autograd.grad(result.values.sum(), values)[0].item() == pytest.approx(slope)
    assert result.marks["value_clip_fraction"].item() == clipped


def test_without_clip_it_is_half_the_squared_error() -> None:
    values = torch.tensor([3.0], requires_grad=True)
    result = value_loss(values, torch.zeros(1), torch.ones(1), ValueLossConfig(clip=None))
    assert result.values.item() == 2.0
    assert torch.autograd.grad(result.values.sum(), values)[0].item() == 2.0


def test_micro_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    totals, config = Totals(10, 3), ValueLossConfig()
    whole = value_objective(values, old, returns, totals, config)
    shares = [
        value_objective(values[part], old[part], returns[part], totals, config) for part in (slice(3), slice(3, 10))
    ]
    torch.testing.assert_close(shares[0].loss + shares[1].loss, whole.loss, rtol=1e-9, atol=0)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(shares[0].metrics[name] + shares[1].metrics[name], value, rtol=1e-9, atol=1e-12)


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.ones(3), returns) == 0.0
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0
    assert explained_variance(returns[:0], returns[:0]) == 0.0
