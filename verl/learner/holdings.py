"""What one rank holds and what a checkpoint takes, in bytes, counted from the learner's own description of its phase.

No torch: the plan of a run reads it before anything is started. A test compares it with what a learner holds and
writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.learner.config import LearnerConfig
from verl.learner.phase import Phase, Weights

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
BLOCK_MIB = 4
"""Logits are turned into softmax and sums this much at a time where no kernel does it in one pass: a block then stays
in a CPU's cache over all passes."""
_MOMENTS = 2


@dataclass(frozen=True)
class Counts:
    """How many weights there are of each kind."""

    policy: int
    """Without adapters."""
    adapters: int
    critic: int
    layer: int
    """One decoder layer."""
    outside: int
    """Embeddings, head and last norm, and what sees pictures: gathered and freed together."""
    untrained: int = 0
    """Of the policy, what no phase trains: what sees pictures."""

    def of(self, part: Weights) -> int:
        """Weights of a part of the policy that can be trained."""
        return self.adapters if part == "adapters" else self.policy - self.untrained


@dataclass(frozen=True)
class Holding:
    """Bytes of one rank."""

    held: int
    """Always."""
    computing: int = 0
    """Besides, while a batch is trained on."""
    stepping: int = 0
    """Besides, while the optimizer takes its step, when activations are gone."""
    on_host: bool = False
    """Whether ``held`` lies in host memory where there is a GPU."""


def holdings(config: LearnerConfig, phase: Phase, counts: Counts, ranks: int) -> dict[str, Holding]:
    """Everything but what one micro-batch takes, by part. FSDP shards what is held and gathers a layer at a time."""
    shards = config.shard_ranks or ranks
    full, half = BYTES[config.parameter_dtype], BYTES[config.compute_dtype]
    away, resting = config.offload == "all", config.offload != "none"

    def sharded(weights: int, size: int) -> int:
        return -(-weights * size // shards)

    def moments(weights: int) -> Holding:
        size = _MOMENTS * sharded(weights, full)
        return Holding(size, stepping=size if config.offload == "optimizer" else 0, on_host=resting)

    trained = counts.of(phase.trained)
    adapters = counts.adapters if phase.lora else 0
    parts = {
        "weights": Holding(sharded(counts.policy + adapters, full), on_host=away),
        "gradients": Holding(0, 0 if away else sharded(trained, full)),
        "optimizer": moments(trained),
    }
    if phase.reference == "copy":
        parts["reference"] = Holding(sharded(counts.policy, half), on_host=resting)
    elif phase.reference == "adapters":
        parts["reference"] = Holding(sharded(adapters, full), on_host=away)
    if phase.has_critic:
        parts["critic"] = Holding(sharded(counts.critic, full), on_host=away)
        parts["critic's optimizer"] = moments(counts.critic)
    # At work: the layer, the next one on its way, and what lies outside; alone, nothing is freed until the end.
    gathered = 2 * counts.layer + counts.outside if ranks > 1 or away else counts.policy + adapters
    parts["gathered layers"] = Holding(0, gathered * half)
    return parts


def logits_bytes(config: LearnerConfig, vocabulary: int, *, on_gpu: bool) -> int:
    """The logits of one chunk and, beside them, two of the blocks they are worked on in, or a copy in half precision.

    ``max_logits_mib`` bounds logits and copy together.
    """
    full, half = max(BYTES["float32"], BYTES[config.compute_dtype]), BYTES[config.compute_dtype]
    copy = half if half < full else 0
    rows = min(config.max_tokens_per_microbatch, max(1, (config.max_logits_mib << 20) // (vocabulary * (full + copy))))
    logits = rows * vocabulary * full
    blocks = 0 if on_gpu else 2 * min(logits, BLOCK_MIB << 20)
    return logits + max(blocks, rows * vocabulary * copy)


def checkpoint_bytes(config: LearnerConfig, phase: Phase, counts: Counts) -> dict[str, int]:
    """What all ranks together write, after a step: ``policy``, ``critic``, ``still`` (once a phase), and ``hf``."""
    full, half = BYTES[config.parameter_dtype], BYTES[config.compute_dtype]
    still = counts.of(phase.saves_untrained) * full if phase.saves_untrained else 0
    if phase.saves_reference:
        still += counts.policy * half if phase.reference == "copy" else counts.adapters * full
    return {
        "policy": counts.of(phase.trained) * full * (1 + _MOMENTS),
        "critic": counts.critic * full * (1 + _MOMENTS) if phase.has_critic else 0,
        "still": still,
        "hf": counts.policy * half,
    }
