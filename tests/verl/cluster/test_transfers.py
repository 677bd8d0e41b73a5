"""A learner rank's end of a GPU transfer: whom it calls, whom it goes past, and when it meets the engines anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError
from torch import Tensor

from verl.cluster import transfers
from verl.cluster.transfers import DirectTransfer, EngineCalls
from verl.errors import EngineDiedError
from verl.sync.gpu import Backend, FanOut, LearnerWeights, Rendezvous


class FakeEngine:
    """An engine's process, as a Ray actor's handle; ``answer`` is what its calls raise, if anything."""

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer = answer
        self.calls: list[tuple[str, Any]] = []
        self.transfer = self

    def remote(self, method: str, arguments: Any) -> Any:
        self.calls.append((method, arguments))
        return Answer(self.answer)


class Answer:
    """What Ray would give for a call."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come back last first."""

    def get(answer: Answer) -> None:
        if answer.error is not None:
            raise answer.error

    monkeypatch.setattr("ray.wait", lambda waiting, num_returns: (waiting[-1:], waiting[:-1]))
    monkeypatch.setattr("ray.get", get)


def test_each_engine_is_called_with_its_own_arguments() -> None:
    engines = {name: FakeEngine() for name in ("a", "b")}
    EngineCalls(engines, go_past_dead=False)("init", [{"rank": 1}, {"rank": 2}])
    assert engines["a"].calls == [("init", {"rank": 1})]
    assert engines["b"].calls == [("init", {"rank": 2})]


def test_a_dead_engine_is_called_no_more_where_the_others_can_go_on() -> None:
    engines = {"a": FakeEngine(), "dead": FakeEngine(ActorDiedError())}
    calls = EngineCalls(engines, go_past_dead=True)
    for method in ("start", "update", "finish"):
        calls(method, [{}, {}])
    assert [len(engine.calls) for engine in engines.values()] == [3, 1]


def test_a_dead_engine_is_an_error_where_the_others_would_wait_for_it() -> None:
    engines = {"a": FakeEngine(), "rollout_1.0": FakeEngine(ActorDiedError())}
    with pytest.raises(EngineDiedError, match=r"rollout_1\.0 update"):
        EngineCalls(engines, go_past_dead=False)("update", [{}, {}])


def test_a_mistake_is_never_gone_past() -> None:
    with pytest.raises(ValueError, match="GPU UUID"):
        EngineCalls({"a": FakeEngine(ValueError("GPU UUID"))}, go_past_dead=True)("update", [{}])


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
        backend: Backend, weights: LearnerWeights, fan_out: FanOut, *, rank: int, meeting: Rendezvous
    ) -> FakeSender:
        senders.append(FakeSender(weights, meeting))
        return senders[-1]

    monkeypatch.setattr(transfers, "open_sender", open_sender)
    return senders


def named_weights() -> Iterator[tuple[str, Tensor]]:
    yield "w", torch.ones(3)


def engines(*names: str) -> Mapping[str, Any]:
    return {name: FakeEngine() for name in names}


def test_the_group_lasts_until_its_members_change(opened: list[FakeSender]) -> None:
    direct = DirectTransfer("nccl", named_weights, rank=0, address="127.0.0.1")
    for members in (("0.0", "1.0"), ("0.0", "1.0"), ("0.0", "1.1"), ("0.0",)):
        direct.send(engines(*members), 2)
    assert [(sender.meeting.engines, sender.ended) for sender in opened] == [(2, True), (2, True), (1, False)]
    assert [sender.meeting.world_size for sender in opened] == [5, 5, 3]
    assert all(sender.meeting.port for sender in opened)


def test_the_checksum_is_the_same_on_every_rank(opened: list[FakeSender]) -> None:
    sent = {DirectTransfer("ipc", named_weights, rank=rank, address="").send(engines("0.0"), 1) for rank in (0, 1)}
    assert len(sent) == 1
