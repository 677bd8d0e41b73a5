"""Seconds a step, hours and cost of a run, from the measured rates of a card: pure arithmetic, and rough.

Times of another model than the measured one are scaled: the engine's by weights on a card, the learner's by formula
FLOPs, the sync by bytes. Searches, the tail of the longest episode, evaluation, warm-up and start are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search_agent.config import RunConfig
from search_agent.planning.rates import Rates, rates_of
from verl.learner.holdings import BYTES
from verl.trainer.model_shape import ModelShape
from verl.trainer.phases import reinforcement_phase

_PASSES = 3
"""A backward pass is two forward passes' worth of matmuls."""


@dataclass(frozen=True)
class Work:
    """What one step asks for."""

    episodes: int
    policy_tokens: int
    """Of an episode."""
    read_tokens: int
    """Of an episode: prompt and observations, each read once."""
    train_flops: float
    """Of all episodes together, formula FLOPs, forward passes besides training included."""
    sync_gib: float


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step, by part; None for a part whose rate was not measured."""

    rollout_s: float | None
    learning_s: float | None
    sync_s: float | None
    overlapped: bool
    """Whether rollout and learning go on at the same time (staleness, on cards of their own)."""

    @property
    def parts(self) -> dict[str, float]:
        """Those that are known."""
        named = {"rollout": self.rollout_s, "learning": self.learning_s, "sync": self.sync_s}
        return {name: seconds for name, seconds in named.items() if seconds is not None}

    @property
    def step_s(self) -> float:
        """A whole step, of the parts that are known."""
        apart = [self.parts.get("rollout", 0.0), self.parts.get("learning", 0.0)]
        return (max(apart) if self.overlapped else sum(apart)) + self.parts.get("sync", 0.0)

    @property
    def bound(self) -> str:
        """The part that takes the most."""
        return max(self.parts, key=lambda name: self.parts[name])


def forward_flops(shape: ModelShape, tokens: int, policy_tokens: int) -> float:
    """Of one sequence: matrices of the layers, causal attention by half, the head where it runs.

    The same count as ``verl.learner.flops`` makes of a loaded model; here of a shape alone.
    """
    kv = shape.kv_heads * shape.head_size
    matrices = shape.layers * (2 * shape.hidden**2 + 2 * shape.hidden * kv + 3 * shape.hidden * shape.ffn)
    attention = shape.layers * shape.heads * shape.head_size * tokens
    return 2.0 * (tokens * (matrices + attention) + policy_tokens * shape.hidden * shape.vocabulary)


def work_of(config: RunConfig, shape: ModelShape) -> Work:
    """A step of reinforcement, its episodes as long as the configuration says, or as its bounds allow."""
    bounds, context, told = config.bounds, config.rollout.engine.max_context_tokens, config.prediction
    tokens = min(told.episode_tokens or bounds.max_episode_tokens, context)
    written = min(told.policy_tokens or config.max_policy_tokens, tokens)
    episodes = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
    phase = reinforcement_phase(config.trainer, config.learner.updates_per_batch)
    passes = _PASSES + config.learner.gradient_checkpointing
    scored = (phase.reference != "none") + (phase.updates_per_batch > 1)
    # A critic has one pass for values, and is trained as the policy is; its head is one number wide.
    flops = forward_flops(shape, tokens, written) * (passes * config.trainer.passes + scored)
    flops += forward_flops(shape, tokens, 0) * (passes + 1) * phase.has_critic
    size = shape.parameters * BYTES[config.rollout.engine.dtype] / 2**30
    return Work(episodes, written, tokens - written, episodes * flops, size)


def predict(config: RunConfig, shape: ModelShape, rates: Rates) -> Prediction:
    """The parts of a step on cards with these rates."""
    work, rollout = work_of(config, shape), config.rollout
    engine = rollout.engine
    rollout_s = learning_s = sync_s = None
    if rates.step_s is not None:
        episodes = math.ceil(work.episodes / rollout.workers)
        at_once = min(episodes, engine.max_concurrent_requests)
        # Not fewer steps than an episode has tokens; where not all fit, requests wait for one another's end.
        steps = work.policy_tokens * episodes / at_once
        scale = shape.parameters / rates.parameters / engine.tensor_parallel_size
        rollout_s = scale * (steps * rates.decode_s(at_once) + episodes * work.read_tokens * rates.read_s)
    if rates.learn_tflops is not None:
        learning_s = work.train_flops / config.cluster.learner_ranks / (rates.learn_tflops * 1e12)
    if (speed := rates.sync_gib_per_s.get(engine.weight_transfer)) is not None:
        sync_s = work.sync_gib / speed
    apart = config.cluster.placement == "split" and config.trainer.max_staleness > 0
    return Prediction(rollout_s, learning_s, sync_s, apart)


def rows(config: RunConfig, shape: ModelShape, gpus: float, table: Sequence[Rates]) -> list[tuple[str, str]]:
    """The plan's section; ``gpus`` is what the run claims."""
    told, on_cpu = config.prediction, not config.cluster.gpus_per_process
    card = "CPU" if on_cpu else told.card
    if card is None:
        return [("nothing", "name the card: prediction.card=H200, say")]
    rates = rates_of(card, list(table))
    if rates is None:
        known = ", ".join(dict.fromkeys(row.card for row in table)) or "none"
        return [("nothing", f"no rate was measured on {card} (docs/results/rates.yaml has {known})")]
    found = predict(config, shape, rates)
    if not found.parts:
        return [("nothing", f"the row of {card} has no rate that this run needs")]
    longest = told.policy_tokens is None or told.episode_tokens is None
    parts = ", ".join(f"{name} {_round(seconds)} s" for name, seconds in found.parts.items())
    missing = [name for name in ("rollout", "learning", "sync") if name not in found.parts]
    hours = config.trainer.steps * found.step_s / 3600
    cost = []
    if told.price_per_gpu_hour is not None and gpus:
        cost = [("cost", f"{hours * gpus * told.price_per_gpu_hour:,.2f} ({gpus:g} GPUs)")]
    return [
        ("a step", f"{'at most ' * longest}{_round(found.step_s)} s: {parts}; bound by {found.bound}"),
        *([("not in it", f"{', '.join(missing)}: no such rate of {card}")] if missing else []),
        ("reinforcement", f"{'at most ' * longest}{_round(hours)} hours, without evaluation, warm-up and start"),
        *cost,
        ("rates", f"{rates.card}, {rates.date}, {rates.commit}: {rates.parameters / 1e9:.2g} B parameters, scaled"),
        *([("lengths", "the bounds'; known ones: prediction.policy_tokens, prediction.episode_tokens")] * longest),
    ]


def _round(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
