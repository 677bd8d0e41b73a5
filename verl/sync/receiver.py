"""The engine's end of the memory-mapped carrier: a weight-transfer back end that vLLM's workers load by name.

Invariant: after an update every parameter of the model holds the new version, or the update raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from verl.errors import InfrastructureError
from verl.sync.carrier import WeightUpdate, mapped_weights

BACKEND = "shm"


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: each update describes its own file."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """The file and the version that the caller expects in it."""

    update: WeightUpdate
    version: int


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Copies a mapped file into the model's parameters, in place (each tensor-parallel rank takes its shard)."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing to prepare: parameters are overwritten in place."""

    def finish_weight_update(self) -> None:
        """Nothing to finish: ``receive_weights`` returns with the copy done."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """vLLM's entry point; the base class would also synchronise an accelerator, which need not exist here."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Load the file. Raises InfrastructureError on another version, a damaged file, or a parameter left out."""
        update = update_info.update
        if update.version != update_info.version:
            raise InfrastructureError(
                f"expected weights version {update_info.version}, the file described holds version {update.version}"
            )
        with mapped_weights(update) as weights:
            loaded = self.model.load_weights(weights)
        missing = {name for name, _ in self.model.named_parameters()} - set(loaded)
        if missing:
            raise InfrastructureError(
                f"weights version {update.version} leaves {len(missing)} parameters as they were, "
                f"{min(missing)} among them: the learner must send every parameter of the checkpoint"
            )

    def shutdown(self) -> None:
        """Nothing is held between updates."""
