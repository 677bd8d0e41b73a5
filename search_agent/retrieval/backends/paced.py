"""Services of others that give ids alone, a query at a time, and may be asked so many times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.backends.http import Http, passage_hit
from search_agent.retrieval.index.documents import Documents
from search_agent.standins.serving import STANDIN, Service, standin_url
from verl.errors import UserError


@dataclass(frozen=True)
class PacedConfig:
    """Where a service is, and how it is asked."""

    url: str
    """Its address; ``standin`` is a local server over the corpus."""
    requests_per_second: float
    """Over all threads of this server."""
    timeout_s: float = 30.0
    """Seconds that one attempt may take."""
    retries: int = 4
    """Further attempts after a failed one."""


class Paced:
    """A service and its pace, or the stand-in over a corpus; scores are 1 / rank, as neither gives any."""

    max_batch = 1

    def __init__(self, name: str, service: Service, config: PacedConfig, documents: Documents) -> None:
        self._name, self._config = name, config
        is_standin = config.url == STANDIN
        self._url = standin_url(service, documents) if is_standin else config.url.rstrip("/")
        self._pace = Pace(10_000 if is_standin else config.requests_per_second)
        self._http = Http(config.timeout_s, config.retries)

    def manifest(self) -> dict[str, Any]:
        """See ``Backend``."""
        return {"name": self._name, "url": self._config.url}


def hits_of(ids: Sequence[str]) -> list[Hit]:
    """Hits that bring nothing but their ids."""
    return [passage_hit(place, 1 / (place + 1), {"id": one, "contents": one}) for place, one in enumerate(ids)]


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
