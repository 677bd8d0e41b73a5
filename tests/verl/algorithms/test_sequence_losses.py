"""Sequence-level losses against hand-worked values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from verl.algorithms.aggregation import token_weights
from verl.algorithms.config import LossConfig
from verl.algorithms.sequence_losses import gmpo, gspo, kto, kto_kl_point
from verl.algorithms.tokens import PolicyTokens, Totals

Make = Callable[..., PolicyTokens]
LossFunction = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]


def total(loss: LossFunction, tokens: PolicyTokens, config: LossConfig, **facts: float) -> torch.Tensor:
    """The loss of the whole batch, aggregated as the configuration says."""
    sizes = torch.bincount(tokens.sequence).tolist()
    totals = Totals(sum(sizes), len(sizes), **facts)
    weights = token_weights(tokens.sequence, totals, config, dtype=torch.float64)
    return (weights * loss(tokens, totals, config)[0]).sum()


def test_gspo_is_the_clipped_length_normalised_ratio(make_tokens: Make) -> None:
    # Sequence 1: mean log r = 0.1; sequence 2: mean log r = -0.3.
    tokens = make_tokens([[-0.9, -0.9], [-1.6]], [[-1.0, -1.0], [-1.3]], [2.0, -1.0])
    config = LossConfig(name="gspo", clip_low=0.5, clip_high=0.5)
    first, second = math.exp(0.1), math.exp(-0.3)
    loss = total(gspo, tokens, config)
    assert loss.item() == pytest.approx((-2.0 * first + 1.0 * second) / 2)
    slopes = torch.autograd.grad(loss, tokens.logprobs)[0].tolist()
    assert slopes == pytest.approx([-2.0 * first / 4, -2.0 * first / 4, second / 2])


def test_gspo_clips_whole_sequences(make_tokens: Make) -> None:
    tokens = make_tokens([[-0.5, -1.5], [-1.0]], [[-1.0, -1.5], [-1.0]], [1.0, 1.0])
    loss = total(gspo, tokens, LossConfig(name="gspo"))  # exp(0.25) is far above 1 + 4e-4
    assert loss.item() == pytest.approx((-1.0004 - 1.0) / 2)
    assert torch.autograd.grad(loss, tokens.logprobs)[0].tolist() == pytest.approx([0.0, 0.0, -0.5])


def test_gmpo_is_the_geometric_mean_of_clipped_ratios(make_tokens: Make) -> None:
    # Good: log r = (0.9 -> 0.4, 0.1, -0.8): only the gain is clipped. Bad: log r = (-0.9 -> -0.4, 0.5).
    tokens = make_tokens([[-0.1, -0.9, -1.8], [-1.9, -0.5]], [[-1.0] * 3, [-1.0] * 2], [2.0, -3.0])
    good, bad = math.exp((0.4 + 0.1 - 0.8) / 3), math.exp((-0.4 + 0.5) / 2)
    loss = total(gmpo, tokens, LossConfig(name="gmpo"))
    assert loss.item() == pytest.approx((-2.0 * good + 3.0 * bad) / 2)
    slopes = torch.autograd.grad(loss, tokens.logprobs)[0].tolist()
    per_good, per_bad = -2.0 * good / 3 / 2, 3.0 * bad / 2 / 2
    assert slopes == pytest.approx([0.0, per_good, per_good, 0.0, per_bad])


def test_on_policy_gspo_and_gmpo_have_the_gradient_of_reinforce_by_sequence(make_tokens: Make) -> None:
    rows = [[-1.0, -2.0], [-0.5]]
    for loss, config in ((gspo, LossConfig(name="gspo")), (gmpo, LossConfig(name="gmpo"))):
        tokens = make_tokens(rows, rows, [1.0, -2.0])
        slopes = torch.autograd.grad(total(loss, tokens, config), tokens.logprobs)[0]
        assert slopes.tolist() == pytest.approx([-1 / 4, -1 / 4, 1.0])


def test_kto_values_and_gradients(make_tokens: Make) -> None:
    # Margins: 0.5 + 0.5 = 1.0 (desirable), -2.0 (undesirable), unlabelled.
    tokens = make_tokens(
        [[-1.0, -1.0], [-3.0], [-1.0]],
        [[0.0, 0.0], [0.0], [0.0]],
        [0.7, -5.0, 0.0],
        reference_logprobs=[[-1.5, -1.5], [-1.0], [-2.0]],
    )
    config = LossConfig(name="kto", kto_beta=0.5, kto_desirable_weight=2.0, kto_undesirable_weight=3.0)
    desirable = 1 / (1 + math.exp(-0.5 * (1.0 - 0.4)))
    undesirable = 1 / (1 + math.exp(-0.5 * (0.4 + 2.0)))
    loss = total(kto, tokens, config, kl_point=0.4)
    assert loss.item() == pytest.approx((2 * (1 - desirable) + 3 * (1 - undesirable)) / 3)
    up = -2 * 0.5 * desirable * (1 - desirable) / 3
    down = 3 * 0.5 * undesirable * (1 - undesirable) / 3
    assert torch.autograd.grad(loss, tokens.logprobs)[0].tolist() == pytest.approx([up, up, down, 0.0])


def test_kto_reports_by_how_much_labels_and_implicit_rewards_agree(make_tokens: Make) -> None:
    tokens = make_tokens([[-1.0], [-3.0]], [[0.0], [0.0]], [2.0, -2.0], reference_logprobs=[[-1.5], [-2.0]])
    marks = kto(tokens, Totals(2, 2), LossConfig(name="kto", kto_beta=0.5)).marks
    assert marks["kto_reward_margin"].tolist() == pytest.approx([0.25, 0.5])


def test_kto_with_one_label_only_is_finite(make_tokens: Make) -> None:
    tokens = make_tokens([[-1.0]], [[-1.0]], [1.0], reference_logprobs=[[-1.0]])
    assert total(kto, tokens, LossConfig(name="kto")).item() == pytest.approx(0.5)


def test_kto_needs_a_reference(make_tokens: Make) -> None:
    with pytest.raises(ValueError, match="reference_logprobs"):
        total(kto, make_tokens([[-1.0]], [[-1.0]], [1.0]), LossConfig(name="kto"))


def test_kto_kl_point_is_a_mean_over_sequences_and_never_negative() -> None:
    sequence = torch.tensor([4, 4, 9])
    logprobs, reference = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-2.0, -1.5, -1.5])
    assert kto_kl_point(logprobs, reference, sequence) == pytest.approx((1.5 - 0.5) / 2)
    assert kto_kl_point(reference, logprobs, sequence) == 0.0
    assert kto_kl_point(logprobs[:0], reference[:0], sequence[:0]) == 0.0
