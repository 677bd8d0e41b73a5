"""Keys of the controls around the update: KL in the reward, dynamic sampling, overlong penalty, budget, alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verl.algorithms.config import KlEstimator
from verl.errors import above, at_least, require


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
        at_least(self, 0, "coefficient")
        above(self, 0, "target", "horizon_sequences")


@dataclass(frozen=True)
class DynamicSamplingConfig:
    """DAPO's dynamic sampling: train on groups whose rewards differ, and sample more until there are enough."""

    enabled: bool = False
    """Whether groups whose rewards are all equal are dropped and replaced."""
    max_refills: int = 3
    """Rounds of extra sampling a step; then the step goes ahead with the groups it has, and counts what it lacks."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_refills")


@dataclass(frozen=True)
class OverlongConfig:
    """DAPO's soft penalty on episodes whose policy tokens come near the limit."""

    buffer_tokens: int = 0
    """The penalty grows from 0 to its full size over the last ``buffer_tokens`` before the limit; 0 is off."""
    penalty: float = 1.0
    """Reward lost at the limit and beyond; DAPO's value."""

    def __post_init__(self) -> None:
        at_least(self, 0, "buffer_tokens")
        above(self, 0, "penalty")


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
        at_least(self, 0, "rate", "limit", "max_price")
        require(0 <= self.price <= self.max_price, "budget.price", self.price, "write 0 to budget.max_price")
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
        above(self, 0, "good_logprob_drop", "entropy_above", "kl_above")
        above(self, 0, "uniform_groups_above", most=1)
        at_least(self, 1, "patience_steps")
        require(0 <= self.entropy_below < self.entropy_above, "alarms.entropy_below", self.entropy_below, "write less")
        require(0 <= self.smoothing < 1, "alarms.smoothing", self.smoothing, "write a number in [0, 1)")
