"""The description of one set of weights on its way from learner to engines. No torch: the controller passes it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """Where one tensor lies in the file."""

    name: str
    """The parameter's name in a Hugging Face checkpoint."""
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the prefix: ``float32``, ``bfloat16``."""
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """One version of the weights, in one file that every engine on the same machine can map."""

    version: int
    path: str
    entries: tuple[WeightEntry, ...]
    size_bytes: int
    checksum: int
    """CRC-32 of the whole file: an engine refuses a file that is not the one described."""
    node: str = ""
    """The node whose file it is, by Ray's id; empty where there is only one."""
    base: WeightUpdate | None = None
    """Where only adapters travel: the weights that each engine adds them to, in a file that stays as it is."""
    scale: float = 1.0
    """What the product of an adapter's two matrices is multiplied by."""
