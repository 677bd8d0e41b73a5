"""The settings of the training loop. No torch: a wrong value is reported at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from verl.algorithms.config import AdvantageConfig, LossConfig, TurnCreditConfig
from verl.algorithms.control_config import (
    AlarmConfig,
    BudgetConfig,
    DynamicSamplingConfig,
    KlRewardConfig,
    OverlongConfig,
)
from verl.errors import UserError, above, at_least
from verl.learner.config import OptimizerConfig
from verl.rollout.interfaces import Sampling


@dataclass(frozen=True)
class WarmupConfig:
    """Training on given traces before reinforcement, or instead of it (``trainer.steps=0``)."""

    steps: int = 0
    """Optimizer steps; 0 skips the warm-up (a pretrained model needs none) unless ``epochs`` says how long it is."""
    epochs: int = 0
    """Its length as passes over all traces, instead of ``steps``."""
    loss: LossConfig = field(default_factory=lambda: LossConfig(name="weighted_nll"))
    """``weighted_nll`` follows each trace as much as its ``weight`` says; ``kto`` tells desirable ones from others, by
    ``label`` or sign. Losses that compare with what the engine said are refused: traces have none of that."""
    sequences_per_step: int = 32
    """Traces in one step, drawn without replacement within an epoch."""
    save_every_steps: int = 200
    """Steps between resumable checkpoints of the warm-up."""
    all_weights: bool = False
    """Where ``learner.lora`` is set: warm all weights up, and give the adapters to reinforcement alone. False trains
    the adapters in both, which is what bounds the memory of a large model."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The warm-up's own optimizer; reinforcement starts with a fresh one."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "epochs")
        at_least(self, 1, "sequences_per_step", "save_every_steps")
        if self.steps and self.epochs:
            raise UserError(f"warmup.steps={self.steps} and warmup.epochs={self.epochs}: write one of them")
        if self.loss.needs_rollout:
            raise UserError("warmup.loss reads what the engine said of its tokens, and traces have none: change it")

    @property
    def enabled(self) -> bool:
        """Whether there is a warm-up."""
        return bool(self.steps or self.epochs)

    def on(self, traces: int) -> WarmupConfig:
        """The same with its length in steps, now that the number of traces is known."""
        return replace(self, steps=self.steps or math.ceil(self.epochs * traces / self.sequences_per_step), epochs=0)


@dataclass(frozen=True)
class GoldLogprobConfig:
    """A metric: the log-prob of a task's accepted answer, laid after what each episode found. Costs a forward pass.
    With the advantage ``softmax`` it is what episodes are weighed by, and the answer so laid is trained on."""

    opening: str = ""
    """What stands before the answer where the episode's last turn was (``<answer> ``, with autorefine and search_r1);
    empty measures nothing, unless the advantage is ``softmax``: then the answer is all there is."""
    closing: str = ""
    """What stands after it where it is trained on (`` </answer>``); the token that ends a turn of a chat comes after
    that by itself."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether the score is the mean over the answer's tokens, as ExSearch's code has it, or their sum, as its paper."""


@dataclass(frozen=True)
class TrainerConfig:
    """The loop: how much per step, for how long, what is kept."""

    steps: int = 60
    """Reinforcement steps, all of them run. One step is one batch of groups and one new version of the weights. With 0
    the run ends with the warm-up: it is measured before and after that."""
    prompts_per_step: int = 16
    """Tasks, and so groups, that a step trains on."""
    samples_per_prompt: int = 8
    """Episodes of each task: the size of a group."""
    max_staleness: int = 0
    """Weight versions that a sample may lag behind the weights it trains. 0 is exactly on-policy."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """ASSIGN: rewards to advantages."""
    kl_reward: KlRewardConfig = field(default_factory=KlRewardConfig)
    """KL to the model as it was when reinforcement began, as a part of the reward."""
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    """What coming near the most tokens that an episode may generate costs."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What searching costs, so that training keeps to so many searches a question."""
    turn_credit: TurnCreditConfig = field(default_factory=TurnCreditConfig)
    """Credit for what each turn newly found, beside the advantage of the episode."""
    gold_logprob: GoldLogprobConfig = field(default_factory=GoldLogprobConfig)
    """How likely the accepted answer is after each episode's searches (``gold_logprob`` in the metrics)."""
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    """More tasks for a step whose groups have equal rewards."""
    drop_uniform_groups: bool = False
    """Leave out groups with nothing to compare, their rewards (with overlong penalty), gdpo's parts and turn credit all
    equal: they carry no gradient, only the batch's normaliser changes."""
    mixed_traces: int = 0
    """Traces of the warm-up that are trained on with each step, shuffled among its samples, so that what was taught
    stays known. Needs ``loss.name=weighted_nll``, as nobody sampled them. A trace without a ``weight`` counts as much
    as a whole group under the advantage ``softmax``."""
    passes: int = 1
    """How often a step trains on its samples, shuffled anew each time; the optimizer steps of all passes together are
    ``learner.updates_per_batch``."""
    fresh_optimizer: bool = False
    """Whether each step begins with a fresh optimizer, whose schedule spans that step, and with the policy as it then
    is for a reference: training anew from the last weights, as ExSearch's program does in each iteration."""
    loss: LossConfig = field(default_factory=LossConfig)
    """LOSS: advantages to gradients."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    """When training looks like collapsing."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer of the reinforcement phase."""
    save_every_steps: int = 10
    """Steps between checkpoints of the whole loop: what a killed run can lose at most."""
    save_in_background: bool = False
    """Go on training while a checkpoint is written, for a copy of it in host memory. Until it is whole, a killed run
    goes on from the one before."""
    keep_checkpoints: int = 2
    """Newest resumable checkpoints kept; the best ones are kept besides."""
    keep_trajectory_steps: int = 20
    """Newest steps whose trajectories stay on disk."""

    @property
    def drops_uniform(self) -> bool:
        """Whether groups whose rewards are all equal are left out."""
        return self.drop_uniform_groups or self.dynamic_sampling.enabled

    @property
    def loss_in_force(self) -> LossConfig:
        """``loss``, with the correction that ``max_staleness`` asks for where none was chosen."""
        return self.loss.for_staleness(self.max_staleness)

    def __post_init__(self) -> None:
        at_least(self, 1, "prompts_per_step", "samples_per_prompt", "passes", "save_every_steps", "keep_checkpoints")
        at_least(self, 0, "steps", "max_staleness", "mixed_traces", "keep_trajectory_steps")
        if self.mixed_traces and self.loss.name != "weighted_nll":
            raise UserError(
                f"mixed_traces={self.mixed_traces} with loss.name={self.loss.name}: nobody sampled them: write "
                "loss.name=weighted_nll, or mixed_traces=0"
            )


@dataclass(frozen=True)
class DecodingConfig:
    """One way of drawing answers that a model is measured with."""

    name: str
    """What it is called in results, metrics and file names: letters, digits, ``-`` and ``_``."""
    temperature: float = 1.0
    """0 takes the most likely token each time."""
    top_p: float = 1.0
    """Nucleus that tokens are drawn from."""
    top_k: int = -1
    """How many of the likeliest tokens are drawn from; -1 is all of them."""
    samples: int = 1
    """Episodes of each task; scores are their mean."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[A-Za-z0-9_-]+", self.name) is None:
            raise UserError(f"name is {self.name!r}: write letters, digits, - and _ alone, as files are named after it")
        at_least(self, 0, "temperature")
        above(self, 0, "top_p", most=1)
        if self.top_k != -1 and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: write 1 or more, or -1 for all tokens")
        at_least(self, 1, "samples")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(f"samples is {self.samples} with temperature=0: they would all be alike; write 1")

    @property
    def sampling(self) -> Sampling:
        """How its episodes draw tokens."""
        return Sampling(self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured during a run, and what the best checkpoint is chosen by."""

    every_steps: int = 10
    """Reinforcement steps between evaluations on dev; the last step is always evaluated."""
    dev_tasks: int | None = None
    """Dev tasks evaluated, the first of the file; null means all of them."""
    test_tasks: int | None = None
    """Test tasks evaluated before and after training, the first of the file; null means all of them."""
    decodings: tuple[DecodingConfig, ...] = (
        DecodingConfig(name="greedy", temperature=0.0),
        DecodingConfig(name="sampled"),
    )
    """Ways of drawing answers, each measured on all tasks, side by side."""
    select_by: str = "sampled"
    """The decoding that picks the best checkpoint. Greedy EM jumps when a behaviour passes half; sampled EM is
    smooth."""
    metric: str = "em"
    """The number of its dev results that picks it, the higher the better: ``em``, ``f1``, ``em_two_hop``, ``f1/<data
    set>``, ``reward``, or any part of the reward."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every_steps", "dev_tasks", "test_tasks")
        names = [decoding.name for decoding in self.decodings]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"decodings are called {', '.join(names) or 'nothing'}: write one or more, each of its name"
            )
        if self.select_by not in names:
            raise UserError(f"select_by is {self.select_by}: write the name of one of decodings ({', '.join(names)})")
