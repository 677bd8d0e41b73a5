"""The learner's end of vLLM's GPU carriers, as far as it is bookkeeping: ranks, order, fresh passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from verl.sync.gpu import EngineClient, LearnerWeights, Rendezvous


def recording() -> tuple[list[tuple[str, Sequence[Any]]], EngineClient]:
    calls: list[tuple[str, Sequence[Any]]] = []
    return calls, EngineClient(lambda method, arguments: calls.append((method, arguments)), 3, 2)


def test_every_engine_gets_its_own_place_among_the_ranks() -> None:
    calls, client = recording()
    meeting = Rendezvous("10.0.0.1", 4444, engines=3, ranks_per_engine=2)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": meeting.world_size})
    [(method, arguments)] = calls
    assert method == "init_weight_transfer_engine"
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
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ]
    assert calls[2][1] == [{"update_info": {"names": ["w"]}}] * 3


def test_the_source_is_read_afresh_each_round_and_described_once() -> None:
    passes = []

    def named_weights() -> Iterator[tuple[str, Tensor]]:
        passes.append(len(passes))
        yield "w", torch.full((2, 3), float(len(passes)), dtype=torch.bfloat16)

    source = LearnerWeights(named_weights)
    [meta] = source.metadata()
    assert (meta.name, meta.dtype, meta.shape) == ("w", torch.bfloat16, (2, 3))
    assert source.metadata() == [meta]
    values = [float(tensor[0, 0]) for _ in range(2) for _, tensor in source]
    assert values == [2.0, 3.0]
