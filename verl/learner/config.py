"""What the learner can be told: how it steps (``OptimizerConfig``) and how it computes (``LearnerConfig``).

The loss is told by ``verl.algorithms.config.LossConfig``. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from verl.algorithms.config import ValueLossConfig
from verl.errors import above, at_least, require, within

Precision = Literal["float32", "bfloat16", "float64"]
HeadPrecision = Literal["auto", "float32", "model"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule for one phase of training (warm-up, reinforcement)."""

    learning_rate: float = 1e-6
    """Peak step size of AdamW. 1e-6 is what full fine-tuning of 1-7 B models by reinforcement commonly uses."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running mean and running square, per step; torch's defaults."""
    weight_decay: float = 0.01
    """Decoupled decay per step, times the learning rate; 0.01 as in AdamW's paper."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0 to its peak; 0 starts at the peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the rise: stay at the peak, or fall to ``final_lr_fraction`` of it until the phase ends, in a line or along
    half a cosine."""
    final_lr_fraction: float = 0.0
    """Where ``linear`` and ``cosine`` end, as a fraction of the peak; unused by ``constant``."""
    grad_clip: float = field(default=1.0, metadata={"inf": "no clipping"})
    """Bound on the global 2-norm of the gradient; a larger gradient is scaled down to it. 1.0 is the field's habit."""

    def __post_init__(self) -> None:
        above(self, 0, "learning_rate", "grad_clip")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", list(self.betas), "write two numbers in [0, 1)")
        at_least(self, 0, "weight_decay", "warmup_steps")
        within(self, 0, 1, "final_lr_fraction")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of all weights (Hu et al. 2021): little optimizer memory, a reference for nothing."""

    rank: int = 32
    """Rank of what is added to a weight matrix. Reinforcement carries little information a step: 8 to 32 is enough."""
    alpha: int = 64
    """What is added is scaled by alpha / rank; twice the rank is the field's habit."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers to adapt (``q_proj``, ``up_proj``); empty adapts all of the decoder."""
    plus_ratio: float = 1.0
    """LoRA+ (Hayou et al. 2024): how many times the learning rate the matrices that begin at zero take; 16 is its
    authors' advice for fine-tuning, 1 is plain LoRA."""
    seed: int = 0
    """Seed of the adapters' initial weights."""
    sync: Literal["merged", "adapter"] = "adapter"
    """What travels to the engines after each step: whole weights with the adapters merged in, or the adapters alone,
    which each engine adds to a base that it was given once and that stays in each node's shared memory. A transfer from
    GPU to GPU (``rollout.engine.weight_transfer``) always sends merged weights."""

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        at_least(self, 1, "rank", "alpha")
        above(self, 0, "plus_ratio")
        at_least(self, 0, "seed")


@dataclass(frozen=True)
class CriticConfig:
    """The value model of PPO; read where ``advantage.name`` is gae."""

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    """Its own AdamW; ten times the policy's usual rate, since values start from nothing."""
    loss: ValueLossConfig = field(default_factory=ValueLossConfig)
    """How values move towards returns."""


@dataclass(frozen=True)
class LearnerConfig:
    """How a batch becomes steps, and in which precision and memory it is computed."""

    max_tokens_per_microbatch: int = 16384
    """Hard cap on the tokens of one forward pass on one rank: bounds memory. A longer sequence is refused."""
    updates_per_batch: int = 1
    """Optimizer steps a batch is split into. With 1 the old log-probs are the current ones: no extra forward pass."""
    parameter_dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights that the optimizer holds. float64 is for exactness tests."""
    compute_dtype: Precision = "float32"
    """Precision of forward and backward; gradients are summed over ranks in ``parameter_dtype``. bfloat16 on GPUs."""
    head_dtype: HeadPrecision = "auto"
    """Precision of the LM head's results where less is computed in: ``float32`` writes logits as they are summed,
    ``model`` rounds them (bfloat16: a logit of 20 by up to 0.06). ``auto`` is ``float32`` on a GPU, where it saves a
    copy of the logits, and ``model`` on a CPU, where it costs a tenth of a step. ``rollout.engine`` has the same."""
    gradient_checkpointing: bool | int | Literal["auto"] = "auto"
    """Layers that are computed again in the backward pass and keep their input alone until then: all (true: activation
    memory falls, compute rises by about a third), none, or so many from the first. ``auto`` is as few as the memory of
    a GPU needs by the plan (``cluster.gpu_memory_gib``; ``dry_run`` says how many), on a CPU none. Results are the
    same."""
    shard_ranks: int | None = None
    """Ranks that one copy of the weights is sharded over; other ranks hold further copies. Null is all of them."""
    sequence_ranks: int = 1
    """Neighbouring ranks that compute one micro-batch together, each a slice of its tokens: for contexts too long for
    one GPU. The cap then holds for each of them. Must divide the number of attention heads."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in host memory instead of a GPU's: AdamW's moments but while a step is taken, or also weights and
    gradients, gathered layer by layer for each pass (the step is then taken on the CPU). Results are the same."""
    max_logits_mib: int = 256
    """Bound on the logits held at once by the LM head, in MiB; above it, chunks are recomputed in the backward pass."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; null trains all. Exports have them merged in."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The critic's optimizer and loss; there is a critic only where the advantage needs one."""
    max_skipped_steps: int = 3
    """Steps in a row that a non-finite loss or gradient may skip; one more raises ``NonFiniteError``."""

    def recomputed(self, layers: int) -> int:
        """How many of so many layers are computed again, the first ones. Raises ValueError while that is ``auto``."""
        told = self.gradient_checkpointing
        if isinstance(told, str):
            raise ValueError("gradient_checkpointing=auto has to become a number first")
        return layers if told is True else min(int(told), layers)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that fits a micro-batch, of all ranks that share it."""
        return self.max_tokens_per_microbatch * self.sequence_ranks

    def __post_init__(self) -> None:
        at_least(self, 1, "max_tokens_per_microbatch", "updates_per_batch", "max_logits_mib", "sequence_ranks")
        at_least(self, 1, "shard_ranks")
        at_least(self, 0, "max_skipped_steps", *["gradient_checkpointing"] * (self.gradient_checkpointing != "auto"))
