"""Weights over CUDA IPC or NCCL: the learner's end of vLLM's own carriers (``weight_transfer: ipc`` or ``nccl``).

vLLM's trainer engine drives the transfer; here stand what it asks for: the weights as a source that can be read again
each round, and a client that reaches our engines. Order of an update: engines pause; start, buckets, finish (vLLM's
calls); each engine's checksum is compared with the learner's, then it takes the version and steps again. Never run on
a GPU; messages, buckets and checksums are tested on CPU, through vLLM's own code on both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from verl.sync.fingerprint import Fingerprint

Backend = Literal["ipc", "nccl"]
Arguments = dict[str, Any]
FanOut = Callable[[str, Sequence[Arguments]], None]
"""``fan_out(method, arguments)`` calls ``method`` on engine i with ``arguments[i]``, on all at the same time, and
returns when all have answered (``VllmEngine.transfer`` behind a Ray actor). It raises what any of them raised."""

BUCKET_BYTES = 1 << 28
"""Tensors travel packed in buckets of this size, or of the largest tensor's: a bucket more of GPU memory at the learner
(``nccl``: two), and one at the engine."""


class Sender(Protocol):
    """vLLM's trainer engine."""

    def send_weights(self) -> None:
        """One update of every engine, from start to finish. Called by every learner rank."""
        ...

    def shutdown(self) -> None:
        """Leave the transfer group, if there is one, also while a transfer hangs."""
        ...


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
        self._fingerprint = Fingerprint()
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[Any]:
        """Names, dtypes and shapes in the order of a pass. The first call makes a pass; they never change after."""
        if self._metadata is None:
            from vllm.distributed.weight_transfer import ParamMeta

            self._metadata = [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self._named_weights()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._fingerprint = Fingerprint()
        self._pass = self._named_weights()
        for name, tensor in self._pass:
            self._fingerprint.add(name, tensor)
            yield name, tensor

    def checksum(self) -> int:
        """Of the last pass."""
        return self._fingerprint.value()

    def begin(self) -> None:
        """A transfer begins: no pass of it was made yet."""
        self._pass = None

    def finish(self) -> None:
        """Make what is left of the transfer's pass: the other ranks do, also where the one that sends gave up."""
        for _ in self._named_weights() if self._pass is None else self._pass:
            pass

    def bucket_bytes(self) -> int:
        """The size of a bucket: no tensor may be larger (vLLM refuses it with ``ipc``)."""
        return max([BUCKET_BYTES, *(math.prod(meta.shape) * meta.dtype.itemsize for meta in self.metadata())])


class EngineClient:
    """vLLM's ``VLLMWeightSyncClient``: the four calls of an update, to all engines at once."""

    def __init__(self, fan_out: FanOut, engines: int, ranks_per_engine: int) -> None:
        self._fan_out = fan_out
        self._engines = engines
        self._ranks_per_engine = ranks_per_engine
        self.on_failure: Callable[[], None] = lambda: None
        """Called before an engine's error is raised: with NCCL the sender's broadcast would wait for ever."""

    def init_weight_transfer_engine(self, init_info: Arguments) -> None:
        """Introduce the engines; each gets its own place among the ranks where places matter (NCCL)."""
        infos = [dict(init_info) for _ in range(self._engines)]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] += number * self._ranks_per_engine
        self._same("shutdown_weight_transfer_engine", {})  # of a group that had other members
        self._fan_out("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        """Open an update on every engine."""
        self._same("start_weight_update", {})

    def update_weights(self, update_info: Arguments | list[Arguments]) -> None:
        """Let every engine receive one chunk."""
        try:
            self._same("update_weights", {"update_info": update_info})
        except BaseException:
            self.on_failure()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update. The pool commits the version, by ``VllmEngine.commit_received``."""
        self._same("finish_weight_update", {})

    def _same(self, method: str, arguments: Arguments) -> None:
        self._fan_out(method, [arguments] * self._engines)


def open_sender(
    backend: Backend, weights: LearnerWeights, fan_out: FanOut, *, rank: int, meeting: Rendezvous
) -> Sender:
    """A trainer engine whose ``send_weights()`` gives every engine the learner's weights. Called by every learner rank.

    The engines must be paused around ``send_weights`` (half-loaded weights may not be stepped), then given the version
    and the checksum (``VllmEngine.commit_received``) and resumed.
    """
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    client = EngineClient(fan_out, meeting.engines, meeting.ranks_per_engine)
    bucket = weights.bucket_bytes()
    info: Any = (
        IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket)
        if backend == "ipc"
        else NCCLTrainerInitInfo(
            meeting.address, meeting.port, meeting.world_size, rank=rank, packed_buffer_size_bytes=bucket
        )
    )
    sender: Sender = WeightTransferTrainerFactory.trainer_init(info, client=client, source=weights)
    client.on_failure = sender.shutdown
    return sender
