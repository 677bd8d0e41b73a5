"""The learner's end of vLLM's GPU transports, as far as it is bookkeeping: ranks, order, fresh passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from verl.sync import BUCKET_BYTES
from verl.sync.canary import Fingerprint
from verl.sync.gpu import EngineClient, LearnerWeights, Rendezvous


def recording() -> tuple[list[tuple[str, Sequence[Any]]], EngineClient]:
    calls: list[tuple[str, Sequence[Any]]] = []

    def ask(method: str, asked: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, None]]:
        calls.append((method, [arguments for _, arguments in asked.values()]))
        return ((name, None) for name in asked)

    return calls, EngineClient(dict.fromkeys("abc"), ask, ranks_per_engine=2, go_past_dead=False)


def test_every_engine_gets_its_own_place_among_the_ranks() -> None:
    calls, client = recording()
    meeting = Rendezvous("10.0.0.1", 4444, engines=3, ranks_per_engine=2)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": meeting.world_size})
    (before, _), (method, arguments) = calls
    assert (before, method) == ("shutdown_weight_transfer_engine", "init_weight_transfer_engine")
    offsets = [argument["init_info"]["rank_offset"] for argument in arguments]
    places = [0, *(offset + rank for offset in offsets for rank in range(2))]
    assert places == list(range(meeting.world_size))


def test_an_update_is_the_same_for_all_engines() -> None:
    calls, client = recording()
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": ["w"]})
    client.finish_weight_update("7")
    assert [method for method, _ in calls] == [
        "shutdown_weight_transfer_engine",
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ]
    assert calls[3][1] == [{"update_info": {"names": ["w"]}}] * 3


def test_the_source_is_read_afresh_each_round_and_described_once() -> None:
    passes: list[int] = []

    def named_weights() -> Iterator[tuple[str, Tensor]]:
        passes.append(len(passes))
        yield "w", torch.full((2, 3), float(len(passes)), dtype=torch.bfloat16)

    source = LearnerWeights(named_weights)
    [meta] = source.metadata()
    assert (meta.name, meta.dtype, meta.shape) == ("w", torch.bfloat16, (2, 3))
    assert source.metadata() == [meta]
    values = [float(tensor[0, 0]) for _ in range(2) for _, tensor in source]
    assert values == [2.0, 3.0]


def test_the_checksum_is_that_of_the_last_whole_pass() -> None:
    value = 1.0
    source = LearnerWeights(lambda: iter([("w", torch.full((2, 3), value))]))
    source.metadata()
    list(source)
    first = source.sent().checksum
    value = 2.0
    list(source)
    alone = Fingerprint()
    alone.add("w", torch.full((2, 3), 2.0))
    assert source.sent().checksum == alone.value() != first


def test_a_bucket_holds_the_largest_tensor() -> None:
    def of(*rows: int) -> LearnerWeights:
        return LearnerWeights(lambda: iter((f"w{n}", torch.empty((n, 1024), device="meta")) for n in rows))

    assert of(1, 2).bucket_bytes() == BUCKET_BYTES
    assert of(1, BUCKET_BYTES // 4096 + 1, 2).bucket_bytes() == BUCKET_BYTES + 4096


def test_an_engine_that_fails_in_a_bucket_frees_the_sender_first() -> None:
    def ask(method: str, calls: Mapping[str, Any]) -> Iterator[tuple[str, Exception | None]]:
        yield "a", RuntimeError("the engine failed") if method == "update_weights" else None

    order: list[str] = []
    client = EngineClient({"a": None}, ask, ranks_per_engine=1, go_past_dead=False)
    client.on_failure = lambda: order.append("freed")
    with pytest.raises(RuntimeError, match="the engine failed"):
        client.update_weights({"names": []})
    client.start_weight_update()
    assert order == ["freed"]
