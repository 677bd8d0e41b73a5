"""What a run takes of memory and disk, by part: arithmetic on the model's shape and the configuration, in GiB.

What the learner holds and writes is counted by ``verl.learner.holdings``, from the phases of the run; what a
micro-batch takes by ``verl.learner.memory``, to a tenth. Nothing is started and no torch is imported.
"""

from __future__ import annotations

from dataclasses import replace

from search_agent.config import RunConfig
from verl.learner.config import LearnerConfig
from verl.learner.holdings import BYTES, Holding, checkpoint_bytes, holdings
from verl.learner.memory import CONTEXT_BYTES, MARGIN, counts_of, layers_to_recompute, taken_bytes
from verl.learner.phase import Phase
from verl.model_shape import ModelShape
from verl.sync import BUCKET_BYTES
from verl.trainer.phases import phases

_GIB = 2**30
_REPORTED = 79 / 80
"""Of the size that a card is sold by, what it reports."""
_ASLEEP_GIB = 3.0
"""What an engine asleep on the learner's card keeps besides its context: graphs and buffers. 1.3 GiB, context and all,
were seen on an H200 with a model of 1.5 B; others have reported 1.5 to 4."""


def usable_gib(config: RunConfig) -> float:
    """Of one card, for tensors: what it reports, without the contexts of the processes on it."""
    processes = 2 if config.cluster.placement == "shared" else 1
    return config.cluster.gpu_memory_gib * _REPORTED - processes * CONTEXT_BYTES / _GIB


def learner_config(config: RunConfig, shape: ModelShape) -> LearnerConfig:
    """The learner's, with how many layers it computes again as a number where the plan chooses it."""
    learner, cluster, layers = config.learner, config.cluster, 0
    if learner.gradient_checkpointing != "auto":
        return learner
    if cluster.gpus_per_process:
        asleep = _ASLEEP_GIB if cluster.placement == "shared" else 0.0
        room = (usable_gib(config) - asleep - MARGIN * cluster.gpu_memory_gib) * _GIB
        layers = layers_to_recompute(learner, shape, _phases(config), cluster.learner_ranks, int(room))
    return replace(learner, gradient_checkpointing=layers)


def learner_gib(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """One learner rank at its most, by part, on its device: in the phase that takes the most."""
    learner, ranks = learner_config(config, shape), config.cluster.learner_ranks
    on_gpu = bool(config.cluster.gpus_per_process)
    found = [taken_bytes(learner, shape, phase, ranks, on_gpu=on_gpu) for phase in _phases(config)]
    most = max(found, key=lambda parts: sum(parts.values()))
    return {name: size / _GIB for name, size in most.items() if size}


def held_gib(config: RunConfig, shape: ModelShape) -> tuple[float, float]:
    """What one learner rank holds between steps: on its device, and in host memory for it."""
    device = host = 0
    for phase in _phases(config):
        parts = _holdings(config, shape, phase).values()
        away = sum(part.held for part in parts if part.on_host) if config.cluster.gpus_per_process else 0
        device, host = max(device, sum(part.held for part in parts) - away), max(host, away)
    return device / _GIB, host / _GIB


def host_gib(config: RunConfig, shape: ModelShape) -> float:
    """Host memory of one learner rank on a GPU: what is offloaded, and the copy of a checkpoint that is on its way."""
    held = held_gib(config, shape)[1]
    if not config.trainer.save_in_background:
        return held
    written = max(_checkpoint(config, shape), key=lambda parts: sum(parts.values()))
    share = sum(size for name, size in written.items() if name != "hf") / config.cluster.learner_ranks
    return held + (share + written["hf"]) / _GIB


def engine_weights_gib(config: RunConfig, shape: ModelShape) -> float:
    """The weights on one rank of a rollout worker's engine."""
    engine = config.rollout.engine
    return shape.parameters * BYTES[engine.dtype] / engine.tensor_parallel_size / _GIB


def transfer_gib(config: RunConfig, shape: ModelShape) -> float:
    """On a card that learner and engine share, while weights go from one to the other: a bucket on each side.

    A bucket holds the largest tensor, the embeddings'; the file's way maps host memory and copies by layer.
    """
    engine = config.rollout.engine
    if engine.weight_transfer != "ipc":
        return 0.0
    return 2 * max(BUCKET_BYTES, shape.vocabulary * shape.hidden * BYTES[engine.dtype]) / _GIB


def shared_memory_gib(config: RunConfig, shape: ModelShape) -> float:
    """Weights in a node's ``/dev/shm``: two versions while one takes the place of another.

    Where they travel by GPU it is one, for engines that join and the last evaluation.
    """
    versions = 2 if config.rollout.engine.weight_transfer == "shm" else 1
    return versions * shape.parameters * BYTES[config.rollout.engine.dtype] / _GIB


def kv_cache_gib(config: RunConfig, shape: ModelShape) -> float:
    """What is left for keys and values on one rank of an engine; below 0 if not even the weights fit."""
    engine, cluster = config.rollout.engine, config.cluster
    if not cluster.gpus_per_process:
        return engine.kv_cache_gib
    return engine.gpu_memory_share * cluster.gpu_memory_gib * _REPORTED - engine_weights_gib(config, shape)


def kv_cache_tokens(config: RunConfig, shape: ModelShape) -> int:
    """How many tokens the KV cache of an engine holds."""
    engine = config.rollout.engine
    token = shape.kv_bytes_per_token(BYTES[engine.dtype]) / engine.tensor_parallel_size
    return int(kv_cache_gib(config, shape) * _GIB / token)


def machine_gib(config: RunConfig, shape: ModelShape) -> float:
    """What a run takes of this machine's own memory for certain: all but activations, libraries and what GPUs hold."""
    shared = config.cluster.object_store_mib / 1024 + shared_memory_gib(config, shape)
    if config.cluster.gpus_per_process:
        return config.cluster.learner_ranks * host_gib(config, shape) + shared
    rank = held_gib(config, shape)[0]
    engine = config.rollout.engine
    worker = (engine_weights_gib(config, shape) + kv_cache_gib(config, shape)) * engine.tensor_parallel_size
    return config.cluster.learner_ranks * rank + config.rollout.workers * worker + shared


def checkpoint_gib(config: RunConfig, shape: ModelShape) -> tuple[float, float, float]:
    """A checkpoint's part to resume from, its part for use, and what all of a phase share, at most."""
    found = _checkpoint(config, shape)
    resumable = max(parts["policy"] + parts["critic"] for parts in found)
    return resumable / _GIB, found[-1]["hf"] / _GIB, max(parts["still"] for parts in found) / _GIB


def disk_gib(config: RunConfig, shape: ModelShape) -> float:
    """What checkpoints take on disk at most: the newest ones, one that is being written, and the two best for use."""
    resumable, exported, shared = checkpoint_gib(config, shape)
    return (config.trainer.keep_checkpoints + 1) * (resumable + exported) + shared + 2 * exported


def _phases(config: RunConfig) -> list[Phase]:
    return phases(config.warmup, config.trainer, config.learner)


def _holdings(config: RunConfig, shape: ModelShape, phase: Phase) -> dict[str, Holding]:
    return holdings(config.learner, phase, counts_of(config.learner, shape), config.cluster.learner_ranks)


def _checkpoint(config: RunConfig, shape: ModelShape) -> list[dict[str, int]]:
    """By part, of each phase."""
    return [checkpoint_bytes(config.learner, phase, counts_of(config.learner, shape)) for phase in _phases(config)]
