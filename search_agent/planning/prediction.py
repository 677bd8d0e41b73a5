"""Seconds a step, hours and cost of a run, from the measured rates of a card: pure arithmetic, and rough.

    step     = rollout + learning (the longer of the two where they overlap) + sync
    rollout  = engine steps, as many as the longest episode has tokens or as all tokens fill batches
             + tokens read + turns, each times its rate;
               no less than the longest episode alone in the engine, and its wait for searches
    learning = formula FLOPs of the episodes trained on / the learner's FLOP/s
    sync     = a push + bytes / the carrier's speed

Times of another model than the measured one are scaled: the card's part of an engine's by weights on a card (the host's
stays), the learner's by formula FLOPs, the sync by bytes. Groups played again in place of dropped ones, evaluation,
warm-up and start are left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from search_agent.config import RunConfig
from search_agent.planning.rates import PredictionConfig, Rates, rates_of
from search_agent.planning.sizes import learner_config
from verl.learner.holdings import BYTES
from verl.model_shape import ModelShape
from verl.trainer.phases import reinforcement_phase

_PASSES = 3
"""A backward pass is two forward passes' worth of matmuls."""


@dataclass(frozen=True)
class Work:
    """What one step asks for."""

    episodes: int
    policy_tokens: int
    """Of an episode."""
    longest_tokens: int
    """Of the policy, in the longest episode."""
    read_tokens: int
    """Of an episode: prompt and observations, each read once."""
    turns: float
    """Of an episode."""
    wait_s: float
    """For the searches of the episode that waits the most."""
    train_flops: float
    """Of all episodes that are trained on, formula FLOPs, forward passes besides training included."""
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
    longest = max(written, min(told.longest_tokens or config.max_policy_tokens, context))
    turns = told.turns or 1.0 + getattr(bounds, "max_turns", 0)
    episodes = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
    phase = reinforcement_phase(config.trainer, config.learner.updates_per_batch)
    passes = _PASSES + learner_config(config, shape).recomputed(shape.layers) / shape.layers
    scored = (phase.reference != "none") + (phase.updates_per_batch > 1)
    # A critic has one pass for values, and is trained as the policy is; its head is one number wide.
    flops = forward_flops(shape, tokens, written) * (passes * config.trainer.passes + scored)
    flops += forward_flops(shape, tokens, 0) * (passes + 1) * phase.has_critic
    flops *= episodes * (1.0 if told.trained_share is None else told.trained_share)
    size = shape.parameters * BYTES[config.rollout.engine.dtype] / 2**30
    return Work(episodes, written, longest, tokens - written, turns, told.wait_s or 0.0, flops, size)


def predict(config: RunConfig, shape: ModelShape, rates: Rates) -> Prediction:
    """The parts of a step on cards with these rates."""
    work = work_of(config, shape)
    rollout_s = learning_s = sync_s = None
    if rates.step_s is not None:
        rollout_s = _rollout_s(config, work, rates, shape.parameters / rates.parameters)
    if rates.learn_tflops is not None:
        learning_s = work.train_flops / config.cluster.learner_ranks / (rates.learn_tflops * 1e12)
    if (speed := rates.sync_gib_per_s.get(config.rollout.engine.weight_transfer)) is not None:
        sync_s = rates.push_s + work.sync_gib / speed
    apart = config.cluster.placement == "split" and config.trainer.max_staleness > 0
    return Prediction(rollout_s, learning_s, sync_s, apart)


def _rollout_s(config: RunConfig, work: Work, rates: Rates, scale: float) -> float:
    """One engine's share of a step; ``scale`` is this model's size by that of the measured one."""
    engine = config.rollout.engine
    episodes = math.ceil(work.episodes / config.rollout.workers)
    written = episodes * work.policy_tokens
    # Where not all fit, requests wait for one another's end; where few are left, steps go on for those.
    steps = max(work.longest_tokens, written / min(episodes, engine.max_concurrent_requests))
    decoding = steps * rates.decode_s(written / steps)
    scale /= engine.tensor_parallel_size
    slower = rates.slower(scale)
    reading = scale * episodes * work.read_tokens * rates.read_s
    working = slower * decoding + reading + episodes * work.turns * rates.turn_s
    # Others are played while one waits; it cannot end before its own tokens and searches have.
    return max(working, slower * work.longest_tokens * rates.decode_s(1) + work.wait_s)


def steps_of(metrics: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of ``metrics.jsonl`` that are steps of reinforcement, without the first, which warms up."""
    rows = [row for row in metrics if "seconds/step" in row]
    return rows[1:] or rows


def as_recorded(config: RunConfig, steps: Sequence[Mapping[str, Any]]) -> RunConfig:
    """With what the episodes of a run were, in the mean of its steps, where the configuration does not say."""
    if not steps:
        return config
    episodes = config.trainer.prompts_per_step * config.trainer.samples_per_prompt

    def mean(key: str) -> float | None:
        """None for a run of an older version, and for one that does not count it."""
        return statistics.mean(row[key] for row in steps) if all(key in row for row in steps) else None

    def tokens(key: str, least: int) -> int | None:
        return None if (seen := mean(key)) is None else max(least, round(seen))

    trained = mean("trained_episodes")
    written = config.prediction.policy_tokens or tokens("policy_tokens", 1)
    seen = {
        "policy_tokens": written,
        "episode_tokens": tokens("tokens", written or 1),
        "longest_tokens": tokens("policy_tokens_max", written or 1),
        "turns": mean("turns"),
        "wait_s": mean("seconds/longest_wait"),
        "trained_share": None if trained is None else min(1.0, trained / episodes),
    }
    told = {key: value for key, value in asdict(config.prediction).items() if value is not None}
    return replace(config, prediction=PredictionConfig(**{**seen, **told}))


def against_measured(
    config: RunConfig, shape: ModelShape, steps: Sequence[Mapping[str, Any]], table: Sequence[Rates]
) -> str | None:
    """A step of a run that ended beside what its card's rates give for episodes of its lengths; None without either."""
    rates = rates_of(_card(config) or "", list(table))
    if rates is None or not steps:
        return None
    found = predict(as_recorded(config, steps), shape, rates)
    if not found.parts:
        return None
    step, rollout, learn, sync = (
        statistics.median(row[f"seconds/{part}"] for row in steps) for part in ("step", "rollout", "learn", "sync")
    )
    parts = ", ".join(f"{name} {_round(seconds)}" for name, seconds in found.parts.items())
    return (
        f"a step took {_round(step)} s (rollout {_round(rollout)}, learning {_round(learn)}, sync {_round(sync)}); "
        f"{_round(found.step_s)} s by the rates of {rates.card} of {rates.date} ({parts})"
    )


def _card(config: RunConfig) -> str | None:
    return config.prediction.card if config.cluster.gpus_per_process else "CPU"


def rows(config: RunConfig, shape: ModelShape, gpus: float, table: Sequence[Rates]) -> list[tuple[str, str]]:
    """The plan's section; ``gpus`` is what the run claims."""
    told, card = config.prediction, _card(config)
    if card is None:
        return [("nothing", "name the card: prediction.card=H200, say")]
    rates = rates_of(card, list(table))
    if rates is None:
        known = ", ".join(dict.fromkeys(row.card for row in table)) or "none"
        return [("nothing", f"no rate was measured on {card} (docs/results/rates.yaml has {known})")]
    found = predict(config, shape, rates)
    if not found.parts:
        return [("nothing", f"the row of {card} has no rate that this run needs")]
    longest = None in (told.policy_tokens, told.episode_tokens, told.longest_tokens, told.turns)
    assumed = ["episodes as long as the bounds allow (prediction.policy_tokens, .episode_tokens ...)"] * longest
    assumed += ["searches that take no time (prediction.wait_s)"] * (told.wait_s is None)
    if config.trainer.drops_uniform and told.trained_share is None:
        assumed.append("every group trained on (prediction.trained_share)")
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
        *([("assumed", "; ".join(assumed))] if assumed else []),
    ]


def _round(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
