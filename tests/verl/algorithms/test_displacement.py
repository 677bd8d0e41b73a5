"""The likelihood-displacement guard on a hand-worked batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from verl.algorithms.displacement import displacement_guard
from verl.algorithms.tokens import PolicyTokens

Make = Callable[..., PolicyTokens]


@pytest.fixture
def tokens(make_tokens: Make) -> PolicyTokens:
    """Changes since the anchor: a good sample's turns (-0.5, +0.1) and (-0.2, +0.3), a bad sample, and a neutral
    one."""
    made = make_tokens(
        [[-1.5, -0.9, -1.2, -0.7], [-3.0], [-1.25]],
        [[-1.0, -1.0, -1.0, -1.0], [-1.0], [-1.0]],
        [2.0, -1.0, 0.0],
    )
    return replace(made, span=torch.tensor([0, 0, 1, 1, 2, 3]))


def test_only_falling_tokens_of_falling_turns_of_good_samples_count(tokens: PolicyTokens) -> None:
    guard = displacement_guard(tokens, tokens.old_logprobs)
    assert guard.values.tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0.25])
    assert guard.active.tolist() == [1, 0, 0, 0, 0, 1]


def test_its_gradient_raises_the_log_prob_of_those_tokens_alone(tokens: PolicyTokens) -> None:
    guard = displacement_guard(tokens, tokens.old_logprobs)
    assert torch.autograd.grad(guard.values.sum(), tokens.logprobs)[0].tolist() == [-1, 0, 0, 0, 0, -1]


def test_without_spans_a_sequence_is_one_turn(tokens: PolicyTokens) -> None:
    guard = displacement_guard(replace(tokens, span=None), tokens.old_logprobs)  # its changes sum to -0.3
    assert guard.values.tolist() == pytest.approx([0.5, 0, 0.2, 0, 0, 0.25])


def test_it_is_inert_where_the_policy_has_not_moved(tokens: PolicyTokens) -> None:
    guard = displacement_guard(tokens, tokens.logprobs.detach())
    assert guard.values.tolist() == [0.0] * 6
    assert torch.autograd.grad(guard.values.sum(), tokens.logprobs)[0].tolist() == [0.0] * 6
