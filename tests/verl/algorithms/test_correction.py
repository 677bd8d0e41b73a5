"""Importance correction against hand-worked ratios."""

from __future__ import annotations

import math

import pytest
import torch

from verl.algorithms.config import CorrectionConfig, CorrectionLevel, CorrectionMode
from verl.algorithms.correction import importance_correction

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
