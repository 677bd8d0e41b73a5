"""The engine's end of a GPU transfer: vLLM's own receivers, which also say what arrived.

vLLM keeps the old value of a parameter that was not sent, with a warning at most. Invariant here: after an update every
parameter holds the new version, or the update raised. vLLM's workers load these classes by name
(``worker_extension``); what they received is compared with what the learner sent before a token is sampled from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from verl.errors import InfrastructureError
from verl.sync.fingerprint import Fingerprint
from verl.sync.receiver import check_complete


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


class _Watched:
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


class WatchedIpcEngine(_Watched, IPCWeightTransferEngine):
    """CUDA IPC."""


class WatchedNcclEngine(_Watched, NCCLWeightTransferEngine):
    """NCCL broadcast."""
