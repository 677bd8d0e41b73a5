"""Where the seconds of a step went."""

from __future__ import annotations

import time


class StepClock:
    """Laps of one step; the rollout of a step began when the step before it ended."""

    def __init__(self, started: float) -> None:
        self._started = self._lap = started

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._lap = now - self._lap, now
        return seconds

    def total(self) -> float:
        """Seconds up to the last lap."""
        return self._lap - self._started
