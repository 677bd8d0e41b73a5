"""The stage watchdog: who waits for whom, told after one bound; after another, the end of the run.

A wait is reported by whoever waits, with how long nothing has moved in it. Nothing is stopped or changed by a warning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from verl.errors import InfrastructureError

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stall:
    """Something that is waited for and has not moved."""

    who: str
    """``learner`` or a worker's name: one warning a bound for each."""
    seconds: float
    text: str


Look = Callable[[], Awaitable[Sequence[Stall]]]
"""What is waited for at the moment, moving or not."""


class Watchdog:
    """Watches one run."""

    def __init__(self, looks: Sequence[Look], *, warn_s: float, fail_s: float) -> None:
        self._looks = looks
        self._warn_s = warn_s
        self._fail_s = fail_s
        self._told: dict[str, int] = {}

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. Raises InfrastructureError instead if a wait passes the last bound."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=min(30.0, self._warn_s / 4)))[0]:
                stalls = [stall for look in self._looks for stall in await look()]
                for line in self.judge(stalls):
                    log.warning("warning: %s", line)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def judge(self, stalls: Sequence[Stall]) -> list[str]:
        """The warnings that are due: one each time a wait passes a further multiple of the bound.

        Raises InfrastructureError that tells of all that stands still if one wait has passed the last bound.
        """
        still = [stall for stall in stalls if stall.seconds >= self._warn_s]
        if any(stall.seconds >= self._fail_s for stall in still):
            told = "; ".join(f"{stall.who}: {stall.text}" for stall in still)
            raise InfrastructureError(
                f"nothing has moved for {max(stall.seconds for stall in still):.0f} s (cluster.stall_error_s): {told}; "
                "the same command goes on from the last checkpoint"
            )
        due = []
        for stall in still:
            bounds = int(stall.seconds // self._warn_s)
            if bounds > self._told.get(stall.who, 0):
                due.append(f"{stall.who} has not moved for {stall.seconds:.0f} s: {stall.text}")
            self._told[stall.who] = bounds
        for who in set(self._told) - {stall.who for stall in still}:
            del self._told[who]
        return due
