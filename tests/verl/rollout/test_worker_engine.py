"""A rollout worker on a real engine: episodes go on across updates and sleep; a dead engine is told, not scored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from verl.data.tasks import Task
from verl.errors import EngineDiedError
from verl.rollout.engine_config import EngineConfig
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Generation, Observation, Prompt, Sampling, Score, Turn
from verl.rollout.worker import RolloutWorker
from verl.sync.file import publish
from verl.trajectory import Outcome, Trajectory

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(max_context_tokens=128, max_tokens_per_step=512, kv_cache_gib=0.125)
TURNS, TOKENS = 3, 20


class Gate:
    """Searches wait here: the tests decide when an episode goes on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.arrived = 0


class Episode:
    """Three turns of fixed length, with a search after each that waits for the gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._turns = 0

    async def start(self) -> Prompt:
        return Prompt([5, 6, 7], "prompt")

    def next_turn(self) -> Turn | None:
        return Turn(TOKENS) if self._turns < TURNS else None

    async def observe(self, generation: Generation) -> Observation | None:
        self._turns += 1
        self._gate.arrived += 1
        await self._gate.open.wait()
        return Observation([9, 9], "found")

    def outcome(self) -> tuple[Outcome, str]:
        return "finished", ""


class GatedAgent:
    def __init__(self) -> None:
        self.gate = Gate()
        self.scored = 0

    async def open(self) -> None: ...

    def environment(self, task: Task, split: str) -> Episode:
        return Episode(self.gate)

    async def score(self, task: Task, trajectory: Trajectory) -> Score:
        self.scored += 1
        return Score(1.0)

    def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def shared_worker(tiny_model: Path) -> Iterator[RolloutWorker]:
    worker = RolloutWorker(str(tiny_model), CONFIG, lambda tokenizer: GatedAgent(), run_seed=0)
    yield worker
    asyncio.run(worker.close())


@pytest.fixture
def worker(shared_worker: RolloutWorker) -> RolloutWorker:
    shared_worker._agent = GatedAgent()
    return shared_worker


def agent(worker: RolloutWorker) -> GatedAgent:
    assert isinstance(worker._agent, GatedAgent)
    return worker._agent


def requests(samples: int) -> list[GroupRequest]:
    return [GroupRequest(4, Task("t", "q", ("a",)), samples, "train", "train", 0, Sampling())]


async def until_searching(worker: RolloutWorker, episodes: int) -> None:
    while agent(worker).gate.arrived < episodes:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def versions(trajectory: Trajectory) -> list[set[int]]:
    return [set(map(int, segment.versions)) for segment in trajectory.generated]


def scaled(folder: Path, factor: float) -> Sequence[tuple[str, torch.Tensor]]:
    from transformers import Qwen2ForCausalLM

    model: Any = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [(name, parameter.detach() * factor) for name, parameter in model.named_parameters()]


async def test_an_episode_goes_on_across_an_update_and_its_tokens_keep_their_versions(
    worker: RolloutWorker, tiny_model: Path, tmp_path: Path
) -> None:
    run = asyncio.create_task(worker.run_groups(requests(4)))
    await until_searching(worker, 4)
    await worker.update_weights(publish(scaled(tiny_model, 0.9), 1, tmp_path), 1)
    agent(worker).gate.open.set()
    [group] = await run
    assert agent(worker).scored == 4
    for trajectory in group.trajectories:
        first, *rest = versions(trajectory)
        assert first == {0}
        assert rest == [{1}] * len(rest)
        assert rest
        assert trajectory.reward == 1.0
    await worker.update_weights(publish(scaled(tiny_model, 1.0), 2, tmp_path), 2)


async def test_episodes_are_held_while_the_engine_sleeps_and_go_on(
    worker: RolloutWorker, tiny_model: Path, tmp_path: Path
) -> None:
    run = asyncio.create_task(worker.run_groups(requests(3)))
    await until_searching(worker, 3)
    await worker.sleep()
    agent(worker).gate.open.set()
    while (await worker.status()).waiting.keys() != {"engine"}:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    before = worker.stats()["busy_s"]
    await worker.wake()
    await asyncio.sleep(0.05)
    assert worker.stats()["busy_s"] == before
    await worker.update_weights(publish(scaled(tiny_model, 1.0), 3, tmp_path), 3)
    [group] = await run
    assert [trajectory.outcome for trajectory in group.trajectories] == ["finished"] * 3


async def test_the_status_tells_searching_from_generating(worker: RolloutWorker) -> None:
    run = asyncio.create_task(worker.run_groups(requests(2)))
    await until_searching(worker, 2)
    waiting = (await worker.status()).waiting
    assert {phase: (w.episodes, w.groups) for phase, w in waiting.items()} == {"environment": (2, (4,))}
    agent(worker).gate.open.set()
    await run
    assert (await worker.status()).waiting == {}


async def test_an_engine_that_dies_fails_the_call_and_nothing_is_scored(
    worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last: the engine is dead afterwards."""

    def fail() -> None:
        raise MemoryError("out of blocks")

    run = asyncio.create_task(worker.run_groups(requests(2)))
    await until_searching(worker, 2)
    monkeypatch.setattr(worker._engine._vllm._client, "get_output", fail)
    agent(worker).gate.open.set()
    with pytest.raises(EngineDiedError, match="out of blocks"):
        await asyncio.wait_for(run, 60)
    assert agent(worker).scored == 0
