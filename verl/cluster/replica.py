"""One rollout worker as the driver knows it.

A replica is a place in the pool; the process that fills it changes when it dies.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from verl.cluster.calls import answer
from verl.cluster.ray_runtime import first_cause, has_died
from verl.cluster.watchdog import Stall

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
        self.opening: float | None = None
        """Since when it has been starting, while it does."""
        self.gone: Exception | None = None
        """Why it will not come back."""
        self.asked: dict[str, float] = {}
        """What all workers were asked and it has not answered, and since when."""

    @property
    def process(self) -> str:
        """The name of the process that fills it: another one after each restart."""
        return f"{self.name}.{self.restarts}"

    def explain(self, error: Exception, doing: str = "") -> Exception:
        """An error of a call to it as the one it was in its process, with the log that tells more."""
        return first_cause(error, f"{self.name} {doing}".rstrip(), [self.log])

    async def stall(self) -> Stall:
        """What its episodes wait for, how long nothing has moved for one; or what the run waits for, and how long."""
        if self.opening is not None:
            which = f"restart {self.restarts}, " if self.restarts else ""
            return Stall(self.name, time.monotonic() - self.opening, f"it is starting ({which}log: {self.log})")
        if self.asked:
            what, since = min(self.asked.items(), key=lambda call: call[1])
            return Stall(self.name, time.monotonic() - since, f"the run waits for {what} (log: {self.log})")
        try:
            status = await asyncio.wait_for(answer(self.actor.status.remote()), STATUS_TIMEOUT_S)
        except TimeoutError:
            silent = time.monotonic() - self.answered
            return Stall(self.name, silent, f"it does not answer (log: {self.log})")
        except Exception as error:  # whoever waits for its work finds that out
            return Stall(self.name, 0.0, "it died" if has_died(error) else f"it cannot say: {error}")
        self.answered = time.monotonic()
        return Stall(self.name, status.still_s, f"{status.text()} (log: {self.log})")
