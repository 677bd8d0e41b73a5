"""How busy each replica was, step by step: what says which side of the run waits for the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl.cluster.learners import LearnerGroup
    from verl.cluster.pool import RolloutPool


async def busy_seconds(learners: LearnerGroup, pool: RolloutPool) -> dict[str, float]:
    """Totals by name: ``learner`` (time in its calls) and each worker that answers (time in engine steps)."""
    stats = await pool.stats()
    return {"learner": learners.busy_s, **{name: counters["busy_s"] for name, counters in stats.items()}}


class BusyShares:
    """Turns counters of busy seconds into shares of the time between two readings."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._read = clock()

    def read(self, busy_s: Mapping[str, float]) -> dict[str, float]:
        """``busy/NAME`` and ``idle/NAME``, in [0, 1], since the last reading; ``busy_s`` are totals by name.

        A total that has fallen is that of a replica that was started again; one that is new began at 0.
        """
        now = self._clock()
        span = max(now - self._read, 1e-9)
        shares: dict[str, float] = {}
        for name, total in busy_s.items():
            before = self._last.get(name, 0.0)
            share = min(1.0, (total - before if total >= before else total) / span)
            shares[f"busy/{name}"] = share
            shares[f"idle/{name}"] = 1.0 - share
        self._last, self._read = dict(busy_s), now
        return shares
