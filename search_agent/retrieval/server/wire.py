"""Requests and replies as bytes, apart from any server: what clients of published retrievers send and expect.

    POST /retrieve      {"queries": [...], "topk": 3, "return_scores": true}              Search-R1, AutoRefine, ours
                        -> {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}
    POST /search        {"query": "...", "top_n": 10, "return_score": false}              ReSearch, ReCall, FlashRAG
                        -> [{"id", "contents"}, ...] or [[document, ...], [score, ...]]
    POST /batch_search  the same with a list of queries and a list of each
    GET  /api/search?query=...&k=10                                                       ColBERT, ExSearch
                        -> {"query", "topk": [{"text": "title | text", "pid", "rank", "score", "prob"}, ...]}

An empty query, or one that matches nothing, has no documents; a query of a batch that fails has none either, and
``/retrieve`` gives the reason under ``errors``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import orjson

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import split_contents

MAX_QUERIES = 1024
MAX_QUERY_BYTES = 8192
MAX_K = 1000
DEFAULT_TOP_N = 10


class BadRequest(Exception):
    """A request that cannot be answered: an HTTP status and one line."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Request:
    """What any dialect asks for."""

    queries: list[str]
    k: int
    with_scores: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query got: hits, or the reason why there are none."""

    hits: Sequence[Hit] = ()
    error: str | None = None
    status: int = 200
    """The HTTP status for a dialect that asks one query at a time."""


def parse_retrieve(body: bytes, default_k: int) -> Request:
    """The request in a ``/retrieve`` body. Raises BadRequest."""
    fields = _object(body)
    return Request(_queries(fields, "queries"), _k(fields, "topk", default_k), _flag(fields, "return_scores"))


def parse_batch_search(body: bytes) -> Request:
    """The request in a ``/batch_search`` body. Raises BadRequest."""
    fields = _object(body)
    return Request(_queries(fields, "query"), _k(fields, "top_n", DEFAULT_TOP_N), _flag(fields, "return_score"))


def parse_search(body: bytes) -> Request:
    """The request in a ``/search`` body. Raises BadRequest."""
    fields = _object(body)
    query = fields.get("query")
    if not isinstance(query, str):
        raise BadRequest(422, "query: a string is needed")
    return Request([query], _k(fields, "top_n", DEFAULT_TOP_N), _flag(fields, "return_score"))


def parse_api_search(query_string: bytes) -> Request:
    """The request in the query string of ``/api/search``. Raises BadRequest."""
    try:
        fields = parse_qs(query_string.decode("ascii"), keep_blank_values=True, errors="replace", max_num_fields=16)
    except ValueError as error:
        raise BadRequest(422, f"the query string cannot be read: {error}") from error
    k = fields.get("k", [str(DEFAULT_TOP_N)])[-1]
    if "query" not in fields:
        raise BadRequest(422, "query: missing; write /api/search?query=...&k=10")
    is_number = k.isascii() and k.isdigit() and len(k) <= 6
    return Request([fields["query"][-1]], _k({"k": int(k) if is_number else k}, "k", DEFAULT_TOP_N), True)


def render_retrieve(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/retrieve`` reply; queries that failed have an empty list, and their reasons stand under ``errors``."""
    rows = [_hits(answer.hits, documents, request.with_scores) for answer in answers]
    errors = {str(number): answer.error for number, answer in enumerate(answers) if answer.error is not None}
    tail = b',"errors":' + orjson.dumps(errors) if errors else b""
    return b'{"result":[' + b",".join(rows) + b"]" + tail + b"}"


def render_batch_search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/batch_search`` reply."""
    rows = b"[" + b",".join(_hits(answer.hits, documents, False) for answer in answers) + b"]"
    if not request.with_scores:
        return rows
    scores = [[hit.score for hit in answer.hits] for answer in answers]
    return b"[" + rows + b"," + orjson.dumps(scores) + b"]"


def render_search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/search`` reply. Raises BadRequest if the query failed."""
    hits = _only(answers)
    rows = _hits(hits, documents, False)
    return b"[" + rows + b"," + orjson.dumps([hit.score for hit in hits]) + b"]" if request.with_scores else rows


def render_api_search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/api/search`` reply. Raises BadRequest if the query failed."""
    hits = _only(answers)
    weights = [math.exp(hit.score - hits[0].score) for hit in hits]  # the best is first: no power above 1
    rows = [
        {**_piped(orjson.loads(documents.of(hit))), "rank": rank, "score": hit.score, "prob": weight / sum(weights)}
        for rank, (hit, weight) in enumerate(zip(hits, weights, strict=True), 1)
    ]
    return orjson.dumps({"query": request.queries[0], "topk": rows})


def query_fault(query: str) -> str | None:
    """Why a single query of a batch cannot be searched; None if it can."""
    num_bytes = len(query.encode("utf-8", "replace"))
    return f"the query has {num_bytes} bytes, at most {MAX_QUERY_BYTES}" if num_bytes > MAX_QUERY_BYTES else None


def _only(answers: Sequence[Answer]) -> Sequence[Hit]:
    (answer,) = answers
    if answer.error is not None:
        raise BadRequest(answer.status, answer.error)
    return answer.hits


def _piped(row: Mapping[str, Any]) -> dict[str, Any]:
    """Clients split ``title | text`` at the first bar, so a title must not hold one."""
    title, text = split_contents(row["contents"])
    return {"text": f"{title.replace('|', '/')} | {text}", "pid": row["id"]}


def _hits(hits: Sequence[Hit], documents: Documents, with_scores: bool) -> bytes:
    if with_scores:
        rows = [b'{"document":%b,"score":%b}' % (documents.of(hit), orjson.dumps(hit.score)) for hit in hits]
    else:
        rows = [documents.of(hit) for hit in hits]
    return b"[" + b",".join(rows) + b"]"


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(422, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(422, "the body is not a JSON object")
    return fields


def _queries(fields: Mapping[str, Any], key: str) -> list[str]:
    queries = fields.get(key)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise BadRequest(422, f"{key}: a list of strings is needed")
    if len(queries) > MAX_QUERIES:
        raise BadRequest(413, f"{key}: {len(queries)} queries, at most {MAX_QUERIES} a request")
    return queries


def _k(fields: Mapping[str, Any], key: str, default_k: int) -> int:
    k = fields.get(key)
    if k is None:
        return default_k
    if isinstance(k, float) and k.is_integer():
        k = int(k)  # 3.0 is an integer of JSON
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise BadRequest(422, f"{key}: a whole number from 1 to {MAX_K} is needed, not {str(k)[:40]!r}")
    return k


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    flag = fields.get(key, False)
    if not isinstance(flag, bool | None):
        raise BadRequest(422, f"{key}: true or false is needed")
    return bool(flag)
