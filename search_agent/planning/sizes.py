"""What a run takes of memory and disk, by part: arithmetic on the model's shape and the configuration, in GiB.

What the learner holds and writes is counted by ``verl.learner.holdings``, from the phases of the run; what a
micro-batch takes by ``verl.learner.memory``, to a tenth. Nothing is started and no torch is imported.
"""

from __future__ import annotations

from search_agent.config import RunConfig
from verl.learner.holdings import BYTES, Holding, checkpoint_bytes, holdings
from verl.learner.memory import counts_of, working_bytes
from verl.learner.phase import Phase
from verl.model_shape import ModelShape
from verl.sync import BUCKET_BYTES
from verl.trainer.phases import phases

_GIB = 2**30
_REPORTED = 79 / 80
"""Of the size that a card is sold by, what it reports."""
_CONTEXT_GIB = 0.75
"""What CUDA's context and its libraries take for each process on a card."""


def usable_gib(config: RunConfig) -> float:
    """Of one card, for tensors: what it reports, without the contexts of the processes on it."""
    processes = 2 if config.cluster.placement == "shared" else 1
    return config.cluster.gpu_memory_gib * _REPORTED - processes * _CONTEXT_GIB


def learner_gib(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """One learner rank at its most, by part, on its device: in the phase that takes the most."""
    return max((_on_device(config, shape, phase) for phase in _phases(config)), key=lambda parts: sum(parts.values()))


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


def _on_device(config: RunConfig, shape: ModelShape, phase: Phase) -> dict[str, float]:
    on_gpu = bool(config.cluster.gpus_per_process)
    parts: dict[str, float] = {}
    stepping = 0
    for name, part in _holdings(config, shape, phase).items():
        parts[name] = (0 if part.on_host and on_gpu else part.held) + part.computing
        stepping += part.stepping
    working = working_bytes(config.learner, shape, on_gpu=on_gpu)
    # Moments that come for the step alone find activations and logits gone.
    parts |= working if sum(working.values()) >= stepping else {"moments, for a step": stepping}
    return {name: size / _GIB for name, size in parts.items() if size}
