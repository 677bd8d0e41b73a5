"""Weights reach the engines as a file or from GPU to GPU, and no file outlives the version after its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from verl.errors import EngineDiedError, InfrastructureError
from verl.rollout.engine_config import EngineConfig
from verl.sync import Sent, WeightUpdate
from verl.sync.canary import Canary
from verl.sync.manager import Newest, WeightManager


@dataclass
class Fakes:
    """Learner, engines, one engine's actor and relay at once: what was asked of them, in order."""

    joins: bool = False
    """Whether a worker joins during each push."""
    changes: int = 0
    files: set[str] = field(default_factory=set)
    sent: list[Any] = field(default_factory=list)
    loaded: list[tuple[str, int]] = field(default_factory=list)
    committed: list[tuple[int, Sent]] = field(default_factory=list)
    paused: int = 0
    checked: int = 0

    def __post_init__(self) -> None:
        self.newest = Newest(self)  # type: ignore[arg-type]

    # -- the learner --

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        path = f"{folder}/{version}"
        self.files.add(path)
        return WeightUpdate(version, path, (), 0, 0)

    async def send(self, *arguments: Any) -> Sent:
        self.sent.append(arguments)
        return Sent(99)

    # -- the engines --

    async def on_all(self, what: str, call: Callable[[Any], Awaitable[Any]]) -> dict[str, Any]:
        return {"rollout_0": await call(self)}

    def processes(self, names: Collection[str]) -> Mapping[str, Any]:
        assert set(names) == {"rollout_0"}
        return {"rollout_0.0": "actor"}

    async def prepare_joins(self) -> None:
        if self.joins:
            assert await self.newest.available()

    def __getattr__(self, method: str) -> Any:
        """An actor's method, to be called with ``remote``."""
        return type("Method", (), {"remote": super().__getattribute__(f"do_{method}")})()

    async def do_node(self) -> str:
        return "here"

    async def do_update_weights(self, update: WeightUpdate, version: int) -> None:
        self.loaded.append((update.path, version))

    async def do_pause(self) -> None:
        self.paused += 1

    async def do_commit_received(self, version: int, sent: Sent) -> None:
        self.committed.append((version, sent))

    # -- the relay --

    async def at(self, update: WeightUpdate, node: str) -> WeightUpdate:
        assert node == "here"
        return update

    async def release(self, update: WeightUpdate) -> None:
        self.files.remove(update.path)

    def manager(self, folder: str = "/f", **engine: Any) -> WeightManager:
        fakes = self

        class Both:
            """``probe`` is answered by the learner itself, and by an actor's ``remote``."""

            def __getattr__(self, name: str) -> Any:
                return getattr(fakes, name)

            async def probe(self, prompts: Any) -> Any:
                return [(7, -0.5, 1.0)]

        class NotedCanary(Canary):
            def check(self, who: str, engine: Any) -> None:
                super().check(who, engine)
                fakes.checked += 1

        canary = NotedCanary([[1]], dtypes=["float32"], vocabulary=100)
        me: Any = Both()
        return WeightManager(
            self.newest,
            me,
            me,
            engine=EngineConfig(**engine),
            folder=folder,
            node="here",
            canary=canary,
            read_saved=lambda folder, dtype: [("w", torch.ones(2, dtype=getattr(torch, dtype)))],
        )

    async def do_probe(self, prompts: Any) -> Any:
        return [(7, -0.5, 0.0)]


async def test_a_file_is_loaded_and_goes_with_the_next() -> None:
    fakes = Fakes()
    manager = fakes.manager()
    for version in (1, 1, 2):
        await manager.push(version)
    assert fakes.loaded == [("/f/1", 1), ("/f/1", 1), ("/f/2", 2)]
    assert fakes.files == {"/f/2"}
    assert fakes.checked == 3
    assert fakes.newest.version == 2
    await fakes.newest.close()
    assert fakes.files == set()


@pytest.mark.parametrize("joins", [False, True])
async def test_a_transfer_sends_and_writes_a_file_only_for_who_joins(joins: bool) -> None:
    fakes = Fakes(joins=joins)
    manager = fakes.manager(weight_transfer="nccl", dtype="bfloat16", tensor_parallel_size=2, executor="mp")
    for version in (1, 2, 3):
        await manager.push(version)
    assert fakes.sent == [("nccl", "bfloat16", {"rollout_0.0": "actor"}, 2)] * 3
    assert fakes.committed == [(version, Sent(99)) for version in (1, 2, 3)]
    assert fakes.paused == 3
    assert fakes.files == ({"/f/3"} if joins else set())
    assert fakes.checked == 3


async def test_no_file_is_written_of_weights_that_are_newer() -> None:
    fakes = Fakes()
    await fakes.manager(weight_transfer="ipc").push(1)
    fakes.changes += 1
    assert not await fakes.newest.available()
    assert fakes.files == set()


async def test_weights_of_a_folder_are_given_without_the_learner(tmp_path: Path) -> None:
    fakes = Fakes()
    await fakes.manager(str(tmp_path), weight_transfer="ipc").push_saved(tmp_path, 5)
    [(path, version)] = fakes.loaded
    assert (version, Path(path).parent, fakes.sent) == (5, tmp_path, [])
    assert await fakes.newest.available()


class Deaths(Fakes):
    """Transfers of which every engine dies; new ones stand in their place by the next version."""

    deadly: Collection[int] = ()
    """Which transfers, from 0."""

    async def send(self, *arguments: Any) -> Sent:
        await super().send(*arguments)
        if len(self.sent) - 1 in self.deadly:
            raise EngineDiedError("cudaIpcOpenMemHandle: invalid argument")
        return Sent(99)

    def replace(self, names: Collection[str], error: Exception, consequence: str) -> None:
        assert list(names) == ["rollout_0"]


async def test_weights_that_reach_no_engine_by_gpu_twice_go_by_file_and_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fakes = Deaths()
    fakes.deadly = range(9)
    manager = fakes.manager(weight_transfer="ipc", dtype="bfloat16")
    for version in (1, 2):
        assert caplog.text == ""
        await manager.push(version)
        assert fakes.loaded == []
    assert "2 versions of the weights in a row reached no engine by ipc: from now on they go by file" in caplog.text
    await manager.push(3)
    await manager.push(4)
    assert [version for _, version in fakes.loaded] == [3, 4]
    assert (len(fakes.sent), fakes.files) == (2, {"/f/4"})


async def test_a_transfer_that_failed_once_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    fakes = Deaths()
    fakes.deadly = (0, 2)
    manager = fakes.manager(weight_transfer="nccl", dtype="bfloat16")
    for version in range(4):
        await manager.push(version)
    assert [version for version, _ in fakes.committed] == [1, 3]
    assert (fakes.loaded, caplog.text) == ([], "")


@pytest.mark.parametrize("way", ["ipc", "nccl"])
async def test_a_learner_that_cannot_share_its_memory_says_which_key_to_change(
    monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    async def send(self: Fakes, *arguments: Any) -> Sent:
        raise InfrastructureError("learner send: RuntimeError: CUDA error: operation not supported")

    monkeypatch.setattr(Fakes, "send", send)
    with pytest.raises(InfrastructureError, match=f"weight_transfer={way} does not work here, write shm: learner"):
        await Fakes().manager(weight_transfer=way, dtype="bfloat16").push(1)
