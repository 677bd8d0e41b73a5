"""A file of weights to every other node that has an engine, once each, in pieces of bounded size. No Ray, no torch.

Where all processes are on one node nothing is sent and no process is started. Elsewhere a small actor on each node
reads or writes the file, piece by piece through Ray's object store; the learner and the engines are not held up.
Invariants: a received file is whole before it has its name, and its checksum is the one described; the folder of a run
that is over is removed by the next run on the same machine, and that of a living run never is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl.errors import InfrastructureError
from verl.sync import WeightUpdate

PIECE_BYTES = 1 << 24
AHEAD = 2
"""Pieces asked for before the last one arrived: what a transfer holds in the object store."""
CLOSE_TIMEOUT_S = 5.0
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


def release(update: WeightUpdate) -> None:
    """Remove the file, once every engine has loaded it. Mappings that still exist stay valid."""
    Path(update.path).unlink(missing_ok=True)


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


class RelayActor:
    """One node's end of transfers."""

    def __init__(self, run: str, node: str) -> None:
        self._folder = RunFolderInMemory(run, node[:12])

    async def read(self, path: str, offset: int) -> bytes:
        """A piece of a file of this node."""
        return await asyncio.to_thread(read_piece, path, offset)

    async def fetch(self, update: WeightUpdate, source: Any) -> WeightUpdate:
        """Make another node's file one of this node; ``source`` is that node's actor."""
        return await receive(update, _pieces(update, source), self._folder.path)

    async def release(self, update: WeightUpdate) -> None:
        """Remove a file."""
        release(update)

    async def close(self) -> None:
        """Remove all of them."""
        self._folder.close()


async def _pieces(update: WeightUpdate, source: Any) -> AsyncIterator[bytes]:
    asked: deque[Any] = deque()
    offsets = iter(range(0, update.size_bytes, PIECE_BYTES))
    while True:
        while len(asked) < AHEAD and (offset := next(offsets, None)) is not None:
            asked.append(source.read.remote(update.path, offset))
        if not asked:
            return
        yield await asked.popleft()


class Relay:
    """The driver's end: which node has which file, and an actor on each, started as they are needed."""

    def __init__(
        self,
        start: Callable[[str], Any],
        *,
        here: str,
        has_died: Callable[[Exception], bool],
        explain: Callable[[Exception], Exception],
    ) -> None:
        """``start`` makes a node's ``RelayActor``; ``here`` is our node; the others read an actor's error."""
        self._start, self._here, self._has_died, self._explain = start, here, has_died, explain
        self._actors: dict[str, Any] = {}
        self._copies: dict[tuple[str, int], dict[str, asyncio.Task[WeightUpdate]]] = {}

    async def at(self, update: WeightUpdate, node: str) -> WeightUpdate:
        """The same weights as a file of ``node``. Raises InfrastructureError if they cannot be brought there."""
        if node == update.node:
            return update
        if update.base is not None:
            alone, base = await asyncio.gather(self._file_at(update, node), self.at(update.base, node))
            return replace(alone, base=base)
        return await self._file_at(update, node)

    async def _file_at(self, update: WeightUpdate, node: str) -> WeightUpdate:
        copies = self._copies.setdefault((update.path, update.checksum), {})
        if node not in copies or (copies[node].done() and copies[node].exception() is not None):
            copies[node] = asyncio.create_task(self._fetch(update, node))
        return await asyncio.shield(copies[node])

    async def release(self, update: WeightUpdate) -> None:
        """Remove the file and its copies, each on its node: the learner's first rank need not be on ours."""
        copies = self._copies.pop((update.path, update.checksum), {})
        done = [copy.result() for copy in copies.values() if copy.done() and copy.exception() is None]
        files = update, *done
        for file in files:
            if file.node == self._here:
                release(file)
        await _at_most([self._release_at(file) for file in files if file.node != self._here])

    async def _release_at(self, file: WeightUpdate) -> None:
        await self._on(file.node).release.remote(file)

    async def _fetch(self, update: WeightUpdate, node: str) -> WeightUpdate:
        try:
            copy = await self._on(node).fetch.remote(update, self._on(update.node))
        except Exception as error:
            if self._has_died(error):  # one of the two: the next transfer starts both anew
                self._actors.pop(node, None)
                self._actors.pop(update.node, None)
            raise InfrastructureError(
                f"weights version {update.version} did not reach node {node}: {self._explain(error)}"
            ) from error
        return replace(copy, node=node)

    def _on(self, node: str) -> Any:
        if node not in self._actors:
            self._actors[node] = self._start(node)
        return self._actors[node]

    async def close(self) -> None:
        """Let every node that still answers remove what it received."""
        await _at_most([actor.close.remote() for actor in self._actors.values()])


async def _at_most(calls: Sequence[Awaitable[Any]]) -> None:
    """Wait for the calls, whatever comes of them, but not for a node that is gone."""
    if calls:
        await asyncio.wait([asyncio.gather(*calls, return_exceptions=True)], timeout=CLOSE_TIMEOUT_S)
