"""Answers kept on disk: cheap, repeatable, and never taken for another corpus's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server
from verl.errors import InfrastructureError, UserError

NOBODY = "http://127.0.0.1:9"
Mode = Literal["off", "cache", "record", "replay"]


class Corpus:
    """A server whose documents carry its fingerprint; counts the queries that reach it."""

    def __init__(self, fingerprint: str, shard: int = 0, shards: int = 1) -> None:
        self.info = {"fingerprint": fingerprint, "shard": shard, "shards": shards}
        self.asked: list[str] = []

    async def retrieve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked += body["queries"]
        name = self.info["fingerprint"]
        rows = [
            [] if q == "none" else [{"document": {"id": "1", "contents": f"{name} {q}"}, "score": 0.1}]
            for q in body["queries"]
        ]
        return web.json_response({"result": rows})

    async def show_info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post("/retrieve", self.retrieve)
        application.router.add_get("/info", self.show_info)
        async with TestServer(application) as server:
            yield str(server.make_url(""))


def config(url: str, mode: Mode, path: Path) -> ClientConfig:
    return ClientConfig(urls=(url,), retries=0, cache=mode, cache_file=path)


async def test_a_stored_answer_is_not_asked_again(tmp_path: Path) -> None:
    corpus = Corpus("A")
    async with corpus.running() as url:
        for expected_cached in (False, True):
            async with RetrievalClient(config(url, "cache", tmp_path / "c.sqlite")) as client:
                results = [await client.search(query, 3) for query in ("x", "none")]
                assert [result.cached for result in results] == [expected_cached] * 2
                assert results[0].documents[0].text == "A x"
                assert results[1].documents == ()
                assert client.stats()["cache_hits"] == 2 * expected_cached
    assert corpus.asked == ["x", "none"]


async def test_another_k_or_corpus_is_another_question(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    for name, k in (("A", 3), ("A", 4), ("B", 3)):
        corpus = Corpus(name)
        async with corpus.running() as url, RetrievalClient(config(url, "cache", path)) as client:
            result = await client.search("x", k)
        assert (result.cached, result.documents[0].text) == (False, f"{name} x")


async def test_record_asks_always_and_replay_never(tmp_path: Path) -> None:
    path, corpus = tmp_path / "c.sqlite", Corpus("A")
    async with corpus.running() as url:
        for _ in range(2):
            async with RetrievalClient(config(url, "record", path)) as client:
                recorded = await asyncio.gather(*[client.search(f"q{i}", 3) for i in range(5)])
    assert len(corpus.asked) == 10
    async with RetrievalClient(config(NOBODY, "replay", path)) as client:
        await client.wait_ready(0.1)
        replayed = await asyncio.gather(*[client.search(f"q{i}", 3) for i in range(5)])
        assert [r.documents for r in replayed] == [r.documents for r in recorded]
        assert all(r.cached for r in replayed)
        with pytest.raises(UserError, match=r"c\.sqlite has no answer for 'new' \(k=3\)"):
            await client.search("new", 3)


async def test_a_replay_needs_a_recording_of_one_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    async with RetrievalClient(config(NOBODY, "replay", path)) as client:
        with pytest.raises(UserError, match="no recorded answers"):
            await client.search("x", 1)
    for name in "AB":
        async with Corpus(name).running() as url, RetrievalClient(config(url, "cache", path)) as client:
            await client.search("x", 1)
    async with RetrievalClient(config(NOBODY, "replay", path)) as client:
        with pytest.raises(UserError, match="more than one corpus"):
            await client.search("x", 1)


async def test_a_server_that_runs_tells_recordings_of_several_corpora_apart(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    for name in "AB":
        async with Corpus(name).running() as url, RetrievalClient(config(url, "record", path)) as client:
            await client.search("x", 1)
    corpus = Corpus("B")
    async with corpus.running() as url, RetrievalClient(config(url, "replay", path)) as client:
        assert (await client.search("x", 1)).documents[0].text == "B x"
        assert await client.info() == {"fingerprint": "B"}
    assert corpus.asked == []


async def test_an_answer_on_other_terms_is_another_answer(tmp_path: Path) -> None:
    """A real server: a filter, or ids alone, changes what is kept; the order of options does not."""
    rows = [{"id": f"{year}", "contents": f"red {year}", "year": year} for year in (2017, 2018, 2019)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[dict[str, Any]] = [
        {},
        {"options": {"year.from": 2018, "year.to": 2018}},
        {"options": {"year.from": 2018}, "ids_only": True},
        {"ids_only": True},
    ]
    with start_server(tmp_path / "c.jsonl", log=tmp_path / "log", options=["filters=year"]) as server:
        for cached in (False, True):
            async with RetrievalClient(config(server.url, "cache", tmp_path / "c.sqlite")) as client:
                results = [await client.search("red", 9, **terms) for terms in asked]
                ids = [sorted(document.id for document in result.documents) for result in results]
                texts = [bool(result.documents[0].text) for result in results]
                turned = await client.search("red", 9, {"year.to": 2018, "year.from": 2018})
            assert ids == [["2017", "2018", "2019"], ["2018"], ["2018", "2019"], ["2017", "2018", "2019"]]
            assert texts == [True, True, False, False]
            assert [result.cached for result in results] == [cached] * 4
            assert turned.cached
            assert turned.documents == results[1].documents


async def test_failures_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    corpus = Corpus("A")
    async with corpus.running() as url:
        async with RetrievalClient(config(url, "cache", path)) as client:
            await client.search("x", 3)
        dead = url
    async with RetrievalClient(config(dead, "cache", path)) as client:
        with pytest.raises(InfrastructureError):
            await client.search("x", 3)


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one" * 40)
    with pytest.raises(UserError, match=r"notes\.txt.*not a database"):
        asyncio.run(RetrievalClient(config("http://x", "cache", path)).__aenter__())


def test_a_mode_without_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="cache_file: cache=replay needs a file"):
        ClientConfig(cache="replay")
