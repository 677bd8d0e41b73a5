"""Importance correction against hand-worked ratios."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import pytest
import torch

from verl.algorithms.config import CorrectionConfig, CorrectionLevel, CorrectionMode, GuardConfig, LossConfig
from verl.algorithms.correction import importance_correction, off_policy_mask
from verl.algorithms.objective import policy_objective
from verl.algorithms.tokens import PolicyTokens, Totals

# w by token: 2, 0.5, 1 | 4. By sequence: product 1 | 4; geometric mean 1 | 4.
RATIOS = torch.tensor([2.0, 0.5, 1.0, 4.0], dtype=torch.float64)
ROLLOUT = torch.tensor([-3.0, -1.0, -2.0, -2.5], dtype=torch.float64)
SEQUENCE = torch.tensor([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("mode", "weights", "changed"),
    [
        ("none", [1, 1, 1, 1], 0),
        ("truncate", [1.5, 0.5, 1, 1.5], 0.5),
        ("band", [0, 0, 1, 0], 0.75),
        ("reject", [0, 0, 1, 0], 0.75),
    ],
)
def test_token_level(mode: CorrectionMode, weights: list[float], changed: float) -> None:
    config = CorrectionConfig(mode=mode, low=0.7, high=1.5)
    result = importance_correction(ROLLOUT + RATIOS.log(), ROLLOUT, SEQUENCE, config)
    assert result.weights.tolist() == pytest.approx(weights)
    assert result.marks["correction_fraction"].mean().item() == changed


def test_band_keeps_the_ratio_and_reject_only_the_decision() -> None:
    old = ROLLOUT + RATIOS.log()
    band = importance_correction(old, ROLLOUT, SEQUENCE, CorrectionConfig(mode="band", low=0.4, high=3.0))
    reject = importance_correction(old, ROLLOUT, SEQUENCE, CorrectionConfig(mode="reject", low=0.4, high=3.0))
    assert band.weights.tolist() == pytest.approx([2.0, 0.5, 1.0, 0.0])
    assert reject.weights.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("level", "first", "second"),
    [("sequence", 2.0 * 2.0 * 1.5, 1.2), ("sequence-mean", (2.0 * 2.0 * 1.5) ** (1 / 3), 1.2)],
)
def test_sequence_levels(level: CorrectionLevel, first: float, second: float) -> None:
    ratios = torch.tensor([2.0, 2.0, 1.5, 1.2], dtype=torch.float64)
    config = CorrectionConfig(mode="truncate", level=level, high=100.0)
    result = importance_correction(ROLLOUT + ratios.log(), ROLLOUT, SEQUENCE, config)
    assert result.weights.tolist() == pytest.approx([first] * 3 + [second])


def test_marks_measure_the_mismatch() -> None:
    marks = importance_correction(ROLLOUT + RATIOS.log(), ROLLOUT, SEQUENCE, CorrectionConfig()).marks
    assert marks["rollout_logprob_gap"].tolist() == pytest.approx([math.log(2), math.log(2), 0, math.log(4)])
    assert marks["rollout_ratio"].tolist() == pytest.approx(RATIOS.tolist())
    assert marks["rollout_ratio_square"].tolist() == pytest.approx(RATIOS.square().tolist())
    assert marks["rollout_kl"].tolist() == pytest.approx([w - 1 - math.log(w) for w in RATIOS.tolist()])


def test_weights_carry_no_gradient_and_stay_finite() -> None:
    old = torch.tensor([0.0, -900.0], requires_grad=True)
    result = importance_correction(old, torch.tensor([-900.0, 0.0]), torch.tensor([0, 0]), CorrectionConfig("truncate"))
    assert not result.weights.requires_grad
    assert torch.isfinite(result.weights).all()
    assert all(torch.isfinite(mark).all() for mark in result.marks.values())


@pytest.mark.parametrize("mode", get_args(CorrectionMode))
@pytest.mark.parametrize("level", get_args(CorrectionLevel))
@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_a_token_whose_rollout_log_prob_is_no_number_is_dropped_and_counted(
    mode: CorrectionMode, level: CorrectionLevel, unknown: float
) -> None:
    rollout = ROLLOUT.clone()
    rollout[1] = unknown
    config = CorrectionConfig(mode, level, reject_max_above=100.0)
    result = importance_correction(ROLLOUT + 0.1, rollout, SEQUENCE, config)
    assert (result.weights > 0).tolist() == [True, False, True, True]
    assert result.marks["rollout_unknown"].tolist() == [0, 1, 0, 0]
    assert all(torch.isfinite(mark).all() for mark in result.marks.values())


def test_one_such_token_leaves_loss_and_gradient_finite(make_tokens: Callable[..., PolicyTokens]) -> None:
    tokens = make_tokens([[-1.0, -2.0]], [[-1.0, -2.0]], [1.0], rollout_logprobs=[[-1.0, math.nan]])
    config = LossConfig(
        correction=CorrectionConfig("truncate"), guard=GuardConfig(0.2, anchor="rollout"), off_policy_mask=0.1
    )
    objective = policy_objective(tokens, Totals(2, 1), config)
    assert torch.autograd.grad(objective.loss, tokens.logprobs)[0].tolist() == [-0.5, 0.0]
    assert all(torch.isfinite(metric) for metric in objective.metrics.values())


# Log-ratios of three sequences: even, one bad token among good ones, none at all.
UNEVEN = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
UNEVEN_SEQUENCE = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])


@pytest.mark.parametrize(
    ("estimator", "mean_above", "max_above", "rejected"),
    [
        ("k2", 0.124, None, [1]),  # means: 0.005 | 0.125 | 0
        ("k2", 0.126, None, []),
        ("k2", 0.004, None, [0, 1]),
        ("k2", None, 0.49, [1]),  # largest: 0.005 | 0.5 | 0
        ("k2", None, 0.51, []),
        ("k3", (math.e - 2) / 4 - 1e-6, None, [1]),  # e - 1 - 1, of one token in four
        ("k3", (math.e - 2) / 4 + 1e-6, None, []),
        ("k3", None, math.e - 2 - 1e-6, [1]),
        ("k3", 0.004, 0.1, [0, 1]),  # exp(0.1) - 1.1 = 0.0052: both bounds count
    ],
)
def test_sequences_are_rejected_by_the_mean_or_the_largest_disagreement(
    estimator: Literal["k2", "k3"], mean_above: float | None, max_above: float | None, rejected: list[int]
) -> None:
    config = CorrectionConfig(
        "none", reject_estimator=estimator, reject_mean_above=mean_above, reject_max_above=max_above
    )
    result = importance_correction(UNEVEN, torch.zeros_like(UNEVEN), UNEVEN_SEQUENCE, config)
    expected = [float(i not in rejected) for i in UNEVEN_SEQUENCE.tolist()]
    assert result.weights.tolist() == expected
    assert result.marks["rejected_fraction"].tolist() == [1 - kept for kept in expected]


def test_rejection_is_chained_with_truncation_and_sees_what_a_geometric_mean_hides() -> None:
    both_ways = torch.tensor([1.0, -1.0, 0.9, 0.0], dtype=torch.float64)  # the first sequence's ratios multiply to 1
    sequence = torch.tensor([0, 0, 1, 1])
    chained = CorrectionConfig("truncate", high=2.0, reject_max_above=0.6)
    result = importance_correction(both_ways, torch.zeros_like(both_ways), sequence, chained)
    assert result.weights.tolist() == [0, 0, 2.0, 1.0]
    hidden = importance_correction(
        both_ways, torch.zeros_like(both_ways), sequence, CorrectionConfig("reject", "sequence-mean", low=0.5, high=2.0)
    )
    assert hidden.weights.tolist() == [1, 1, 1, 1]


def test_bad_samples_that_the_policy_has_left_are_masked(make_tokens: Callable[..., PolicyTokens]) -> None:
    # log p_rollout - log p, means: 0.3 (bad), 0.3 (good), 0.1 (bad), -0.5 (bad, likelier now)
    logprobs = [[-1.6, -1.0], [-1.6, -1.0], [-1.2, -1.0], [-0.5, -0.5]]
    tokens = make_tokens(logprobs, logprobs, [-1.0, 1.0, -1.0, -1.0], rollout_logprobs=[[-1.0, -1.0]] * 4)
    assert off_policy_mask(tokens, 0.2).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    config = LossConfig(name="reinforce", off_policy_mask=0.2)
    objective = policy_objective(tokens, Totals(8, 4), config)
    slope = torch.autograd.grad(objective.loss, tokens.logprobs)[0]
    assert slope.tolist() == pytest.approx([0, 0, -1 / 8, -1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8])
    assert objective.metrics["off_policy_fraction"].item() == 0.25
    assert policy_objective(tokens, Totals(8, 4), LossConfig()).metrics.get("off_policy_fraction") is None
