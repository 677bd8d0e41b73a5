"""A file of weights from one machine to another, in pieces of bounded size: what each end does. No Ray, no torch.

Invariants: a received file is whole before it has its name, and its checksum is the one described; the folder of a run
that is over is removed by the next run on the same machine, and that of a living run never is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from verl.errors import InfrastructureError
from verl.sync.update import WeightUpdate

PIECE_BYTES = 1 << 24
SHARED_MEMORY = Path("/dev/shm")
_OWNER = ".owner"


def read_piece(path: str, offset: int) -> bytes:
    """At most ``PIECE_BYTES`` of a file from ``offset``; empty at its end. Raises InfrastructureError if it is gone."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except OSError as error:
        raise InfrastructureError(f"weights cannot be sent from {path}: {error}") from error


async def receive(update: WeightUpdate, pieces: AsyncIterator[bytes], folder: Path) -> WeightUpdate:
    """Write the pieces, in order, to a file in ``folder``; returns its description: ``update`` with another path.

    Raises InfrastructureError if the folder is full, or the pieces are not the file described; nothing is left then.
    """
    final = folder / Path(update.path).name
    partial = final.with_suffix(".partial")
    size = checksum = 0
    try:
        with partial.open("wb") as file:
            async for piece in pieces:
                file.write(piece)
                size, checksum = size + len(piece), zlib.crc32(piece, checksum)
        if (size, checksum) != (update.size_bytes, update.checksum):
            raise InfrastructureError(
                f"weights version {update.version}: {size} bytes with checksum {checksum:08x} arrived, "
                f"{update.size_bytes} with {update.checksum:08x} were sent"
            )
        partial.rename(final)
    except OSError as error:
        raise InfrastructureError(f"weights version {update.version} cannot be written to {final}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return replace(update, path=str(final))


class RunFolderInMemory:
    """This process's folder in shared memory, known as living while the process does."""

    def __init__(self, run: str, part: str, root: Path = SHARED_MEMORY) -> None:
        """``run`` is the run's name (``sleuth-...``), ``part`` the folder's name in it. Removes dead runs' folders."""
        self.path = root / run / part
        self.path.mkdir(parents=True, exist_ok=True)
        self._owner = open(root / run / _OWNER, "w")  # noqa: SIM115 (held open for the life of the process)
        fcntl.flock(self._owner, fcntl.LOCK_SH)
        for owner in root.glob(f"sleuth-*/{_OWNER}"):
            if owner.parent.name != run and _is_free(owner):
                shutil.rmtree(owner.parent, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


def _is_free(owner: Path) -> bool:
    try:
        descriptor = os.open(owner, os.O_RDWR)
    except FileNotFoundError:  # removed since it was listed
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
