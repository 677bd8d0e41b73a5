"""Every advantage and every loss makes a toy policy better: signs and scales, end to end.

The policy is one categorical distribution; an episode is three draws, with rewards for drawing token 0; two updates a
batch, so that ratios leave 1.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig, AdvantageName, GuardConfig, LossConfig, LossName
from verl.algorithms.objective import policy_objective
from verl.algorithms.tokens import PolicyTokens, Totals

GROUPS, SAMPLES, DRAWS, TOKENS = 6, 6, 3, 5
SEQUENCES = GROUPS * SAMPLES


def credit(rewards: Tensor, loss: LossName, advantage: AdvantageName) -> Tensor:
    """The advantage of each sequence; for likelihood losses, what they take in its place."""
    if loss == "weighted_nll":
        return (rewards > rewards.mean()).double()
    if loss == "kto":
        return rewards - rewards.mean()
    return group_advantages(
        rewards,
        torch.arange(GROUPS).repeat_interleave(SAMPLES),
        AdvantageConfig(advantage, parts={"reward": 1.0} if advantage == "gdpo" else {}),
        lengths=torch.full((SEQUENCES,), DRAWS),
        greedy_rewards=torch.full((SEQUENCES,), 0.4),
        parts={"reward": rewards},
    )


def probability_of_the_target(loss: LossConfig, advantage: AdvantageName, steps: int = 60) -> float:
    generator = torch.Generator().manual_seed(5)
    logits = torch.zeros(TOKENS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    reference = torch.log_softmax(logits.detach(), 0)
    sequence = torch.arange(SEQUENCES).repeat_interleave(DRAWS)
    for _ in range(steps):
        old = torch.log_softmax(logits.detach(), 0)
        drawn = torch.multinomial(old.exp(), SEQUENCES * DRAWS, replacement=True, generator=generator)
        rewards = (drawn == 0).double().view(SEQUENCES, DRAWS).mean(1)
        advantages = credit(rewards, loss.name, advantage)[sequence]
        for _ in range(2):
            logprobs = torch.log_softmax(logits, 0)[drawn]
            tokens = PolicyTokens(logprobs, old[drawn], advantages, sequence, reference_logprobs=reference[drawn])
            optimizer.zero_grad()
            policy_objective(tokens, Totals(len(drawn), SEQUENCES), loss).loss.backward()
            optimizer.step()
    return torch.softmax(logits.detach(), 0)[0].item()


REWARDED = [name for name in get_args(AdvantageName) if name not in ("gae", "softmax")]
"""Those that read rewards of sequences: gae is of tokens, and softmax weighs by log-probs of the accepted answer."""


@pytest.mark.parametrize("advantage", REWARDED)
def test_every_advantage_finds_the_rewarded_token(advantage: AdvantageName) -> None:
    assert probability_of_the_target(LossConfig(), advantage) > 0.8


@pytest.mark.parametrize("name", get_args(LossName))
def test_every_loss_finds_the_rewarded_token(name: LossName) -> None:
    assert probability_of_the_target(LossConfig(name=name), "grpo") > 0.8


def test_a_strong_kl_holds_the_policy_and_the_guard_does_not() -> None:
    held = probability_of_the_target(LossConfig(kl_coefficient=10.0, kl_estimator="k3+"), "grpo")
    guarded = probability_of_the_target(LossConfig(guard=GuardConfig(coefficient=0.2)), "grpo")
    assert held < 0.3
    assert guarded > 0.8
