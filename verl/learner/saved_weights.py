"""Reads the weights of a Hugging Face folder, one tensor at a time, without building the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from verl.errors import UserError


def read_weights(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """``(name, tensor)`` of every saved tensor, cast to ``dtype``, on CPU. Raises UserError if there are none."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors file: give a model folder in Hugging Face format")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                yield name, tensors.get_tensor(name).to(dtype)
