"""A version of the weights from learner to engine through shared memory: adapters alone against merged weights.

Both ends are the real ones but for vLLM, which would take the tensors in the same way: here they are copied in place.
The base, sent once before the first adapters, is not timed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench.harness import Figure, main
from bench.learner.sizes import write_model
from verl.algorithms.config import LossConfig
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.sync import WeightUpdate
from verl.sync.file import HeldBase, load_file, publish
from verl.sync.relay import release

MEMORY = "/dev/shm"


class Engine:
    """Weights of its own, into which a version is copied."""

    def __init__(self, learner: Learner) -> None:
        self._weights = {name: weight.clone() for name, weight in learner.named_weights()}
        self._held = HeldBase()

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""
        yield from self._weights.values()

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """With their names."""
        yield from self._weights.items()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's models have it."""
        return {name for name, weight in weights if self._weights[name].copy_(weight) is not None}

    def load(self, update: WeightUpdate) -> None:
        """What a sync calls."""
        load_file(self, update, update.version, self._held)


def measure(quick: bool) -> Iterator[Figure]:
    """Pairs in alternation; the median of the ratios."""
    init_process(0, 1, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir=MEMORY) as shared:
        model = write_model(Path(name), *((4, 512) if quick else (12, 1024)))
        learner = Learner(model, LearnerConfig(lora=LoraConfig(rank=16)), seed=0)
        learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), 1))
        base = publish(learner.named_base(torch.float32), 0, shared, "base")

        def whole(version: int) -> WeightUpdate:
            return publish(learner.named_weights(), version, shared)

        def adapters(version: int) -> WeightUpdate:
            update = publish(learner.named_adapters(), version, shared, "adapters")
            return replace(update, base=base, scale=learner.adapter_scale)

        engines = Engine(learner), Engine(learner)
        pairs = [
            (sync(whole, engines[0], version), sync(adapters, engines[1], version))
            for version in range(4 if quick else 8)
        ][1:]
        dist.destroy_process_group()
    ratio = statistics.median(one[0] / other[0] for one, other in pairs)
    yield Figure("a sync, merged / adapters, time", ratio, "x")
    yield Figure("a sync, merged / adapters, bytes written", pairs[0][0][1] / pairs[0][1][1], "x")
    yield Figure("a sync of adapters", statistics.median(other[0] for _, other in pairs), "s")
    yield Figure("weights", base.size_bytes / 2**20, "MiB")


def sync(make: Callable[[int], WeightUpdate], engine: Engine, version: int) -> tuple[float, int]:
    """Seconds of publishing and loading, and the bytes that were written."""
    began = time.perf_counter()
    update = make(version)
    engine.load(update)
    seconds = time.perf_counter() - began
    release(update)
    return seconds, update.size_bytes


if __name__ == "__main__":
    main(measure)
