"""Engines of others, each against a small fake of it on loopback, or its own local mode."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.retrieval.backends import http, lucene, opensearch, qdrant, web
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig, EncoderConfig, ServerConfig
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.server.child import start_server
from search_agent.retrieval.server.loading import load
from verl.config.arguments import parse
from verl.errors import InfrastructureError, UserError

NONE = Documents.from_rows(())
Respond = Callable[["Asked"], tuple[int, Any]]


class Asked(SimpleNamespace):
    """One request: ``method``, ``path``, ``query``, ``headers``, ``body``."""


class Fake:
    """An HTTP server that answers JSON as ``respond`` decides, and keeps what it was asked."""

    def __init__(self, respond: Respond) -> None:
        self.respond, self.asked = respond, list[Asked]()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                asked = Asked(method=self.command, path=parts.path, query=query, headers=self.headers, body=body)
                fake.asked.append(asked)
                status, reply = fake.respond(asked)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def fake() -> Iterator[Callable[[Respond], Fake]]:
    running: list[Fake] = []

    def start(respond: Respond) -> Fake:
        running.append(Fake(respond))
        return running[-1]

    yield start
    for server in running:
        server.server.shutdown()
        server.server.server_close()


def texts(hits: Sequence[Any]) -> list[str]:
    return [NONE.contents_of(hit) for hit in hits]


# --- OpenSearch


ROWS = [{"title": "Mars", "text": "a red planet"}, {"contents": '"Moon"\na grey rock'}, {"text": "no title, red"}]


def cluster(asked: Asked) -> tuple[int, Any]:
    """Matches a query word against the values of the rows; scores count down."""
    if asked.path == "/wiki/_count":
        return 200, {"count": len(ROWS)}
    if asked.path != "/wiki/_msearch":
        return 404, {"error": "no such index"}
    lines = [json.loads(line) for line in asked.body.splitlines()]
    responses = []
    for body in lines[1::2]:
        words = body["query"]["multi_match"]["query"].split()
        found = [n for n, row in enumerate(ROWS) if any(w in " ".join(row.values()).lower() for w in words)]
        hits = [{"_id": f"d{n}", "_score": 9.0 - n, "_source": ROWS[n]} for n in found[: body["size"]]]
        responses.append({"status": 200, "hits": {"hits": hits}})
    return 200, {"took": 1, "responses": responses}


def test_opensearch_answers_a_batch_by_one_msearch(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_AUTH", "ApiKey s3cret")
    server = fake(cluster)
    engine = opensearch.build(opensearch.Config(server.url, "wiki", ("title^2", "text"), key_variable="OS_AUTH"), NONE)
    red, nothing, grey = engine.search(["red", "zebra", "grey"], 5)
    assert texts(red) == ['"Mars"\na red planet', '""\nno title, red']
    assert [(hit.doc, hit.score) for hit in red] == [(0, 9.0), (1, 7.0)]
    assert (nothing, texts(grey)) == ([], ['"Moon"\na grey rock'])
    assert [asked.path for asked in server.asked] == ["/wiki/_count", "/wiki/_msearch"]
    sent = server.asked[1]
    assert sent.headers["Authorization"] == "ApiKey s3cret"
    assert sent.headers["Content-Type"] == "application/x-ndjson"
    assert sent.body.endswith(b"\n")
    assert json.loads(sent.body.splitlines()[1])["query"]["multi_match"]["fields"] == ["title^2", "text"]
    assert "s3cret" not in str(engine.manifest())


@pytest.mark.parametrize("query", ["a " * 4000, "林檎" * 2000, "don't!" * 1000])
def test_no_server_of_others_is_sent_more_than_it_reads(fake: Any, query: str) -> None:
    """They refuse what is longer, and a refusal would end the episode of a policy that writes it."""
    server = fake(cluster)
    opensearch.build(opensearch.Config(server.url, "wiki", ("title^2", "text")), NONE).search([query], 1)
    sent = json.loads(server.asked[1].body.splitlines()[1])["query"]["multi_match"]["query"]
    assert query.startswith(sent)
    assert 2 * len(re.findall(r"[a-z]+|[林檎]", sent)) <= 1024
    searcher = Searcher(["{}"])
    lucene.Lucene(lucene.Config(Path("index")), searcher, NONE).search([query], 0)
    assert len(re.findall(r"[a-z]+|[林檎]", searcher.asked[0])) <= 1024
    web_server = fake(lambda asked: (200, REPLIES["searxng"]))
    web.build(web.Config("searxng", url=f"{web_server.url}/find"), NONE).search([query], 1)
    (sent,) = [asked.query["q"] for asked in web_server.asked]
    assert query.startswith(sent)
    assert (len(sent) <= 400, len(sent.split()) <= 50) == (True, True)


def test_opensearch_that_is_not_there_or_holds_something_else(fake: Any) -> None:
    server = fake(cluster)
    with pytest.raises(UserError, match="answers 404 for index other; check index="):
        opensearch.build(opensearch.Config(server.url, "other"), NONE)
    engine = opensearch.build(opensearch.Config(server.url, "wiki", retries=0), NONE)
    replies: list[tuple[int, Any]] = [
        (500, {}),
        (200, []),
        (200, {"responses": []}),
        (200, {"responses": [{"error": {"type": "parsing_exception"}}]}),
        (200, {"responses": [{"hits": {"hits": [{"_id": "1", "_score": None, "_source": {}}]}}]}),
        (200, {"responses": [{"hits": {"hits": [{"_id": "1", "_score": 1, "_source": {"title": "x"}}]}}]}),
        (200, b"<html>"),
    ]
    for reply in replies:
        server.respond = lambda asked, reply=reply: reply
        with pytest.raises(InfrastructureError):
            engine.search(["x"], 3)


async def test_a_server_over_a_back_end_of_others_speaks_to_any_client(fake: Any, tmp_path: Path) -> None:
    words = [f"backend.url={fake(cluster).url}", "backend.index=wiki"]
    plugin = "backend.plugin=search_agent.retrieval.backends.opensearch"
    with start_server(None, log=tmp_path / "log", options=[plugin, *words]) as server:
        for dialect in ("retrieve", "batch_search", "api_search"):
            config = ClientConfig((server.url,), dialect)  # type: ignore[arg-type]
            async with RetrievalClient(config) as client:
                (mars, other) = (await client.search("red", 3)).documents
                assert (mars.id, mars.title, mars.text, mars.score) == ("d0", "Mars", "a red planet", 9.0)
                assert (other.id, other.text) == ("d2", "no title, red")
        async with RetrievalClient(ClientConfig((server.url,))) as client:
            info = await client.info()
    assert (info["corpus"], info["backend"]["name"], info["backend"]["documents"]) == (None, "opensearch", 3)


# --- web search


REPLIES = {
    "serper": {"organic": [{"title": "T", "link": "u", "snippet": "s"}]},
    "serpapi": {"organic_results": [{"title": "T", "link": "u", "snippet": "s"}]},
    "google": {"items": [{"title": "T", "link": "u", "snippet": "s"}]},
    "brave": {"web": {"results": [{"title": "T", "url": "u", "description": "s"}]}},
    "searxng": {"results": [{"title": "T", "url": "u", "content": "s"}]},
}


@pytest.mark.parametrize("provider", sorted(web.PROVIDERS))
def test_each_provider_is_asked_in_its_way(fake: Any, monkeypatch: pytest.MonkeyPatch, provider: Any) -> None:
    monkeypatch.setenv("SLEUTH_SEARCH_KEY", "s3cret")
    server = fake(lambda asked: (200, REPLIES[provider]))
    engine = web.build(web.Config(provider, url=f"{server.url}/find", parameters=("gl=us",)), NONE)
    (found,) = engine.search(["who & what?"], 3)
    assert [(hit.doc, hit.score, NONE.of(hit)) for hit in found] == [(0, 1.0, b'{"id":"u","contents":"\\"T\\"\\ns"}')]
    (asked,) = server.asked
    form, how = web.PROVIDERS[provider], {**asked.query, **json.loads(asked.body or "{}")}
    assert (asked.method, asked.path, how[form.query], how["gl"]) == (form.method, "/find", "who & what?", "us")
    assert form.count is None or int(how[form.count]) == 3
    places = [asked.headers.get(form.key_header or "-"), how.get(form.key_parameter or "-")]
    assert places.count("s3cret") == (provider != "searxng")
    assert "s3cret" not in str(engine.manifest())


def test_a_web_search_that_fails_is_no_empty_result_and_tells_no_key(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEUTH_SEARCH_KEY", "s3cret")
    server = fake(lambda asked: (401, {"message": f"bad key {asked.query['api_key']}"}))
    engine = web.build(web.Config("serpapi", url=server.url, retries=0), NONE)
    replies: list[tuple[int, Any]] = [(503, {}), (200, []), (200, {"organic_results": 3}), (200, b"{"), (200, "x")]
    for reply in (None, *replies):
        if reply is not None:
            server.respond = lambda asked, reply=reply: reply
        with pytest.raises(InfrastructureError) as caught:
            engine.search(["x"], 3)
        assert "s3cret" not in str(caught.value)
    server.respond = lambda asked: (200, {})
    assert engine.search(["x"], 3) == [[]]  # the provider found nothing: a fact
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(InfrastructureError, match="does not answer") as caught:
        engine.search(["x"], 3)
    assert "s3cret" not in str(caught.value)


def test_a_busy_provider_is_asked_again(fake: Any) -> None:
    replies = [(429, {}), (503, {}), (200, REPLIES["searxng"])]
    server = fake(lambda asked: replies.pop(0))
    engine = web.build(web.Config("searxng", url=server.url), NONE)
    assert len(engine.search(["x"], 3)[0]) == 1


def test_a_reply_without_end_is_refused(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REPLY_BYTES", 2**20)
    server = fake(lambda asked: (200, b"[" + b" " * 2**21 + b"]"))
    with pytest.raises(InfrastructureError, match="above 1 MiB"):
        http.Http(5, 0).json("GET", server.url)


def test_snippets_are_cut_clean_and_those_without_text_left_out() -> None:
    rows = [
        {"title": "<b>A</b> &amp; B", "link": "u1", "snippet": "x <strong>y</strong>\n 1 < 2"},
        {"title": "no text", "link": "u2"},
        {"snippet": "no link"},
        {"title": 3, "link": "u3", "snippet": "z" * 50},
    ]
    found = web.snippets(web.PROVIDERS["serper"], {"organic": rows}, 20)
    assert found == [
        {"id": "u1", "title": "A & B", "text": "x y 1 < 2"},
        {"id": "u3", "title": "", "text": "z" * 20},
    ]


@given(st.text(), st.integers(1, 50))
def test_no_snippet_is_longer_than_asked(text: str, max_chars: int) -> None:
    assert len(web.plain(text, max_chars)) <= max_chars
    assert "\n" not in web.plain(text, max_chars)


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLEUTH_SEARCH_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable SLEUTH_SEARCH_KEY is not set"):
        web.build(web.Config("serper"), NONE)


# --- Qdrant


class Encoder:
    """Letters as dimensions: the share of each of a, b, c, d in a text."""

    dimensions = 4

    def encode_queries(self, texts: Sequence[str]) -> Any:
        counts = np.asarray([[text.count(letter) for letter in "abcd"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A local collection of four points."""
    client_of = pytest.importorskip("qdrant_client").QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    client = client_of(path=str(tmp_path / "qdrant"))
    client.create_collection("letters", VectorParams(size=4, distance=Distance.DOT))
    client.create_collection("far", VectorParams(size=4, distance=Distance.EUCLID))
    rows = ["aaa", "aab", "bbb", "ccd"]
    vectors = Encoder().encode_queries(rows)
    points = [
        PointStruct(id=n, vector=vectors[n].tolist(), payload={"id": f"p{n}", "title": text, "text": text, "other": 1})
        for n, text in enumerate(rows)
    ]
    client.upsert("letters", [*points[:3], PointStruct(id=3, vector=vectors[3].tolist(), payload={"contents": "ccd"})])
    client.close()
    return tmp_path / "qdrant"


def test_qdrant_finds_what_numpy_finds(collection: Path) -> None:
    config = qdrant.Config("letters", EncoderConfig("m", "e5"), path=collection)
    engine = qdrant.Qdrant(config, qdrant._client(config), Encoder())
    found = engine.search(["ab", "cd"], 2)
    vectors = Encoder().encode_queries(["aaa", "aab", "bbb", "ccd"])
    for query, hits in zip(["ab", "cd"], found, strict=True):
        products = vectors @ Encoder().encode_queries([query])[0]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(products)[::-1][:2], atol=1e-6)
    assert texts(found[0])[0] == '"aab"\naab'
    assert json.loads(NONE.of(found[0][0]))["id"] == "p1"
    assert json.loads(NONE.of(found[1][0])) == {"id": "3", "contents": "ccd"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nowhere", {}, "there is no nowhere"),
        ("far", {}, "compared by Euclid"),
        ("letters", {"vector": "dense"}, "'dense' is not in the collection"),
    ],
)
def test_a_collection_that_cannot_be_searched_is_refused(
    collection: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    config = qdrant.Config(name, EncoderConfig("m", "e5"), path=collection, **changes)
    with pytest.raises(UserError, match=message):
        qdrant.Qdrant(config, qdrant._client(config), Encoder())


def test_a_qdrant_server_that_is_down_is_an_outage(unused_tcp_port: int) -> None:
    pytest.importorskip("qdrant_client")
    config = qdrant.Config("c", EncoderConfig("m", "e5"), url=f"http://127.0.0.1:{unused_tcp_port}", timeout_s=2)
    with pytest.raises(InfrastructureError, match="Qdrant does not answer"):
        qdrant.Qdrant(config, qdrant._client(config), Encoder())


# --- Lucene


class Searcher:
    """What the engine uses of Pyserini's ``LuceneSearcher``."""

    def __init__(self, rows: Sequence[str | None]) -> None:
        self.rows, self.num_docs, self.bm25 = rows, len(rows), (0.0, 0.0)
        self.asked: list[str] = []

    def set_bm25(self, k1: float, b: float) -> None:
        self.bm25 = (k1, b)

    def doc(self, docid: str | int) -> Any:
        return SimpleNamespace(raw=lambda: self.rows[int(docid)])

    def batch_search(self, queries: list[str], qids: list[str], k: int, threads: int) -> dict[str, list[Any]]:
        self.asked += queries
        ranked = [SimpleNamespace(docid=str(n), score=5.0 - n) for n in range(len(self.rows))]
        return {qid: ranked[:k] for query, qid in zip(queries, qids, strict=True) if query}


def test_lucene_with_stored_documents_needs_no_corpus() -> None:
    rows = [json.dumps({"id": str(n), "contents": f'"T{n}"\ntext {n}'}) for n in range(3)]
    searcher = Searcher(rows)
    engine = lucene.Lucene(lucene.Config(Path("index"), k1=1.2), searcher, NONE)
    found, nothing = engine.search(["x", ""], 2)
    assert texts(found) == ['"T0"\ntext 0', '"T1"\ntext 1']
    assert ([hit.score for hit in found], nothing, searcher.bm25) == ([5.0, 4.0], [], (1.2, 0.4))


def test_lucene_without_them_takes_the_rows_of_its_corpus() -> None:
    corpus = Documents.from_rows(json.dumps({"id": str(n), "contents": f"text {n}"}).encode() for n in range(3))
    engine = lucene.Lucene(lucene.Config(Path("index")), Searcher([None] * 3), corpus)
    assert [corpus.contents_of(hit) for hit in engine.search(["x"], 2)[0]] == ["text 0", "text 1"]
    with pytest.raises(UserError, match="holds 4 documents without text, the corpus 3"):
        lucene.Lucene(lucene.Config(Path("index")), Searcher([None] * 4), corpus)
    other = Documents.from_rows(json.dumps({"id": f"x{n}", "contents": "t"}).encode() for n in range(3))
    with pytest.raises(InfrastructureError, match="is not that row of the corpus"):
        lucene.Lucene(lucene.Config(Path("index")), Searcher([None] * 3), other).search(["x"], 2)


def test_a_lucene_index_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    plugin = "backend.plugin=search_agent.retrieval.backends.lucene"
    with pytest.raises(UserError, match="there is no folder"):
        load(parse(ServerConfig, [plugin, f"backend.index={tmp_path}/nowhere"]))


def test_a_back_end_of_others_is_checked_at_once() -> None:
    plugin = ["backend.plugin=search_agent.retrieval.backends.web", "backend.provider=searxng"]
    for words, message in (
        (["port=0"], "corpus: missing"),
        (["backend=hybrid", *plugin], "backend has a value already"),
        ([*plugin, "shards=2"], "shards: only backend=bm25"),
        (["backend.plugin=search_agent.retrieval.backends.webb"], "there is no module"),
        ([*plugin, "backend.urll=x"], "backend.urll: no such key"),
    ):
        with pytest.raises(UserError, match=message):
            parse(ServerConfig, words)
