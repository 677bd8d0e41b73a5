"""Weights to every node that has an engine: each node gets a version once, into its own shared memory.

Where all processes are on one node nothing is sent and no process is started. Elsewhere a small actor on each node
reads or writes the file, piece by piece through Ray's object store; the learner and the engines are not held up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from verl.cluster.calls import answer
from verl.cluster.ray_runtime import first_cause, has_died
from verl.errors import InfrastructureError
from verl.sync.relay import RunFolderInMemory, read_piece, receive
from verl.sync.update import WeightUpdate

AHEAD = 2
"""Pieces asked for before the last one arrived: what a transfer holds in the object store."""

CLOSE_TIMEOUT_S = 5.0


def this_node() -> str:
    """Ray's id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


class CarrierActor:
    """One node's end of transfers."""

    def __init__(self, run: str, node: str) -> None:
        self._folder = RunFolderInMemory(run, node[:12])

    async def read(self, path: str, offset: int) -> bytes:
        """A piece of a file of this node."""
        return await asyncio.to_thread(read_piece, path, offset)

    async def fetch(self, update: WeightUpdate, source: Any) -> WeightUpdate:
        """Make another node's file one of this node; ``source`` is that node's carrier."""
        return await receive(update, _pieces(update, source), self._folder.path)

    async def release(self, update: WeightUpdate) -> None:
        """Remove a file."""
        from verl.sync.carrier import release

        release(update)

    async def close(self) -> None:
        """Remove all of them."""
        self._folder.close()


async def _pieces(update: WeightUpdate, source: Any) -> AsyncIterator[bytes]:
    from verl.sync.relay import PIECE_BYTES

    asked: deque[Any] = deque()
    offsets = iter(range(0, update.size_bytes, PIECE_BYTES))
    while True:
        while len(asked) < AHEAD and (offset := next(offsets, None)) is not None:
            asked.append(source.read.remote(update.path, offset))
        if not asked:
            return
        yield await asked.popleft()


class Carriers:
    """The carriers of a run, started as they are needed."""

    def __init__(self, run: str) -> None:
        """``run`` names the run's folder in shared memory."""
        self._run = run
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
        """Remove the file and its copies on other nodes."""
        from verl.sync.carrier import release

        copies = self._copies.pop((update.path, update.checksum), {})
        done = [copy.result() for copy in copies.values() if copy.done() and copy.exception() is None]
        for file in (update, *done):
            if file.node == this_node():
                release(file)
            elif (actor := self._actors.get(file.node)) is not None:
                await asyncio.gather(actor.release.remote(file), return_exceptions=True)  # its node may be gone

    async def _fetch(self, update: WeightUpdate, node: str) -> WeightUpdate:
        try:
            copy = await self._on(node).fetch.remote(update, self._on(update.node))
        except Exception as error:
            if has_died(error):  # one of the two: the next transfer starts both anew
                self._actors.pop(node, None)
                self._actors.pop(update.node, None)
            cause = first_cause(error, "weights", [])
            raise InfrastructureError(f"weights version {update.version} did not reach node {node}: {cause}") from error
        return replace(copy, node=node)

    def _on(self, node: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node not in self._actors:
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            options = ray.remote(CarrierActor).options(num_cpus=0, scheduling_strategy=place)
            self._actors[node] = options.remote(self._run, node)
        return self._actors[node]

    async def close(self) -> None:
        """Let every node that still answers remove what it received."""
        closing = [asyncio.ensure_future(answer(actor.close.remote())) for actor in self._actors.values()]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
