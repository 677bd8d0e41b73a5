"""LoRA's sum, which the learner takes where it merges and an engine where it is given adapters alone."""

from __future__ import annotations

from torch import Tensor

DOWN, UP = ".lora_A", ".lora_B"
"""What follows the name of an adapted weight in the name of its two matrices."""


def with_adapter(base: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """``base + scale * up @ down`` in the precision of ``up`` and ``down``: ``[out, in]``."""
    return base.to(up.dtype) + scale * (up @ down)
