"""Weights reach the pool as a file or from GPU to GPU, and no file outlives the version after its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from verl.rollout.engine_config import EngineConfig
from verl.sync.update import WeightUpdate
from verl.trainer.weights import WeightSync


@dataclass
class Fakes:
    """Learner, pool and carriers at once: what was asked of them, in order."""

    joins: bool = False
    """Whether a worker joins during each transfer."""
    busy: bool = False
    """Whether the learner trains on before it does."""
    changes: int = 0
    files: set[str] = field(default_factory=set)
    sent: list[Any] = field(default_factory=list)
    loaded: list[tuple[str, int]] = field(default_factory=list)
    checked: int = 0

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        path = f"{folder}/{version}"
        self.files.add(path)
        return WeightUpdate(version, path, (), 0, 0)

    async def probe(self, prompts: Any) -> list[tuple[int, float, float]]:
        return [(7, -0.5, 1.0)]

    async def send(self, *arguments: Any) -> int:
        self.sent.append(arguments)
        return 99

    async def update_weights(self, update: WeightUpdate, version: int) -> None:
        self.loaded.append((update.path, version))

    async def transfer(self, send: Any, as_file: Any, version: int) -> None:
        engines: Mapping[str, Any] = {"rollout_0.0": "actor"}
        assert await send(engines) == 99
        if self.joins:
            self.changes += self.busy
            file = await as_file()
            assert (file is None) == self.busy

    async def confirm(self, canary: Any) -> None:
        canary.check([(7, -0.5, 0.0)])
        self.checked += 1

    async def release(self, update: WeightUpdate) -> None:
        self.files.remove(update.path)

    def sync(self, **engine: Any) -> WeightSync:
        config = EngineConfig(**engine)
        me: Any = self
        return WeightSync(me, me, engine=config, folder="/f", probes=[[1]], tolerance=1e-4, carriers=me)


async def test_a_file_is_loaded_and_goes_with_the_next() -> None:
    fakes = Fakes()
    sync = fakes.sync()
    for version in (1, 1, 2):
        await sync.push(version)
    assert fakes.loaded == [("/f/1", 1), ("/f/1", 1), ("/f/2", 2)]
    assert fakes.files == {"/f/2"}
    assert fakes.checked == 3


@pytest.mark.parametrize("joins", [False, True])
async def test_a_transfer_sends_and_writes_a_file_only_for_who_joins(joins: bool) -> None:
    fakes = Fakes(joins=joins)
    sync = fakes.sync(weight_transfer="nccl", dtype="bfloat16", tensor_parallel_size=2, executor="mp")
    for version in (1, 2, 3):
        await sync.push(version)
    assert fakes.sent == [("nccl", "bfloat16", {"rollout_0.0": "actor"}, 2)] * 3
    assert fakes.files == ({"/f/3"} if joins else set())
    assert fakes.checked == 3


async def test_no_file_is_written_of_weights_that_are_newer() -> None:
    fakes = Fakes(joins=True, busy=True)
    await fakes.sync(weight_transfer="ipc").push(1)
    assert fakes.files == set()
