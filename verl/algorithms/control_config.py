"""Keys of the controls around the update: KL in the reward, dynamic sampling, overlong penalty, budget, alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verl.algorithms.config import KlEstimator
from verl.errors import require


@dataclass(frozen=True)
class KlRewardConfig:
    """KL to the reference model as a part of the reward."""

    coefficient: float = 0.0
    """Reward lost a nat of KL, and where the adaptive controller starts; 0 is off. Search-R1's PPO has 0.001."""
    estimator: KlEstimator = "k1"
    """Estimator of the KL of each token; k1 is unbiased, and a reward needs no gradient."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` moves the coefficient so that the measured KL comes to ``target``."""
    target: float = 0.1
    """KL aimed at by the adaptive controller, in nats a policy token."""
    horizon_sequences: int = 10_000
    """Over this many sequences an error of 20 % or more moves the coefficient by 20 %; Ziegler's value."""

    def __post_init__(self) -> None:
        require(self.coefficient >= 0, "kl_reward.coefficient", self.coefficient, "write 0 or more")
        require(self.target > 0, "kl_reward.target", self.target, "write a positive number of nats")
        require(self.horizon_sequences > 0, "kl_reward.horizon_sequences", self.horizon_sequences, "write 1 or more")


@dataclass(frozen=True)
class DynamicSamplingConfig:
    """DAPO's dynamic sampling: train on groups whose rewards differ, and sample more until there are enough."""

    enabled: bool = False
    """Whether groups whose rewards are all equal are dropped and replaced."""
    max_refills: int = 3
    """Rounds of extra sampling a step; then the step goes ahead with the groups it has, and counts what it lacks."""

    def __post_init__(self) -> None:
        require(self.max_refills >= 0, "dynamic_sampling.max_refills", self.max_refills, "write 0 or more")


@dataclass(frozen=True)
class OverlongConfig:
    """DAPO's soft penalty on episodes whose policy tokens come near the limit."""

    buffer_tokens: int = 0
    """The penalty grows from 0 to its full size over the last ``buffer_tokens`` before the limit; 0 is off."""
    penalty: float = 1.0
    """Reward lost at the limit and beyond; DAPO's value."""

    def __post_init__(self) -> None:
        require(self.buffer_tokens >= 0, "overlong.buffer_tokens", self.buffer_tokens, "write 0 or more")
        require(self.penalty > 0, "overlong.penalty", self.penalty, "write a positive number")


@dataclass(frozen=True)
class BudgetConfig:
    """What episodes may spend on average (searches, say): each one spent costs reward, at a fixed price or at one that
    rises until they keep to it."""

    part: str = ""
    """What is spent, by its name among the reward's parts (``searches``); empty is off."""
    price: float = 0.0
    """Reward lost for each one spent; where ``rate`` is above 0, the price of the first step."""
    rate: float = 0.0
    """By how much the price of the next step rises for each one that the mean of this step lies above ``limit``, and
    falls below it: a Lagrange multiplier's ascent. 0 keeps the price."""
    limit: float = 0.0
    """What an episode may spend on average, where ``rate`` is above 0."""
    max_price: float = 1.0
    """The highest price; 1 is what a right answer earns in most rewards."""

    def __post_init__(self) -> None:
        require(0 <= self.price <= self.max_price, "budget.price", self.price, "write 0 to budget.max_price")
        require(self.rate >= 0, "budget.rate", self.rate, "write 0 or more")
        require(self.limit >= 0, "budget.limit", self.limit, "write 0 or more")
        priced = bool(self.price or self.rate)
        require(priced == bool(self.part), "budget.part", self.part, "write it with budget.price or budget.rate")


@dataclass(frozen=True)
class AlarmConfig:
    """When training looks like collapsing. An alarm is a warning in the log and in the metrics; it changes nothing."""

    good_logprob_drop: float = 0.5
    """Fall of the mean log-prob of tokens of good samples below its best smoothed value, in nats a token."""
    entropy_below: float = 0.01
    """Mean entropy of policy tokens, in nats, below which the policy has stopped exploring."""
    entropy_above: float = 5.0
    """Mean entropy, in nats, above which the policy is losing its language."""
    kl_above: float = 0.5
    """Mean KL between the policy and its old or reference weights, in nats a token."""
    uniform_groups_above: float = 0.95
    """Share of groups whose rewards are all equal: above it there is hardly anything to learn from."""
    smoothing: float = 0.8
    """Weight of the past in the exponential mean of each signal; about five steps."""
    patience_steps: int = 5
    """Steps in a row that a smoothed signal stays beyond its bound before it sounds."""

    def __post_init__(self) -> None:
        for key in ("good_logprob_drop", "entropy_above", "kl_above"):
            require(getattr(self, key) > 0, f"alarms.{key}", getattr(self, key), "write a positive number")
        require(0 <= self.entropy_below < self.entropy_above, "alarms.entropy_below", self.entropy_below, "write less")
        require(0 <= self.smoothing < 1, "alarms.smoothing", self.smoothing, "write a number in [0, 1)")
        require(self.patience_steps >= 1, "alarms.patience_steps", self.patience_steps, "write 1 or more")
        require(
            0 < self.uniform_groups_above <= 1,
            "alarms.uniform_groups_above",
            self.uniform_groups_above,
            "write a share in (0, 1]",
        )
