"""The search page in a real browser, driven over the DevTools protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_agent.retrieval.server.access import TOKEN_VARIABLE
from search_agent.retrieval.server.child import start_server
from tests.browser import BROWSER, Page, browser, opened

PASSAGES = [
    {"id": "https://example.org/red", "contents": '"Red apples"\nA red apple fell.\nThen it was eaten.'},
    {"id": "2", "contents": '"Evil apple"\n<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'},
    {"id": "3", "contents": "blue sky"},
]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the page cannot be tested in a browser")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a browser of its own listens for us."""
    with browser(tmp_path_factory.mktemp("browser")) as port:
        yield port


async def search(page: Page, query: str) -> list[str]:
    """Type, press the button, and read what is listed."""
    script = f"form.query.value = {json.dumps(query)}; form.querySelector('button').click(); 0"
    await page.run(f"state.textContent = ''; {script}")
    await page.until("/ms|No answer/.test(state.textContent)")
    found: list[str] = await page.run("[...document.querySelectorAll('li')].map(item => item.innerText)")
    return found


def write_corpus(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, PASSAGES)))
    return path


async def test_a_reader_searches_and_passages_stay_text(port: int, tmp_path: Path) -> None:
    with start_server(write_corpus(tmp_path), log=tmp_path / "log") as server:
        async with opened(port) as page:
            await page.show(f"{server.url}/")
            await page.until("/3 passages of corpus.jsonl · bm25/.test(state.textContent)")
            red, evil = await search(page, "red apples")
            assert red.splitlines()[0] == "Red apples"
            assert "A red apple fell.\nThen it was eaten." in red
            assert '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>' in evil
            assert await page.run("[typeof window.harmed, document.images.length]") == ["undefined", 0]
            assert await page.run("[...document.querySelectorAll('li a')].map(a => a.href)") == [PASSAGES[0]["id"]]
            assert "red" in await page.run("[...document.querySelectorAll('mark')].map(mark => mark.textContent)")
            assert await search(page, "zebra") == []
            assert await page.run("state.textContent.startsWith('No passage matches')")
            assert await page.run("location.search") == "?query=zebra&k=5"
            await page.show(f"{server.url}/?query=blue&k=1")
            await page.until("document.querySelectorAll('li').length === 1")
            assert await search(page, "x" * 9000) == []
            assert await page.run("state.textContent.startsWith('No passage matches')")


async def test_the_page_asks_for_the_token(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    with start_server(write_corpus(tmp_path), log=tmp_path / "log") as server:
        async with opened(port) as page:
            given = "window.prompt = () => 's3cret'"
            await page.call("Page.enable")
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=given)
            await page.show(f"{server.url}/")
            assert len(await search(page, "apple")) == 2
