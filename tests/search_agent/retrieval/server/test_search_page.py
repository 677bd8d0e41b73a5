"""The search page in a real browser, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from search_agent.retrieval.server.access import TOKEN_VARIABLE
from search_agent.retrieval.server.child import start_server

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-port=0",
)
WAIT_S = 60
PASSAGES = [
    {"id": "https://example.org/red", "contents": '"Red apples"\nA red apple fell.\nThen it was eaten.'},
    {"id": "2", "contents": '"Evil apple"\n<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'},
    {"id": "3", "contents": "blue sky"},
]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the page cannot be tested in a browser")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a browser of its own listens for us."""
    profile = tmp_path_factory.mktemp("browser")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline, file = time.monotonic() + WAIT_S, profile / "DevToolsActivePort"
        while not (file.exists() and file.read_text().count("\n")) and time.monotonic() < deadline:
            assert process.poll() is None, "the browser ended at once"
            time.sleep(0.05)
        yield int(file.read_text().split()[0])
        process.terminate()


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=WAIT_S)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait for the page; says what it shows if that does not come."""
        deadline = time.monotonic() + WAIT_S
        while not await self.run(condition):
            assert time.monotonic() < deadline, await self.run("document.body.innerText")
            await asyncio.sleep(0.05)

    async def show(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def search(self, query: str) -> list[str]:
        """Type, press the button, and read what is listed."""
        script = f"form.query.value = {json.dumps(query)}; form.querySelector('button').click(); 0"
        await self.run(f"state.textContent = ''; {script}")
        await self.until("/ms|No answer/.test(state.textContent)")
        found: list[str] = await self.run("[...document.querySelectorAll('li')].map(item => item.innerText)")
        return found


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[Page]:
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as reply:
            tab = await reply.json()
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            yield Page(socket)


def write_corpus(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, PASSAGES)))
    return path


async def test_a_reader_searches_and_passages_stay_text(port: int, tmp_path: Path) -> None:
    with start_server(write_corpus(tmp_path), log=tmp_path / "log") as server:
        async with opened(port) as page:
            await page.show(f"{server.url}/")
            await page.until("/3 passages of corpus.jsonl · bm25/.test(state.textContent)")
            red, evil = await page.search("red apples")
            assert red.splitlines()[0] == "Red apples"
            assert "A red apple fell.\nThen it was eaten." in red
            assert '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>' in evil
            assert await page.run("[typeof window.harmed, document.images.length]") == ["undefined", 0]
            assert await page.run("[...document.querySelectorAll('li a')].map(a => a.href)") == [PASSAGES[0]["id"]]
            assert "red" in await page.run("[...document.querySelectorAll('mark')].map(mark => mark.textContent)")
            assert await page.search("zebra") == []
            assert await page.run("state.textContent.startsWith('No passage matches')")
            assert await page.run("location.search") == "?query=zebra&k=5"
            await page.show(f"{server.url}/?query=blue&k=1")
            await page.until("document.querySelectorAll('li').length === 1")
            assert await page.search("x" * 9000) == []
            assert await page.run("state.textContent.startsWith('No passage matches')")


async def test_the_page_asks_for_the_token(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    with start_server(write_corpus(tmp_path), log=tmp_path / "log") as server:
        async with opened(port) as page:
            given = "window.prompt = () => 's3cret'"
            await page.call("Page.enable")
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=given)
            await page.show(f"{server.url}/")
            assert len(await page.search("apple")) == 2
