"""A real browser, driven over the DevTools protocol: for the pages that the project serves or writes."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-port=0",
)
WAIT_S = 60


@contextmanager
def browser(profile: Path) -> Iterator[int]:
    """A browser with an empty profile; the port where it listens for us."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline, file = time.monotonic() + WAIT_S, profile / "DevToolsActivePort"
        while not (file.exists() and file.read_text().count("\n")) and time.monotonic() < deadline:
            assert process.poll() is None, "the browser ended at once"
            time.sleep(0.05)
        try:
            yield int(file.read_text().split()[0])
        finally:
            process.terminate()


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []
        """What the browser said unasked: requests, errors, as far as their domains are enabled."""

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=WAIT_S)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait for the page; says what it shows if that does not come."""
        deadline = time.monotonic() + WAIT_S
        while not await self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, await self.run("document.body.innerText")
            await asyncio.sleep(0.05)

    async def show(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[Page]:
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as reply:
            tab = await reply.json()
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            yield Page(socket)
