"""Metrics that are made of sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from verl.algorithms.marks import batch_marks, final_metrics
from verl.algorithms.tokens import PolicyTokens


def test_likelihood_of_good_samples(make_tokens: Callable[..., PolicyTokens]) -> None:
    tokens = make_tokens([[-1.0, -2.0], [-9.0], [-9.0]], [[-0.5, -2.0], [-1.0], [-1.0]], [1.0, -1.0, 0.0])
    sums = {name: mark.mean().item() for name, mark in batch_marks(tokens).items()}
    final = final_metrics(sums)
    assert final["good_fraction"] == 0.5
    assert final["good_logprob"] == pytest.approx(-1.5)
    assert final["good_logprob_change"] == pytest.approx(-0.25)


def test_no_good_sample_leaves_its_likelihood_out(make_tokens: Callable[..., PolicyTokens]) -> None:
    tokens = make_tokens([[-1.0]], [[-1.0]], [-1.0])
    final = final_metrics({name: mark.mean().item() for name, mark in batch_marks(tokens).items()})
    assert final == {"good_fraction": 0.0}


def test_effective_sample_share() -> None:
    # w = (1, 1, 2): (4/3)^2 / (6/3) = 8/9
    final = final_metrics({"rollout_ratio": 4 / 3, "rollout_ratio_square": 2.0})
    assert final == {"rollout_ratio": 4 / 3, "effective_sample_share": pytest.approx(8 / 9)}
