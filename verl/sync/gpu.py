"""Weights from GPU to GPU, by vLLM's own engines of both ends: what ``ipc`` and ``nccl`` have in common.

vLLM's trainer engine drives the transfer; here stand what it asks for: the weights as a source that can be read again
each round, and a client that reaches our engines. Order of an update: engines pause; start, buckets, finish (vLLM's
calls); each engine compares what came and what it then holds with what the learner sent, takes the version and steps
again. vLLM keeps the old value of a parameter that was not sent, with a warning at most (for a tied head, which shares
the embeddings' storage, it warns for nothing); an engine here holds the whole new version or says so.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from verl.errors import EngineDiedError, InfrastructureError
from verl.sync import BUCKET_BYTES, Engines, Learner, Sent, Transport, WeightUpdate
from verl.sync.canary import Fingerprint
from verl.sync.file import check_complete

log = logging.getLogger(__name__)

Arguments = dict[str, Any]
Ask = Callable[[str, Mapping[str, tuple[Any, Arguments]]], Iterator[tuple[str, Exception | None]]]
"""``ask(method, {name: (engine, arguments)})`` calls ``engine.transfer`` on all at the same time, in ``verl.cluster``:
names as they answer, with what kept one from it, EngineDiedError where it died."""


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


# -- the driver's end --


class GpuTransport:
    """A ``Transport``: the engines pause while the learner gives them its weights.

    Where that cannot work (a driver that refuses to share memory, cards that do not reach one another), every engine
    dies of it. They come back with the weights of a file; after ``TRIES`` such versions in a row all go by file.
    """

    TRIES = 2

    def __init__(self, name: str, dtype: str, ranks_per_engine: int, instead: Transport) -> None:
        """``name`` is ``ipc`` or ``nccl``, ``instead`` the way by file."""
        self._name, self._dtype, self._ranks = name, dtype, ranks_per_engine
        self._instead = instead
        self._failed = 0

    async def give(self, version: int, learner: Learner, engines: Engines) -> WeightUpdate | None:
        """See ``Transport``; no file is left of a transfer."""
        if self._failed >= self.TRIES:
            return await self._instead.give(version, learner, engines)
        paused = await engines.on_all("pause", lambda actor: actor.pause.remote())
        if not paused:
            return None
        took: dict[str, Any] = {}
        try:
            sent = await learner.send(self._name, self._dtype, engines.processes(paused), self._ranks)
        except EngineDiedError as error:  # NCCL: those that live may wait in a broadcast for ever
            engines.replace(paused, error, "the transfer to its group broke off")
        except InfrastructureError as error:  # the learner's own end, or an engine that cannot map what it was given
            raise InfrastructureError(
                f"rollout.engine.weight_transfer={self._name} does not work here, write shm: {error}"
            ) from error
        else:
            took = await engines.on_all("commit_received", lambda actor: actor.commit_received.remote(version, sent))
        self._failed = 0 if took else self._failed + 1
        if self._failed == self.TRIES:
            log.warning(
                "warning: %d versions of the weights in a row reached no engine by %s: from now on they go by file "
                "(rollout.engine.weight_transfer=shm), which is slower",
                self.TRIES,
                self._name,
            )
        return None


# -- the learner's end --


class Sender(Protocol):
    """vLLM's trainer engine."""

    def send_weights(self) -> None:
        """One update of every engine, from start to finish. Called by every learner rank."""
        ...

    def shutdown(self) -> None:
        """Leave the transfer group, if there is one, also while a transfer hangs."""
        ...


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

    def sent(self) -> Sent:
        """The last pass."""
        return Sent(self._fingerprint.value(), self._fingerprint.sums())

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
    """vLLM's ``VLLMWeightSyncClient``: the calls of an update, to all engines at once."""

    def __init__(self, engines: Mapping[str, Any], ask: Ask, *, ranks_per_engine: int, go_past_dead: bool) -> None:
        """With ``go_past_dead`` an engine that dies is left out from then on; whoever commits the version finds it."""
        self._engines = dict(engines)
        self._ask = ask
        self._ranks_per_engine = ranks_per_engine
        self._go_past_dead = go_past_dead
        self.death: EngineDiedError | None = None
        """What ended the transfer, if an engine's death did."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called before an engine's error is raised: with NCCL the sender's broadcast would wait for ever."""

    def init_weight_transfer_engine(self, init_info: Arguments) -> None:
        """Introduce the engines; each gets its own place among the ranks where places matter (NCCL)."""
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] += number * self._ranks_per_engine
        self._same("shutdown_weight_transfer_engine", {})  # of a group that had other members
        self._call("init_weight_transfer_engine", [{"init_info": info} for info in infos])

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
        """Close the update. The manager commits the version, by ``VllmEngine.commit_received``."""
        self._same("finish_weight_update", {})

    def _same(self, method: str, arguments: Arguments) -> None:
        self._call(method, [arguments] * len(self._engines))

    def _call(self, method: str, arguments: Sequence[Arguments]) -> None:
        calls = {name: (engine, own) for (name, engine), own in zip(self._engines.items(), arguments, strict=True)}
        for name, error in self._ask(method, calls):
            if isinstance(error, EngineDiedError) and self._go_past_dead:
                del self._engines[name]
            elif error is not None:
                self.death = error if isinstance(error, EngineDiedError) else None
                raise error


class GpuSender:
    """One rank of the learner; all send at the same time. Meets engines anew when others are there."""

    def __init__(
        self,
        transport: str,
        named_weights: Callable[[], Iterator[tuple[str, Tensor]]],
        ask: Ask,
        *,
        rank: int,
        free_port: Callable[[], tuple[str, int]],
    ) -> None:
        """``free_port`` finds where engines can meet this rank, if it is the first."""
        self._transport = importlib.import_module(f"verl.sync.{transport}")
        self._weights = LearnerWeights(named_weights)
        self._ask = ask
        self._rank = rank
        self._free_port = free_port
        self._client: EngineClient | None = None
        self._sender: Sender | None = None
        self._members: tuple[str, ...] = ()

    def send(self, engines: Mapping[str, Any], ranks_per_engine: int) -> Sent:
        """One version to these engines, by the name of each process. Collective.

        Raises EngineDiedError if one died whom the others would wait for.
        """
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM reads on streams of its own what the optimizer wrote on another
        self._weights.begin()
        try:
            if self._sender is None or tuple(engines) != self._members:
                self._meet(engines, ranks_per_engine)
            assert self._sender is not None
            self._sender.send_weights()
        except Exception as error:
            client, self._client, self._members = self._client, None, ()  # the next transfer meets anew
            if client is None or client.death is None:
                raise
            self._weights.finish()
            raise client.death from error  # whatever that broke first: the rendezvous, the broadcast
        return self._weights.sent()

    def _meet(self, engines: Mapping[str, Any], ranks_per_engine: int) -> None:
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None
        address, port = self._free_port() if self._rank == 0 else ("", 0)
        meeting = Rendezvous(address, port, len(engines), ranks_per_engine)
        past_dead = self._transport.GOES_PAST_DEAD
        self._client = EngineClient(engines, self._ask, ranks_per_engine=ranks_per_engine, go_past_dead=past_dead)
        self._sender = open_sender(self._transport, self._weights, self._client, rank=self._rank, meeting=meeting)
        self._members = tuple(engines)


def open_sender(
    transport: Any, weights: LearnerWeights, client: EngineClient, *, rank: int, meeting: Rendezvous
) -> Sender:
    """A trainer engine of ``transport`` (the module) whose ``send_weights()`` gives every engine the weights.

    Called by every learner rank. The engines must be paused around ``send_weights``: half-loaded weights may not be
    stepped.
    """
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    info = transport.trainer_info(meeting, rank, weights.bucket_bytes())
    sender: Sender = WeightTransferTrainerFactory.trainer_init(info, client=client, source=weights)
    client.on_failure = sender.shutdown
    return sender


# -- the engine's end --


class Arrivals:
    """What one update brought so far; stands in for the model where vLLM's receivers load into it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # Now, because while vLLM loads, tied parameters are apart.
        self._parameters = [name for name, _ in model.named_parameters()]
        self._loaded: set[str] = set()
        self._fingerprint = Fingerprint()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load one bucket of tensors, and note them."""
        bucket = list(weights)
        for name, tensor in bucket:
            self._fingerprint.add(name, tensor)
        loaded = set(self._model.load_weights(bucket))
        self._loaded |= loaded
        return loaded

    def checksum(self) -> int:
        """Of all that came. Raises InfrastructureError if a parameter was left out."""
        check_complete(self._parameters, self._loaded, "the transfer")
        return self._fingerprint.value()


class Watched:
    """Before one of vLLM's receivers among the base classes: notes what its updates bring."""

    model: Any
    _arrivals: Arrivals | None = None

    def start_weight_update(self) -> None:
        """Vllm's, with a fresh account."""
        self._arrivals = Arrivals(self.model)
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        """Vllm's, into the model by way of the account."""
        model, self.model = self.model, self._arrivals
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def received(self) -> int:
        """The checksum of the update that has just been finished, once. Raises InfrastructureError if it left gaps."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is None:
            raise InfrastructureError("no weights were received since the last version")
        return arrivals.checksum()
