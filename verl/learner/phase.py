"""What the learner is doing, in one value: from ``begin_phase`` to the next one, and in every checkpoint.

All that follows from it is said here and nowhere else: how many optimizer steps the schedule spans, which weights move,
what the reference is, and what a checkpoint must hold besides. No torch: the plan of a run reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from verl.algorithms.config import AdvantageConfig, LossConfig
from verl.learner.config import OptimizerConfig

Weights = Literal["all", "adapters", "base"]
"""A part of the weights: all of a model without adapters; its adapters; or the model under them."""
ReferenceKind = Literal["none", "off", "adapters", "copy"]
"""How the policy at the start of the phase is had again: not at all; by switching adapters off that had added nothing;
by putting the adapters' values of that time in their place; by a frozen copy of the whole policy."""


@dataclass(frozen=True)
class Phase:
    """Warm-up or reinforcement. What the learner itself knows (``lora``, ``moved``) it fills in."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule, which ends with the phase."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How credit moves the weights."""
    batches: int = 1
    """How often ``update`` will be called."""
    updates_per_batch: int = 1
    """Optimizer steps that each of these batches is split into."""
    advantage: AdvantageConfig | None = None
    """One that needs a critic gives the phase a critic: ``update`` then takes the rewards of tokens."""
    keep_reference: bool = False
    """Keep a reference though the loss reads none (KL in the reward)."""
    all_weights: bool = False
    """With adapters: train the model under them, and not them."""
    lora: bool = False
    """Whether the model has adapters."""
    moved: tuple[Weights, ...] = ()
    """What earlier phases trained: no file of the model has it."""

    def after(self, previous: Phase | None, *, lora: bool) -> Phase:
        """This phase where it follows ``previous`` in a learner with or without adapters."""
        return replace(self, lora=lora, moved=() if previous is None else previous.moved_after)

    @property
    def optimizer_steps(self) -> int:
        """How many steps the schedule spans."""
        return self.batches * self.updates_per_batch

    @property
    def trained(self) -> Weights:
        """What this phase moves."""
        if not self.lora:
            return "all"
        return "base" if self.all_weights else "adapters"

    @property
    def reference(self) -> ReferenceKind:
        """How the phase has its reference, which is the policy as it was when the phase began, whatever had moved."""
        if not (self.keep_reference or self.loss.needs_reference):
            return "none"
        if self.trained != "adapters":
            return "copy"
        return "adapters" if "adapters" in self.moved else "off"

    @property
    def saves_reference(self) -> bool:
        """Whether a checkpoint holds the reference: it cannot be had from the model's folder any more."""
        return self.reference == "adapters" or (self.reference == "copy" and bool(self.moved))

    @property
    def saves_untrained(self) -> Weights | None:
        """Which weights rest in this phase but have moved before, so that a checkpoint holds them too."""
        return next((part for part in self.moved if part != self.trained), None)

    @property
    def has_critic(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return self.advantage is not None and self.advantage.needs_critic

    @property
    def moved_after(self) -> tuple[Weights, ...]:
        """``moved`` of the phase that follows."""
        return tuple(dict.fromkeys((*self.moved, self.trained)))
