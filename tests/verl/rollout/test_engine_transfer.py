"""Weights through vLLM's own GPU transports, on CPU: both ends are vLLM's and ours, the device beneath is made up."""

from __future__ import annotations

import asyncio
import copy
import importlib
import queue
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from verl.errors import EngineDiedError, InfrastructureError
from verl.rollout.engine import EngineConfig, VllmEngine
from verl.rollout.interfaces import Sampling, Turn
from verl.sync import Sent, gpu
from verl.sync.canary import EMBEDDINGS
from verl.sync.file import publish

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(max_context_tokens=256, max_tokens_per_step=512, kv_cache_gib=0.125)
BUCKET = 300_000
NORM = "model.norm.weight"


class Wire:
    """An NCCL group of a sender and one receiver in one process."""

    def __init__(self) -> None:
        self._sent: queue.Queue[Tensor] = queue.Queue()
        self.buckets: list[int] = []
        self.noisy = False
        """Whether what arrives is not what was sent."""
        self.receiver = SimpleNamespace(broadcast=self._receive, destroy=lambda: None)

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        self.buckets.append(tensor.numel())
        self._sent.put(tensor.clone())

    def destroy(self) -> None:
        """Nothing is held."""

    def _receive(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        tensor.copy_(self._sent.get(timeout=60))
        tensor[0] ^= self.noisy


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """One GPU that is none: its memory is the host's, its streams are in order, its handles are numbers."""
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import nccl_engine, packed_tensor

    wire = Wire()
    stream = SimpleNamespace(synchronize=lambda: None)
    shared: list[Tensor] = []
    empty = torch.empty

    def on_host(*size: Any, **options: Any) -> Tensor:
        return empty(*size, **(options | {"device": "cpu"} if options.get("device") == "cuda" else options))

    def share(tensor: Tensor) -> tuple[None, tuple[int, ...]]:
        shared.append(tensor)
        return None, (len(shared) - 1, *[0] * 8)

    def opened(tensor: Tensor) -> Tensor:
        return tensor.clone() if wire.noisy else tensor  # a copy still shows the first bucket when the second one comes

    monkeypatch.setattr(torch, "empty", on_host)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda _, number: (stream,) * number)
    monkeypatch.setattr(packed_tensor, "reduce_tensor", share)
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", lambda number, *_: opened(shared[number]))
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda _: wire)
    monkeypatch.setattr(nccl_engine, "worker_init_process_group", lambda *_: wire.receiver)
    monkeypatch.setattr(gpu, "BUCKET_BYTES", BUCKET)
    return wire


class Transfer:
    """A learner of one rank and one engine."""

    def __init__(self, engine: VllmEngine, backend: str, weights: dict[str, Tensor]) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.weights = weights
        self._engine = engine
        self._backend = backend
        self._source = gpu.LearnerWeights(lambda: iter(self.weights.items()))
        self._sender: gpu.Sender | None = None

    async def send(self) -> Sent:
        loop = asyncio.get_running_loop()

        def ask(method: str, calls: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Exception | None]]:
            [(name, (_, own))] = calls.items()
            self.calls.append((method, own))
            asyncio.run_coroutine_threadsafe(self._engine.transfer(method, own), loop).result(60)
            yield name, None

        def run() -> Sent:
            if self._sender is None:
                transport = importlib.import_module(f"verl.sync.{self._backend}")
                client = gpu.EngineClient({"0.0": None}, ask, ranks_per_engine=1, go_past_dead=False)
                meeting = gpu.Rendezvous("127.0.0.1", 1, 1, 1)
                self._sender = gpu.open_sender(transport, self._source, client, rank=0, meeting=meeting)
            self._sender.send_weights()
            return self._source.sent()

        await self._engine.pause()
        return await asyncio.to_thread(run)


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> list[Any]:
    """Three versions of the weights, far from one another."""
    from transformers import Qwen2ForCausalLM

    made = [Qwen2ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()]
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        made.append(copy.deepcopy(made[-1]))
        with torch.no_grad():
            for parameter in made[-1].parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


@pytest.fixture(params=["ipc", "nccl"])
def engine(request: pytest.FixtureRequest, tiny_model: Path, wire: Wire) -> Iterator[tuple[VllmEngine, str]]:
    engine = VllmEngine(tiny_model, replace(CONFIG, weight_transfer=request.param), seed=0)
    yield engine, request.param
    asyncio.run(engine.close())


async def assert_samples_from(engine: VllmEngine, model: Any, version: int) -> None:
    ids = [3, 4, 5, 6] * 10
    generation = (await asyncio.gather(engine.generate(ids, Turn(30), Sampling(), 1)))[0]
    assert set(generation.versions) == {version}
    whole = torch.tensor([[*ids, *generation.token_ids]])
    with torch.no_grad():
        logprobs = model(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
    assert np.abs(np.asarray(generation.logprobs) - logprobs[len(ids) - 1 :].numpy()).max() <= 1e-4


def parameters(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_every_weight_arrives_in_buckets_and_a_file_is_taken_too(
    engine: tuple[VllmEngine, str], models: list[Any], wire: Wire, tmp_path: Path
) -> None:
    async def use(engine: VllmEngine, backend: str) -> None:
        transfer = Transfer(engine, backend, parameters(models[1]))
        for version, model in ((1, models[1]), (2, models[2])):
            transfer.weights = parameters(model)
            await engine.commit_received(version, await transfer.send())
            await engine.resume()
            await assert_samples_from(engine, model, version)
        methods = [method for method, _ in transfer.calls]
        chunks = methods.count("update_weights") // 2
        update = ["start_weight_update", *["update_weights"] * chunks, "finish_weight_update"]
        assert methods == ["shutdown_weight_transfer_engine", "init_weight_transfer_engine", *update, *update]
        sizes = wire.buckets or [
            sum(call["update_info"]["tensor_sizes"]) for m, call in transfer.calls if m == update[1]
        ]
        assert len(sizes) > 4
        assert sum(sizes) == 2 * sum(p.nbytes for p in transfer.weights.values())
        largest = max(p.nbytes for p in transfer.weights.values())
        assert max(sizes) <= max(BUCKET, largest) + (largest if wire.buckets else 0)
        await engine.update_weights(publish(models[0].named_parameters(), 3, tmp_path), 3)
        await assert_samples_from(engine, models[0], 3)

    asyncio.run(asyncio.wait_for(use(*engine), 200))


@pytest.mark.parametrize("fault", ["a tensor left out", "a tensor damaged"])
def test_weights_that_are_not_all_of_those_sent_kill_the_engine(
    engine: tuple[VllmEngine, str], models: list[Any], wire: Wire, fault: str
) -> None:
    left_out = fault == "a tensor left out"

    async def use(engine: VllmEngine, backend: str) -> None:
        weights = parameters(models[1])
        if left_out:
            del weights[NORM]
        wire.noisy = not left_out
        sent = await Transfer(engine, backend, weights).send()
        with pytest.raises(
            InfrastructureError, match=NORM if left_out else "arrived with checksum.*holds another model"
        ):
            await engine.commit_received(1, sent)
        with pytest.raises(InfrastructureError):
            await engine.generate([1], Turn(1), Sampling(), 0)

    asyncio.run(asyncio.wait_for(use(*engine), 200))


def held_by(engine: VllmEngine) -> tuple[dict[str, Tensor], bool]:
    """The engine's parameters under the names of the checkpoint, and whether head and embeddings are one storage."""
    [model] = engine._vllm._engine.collective_rpc("get_model")
    config = model.config
    rows = {"q_proj": config.hidden_size, "gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
    head_size = config.hidden_size // config.num_attention_heads
    rows |= dict.fromkeys(("k_proj", "v_proj"), config.num_key_value_heads * head_size)
    held: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        parts = next((parts for joined, parts in fused.items() if joined in name), None)
        if parts is None:
            held[name] = parameter.detach()
            continue
        joined = next(joined for joined in fused if joined in name)
        pieces = parameter.detach().split([rows[part] for part in parts])
        held |= {name.replace(joined, part): piece for part, piece in zip(parts, pieces, strict=True)}
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    held[EMBEDDINGS] = held[EMBEDDINGS][: config.vocab_size]
    return held, tied


@pytest.mark.parametrize("way", ["ipc", "nccl", "shm"])
def test_tied_weights_stay_bit_equal_over_many_pushes_at_a_large_learning_rate(
    way: Any, tiny_model: Path, models: list[Any], wire: Wire, tmp_path: Path
) -> None:
    """vLLM's warning that the head failed to load means nothing: it puts the storage back that the embeddings share."""
    config = replace(CONFIG, dtype="bfloat16", head_dtype="float32", weight_transfer=way)
    engine = VllmEngine(tiny_model, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    weights = {name: tensor.bfloat16() for name, tensor in parameters(models[0]).items()}
    transfer = Transfer(engine, way, weights)

    async def push(version: int) -> None:
        if way == "shm":
            await engine.update_weights(publish(weights.items(), version, tmp_path), version)
            return
        await engine.commit_received(version, await transfer.send())
        await engine.resume()

    async def train() -> None:
        for version in range(1, 21):
            for tensor in weights.values():
                tensor.add_((torch.randn(tensor.shape, generator=generator) * 1e-2).to(tensor.dtype))
            await push(version)
            held, tied = held_by(engine)
            assert tied
            assert held.keys() == weights.keys()
            assert all(torch.equal(held[name], weights[name]) for name in weights), f"version {version}"
            answer = await engine.generate([3, 4, 5, version], Turn(2), Sampling(temperature=0.0), 0)
            assert set(answer.versions) == {version}

    try:
        asyncio.run(asyncio.wait_for(train(), 200))
    finally:
        asyncio.run(engine.close())


@pytest.mark.parametrize("tensor", [EMBEDDINGS, NORM])
def test_an_engine_that_kept_an_old_tensor_says_which_and_dies(
    engine: tuple[VllmEngine, str], models: list[Any], wire: Wire, tensor: str
) -> None:
    """All arrived, and one of the parameters that the model computes with is still the old one."""

    async def use(engine: VllmEngine, backend: str) -> None:
        sent = await Transfer(engine, backend, parameters(models[1])).send()
        held, _ = held_by(engine)
        held[tensor].copy_(parameters(models[0])[tensor])
        with pytest.raises(EngineDiedError, match=rf"version 1: the engine holds another {tensor}"):
            await engine.commit_received(1, sent)

    asyncio.run(asyncio.wait_for(use(*engine), 200))
