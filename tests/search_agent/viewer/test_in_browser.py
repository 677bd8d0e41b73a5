"""The page in a real browser: hostile texts, keys, a small screen, two runs."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from search_agent.viewer.__main__ import write_page
from search_agent.viewer.pack import pack
from search_agent.viewer.runs import read_run
from search_agent.viewer.serve import make_server
from tests.browser import BROWSER, Page, browser, opened
from tests.search_agent.viewer.support import EVIL, small_run

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the page cannot be tested in a browser")

EVIL_NAME = "<img src=x onerror=harmed=1>"
TABLE = "document.querySelectorAll('.rows .row').length === 12"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with browser(tmp_path_factory.mktemp("browser")) as port:
        yield port


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them with a name that would act."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [small_run(folder / "first"), small_run(folder / EVIL_NAME)]
    write_page(pack([read_run(run) for run in runs]), folder / "viewer.html")
    return folder / "viewer.html"


@asynccontextmanager
async def shown(port: int, file: Path, place: str, condition: str, *, width: int = 1300) -> AsyncIterator[Page]:
    """The page at a place; at the end it has neither failed nor asked for anything nor run what a text says."""
    async with opened(port) as page:
        for domain in ("Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await page.call("Emulation.setDeviceMetricsOverride", **size)
        await page.show(f"{file.as_uri()}{place}")
        await page.until(condition)
        yield page
        assert await page.run("[typeof window.harmed, document.images.length]") == ["undefined", 0]
        asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith(file.as_uri())] == []
        assert [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []


async def texts(page: Page, selector: str) -> list[str]:
    """The texts of all elements that a selector finds."""
    found: list[str] = await page.run(f"[...document.querySelectorAll({selector!r})].map(node => node.textContent)")
    return found


async def answers(page: Page) -> list[str]:
    """The answers in the table, from the top."""
    found: list[str] = await page.run("""
        [...document.querySelectorAll(".rows .row")]
            .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
            .map(row => row.querySelector(".c-answer").textContent)""")
    return found


async def press(page: Page, key: str) -> None:
    await page.run(
        f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', "
        f"{{key: {key!r}, bubbles: true, cancelable: true}}))"
    )


async def test_the_overview_draws_curves_and_says_what_searches_brought(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/", "document.querySelectorAll('.chart').length >= 7") as page:
        assert EVIL_NAME in (await texts(page, "#names"))[0]
        assert any(row.startswith("evidence found100 %") for row in await texts(page, ".facts-table tbody tr"))
        assert await page.run("document.querySelectorAll('polyline.line').length > 5")


async def test_an_axis_of_searches_has_a_number_at_each(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/", "document.querySelectorAll('.chart').length >= 7") as page:
        assert await page.run("JSON.stringify([ticks(1, 2, 5, 1), ticks(1, 4, 5, 1), ticks(0, 1)])") == (
            "[[1,2],[1,2,3,4],[0,0.5,1]]"
        )


async def test_the_table_is_filtered_and_sorted(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/episodes", TABLE) as page:

        async def filtered(text: str) -> list[str]:
            await page.run(f"box = document.querySelector('#filter'); box.value = {text!r}; 0")
            await page.run("box.dispatchEvent(new Event('input'))")
            await page.run("new Promise(done => setTimeout(done, 250))")
            return await answers(page)

        assert await filtered("em=0 stage:train run:first") == ["Malden"]
        assert await filtered('verdict="wrong with evidence" stage:before') == ["Malden", "Malden"]
        assert await filtered("outcome=aborted") == ["no answer", "no answer"]
        assert await filtered("harmed") == [EVIL, "no answer"] * 2
        assert await filtered("nosuch=1") == [EVIL, "no answer"] * 2  # what stood there stays
        assert "nosuch: no such column" in (await texts(page, ".count"))[0]
        assert await filtered("Malden Ashby") == ["Malden"] * 4  # both words
        assert await filtered("question:author") == ["Malden", "Ashby", "Malden", "Ashby"] * 2
        for order in (["Ashby"] * 4 + ["Malden"] * 4, ["Malden"] * 4 + ["Ashby"] * 4):
            await page.run("document.querySelector('.head .c-answer').click()")
            assert await answers(page) == order


async def test_keys_go_from_row_to_episode_and_back(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/episodes", TABLE) as page:
        await press(page, "j")
        await press(page, "Enter")
        await page.until("location.hash === '#/episode/1' && document.querySelector('.episode')")
        await press(page, "n")
        await page.until(
            "location.hash === '#/episode/2' && /^3 of/.test(document.querySelector('.count').textContent)"
        )
        await press(page, "2")
        assert await page.run("document.querySelector('#view').dataset.mode") == "prob"
        await press(page, "Escape")
        await page.until("location.hash === '#/episodes' && document.querySelector('.rows .row.at')")
        await press(page, "?")
        assert await page.run("document.querySelector('#keys').open")
        await page.run("document.querySelector('#keys button').click()")
        await page.until("!document.querySelector('#keys').open")
        before = await page.run("document.documentElement.dataset.theme")
        await press(page, "t")
        assert {before, await page.run("document.documentElement.dataset.theme")} == {"light", "dark"}


async def test_an_episode_shows_evidence_answers_latency_and_what_is_trained(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/episode/1", "document.querySelectorAll('.segment').length === 6") as page:
        assert await texts(page, ".badge") == ["gold", "gold"]
        assert len(await texts(page, ".passage")) == 4
        assert await texts(page, "mark") == ["Ashby"]
        assert await texts(page, ".wait .num") == ["4.0 ms", "8.0 ms"]
        assert await texts(page, ".trained") == ["trained", "masked", "trained", "masked", "trained"]
        assert await texts(page, ".gain") == ["gain 0.50", "gain 0.50"]
        assert await texts(page, ".k-search:not(.k-tag)") == [" Red Sky ", " Mara "]
        assert "credit+0.50" in await texts(page, ".fact")


async def test_hostile_texts_stay_texts(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/episode/3", "document.querySelectorAll('.segment').length === 6") as page:
        assert (await texts(page, "#view"))[0].count("window.harmed=1</script>") > 5
        assert await texts(page, "#view script") == []
    async with shown(port, page_file, "#/episode/4", "document.querySelector('.reason')") as page:
        assert "window.harmed=1</script>" in (await texts(page, ".reason"))[0]


async def test_two_runs_stand_beside_each_other(port: int, page_file: Path) -> None:
    async with shown(port, page_file, "#/compare", "document.querySelectorAll('.two .episode').length === 2") as page:
        picked = await page.run("[...document.querySelectorAll('.pick select')].map(s => s.selectedOptions[0].text)")
        assert picked == ["first · test after greedy", f"{EVIL_NAME} · test after greedy"]
        assert (await texts(page, ".lead"))[0].startswith("1 questions in both: exact match 1.000 and 1.000")
        await page.run("pick = document.querySelector('.pick select'); pick.selectedIndex = 0")
        await page.run("pick.dispatchEvent(new Event('change'))")
        await page.until("/0.000 and 1.000/.test(document.querySelector('.lead').textContent)")
        await page.run("[...document.querySelectorAll('.chip')].find(c => c.textContent.startsWith('only B')).click()")
        await page.until("document.querySelector('.chip.on')?.textContent.startsWith('only B')")
        assert await texts(page, ".pairs li") == ["Where was the author of Red Sky born?"]


@pytest.mark.parametrize("place", ["#/", "#/episodes", "#/episode/3", "#/compare"])
async def test_a_small_screen_is_not_wider_than_it_is(port: int, page_file: Path, place: str) -> None:
    async with shown(port, page_file, place, "document.querySelector('#view').children.length", width=360) as page:
        await page.run("new Promise(done => setTimeout(done, 100))")
        assert await page.run("document.documentElement.scrollWidth") <= 360


async def test_a_served_page_asks_for_its_blocks_alone(port: int, tmp_path: Path) -> None:
    with make_server(pack([read_run(small_run(tmp_path / "run"))])) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            async with opened(port) as page:
                await page.call("Network.enable")
                await page.show(f"http://127.0.0.1:{server.server_address[1]}/#/episode/1")
                await page.until("document.querySelectorAll('.segment').length === 6")
                assert await texts(page, "mark") == ["Ashby"]
                sent = [
                    e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"
                ]
                assert {url.split("/", 3)[3] for url in sent} <= {"", "block/0", "favicon.ico"}
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("golds", "text", "found"),
    [
        (["Ashby"], "ASHBY, Ashbyton and ashby.", ["ASHBY", "ashby"]),
        (["The New York"], "in new-york; New\nYork", ["new-york", "New\nYork"]),
        (["yes", "no", "A", ""], "yes no a", []),
        (["Zürich", "東京"], "in ZÜRICH, 東京.", ["ZÜRICH", "東京"]),
        (["C++ (language)"], "c++ (Language)", ["c++ (Language"]),
        (["I"], "I in VI", ["I"]),
    ],
)
async def test_accepted_answers_are_marked_as_whole_words(
    port: int, page_file: Path, golds: list[str], text: str, found: list[str]
) -> None:
    async with shown(port, page_file, "#/", "document.querySelector('.chart')") as page:
        marks = f"marked({json.dumps(text)}, answerPattern({json.dumps(golds)})).filter(piece => piece.tagName)"
        assert await page.run(f"{marks}.map(mark => mark.textContent)") == found
