"""LoRA between learner and engines: the base travels once, then two narrow matrices an adapted layer.

An engine keeps the base mapped (one copy in shared memory for all engines of a node) and loads base + scale * up @
down. It generates with plain merged weights: nothing is slower, and nothing depends on what it knows of adapters. The
base has the engine's dtype: where that is narrower than the learner's and the base was trained before (a warm-up), it
is rounded once before the sum and once after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from verl.errors import InfrastructureError
from verl.sync.carrier import mapped_weights
from verl.sync.update import WeightUpdate

DOWN, UP = ".lora_A", ".lora_B"
"""What follows the name of an adapted weight in the name of its two matrices."""


def with_adapter(base: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """``base + scale * up @ down`` in the precision of ``up`` and ``down``: ``[out, in]``."""
    return base.to(up.dtype) + scale * (up @ down)


class HeldBase:
    """The base that one engine has loaded, mapped for the next adapters."""

    def __init__(self) -> None:
        self._update: WeightUpdate | None = None
        self._tensors: dict[str, Tensor] = {}

    def switch(self, update: WeightUpdate | None) -> bool:
        """Hold this base, or none, from now on; False if it is the one held (two files with one checksum are the same).

        Raises InfrastructureError if the file is missing or is not the one described.
        """
        held = self._update
        if update and held and (held.version, held.checksum) == (update.version, update.checksum):
            return False
        self._update, self._tensors = None, {}
        if update is not None:
            with mapped_weights(update) as weights:
                self._tensors = dict(weights)
            self._update = update
        return True

    def merged(
        self, adapters: Iterable[tuple[str, Tensor]], scale: float, device: torch.device, *, everything: bool
    ) -> Iterator[tuple[str, Tensor]]:
        """The adapted weights in the base's dtype on ``device``; with ``everything`` also those without an adapter.

        Raises InfrastructureError if an adapter is half there or fits no weight of the base.
        """
        matrices = dict(adapters)
        names = [name.removesuffix(UP) for name in matrices if name.endswith(UP)]
        pairs = {name: (matrices.pop(name + UP), matrices.pop(name + DOWN, None)) for name in names}
        unknown = [name for name, (_, down) in pairs.items() if down is None or name not in self._tensors]
        if unknown or matrices:
            raise InfrastructureError(f"the adapter of {min([*unknown, *matrices])} fits no weight of the base")
        for name, base in self._tensors.items():
            up, down = pairs.get(name, (None, None))
            if up is not None and down is not None:
                full = with_adapter(base.to(device), up.to(device), down.to(device), scale)
                yield name, full.to(base.dtype)
            elif everything:
                yield name, base
