"""Engines that die, and engines of several ranks: each test builds its own."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from verl.errors import EngineDiedError, InfrastructureError
from verl.rollout.engine import EngineConfig, GenerateRequest, VllmEngine
from verl.rollout.interfaces import Sampling, Turn
from verl.sync.file import publish

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(max_context_tokens=128, max_tokens_per_step=512, kv_cache_gib=0.125)
REQUESTS = [GenerateRequest([5, 6, 7 + i], Turn(40), Sampling(temperature=0.0), 0) for i in range(6)]


@contextmanager
def running(model: Path, config: EngineConfig = CONFIG) -> Iterator[VllmEngine]:
    engine = VllmEngine(model, config, seed=0)
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


def test_an_engine_starts_in_a_process_that_has_used_numba(tiny_model: Path) -> None:
    importlib.import_module("llvmlite.binding")  # vLLM alone would fail over one of its objects
    with running(tiny_model) as engine:
        answer = asyncio.run(engine.generate([5, 6], Turn(2), Sampling(temperature=0.0), 0))
    assert len(answer.token_ids) == 2
    assert "llvmlite.binding.ffi" in sys.modules


def test_a_step_that_fails_fails_every_caller_and_nothing_hangs(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: VllmEngine) -> None:
        futures = engine.generate_many(REQUESTS)

        def fail() -> None:
            raise MemoryError("out of blocks")

        monkeypatch.setattr(engine._vllm._client, "get_output", fail)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(outcome, InfrastructureError) for outcome in outcomes)
        assert "out of blocks" in str(outcomes[0])
        with pytest.raises(InfrastructureError, match="out of blocks"):
            await engine.generate([1], Turn(1), Sampling(), 0)
        for call in (engine.pause, engine.sleep, engine.wake, engine.resume):
            with pytest.raises(EngineDiedError, match="out of blocks"):
                await call()
        with pytest.raises(EngineDiedError, match="out of blocks"):
            engine.stats()

    with running(tiny_model) as engine:
        asyncio.run(asyncio.wait_for(use(engine), 60))


def test_too_little_memory_for_all_makes_requests_wait_and_changes_no_token(tiny_model: Path) -> None:
    requests = [GenerateRequest([5, 6, 7 + i], Turn(120), Sampling(), i) for i in range(24)]

    async def tokens(engine: VllmEngine) -> list[list[int]]:
        generations = await asyncio.wait_for(asyncio.gather(*engine.generate_many(requests)), 60)
        return [list(generation.token_ids) for generation in generations]

    with running(tiny_model) as engine:
        plenty = asyncio.run(tokens(engine))
    # 1 MiB holds 1024 tokens of this model: 8 of the 24 requests in full.
    with running(tiny_model, replace(CONFIG, kv_cache_gib=1 / 1024)) as engine:
        scarce = asyncio.run(tokens(engine))
    assert scarce == plenty


def test_weights_that_are_not_the_ones_announced_kill_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        update = publish([("model.norm.weight", torch.ones(128))], 2, tmp_path)
        with pytest.raises(InfrastructureError, match="expected weights version 3"):
            await engine.update_weights(update, 3)
        with pytest.raises(InfrastructureError, match="expected weights version 3"):
            await engine.generate([1], Turn(1), Sampling(), 0)

    with running(tiny_model) as engine:
        asyncio.run(asyncio.wait_for(use(engine), 60))


def test_an_update_that_leaves_a_parameter_out_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        update = publish([("model.norm.weight", torch.ones(128))], 1, tmp_path)
        with pytest.raises(InfrastructureError, match="every parameter"):
            await engine.update_weights(update, 1)

    with running(tiny_model) as engine:
        asyncio.run(asyncio.wait_for(use(engine), 60))


def test_two_ranks_say_what_one_says_and_fail_together(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.01)
    update = publish(model.named_parameters(), 1, tmp_path)

    async def tokens(engine: VllmEngine) -> list[list[int]]:
        before = await asyncio.gather(*engine.generate_many(REQUESTS))
        await engine.update_weights(update, 1)
        after = await asyncio.gather(*engine.generate_many(REQUESTS))
        return [list(generation.token_ids) for generation in (*before, *after)]

    async def lose_a_worker(engine: VllmEngine) -> None:
        await engine.pause()
        futures = engine.generate_many(REQUESTS)
        workers = [process for process in psutil.Process().children(recursive=True) if "Worker_TP" in process.name()]
        assert len(workers) == 2
        workers[1].kill()
        await engine.resume()
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(outcome, InfrastructureError)
            assert "worker process" in str(outcome)

    with running(tiny_model) as engine:
        one = asyncio.run(tokens(engine))
    segments = set(Path("/dev/shm").glob("vllm_dist_*"))
    with running(tiny_model, replace(CONFIG, tensor_parallel_size=2, executor="mp")) as engine:
        two = asyncio.run(tokens(engine))
        assert set(Path("/dev/shm").glob("vllm_dist_*")) - segments
        asyncio.run(asyncio.wait_for(lose_a_worker(engine), 120))
    assert set(Path("/dev/shm").glob("vllm_dist_*")) <= segments
    assert two == one
    assert one[: len(REQUESTS)] != one[len(REQUESTS) :]
