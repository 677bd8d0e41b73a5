"""Every dialect, every bound, over the ASGI interface itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.index.corpus import Passage
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.index.postings import build_postings
from search_agent.retrieval.server import access, app, reading, replies, wire
from search_agent.retrieval.server.app import App
from search_agent.retrieval.server.loading import Served
from search_agent.retrieval.server.wire import Bounds

BOUNDS = Bounds(default_k=3, max_k=1000, max_queries=3000)
PASSAGES = [Passage("7", '"One|Two"\nred "apple"'), Passage("x", "untitled"), Passage("9", '"Ü"\ngrün')]


class Engine:
    """Finds the passages in order, with scores 2, 1, 0.5; is never asked a blank query; fails on ``bad``."""

    max_batch = 8

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        assert self.gate.wait(10)
        self.asked += queries
        if "bad" in queries:
            raise RuntimeError("no such thing")
        assert all(query.strip() for query in queries)
        return [[Hit(0, 2.0), Hit(1, 1.0), Hit(2, 0.5)][:k] for _ in queries]

    def manifest(self) -> dict[str, Any]:
        return {"name": "fake"}

    def implementation(self) -> str:
        return "fake"


def serve(max_waiting: int = 100, bounds: Bounds = BOUNDS, hosts: Sequence[str] = ()) -> tuple[App, Engine]:
    engine = Engine()
    served = Served(Documents.from_rows(p.to_json() for p in PASSAGES), engine, {"documents": 3, "backend": {}})
    application = App(bounds, 1, hosts, max_waiting)
    application.start(served)
    return application, engine


async def call(
    application: App,
    method: str,
    target: str,
    body: Any = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
) -> tuple[int, Any, dict[bytes, bytes]]:
    path, _, query = target.partition("?")
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    scope = {"method": method, "path": path, "query_string": query.encode(), "headers": list(headers)}
    sent: list[dict[str, Any]] = []

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": payload}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive or whole, send)
    start, end = sent
    kind = dict(start["headers"])[b"content-type"]
    content = json.loads(end["body"]) if kind == b"application/json" else end["body"].decode()
    return start["status"], content, dict(start["headers"])


DOCUMENTS = [{"id": p.id, "contents": p.contents} for p in PASSAGES]


async def test_retrieve_as_search_r1_asks() -> None:
    application, _ = serve()
    status, reply, _ = await call(
        application, "POST", "/retrieve", {"queries": ["a", ""], "topk": 2, "return_scores": True}
    )
    assert status == 200
    assert reply == {
        "result": [[{"document": DOCUMENTS[0], "score": 2.0}, {"document": DOCUMENTS[1], "score": 1.0}], []]
    }
    _, bare, _ = await call(application, "POST", "/retrieve", {"queries": ["a", "b"], "topk": None})
    assert bare == {"result": [DOCUMENTS, DOCUMENTS]}


async def test_search_and_batch_search_as_research_asks() -> None:
    application, _ = serve()
    _, bare, _ = await call(application, "POST", "/search", {"query": "a", "top_n": 1.0})
    assert bare == DOCUMENTS[:1]
    _, scored, _ = await call(application, "POST", "/search", {"query": "a", "top_n": 2, "return_score": True})
    assert scored == [DOCUMENTS[:2], [2.0, 1.0]]
    _, batch, _ = await call(application, "POST", "/batch_search", {"query": ["a", " "]})
    assert batch == [DOCUMENTS, []]
    _, both, _ = await call(
        application, "POST", "/batch_search", {"query": ["a", ""], "top_n": 1, "return_score": True}
    )
    assert both == [[DOCUMENTS[:1], []], [[2.0], []]]


async def test_api_search_as_exsearch_asks() -> None:
    application, _ = serve()
    status, reply, _ = await call(application, "GET", f"/api/search?query={quote('grüne Äpfel & mehr')}&k=3")
    assert status == 200
    assert reply["query"] == "grüne Äpfel & mehr"
    assert [hit["text"] for hit in reply["topk"]] == ['One/Two | red "apple"', " | untitled", "Ü | grün"]
    assert [(hit["pid"], hit["rank"], hit["score"]) for hit in reply["topk"]] == [
        ("7", 1, 2.0),
        ("x", 2, 1.0),
        ("9", 3, 0.5),
    ]
    assert sum(hit["prob"] for hit in reply["topk"]) == pytest.approx(1)


async def test_large_scores_do_not_overflow_the_probabilities() -> None:
    request = wire.Request(["q"], 2, True)
    documents = Documents.from_rows(p.to_json() for p in PASSAGES)
    rendered = replies.api_search(request, [replies.Answer([Hit(0, 2000.0), Hit(1, 2000.0)])], documents)
    assert [hit["prob"] for hit in json.loads(rendered)["topk"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "detail"),
    [
        ("POST", "/retrieve", b"{", 422, "not JSON"),
        ("POST", "/retrieve", [], 422, "not a JSON object"),
        ("POST", "/retrieve", {}, 422, "queries: a list"),
        ("POST", "/retrieve", {"queries": "a"}, 422, "queries: a list"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": 0}, 422, "topk: a whole number from 1"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": True}, 422, "topk"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": BOUNDS.max_k + 1}, 422, "topk"),
        ("POST", "/retrieve", {"queries": ["a"], "return_scores": 1}, 422, "return_scores"),
        ("POST", "/retrieve", {"queries": ["a"] * (BOUNDS.max_queries + 1)}, 413, "at most 3000"),
        ("POST", "/retrieve", {"queries": ["a"] * 2000, "topk": 1000}, 413, "2000 times 1000 documents"),
        ("POST", "/retrieve", b'{"queries": ["a"], "topk": %b}' % (b"[" * 900 + b"]" * 900), 422, "not 'list'"),
        ("POST", "/retrieve", b'{"queries": ["\\ud800"], %b' % (b"[" * 100_000), 422, "not JSON"),
        ("POST", "/retrieve", {"queries": ["a"], "options": {"a": [1]}}, 422, "options: an object of texts"),
        ("POST", "/retrieve", {"queries": ["a"], "options": {"a": "\ud800"}}, 422, "options: "),
        ("POST", "/retrieve", b" " * (reading.MAX_BODY_BYTES + 1), 413, "body is above"),
        ("POST", "/search", {"query": ["a"]}, 422, "query: a string"),
        ("POST", "/search", {"query": "bad"}, 500, "no such thing"),
        ("POST", "/batch_search", {"query": "a"}, 422, "query: a list"),
        ("GET", "/api/search?k=3", b"", 422, "query: missing"),
        ("GET", "/api/search?query=a&k=x", b"", 422, "k: a whole number"),
        ("GET", "/api/search?query=a&k=-1", b"", 422, "k: a whole number"),
        ("GET", "/retrieve", b"", 405, "no such route: GET /retrieve"),
        ("POST", "/nowhere", b"", 404, "no such route"),
    ],
)
async def test_bounds_and_types(method: str, target: str, body: Any, status: int, detail: str) -> None:
    got, reply, _ = await call(serve()[0], method, target, body)
    assert got == status
    assert detail in reply["detail"]


async def test_one_bad_query_does_not_fail_its_batch() -> None:
    queries = ["a", None, "bad", "b", {"c": 1}]
    status, reply, _ = await call(serve()[0], "POST", "/retrieve", {"queries": queries, "topk": 1})
    assert status == 200
    assert [len(row) for row in reply["result"]] == [1, 0, 0, 1, 0]
    assert sorted(reply["errors"]) == ["1", "2", "4"]
    assert reply["errors"]["1"] == "a query is a string"
    _, rows, _ = await call(serve()[0], "POST", "/batch_search", {"query": queries, "top_n": 1})
    assert [len(row) for row in rows] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("query", ["x" * 9000, "ü" * 9000, "\ud83d", "oslo \udfff tower", "\0\x1b[31m", "\ufeff"])
async def test_what_a_model_writes_is_searched_whatever_it_is(query: str) -> None:
    application, engine = serve()
    for path, body in (
        ("/retrieve", {"queries": ["a", query], "topk": 1}),
        ("/search", {"query": query}),
        ("/batch_search", {"query": [query]}),
    ):
        status, reply, _ = await call(application, "POST", path, body)
        assert status == 200
        assert "errors" not in reply
    status, reply, _ = await call(application, "GET", f"/api/search?query={quote(query, errors='surrogatepass')}")
    assert status == 200
    assert reply["topk"]
    assert all(len(asked.encode()) <= wire.MAX_QUERY_BYTES for asked in engine.asked)


async def test_a_request_of_published_size_is_answered_in_slices() -> None:
    application, engine = serve(max_waiting=100)
    queries = [f"q{number}" for number in range(2560)]
    status, reply, _ = await call(application, "POST", "/retrieve", {"queries": queries, "topk": 1})
    assert status == 200
    assert [len(row) for row in reply["result"]] == [1] * 2560
    assert engine.asked == queries


async def test_a_slice_that_finds_the_queue_full_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FULL_S", 0.0)
    application, _ = serve(max_waiting=4)
    bodies = [{"queries": [f"{number} {n}" for n in range(40)]} for number in range(2)]
    first = asyncio.ensure_future(call(application, "POST", "/retrieve", bodies[0]))
    await asyncio.sleep(0)
    reply = await call(application, "POST", "/retrieve", bodies[1])
    for _ in range(10_000):
        if reply[0] == 200:
            break
        await asyncio.sleep(0)
        reply = await call(application, "POST", "/retrieve", bodies[1])
    for status, found, _ in (await first, reply):
        assert status == 200
        assert [len(row) for row in found["result"]] == [3] * 40


async def test_ids_alone_are_given_where_they_suffice() -> None:
    body = {"queries": ["a"], "ids_only": True}
    _, bare, _ = await call(serve()[0], "POST", "/retrieve", body)
    assert [row["ids"] for row in bare["result"]] == [["7", "x", "9"]]
    _, scored, _ = await call(serve()[0], "POST", "/retrieve", {**body, "topk": 1, "return_scores": True})
    assert scored == {"result": [{"ids": ["7"], "scores": [2.0]}]}


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")))
def test_the_id_of_a_passage_is_read_past_any_text(identity: str, contents: str) -> None:
    documents = Documents.from_rows([Passage(identity, contents).to_json()])
    assert json.loads(documents.id_of(Hit(0, 1.0))) == identity


async def test_options_go_to_a_back_end_that_has_filters() -> None:
    status, reply, _ = await call(serve()[0], "POST", "/retrieve", {"queries": ["a"], "options": {"date": "2018"}})
    assert (status, "no filters" in reply["detail"]) == (422, True)
    _, reply, _ = await call(serve()[0], "POST", "/retrieve", {"queries": ["a"], "options": {}})
    assert "errors" not in reply


async def test_a_half_sent_request_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_S", 0.01)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    status, reply, headers = await call(serve()[0], "POST", "/retrieve", receive=receive)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert "did not arrive" in reply["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("Proxy:80", 200), ("evil.example:8000", 403)],
)
async def test_a_loopback_server_answers_to_its_own_names(host: str, status: int) -> None:
    application, _ = serve(hosts=sorted(access.known_hosts("127.0.0.1", ["proxy"])))
    headers = [(b"host", host.encode())]
    assert (await call(application, "POST", "/retrieve", {"queries": ["a"]}, headers))[0] == status
    assert (await call(application, "GET", "/", headers=headers))[0] == status


async def test_a_full_queue_says_when_to_come_back() -> None:
    application, engine = serve(max_waiting=2)
    engine.gate.clear()
    first = asyncio.ensure_future(call(application, "POST", "/retrieve", {"queries": ["a"]}))
    await asyncio.sleep(0.01)
    second = asyncio.ensure_future(call(application, "POST", "/retrieve", {"queries": ["b", "c"]}))
    await asyncio.sleep(0.01)
    status, _, headers = await call(application, "POST", "/retrieve", {"queries": ["d"]})
    assert (status, headers[b"retry-after"]) == (429, b"1")
    engine.gate.set()
    assert [(await task)[0] for task in (first, second)] == [200, 200]


async def test_not_ready_is_503_and_alive_is_200() -> None:
    loading = App(BOUNDS, 1)
    stopping, _ = serve()
    stopping.draining = True
    for application in (loading, stopping):
        assert (await call(application, "GET", "/health"))[0] == 200
        for method, target in (("GET", "/ready"), ("GET", "/info"), ("POST", "/retrieve")):
            status, _, headers = await call(application, method, target, {"queries": ["a"]})
            assert (status, headers[b"retry-after"]) == (503, b"1")


async def test_a_request_under_way_is_answered_while_it_drains() -> None:
    application, engine = serve()
    engine.gate.clear()
    request = asyncio.ensure_future(call(application, "POST", "/retrieve", {"queries": ["a"]}))
    await asyncio.sleep(0.01)
    application.draining = True
    engine.gate.set()
    assert (await request)[0] == 200


async def test_a_token_keeps_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.TOKEN_VARIABLE, "s3cret")
    application, _ = serve()
    body = {"queries": ["a"]}
    assert (await call(application, "POST", "/retrieve", body))[0] == 401
    assert (await call(application, "POST", "/retrieve", body, [(b"authorization", b"Bearer wrong")]))[0] == 401
    assert (await call(application, "POST", "/retrieve", body, [(b"authorization", b"Bearer s3cret")]))[0] == 200
    assert (await call(application, "GET", "/info"))[0] == 401
    for open_route in ("/health", "/"):
        assert (await call(application, "GET", open_route))[0] == 200
    assert access.token_headers() == {"Authorization": "Bearer s3cret"}


async def test_metrics_page_and_description() -> None:
    application, _ = serve()
    await call(application, "POST", "/retrieve", {"queries": ["a", "b"]})
    await call(application, "POST", "/made-up")
    _, text, _ = await call(application, "GET", "/metrics")
    assert 'retrieval_requests_total{route="/retrieve",status="200"} 1.0' in text
    assert 'retrieval_requests_total{route="unknown",status="404"} 1.0' in text
    assert "retrieval_queries_total 2.0" in text
    assert "retrieval_backend_queries 2.0" in text
    assert "<form" in (await call(application, "GET", "/"))[1]
    _, described, _ = await call(application, "GET", "/openapi.json")
    routes = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert routes == set(application._routes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["queries", "query", "topk", "top_n", "return_scores", "return_score", "ids_only", "options"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["/retrieve", "/search", "/batch_search"]), st.dictionaries(KEYS, JSON) | JSON | st.binary())
def test_no_body_makes_it_fail(path: str, body: Any) -> None:
    status, _, _ = asyncio.run(call(serve()[0], "POST", path, body))
    assert status in (200, 413, 422)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_whatever_a_model_writes_is_searched(queries: list[str]) -> None:
    backend = Bm25(build_postings(passage.contents for passage in PASSAGES))
    application = App(BOUNDS, 1)
    application.start(Served(Documents.from_rows(p.to_json() for p in PASSAGES), backend, {"documents": 3}))
    for path, key in (("/retrieve", "queries"), ("/batch_search", "query")):
        status, reply, _ = asyncio.run(call(application, "POST", path, {key: queries}))
        assert status == 200
        assert len(reply["result"] if key == "queries" else reply) == len(queries)
        assert "errors" not in reply


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_no_query_string_makes_it_fail(query: str) -> None:
    status, _, _ = asyncio.run(call(serve()[0], "GET", f"/api/search?{query}"))
    assert status in (200, 422)
