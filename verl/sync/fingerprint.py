"""What a stream of weights was, as one number that both ends of a transfer compute where the tensors are."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """Names, shapes, dtypes and the sum of all bits of each tensor, in order.

    It tells a tensor that is missing, stale, cut short or damaged; what it cannot tell (numbers that changed places
    within one tensor) shows in the canary. One reduction a tensor, and one number a tensor to the host at the end.
    """

    def __init__(self) -> None:
        self._heads: list[str] = []
        self._sums: list[Tensor] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Count a tensor in; it is not kept."""
        words = tensor.detach().contiguous().reshape(-1).view(_WORD[tensor.element_size()])
        self._heads.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
        self._sums.append(words.sum(dtype=torch.int64))

    def value(self) -> int:
        """CRC-32 of all that was added. Streams on which tensors were added must have been waited for."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        lines = [f"{head} {total}" for head, total in zip(self._heads, sums, strict=True)]
        return zlib.crc32("\n".join(lines).encode())
