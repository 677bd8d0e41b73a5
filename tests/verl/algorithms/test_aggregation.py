"""Aggregation weights against their closed forms."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.aggregation import token_weights
from verl.algorithms.config import Aggregation, LossConfig
from verl.algorithms.tokens import Totals

SEQUENCE = torch.tensor([3, 3, 3, 8])
GLOBAL = Totals(policy_tokens=20, sequences=5)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", [1 / 20] * 4),
        ("sequence-mean-token-sum", [1 / 5] * 4),
        ("sequence-mean-token-mean", [1 / 15, 1 / 15, 1 / 15, 1 / 5]),
        ("token-sum-constant", [1 / 500] * 4),
    ],
)
def test_weights_divide_by_the_global_batch(aggregation: Aggregation, expected: list[float]) -> None:
    config = LossConfig(aggregation=aggregation, constant_tokens=100 if aggregation == "token-sum-constant" else None)
    weights = token_weights(SEQUENCE, GLOBAL, config, dtype=torch.float64)
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean-token-mean"])
def test_means_have_weights_that_sum_to_one(aggregation: Aggregation) -> None:
    weights = token_weights(SEQUENCE, Totals(4, 2), LossConfig(aggregation=aggregation), dtype=torch.float64)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_sequence_losses_average_over_sequences_by_default() -> None:
    assert LossConfig(name="gspo").reduction == "sequence-mean-token-mean"
    assert LossConfig().reduction == "token-mean"


def test_totals_count_only_sequences_that_train() -> None:
    assert Totals.count([3, 0, 5]) == Totals(policy_tokens=8, sequences=2)
    with pytest.raises(ValueError, match="nothing to train on"):
        Totals.count([0, 0])
