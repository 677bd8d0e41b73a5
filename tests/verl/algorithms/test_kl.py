"""KL estimators: closed forms of value and gradient, and what they are in expectation."""

from __future__ import annotations

import math

import pytest
import torch

from verl.algorithms.config import KlEstimator
from verl.algorithms.kl import kl_estimate

D = [-1.5, -0.2, 0.0, 0.7, 2.0]


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", lambda d: d, lambda d: 1.0),
        ("k2", lambda d: d * d / 2, lambda d: d),
        ("k3", lambda d: math.exp(-d) - 1 + d, lambda d: 1 - math.exp(-d)),
        ("abs", abs, lambda d: math.copysign(1.0, d) if d else 0.0),
        ("k1+", lambda d: d, lambda d: d),
        ("k3+", lambda d: math.exp(-d) - 1 + d, lambda d: d),
        ("abs+", abs, lambda d: d),
    ],
)
def test_value_and_gradient(estimator: KlEstimator, value, slope) -> None:  # type: ignore[no-untyped-def]
    logprobs = torch.tensor(D, dtype=torch.float64, requires_grad=True)
    kl = kl_estimate(logprobs, torch.zeros(len(D), dtype=torch.float64), estimator)
    assert kl.tolist() == pytest.approx([value(d) for d in D], abs=1e-12)
    assert torch.autograd.grad(kl.sum(), logprobs)[0].tolist() == pytest.approx([slope(d) for d in D], abs=1e-12)


def expectation(estimator: KlEstimator) -> tuple[float, torch.Tensor, float, torch.Tensor]:
    """Expected value and gradient over every token of a small vocabulary, beside those of the exact KL."""
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    sampled = (logprobs.detach().exp() * kl_estimate(logprobs, reference, estimator)).sum()
    return (
        float(sampled.detach()),
        torch.autograd.grad(sampled, logits, retain_graph=True)[0],
        float(exact.detach()),
        torch.autograd.grad(exact, logits)[0],
    )


@pytest.mark.parametrize("estimator", ["k1", "k3", "k1+", "k3+"])
def test_unbiased_values(estimator: KlEstimator) -> None:
    value, _, exact, _ = expectation(estimator)
    assert value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k1+", "k3+", "abs+"])
def test_unbiased_gradients(estimator: KlEstimator) -> None:
    _, slope, _, exact = expectation(estimator)
    torch.testing.assert_close(slope, exact, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_k1_is_zero_in_expectation() -> None:
    _, slope, _, exact = expectation("k1")
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(exact.abs().max()) > 0.1


def test_k3_stays_finite_where_the_models_disagree_wildly() -> None:
    kl = kl_estimate(torch.tensor([-900.0, 0.0]), torch.tensor([0.0, -900.0]), "k3")
    assert torch.isfinite(kl).all()


@pytest.mark.parametrize("d", [-15.0, -20.0, -21.0, -900.0, 21.0, 900.0])
def test_k3_never_pulls_the_wrong_way_and_is_capped(d: float) -> None:
    logprobs = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    value = kl_estimate(logprobs, torch.zeros((), dtype=torch.float64), "k3")
    slope = float(torch.autograd.grad(value, logprobs)[0])
    assert slope * d >= 0, "the KL falls towards the reference"
    assert 0 <= float(value.detach()) <= max(math.exp(20), d)
