"""One retrieval server behind a front that lets it suffer: what stands between a run and its searches in a soak."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Literal

from bench.faults.proxy import Fault, Proxy, drawn_latency
from search_agent.retrieval.server.child import RunningServer, start_server

DOWN_S = 5.0
"""How long a server is away or a fault lasts; the client's retries must outlast it."""
Misfortune = Fault | Literal["kill"]


class Site:
    """One retrieval server behind its front."""

    def __init__(self, corpus: Path, log: Path, latency_s: float) -> None:
        self._corpus, self._log = corpus, log
        self._server: RunningServer | None = None
        self.proxy = Proxy("", latency=drawn_latency(latency_s), slow_s=3)

    async def start(self) -> None:
        """A new server process; the front passes on to it from now on."""
        self._server = await asyncio.to_thread(start_server, self._corpus, log=self._log)
        self.proxy.upstream = self._server.url

    async def suffer(self, misfortune: Misfortune) -> None:
        """Let the misfortune last, then mend it."""
        if misfortune == "kill":
            assert self._server is not None
            os.kill(self._server.pid, signal.SIGKILL)
            await asyncio.to_thread(self._server.stop)
            await asyncio.sleep(DOWN_S)
            await self.start()
        else:
            self.proxy.fault = misfortune
            await asyncio.sleep(DOWN_S)
            self.proxy.fault = "none"

    async def stop(self) -> None:
        """End the server."""
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)
