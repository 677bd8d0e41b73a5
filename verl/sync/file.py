"""Weights through one memory-mapped file: the transport between processes of one machine that share no GPU.

The learner streams tensors into a file (in ``/dev/shm``: memory, not disk); every engine maps it, copies from it into
its own parameters and lets go; the manager removes it once all have the next. Of LoRA the base travels once, then two
narrow matrices an adapted layer: engines keep the base mapped and load the sum, so they know nothing of adapters and
are no slower; where their dtype is narrower than the learner's, the base is rounded before the sum and the sum after.
Invariants: a file is complete before its
description exists (written under a temporary name, then renamed); what is read is what was written (version, size and
checksum are compared), and loads the whole model or raises; tensors never pass through pickle.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from verl.algorithms.lora import DOWN, UP, with_adapter
from verl.errors import InfrastructureError
from verl.sync import Engines, Learner, WeightEntry, WeightUpdate
from verl.sync.canary import ENDS, Fingerprint

if TYPE_CHECKING:
    from verl.learner.learner import Learner as LearnerRank

Load = Callable[[Any, WeightUpdate, int], Awaitable[None]]
"""Asks one engine's actor to load a file that holds this version."""

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
    entries, sums = tuple(writer.entries), writer.ends.sums()
    return WeightUpdate(version, str(final), entries, writer.size_bytes, writer.checksum, sums=sums)


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
        self.ends = Fingerprint()
        self.size_bytes = 0
        self.checksum = 0
        self._descriptor = descriptor

    def add(self, name: str, tensor: Tensor) -> None:
        if name in ENDS:
            self.ends.add(name, tensor)
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy().data)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entry = WeightEntry(name, tuple(tensor.shape), dtype, self.size_bytes, len(data))
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


# -- the driver's end --


class FileTransport:
    """A ``Transport``: the learner writes a file, the engines load it."""

    def __init__(self, dtype: str, folder: str, load: Load) -> None:
        """``folder`` is shared memory of the learner's machine; ``load`` asks one engine's actor to load a file."""
        self._dtype, self._folder, self._load = dtype, folder, load

    async def give(self, version: int, learner: Learner, engines: Engines) -> WeightUpdate:
        """See ``Transport``."""
        update = await learner.publish(version, self._dtype, self._folder)
        await engines.on_all("update_weights", lambda actor: self._load(actor, update, version))
        return update


# -- the learner's end --


class Publisher:
    """One rank of the learner: all take part in each gather, rank 0 writes the file."""

    def __init__(self, learner: LearnerRank, *, writes: bool, node: str) -> None:
        """``node`` is the one that this rank is on."""
        self._learner, self._writes, self._node = learner, writes, node
        self._base: WeightUpdate | None = None
        self._has_base = False

    def forget_base(self) -> None:
        """The weights without the adapters may be others now: the next version brings them again."""
        self._has_base = False

    def publish(self, version: int, dtype: torch.dtype, folder: str) -> WeightUpdate | None:
        """Of LoRA only the adapters, where the learner says so: the base is written before the first of them."""
        if not self._learner.sends_adapters:
            return self._write(self._learner.named_weights(dtype), version, folder, "weights")
        if not self._has_base:
            self._base = self._write(self._learner.named_base(dtype), version, folder, "base")
            self._has_base = True
        update = self._write(self._learner.named_adapters(), version, folder, "adapters")
        return None if update is None else replace(update, base=self._base, scale=self._learner.adapter_scale)

    def _write(
        self, weights: Iterable[tuple[str, Tensor]], version: int, folder: str, kind: str
    ) -> WeightUpdate | None:
        if self._writes:
            return replace(publish(weights, version, folder, kind), node=self._node)
        for _ in weights:
            pass
        return None


# -- the engine's end --


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
