"""Every dialect, every bound, over the ASGI interface itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.index.corpus import Passage
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.server import access, app, wire
from search_agent.retrieval.server.app import App
from search_agent.retrieval.server.loading import Served

PASSAGES = [Passage("7", '"One|Two"\nred "apple"'), Passage("x", "untitled"), Passage("9", '"Ü"\ngrün')]


class Engine:
    """Finds the passages in order, with scores 2, 1, 0.5; nothing for a blank query; fails on ``bad``."""

    max_batch = 8

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        assert self.gate.wait(10)
        if "bad" in queries:
            raise RuntimeError("no such thing")
        return [[Hit(0, 2.0), Hit(1, 1.0), Hit(2, 0.5)][:k] if query.strip() else [] for query in queries]

    def manifest(self) -> dict[str, Any]:
        return {"name": "fake"}

    def implementation(self) -> str:
        return "fake"


def serve(max_waiting: int = 100) -> tuple[App, Engine]:
    engine = Engine()
    served = Served(Documents.from_rows(p.to_json() for p in PASSAGES), engine, {"documents": 3, "backend": {}})
    application = App(default_k=3, threads=1, max_waiting=max_waiting)
    application.start(served)
    return application, engine


async def call(
    application: App, method: str, target: str, body: Any = None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, Any, dict[bytes, bytes]]:
    path, _, query = target.partition("?")
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    scope = {"method": method, "path": path, "query_string": query.encode(), "headers": list(headers)}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": payload}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
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
    rendered = wire.render_api_search(request, [wire.Answer([Hit(0, 2000.0), Hit(1, 2000.0)])], documents)
    assert [hit["prob"] for hit in json.loads(rendered)["topk"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "detail"),
    [
        ("POST", "/retrieve", b"{", 422, "not JSON"),
        ("POST", "/retrieve", [], 422, "not a JSON object"),
        ("POST", "/retrieve", {}, 422, "queries: a list"),
        ("POST", "/retrieve", {"queries": "a"}, 422, "queries: a list"),
        ("POST", "/retrieve", {"queries": [1]}, 422, "queries: a list"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": 0}, 422, "topk: a whole number from 1"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": True}, 422, "topk"),
        ("POST", "/retrieve", {"queries": ["a"], "topk": wire.MAX_K + 1}, 422, "topk"),
        ("POST", "/retrieve", {"queries": ["a"], "return_scores": 1}, 422, "return_scores"),
        ("POST", "/retrieve", {"queries": ["a"] * (wire.MAX_QUERIES + 1)}, 413, "at most 1024"),
        ("POST", "/retrieve", b" " * (app.MAX_BODY_BYTES + 1), 413, "body is above"),
        ("POST", "/search", {"query": ["a"]}, 422, "query: a string"),
        ("POST", "/search", {"query": "a" * (wire.MAX_QUERY_BYTES + 1)}, 422, "at most 8192"),
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
    queries = ["a", "x" * (wire.MAX_QUERY_BYTES + 1), "bad", "b"]
    status, reply, _ = await call(serve()[0], "POST", "/retrieve", {"queries": queries, "topk": 1})
    assert status == 200
    assert [len(row) for row in reply["result"]] == [1, 0, 0, 1]
    assert sorted(reply["errors"]) == ["1", "2"]


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
    loading = App(default_k=3, threads=1)
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
KEYS = st.sampled_from(["queries", "query", "topk", "top_n", "return_scores", "return_score", "other"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["/retrieve", "/search", "/batch_search"]), st.dictionaries(KEYS, JSON) | JSON | st.binary())
def test_no_body_makes_it_fail(path: str, body: Any) -> None:
    status, _, _ = asyncio.run(call(serve()[0], "POST", path, body))
    assert status in (200, 413, 422)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_no_query_string_makes_it_fail(query: str) -> None:
    status, _, _ = asyncio.run(call(serve()[0], "GET", f"/api/search?{query}"))
    assert status in (200, 422)
