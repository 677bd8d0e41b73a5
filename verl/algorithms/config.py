"""Keys of advantages and losses: frozen dataclasses that check themselves and import no torch.

A key is read where the algorithm it belongs to runs; each docstring says which algorithms read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal

from verl.errors import above, at_least, require, within

AdvantageName = Literal[
    "grpo",
    "dr_grpo",
    "gdpo",
    "rloo",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "opo",
    "gpg",
    "pass_at_k",
    "softmax",
    "gae",
]
WeightForm = Literal["softmax", "exp", "cost_share", "reward", "uniform"]
LossName = Literal["ppo_clip", "gspo", "gmpo", "cispo", "sapo", "reinforce", "weighted_nll", "kto"]
Aggregation = Literal["token-mean", "sequence-mean-token-sum", "sequence-mean-token-mean", "token-sum-constant"]
KlEstimator = Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"]
CorrectionMode = Literal["none", "truncate", "band", "reject"]
CorrectionLevel = Literal["token", "sequence", "sequence-mean"]

PUBLISHED_CLIP: Mapping[LossName, tuple[float, float]] = {"gspo": (3e-4, 4e-4), "gmpo": (0.4, 0.4)}
"""(clip_low, clip_high) of the losses whose paper does not use PPO's 0.2."""
SEQUENCE_MEAN_LOSSES: frozenset[LossName] = frozenset({"gspo", "gmpo", "sapo", "kto"})
"""Losses whose paper averages over sequences; gmpo and kto have no meaning under another aggregation."""


@dataclass(frozen=True)
class AdvantageConfig:
    """How the rewards of a batch become advantages: one a sequence, or one a token for gae."""

    name: AdvantageName = "grpo"
    """Which estimator; the default is what AutoRefine and Search-R1 publish."""
    epsilon: float = 1e-6
    """Added to a standard deviation before dividing by it (grpo, gdpo, reinforce_pp, reinforce_pp_baseline, gae);
    GRPO's value."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What gdpo compares in place of the reward: parts of the reward by name (``em``, ``format_valid``), each with its
    weight; with any other advantage empty."""
    k: int | None = None
    """Samples of one try for pass_at_k, between 2 and the group's size; null means the whole group."""
    weight: WeightForm = "softmax"
    """What softmax makes of the accepted answer's log-prob, or of the reward; see ``group_weights``."""
    temperature: float = 1.0
    """What softmax divides that log-prob by: lower trusts the likeliest episode of a group more; 1 is ExSearch's."""
    gamma: float = 1.0
    """Discount from one policy token to the next (gae); 1 because the reward comes at the end of an episode."""
    lam: float = 1.0
    """GAE's lambda: 1 trusts returns (no bias), below 1 trusts the critic (less variance); Search-R1's value."""

    def __post_init__(self) -> None:
        above(self, 0, "gamma", most=1)
        within(self, 0, 1, "lam")
        above(self, 0, "epsilon", "temperature")
        at_least(self, 2, "k")
        require(
            (self.name == "gdpo") == bool(self.parts),
            "advantage.parts",
            dict(self.parts),
            "name parts of the reward with advantage.name=gdpo, such as {em: 1, f1: 0.5}, and none with another",
        )
        for part, weight in self.parts.items():
            require(
                weight != 0 and isfinite(weight), f"advantage.parts.{part}", weight, "write a weight, or leave it out"
            )
        require(
            self.weight == "softmax" or self.name == "softmax",
            "advantage.weight",
            self.weight,
            "it says something with advantage.name=softmax only",
        )

    @property
    def needs_critic(self) -> bool:
        """Whether advantages are made by the learner from a critic's values (``gae``)."""
        return self.name == "gae"

    @property
    def needs_greedy(self) -> bool:
        """Whether each task needs the reward of a greedy answer beside its samples."""
        return self.name == "remax"

    @property
    def needs_gold(self) -> bool:
        """Whether an episode is trained on with the accepted answer in the place of its own, and weighed by it."""
        return self.name == "softmax"

    @property
    def needs_group(self) -> bool:
        """Whether a group of one gets no signal, so that two or more samples a prompt are needed."""
        return self.name not in ("reinforce_pp", "remax", "softmax", "gae")

    def check_group_size(self, samples_per_prompt: int) -> None:
        """Raise UserError if groups of that size give no signal, or cannot be drawn from as ``k`` says."""
        require(
            samples_per_prompt >= 2 or not self.needs_group,
            "samples_per_prompt",
            samples_per_prompt,
            f"{self.name} compares the samples of a task: write 2 or more",
        )
        require(
            self.name != "pass_at_k" or (self.k or 2) <= samples_per_prompt,
            "advantage.k",
            self.k,
            f"write at most samples_per_prompt={samples_per_prompt}",
        )


@dataclass(frozen=True)
class CorrectionConfig:
    """What to do where the engine that sampled and the trainer disagree on a log-prob, or the weights have moved on."""

    mode: CorrectionMode | None = None
    """With w = p_old / p_rollout: ``truncate`` multiplies the loss by min(w, high); ``band`` by w inside [low, high]
    and by 0 outside (IcePop); ``reject`` by 1 inside and 0 outside; ``none`` only measures. Null is ``none`` where
    training is exactly on-policy (max_staleness=0), and ``truncate`` where samples may be stale."""
    level: CorrectionLevel = "token"
    """Whether w is a token's ratio, the product over its sequence, or the geometric mean over its sequence."""
    low: float = 0.5
    """Lower edge (band, reject); IcePop's value."""
    high: float = 2.0
    """Cap (truncate) or upper edge (band, reject); the value of truncated importance sampling; IcePop has 5."""
    reject_estimator: Literal["k2", "k3"] = "k3"
    """What measures a token's disagreement for the two bounds below: (log w)^2 / 2, or w - 1 - log w."""
    reject_mean_above: float | None = None
    """Whole sequences are rejected, whatever the mode, whose mean disagreement is above this; null for no bound."""
    reject_max_above: float | None = None
    """Whole sequences are rejected that hold one token of a larger disagreement; null for no bound."""

    @property
    def rejects_sequences(self) -> bool:
        """Whether whole sequences may be rejected."""
        return self.reject_mean_above is not None or self.reject_max_above is not None

    def __post_init__(self) -> None:
        above(self, 0, "reject_mean_above", "reject_max_above")
        at_least(self, 1, "high")
        within(self, 0, 1, "low")


@dataclass(frozen=True)
class GuardConfig:
    """Likelihood-displacement guard (LLDS): a penalty where good samples became less likely within a batch."""

    coefficient: float = 0.0
    """Weight of the penalty; 0 is off, the paper's value is 0.2."""
    anchor: Literal["old", "rollout"] = "old"
    """Against which log-probs a fall is measured: ``old`` (start of the batch) is inert with one update a batch;
    ``rollout`` (the weights that sampled) also works with one update where samples are stale."""

    def __post_init__(self) -> None:
        at_least(self, 0, "coefficient")


@dataclass(frozen=True)
class LossConfig:
    """How advantages move the weights."""

    name: LossName = "ppo_clip"
    """Which token loss."""
    clip_low: float | None = None
    """Lower clip of the ratio new/old at 1 - clip_low (ppo_clip, gspo, cispo), of its logarithm at -clip_low (gmpo);
    null is the published value: 0.2, gspo 3e-4, gmpo 0.4."""
    clip_high: float | None = None
    """Upper clip at 1 + clip_high, of the logarithm at clip_high (gmpo); null is the published value: 0.2, gspo 4e-4,
    gmpo 0.4. DAPO's clip-higher is ppo_clip with 0.28."""
    dual_clip: float | None = 3.0
    """Where the advantage is negative, the loss is at most dual_clip x |advantage| (ppo_clip); null for no bound."""
    sapo_temperature_positive: float = 1.0
    """Steepness of the soft gate where the advantage is positive (sapo); the paper's value."""
    sapo_temperature_negative: float = 1.05
    """Steepness where it is negative (sapo); a little above the positive one, which steadies training (the paper)."""
    kto_beta: float = 0.1
    """How strongly kto holds to the reference; the value RARE trains with."""
    kto_desirable_weight: float = 1.0
    """Weight of desirable sequences (kto); balance it by the numbers of each label, within 1 to 4/3 (the paper)."""
    kto_undesirable_weight: float = 1.0
    """Weight of undesirable sequences (kto)."""
    aggregation: Aggregation | None = None
    """How token losses become one number, with the denominators of the global batch; null is the published one:
    token-mean, and sequence-mean-token-mean for gspo, gmpo, sapo and kto."""
    constant_tokens: int | None = None
    """What token-sum-constant divides each sequence's sum by (Dr.GRPO: the largest answer length, in tokens)."""
    kl_coefficient: float = 0.0
    """Weight of KL(policy || reference) in the loss; above 0 a reference model is kept. AutoRefine has 0.001."""
    kl_estimator: KlEstimator = "k3"
    """Estimator of that KL from the sampled tokens. ``+`` keeps the estimator's value and takes the gradient of k2,
    which is unbiased; the gradient of k1 is 0 in expectation, so it is of use in a reward only."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; above 0 the entropy of every policy token carries gradient."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Importance correction of the policy term."""
    off_policy_mask: float | None = None
    """Bad samples (advantage below 0) are left out of the policy term where their sequence is on average this many nats
    a token less likely now than for the engine that sampled it; null is off. DeepSeek-V3.2 trains with such a mask."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Likelihood-displacement guard."""

    def __post_init__(self) -> None:
        above(self, 0, "clip_low", most=1)
        above(self, 0, "clip_high", "off_policy_mask", "constant_tokens")
        above(self, 1, "dual_clip")
        above(self, 0, "sapo_temperature_positive", "sapo_temperature_negative", "kto_beta")
        at_least(self, 0, "kto_desirable_weight", "kto_undesirable_weight", "kl_coefficient", "entropy_coefficient")
        self._check_aggregation()

    def _check_aggregation(self) -> None:
        require(
            self.name not in ("gmpo", "kto") or self.reduction == "sequence-mean-token-mean",
            "loss.aggregation",
            self.aggregation,
            f"{self.name} is one loss a sequence: write sequence-mean-token-mean, or null",
        )
        require(
            (self.reduction == "token-sum-constant") == (self.constant_tokens is not None),
            "loss.constant_tokens",
            self.constant_tokens,
            "write a length in tokens with loss.aggregation=token-sum-constant, and null with any other",
        )

    @property
    def clip(self) -> tuple[float, float]:
        """(clip_low, clip_high), the published values where a key is null."""
        low, high = PUBLISHED_CLIP.get(self.name, (0.2, 0.2))
        return low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high

    @property
    def reduction(self) -> Aggregation:
        """The aggregation, the published one where the key is null."""
        published: Aggregation = "sequence-mean-token-mean" if self.name in SEQUENCE_MEAN_LOSSES else "token-mean"
        return self.aggregation or published

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads log-probs of the reference model."""
        return self.kl_coefficient > 0 or self.name == "kto"

    @property
    def needs_rollout(self) -> bool:
        """Whether the loss reads log-probs of the engine that sampled; recorded traces have none."""
        correcting = self.correction.mode not in (None, "none") or self.correction.rejects_sequences
        guarding = self.guard.coefficient > 0 and self.guard.anchor == "rollout"
        return correcting or guarding or self.off_policy_mask is not None

    def for_staleness(self, max_staleness: int) -> LossConfig:
        """This loss with the correction that null means where samples may lag ``max_staleness`` versions behind."""
        if self.correction.mode is not None:
            return self
        mode: CorrectionMode = "truncate" if max_staleness else "none"
        return replace(self, correction=replace(self.correction, mode=mode))

    def check_effect(self, updates_per_batch: int, max_staleness: int) -> None:
        """Raise UserError if the guard would be inert: policy and anchor are the same on a first, fresh update."""
        moved = updates_per_batch > 1 or (self.guard.anchor == "rollout" and max_staleness > 0)
        require(
            self.guard.coefficient == 0 or moved,
            "loss.guard.coefficient",
            self.guard.coefficient,
            "the guard acts from the second update of a batch on: write updates_per_batch=2 or more, or "
            "loss.guard.anchor=rollout with max_staleness=1 or more",
        )


@dataclass(frozen=True)
class ValueLossConfig:
    """How a critic's values move towards the returns."""

    clip: float | None = 0.5
    """How far a value may move from the old one before its loss is flat, in units of reward; null for no clip."""

    def __post_init__(self) -> None:
        above(self, 0, "clip")


@dataclass(frozen=True)
class TurnCreditConfig:
    """Credit for what each turn brought (for search: new evidence), beside the advantage of the whole sequence."""

    coefficient: float = 0.0
    """Weight of the turn advantage added to every policy token of the turn; 0 is off."""
    gamma: float = 1.0
    """Discount from one turn to the next: a turn is credited with later gains too, as it led to them."""

    def __post_init__(self) -> None:
        at_least(self, 0, "coefficient")
        within(self, 0, 1, "gamma")
