"""How often a service of others may be asked: so many requests a second, evenly, over all search threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from verl.errors import UserError


class Pace:
    """Lets one caller through every ``1 / per_second`` seconds; others wait for their turn, first come first."""

    def __init__(
        self,
        per_second: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if per_second <= 0:
            raise UserError(f"requests_per_second is {per_second}: write a number above 0")
        self._gap_s = 1 / per_second
        self._now, self._sleep = now, sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the caller may send its request."""
        with self._lock:
            now = self._now()
            turn = max(now, self._next)
            self._next = turn + self._gap_s
        if turn > now:
            self._sleep(turn - now)
