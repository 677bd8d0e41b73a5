"""DAPO's group filter, bounded refills and overlong penalty."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.advantages import differs, group_advantages
from verl.algorithms.config import AdvantageConfig
from verl.algorithms.control_config import DynamicSamplingConfig, OverlongConfig
from verl.algorithms.dapo import overlong_penalty, sampling_decision


def test_only_groups_whose_rewards_differ_are_informative() -> None:
    rewards, groups = torch.tensor([1.0, 0.1, 0.0, 0.1, 0.1, 1.0]), torch.tensor([5, 3, 5, 3, 3, 8])
    assert differs(rewards, groups).tolist() == [True, False, True, False, False, False]
    assert differs(rewards[:0], groups[:0]).tolist() == []


def test_what_is_dropped_had_no_gradient_anyway() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randint(0, 2, (64,), generator=generator).float()
    groups = torch.arange(16).repeat(4)
    dropped = ~differs(rewards, groups)
    assert dropped.any()
    assert not group_advantages(rewards, groups, AdvantageConfig("grpo"))[dropped].any()


@pytest.mark.parametrize(
    ("found", "refills", "enabled", "decision"),
    [
        (8, 0, True, "train"),  # enough
        (3, 0, True, "refill"),
        (3, 1, True, "refill"),
        (3, 2, True, "train"),  # the bound: go on with what there is
        (0, 2, True, "train"),
        (3, 0, False, "train"),
    ],
)
def test_refills_are_bounded(found: int, refills: int, enabled: bool, decision: str) -> None:
    config = DynamicSamplingConfig(enabled=enabled, max_refills=2)
    assert sampling_decision(found, 8, refills, config) == decision


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    lengths = torch.tensor([10, 80, 90, 95, 100, 140])
    penalty = overlong_penalty(lengths, 100, OverlongConfig(buffer_tokens=20, penalty=2.0))
    assert penalty.tolist() == pytest.approx([0, 0, -1.0, -1.5, -2.0, -2.0])
    assert overlong_penalty(lengths, 100, OverlongConfig()).tolist() == [0.0] * 6


def test_a_buffer_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="above the limit of 10"):
        overlong_penalty(torch.tensor([1]), 10, OverlongConfig(buffer_tokens=20))
