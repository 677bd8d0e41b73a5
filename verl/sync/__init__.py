"""Weights from the learner to the engines. The way of a version:

1. ``manager``: after a step the controller calls ``WeightManager.push(version)``. One object, ``Newest``, knows which
   version is the newest, and every engine that joins later asks it.
2. A transport carries it (``weight_transfer`` of the engine): ``file`` (``shm``) writes one file that all engines of a
   machine map, whole or as LoRA's two matrices a layer; ``ipc`` and ``nccl`` go from GPU to GPU, through ``gpu``, while
   the engines pause. ``relay`` brings a file to the machines that have no copy yet.
3. Each engine loads it in place, compares what arrived and what then stands in its embeddings and LM head with what the
   learner sent, and labels all later tokens with the version. An engine on which that fails is replaced.
4. ``canary``: engines and learner answer the same few prompts with it; if they disagree, the run ends.

Here are the records that travel, without torch. Ray is not known in this room: actors, and how to start one, come in
as arguments. Each transport's file holds its three ends: the driver's, the learner's, and the engine's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Sums = Mapping[str, tuple[str, int]]
"""Dtype and sum of all bits of a tensor, by its name."""


BUCKET_BYTES = 1 << 28
"""Tensors travel packed in buckets of this size, or of the largest tensor's: a bucket more of GPU memory at the learner
(``nccl``: two), and one at the engine. A bucket is filled again only after every engine has copied it out: vLLM's
engines wait for their device before they answer."""


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
    sums: Sums = field(default_factory=dict)
    """Of the embeddings and the LM head: what an engine must hold after it has loaded the file."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the learner says of the weights that it gave the engines itself."""

    checksum: int
    sums: Sums = field(default_factory=dict)


class Learner(Protocol):
    """The learner as the manager calls it (``verl.cluster``: every call reaches all ranks)."""

    changes: int
    """How many calls so far may have changed the weights."""

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        """Write the weights to a file in ``folder``."""
        ...

    async def send(self, transport: str, dtype: str, engines: Mapping[str, Any], ranks_per_engine: int) -> Sent:
        """Give these paused engines the weights from GPU to GPU. Raises EngineDiedError if one broke the transfer."""
        ...


class Engines(Protocol):
    """The engines in service as the manager calls them (``verl.cluster``: who fails is replaced)."""

    async def on_all(self, what: str, call: Callable[[Any], Awaitable[Any]]) -> dict[str, Any]:
        """The answers of those that could answer, by name; ``call`` gets an engine's actor."""
        ...

    def processes(self, names: Collection[str]) -> dict[str, Any]:
        """The actors of these by the name of their process, another one after each restart."""
        ...

    def replace(self, names: Collection[str], error: Exception, consequence: str) -> None:
        """Start these again."""
        ...

    async def prepare_joins(self) -> None:
        """Weights were given out: who waits to join must be able to have them before the learner goes on."""
        ...


class Transport(Protocol):
    """One way from the learner to the engines."""

    async def give(self, version: int, learner: Learner, engines: Engines) -> WeightUpdate | None:
        """The learner's weights to every engine in service; the file of them, where there is one."""
        ...
