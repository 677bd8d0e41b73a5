"""Weights over CUDA IPC or NCCL: the learner's end of vLLM's own carriers (``weight_transfer: ipc`` or ``nccl``).

vLLM's trainer engine drives the transfer; here stand what it asks for: the weights as a source that can be read again
each round, and a client that reaches our engines. Not run on the machine this was written on, which has no GPU; what is
plain bookkeeping is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Arguments = dict[str, Any]
FanOut = Callable[[str, Sequence[Arguments]], None]
"""``fan_out(method, arguments)`` calls ``method`` on engine i with ``arguments[i]``, on all at the same time, and
returns when all have answered (``VllmEngine.transfer`` behind a Ray actor). It raises what any of them raised."""


@dataclass(frozen=True)
class Rendezvous:
    """Where learner and engines meet for NCCL; ranks are the learner's sender (0), then each engine's in order."""

    address: str
    port: int
    engines: int
    ranks_per_engine: int

    @property
    def world_size(self) -> int:
        """All ranks of the transfer group."""
        return 1 + self.engines * self.ranks_per_engine


class LearnerWeights:
    """vLLM's ``WeightSource``: the learner's streaming gather, each pass a fresh one. Every rank of it takes part."""

    def __init__(self, named_weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._named_weights = named_weights
        self._metadata: list[Any] | None = None

    def metadata(self) -> list[Any]:
        """Names, dtypes and shapes in the order of a pass. The first call makes a pass; they never change after."""
        if self._metadata is None:
            from vllm.distributed.weight_transfer import ParamMeta

            self._metadata = [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self._named_weights()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._named_weights()


class EngineClient:
    """vLLM's ``VLLMWeightSyncClient``: the four calls of an update, to all engines at once."""

    def __init__(self, fan_out: FanOut, engines: int, ranks_per_engine: int) -> None:
        self._fan_out = fan_out
        self._engines = engines
        self._ranks_per_engine = ranks_per_engine

    def init_weight_transfer_engine(self, init_info: Arguments) -> None:
        """Introduce the engines; each gets its own place among the ranks where places matter (NCCL)."""
        infos = [dict(init_info) for _ in range(self._engines)]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] += number * self._ranks_per_engine
        self._fan_out("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        """Open an update on every engine."""
        self._same("start_weight_update", {})

    def update_weights(self, update_info: Arguments | list[Arguments]) -> None:
        """Let every engine receive one chunk."""
        self._same("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update. The controller commits the version, by ``VllmEngine.commit_version``."""
        self._same("finish_weight_update", {})

    def _same(self, method: str, arguments: Arguments) -> None:
        self._fan_out(method, [arguments] * self._engines)


def open_sender(
    backend: Literal["ipc", "nccl"], weights: LearnerWeights, fan_out: FanOut, *, rank: int, meeting: Rendezvous
) -> Any:
    """A trainer engine whose ``send_weights()`` gives every engine the learner's weights. Called by every learner rank.

    The engines must be paused around ``send_weights`` (half-loaded weights may not be stepped), then given the version
    (``VllmEngine.commit_version``) and resumed.
    """
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    client = EngineClient(fan_out, meeting.engines, meeting.ranks_per_engine)
    info: Any = (
        IPCTrainerInitInfo(rank=rank, packed=True)
        if backend == "ipc"
        else NCCLTrainerInitInfo(meeting.address, meeting.port, meeting.world_size, rank=rank)
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=weights)
