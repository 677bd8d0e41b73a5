"""What a network and a sick retrieval server do to a search: the right answer, or one error; never an empty list.

A real server stands behind a front that fails on request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench.faults.proxy import Fault, Proxy
from search_agent.retrieval import http
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import RunningServer, start_server
from verl.errors import InfrastructureError, UserError

FAULTS: list[Fault] = [
    "refused",
    "hang",
    "slow",
    "status_500",
    "garbage",
    "half_body",
    "other_shape",
    "huge",
    "endless",
]
QUERIES = ("crimson harbor", "quiet lantern", "nobody")


def write_corpus(path: Path, words: str) -> Path:
    titles = words.split(",")
    path.write_text(
        "".join(json.dumps({"id": str(n), "contents": f"{t}\nabout {t}"}) + "\n" for n, t in enumerate(titles))
    )
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("retriever")
    corpus = write_corpus(folder / "corpus.jsonl", "crimson harbor,quiet lantern,crimson lantern")
    with start_server(corpus, log=folder / "server.log") as running:
        yield running


@pytest.fixture
async def proxy(server: RunningServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.url, slow_s=600) as running:
        yield running


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REST_MAX_S", 0.2)


def config(proxy: Proxy, *others: str, **settings: float | int) -> ClientConfig:
    return ClientConfig(urls=(proxy.url, *others), **{"timeout_s": 2.0, "retries": 60, **settings})  # type: ignore[arg-type]


async def answers(client: RetrievalClient) -> list[list[str]]:
    results = await asyncio.gather(*[client.search(query, 2) for query in QUERIES])
    return [[document.id for document in result.documents] for result in results]


RIGHT = [["0", "2"], ["1", "2"], []]


async def test_without_a_fault_the_answers_are_these(proxy: Proxy) -> None:
    async with RetrievalClient(config(proxy)) as client:
        assert await answers(client) == RIGHT


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "other_shape"])
async def test_a_fault_that_passes_costs_time_and_nothing_else(fault: Fault, proxy: Proxy) -> None:
    async with RetrievalClient(config(proxy, timeout_s=0.5 if fault in ("hang", "slow") else 10)) as client:
        await client.search("crimson", 1)
        proxy.fault, before = fault, proxy.requests
        searching = asyncio.ensure_future(answers(client))
        while proxy.requests < before + 2:  # noqa: ASYNC110 (until it has failed at least once)
            await asyncio.sleep(0.01)
        proxy.fault = "none"
        assert await searching == RIGHT
        assert client.stats()["failures"] == 0
        assert client.stats()["retries"] > 0


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_that_stays_ends_every_search_with_an_error(fault: Fault, proxy: Proxy) -> None:
    async with RetrievalClient(config(proxy, timeout_s=0.5 if fault in ("hang", "slow") else 10, retries=1)) as client:
        await client.search("crimson", 1)
        proxy.fault = fault
        outcomes = await asyncio.gather(*[client.search(query, 2) for query in QUERIES], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InfrastructureError] * len(QUERIES)
        assert client.stats()["failures"] == len(QUERIES)
        assert client.stats()["empty"] == 0
        if fault in ("huge", "endless"):
            assert "above 64 MiB" in str(outcomes[0])


@pytest.mark.parametrize("fault", ["refused", "hang", "status_500", "garbage", "half_body", "huge", "endless"])
async def test_a_second_server_answers_for_a_sick_one(fault: Fault, proxy: Proxy, server: RunningServer) -> None:
    async with RetrievalClient(config(proxy, server.url, timeout_s=1 if fault == "hang" else 10, retries=3)) as client:
        proxy.fault = "none"
        await client.search("crimson", 1)
        proxy.fault = fault
        for _ in range(3):
            assert await answers(client) == RIGHT


async def test_empty_lists_are_shown_as_they_are_and_counted(proxy: Proxy) -> None:
    """A server that has lost its index cannot be told from one that finds nothing, but by the count."""
    async with RetrievalClient(config(proxy)) as client:
        proxy.fault = "empty"
        assert await answers(client) == [[], [], []]
        assert client.stats()["empty"] == 3
        assert client.stats()["failures"] == 0


async def test_a_server_that_comes_back_with_another_corpus_is_noticed(
    proxy: Proxy, server: RunningServer, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other.jsonl", "crimson harbor,something else")
    async with RetrievalClient(config(proxy)) as client:
        assert (await client.search("crimson harbor", 1)).documents
        with start_server(other, log=tmp_path / "other.log") as changed:
            proxy.upstream = changed.url
            with pytest.raises(UserError, match=r"come back with another corpus.*run the same command to go on"):
                await client.search("crimson harbor", 1)
        proxy.upstream = server.url
        assert await answers(client) == RIGHT


async def test_a_server_that_is_killed_and_started_again_loses_no_search(proxy: Proxy, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", "crimson harbor,quiet lantern,crimson lantern")
    first = await asyncio.to_thread(start_server, corpus, log=tmp_path / "first.log")
    proxy.upstream = first.url
    async with RetrievalClient(config(proxy, timeout_s=10, retries=500)) as client:
        counter = itertools.count()

        async def search() -> int:
            return len((await client.search(f"crimson {next(counter)}", 2)).documents)

        assert await search() == 2
        searches = [asyncio.ensure_future(search()) for _ in range(50)]
        first.process.kill()
        searches += [asyncio.ensure_future(search()) for _ in range(50)]
        first.stop()
        second = await asyncio.to_thread(start_server, corpus, log=tmp_path / "second.log")
        proxy.upstream = second.url
        assert await asyncio.gather(*searches) == [2] * 100
        second.stop()
