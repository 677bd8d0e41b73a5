"""A learner rank's end of a GPU transfer: whom it calls, whom it goes past, and when it meets the engines anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from verl.errors import EngineDiedError
from verl.sync import gpu
from verl.sync.gpu import EngineClient, GpuSender, LearnerWeights, Rendezvous

DIED = EngineDiedError("rollout_1.0 update: its process died")


class Engines:
    """Who was called with what; ``fails`` is what an engine's calls come to."""

    def __init__(self, **fails: Exception) -> None:
        self.fails = fails
        self.calls: list[tuple[str, str, Any]] = []

    def ask(self, method: str, calls: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Exception | None]]:
        for name, (_, arguments) in reversed(list(calls.items())):
            self.calls.append((name, method, arguments))
            yield name, self.fails.get(name)

    def client(self, *names: str, go_past_dead: bool = False) -> EngineClient:
        return EngineClient(dict.fromkeys(names), self.ask, ranks_per_engine=1, go_past_dead=go_past_dead)


def test_each_engine_is_called_with_its_own_arguments() -> None:
    engines = Engines()
    engines.client("a", "b").init_weight_transfer_engine({"rank_offset": 1})
    assert engines.calls[2:] == [
        ("b", "init_weight_transfer_engine", {"init_info": {"rank_offset": 2}}),
        ("a", "init_weight_transfer_engine", {"init_info": {"rank_offset": 1}}),
    ]


def test_a_dead_engine_is_called_no_more_where_the_others_can_go_on() -> None:
    engines = Engines(dead=DIED)
    client = engines.client("a", "dead", go_past_dead=True)
    client.start_weight_update()
    client.update_weights({})
    client.finish_weight_update()
    assert [name for name, _, _ in engines.calls] == ["dead", "a", "a", "a"]
    assert client.death is None


def test_a_dead_engine_is_an_error_where_the_others_would_wait_for_it() -> None:
    client = Engines(dead=DIED).client("a", "dead")
    with pytest.raises(EngineDiedError, match=r"rollout_1\.0 update"):
        client.update_weights({})
    assert client.death is DIED


def test_a_mistake_is_never_gone_past() -> None:
    with pytest.raises(ValueError, match="GPU UUID"):
        Engines(a=ValueError("GPU UUID")).client("a", go_past_dead=True).start_weight_update()


class FakeSender:
    """Reads the weights once an update, as vLLM's does."""

    def __init__(self, weights: LearnerWeights, meeting: Rendezvous) -> None:
        self.weights, self.meeting, self.ended = weights, meeting, False

    def send_weights(self) -> None:
        assert not self.ended
        list(self.weights)

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeSender]:
    senders: list[FakeSender] = []

    def open_sender(
        transport: Any, weights: LearnerWeights, client: EngineClient, *, rank: int, meeting: Rendezvous
    ) -> FakeSender:
        senders.append(FakeSender(weights, meeting))
        return senders[-1]

    monkeypatch.setattr(gpu, "open_sender", open_sender)
    return senders


def named_weights() -> Iterator[tuple[str, Tensor]]:
    yield "w", torch.ones(3)


def sender(transport: str, rank: int = 0, weights: Any = named_weights, engines: Engines | None = None) -> GpuSender:
    ask = (engines or Engines()).ask
    return GpuSender(transport, weights, ask, rank=rank, free_port=lambda: ("127.0.0.1", 4444))


def test_the_group_lasts_until_its_members_change(opened: list[FakeSender]) -> None:
    direct = sender("nccl")
    for members in (("0.0", "1.0"), ("0.0", "1.0"), ("0.0", "1.1"), ("0.0",)):
        direct.send(dict.fromkeys(members), 2)
    assert [(sender.meeting.engines, sender.ended) for sender in opened] == [(2, True), (2, True), (1, False)]
    assert [sender.meeting.world_size for sender in opened] == [5, 5, 3]
    assert all(sender.meeting.port for sender in opened)


def test_what_was_sent_is_the_same_on_every_rank(opened: list[FakeSender]) -> None:
    first, second = (sender("ipc", rank).send({"0.0": None}, 1) for rank in (0, 1))
    assert first == second
    assert set(first.sums) == {"w"}


class Gather:
    """Two learner ranks as threads: a tensor is had only when both have come for it, as in FSDP's gather."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=20)
        self.taken = [0, 0]

    def weights(self, rank: int) -> Iterator[tuple[str, Tensor]]:
        for name in ("a", "b", "c"):
            self._barrier.wait()
            self.taken[rank] += 1
            yield name, torch.ones(2)


@pytest.mark.parametrize("method", ["init_weight_transfer_engine", "start_weight_update", "update_weights"])
def test_a_rank_whose_engine_died_under_nccl_leaves_no_other_rank_in_a_gather(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.distributed.weight_transfer import nccl_engine

    broadcast: list[int] = []

    def send(tensor: Tensor, src: int, stream: Any = None) -> None:
        broadcast.append(tensor.numel())
        raise RuntimeError("the group was destroyed")

    def ask(called: str, calls: Mapping[str, Any]) -> Iterator[tuple[str, Exception | None]]:
        yield "0.0", DIED if called == method else None

    class Stream:
        def synchronize(self) -> None: ...

    endpoint = type("Group", (), {"broadcast": staticmethod(send), "destroy": lambda self: None})()
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda _: endpoint)
    monkeypatch.setattr(nccl_engine.NCCLTrainerWeightTransferEngine, "_post_send_sync", lambda self: None)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: send(next(iterator)[1], 0))
    gather = Gather()
    ended: dict[int, Any] = {}

    def run(rank: int) -> None:
        direct = GpuSender("nccl", lambda: gather.weights(rank), ask, rank=rank, free_port=lambda: ("127.0.0.1", 4444))
        try:
            ended[rank] = direct.send({"0.0": None}, 1)
        except Exception as error:
            ended[rank] = error

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    assert ended[0] is DIED, ended
    assert not isinstance(ended[1], Exception), ended
    assert gather.taken == [6, 6]  # once to describe the weights, once to send them
