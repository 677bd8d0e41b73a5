"""Sequence advantages against hand-worked cases, and the properties that hold for all of them."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.advantages import differs, group_advantages
from verl.algorithms.config import AdvantageConfig, AdvantageName

# Group 7: (1, 0, 0.5, 0.5), mean 0.5, unbiased deviation sqrt(1/6). Group 2: (3, 1), mean 2, deviation sqrt 2.
REWARDS = torch.tensor([1.0, 3.0, 0.0, 0.5, 1.0, 0.5], dtype=torch.float64)
GROUPS = torch.tensor([7, 2, 7, 7, 2, 7])
LENGTHS = torch.tensor([2, 3, 4, 1, 1, 1])
GREEDY = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0], dtype=torch.float64)
SEQUENCE_LEVEL: list[AdvantageName] = [name for name in get_args(AdvantageName) if name != "gae"]
BASELINED: list[AdvantageName] = [name for name in SEQUENCE_LEVEL if name != "softmax"]
"""Those that compare rewards; softmax weighs by log-probs instead."""
GROUP_RELATIVE: list[AdvantageName] = [name for name in BASELINED if name not in ("reinforce_pp", "remax")]
GOLD = torch.tensor([-0.1, -1.0, -0.7, -2.3, -3.0, -0.1], dtype=torch.float64)


def advantages(name: AdvantageName, rewards: torch.Tensor = REWARDS, groups: torch.Tensor = GROUPS) -> torch.Tensor:
    lengths = LENGTHS if len(rewards) == len(LENGTHS) else torch.ones(len(rewards), dtype=torch.int64)
    greedy = GREEDY if len(rewards) == len(GREEDY) else torch.zeros(len(rewards))
    parts = {"em": rewards.clamp(max=1), "hit": rewards.square()}
    return group_advantages(
        rewards,
        groups,
        config(name),
        lengths=lengths,
        greedy_rewards=greedy,
        parts=parts,
        gold_logprobs=GOLD[: len(rewards)],
    )


def config(name: AdvantageName) -> AdvantageConfig:
    """With two parts for gdpo."""
    return AdvantageConfig(name, parts={"em": 1.0, "hit": 0.5} if name == "gdpo" else {})


def whitened(values: list[float], lengths: list[int]) -> list[float]:
    """The definition: repeat each value for its tokens, subtract the mean, divide by the unbiased deviation."""
    tokens = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    mean = sum(tokens) / len(tokens)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in tokens) / (len(tokens) - 1))
    return [(value - mean) / (deviation + 1e-6) for value in values]


def standardised(values: list[float]) -> list[float]:
    """Of one group: less the mean, by the unbiased deviation."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / (deviation + 1e-6) for value in values]


CENTRED = [0.5, 1.0, -0.5, 0.0, -1.0, 0.0]
# gdpo, of rewards capped at 1 (group 2 is then all equal: 0) and half of their squares; group 7 at places 0, 2, 3, 5.
CAPPED, SQUARED = standardised([1.0, 0.0, 0.5, 0.5]), standardised([1.0, 0.0, 0.25, 0.25])
NINE_AND_ONE = standardised([9.0, 1.0])
SEVEN = [first + 0.5 * second for first, second in zip(CAPPED, SQUARED, strict=True)]
SUMMED = [SEVEN[0], 0.5 * NINE_AND_ONE[0], SEVEN[1], SEVEN[2], 0.5 * NINE_AND_ONE[1], SEVEN[3]]
DEVIATIONS = [math.sqrt(1 / 6) if group == 7 else math.sqrt(2) for group in GROUPS]
EXPECTED: dict[AdvantageName, list[float]] = {
    "grpo": [c / (d + 1e-6) for c, d in zip(CENTRED, DEVIATIONS, strict=True)],
    "dr_grpo": CENTRED,
    "gdpo": whitened(SUMMED, [1] * 6),
    "rloo": [1.0 - 1 / 3, 3.0 - 1.0, 0.0 - 2 / 3, 0.5 - 0.5, 1.0 - 3.0, 0.5 - 0.5],  # less the mean of the others
    "reinforce_pp": whitened(REWARDS.tolist(), LENGTHS.tolist()),
    "reinforce_pp_baseline": whitened(CENTRED, LENGTHS.tolist()),
    "remax": [0.0, 1.0, -1.0, -0.5, -1.0, -0.5],
    # Group 7: (2 x 1 + 4 x 0 + 0.5 + 0.5) / 8 = 0.375. Group 2: (3 x 3 + 1) / 4 = 2.5.
    "opo": [0.625, 0.5, -0.375, 0.125, -1.5, 0.125],
    "gpg": CENTRED,  # both groups are informative: the factor is 1
    "pass_at_k": [0.5, 2.0, 0.0, 0.0, 0.0, 0.0],  # the best one's lead over the second
    "softmax": [  # exp of the log-probs -0.1, -0.7, -2.3, -0.1 over their sum 2.406519; and of -1, -3
        0.37599,
        0.880797,
        0.206347,
        0.041661,
        0.119203,
        0.37599,
    ],
}


@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_hand_worked(name: AdvantageName) -> None:
    assert advantages(name).tolist() == pytest.approx(EXPECTED[name], abs=1e-5 if name == "softmax" else 1e-12)


@pytest.mark.parametrize("name", GROUP_RELATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(name: AdvantageName, dtype: torch.dtype) -> None:
    for n in range(2, 20):  # the mean of some n float64 0.1 is not 0.1, and an epsilon of 1e-6 would magnify the rest
        result = advantages(name, torch.full((n,), 0.1, dtype=dtype), torch.zeros(n, dtype=torch.int64))
        assert result.tolist() == [0.0] * n


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_a_group_of_one_gives_no_signal(name: AdvantageName) -> None:
    assert advantages(name, torch.tensor([1.0]), torch.tensor([3])).tolist() == [0.0]


@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_order_and_group_ids_do_not_matter(name: AdvantageName) -> None:
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    shuffled = group_advantages(
        REWARDS[order],
        100 - GROUPS[order],
        config(name),
        lengths=LENGTHS[order],
        greedy_rewards=GREEDY[order],
        parts={"em": REWARDS[order].clamp(max=1), "hit": REWARDS[order].square()},
        gold_logprobs=GOLD[order],
    )
    torch.testing.assert_close(shuffled, advantages(name)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_the_dtype_of_the_rewards_is_kept(name: AdvantageName) -> None:
    assert advantages(name, REWARDS.float()).dtype == torch.float32


def test_gpg_scales_up_where_groups_say_nothing() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert advantages("gpg", rewards, groups).tolist() == [1.0, -1.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pass_at_k_is_the_mean_marginal_gain_over_subsets(data: st.DataObject) -> None:
    rewards = data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, -0.5, 2.0]), min_size=2, max_size=6))
    k = data.draw(st.integers(2, len(rewards)))
    n = len(rewards)
    expected = [
        sum(
            max(rewards[i], *(rewards[j] for j in others)) - max(rewards[j] for j in others)
            for others in itertools.combinations([j for j in range(n) if j != i], k - 1)
        )
        / math.comb(n - 1, k - 1)
        for i in range(n)
    ]
    result = group_advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.zeros(n, dtype=torch.int64), AdvantageConfig("pass_at_k", k=k)
    )
    assert result.tolist() == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_a_group_that_lost_samples_draws_all_it_has() -> None:
    result = group_advantages(torch.tensor([1.0, 0.25]), torch.tensor([0, 0]), AdvantageConfig("pass_at_k", k=4))
    assert result.tolist() == [0.75, 0.0]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("opo", "lengths"),
        ("reinforce_pp", "lengths"),
        ("reinforce_pp_baseline", "lengths"),
        ("remax", "greedy_rewards"),
        ("gdpo", "parts"),
        ("softmax", "gold_logprobs"),
    ],
)
def test_a_missing_input_is_named(name: AdvantageName, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        group_advantages(REWARDS, GROUPS, config(name))


def test_gae_is_not_a_sequence_advantage() -> None:
    with pytest.raises(ValueError, match=r"gae\.gae_advantages"):
        advantages("gae")


@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_an_empty_batch_is_empty(name: AdvantageName) -> None:
    assert advantages(name, REWARDS[:0], GROUPS[:0]).shape == (0,)


def test_gdpo_tells_apart_what_a_sum_of_rewards_confounds() -> None:
    """The paper's example: rewards (0, 1) and (0, 2) of two parts look alike to grpo, and not to gdpo."""
    first, second = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    groups = torch.tensor([0, 0, 1, 1])
    together = group_advantages(first + second, groups, AdvantageConfig("grpo"))
    assert together[:2].tolist() == pytest.approx(together[2:].tolist(), rel=1e-5)
    config = AdvantageConfig("gdpo", parts={"a": 1.0, "b": 1.0})
    apart = group_advantages(first + second, groups, config, parts={"a": first, "b": second})
    # Sums of normalised parts: +-1/sqrt 2 and +-sqrt 2; their unbiased deviation over the batch is sqrt(5/3).
    unit = math.sqrt(0.5) / math.sqrt(5 / 3)
    assert apart.tolist() == pytest.approx([-unit, unit, -2 * unit, 2 * unit], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in BASELINED if name != "remax"])
@pytest.mark.parametrize("coefficient", [1e-3, 1e-5])
def test_what_kl_takes_off_equal_rewards_stays_as_small_as_its_coefficient(
    name: AdvantageName, coefficient: float
) -> None:
    kl = torch.tensor([0.4, 2.0, 0.9, 1.3, 0.1, 0.2], dtype=torch.float64)
    result = group_advantages(
        torch.zeros(6, dtype=torch.float64),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        config(name),
        lengths=LENGTHS,
        parts=dict.fromkeys(("em", "hit"), torch.zeros(6)),
        added=-coefficient * kl,
    )
    assert 0 < float(result.abs().max()) <= 3 * coefficient, "not the size of an advantage, whatever the coefficient"
    assert result[0] > result[1], "the one that strayed less is preferred"


def test_grpo_centres_kl_and_divides_rewards_alone() -> None:
    kl = torch.tensor([-0.1, -0.3], dtype=torch.float64)
    result = group_advantages(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), AdvantageConfig(), added=kl)
    assert result.tolist() == pytest.approx([2**-0.5 + 0.1, -(2**-0.5) - 0.1], rel=1e-5)


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
