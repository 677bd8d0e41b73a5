"""Weights through one memory-mapped file: the carrier between processes of one machine that share no GPU.

The learner streams tensors into a file (in ``/dev/shm``: memory, not disk); every engine maps it, copies from it into
its own parameters and lets go; the publisher removes it once all have it. Invariants: a file is complete before its
description exists (written under a temporary name, then renamed); what is read is what was written (version, size and
checksum are compared); tensors never pass through pickle.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from verl.errors import InfrastructureError
from verl.sync.update import WeightEntry, WeightUpdate

__all__ = ["WeightEntry", "WeightUpdate", "mapped_weights", "publish", "release"]

# Tensors start at multiples of this, so that a view of any dtype is aligned.
_ALIGN_BYTES = 64
_CHUNK_BYTES = 1 << 24


def publish(
    named_weights: Iterable[tuple[str, Tensor]], version: int, folder: str | Path, kind: str = "weights"
) -> WeightUpdate:
    """Write the tensors, one at a time, to a new file in ``folder``, whose name begins with ``kind``, and describe it.

    Raises InfrastructureError if the folder is full or gone; nothing is left behind then.
    """
    final = Path(folder) / f"{kind}-{version:08d}-{os.getpid()}.bin"
    partial = final.with_suffix(".partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            writer = _Writer(file.fileno())
            for name, tensor in named_weights:
                writer.add(name, tensor)
        partial.rename(final)
    except OSError as error:
        raise InfrastructureError(f"weights version {version} could not be written to {final}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return WeightUpdate(version, str(final), tuple(writer.entries), writer.size_bytes, writer.checksum)


def release(update: WeightUpdate) -> None:
    """Remove the file, once every engine has loaded it. Mappings that still exist stay valid."""
    Path(update.path).unlink(missing_ok=True)


@contextmanager
def mapped_weights(update: WeightUpdate) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The tensors as read-only views of the mapped file, valid inside the block; copy what must live longer.

    Raises InfrastructureError if the file is missing or is not the one described.
    """
    try:
        with open(update.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != update.size_bytes:
                raise InfrastructureError(
                    f"{update.path} holds {size} bytes, its description says {update.size_bytes}: was it cut short?"
                )
            # A private writable mapping: torch wants writable memory, and a stray write could not reach the file.
            view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise InfrastructureError(
            f"weights version {update.version} cannot be read from {update.path}: {error}"
        ) from error
    checksum = _checksum(view)
    if checksum != update.checksum:
        raise InfrastructureError(
            f"{update.path} has checksum {checksum:08x}, its description says {update.checksum:08x}: "
            f"it does not hold weights version {update.version}"
        )
    # No explicit close: the mapping ends with the last view of it.
    yield ((entry.name, _tensor(view, entry)) for entry in update.entries)


class _Writer:
    """Appends tensors to a file descriptor, aligned, with a running checksum."""

    def __init__(self, descriptor: int) -> None:
        self.entries: list[WeightEntry] = []
        self.size_bytes = 0
        self.checksum = 0
        self._descriptor = descriptor

    def add(self, name: str, tensor: Tensor) -> None:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy().data)
        entry = WeightEntry(name, tuple(tensor.shape), _dtype_name(tensor.dtype), self.size_bytes, len(data))
        self._write(data)
        self._write(memoryview(bytes(-len(data) % _ALIGN_BYTES)))
        self.entries.append(entry)

    def _write(self, data: memoryview) -> None:
        self.size_bytes += len(data)
        self.checksum = zlib.crc32(data, self.checksum)
        while data:
            data = data[os.write(self._descriptor, data[:_CHUNK_BYTES]) :]


def _checksum(view: mmap.mmap) -> int:
    checksum = 0
    with memoryview(view) as whole:
        for start in range(0, len(whole), _CHUNK_BYTES):
            checksum = zlib.crc32(whole[start : start + _CHUNK_BYTES], checksum)
    return checksum


def _tensor(view: mmap.mmap, entry: WeightEntry) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    count = entry.size_bytes // dtype.itemsize
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=entry.offset_bytes).view(entry.shape)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
