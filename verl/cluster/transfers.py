"""A learner rank's end of a GPU transfer: engines as Ray actors, and a sender that lasts while they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verl.cluster.processes import free_port
from verl.cluster.ray_runtime import first_cause, has_died
from verl.errors import EngineDiedError
from verl.sync.gpu import Arguments, Backend, LearnerWeights, Rendezvous, Sender, open_sender

if TYPE_CHECKING:
    from torch import Tensor


class EngineCalls:
    """One call to every engine at a time. With ``go_past_dead`` an engine that dies is left out from then on.

    Whoever committed the version afterwards finds the death again; here it only must not keep the others waiting.
    """

    def __init__(self, engines: Mapping[str, Any], *, go_past_dead: bool) -> None:
        self._engines = dict(engines)
        self._go_past_dead = go_past_dead
        self._dead: set[str] = set()
        self.death: EngineDiedError | None = None
        """What ended the transfer, if an engine's death did."""

    def __call__(self, method: str, arguments: Sequence[Arguments]) -> None:
        """A ``FanOut``. Raises at once what the first engine to fail raised; EngineDiedError if it died."""
        import ray

        calls = {
            actor.transfer.remote(method, own): name
            for (name, actor), own in zip(self._engines.items(), arguments, strict=True)
            if name not in self._dead
        }
        waiting = list(calls)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(done)
            except Exception as error:
                cause = first_cause(error, f"{calls[done]} {method}", [])
                if not has_died(error):
                    raise cause from error
                if not self._go_past_dead:
                    self.death = EngineDiedError(str(cause))
                    raise self.death from error
                self._dead.add(calls[done])


class DirectTransfer:
    """Gives engines this learner's weights without a file; every rank has one and sends at the same time."""

    def __init__(
        self, backend: Backend, named_weights: Callable[[], Iterator[tuple[str, Tensor]]], *, rank: int, address: str
    ) -> None:
        """``address`` is where engines can meet this rank, if it is the first."""
        self._backend: Backend = backend
        self._weights = LearnerWeights(named_weights)
        self._rank = rank
        self._address = address
        self._sender: Sender | None = None
        self._calls: EngineCalls | None = None
        self._members: tuple[str, ...] = ()

    def send(self, engines: Mapping[str, Any], ranks_per_engine: int) -> int:
        """One version to these engines, by the name of each process; returns its checksum. Collective."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM reads on streams of its own what the optimizer wrote on another
        self._weights.begin()
        try:
            if self._sender is None or tuple(engines) != self._members:
                self._open(engines, ranks_per_engine)
            assert self._sender is not None
            self._sender.send_weights()
        except Exception as error:
            calls, self._calls, self._members = self._calls, None, ()  # the next transfer meets anew
            if calls is None or calls.death is None:
                raise
            self._weights.finish()
            raise calls.death from error  # whatever that broke first: the rendezvous, the broadcast
        return self._weights.checksum()

    def _open(self, engines: Mapping[str, Any], ranks_per_engine: int) -> None:
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None
        port = free_port(self._address) if self._backend == "nccl" and self._rank == 0 else 0
        meeting = Rendezvous(self._address, port, len(engines), ranks_per_engine)
        # A member that is gone leaves an IPC transfer whole; an NCCL group without it is none.
        self._calls = EngineCalls(engines, go_past_dead=self._backend == "ipc")
        self._sender = open_sender(self._backend, self._weights, self._calls, rank=self._rank, meeting=meeting)
        self._members = tuple(engines)
