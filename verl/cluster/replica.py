"""One rollout worker as the driver knows it, and what a worker must have before it serves.

A replica is a place in the pool; the process that fills it changes when it dies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.cluster.calls import answer
from verl.cluster.ray_runtime import first_cause, has_died
from verl.cluster.watchdog import Stall

if TYPE_CHECKING:
    from verl.cluster.carriers import Carriers
    from verl.sync.canary import Probe
    from verl.sync.update import WeightUpdate

AsFile = Callable[[], Awaitable["WeightUpdate | None"]]
"""The weights that were sent last as a file; None if the learner has trained on since."""

STATUS_TIMEOUT_S = 5.0
"""A worker whose event loop is free answers at once."""


class Replica:
    """One place in the pool, and the process that fills it at the moment."""

    def __init__(self, number: int, actor: Any, logfile: Path) -> None:
        self.number = number
        self.name = f"rollout_{number}"
        self.actor = actor
        self.log = logfile
        self.restarts = 0
        self.answered = time.monotonic()
        """When it was last heard of, by the watchdog."""
        self.serving = False
        """Whether it can be given work."""
        self.gone: Exception | None = None
        """Why it will not come back."""

    @property
    def process(self) -> str:
        """The name of the process that fills it: another one after each restart."""
        return f"{self.name}.{self.restarts}"

    def explain(self, error: Exception, doing: str = "") -> Exception:
        """An error of a call to it as the one it was in its process, with the log that tells more."""
        return first_cause(error, f"{self.name} {doing}".rstrip(), [self.log])

    async def stall(self) -> Stall:
        """What its episodes wait for, and how long nothing has moved for one of them."""
        try:
            status = await asyncio.wait_for(answer(self.actor.status.remote()), STATUS_TIMEOUT_S)
        except TimeoutError:
            silent = time.monotonic() - self.answered
            return Stall(self.name, silent, f"it does not answer (log: {self.log})")
        except Exception as error:  # whoever waits for its work finds that out
            return Stall(self.name, 0.0, "it died" if has_died(error) else f"it cannot say: {error}")
        self.answered = time.monotonic()
        return Stall(self.name, status.still_s, f"{status.text()} (log: {self.log})")


@dataclass(frozen=True)
class Canary:
    """What shows that an engine holds the weights it was given."""

    prompts: Sequence[Sequence[int]]
    check: Callable[[Probe], None]
    """Raises InfrastructureError on an answer that the learner would not give."""


class Newest:
    """The newest weights, and the canary that goes with them: every worker in service has the one and passed the other.

    Set them under the lock of ``Replicas``, so that who joins does so before or after, never in between.
    """

    def __init__(self, carriers: Carriers | None = None) -> None:
        """``carriers`` bring weights to workers of other nodes; without them all are on one."""
        self._carriers = carriers
        self._weights: tuple[WeightUpdate, int] | None = None
        self._source: tuple[AsFile, int] | None = None
        """What makes a file of the weights, where they came without one."""
        self._canary: Canary | None = None

    def set_weights(self, update: WeightUpdate, version: int) -> None:
        """From now on these; the last canary says nothing of them."""
        self._weights, self._source, self._canary = (update, version), None, None

    def set_source(self, as_file: AsFile, version: int) -> None:
        """From now on those that the learner sends itself; ``as_file`` is asked for them when one joins."""
        self._weights, self._source, self._canary = None, (as_file, version), None

    async def available(self) -> bool:
        """Whether one that joins can have them; if not, the next version is on its way."""
        if self._weights is None and self._source is not None:
            as_file, version = self._source
            if (update := await as_file()) is None:
                return False
            self._weights = update, version
        return True

    def set_canary(self, canary: Canary) -> None:
        """From now on who joins is checked by it."""
        self._canary = canary

    async def give(self, actor: Any) -> None:
        """Load the weights into a worker's engine, as a file of the worker's node."""
        assert self._weights is not None
        update, version = self._weights
        if self._carriers is not None:
            update = await self._carriers.at(update, await actor.node.remote())
        await actor.update_weights.remote(update, version)

    async def bring_up(self, actor: Any) -> None:
        """All that a worker which joins needs, if the weights are ``available``.

        Raises InfrastructureError if it then disagrees with the learner.
        """
        if self._weights is not None:
            await self.give(actor)
        if self._canary is not None:
            self._canary.check(await actor.probe.remote(self._canary.prompts))
