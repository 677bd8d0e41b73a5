"""The newest version of the weights, given to all engines at once and to each that joins later.

Invariants: the newest version is known in ``Newest`` alone; an engine in service holds it and has passed its canary;
who joins does so before or after a push, never in between. A file stays until the next version is loaded everywhere. A
transfer from GPU to GPU leaves none: the learner writes one when an engine joins, and if it has trained on since, the
engine waits for the next version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from verl.sync import Engines, Learner, Transport, WeightUpdate
from verl.sync.canary import Canary, Probe
from verl.sync.relay import Relay, release

if TYPE_CHECKING:
    from torch import Tensor

    from verl.rollout.engine_config import EngineConfig

ReadSaved = Callable[[Path, str], "Iterable[tuple[str, Tensor]]"]
"""The weights of a Hugging Face folder by name, in a dtype."""


class ProbedLearner(Learner, Protocol):
    """A learner that answers the canary's prompts too."""

    async def probe(self, prompts: Any) -> Probe:
        """Its side of the canary."""
        ...


class Newest:
    """Which weights are the newest, and what an engine that joins must have and say. Touch it under ``lock``."""

    def __init__(self, relay: Relay | None = None) -> None:
        """``relay`` brings files to engines of other nodes; without it all are on one."""
        self.lock = asyncio.Lock()
        self.version: int | None = None
        """None until the first push: engines hold what they started from."""
        self.file: WeightUpdate | None = None
        self._relay = relay
        self._write: Callable[[], Awaitable[WeightUpdate | None]] | None = None
        self._canary: Canary | None = None

    def replace(
        self, version: int, file: WeightUpdate | None, write: Callable[[], Awaitable[WeightUpdate | None]] | None
    ) -> WeightUpdate | None:
        """From now on ``version``; returns the file of the one before.

        Where there is no ``file``, ``write`` makes one when an engine joins, or answers None if it is too late.
        """
        before, self.file = self.file, file
        self.version, self._write, self._canary = version, write, None
        return before

    def set_canary(self, canary: Canary) -> None:
        """From now on who joins is checked by it."""
        self._canary = canary

    async def available(self) -> bool:
        """Whether an engine that joins can have them; if not, the next version is on its way."""
        if self.version is not None and self.file is None:
            assert self._write is not None
            self.file = await self._write()
            return self.file is not None
        return True

    async def load(self, actor: Any, update: WeightUpdate, version: int) -> None:
        """Have one engine load a file, as one of its own node."""
        if self._relay is not None:
            update = await self._relay.at(update, await actor.node.remote())
        await actor.update_weights.remote(update, version)

    async def bring_up(self, name: str, actor: Any) -> None:
        """All that an engine which joins needs, if the weights are ``available``.

        Raises InfrastructureError if it then disagrees with the learner.
        """
        if self.version is not None and self.file is not None:
            await self.load(actor, self.file, self.version)
        if self._canary is not None:
            self._canary.check(name, await actor.probe.remote(self._canary.prompts))

    async def release(self, before: WeightUpdate | None) -> None:
        """Remove the files of an older version that the newest one does not use."""
        # A version that is given out twice is one file, and so is the base of all adapters of a phase.
        used = {file.path for file in _files(self.file)}
        for file in _files(before):
            if file.path not in used:
                await self._relay.release(file) if self._relay is not None else release(file)

    async def close(self) -> None:
        """The run is over: remove the newest version's files too."""
        before, self.file = self.file, None
        await self.release(before)


class WeightManager:
    """Gives the engines new weights, in place."""

    def __init__(
        self,
        newest: Newest,
        learner: ProbedLearner,
        engines: Engines,
        *,
        engine: EngineConfig,
        folder: str,
        node: str,
        canary: Canary,
        read_saved: ReadSaved,
    ) -> None:
        """``folder`` is shared memory of the machine that publishes, ``node`` the driver's."""
        self._newest = newest
        self._learner = learner
        self._engines = engines
        self._dtype = engine.dtype
        self._folder = folder
        self._node = node
        self._canary = canary
        self._read_saved = read_saved
        self._transport = make_transport(engine, folder, newest)

    async def push(self, version: int) -> None:
        """Give every engine the learner's weights. Raises InfrastructureError if one of them then disagrees."""
        async with self._newest.lock:
            write = self._writer(version)
            # In this order: the learner writes a file, then answers the probes while engines load it.
            given, said = await asyncio.gather(
                self._transport.give(version, self._learner, self._engines), self._learner.probe(self._canary.prompts)
            )
            await self._settle(version, given, write)
            self._canary.expect(version, said)
            self._newest.set_canary(self._canary)
            prompts = self._canary.prompts
            answers = await self._engines.on_all("probe", lambda actor: actor.probe.remote(prompts))
            for name, answer in answers.items():
                self._canary.check(name, answer)
            await self._engines.prepare_joins()

    async def push_saved(self, folder: Path, version: int) -> None:
        """Give every engine the weights of a Hugging Face folder; the learner is not involved."""
        from verl.sync.file import publish

        async with self._newest.lock:
            update = publish(self._read_saved(folder, self._dtype), version, self._folder)
            update = replace(update, node=self._node)
            await self._engines.on_all("update_weights", lambda actor: self._newest.load(actor, update, version))
            await self._settle(version, update, None)
            await self._engines.prepare_joins()

    async def _settle(
        self, version: int, file: WeightUpdate | None, write: Callable[[], Awaitable[WeightUpdate | None]] | None
    ) -> None:
        await self._newest.release(self._newest.replace(version, file, write))

    def _writer(self, version: int) -> Callable[[], Awaitable[WeightUpdate | None]]:
        learner, changes = self._learner, self._learner.changes

        async def write() -> WeightUpdate | None:
            return await learner.publish(version, self._dtype, self._folder) if learner.changes == changes else None

        return write


def make_transport(engine: EngineConfig, folder: str, newest: Newest) -> Transport:
    """The one that the engine's configuration names."""
    from verl.sync.file import FileTransport
    from verl.sync.gpu import GpuTransport

    by_file = FileTransport(engine.dtype, folder, newest.load)
    if engine.weight_transfer == "shm":
        return by_file
    return GpuTransport(engine.weight_transfer, engine.dtype, engine.tensor_parallel_size, by_file)


def _files(update: WeightUpdate | None) -> list[WeightUpdate]:
    return [file for file in (update, update and update.base) if file is not None]
