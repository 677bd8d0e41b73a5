"""Where the parts of a Hugging Face model lie, for those of text alone and those that read pictures too.

And which tensors have kernels of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VISION = "model.visual."
"""How the names of what sees pictures begin. It is never trained: as published, and as LLaMA-Factory has it."""


def reads_pictures(lm: nn.Module) -> bool:
    """Whether the model has a part that sees."""
    return hasattr(getattr(lm, "model", None), "visual")


def decoder_of(lm: nn.Module) -> Any:
    """The decoder of text: embeddings, ``layers``, norm."""
    return lm.model.language_model if reads_pictures(lm) else lm.base_model  # type: ignore[union-attr]


def kernels_for(x: Tensor) -> Any:
    """``verl.learner.kernels`` where it takes ``x``, on a GPU in float32 or less; None elsewhere.

    Imported here and not by its users: on a CPU there need be no Triton.
    """
    if not x.is_cuda or x.dtype == torch.float64:
        return None
    from verl.learner import kernels

    return kernels
