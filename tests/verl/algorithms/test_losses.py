"""Token losses against hand-worked values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verl.algorithms.config import LossConfig
from verl.algorithms.losses import cispo, ppo_clip, reinforce, sapo, weighted_nll
from verl.algorithms.tokens import PolicyTokens, Totals

Make = Callable[..., PolicyTokens]
ONE = Totals(1, 1)


def one_token(make: Make, ratio: float, advantage: float) -> PolicyTokens:
    return make([[-1.0 + math.log(ratio)]], [[-1.0]], [advantage])


def gradient(values: Tensor, tokens: PolicyTokens) -> float:
    """d loss / d log p of a single token."""
    return float(torch.autograd.grad(values.sum(), tokens.logprobs, retain_graph=True)[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),  # on-policy: the gradient is that of -A log p
        (1.1, 2.0, -2.2, -2.2, 0.0),  # inside the band: -A r
        (1.5, 2.0, -2.0 * 1.28, 0.0, 1.0),  # gain beyond 1 + clip_high: flat
        (0.5, 2.0, -1.0, -1.0, 0.0),  # a good token that fell is never clipped
        (0.5, -2.0, 2.0 * 0.8, 0.0, 1.0),  # a bad token below 1 - clip_low: flat
        (1.5, -2.0, 3.0, 3.0, 0.0),  # a bad token that rose is pushed back
        (4.0, -2.0, 6.0, 0.0, 0.0),  # beyond dual_clip x |A|: flat
    ],
)
def test_ppo_clip_value_and_gradient(
    make_tokens: Make, ratio: float, advantage: float, value: float, slope: float, clipped: float
) -> None:
    tokens = one_token(make_tokens, ratio, advantage)
    loss = ppo_clip(tokens, ONE, LossConfig(clip_low=0.2, clip_high=0.28, dual_clip=3.0))
    assert loss.values.item() == pytest.approx(value, rel=1e-12)
    assert gradient(loss.values, tokens) == pytest.approx(slope, rel=1e-12)
    assert float(loss.marks["clip_fraction"]) == clipped
    assert float(loss.marks["ratio_mean"]) == pytest.approx(ratio)
    assert float(loss.marks["dual_clip_fraction"]) == (1.0 if ratio == 4.0 else 0.0)


def test_ppo_without_dual_clip_is_unbounded_for_bad_tokens(make_tokens: Make) -> None:
    tokens = one_token(make_tokens, 4.0, -2.0)
    loss = ppo_clip(tokens, ONE, LossConfig(dual_clip=None))
    assert loss.values.item() == pytest.approx(8.0)
    assert "dual_clip_fraction" not in loss.marks


def test_a_wild_log_ratio_stays_finite(make_tokens: Make) -> None:
    tokens = make_tokens([[0.0, -800.0]], [[-800.0, 0.0]], [-1.0])
    for loss in (ppo_clip, cispo, sapo):
        values = loss(tokens, ONE, LossConfig(dual_clip=None)).values
        assert torch.isfinite(values).all()
        assert torch.isfinite(torch.autograd.grad(values.sum(), tokens.logprobs)[0]).all()


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 1.0), (1.1, 1.1), (3.0, 1.2), (0.1, 0.8)])
def test_cispo_clips_the_weight_and_keeps_the_gradient(make_tokens: Make, ratio: float, weight: float) -> None:
    tokens = one_token(make_tokens, ratio, 2.0)
    loss = cispo(tokens, ONE, LossConfig(name="cispo"))
    assert loss.values.item() == pytest.approx(-weight * 2.0 * (-1.0 + math.log(ratio)))
    assert gradient(loss.values, tokens) == pytest.approx(-weight * 2.0)
    assert float(loss.marks["clip_fraction"]) == float(weight != ratio)


@pytest.mark.parametrize(("advantage", "steepness"), [(2.0, 1.0), (-2.0, 1.05)])
@pytest.mark.parametrize("ratio", [1.0, 1.6, 0.3])
def test_sapo_gate_and_its_slope(make_tokens: Make, advantage: float, steepness: float, ratio: float) -> None:
    tokens = one_token(make_tokens, ratio, advantage)
    loss = sapo(tokens, ONE, LossConfig(name="sapo"))
    gate = 1 / (1 + math.exp(-steepness * (ratio - 1)))
    assert loss.values.item() == pytest.approx(-advantage * gate * 4 / steepness, rel=1e-12)
    assert gradient(loss.values, tokens) == pytest.approx(-advantage * 4 * gate * (1 - gate) * ratio)
    if ratio == 1.0:
        assert gradient(loss.values, tokens) == pytest.approx(-advantage)


@pytest.mark.parametrize("loss", [reinforce, weighted_nll])
def test_log_likelihood_losses(make_tokens: Make, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> None:
    tokens = one_token(make_tokens, 0.5, 3.0)
    values, _ = loss(tokens, ONE, LossConfig())
    assert values.item() == pytest.approx(-3.0 * (-1.0 + math.log(0.5)))
    assert gradient(values, tokens) == pytest.approx(-3.0)


def test_weight_one_is_supervised_fine_tuning(make_tokens: Make) -> None:
    tokens = make_tokens([[-0.5, -1.5], [-2.0]], [[0.0, 0.0], [0.0]], [1.0, 1.0])
    loss = weighted_nll(tokens, ONE, LossConfig(name="weighted_nll"))
    assert loss.values.tolist() == [0.5, 1.5, 2.0]
    assert torch.equal(loss.values.detach(), loss.marks["nll"])
