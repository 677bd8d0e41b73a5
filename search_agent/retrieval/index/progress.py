"""One line now and then about a long job: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time

INTERVAL_S = 5.0


class Progress:
    """Writes to standard error, at most once every ``INTERVAL_S`` seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._shown = time.monotonic()
        self._first: float | None = None

    def show(self, count: int, fraction: float) -> None:
        """Say that ``count`` passages are done, which is this fraction of the whole."""
        now = time.monotonic()
        if self._first is None:
            self._first = fraction
        if now - self._shown < INTERVAL_S:
            return
        self._shown = now
        done = fraction - self._first
        left = f", {(1 - fraction) / done * (now - self._started):,.0f} s left" if done > 0 else ""
        print(f"{self._what}: {count:,} passages, {fraction:.0%}{left}", file=sys.stderr, flush=True)
