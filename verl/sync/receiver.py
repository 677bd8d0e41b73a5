"""The engine's end of the memory-mapped carrier. Called on every rank of an engine, by ``worker_extension``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from verl.errors import InfrastructureError
from verl.sync.adapters import HeldBase
from verl.sync.carrier import mapped_weights
from verl.sync.update import WeightUpdate


def load_file(model: Any, update: WeightUpdate, version: int, held: HeldBase) -> None:
    """Copy a mapped file into the model's parameters, in place (each tensor-parallel rank takes its shard).

    Of a file of adapters their sum with the base is loaded; ``held`` is the base that the model has already.

    Raises InfrastructureError on another version, a damaged file, or a parameter left out.
    """
    if update.version != version:
        raise InfrastructureError(
            f"expected weights version {version}, the file described holds version {update.version}"
        )
    everything = held.switch(update.base)
    with mapped_weights(update) as weights:
        if update.base is not None:
            device = next(model.parameters()).device
            weights = held.merged(weights, update.scale, device, everything=everything)
        loaded = model.load_weights(weights)
    if everything:  # later adapters change a part of the weights; the canary tells whether they arrived
        check_complete((name for name, _ in model.named_parameters()), loaded, f"weights version {version}")


def check_complete(parameters: Iterable[str], loaded: Collection[str], what: str) -> None:
    """Raise InfrastructureError if a parameter was left as it was."""
    missing = set(parameters) - set(loaded)
    if missing:
        raise InfrastructureError(
            f"{what} leaves {len(missing)} parameters as they were, "
            f"{min(missing)} among them: the learner must send every parameter of the checkpoint"
        )
