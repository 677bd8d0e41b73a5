"""What a run takes of memory and disk, by part: arithmetic on the model's shape and the configuration, in GiB.

Weights, gradients, optimizer, caches and checkpoints are exact up to rounding; activations are an estimate. Nothing is
started and no torch is imported.
"""

from __future__ import annotations

from search_agent.config import RunConfig
from verl.learner.config import LoraConfig
from verl.trainer.model_shape import ModelShape

_GIB = 2**30
HELD = ("weights", "gradients", "optimizer", "reference", "critic")
"""The parts of a learner rank that stay between steps; the others are there while it computes."""
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def learner_gib(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """One learner rank, by part. FSDP shards what is held between steps, and gathers what a layer computes with."""
    learner, ranks = config.learner, config.cluster.learner_ranks
    held, computed = _BYTES[learner.parameter_dtype], _BYTES[learner.compute_dtype]
    adapters = None if config.warmup.all_weights and config.warmup.steps else learner.lora
    trained = shape.parameters if adapters is None else _adapter_parameters(adapters, shape)
    needs_reference = config.trainer.loss.needs_reference or config.trainer.kl_reward.coefficient > 0
    has_copy = learner.lora is None and needs_reference
    parts = {
        "weights": shape.parameters * held / ranks,
        "gradients": trained * held / ranks,
        "optimizer": trained * held * 2 / ranks,
        "reference": shape.parameters * held / ranks if has_copy else 0,
        "critic": 4 * shape.parameters * held / ranks if config.trainer.advantage.needs_critic else 0,
        "gathered layers": _gathered_parameters(shape, ranks) * computed if ranks > 1 or held != computed else 0,
        "activations": _activation_bytes(config, shape, computed),
        "logits": learner.max_logits_mib * 2**20 * 2,
    }
    return {name: size / _GIB for name, size in parts.items() if size}


def engine_weights_gib(config: RunConfig, shape: ModelShape) -> float:
    """The weights on one rank of a rollout worker's engine."""
    engine = config.rollout.engine
    return shape.parameters * _BYTES[engine.dtype] / engine.tensor_parallel_size / _GIB


def kv_cache_gib(config: RunConfig, shape: ModelShape) -> float:
    """What is left for keys and values on one rank of an engine; below 0 if not even the weights fit."""
    engine, cluster = config.rollout.engine, config.cluster
    if not cluster.gpus_per_process:
        return engine.kv_cache_gib
    return engine.gpu_memory_share * cluster.gpu_memory_gib - engine_weights_gib(config, shape)


def kv_cache_tokens(config: RunConfig, shape: ModelShape) -> int:
    """How many tokens the KV cache of an engine holds."""
    engine = config.rollout.engine
    token = shape.kv_bytes_per_token(_BYTES[engine.dtype]) / engine.tensor_parallel_size
    return int(kv_cache_gib(config, shape) * _GIB / token)


def machine_gib(config: RunConfig, shape: ModelShape) -> float:
    """What a run without GPUs takes of this machine's memory for certain: all but activations and libraries."""
    learner = learner_gib(config, shape)
    rank = sum(gib for name, gib in learner.items() if name in HELD)
    engine = config.rollout.engine
    worker = (engine_weights_gib(config, shape) + kv_cache_gib(config, shape)) * engine.tensor_parallel_size
    shared = config.cluster.object_store_mib / 1024
    return config.cluster.learner_ranks * rank + config.rollout.workers * worker + shared


def checkpoint_gib(config: RunConfig, shape: ModelShape) -> tuple[float, float]:
    """A checkpoint's part to resume from (weights and two moments), and its part for use."""
    resumable = shape.parameters * _BYTES[config.learner.parameter_dtype] * 3 / _GIB
    return resumable, shape.parameters * _BYTES[config.rollout.engine.dtype] / _GIB


def disk_gib(config: RunConfig, shape: ModelShape) -> float:
    """What the run's checkpoints take on disk at most: the newest ones, and the weights of the two best."""
    resumable, exported = checkpoint_gib(config, shape)
    return config.trainer.keep_checkpoints * (resumable + exported) + 2 * exported


def _adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """Adapters on every linear layer of the decoder: rank x (inputs + outputs) each; fewer ``targets`` take less."""
    hidden, kv, ffn = shape.hidden, shape.kv_heads * shape.head_size, shape.ffn
    ends = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + ffn)
    return lora.rank * ends * shape.layers


def _gathered_parameters(shape: ModelShape, ranks: int) -> int:
    """The layer at work, the next one and the embeddings; a lone rank keeps all that it has gathered."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return 2 * shape.layer_parameters + embeddings if ranks > 1 else shape.parameters


def _activation_bytes(config: RunConfig, shape: ModelShape, computed: int) -> float:
    """What the backward pass keeps for one micro-batch.

    About 14 hidden-wide and 3 MLP-wide tensors a layer; with checkpointing one hidden-wide tensor a layer, and one
    layer in full while it is recomputed.
    """
    tokens = config.learner.max_tokens_per_microbatch
    layer = tokens * computed * (14 * shape.hidden + 3 * shape.ffn)
    if config.learner.gradient_checkpointing:
        return layer + tokens * computed * shape.hidden * shape.layers
    return layer * shape.layers
