"""The client against small servers that behave, misbehave and recover."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from search_agent.retrieval import http
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.client.reply import clean
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.http import Address
from search_agent.retrieval.types import Document, SearchResult
from verl.errors import InfrastructureError, UserError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def echo(body: dict[str, Any]) -> web.Response:
    """One document a query: its text is the query."""
    hits = [
        [{"document": {"id": f"{q}/{body['topk']}", "contents": f'"T"\n{q}'}, "score": 1.5}] for q in body["queries"]
    ]
    return web.json_response({"result": hits})


class Server:
    """Keeps the bodies it was sent; ``respond`` decides what to say."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.respond: Callable[[dict[str, Any]], web.StreamResponse] = echo

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.asked.set()
        await self.gate.wait()
        return self.respond(body)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[RetrievalClient, Server]]:
    server, app = Server(), web.Application()
    app.router.add_post("/retrieve", server.retrieve)
    async with TestServer(app) as running:
        urls = (*settings.pop("before", ()), str(running.make_url("")))
        async with RetrievalClient(ClientConfig(urls=urls, **settings)) as client:
            yield client, server
        server.gate.set()


async def test_a_document_comes_back_whole() -> None:
    async with opened() as (client, _):
        result = await client.search("who", 2)
    (document,) = result.documents
    assert (document.id, document.title, document.text, document.score) == ("who/2", "T", "who", 1.5)
    assert not result.cached
    assert result.latency_s > 0


async def test_waiting_queries_share_a_request() -> None:
    async with opened(max_requests_in_flight=1, max_queries_per_request=4) as (client, server):
        server.gate.clear()
        searches = [asyncio.ensure_future(client.search("first", 3))]
        await server.asked.wait()
        searches += [asyncio.ensure_future(client.search(f"q{i}", 3)) for i in range(6)]
        await asyncio.sleep(0)
        server.gate.set()
        results = await asyncio.gather(*searches)
    assert [body["queries"] for body in server.bodies] == [["first"], ["q0", "q1", "q2", "q3"], ["q4", "q5"]]
    assert [result.documents[0].text for result in results] == ["first", *(f"q{i}" for i in range(6))]


async def test_queries_of_one_moment_with_different_k_are_kept_apart() -> None:
    async with opened() as (client, server):
        results = await asyncio.gather(client.search("a", 1), client.search("b", 2), client.search("c", 1))
    assert [result.documents[0].id for result in results] == ["a/1", "b/2", "c/1"]
    assert sorted((body["topk"], tuple(body["queries"])) for body in server.bodies) == [(1, ("a", "c")), (2, ("b",))]


async def test_identical_queries_in_flight_are_asked_once() -> None:
    async with opened() as (client, server):
        results = await asyncio.gather(*[client.search(" same\n query ", 3) for _ in range(5)])
        stats = client.stats()
    assert [body["queries"] for body in server.bodies] == [["same query"]]
    assert len({result.documents for result in results}) == 1
    assert (stats["queries"], stats["coalesced"], stats["sent_queries"], stats["requests"]) == (5, 4, 1, 1)


async def test_an_empty_result_is_a_fact() -> None:
    async with opened() as (client, server):
        server.respond = lambda body: web.json_response({"result": [[]]})
        result = await client.search("nothing", 3)
        assert result.documents == ()
        assert client.stats()["empty"] == 1
        assert client.stats()["failures"] == 0


async def test_it_tries_again_when_the_server_is_busy() -> None:
    refusals = [
        web.Response(status=503, headers={"Retry-After": "0"}),
        web.Response(status=429, headers={"Retry-After": "0"}),
    ]
    async with opened(retries=2) as (client, server):
        server.respond = lambda body: refusals.pop() if refusals else echo(body)
        assert (await client.search("x", 1)).documents[0].text == "x"
        assert client.stats()["retries"] == 2


async def test_retries_are_bounded_and_the_cause_is_named() -> None:
    async with opened(retries=1) as (client, server):
        server.respond = lambda body: web.Response(status=500, text="disk on fire")
        with pytest.raises(InfrastructureError, match=r"2 times.*status 500 disk on fire"):
            await client.search("x", 1)
        assert len(server.bodies) == 2
        assert client.stats()["failures"] == 1


async def test_a_refusal_for_good_is_not_tried_again() -> None:
    async with opened(retries=5) as (client, server):
        server.respond = lambda body: web.Response(status=422, text="no such key")
        with pytest.raises(InfrastructureError, match="422 no such key"):
            await client.search("x", 1)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "reply",
    ["oops", "[]", '{"result": [[]]}', '{"result": [[{"document": {}}], 3]}', '{"detail": "no"}', '{"result": null}'],
)
async def test_a_reply_that_is_none_is_a_failure_and_no_document(reply: str) -> None:
    async with opened() as (client, server):
        server.respond = lambda body: web.Response(text=reply)
        outcomes = await asyncio.gather(client.search("x", 1), client.search("y", 1), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InfrastructureError, InfrastructureError]


async def test_a_malformed_answer_fails_its_query_alone() -> None:
    async with opened() as (client, server):
        hit = {"document": {"id": 7, "title": None, "text": "ok"}, "score": 1}
        bad = {"document": {"id": "1", "title": None, "text": None}, "score": 1}
        server.respond = lambda body: web.json_response({"result": [[hit, bad], [hit]]})
        bad_one, good_one = await asyncio.gather(client.search("x", 2), client.search("y", 2), return_exceptions=True)
    assert isinstance(bad_one, InfrastructureError)
    assert isinstance(good_one, SearchResult)
    assert good_one.documents == (Document("7", "", "ok", 1.0),)


async def test_a_request_that_is_refused_for_one_query_is_asked_query_by_query() -> None:
    """A server that cannot bear what one policy wrote must not take the answers from the others."""

    def respond(body: dict[str, Any]) -> web.Response:
        return web.Response(status=422, text="\x1b[31mno\x00") if "bad" in body["queries"] else echo(body)

    async with opened() as (client, server):
        server.respond = respond
        words = ["a", "bad", "b"]
        outcomes = await asyncio.gather(*[client.search(word, 1) for word in words], return_exceptions=True)
    assert [isinstance(outcome, InfrastructureError) for outcome in outcomes] == [False, True, False]
    assert str(outcomes[1]).isprintable()


async def test_a_server_that_ignores_how_many_were_asked_for_is_cut() -> None:
    async with opened() as (client, server):
        hits = [{"document": {"id": str(n), "contents": "x"}, "score": -n} for n in range(9)]
        server.respond = lambda body: web.json_response({"result": [hits]})
        assert [document.id for document in (await client.search("x", 3)).documents] == ["0", "1", "2"]


async def test_options_and_ids_are_asked_for_and_keep_requests_apart() -> None:
    async with opened() as (client, server):
        await asyncio.gather(
            client.search("q", 2), client.search("q", 2, {"b": 1, "a": "é"}), client.search("q", 2, ids_only=True)
        )
        assert client.stats()["coalesced"] == 0
        server.respond = lambda body: web.json_response({"result": [[{"document": {"id": "7"}, "score": 1}]]})
        assert (await client.search("r", 1, ids_only=True)).documents == (Document("7", "", "", 1.0),)
    sent = [(body.get("options"), body.get("ids_only")) for body in server.bodies[:3]]
    assert sent == [(None, None), ({"a": "é", "b": 1}, None), (None, True)]
    with pytest.raises(UserError, match="dialect=batch_search knows no options"):
        await RetrievalClient(ClientConfig(dialect="batch_search")).search("q", 1, {"a": 1})


async def test_a_blank_query_finds_nothing_and_is_not_asked() -> None:
    async with opened() as (client, server):
        for blank in ("", " \n", "\x00\x1b\x9f"):
            assert (await client.search(blank, 3)).documents == ()
    assert server.bodies == []


@pytest.mark.parametrize("close", [True, False])
async def test_a_client_that_is_opened_again_answers(close: bool) -> None:
    server, app = Server(), web.Application()
    app.router.add_post("/retrieve", server.retrieve)
    async with TestServer(app) as running:
        client = RetrievalClient(ClientConfig(urls=(str(running.make_url("")),)))
        for _ in range(2):
            async with client:
                assert (await client.search("x", 1)).documents
                if close:
                    await client.close()
        with pytest.raises(RuntimeError, match="open the client first"):
            await client.search("x", 1)


async def test_the_longer_of_the_servers_wish_and_the_back_off_is_waited_for() -> None:
    address = Address("http://x")
    waited = []
    for wish in (1.0, 1.0, 1.0, 1.0, 60.0):
        address.failed(100.0, now=0.0, retry_after_s=wish, jitter=1.1)
        waited.append(round(address.rests_until / 1.1, 6))
    assert waited == [1.0, 1.0, 1.0, 1.6, 5.0]


class ImaginedTime(asyncio.SelectorEventLoop):
    """Its clock goes on only when nothing is left to do, and then at once to the next thing."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = self._scheduled[0].when()  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def test_a_dead_server_is_asked_once_a_rest_however_many_wait() -> None:
    retries, waiting = 5, 64

    class Dead(http.Http):
        asked = 0

        async def _once(self, *_: Any) -> http.Reply:
            self.asked += 1
            await asyncio.sleep(0.01)
            raise http.AttemptFailed("status 503")

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            stack = Dead(session, ["http://dead"], retries)
            exchanges = [stack.exchange("GET", "/x") for _ in range(waiting)]
            outcomes = await asyncio.gather(*exchanges, return_exceptions=True)
        assert all(isinstance(outcome, InfrastructureError) for outcome in outcomes)
        assert (stack.asked - waiting, stack.addresses[0].failures - 1) == (retries, retries)

    with asyncio.Runner(loop_factory=ImaginedTime) as runner:
        runner.run(ask())


async def test_a_probe_that_is_given_up_lets_the_next_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REST_FIRST_S", 0.01)
    async with opened(retries=3) as (client, server):
        server.respond = lambda body: web.Response(status=503)
        first = asyncio.ensure_future(client.search("x", 1))
        while len(server.bodies) < 2:
            server.asked.clear()
            await server.asked.wait()
            server.gate.clear()  # the probe hangs
        second = asyncio.ensure_future(client.search("y", 1))
        await asyncio.sleep(0)
        server.respond = echo
        server.gate.set()
        assert (await first).documents
        assert (await second).documents


async def test_a_living_server_takes_over_from_a_dead_one(unused_tcp_port: int) -> None:
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    async with opened(before=(dead,), retries=1) as (client, server):
        for number in range(4):
            assert (await client.search(f"q{number}", 1)).documents
        assert client.stats()["retries"] == 1
    assert len(server.bodies) == 4


async def test_a_slow_server_is_given_up_after_the_timeout() -> None:
    async with opened(timeout_s=0.05, retries=0) as (client, server):
        server.gate.clear()
        with pytest.raises(InfrastructureError, match="TimeoutError"):
            await client.search("x", 1)


async def test_closing_fails_those_who_wait() -> None:
    async with opened() as (client, server):
        server.gate.clear()
        search = asyncio.ensure_future(client.search("x", 1))
        await server.asked.wait()
        await client.close()
        with pytest.raises(InfrastructureError, match="closed"):
            await search


async def test_a_cancelled_search_does_not_take_the_answer_from_its_twin() -> None:
    async with opened() as (client, server):
        server.gate.clear()
        leaver, stayer = (asyncio.ensure_future(client.search("x", 1)) for _ in range(2))
        await server.asked.wait()
        leaver.cancel()
        server.gate.set()
        assert (await stayer).documents
        with pytest.raises(asyncio.CancelledError):
            await leaver


async def test_a_client_that_was_not_opened_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await RetrievalClient(ClientConfig()).search("x", 1)


async def test_a_server_that_never_gets_ready_is_named(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with RetrievalClient(ClientConfig(urls=(url,))) as client:
        with pytest.raises(InfrastructureError, match=f"not ready after 0.1 s: GET /ready failed 1 times at {url}"):
            await client.wait_ready(0.1)


def test_what_a_policy_writes_can_be_sent() -> None:
    assert clean("  a\n\tb \ud800\x00 " + "c" * 50, 9) == "a b ? ccc"
    assert clean("é" * 9, 7) == "é" * 3


@given(st.text() | st.text(st.characters(codec=None)), st.integers(1, 50))
def test_a_cleaned_query_is_bounded_and_clean_already(query: str, max_bytes: int) -> None:
    sent = clean(query, max_bytes)
    assert len(sent.encode()) <= max_bytes
    assert clean(sent, max_bytes) == sent
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in sent)


def test_requests_under_way_when_a_rest_began_do_not_make_it_longer() -> None:
    address = Address("http://x")
    for started in (1.0, 1.1, 1.2):
        address.failed(started, now=2.0, retry_after_s=0.0, jitter=1.0)
    assert (address.failures, address.rests_until) == (1, 2.2)
    address.failed(2.5, now=3.0, retry_after_s=0.0, jitter=1.0)
    assert (address.failures, address.rests_until) == (2, 3.4)
    address.succeeded()
    assert (address.failures, address.rests_until) == (0, 0.0)


def test_an_address_with_the_path_that_users_paste_is_understood() -> None:
    pasted = ("http://h:1/retrieve", "http://h:1/", " https://h/base/retrieve/ ")
    assert ClientConfig(pasted).urls == ("http://h:1", "http://h:1", "https://h/base")
    assert ClientConfig(("http://h:1/batch_search",), "batch_search").urls == ("http://h:1",)
    with pytest.raises(UserError, match=r"speaks dialect=batch_search; write client.dialect=batch_search with it"):
        ClientConfig(("http://h:1/batch_search",))
    with pytest.raises(UserError, match="is no address"):
        ClientConfig(("http://h:1/retrieve?x=1",))


async def test_a_place_without_the_route_is_no_retriever_of_others() -> None:
    async with opened() as (client, server):
        await client.wait_ready(1)  # no /ready, but it answers a search
        assert server.bodies == [{"queries": ["ready"], "topk": 1, "return_scores": True}]
    async with TestServer(web.Application()) as running:
        client = RetrievalClient(ClientConfig(urls=(str(running.make_url("")),)))
        await client.__aenter__()
        with pytest.raises(InfrastructureError, match=r"no retriever of dialect=retrieve: POST /retrieve at .* 404"):
            await client.wait_ready(60)
        await client.close()


@pytest.mark.parametrize(
    "settings", [{"urls": ()}, {"urls": ("localhost:8000",)}, {"timeout_s": 0}, {"retries": -1}, {"max_query_bytes": 0}]
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        ClientConfig(**settings)
